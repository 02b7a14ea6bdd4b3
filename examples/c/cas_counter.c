/*
 * cas_counter.c: a counter that stays exact although many programs increment it at once. Each write requires
 * the version that was read before: it is executed only if the counter still has this version.
 *
 *   cc -std=c99 cas_counter.c $(pkg-config --cflags --libs kvclient) -o cas_counter
 *   ./cas_counter localhost:PORT 100       (run it several times at once)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvclient.h>

static const char NAME[] = "visitors";

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Reads the counter and its version. A counter that does not exist is 0, with the version KVC_ABSENT. */
static int read_counter(kvc_client *client, unsigned long *count, uint64_t *version)
{
    char digits[32];
    size_t len;
    kvc_result entry;
    int status;

    status = kvc_get_into(client, text(NAME), digits, sizeof digits - 1, &len, NULL, &entry);
    if (status == KVC_NOT_FOUND) {
        *count = 0;
        *version = KVC_ABSENT;
        return KVC_OK;
    }
    if (status != KVC_OK)
        return status;
    digits[len] = '\0';
    *count = strtoul(digits, NULL, 10);
    *version = entry.version;
    return KVC_OK;
}

/* Adds one. KVC_CONFLICT means that another program has written first: read the new value and retry.
   KVC_IN_DOUBT means that the deadline passed before the response arrived. A retry could then add one a
   second time, so this program stops; kvc_resolve() would return the outcome. */
static int increment(kvc_client *client, unsigned long *conflicts)
{
    kvc_op_options options;
    unsigned long count;
    char digits[32];
    int status;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.timeout_ms = 10000; /* long enough for another server to take over */
    for (;;) {
        status = read_counter(client, &count, &options.if_version);
        if (status != KVC_OK)
            return status;
        snprintf(digits, sizeof digits, "%lu", count + 1);
        status = kvc_put(client, text(NAME), text(digits), &options, NULL);
        if (status != KVC_CONFLICT)
            return status;
        ++*conflicts;
    }
}

int main(int argc, char **argv)
{
    kvc_client *client = NULL; /* stays NULL if kvc_open() fails */
    unsigned long count = 0, conflicts = 0;
    uint64_t version;
    int status, n;

    if (argc != 3) {
        fprintf(stderr, "usage: %s HOST:PORT TIMES\n", argv[0]);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    for (n = atoi(argv[2]); n > 0 && status == KVC_OK; n--)
        status = increment(client, &conflicts);
    if (status == KVC_OK)
        status = read_counter(client, &count, &version);
    if (status != KVC_OK)
        fprintf(stderr, "counting: %s: %s\n", kvc_status_name(status), kvc_last_error());
    else
        printf("the counter is %lu now, after %lu conflicts\n", count, conflicts);
    kvc_close(client); /* NULL is allowed */
    return status == KVC_OK ? 0 : 1;
}
