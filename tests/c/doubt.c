/* What a program sees while the whole cluster stands: doubt ENDPOINT PID..., the coordinator's pid
   before those of its servers. Each call ends at its deadline. */
#include "suite.h"

#include <pthread.h>
#include <signal.h>

#define MOST_PIDS 8

static const char *endpoint;
static pid_t pids[MOST_PIDS];
static int pid_count;
static kvc_client *client;

static void signal_all(int number)
{
    int n;

    for (n = 0; n < pid_count; n++)
        assert_int_equal(kill(pids[n], number), 0);
}

static int stop_all(void **state)
{
    (void)state;
    /* So that connections and the map are there before. */
    assert_status(kvc_put(client, text("doubt"), text("before"), NULL, NULL), KVC_OK);
    signal_all(SIGSTOP);
    return 0;
}

static int continue_all(void **state)
{
    (void)state;
    signal_all(SIGCONT);
    return 0;
}

static void a_write_is_in_doubt_and_a_read_times_out(void **state)
{
    const kvc_op_options options = within(300);
    const int64_t start = now_ms();
    kvc_buf got;

    (void)state;
    assert_status(kvc_put(client, text("doubt"), text("after"), &options, NULL), KVC_IN_DOUBT);
    assert_non_null(strstr(kvc_last_error(), "doubt"));
    assert_status(kvc_delete(client, text("doubt"), &options, NULL), KVC_IN_DOUBT);
    assert_status(kvc_get(client, text("doubt"), &options, &got), KVC_TIMEOUT);
    assert_true(now_ms() - start < 3 * 300 + SLACK_MS);
}

static void *stand(void *narrow)
{
    const kvc_op_options options = within(3000);

    (void)kvc_put(narrow, text("doubt"), text("standing"), &options, NULL);
    return NULL;
}

static void a_thread_without_a_connection_is_busy_at_its_deadline(void **state)
{
    const kvc_op_options brief = within(50);
    const int64_t start = now_ms();
    kvc_options options;
    kvc_client *narrow;
    pthread_t thread;
    kvc_buf got;
    int status;

    (void)state;
    assert_status(kvc_options_init(&options, sizeof options), KVC_OK);
    options.connections_per_shard = 1;
    narrow = open_client(endpoint, &options);
    assert_int_equal(pthread_create(&thread, NULL, stand, narrow), 0);
    do { /* until the other thread was the quicker one */
        status = kvc_get(narrow, text("doubt"), &brief, &got);
        assert_true(status < KVC_NOT_FOUND);
    } while (status != KVC_BUSY && now_ms() - start < 3000);
    assert_status(status, KVC_BUSY);
    pthread_join(thread, NULL);
    kvc_close(narrow);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_write_is_in_doubt_and_a_read_times_out),
        cmocka_unit_test(a_thread_without_a_connection_is_busy_at_its_deadline),
    };
    int failed;

    if (argc < 3 || argc - 2 > MOST_PIDS)
        return 2;
    endpoint = argv[1];
    for (pid_count = 0; pid_count < argc - 2; pid_count++)
        pids[pid_count] = atoi(argv[2 + pid_count]);
    client = open_client(endpoint, NULL);
    failed = cmocka_run_group_tests(tests, stop_all, continue_all);
    kvc_close(client);
    return failed;
}
