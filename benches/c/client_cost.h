/*
 * Shared declarations of client_cost: the plan that the driver writes, and the interface of a side.
 *
 *   plan (a file)  -> keys, values, and the frames that the library sends
 *   side           -> one way to access a store: kvc, bare, hiredis
 *   worker         -> a thread of the program, which counts the completed operations
 */
#ifndef CLIENT_COST_H
#define CLIENT_COST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The head of the plan file, in this machine's byte order. */
struct plan_head {
    uint32_t servers;
    uint32_t keys;
    /* The number of keys of the first server. These keys come first. */
    uint32_t first_servers;
    uint32_t key_bytes;
    uint32_t value_bytes;
    uint32_t hello_bytes;
    /* The offset of the client id in a hello. */
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
    const uint32_t *servers;      /* the server of each */
    const unsigned char *gets;    /* the GET frame of each */
    const unsigned char *puts;    /* the PUT frame of each */
};

/* The task that the command line describes. */
struct job {
    struct plan plan;
    const char *endpoint; /* of the coordinator, or of redis-server: host:port */
    bool is_put;
    uint32_t keys;   /* in use: all, or those of the first server */
    unsigned number; /* of threads, or the depth of the queue */
};

struct worker {
    const struct job *job;
    const struct side *side;
    void *state; /* the state of its side */
    uint64_t random;
    atomic_ullong done;
};

struct side {
    const char *name;
    /* Sets up shared state before the first thread starts. */
    void (*start)(const struct job *job);
    /* Opens the connections of one thread. */
    void *(*open)(const struct job *job);
    /* Runs one operation and checks its response. */
    void (*call)(void *state, struct entry entry);
    /* Keeps `number` operations in flight: new ones are sent as responses arrive. */
    void (*steady)(struct worker *worker);
    /* Sends `number` operations together, receives all responses, and repeats. */
    void (*burst)(struct worker *worker);
};

extern const struct side side_kvc;
extern const struct side side_bare;
#ifdef WITH_HIREDIS
extern const struct side side_hiredis;
#endif

/* Returns the entry for the next operation; all keys in use are equally likely. */
struct entry worker_next(struct worker *worker);
struct entry entry_at(const struct plan *plan, uint32_t number);
/* Adds to the number of completed operations. */
void worker_count(struct worker *worker, unsigned count);
bool worker_goes_on(void);

/* Prints a message to stderr and ends the program with exit status 1, without a result. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* Allocates zeroed memory, or ends the program. */
void *room(size_t count, size_t bytes);

#endif
