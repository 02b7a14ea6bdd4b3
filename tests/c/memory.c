/* Calls of a program that runs out of memory: they return a status, and the handle works again once there is
   memory. memory ENDPOINT SERVER-PID... */
#include "suite.h"

#include <malloc.h>
#include <sys/resource.h>

#define LARGE (16 * MIB)
#define MOST_SERVERS 8

static pid_t servers[MOST_SERVERS];
static int server_count;
static kvc_client *client;
static unsigned char large[LARGE], room[LARGE];

/* Limits this process to `more` bytes of address space beyond its current size. */
static void allow(size_t more)
{
    struct rlimit limit;
    unsigned long pages = 0;
    FILE *file;

    assert_int_equal(getrlimit(RLIMIT_AS, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    if (more != SIZE_MAX) {
        file = fopen("/proc/self/statm", "r");
        assert_non_null(file);
        assert_int_equal(fscanf(file, "%lu", &pages), 1);
        fclose(file);
        limit.rlim_cur = pages * sysconf(_SC_PAGESIZE) + more;
    }
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
}

static int store(void **state)
{
    (void)state;
    memset(large, 1, sizeof large);
    assert_status(kvc_put(client, text("large"), bytes(large, LARGE), NULL, NULL), KVC_OK);
    assert_status(kvc_put(client, text("small"), text("value"), NULL, NULL), KVC_OK);
    return 0;
}

static int give_back(void **state)
{
    (void)state;
    allow(SIZE_MAX);
    return 0;
}

/* Checks that the handle works with small and large values. */
static void check_all_is_well(void)
{
    kvc_buf got;
    size_t len;

    allow(SIZE_MAX);
    assert_status(kvc_get(client, text("large"), NULL, &got), KVC_OK);
    assert_int_equal(got.len, LARGE);
    assert_memory_equal(got.data, large, LARGE);
    kvc_buf_free(&got);
    assert_status(kvc_get_into(client, text("small"), room, LARGE, &len, NULL, NULL), KVC_OK);
    assert_int_equal(len, 5);
}

static void a_value_without_memory_is_reported_and_the_handle_still_works(void **state)
{
    const kvc_slice keys[] = {text("small"), text("large")};
    const int64_t start = now_ms();
    size_t more;
    kvc_buf got, out[2];
    int statuses[2], n, status;

    (void)state;
    for (more = 4; more <= 12; more += 4) {
        allow(more * MIB);
        assert_status(kvc_get(client, keys[1], NULL, &got), KVC_NO_MEMORY);
        assert_non_null(strstr(kvc_last_error(), "memory"));
        check_all_is_well();
    }
    allow(4 * MIB);
    status = kvc_mget(client, keys, 2, out, statuses, NULL);
    assert_int_equal(status, KVC_NO_MEMORY);
    assert_int_equal(statuses[1], KVC_NO_MEMORY);
    assert_true(statuses[0] == KVC_OK || statuses[0] == KVC_NO_MEMORY); /* it may share the connection */
    for (n = 0; n < 2; n++) {
        assert_true((out[n].data != NULL) == (statuses[n] == KVC_OK));
        kvc_buf_free(&out[n]);
    }
    check_all_is_well();
    assert_true(now_ms() - start < TIMEOUT_MS);
}

/* A value is received directly into its final buffer. So it takes only its own length of memory, or none if the program
   supplies the buffer. */
static void a_value_is_received_once(void **state)
{
    kvc_cq *queue = new_queue(client, 4);
    kvc_completion done;
    kvc_buf got;
    kvc_op op;
    size_t len;

    (void)state;
    allow(20 * MIB);
    assert_status(kvc_get(client, text("large"), NULL, &got), KVC_OK);
    assert_memory_equal(got.data, large, LARGE);
    kvc_buf_free(&got);
    allow(4 * MIB);
    memset(room, 0, sizeof room);
    assert_status(kvc_get_into(client, text("large"), room, LARGE, &len, NULL, NULL), KVC_OK);
    assert_int_equal(len, LARGE);
    assert_memory_equal(room, large, LARGE);
    /* A value that is too long, or was not requested, takes no memory. */
    assert_status(kvc_get_into(client, text("large"), room, 9, &len, NULL, NULL), KVC_TOO_BIG);
    assert_int_equal(len, LARGE);
    assert_status(kvc_length(client, text("large"), &len, NULL, NULL), KVC_OK);
    assert_int_equal(len, LARGE);
    memset(room, 0, sizeof room);
    assert_status(kvc_get_range(client, text("large"), MIB, room, 9 * MIB, &len, NULL, NULL), KVC_OK);
    assert_int_equal(len, LARGE);
    assert_memory_equal(room, large + MIB, 9 * MIB);
    op = get_op(text("large"));
    op.dst = room;
    op.cap = LARGE;
    memset(room, 0, sizeof room);
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_OK);
    assert_memory_equal(room, large, LARGE);
    op.cap = LARGE - 1;
    done = run_op(queue, op);
    assert_true(done.status == KVC_TOO_BIG && done.value.len == LARGE);
    assert_status(kvc_cq_free(queue), KVC_OK);
    check_all_is_well();
}

/* The value is sent from the program's memory and needs no other. */
static void a_put_needs_no_memory_for_its_value(void **state)
{
    kvc_cq *queue = new_queue(client, 4);
    kvc_completion done;
    kvc_op op = put_op(text("large"), bytes(large, LARGE));

    (void)state;
    assert_int_equal(run_op(queue, get_op(text("nothing"))).status, KVC_NOT_FOUND);
    large[0] = 2;
    allow(4 * MIB);
    assert_status(kvc_put(client, text("large"), bytes(large, LARGE), NULL, NULL), KVC_OK);
    check_all_is_well();
    allow(4 * MIB);
    /* A queue copies the value unless KVC_KEEP is set. */
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_NO_MEMORY);
    assert_int_equal(kvc_cq_poll(queue, &done, 1, -1), 0);
    op.flags = KVC_KEEP;
    assert_int_equal(run_op(queue, op).status, KVC_OK);
    done = run_op(queue, get_op(text("large")));
    assert_int_equal(done.status, KVC_NO_MEMORY);
    assert_true(done.words != NULL && done.value.data == NULL);
    check_all_is_well();
    done = run_op(queue, get_op(text("large")));
    assert_true(done.status == KVC_OK && done.value.len == LARGE);
    kvc_buf_free(&done.value);
    assert_status(kvc_cq_free(queue), KVC_OK);
}

