/* The C library: calls from many threads on one handle, and a completion queue of one thread. */
#include <kvclient.h>

#include <string.h>

#include "client_cost.h"

static kvc_client *client;

static void start(const struct job *job)
{
    if (kvc_open(job->endpoint, NULL, &client) != KVC_OK)
        die("kvc_open: %s", kvc_last_error());
}

/* Threads share the handle. */
static void *open_thread(const struct job *job)
{
    return (void *)job;
}

static kvc_slice slice(const unsigned char *data, size_t len)
{
    kvc_slice made;

    made.data = data;
    made.len = len;
    return made;
}

static void call(void *state, struct entry entry)
{
    const struct job *job = state;
    const kvc_slice key = slice(entry.key, job->plan.head.key_bytes);

    if (job->is_put) {
        const kvc_slice value = slice(entry.value, job->plan.head.value_bytes);
        kvc_result result;

        if (kvc_put(client, key, value, NULL, &result) != KVC_OK || result.copies != 2)
            die("kvc_put: %s", kvc_last_error());
    } else {
        unsigned char value[256];
        size_t len;

        if (kvc_get_into(client, key, value, sizeof value, &len, NULL, NULL) != KVC_OK)
            die("kvc_get_into: %s", kvc_last_error());
        if (len != job->plan.head.value_bytes || memcmp(value, entry.value, len) != 0)
            die("kvc_get_into returned a wrong value");
    }
}

/* A completion queue, and the entries of its operations, with the tags as indices. */
struct queue {
    kvc_cq *cq;
    kvc_completion *completions;
    struct entry *entries;
    unsigned char *values;
    uint64_t *free;
    unsigned left;
};

static struct queue queue_new(const struct job *job)
{
    struct queue queue;

    if (kvc_cq_new(client, job->number, &queue.cq) != KVC_OK)
        die("kvc_cq_new: %s", kvc_last_error());
    queue.completions = room(job->number, sizeof *queue.completions);
    queue.entries = room(job->number, sizeof *queue.entries);
    queue.values = room(job->number, job->plan.head.value_bytes);
    queue.free = room(job->number, sizeof *queue.free);
    queue.left = job->number;
    for (unsigned i = 0; i < job->number; i++)
        queue.free[i] = i;
    return queue;
}

static void submit(struct queue *queue, struct worker *worker)
{
    const struct job *job = worker->job;
    struct entry entry = worker_next(worker);
    const uint64_t tag = queue->free[--queue->left];
    kvc_op op;

    memset(&op, 0, sizeof op);
    op.size = sizeof op;
    op.key = slice(entry.key, job->plan.head.key_bytes);
    if (job->is_put) {
        op.kind = KVC_OP_PUT;
        op.value = slice(entry.value, job->plan.head.value_bytes);
    } else {
        op.kind = KVC_OP_GET;
        op.dst = queue->values + tag * job->plan.head.value_bytes;
        op.cap = job->plan.head.value_bytes;
    }
    queue->entries[tag] = entry;
    if (kvc_cq_submit(queue->cq, &op, tag) != KVC_OK)
        die("kvc_cq_submit: %s", kvc_last_error());
}

static void poll_once(struct queue *queue, struct worker *worker)
{
    const struct job *job = worker->job;
    const size_t bytes = job->plan.head.value_bytes;
    const int count = kvc_cq_poll(queue->cq, queue->completions, job->number, -1);

    if (count <= 0)
        die("kvc_cq_poll: %d, %s", count, kvc_last_error());
    for (int i = 0; i < count; i++) {
        const kvc_completion *end = &queue->completions[i];

        if (end->status != KVC_OK)
            die("an operation failed: %s", end->words);
        if (job->is_put ? end->copies != 2
                        : end->value.len != bytes ||
                              memcmp(queue->values + end->tag * bytes,
                                     queue->entries[end->tag].value, bytes) != 0)
            die(job->is_put ? "a PUT does not have two copies" : "a GET returned a wrong value");
        queue->free[queue->left++] = end->tag;
    }
    worker_count(worker, (unsigned)count);
}

static void steady(struct worker *worker)
{
    struct queue queue = queue_new(worker->job);

    while (worker_goes_on()) {
        while (queue.left > 0)
            submit(&queue, worker);
        poll_once(&queue, worker);
    }
    kvc_cq_free(queue.cq);
}

static void burst(struct worker *worker)
{
    struct queue queue = queue_new(worker->job);

    while (worker_goes_on()) {
        while (queue.left > 0)
            submit(&queue, worker);
        while (queue.left < worker->job->number)
            poll_once(&queue, worker);
    }
    kvc_cq_free(queue.cq);
}

const struct side side_kvc = {"kvc", start, open_thread, call, steady, burst};
