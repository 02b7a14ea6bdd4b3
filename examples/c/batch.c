/*
 * batch.c: puts 300 keys with one call and gets them with another. A batch sends its requests to all
 * servers at once, so the slowest server determines its duration. Each key has its own status.
 *
 *   cc -std=c99 batch.c $(pkg-config --cflags --libs kvclient) -o batch
 *   ./batch localhost:PORT
 */
#include <stdio.h>
#include <string.h>

#include <kvclient.h>

#define KEYS 300

static char names[KEYS][32], prices[KEYS][32];
static kvc_slice keys[KEYS], values[KEYS]; /* pointers to the texts above */
static int statuses[KEYS];
static kvc_buf found[KEYS];

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Returns the number of the first n keys that have this status. */
static int count(int status, int n)
{
    int i, found_count = 0;

    for (i = 0; i < n; i++)
        found_count += statuses[i] == status;
    return found_count;
}

/* Puts all keys. A batch is not a transaction: each key is a separate write, and some may be executed
   while others are not. KVC_OK means that all were executed; otherwise each key has its own status. This
   program could repeat writes that failed or are in doubt: putting the same price twice does no harm. */
static int put_all(kvc_client *client)
{
    kvc_op_options options;
    int i, status;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.timeout_ms = 10000; /* for the whole batch */
    status = kvc_mput(client, keys, values, KEYS, statuses, &options);
    if (status != KVC_OK) {
        fprintf(stderr, "putting: %s\n", kvc_last_error()); /* the number of failures, and one reason */
        for (i = 0; i < KEYS; i++)
            if (statuses[i] != KVC_OK)
                fprintf(stderr, "  %s: %s\n", names[i], kvc_status_name(statuses[i]));
        return -1;
    }
    printf("%d put\n", count(KVC_OK, KEYS));
    return 0;
}

/* Reads all keys. A missing key is not an error here, so the returned KVC_NOT_FOUND is ignored: the
   statuses show the errors. Every element of `found` must be freed; without a value, this has no effect. */
static int get_all(kvc_client *client)
{
    unsigned long total = 0;
    int i, status, wrong;

    status = kvc_mget(client, keys, KEYS, found, statuses, NULL);
    wrong = KEYS - count(KVC_OK, KEYS) - count(KVC_NOT_FOUND, KEYS);
    if (wrong > 0)
        fprintf(stderr, "getting: %s: %s\n", kvc_status_name(status), kvc_last_error());
    else
        printf("%d got, %d not found\n", count(KVC_OK, KEYS), count(KVC_NOT_FOUND, KEYS));
    for (i = 0; i < KEYS; i++) {
        unsigned long price;
        if (statuses[i] == KVC_OK && sscanf(found[i].data, "%lu", &price) == 1)
            total += price;
        kvc_buf_free(&found[i]);
    }
    printf("total price: %lu\n", total);
    return wrong > 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
    kvc_client *client;
    int status, i, result;

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST:PORT   (of the cluster's coordinator)\n", argv[0]);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    if (status != KVC_OK) {
        fprintf(stderr, "opening: %s: %s\n", kvc_status_name(status), kvc_last_error());
        return 1;
    }
    for (i = 0; i < KEYS; i++) {
        snprintf(names[i], sizeof names[i], "price/%d", i);
        snprintf(prices[i], sizeof prices[i], "%d", i);
        keys[i] = text(names[i]);
        values[i] = text(prices[i]);
    }
    result = put_all(client);
    if (result == 0)
        result = get_all(client);
    /* Deletes one key, so that the next read does not find it. */
    if (result == 0 && kvc_delete(client, keys[KEYS - 1], NULL, NULL) == KVC_OK)
        result = get_all(client);
    kvc_close(client);
    return result == 0 ? 0 : 1;
}
