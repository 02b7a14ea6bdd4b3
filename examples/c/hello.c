/*
 * hello.c: the first program with libkvclient. It stores a value, reads it back, changes it only if
 * nobody else has, and deletes it.
 *
 *   make run                                    (or any cluster; note the coordinator's port)
 *   make install                                (or PREFIX=... and PKG_CONFIG_PATH=.../lib/pkgconfig)
 *   cc -std=c99 hello.c $(pkg-config --cflags --libs kvclient) -o hello
 *   ./hello localhost:PORT
 */
#include <stdio.h>
#include <string.h>

#include <kvclient.h>

/* Keys and values are any bytes with a length; this makes them of a C string, without copying. */
static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* A status is a number for the program; kvc_last_error() has the words for people. */
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

    /* A value that was read belongs to the program, which frees it. It may hold any bytes, so its
       length counts; for text, a NUL that does not count follows it. */
    status = kvc_get(client, text("greeting"), NULL, &value);
    if (status != KVC_OK)
        return failed("getting the greeting", status);
    printf("read: %s (%u bytes)\n", (const char *)value.data, (unsigned)value.len);

    /* Every entry has a version. A write can demand the one that was read: if another client was
       quicker, nothing is changed and the status is KVC_CONFLICT. Within its deadline (here one
       second; five if nothing is said) a call does all retrying itself, and no write is done twice. */
    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.timeout_ms = 1000;
    options.if_version = value.version;
    kvc_buf_free(&value);
    status = kvc_put(client, text("greeting"), text("hello again"), &options, NULL);
    if (status == KVC_CONFLICT)
        printf("somebody else was quicker\n");
    else if (status == KVC_IN_DOUBT)
        printf("the connection broke, and whether it was written is not known: read again\n");
    else if (status != KVC_OK)
        return failed("changing the greeting", status);
    else
        printf("changed\n");

    status = kvc_delete(client, text("greeting"), NULL, NULL);
    if (status != KVC_OK && status != KVC_NOT_FOUND)
        return failed("deleting the greeting", status);

    /* That a key does not exist is a status like any other. */
    status = kvc_get(client, text("greeting"), NULL, &value);
    if (status == KVC_OK) {
        kvc_buf_free(&value);
        printf("it is there again\n");
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

    /* One handle serves the whole program, all its threads included. */
    status = kvc_open(argv[1], NULL, &client);
    if (status != KVC_OK)
        return failed("opening the cluster", status);

    result = greet(client);
    kvc_close(client);
    return result;
}
