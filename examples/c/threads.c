/*
 * threads.c: eight threads share one handle. Each thread writes its own keys and reads them back. The
 * threads share the connections of the handle, but no call waits until another has ended.
 *
 *   cc -std=c99 threads.c $(pkg-config --cflags --libs kvclient) -lpthread -o threads
 *   ./threads localhost:PORT
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <kvclient.h>

#define THREADS 8
#define KEYS 100

struct worker {
    pthread_t thread;
    kvc_client *client; /* the same for all threads */
    int number;
    int done; /* keys written and read back */
};

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Prints a failure. kvc_last_error() returns the message of the calling thread's last failed call. */
static int failed(const struct worker *worker, const char *doing, int status)
{
    fprintf(stderr, "thread %d, %s: %s: %s\n", worker->number, doing, kvc_status_name(status),
            kvc_last_error());
    return -1;
}

/* Writes a key, reads it into a local buffer (nothing to free), and removes it. */
static int one_key(const struct worker *worker, const char *key)
{
    char value[64];
    size_t len;
    int status;

    status = kvc_put(worker->client, text(key), text(key), NULL, NULL);
    if (status != KVC_OK)
        return failed(worker, "putting", status);
    status = kvc_get_into(worker->client, text(key), value, sizeof value, &len, NULL, NULL);
    if (status != KVC_OK)
        return failed(worker, "getting", status);
    if (len != strlen(key) || memcmp(value, key, len) != 0) {
        fprintf(stderr, "%s: the value read differs from the value written\n", key);
        return -1;
    }
    status = kvc_delete(worker->client, text(key), NULL, NULL);
    if (status != KVC_OK)
        return failed(worker, "deleting", status);
    return 0;
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    char key[32];
    int n;

    for (n = 0; n < KEYS; n++) {
        snprintf(key, sizeof key, "thread-%d-key-%d", worker->number, n);
        if (one_key(worker, key) != 0)
            break;
        worker->done++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct worker workers[THREADS];
    kvc_client *client;
    int status, n, started, done = 0;

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST:PORT   (of the cluster's coordinator)\n", argv[0]);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    if (status != KVC_OK) {
        fprintf(stderr, "opening: %s: %s\n", kvc_status_name(status), kvc_last_error());
        return 1;
    }
    for (started = 0; started < THREADS; started++) {
        struct worker *worker = &workers[started];
        worker->client = client;
        worker->number = started;
        worker->done = 0;
        if (pthread_create(&worker->thread, NULL, work, worker) != 0)
            break;
    }
    for (n = 0; n < started; n++) {
        pthread_join(workers[n].thread, NULL);
        done += workers[n].done;
    }
    /* All threads have ended, so no call is in progress. */
    kvc_close(client);
    printf("%d of %d keys\n", done, THREADS * KEYS);
    return done == THREADS * KEYS ? 0 : 1;
}
