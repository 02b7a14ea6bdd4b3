/*
 * The cost of one operation for a client: the C library compared with a bare blocking socket loop that sends
 * the same bytes, and with hiredis. One run measures one side; benches/client alternates the sides.
 *
 *   client_cost <side> <get|put> <all|one> <threads|steady|burst|load> <number> <warm ms> <ms>
 *               <plan> <host:port>
 *
 * With "one", only keys of the first server are used, so that there is one connection. With "load", every key is
 * written once. Otherwise the program prints one line: operations, wall time and its own CPU time (user, system)
 * in nanoseconds. A wrong response ends the program with exit status 1.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "client_cost.h"

enum { MAX_THREADS = 256, TIMEOUT_MS = 30000 };

static atomic_bool is_over;
static pthread_barrier_t connected;

void die(const char *format, ...)
{
    va_list words;

    va_start(words, format);
    vfprintf(stderr, format, words);
    va_end(words);
    fputc('\n', stderr);
    /* exit() would run handlers while other threads still use their data. */
    _exit(1);
}

void *room(size_t count, size_t bytes)
{
    void *memory = calloc(count, bytes);

    if (memory == NULL)
        die("no memory for %zu times %zu bytes", count, bytes);
    return memory;
}

struct entry entry_at(const struct plan *plan, uint32_t number)
{
    const size_t bytes = plan->head.key_bytes + plan->head.value_bytes;
    struct entry entry;

    entry.key = plan->entries + number * bytes;
    entry.value = entry.key + plan->head.key_bytes;
    entry.number = number;
    return entry;
}

struct entry worker_next(struct worker *worker)
{
    /* xorshift64 */
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    worker->random ^= worker->random << 17;
    return entry_at(&worker->job->plan, (uint32_t)(worker->random >> 32) % worker->job->keys);
}

void worker_count(struct worker *worker, unsigned count)
{
    /* This thread is the only writer. */
    unsigned long long done = atomic_load_explicit(&worker->done, memory_order_relaxed);

    atomic_store_explicit(&worker->done, done + count, memory_order_relaxed);
}

bool worker_goes_on(void)
{
    return !atomic_load_explicit(&is_over, memory_order_relaxed);
}

static void calls(struct worker *worker)
{
    while (worker_goes_on()) {
        worker->side->call(worker->state, worker_next(worker));
        worker_count(worker, 1);
    }
}

static unsigned char *read_all(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    unsigned char *all;
    long size;

    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0)
        die("cannot open %s, or its size is unknown", path);
    rewind(file);
    all = room((size_t)size + 1, 1);
    *bytes = (size_t)size;
    if (fread(all, 1, *bytes, file) != *bytes)
        die("cannot read all %zu bytes of %s", *bytes, path);
    fclose(file);
    return all;
}

static struct plan read_plan(const char *path)
{
    size_t bytes, one, most;
    const unsigned char *at = read_all(path, &bytes);
    struct plan plan;

    if (bytes < sizeof plan.head)
        die("%s has %zu bytes, too few for the head of a plan", path, bytes);
    memcpy(&plan.head, at, sizeof plan.head);
    one = sizeof(uint32_t) + plan.head.key_bytes + plan.head.value_bytes + plan.head.get_bytes +
          plan.head.put_bytes;
    most = sizeof plan.head + sizeof(uint32_t) * plan.head.servers + plan.head.hello_bytes;
    if (plan.head.first_servers == 0 || plan.head.first_servers > plan.head.keys ||
        bytes != most + one * plan.head.keys)
        die("%s has %zu bytes, but its head requires another length", path, bytes);
    at += sizeof plan.head;
    plan.ports = (const uint32_t *)(const void *)at;
    plan.servers = plan.ports + plan.head.servers;
    plan.entries = (const unsigned char *)(plan.servers + plan.head.keys);
    plan.gets = plan.entries + (size_t)plan.head.keys * (plan.head.key_bytes + plan.head.value_bytes);
    plan.puts = plan.gets + (size_t)plan.head.keys * plan.head.get_bytes;
    plan.hello = plan.puts + (size_t)plan.head.keys * plan.head.put_bytes;
    return plan;
}

struct start {
    struct worker worker;
    void (*run)(struct worker *worker);
};

static void *work(void *argument)
{
    struct start *start = argument;

    start->worker.state = start->worker.side->open(start->worker.job);
    pthread_barrier_wait(&connected);
    start->run(&start->worker);
    return NULL;
}

