/*
 * session_expiry.c: a session that ends when it was not used for a while. Every use reads the session and moves its
 * deadline, with one call. The store removes the session after its deadline; no program has to do it.
 *
 *   cc -std=c99 session_expiry.c $(pkg-config --cflags --libs kvclient) -o session_expiry
 *   ./session_expiry localhost:PORT 2000       (milliseconds without use)
 */
#define _POSIX_C_SOURCE 199309L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <kvclient.h>

static const char SESSION[] = "session/17";

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

static void pause_ms(uint64_t ms)
{
    struct timespec pause;
    pause.tv_sec = (time_t)(ms / 1000);
    pause.tv_nsec = (long)(ms % 1000) * 1000000;
    nanosleep(&pause, NULL);
}

/* Begins a session that expires after idle_ms without use. It never overwrites another session. */
static int begin(kvc_client *client, const char *user, uint64_t idle_ms)
{
    kvc_update update;

    kvc_update_init(&update, sizeof update);
    update.action = KVC_ACTION_PUT;
    update.value = text(user);
    update.condition = KVC_IF_ABSENT;
    update.expiry = KVC_EXPIRY_AFTER;
    update.time_ms = idle_ms;
    return kvc_update_one(client, text(SESSION), &update, NULL, NULL);
}

/* Uses the session: prints its user and lets the idle time begin again. KVC_NOT_FOUND: it has ended. */
static int use(kvc_client *client, uint64_t idle_ms)
{
    uint64_t deadline_ms;
    kvc_buf user;
    const int status = kvc_get_and_expire(client, text(SESSION), KVC_EXPIRY_AFTER, idle_ms, NULL, &user,
                                          &deadline_ms, NULL);

    if (status == KVC_OK) {
        printf("session of %s\n", (const char *)user.data);
        kvc_buf_free(&user);
    }
    return status;
}

int main(int argc, char **argv)
{
    kvc_client *client = NULL;
    uint64_t idle_ms;
    char *end = NULL;
    int status, n, exists = 1;

    idle_ms = argc == 3 ? strtoul(argv[2], &end, 10) : 0;
    if (idle_ms < 1 || idle_ms > 86400000 || *end != '\0') {
        fprintf(stderr, "usage: %s HOST:PORT IDLE_MS   (1 to 86400000)\n", argv[0]);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    if (status == KVC_OK)
        status = begin(client, "ada", idle_ms);
    for (n = 0; n < 4 && status == KVC_OK; n++) {
        pause_ms(idle_ms / 3); /* four of these pauses are longer than the idle time */
        status = use(client, idle_ms);
    }
    /* A check does not use the session. */
    while (status == KVC_OK && exists) {
        pause_ms(idle_ms / 3);
        status = kvc_exists(client, text(SESSION), NULL, &exists);
    }
    if (status == KVC_OK)
        status = use(client, idle_ms);
    if (status == KVC_NOT_FOUND)
        printf("the session has ended\n");
    else
        fprintf(stderr, "using the session: %s: %s\n", kvc_status_name(status), kvc_last_error());
    kvc_close(client);
    return status == KVC_NOT_FOUND ? 0 : 1;
}
