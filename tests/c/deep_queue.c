/* A queue of the maximum depth, on a healthy cluster: deep_queue ENDPOINT. No write fails or starves, and the depth
   costs little. */
#include "suite.h"

#include <sys/resource.h>

#define DEEPEST 65536
#define BATCH 256
#define VALUE_BYTES 100

static const char *endpoint;
static kvc_client *client;

static int open_it(void **state)
{
    (void)state;
    client = open_client(endpoint, NULL);
    return 0;
}

static int close_it(void **state)
{
    (void)state;
    return kvc_close(client);
}

/* The version of each write to one key, by its tag; zero until the write completes. */
static uint64_t versions[3 * DEEPEST];

static void writes_of_one_key_end_in_the_order_of_their_submission(void **state)
{
    enum { WRITES = 3 * DEEPEST, WINDOW = 64 };
    kvc_cq *queue = new_queue(client, DEEPEST);
    kvc_completion done[BATCH];
    const kvc_op op = put_op(text("deep"), text("value"));
    uint64_t submitted = 0, ended = 0, oldest = 0;
    int n, count;

    (void)state;
    while (ended < WRITES) {
        while (submitted < WRITES && submitted - ended < DEEPEST)
            assert_status(kvc_cq_submit(queue, &op, submitted++), KVC_OK);
        count = kvc_cq_poll(queue, done, BATCH, TIMEOUT_MS);
        assert_true(count > 0);
        for (n = 0; n < count; n++) {
            if (done[n].status != KVC_OK)
                fail_msg("write %d: %s", (int)done[n].tag, done[n].words);
            versions[done[n].tag] = done[n].value.version;
            /* Only the writes within the session's window are in flight together. */
            assert_true(done[n].tag < oldest + WINDOW);
            while (oldest < WRITES && versions[oldest] != 0)
                oldest++;
        }
        ended += (uint64_t)count;
    }
    for (n = 1; n < WRITES; n++)
        assert_true(versions[n] > versions[n - 1]);
    kvc_cq_free(queue);
}

static double cpu_seconds(void)
{
    struct rusage used;

    assert_int_equal(getrusage(RUSAGE_SELF, &used), 0);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Writes `writes` values of 100 bytes, `depth` at once. Returns this program's processor time in seconds. */
static double cpu_of_writes(uint32_t depth, uint64_t writes)
{
    static char value[VALUE_BYTES];
    kvc_cq *queue = new_queue(client, depth);
    kvc_completion done[BATCH];
    uint64_t submitted = 0, ended = 0;
    const double cpu = cpu_seconds();
    const int64_t start = now_ms();
    int n, count;

    while (ended < writes) {
        while (submitted < writes && submitted - ended < depth) {
            char name[32];
            kvc_op op;

            snprintf(name, sizeof name, "deep-%d", (int)(submitted % 10000));
            op = put_op(text(name), bytes(value, sizeof value));
            assert_status(kvc_cq_submit(queue, &op, submitted++), KVC_OK);
        }
        count = kvc_cq_poll(queue, done, BATCH, TIMEOUT_MS);
        assert_true(count > 0);
        for (n = 0; n < count; n++)
            if (done[n].status != KVC_OK)
                fail_msg("write %d: %s", (int)done[n].tag, done[n].words);
        ended += (uint64_t)count;
    }
    kvc_cq_free(queue);
    print_message("depth %u: %.0f writes/s\n", depth, (double)writes * 1000 / (double)(now_ms() - start));
    return cpu_seconds() - cpu;
}

/* Compares processor time, because other programs may run beside this one. The factor of 4 allows for their use of the
   caches. Examining every waiting operation at each completion would cost thousands of times as much. */
static void a_write_costs_in_the_deepest_queue_about_what_it_costs_in_one_of_1000(void **state)
{
    enum { WRITES = 3 * DEEPEST };
    double shallow = 0, deep = 0;
    int turn;

    (void)state;
    cpu_of_writes(1000, 20000);
    for (turn = 0; turn < 3; turn++) {
        shallow += cpu_of_writes(1000, WRITES);
        deep += cpu_of_writes(DEEPEST, WRITES);
    }
    print_message("processor time: %.2f s and %.2f s\n", shallow, deep);
    assert_true(deep <= 4 * shallow);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_of_one_key_end_in_the_order_of_their_submission),
        cmocka_unit_test(a_write_costs_in_the_deepest_queue_about_what_it_costs_in_one_of_1000),
    };

    if (argc != 2)
        return 2;
    endpoint = argv[1];
    return cmocka_run_group_tests(tests, open_it, close_it);
}
