/* Calls of a program while a server is killed: failover ENDPOINT SERVER-PID. */
#include "suite.h"

#include <stdatomic.h>
#include <stdbool.h>

#define WRITERS 16
#define MOST_WRITES 4000
/* Long enough for another server to take over, so that nothing is left in doubt. */
#define DEADLINE_MS 20000

static pid_t victim;
static kvc_client *client;

struct writer {
    pthread_t thread;
    int number;
    atomic_int written;       /* keys that were reported OK: 0 to written - 1 */
    int counted;              /* increments of the shared counter that were reported OK */
    const char *wrong;        /* the first error, if any */
};

/* Threads with short deadlines. */
#define IMPATIENT 4

struct impatient {
    pthread_t thread;
    int number;
    int64_t stored;           /* the last value that was reported OK */
    int64_t tried;            /* the last value of any put */
    const char *wrong;
};

static struct writer writers[WRITERS];
static struct impatient impatient[IMPATIENT];
static atomic_bool is_over;

static const char *timed_put(kvc_slice key, kvc_slice value, const kvc_op_options *options, int *status)
{
    const int64_t start = now_ms();

    *status = kvc_put(client, key, value, options, NULL);
    return now_ms() - start > options->timeout_ms + SLACK_MS ? "a call outlasted its deadline" : NULL;
}

/* Adds one to a counter that all writers share, by compare-and-set. */
static const char *increment(struct writer *writer)
{
    kvc_op_options options = within(DEADLINE_MS);
    const char *wrong = NULL;
    int status = KVC_CONFLICT;

    while (status == KVC_CONFLICT && wrong == NULL) {
        int64_t count = 0;
        size_t len;
        kvc_result entry;
        status = kvc_get_into(client, text("count"), &count, sizeof count, &len, &options, &entry);
        if (status != KVC_OK && status != KVC_NOT_FOUND)
            return "the counter cannot be read";
        options.if_version = status == KVC_OK ? entry.version : KVC_ABSENT;
        count++;
        wrong = timed_put(text("count"), bytes(&count, sizeof count), &options, &status);
    }
    if (status == KVC_OK)
        writer->counted++;
    else if (wrong == NULL)
        wrong = kvc_status_name(status);
    return wrong;
}

static void *write_on(void *argument)
{
    const kvc_op_options options = within(DEADLINE_MS);
    struct writer *writer = argument;
    char key[32];
    int status;

    while (!atomic_load(&is_over) && writer->wrong == NULL && writer->written < MOST_WRITES) {
        snprintf(key, sizeof key, "%d/%d", writer->number, writer->written);
        writer->wrong = timed_put(text(key), text(key), &options, &status);
        if (status == KVC_OK)
            writer->written++;
        else
            writer->wrong = kvc_status_name(status);
        if (writer->written % 20 == 0 && writer->wrong == NULL)
            writer->wrong = increment(writer);
    }
    return NULL;
}

/* Puts growing numbers and reads them, with deadlines that may end before the takeover. */
static void *hurry(void *argument)
{
    struct impatient *self = argument;
    const kvc_op_options options = within(100u << self->number);
    char key[32];

    snprintf(key, sizeof key, "impatient-%d", self->number);
    while (!atomic_load(&is_over) && self->wrong == NULL) {
        int64_t next = self->tried + 1, found, start;
        size_t len;
        int status;

        self->tried = next;
        self->wrong = timed_put(text(key), bytes(&next, sizeof next), &options, &status);
        if (status == KVC_OK)
            self->stored = next;
        else if (status != KVC_TIMEOUT && status != KVC_IN_DOUBT && status != KVC_UNAVAILABLE)
            self->wrong = kvc_status_name(status);
        start = now_ms();
        status = kvc_get_into(client, text(key), &found, sizeof found, &len, &options, NULL);
        if (now_ms() - start > options.timeout_ms + SLACK_MS)
            self->wrong = "a get outlasted its deadline";
        if (status == KVC_OK && (len != sizeof found || found < self->stored || found > self->tried))
            self->wrong = "a get returned a value that was overwritten or never written";
        if (status == KVC_NOT_FOUND && self->stored > 0)
            self->wrong = "a get did not find the value";
    }
    return NULL;
}

/* Waits until each writer has written `more` keys beyond its number in `had`. */
static void await_writes(const int *had, int more)
{
    const int64_t start = now_ms();
    int n;

    for (n = 0; n < WRITERS; n++) {
        while (writers[n].written < had[n] + more && writers[n].wrong == NULL) {
            assert_true(now_ms() - start < TIMEOUT_MS);
            look_again_soon();
        }
        if (writers[n].wrong != NULL)
            fail_msg("writer %d: %s", n, writers[n].wrong);
    }
}

static void a_killed_server_costs_no_write_and_no_deadline(void **state)
{
    int had[WRITERS] = {0}, n, key_number, counted = 0;
    int64_t count = 0;
    char key[32], room[32];
    size_t len;

    (void)state;
    for (n = 0; n < WRITERS; n++) {
        writers[n].number = n;
        assert_int_equal(pthread_create(&writers[n].thread, NULL, write_on, &writers[n]), 0);
    }
    for (n = 0; n < IMPATIENT; n++) {
        impatient[n].number = n;
        assert_int_equal(pthread_create(&impatient[n].thread, NULL, hurry, &impatient[n]), 0);
    }
    await_writes(had, 50);
    kill(victim, SIGKILL);
    for (n = 0; n < WRITERS; n++)
        had[n] = writers[n].written;
    await_writes(had, 50);
    atomic_store(&is_over, true);
    for (n = 0; n < WRITERS; n++) {
        pthread_join(writers[n].thread, NULL);
        assert_null(writers[n].wrong);
        counted += writers[n].counted;
    }
    for (n = 0; n < IMPATIENT; n++) {
        pthread_join(impatient[n].thread, NULL);
        if (impatient[n].wrong != NULL)
            fail_msg("impatient %d: %s", n, impatient[n].wrong);
    }
    /* A deadline of 0.8 s suffices in a healthy group. */
    assert_true(impatient[IMPATIENT - 1].stored > 0);
    for (n = 0; n < WRITERS; n++) {
        for (key_number = 0; key_number < writers[n].written; key_number++) {
            snprintf(key, sizeof key, "%d/%d", n, key_number);
            assert_status(kvc_get_into(client, text(key), room, sizeof room, &len, NULL, NULL), KVC_OK);
            assert_int_equal(len, strlen(key));
            assert_memory_equal(room, key, len);
        }
    }
    assert_status(kvc_get_into(client, text("count"), &count, sizeof count, &len, NULL, NULL), KVC_OK);
    assert_int_equal(count, counted);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_server_costs_no_write_and_no_deadline),
    };
    int failed;

    if (argc != 3)
        return 2;
    victim = atoi(argv[2]);
    client = open_client(argv[1], NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    kvc_close(client);
    return failed;
}
