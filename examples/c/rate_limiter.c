/*
 * rate_limiter.c: permits a number of requests per user and time window. The counter of a user begins with the
 * first request and disappears at the end of the window, so nothing has to be cleaned up. One update counts a
 * request, and sets the deadline only if the counter is new.
 *
 *   cc -std=c99 rate_limiter.c $(pkg-config --cflags --libs kvclient) -o rate_limiter
 *   ./rate_limiter localhost:PORT ada 3 60       (three requests per minute; run it several times)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvclient.h>

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Counts a request. On success, *count is the number of requests in this window, and *end its end in
   milliseconds since 1970. KVC_IN_DOUBT means that the request may or may not have been counted. */
static int count_request(kvc_client *client, const char *user, uint64_t window_ms, long *count, uint64_t *end)
{
    char key[300];
    kvc_update update;
    kvc_updated updated;
    int status;

    snprintf(key, sizeof key, "requests/%s", user);
    kvc_update_init(&update, sizeof update);
    update.action = KVC_ACTION_ADD;
    update.number = 1;
    update.expiry = KVC_EXPIRY_KEEP_OR_AFTER; /* only the first request of a window sets the deadline */
    update.time_ms = window_ms;
    update.flags = KVC_RETURN_VALUE; /* the sum is returned anyway; the flag also requests the deadline */
    status = kvc_update_one(client, text(key), &update, NULL, &updated);
    if (status == KVC_OK) {
        *count = strtol(updated.value.data, NULL, 10);
        *end = updated.deadline_ms;
    }
    kvc_buf_free(&updated.value); /* always allowed */
    return status;
}

int main(int argc, char **argv)
{
    kvc_client *client = NULL;
    long count = 0, limit;
    uint64_t end = 0;
    int status;

    if (argc != 5) {
        fprintf(stderr, "usage: %s HOST:PORT USER LIMIT SECONDS\n", argv[0]);
        return 2;
    }
    limit = atol(argv[3]);
    status = kvc_open(argv[1], NULL, &client);
    if (status == KVC_OK)
        status = count_request(client, argv[2], strtoul(argv[4], NULL, 10) * 1000, &count, &end);
    if (status != KVC_OK)
        fprintf(stderr, "counting: %s: %s\n", kvc_status_name(status), kvc_last_error());
    else if (count <= limit)
        printf("request %ld of %ld: permitted\n", count, limit);
    else
        printf("request %ld of %ld: denied until %llu\n", count, limit, (unsigned long long)end);
    kvc_close(client);
    return status == KVC_OK ? 0 : 1;
}
