/*
 * leaderboard.c: the points of players, which many programs count at once. kvc_add() adds on the server, so there
 * is no conflict and no retry, and a write that the library sends twice is still counted once.
 *
 *   cc -std=c99 leaderboard.c $(pkg-config --cflags --libs kvclient) -o leaderboard
 *   ./leaderboard localhost:PORT ada=3 bob=1       (run it several times at once)
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvclient.h>

#define PLAYERS 32
#define LONGEST_NAME 50
#define MOST_POINTS 1000000000L

struct player {
    char key[64];
    int64_t points; /* first those to add, then the total */
};

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Reads "name=points". Returns 0 if the text is anything else. */
static int parse(const char *argument, struct player *player)
{
    const char *equals = strchr(argument, '=');
    char *end;
    long points;

    if (equals == NULL || equals == argument || equals - argument > LONGEST_NAME)
        return 0;
    errno = 0;
    points = strtol(equals + 1, &end, 10);
    if (end == equals + 1 || *end != '\0' || errno != 0 || points < -MOST_POINTS || points > MOST_POINTS)
        return 0;
    player->points = points;
    snprintf(player->key, sizeof player->key, "points/%.*s", (int)(equals - argument), argument);
    return 1;
}

/* Adds the points and sets the total of the player. KVC_IN_DOUBT: the deadline passed before the response arrived,
   and kvc_resolve() settles whether the points were added. They must not be added again before. */
static int add_points(kvc_client *client, struct player *player)
{
    kvc_result result;
    int status;

    status = kvc_add(client, text(player->key), player->points, NULL, &player->points, &result);
    if (status == KVC_IN_DOUBT) {
        kvc_updated updated;
        status = kvc_resolve_update(client, result.doubt, 5000, 1, &updated);
        if (status == KVC_OK)
            player->points = strtol(updated.value.data, NULL, 10);
        kvc_buf_free(&updated.value);
    }
    return status;
}

static int by_points(const void *a, const void *b)
{
    const struct player *left = a, *right = b;
    return (left->points < right->points) - (left->points > right->points);
}

int main(int argc, char **argv)
{
    static struct player players[PLAYERS];
    kvc_client *client = NULL;
    int status, n, count = argc - 2, is_valid = count >= 1 && count <= PLAYERS;

    for (n = 0; n < count && is_valid; n++)
        is_valid = parse(argv[2 + n], &players[n]);
    if (!is_valid) {
        fprintf(stderr, "usage: %s HOST:PORT NAME=POINTS...\n", argv[0]);
        fprintf(stderr, "up to %d players; NAME: up to %d bytes; POINTS: a whole number, at most %ld\n", PLAYERS,
                LONGEST_NAME, MOST_POINTS);
        return 2;
    }
    status = kvc_open(argv[1], NULL, &client);
    for (n = 0; n < count && status == KVC_OK; n++)
        status = add_points(client, &players[n]);
    if (status != KVC_OK) {
        fprintf(stderr, "adding: %s: %s\n", kvc_status_name(status), kvc_last_error());
    } else {
        qsort(players, (size_t)count, sizeof *players, by_points);
        for (n = 0; n < count; n++)
            printf("%d. %s: %lld\n", n + 1, strchr(players[n].key, '/') + 1, (long long)players[n].points);
    }
    kvc_close(client);
    return status == KVC_OK ? 0 : 1;
}
