/*
 * rate_limiter.c: permits a number of requests per user and time window. The counter of a user begins with the
 * first request and disappears at the end of the window, so nothing has to be cleaned up. One update counts a
 * request, and sets the deadline only if the counter is new.
 *
 *   cc -std=c99 rate_limiter.c $(pkg-config --cflags --libs kvclient) -o rate_limiter
 *   ./rate_limiter localhost:PORT ada 3 60       (three requests per minute; run it several times)
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvclient.h>

#define LONGEST_USER 50
#define LONGEST_WINDOW 4000000L /* seconds, about 46 days */

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
    char key[64];
    kvc_update update;
    kvc_updated updated;
    int status;

    snprintf(key, sizeof key, "requests/%.*s", LONGEST_USER, user);
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

/* Reads a number from 1 to most. Returns 0 if the text is anything else. */
static long number(const char *string, long most)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(string, &end, 10);
    return end == string || *end != '\0' || errno != 0 || value < 1 || value > most ? 0 : value;
}

int main(int argc, char **argv)
{
    kvc_client *client = NULL;
    long count = 0, limit, seconds;
    uint64_t end = 0;
    int status;

    limit = argc == 5 ? number(argv[3], 1000000) : 0;
    seconds = argc == 5 ? number(argv[4], LONGEST_WINDOW) : 0;
    if (limit == 0 || seconds == 0 || strlen(argv[2]) > LONGEST_USER) {
        fprintf(stderr, "usage: %s HOST:PORT USER LIMIT SECONDS\n", argv[0]);
        fprintf(stderr, "USER: up to %d bytes; LIMIT: 1 to 1000000; SECONDS: 1 to %ld\n", LONGEST_USER, LONGEST_WINDOW);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    if (status == KVC_OK)
        status = count_request(client, argv[2], (uint64_t)seconds * 1000, &count, &end);
    if (status != KVC_OK)
        fprintf(stderr, "counting: %s: %s\n", kvc_status_name(status), kvc_last_error());
    else if (count <= limit)
        printf("request %ld of %ld: permitted\n", count, limit);
    else
        printf("request %ld of %ld: denied until %llu\n", count, limit, (unsigned long long)end);
    kvc_close(client);
    return status == KVC_OK ? 0 : 1;
}
