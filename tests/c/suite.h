/* Fixtures shared by the tests in C. Each test is a separate program. A test in Rust starts it with the
   cluster's endpoint and the pids that it may stop or kill. */
#ifndef SUITE_H
#define SUITE_H

#include <dirent.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <kvclient.h>

#define MIB ((size_t)1 << 20)
/* The longest time that a call may take beyond its deadline on a busy machine. */
#define SLACK_MS 1000
/* Time limit for any awaited event. */
#define TIMEOUT_MS 60000

static inline kvc_slice bytes(const void *data, size_t len)
{
    kvc_slice slice = {data, len};
    return slice;
}

static inline kvc_slice text(const char *string)
{
    return bytes(string, strlen(string));
}

static inline kvc_op_options within(uint32_t timeout_ms)
{
    kvc_op_options options = {sizeof(kvc_op_options), timeout_ms, 0};
    return options;
}

static inline kvc_client *open_client(const char *endpoint, const kvc_options *options)
{
    kvc_client *client = NULL;
    if (kvc_open(endpoint, options, &client) != KVC_OK)
        fail_msg("kvc_open: %s", kvc_last_error());
    return client;
}

static inline int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Pauses between two checks of a condition. */
static inline void look_again_soon(void)
{
    struct timespec pause = {0, 5000000};
    nanosleep(&pause, NULL);
}

/* Returns 1 if every thread of a process has stopped, else 0. */
static inline int has_stopped(pid_t pid)
{
    char path[320], line[256];
    const struct dirent *task;
    int is_stopped = 1;
    DIR *tasks;

    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    tasks = opendir(path);
    assert_non_null(tasks);
    while ((task = readdir(tasks)) != NULL) {
        const char *state;
        FILE *stat;

        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)pid, task->d_name);
        stat = fopen(path, "r");
        if (stat == NULL)
            continue; /* The thread has ended. */
        state = fgets(line, sizeof line, stat) == NULL ? NULL : strrchr(line, ')');
        is_stopped = is_stopped && state != NULL && state[2] == 'T';
        fclose(stat);
    }
    closedir(tasks);
    return is_stopped;
}

/* Stops processes. kill() returns before SIGSTOP has reached the threads of another process, so this
   function waits until none of them runs. */
static inline void stop_processes(const pid_t *pids, int count)
{
    const int64_t deadline = now_ms() + TIMEOUT_MS;
    int n;

    for (n = 0; n < count; n++)
        assert_int_equal(kill(pids[n], SIGSTOP), 0);
    for (n = 0; n < count; n++)
        while (!has_stopped(pids[n])) {
            assert_true(now_ms() < deadline);
            look_again_soon();
        }
}

static inline void continue_processes(const pid_t *pids, int count)
{
    int n;

    for (n = 0; n < count; n++)
        assert_int_equal(kill(pids[n], SIGCONT), 0);
}

#define MOST_PIDS 8

/* Reads the pids that follow the endpoint on the command line. Returns their number. */
static inline int read_pids(int argc, char **argv, pid_t *pids)
{
    int count;

    for (count = 0; count < argc - 2 && count < MOST_PIDS; count++)
        pids[count] = atoi(argv[2 + count]);
    return count;
}

#define MOST_THREADS 64

/* Runs `body` in `count` threads at once, each with its own int. Fails if one returns a non-null pointer. */
static inline void in_threads(int count, void *(*body)(void *))
{
    static int own[MOST_THREADS];
    pthread_t threads[MOST_THREADS];
    void *failed;
    int n;

    assert_in_range(count, 1, MOST_THREADS);
    for (n = 0; n < count; n++)
        assert_int_equal(pthread_create(&threads[n], NULL, body, &own[n]), 0);
    for (n = 0; n < count; n++) {
        assert_int_equal(pthread_join(threads[n], &failed), 0);
        assert_null(failed);
    }
}

/* Ends the child of a fork by executing another program, so that valgrind does not check it for leaks. It
   would report the parent's handle, which the child may not close. */
static inline void end_child(int is_good)
{
    execlp(is_good ? "true" : "false", "child", (char *)NULL);
    _exit(2);
}

/* Waits for the child of a fork; fails unless it exits with 0. */
static inline void await_child(pid_t child)
{
    int status = -1;

    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* Compares a status; a failure prints the names of both. */
#define assert_status(call, status)                                                              \
    do {                                                                                         \
        const int got_ = (call);                                                                 \
        if (got_ != (status))                                                                    \
            fail_msg("%s is %s, not %s (%s)", #call, kvc_status_name(got_),                      \
                     kvc_status_name(status), kvc_last_error());                                 \
    } while (0)

/* Constructors of queue operations. */
static inline kvc_op get_op(kvc_slice key)
{
    kvc_op op = {.size = sizeof(kvc_op), .kind = KVC_OP_GET, .key = key};
    return op;
}

static inline kvc_op put_op(kvc_slice key, kvc_slice value)
{
    kvc_op op = {.size = sizeof(kvc_op), .kind = KVC_OP_PUT, .key = key, .value = value};
    return op;
}

static inline kvc_op delete_op(kvc_slice key)
{
    kvc_op op = {.size = sizeof(kvc_op), .kind = KVC_OP_DELETE, .key = key};
    return op;
}

static inline kvc_cq *new_queue(kvc_client *client, uint32_t depth)
{
    kvc_cq *queue = NULL;
    assert_status(kvc_cq_new(client, depth, &queue), KVC_OK);
    return queue;
}

/* Returns the number of allocated bytes, including large blocks. */
static inline size_t allocated(void)
{
    const struct mallinfo2 info = mallinfo2();

    return info.uordblks + info.hblkhd;
}

/* Returns the next completion; fails if there is none within TIMEOUT_MS. */
static inline kvc_completion next_completion(kvc_cq *queue)
{
    kvc_completion done;
    const int count = kvc_cq_poll(queue, &done, 1, TIMEOUT_MS);
    if (count != 1)
        fail_msg("kvc_cq_poll: %d (%s)", count, kvc_last_error());
    return done;
}

/* Submits an operation to an empty queue and waits for its completion. */
static inline kvc_completion run_op(kvc_cq *queue, kvc_op op)
{
    kvc_completion done;
    assert_status(kvc_cq_submit(queue, &op, UINT64_MAX), KVC_OK);
    done = next_completion(queue);
    assert_true(done.tag == UINT64_MAX);
    return done;
}

/* Returns the counters of a handle. */
static inline kvc_counters counters_of(kvc_client *client)
{
    kvc_counters counters = {.size = sizeof(kvc_counters)};

    assert_status(kvc_statistics(client, &counters, NULL, 0), KVC_OK);
    return counters;
}

/* Waits until a handle has this number of operations in flight. */
static inline void await_in_flight(kvc_client *client, uint64_t count)
{
    const int64_t deadline = now_ms() + TIMEOUT_MS;

    while (counters_of(client).in_flight != count) {
        assert_true(now_ms() < deadline);
        look_again_soon();
    }
}

static inline int is_readable(int fd, int timeout_ms)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, timeout_ms) == 1;
}

#endif
