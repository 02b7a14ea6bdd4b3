/*
 * hello.c: the first program with libkvclient. It stores a value, reads it back, changes it if no other
 * client has changed it, and deletes it.
 *
 *   make run                    (or start another cluster; note the port of the coordinator)
 *   make install                (with PREFIX=..., also set PKG_CONFIG_PATH=.../lib/pkgconfig)
 *   cc -std=c99 hello.c $(pkg-config --cflags --libs kvclient) -o hello
 *   ./hello localhost:PORT
 */
#include <stdio.h>
#include <string.h>

#include <kvclient.h>

/* Returns a C string as a key or value, without a copy. Keys and values may contain any bytes. */
static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Prints a failure: the name of its status, and the message of the library. */
static int failed(const char *doing, int status)
{
    fprintf(stderr, "%s: %s: %s\n", doing, kvc_status_name(status), kvc_last_error());
    return 1;
}

static int greet(kvc_client *client)
{
    kvc_result written;
    kvc_op_options options;
    kvc_buf value;
    int status;

    /* A write that returns KVC_OK is in the memory of `copies` servers. */
    status = kvc_put(client, text("greeting"), text("hello"), NULL, &written);
    if (status != KVC_OK)
        return failed("putting the greeting", status);
    printf("stored on %u servers\n", (unsigned)written.copies);

    /* The program must free a value that it has read. A value may contain any bytes. The library puts a NUL
       after them, which `len` does not count, so that text can be used as a C string. */
    status = kvc_get(client, text("greeting"), NULL, &value);
    if (status != KVC_OK)
        return failed("getting the greeting", status);
    printf("read: %s (%u bytes)\n", (const char *)value.data, (unsigned)value.len);

    /* Every entry has a version. A write can require the version that was read: if another client has
       written since, nothing is changed and the status is KVC_CONFLICT. The library retries a call until
       its deadline (here one second, by default five), and never executes a write twice. */
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.timeout_ms = 1000;
    options.if_version = value.version;
    kvc_buf_free(&value);
    status = kvc_put(client, text("greeting"), text("hello again"), &options, NULL);
    if (status == KVC_CONFLICT)
        printf("another client has changed it first\n");
    else if (status == KVC_IN_DOUBT)
        printf("no response arrived, so the write may or may not have been executed: read again\n");
    else if (status != KVC_OK)
        return failed("changing the greeting", status);
    else
        printf("changed\n");

    status = kvc_delete(client, text("greeting"), NULL, NULL);
    if (status != KVC_OK && status != KVC_NOT_FOUND)
        return failed("deleting the greeting", status);

    /* A key that does not exist has the status KVC_NOT_FOUND. */
    status = kvc_get(client, text("greeting"), NULL, &value);
    if (status == KVC_OK) {
        kvc_buf_free(&value);
        printf("another client has stored it again\n");
    } else if (status == KVC_NOT_FOUND) {
        printf("deleted\n");
    } else {
        return failed("getting the deleted greeting", status);
    }
    return 0;
}

int main(int argc, char **argv)
{
    kvc_client *client;
    int status, result;

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST:PORT   (of the cluster's coordinator)\n", argv[0]);
        return 2;
    }

    /* One handle is enough for the whole program and all its threads. */
    status = kvc_open(argv[1], NULL, &client);
    if (status != KVC_OK)
        return failed("opening the cluster", status);

    result = greet(client);
    kvc_close(client);
    return result;
}
