/*
 * What the parts of client_cost share: the plan that the driver writes, and what a side has to do.
 *
 *   plan (a file)  -> keys, values, and the very frames that the library sends
 *   side           -> one way to reach a store: kvc, bare, hiredis
 *   worker         -> a thread of the program, which counts what its side has done
 */
#ifndef CLIENT_COST_H
#define CLIENT_COST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As the driver writes it, in this machine's byte order. */
struct plan_head {
    uint32_t servers;
    uint32_t keys;
    /* How many of them, the first, the first server serves. */
    uint32_t first_servers;
    uint32_t key_bytes;
    uint32_t value_bytes;
    uint32_t hello_bytes;
    /* Where in a hello its client id is. */
    uint32_t client_at;
    uint32_t get_bytes;
    uint32_t put_bytes;
};

/* One key, in the plan's memory. */
struct entry {
    const unsigned char *key;
    const unsigned char *value;
    uint32_t number;
};

struct plan {
    struct plan_head head;
    const uint32_t *ports; /* of the servers, on 127.0.0.1 */
    const unsigned char *hello;
    const unsigned char *entries; /* key and value of each */
    const uint32_t *servers;      /* who serves each */
    const unsigned char *gets;    /* the frame that asks for each */
    const unsigned char *puts;    /* the frame that sets each */
};

/* What the program was asked for. */
struct job {
    struct plan plan;
    const char *endpoint; /* of the coordinator, or of redis-server: host:port */
    bool is_put;
    uint32_t keys;   /* that are asked for: all, or those of the first server */
    unsigned number; /* of threads, or how deep the queue is */
};

struct worker {
    const struct job *job;
    const struct side *side;
    void *state; /* its side's */
    uint64_t random;
    atomic_ullong done;
};

struct side {
    const char *name;
    /* What all threads share, before the first of them. */
    void (*start)(const struct job *job);
    /* Connections of one thread. */
    void *(*open)(const struct job *job);
    /* One operation, its answer checked. */
    void (*call)(void *state, struct entry entry);
    /* Keeps so many operations in flight: new ones are sent as answers come. */
    void (*steady)(struct worker *worker);
    /* Sends so many together, takes all answers, and again. */
    void (*burst)(struct worker *worker);
};

extern const struct side side_kvc;
extern const struct side side_bare;
#ifdef WITH_HIREDIS
extern const struct side side_hiredis;
#endif

/* The key of the next operation: any, each as likely. */
struct entry worker_next(struct worker *worker);
struct entry entry_at(const struct plan *plan, uint32_t number);
/* So many operations more are done. */
void worker_count(struct worker *worker, unsigned count);
bool worker_goes_on(void);

/* Ends the program: what was measured so far is of no use. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* Memory, set to zero. */
void *room(size_t count, size_t bytes);

#endif
