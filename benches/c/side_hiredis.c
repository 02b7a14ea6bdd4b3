/* hiredis with redis-server: one context (connection) for each thread. */
#include <hiredis.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client_cost.h"

struct context {
    const struct job *job;
    redisContext *redis;
};

static void start(const struct job *job)
{
    (void)job;
}

static void *open_thread(const struct job *job)
{
    struct context *context = room(1, sizeof *context);
    const char *port = strrchr(job->endpoint, ':');

    if (port == NULL)
        die("%s has no port", job->endpoint);
    context->job = job;
    context->redis = redisConnect("127.0.0.1", atoi(port + 1));
    if (context->redis == NULL || context->redis->err != 0)
        die("redisConnect: %s", context->redis == NULL ? "no memory" : context->redis->errstr);
    return context;
}

static void check(const struct context *context, redisReply *reply, struct entry entry)
{
    const struct plan_head *head = &context->job->plan.head;

    if (reply == NULL)
        die("redis: %s", context->redis->errstr);
    if (context->job->is_put
            ? reply->type != REDIS_REPLY_STATUS || strcmp(reply->str, "OK") != 0
            : reply->type != REDIS_REPLY_STRING || (size_t)reply->len != head->value_bytes ||
                  memcmp(reply->str, entry.value, head->value_bytes) != 0)
        die(context->job->is_put ? "redis: SET did not return OK" : "redis: GET returned a wrong value");
    freeReplyObject(reply);
}

static void call(void *state, struct entry entry)
{
    struct context *context = state;
    const struct plan_head *head = &context->job->plan.head;
    redisReply *reply;

    if (context->job->is_put)
        reply = redisCommand(context->redis, "SET %b %b", entry.key, (size_t)head->key_bytes,
                             entry.value, (size_t)head->value_bytes);
    else
        reply = redisCommand(context->redis, "GET %b", entry.key, (size_t)head->key_bytes);
    check(context, reply, entry);
}

static void append(const struct context *context, struct entry entry)
{
    const struct plan_head *head = &context->job->plan.head;
    int status;

    if (context->job->is_put)
        status = redisAppendCommand(context->redis, "SET %b %b", entry.key, (size_t)head->key_bytes,
                                    entry.value, (size_t)head->value_bytes);
    else
        status =
            redisAppendCommand(context->redis, "GET %b", entry.key, (size_t)head->key_bytes);
    if (status != REDIS_OK)
        die("redisAppendCommand: %s", context->redis->errstr);
}

/* The operations without a reply. Replies arrive in the order of the requests. */
struct pipeline {
    struct entry *entries;
    unsigned first, count;
};

static struct pipeline pipeline_new(unsigned depth)
{
    struct pipeline pipeline = {room(depth, sizeof(struct entry)), 0, 0};

    return pipeline;
}

static void fill(struct pipeline *pipeline, struct worker *worker)
{
    const unsigned depth = worker->job->number;

    while (pipeline->count < depth) {
        struct entry entry = worker_next(worker);

        append(worker->state, entry);
        pipeline->entries[(pipeline->first + pipeline->count) % depth] = entry;
        pipeline->count++;
    }
}

static void take(struct pipeline *pipeline, struct worker *worker, void *reply)
{
    check(worker->state, reply, pipeline->entries[pipeline->first]);
    pipeline->first = (pipeline->first + 1) % worker->job->number;
    pipeline->count--;
}

/* Waits for one reply, takes all replies that arrived with it, and sends new operations. */
static void steady(struct worker *worker)
{
    struct context *context = worker->state;
    struct pipeline pipeline = pipeline_new(worker->job->number);

    while (worker_goes_on()) {
        void *reply = NULL;
        unsigned taken = 0;

        fill(&pipeline, worker);
        if (redisGetReply(context->redis, &reply) != REDIS_OK)
            die("redisGetReply: %s", context->redis->errstr);
        while (reply != NULL) {
            take(&pipeline, worker, reply);
            taken++;
            reply = NULL;
            if (redisGetReplyFromReader(context->redis, &reply) != REDIS_OK)
                die("redisGetReplyFromReader: %s", context->redis->errstr);
        }
        worker_count(worker, taken);
    }
}

static void burst(struct worker *worker)
{
    struct context *context = worker->state;
    struct pipeline pipeline = pipeline_new(worker->job->number);

    while (worker_goes_on()) {
        fill(&pipeline, worker);
        while (pipeline.count > 0) {
            void *reply = NULL;

            if (redisGetReply(context->redis, &reply) != REDIS_OK)
                die("redisGetReply: %s", context->redis->errstr);
            take(&pipeline, worker, reply);
            worker_count(worker, 1);
        }
    }
}

const struct side side_hiredis = {"hiredis", start, open_thread, call, steady, burst};
