/*
 * lock.c: a lock that expires by itself if its owner dies. The version of the entry is a fencing token: it grows
 * with every acquisition, so a resource can reject an owner whose lock has expired in the meantime.
 *
 *   cc -std=c99 lock.c $(pkg-config --cflags --libs kvclient) -o lock
 *   ./lock localhost:PORT
 */
#include <stdio.h>
#include <string.h>

#include <kvclient.h>

#define LEASE_MS 30000

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Acquires the lock if it is free. *token is the fencing token. KVC_CONFLICT: `holder` has the lock. After
   KVC_IN_DOUBT, kvc_resolve() returns the outcome, and updated.version is the token. */
static int acquire(kvc_client *client, const char *name, const char *owner, uint64_t *token, char holder[64])
{
    kvc_update update;
    kvc_updated updated;
    int status;

    kvc_update_init(&update, sizeof update);
    update.action = KVC_ACTION_PUT;
    update.value = text(owner);
    update.condition = KVC_IF_ABSENT;
    update.expiry = KVC_EXPIRY_AFTER;
    update.time_ms = LEASE_MS;
    update.flags = KVC_RETURN_VALUE; /* after KVC_CONFLICT: the name of the holder */
    status = kvc_update_one(client, text(name), &update, NULL, &updated);
    if (status == KVC_IN_DOUBT) {
        kvc_doubt doubt = updated.doubt;
        status = kvc_resolve_update(client, doubt, 5000, 1, &updated);
    }
    if (status == KVC_OK)
        *token = updated.version;
    if (status == KVC_CONFLICT && updated.value.data != NULL)
        snprintf(holder, 64, "%s", (const char *)updated.value.data);
    kvc_buf_free(&updated.value);
    return status;
}

/* Releases the lock unless it has expired: the entry must still have the version of the acquisition. */
static int release(kvc_client *client, const char *name, uint64_t token)
{
    kvc_condition still_mine;

    memset(&still_mine, 0, sizeof still_mine);
    still_mine.size = sizeof still_mine;
    still_mine.kind = KVC_IF_VERSION;
    still_mine.version = token;
    return kvc_delete_if(client, text(name), &still_mine, NULL, NULL);
}

/* A resource that is protected by tokens: it accepts no token below the highest one that it has seen. */
static uint64_t highest;

static int use(uint64_t token)
{
    if (token < highest)
        return 0;
    highest = token;
    return 1;
}

int main(int argc, char **argv)
{
    kvc_client *client = NULL;
    uint64_t first = 0, second = 0;
    char holder[64] = "";
    int status;

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST:PORT\n", argv[0]);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    if (status == KVC_OK)
        status = acquire(client, "printer", "ada", &first, holder);
    if (status != KVC_OK) {
        fprintf(stderr, "acquiring: %s: %s\n", kvc_status_name(status), kvc_last_error());
        kvc_close(client);
        return 1;
    }
    printf("ada has the lock and %s the resource\n", use(first) ? "uses" : "must not use");
    status = acquire(client, "printer", "bob", &second, holder);
    printf("bob gets %s: the holder is %s\n", kvc_status_name(status), holder);

    printf("ada releases it: %s\n", kvc_status_name(release(client, "printer", first)));
    status = acquire(client, "printer", "bob", &second, holder);
    printf("bob gets %s, with a %s token\n", kvc_status_name(status), second > first ? "higher" : "lower");
    printf("bob %s the resource\n", use(second) ? "uses" : "must not use");

    /* Had the lock of ada expired instead, the resource would reject the old token, as would the release. */
    printf("ada %s the resource\n", use(first) ? "uses" : "must not use");
    printf("ada releases it again: %s\n", kvc_status_name(release(client, "printer", first)));
    status = release(client, "printer", second);
    kvc_close(client);
    return status == KVC_OK ? 0 : 1;
}
