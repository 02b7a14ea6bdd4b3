/* hiredis: each call alone, then a pipeline. Arguments: HOST:PORT of each server. */

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);     \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

enum { PIPELINED = 500 };

static redisContext *open_at(const char *address)
{
    char host[64];
    int port;
    CHECK(sscanf(address, "%63[^:]:%d", host, &port) == 2);
    redisContext *context = redisConnect(host, port);
    CHECK(context && !context->err);
    return context;
}

static void calls(redisContext *context)
{
    static const char binary[] = "\0\r\n\xff$-1";
    redisReply *reply = redisCommand(context, "SET %b %b EX 100", binary, sizeof binary, binary, sizeof binary);
    CHECK(reply && reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, "OK") == 0);
    freeReplyObject(reply);
    reply = redisCommand(context, "MGET %b absent", binary, sizeof binary);
    CHECK(reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2);
    CHECK(reply->element[0]->len == sizeof binary && memcmp(reply->element[0]->str, binary, sizeof binary) == 0);
    CHECK(reply->element[1]->type == REDIS_REPLY_NIL);
    freeReplyObject(reply);
    reply = redisCommand(context, "NOSUCH");
    CHECK(reply && reply->type == REDIS_REPLY_ERROR && strstr(reply->str, "unknown command"));
    freeReplyObject(reply);
}

static void pipeline(redisContext *context)
{
    for (int n = 0; n < PIPELINED; n++) {
        CHECK(redisAppendCommand(context, "SET key%d %d", n, n) == REDIS_OK);
        CHECK(redisAppendCommand(context, "INCR key%d", n) == REDIS_OK);
    }
    for (int n = 0; n < 2 * PIPELINED; n++) {
        redisReply *reply;
        CHECK(redisGetReply(context, (void **)&reply) == REDIS_OK);
        CHECK(reply->type == (n % 2 ? REDIS_REPLY_INTEGER : REDIS_REPLY_STATUS));
        CHECK(n % 2 == 0 || reply->integer == n / 2 + 1);
        freeReplyObject(reply);
    }
}

int main(int count, char **arguments)
{
    for (int at = 1; at < count; at++) {
        redisContext *context = open_at(arguments[at]);
        calls(context);
        pipeline(context);
        redisFree(context);
    }
    puts("passed");
    return 0;
}