struct moment {
    unsigned long long done, wall, user, system;
};

static unsigned long long nanos(struct timeval time)
{
    return (unsigned long long)time.tv_sec * 1000000000 + (unsigned long long)time.tv_usec * 1000;
}

static struct moment now(const struct start *starts, unsigned threads)
{
    struct moment moment = {0, 0, 0, 0};
    struct rusage usage;
    struct timespec clock;

    getrusage(RUSAGE_SELF, &usage);
    clock_gettime(CLOCK_MONOTONIC, &clock);
    for (unsigned i = 0; i < threads; i++)
        moment.done += atomic_load_explicit(&starts[i].worker.done, memory_order_relaxed);
    moment.wall = (unsigned long long)clock.tv_sec * 1000000000 + (unsigned long long)clock.tv_nsec;
    moment.user = nanos(usage.ru_utime);
    moment.system = nanos(usage.ru_stime);
    return moment;
}

static void pause_ms(unsigned long ms)
{
    struct timespec time = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    while (nanosleep(&time, &time) != 0)
        ;
}

/* Performs one run: starts the threads, warms up, measures, and prints the result. */
static void measure(struct start *starts, unsigned threads, unsigned long warm, unsigned long ms)
{
    pthread_t ids[MAX_THREADS];
    struct moment from, to;

    pthread_barrier_init(&connected, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, work, &starts[i]) != 0)
            die("start thread %u failed", i);
    pthread_barrier_wait(&connected);
    pause_ms(warm);
    from = now(starts, threads);
    pause_ms(ms);
    to = now(starts, threads);
    /* On a busy machine, it is possible that no operation has completed in so short a time. */
    for (unsigned waited = 0; to.done == from.done; waited++) {
        if (waited == TIMEOUT_MS)
            die("no operation completed within %d ms", TIMEOUT_MS);
        pause_ms(1);
        to = now(starts, threads);
    }
    atomic_store(&is_over, true);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    printf("%llu %llu %llu %llu\n", to.done - from.done, to.wall - from.wall, to.user - from.user,
           to.system - from.system);
}

/* Writes every key once, so that reads find a value. */
static void load(const struct job *job, const struct side *side)
{
    void *state = side->open(job);

    for (uint32_t i = 0; i < job->plan.head.keys; i++)
        side->call(state, entry_at(&job->plan, i));
}

static const struct side *side_named(const char *name)
{
    const struct side *sides[] = {
        &side_kvc,
        &side_bare,
#ifdef WITH_HIREDIS
        &side_hiredis,
#endif
    };

    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
        if (strcmp(sides[i]->name, name) == 0)
            return sides[i];
    die("unknown side %s (expected kvc, bare, or hiredis if it is built in)", name);
}

int main(int count, char **words)
{
    static struct start starts[MAX_THREADS];
    const struct side *side;
    void (*run)(struct worker *) = NULL;
    struct job job;
    unsigned threads = 1;

    if (count != 10)
        die("invalid arguments; see the comment at the top of client_cost.c");
    side = side_named(words[1]);
    job.is_put = strcmp(words[2], "put") == 0;
    job.number = (unsigned)strtoul(words[5], NULL, 10);
    job.plan = read_plan(words[8]);
    job.keys = strcmp(words[3], "one") == 0 ? job.plan.head.first_servers : job.plan.head.keys;
    job.endpoint = words[9];
    if (job.number == 0)
        die("the number of threads or operations must not be 0");
    side->start(&job);
    if (strcmp(words[4], "load") == 0) {
        load(&job, side);
        return 0;
    }
    if (strcmp(words[4], "threads") == 0) {
        run = calls;
        threads = job.number;
    } else if (strcmp(words[4], "steady") == 0) {
        run = side->steady;
    } else if (strcmp(words[4], "burst") == 0) {
        run = side->burst;
    }
    if (run == NULL || threads > MAX_THREADS)
        die("side %s does not support %s with number %u", side->name, words[4], job.number);
    for (unsigned i = 0; i < threads; i++) {
        starts[i].worker.job = &job;
        starts[i].worker.side = side;
        starts[i].worker.random = 0x9e3779b97f4a7c15u * (i + 1);
        starts[i].run = run;
    }
    measure(starts, threads, strtoul(words[6], NULL, 10), strtoul(words[7], NULL, 10));
    return 0;
}