/* The servers keep the response to an update. So a value that is removed without memory for it here is not lost. */
static void a_value_that_was_taken_without_memory_can_still_be_read(void **state)
{
    const kvc_op_options options = within(500);
    kvc_result result;
    kvc_updated updated;
    kvc_buf got = {NULL, 7, 7};
    int status;

    (void)state;
    allow(4 * MIB);
    status = kvc_take(client, text("large"), &options, &got, &result);
    allow(SIZE_MAX);
    assert_int_equal(status, KVC_IN_DOUBT);
    assert_int_equal(got.len, 7);
    assert_status(kvc_resolve_update(client, result.doubt, 0, 1, &updated), KVC_OK);
    assert_int_equal(updated.value.len, LARGE);
    assert_memory_equal(updated.value.data, large, LARGE);
    kvc_buf_free(&updated.value);
    assert_status(kvc_put(client, text("large"), bytes(large, LARGE), NULL, NULL), KVC_OK);
    check_all_is_well();
}

static void continue_servers(void)
{
    int n;

    for (n = 0; n < server_count; n++)
        assert_int_equal(kill(servers[n], SIGCONT), 0);
}

/* The library keeps nothing of a partially sent request: there is no memory for it here. The kernel's buffers
   may take one or two of these writes, which are then in doubt, but not all. */
static void a_put_abandoned_half_way_was_not_done_and_the_handle_still_works(void **state)
{
    enum { PUTS = 3 };
    kvc_cq *queue = new_queue(client, PUTS);
    kvc_op op = put_op(text("large"), bytes(large, LARGE));
    int64_t start;
    int n, undone = 0;

    (void)state;
    op.flags = KVC_KEEP;
    op.timeout_ms = 60000;
    assert_int_equal(run_op(queue, op).status, KVC_OK);
    stop_processes(servers, server_count);
    start = now_ms();
    op.timeout_ms = 300;
    for (n = 0; n < PUTS; n++)
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
    allow(4 * MIB);
    for (n = 0; n < PUTS; n++) {
        const kvc_completion done = next_completion(queue);

        assert_true(done.status == KVC_UNAVAILABLE || done.status == KVC_IN_DOUBT);
        undone += done.status == KVC_UNAVAILABLE;
    }
    assert_in_range(undone, 1, PUTS);
    assert_true(now_ms() - start < 300 + SLACK_MS);
    allow(SIZE_MAX);
    continue_servers();
    assert_status(kvc_cq_free(queue), KVC_OK);
    check_all_is_well();
}

static int go_on(void **state)
{
    continue_servers();
    return give_back(state);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_value_without_memory_is_reported_and_the_handle_still_works, give_back),
        cmocka_unit_test_teardown(a_value_is_received_once, give_back),
        cmocka_unit_test_teardown(a_put_needs_no_memory_for_its_value, give_back),
        cmocka_unit_test_teardown(a_value_that_was_taken_without_memory_can_still_be_read, give_back),
        cmocka_unit_test_teardown(a_put_abandoned_half_way_was_not_done_and_the_handle_still_works, go_on),
    };
    int failed;

    if (argc < 3 || argc - 2 > MOST_SERVERS)
        return 2;
    for (server_count = 0; server_count < argc - 2; server_count++)
        servers[server_count] = atoi(argv[2 + server_count]);
    /* Returns freed memory to the system, so that it does not defeat the limit. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mallopt(M_TRIM_THRESHOLD, 128 << 10);
    client = open_client(argv[1], NULL);
    failed = cmocka_run_group_tests(tests, store, NULL);
    kvc_close(client);
    return failed;
}
