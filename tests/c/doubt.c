/* Calls of a program while the whole cluster is stopped: doubt ENDPOINT PID..., the coordinator's pid
   before those of its servers. Each call ends at its deadline. */
#include "suite.h"

static const char *endpoint;
static pid_t pids[MOST_PIDS];
static int pid_count;
static kvc_client *client;

static int stop_all(void **state)
{
    (void)state;
    /* Opens the connections and fetches the map first. */
    assert_status(kvc_put(client, text("doubt"), text("before"), NULL, NULL), KVC_OK);
    assert_status(kvc_put(client, text("doubt too"), text("before"), NULL, NULL), KVC_OK);
    assert_status(kvc_put(client, text("doubt or not"), text("before"), NULL, NULL), KVC_OK);
    stop_processes(pids, pid_count);
    return 0;
}

static int continue_all(void **state)
{
    (void)state;
    continue_processes(pids, pid_count);
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
    assert_status(kvc_delete(client, text("doubt too"), &options, NULL), KVC_IN_DOUBT);
    assert_status(kvc_get(client, text("doubt or not"), &options, &got), KVC_TIMEOUT);
    assert_true(now_ms() - start < 3 * 300 + SLACK_MS);
}

/* One deadline covers all keys, whatever each of them waits for. */
static void a_batch_ends_at_its_deadline(void **state)
{
    enum { KEYS = 200 }; /* more writes than fit the session windows of three shards */
    static char names[KEYS][32];
    static kvc_slice keys[KEYS];
    static kvc_buf out[KEYS];
    static int statuses[KEYS];
    const kvc_op_options options = within(300);
    int64_t start;
    int n, in_doubt = 0;

    (void)state;
    for (n = 0; n < KEYS; n++) {
        snprintf(names[n], sizeof names[n], "doubt-%d", n);
        keys[n] = text(names[n]);
    }
    start = now_ms();
    n = kvc_mput(client, keys, keys, KEYS, statuses, &options);
    assert_true(now_ms() - start < 300 + SLACK_MS);
    assert_int_equal(n, KVC_IN_DOUBT);
    assert_non_null(strstr(kvc_last_error(), "200 of 200 failed"));
    for (n = 0; n < KEYS; n++) {
        in_doubt += statuses[n] == KVC_IN_DOUBT;
        assert_true(statuses[n] == KVC_IN_DOUBT || statuses[n] == KVC_UNAVAILABLE);
    }
    assert_true(in_doubt > 0);
    start = now_ms();
    n = kvc_mget(client, keys, KEYS, out, statuses, &options);
    assert_true(now_ms() - start < 300 + SLACK_MS);
    assert_true(n == KVC_TIMEOUT || n == KVC_UNAVAILABLE);
    for (n = 0; n < KEYS; n++) {
        /* A connection that was closed for silence may have failed to reopen. */
        assert_true(statuses[n] == KVC_TIMEOUT || statuses[n] == KVC_UNAVAILABLE);
        assert_null(out[n].data);
        kvc_buf_free(&out[n]);
    }
}

/* The descriptor becomes readable at each deadline. */
static void a_queue_ends_its_operations_at_their_deadlines(void **state)
{
    const int64_t start = now_ms();
    kvc_cq *queue = new_queue(client, 64);
    const int fd = kvc_cq_fd(queue);
    kvc_completion done;
    kvc_op op;
    uint64_t tag, ended = 0;

    (void)state;
    for (tag = 0; tag < 6; tag++) {
        op = tag % 2 == 0 ? get_op(text("doubt")) : put_op(text("doubt"), text("queued"));
        op.timeout_ms = 200 + 100 * tag;
        assert_status(kvc_cq_submit(queue, &op, tag), KVC_OK);
    }
    while (ended < 6) {
        assert_true(is_readable(fd, TIMEOUT_MS));
        if (kvc_cq_poll(queue, &done, 1, 0) == 1) {
            assert_true(done.tag == ended++); /* in the order of their deadlines */
            /* The connections of the new queue may never have received a WELCOME; then nothing was sent. */
            assert_true(done.status == KVC_UNAVAILABLE ||
                        done.status == (done.tag % 2 == 0 ? KVC_TIMEOUT : KVC_IN_DOUBT));
            assert_true(done.words != NULL && *done.words != '\0');
            assert_in_range(now_ms() - start, 200 + 100 * done.tag, 200 + 100 * done.tag + SLACK_MS);
        }
    }
    assert_int_equal(kvc_cq_poll(queue, &done, 1, -1), 0);
    kvc_cq_free(queue);
}

static void a_queue_whose_writes_were_sent_is_in_doubt(void **state)
{
    kvc_cq *queue = new_queue(client, 64);
    kvc_op op = put_op(text("doubt"), text("before"));
    unsigned char *kept = calloc(8, MIB);
    int64_t start;
    kvc_completion done;

    assert_non_null(kept);
    continue_all(state);
    assert_int_equal(run_op(queue, op).status, KVC_OK);
    assert_int_equal(run_op(queue, put_op(text("doubt or not"), text("before"))).status, KVC_OK);
    assert_int_equal(run_op(queue, put_op(text("doubt, kept"), text("before"))).status, KVC_OK);
    stop_processes(pids, pid_count);
    start = now_ms();
    op.timeout_ms = 300;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_IN_DOUBT);
    assert_non_null(strstr(done.words, "doubt"));
    op.kind = KVC_OP_GET;
    op.key = text("doubt or not");
    assert_int_equal(run_op(queue, op).status, KVC_TIMEOUT);
    /* A write that fills the socket is sent in part and never executed. Its memory may be freed after completion. */
    op = put_op(text("doubt, kept"), bytes(kept, 8 * MIB));
    op.flags = KVC_KEEP;
    op.timeout_ms = 300;
    assert_int_equal(run_op(queue, op).status, KVC_UNAVAILABLE);
    free(kept);
    assert_in_range(now_ms() - start, 900, 900 + SLACK_MS);
    /* A poll with a timeout shorter than the operation's returns nothing. */
    op = get_op(text("doubt"));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
    start = now_ms();
    assert_int_equal(kvc_cq_poll(queue, &done, 1, 50), 0);
    assert_in_range(now_ms() - start, 50, 50 + SLACK_MS);
    /* Responses to abandoned operations are not matched with later ones, and a partial write is not resumed. */
    continue_all(state);
    done = next_completion(queue);
    assert_int_equal(done.status, KVC_OK);
    assert_int_equal(done.value.len, strlen("before"));
    kvc_buf_free(&done.value);
    kvc_cq_free(queue);
    stop_processes(pids, pid_count);
}

static void *poll_on(void *queue)
{
    kvc_completion done;
    int count;

    /* The other thread may be in a call at this moment. Then this call is rejected. */
    do
        count = kvc_cq_poll(queue, &done, 1, TIMEOUT_MS);
    while (count == KVC_INVALID);
    return count == 1 ? NULL : queue;
}

static void a_queue_in_a_call_rejects_other_threads(void **state)
{
    const int64_t start = now_ms();
    kvc_cq *queue = new_queue(client, 64);
    kvc_op op = get_op(text("doubt"));
    kvc_completion done;
    pthread_t thread;
    void *wrong;

    (void)state;
    op.timeout_ms = 3000;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
    assert_int_equal(pthread_create(&thread, NULL, poll_on, queue), 0);
    while (kvc_cq_fd(queue) >= 0) { /* until the other thread is in its call */
        assert_true(now_ms() - start < 3000);
        look_again_soon();
    }
    assert_status(kvc_cq_submit(queue, &op, 2), KVC_INVALID);
    assert_non_null(strstr(kvc_last_error(), "another thread"));
    assert_status(kvc_cq_poll(queue, &done, 1, 0), KVC_INVALID);
    assert_status(kvc_cq_fd(queue), KVC_INVALID);
    assert_status(kvc_cq_free(queue), KVC_INVALID);
    assert_int_equal(pthread_join(thread, &wrong), 0);
    assert_null(wrong);
    assert_int_equal(kvc_cq_poll(queue, &done, 1, -1), 0);
    assert_status(kvc_cq_free(queue), KVC_OK);
}

static void *stand(void *narrow)
{
    const kvc_op_options options = within(3000);

    (void)kvc_put(narrow, text("doubt"), text("standing"), &options, NULL);
    return NULL;
}

/* Abandoned writes of a call and of a queue while the cluster is stopped: the outcome once resolved is final. */
static void the_settled_outcome_of_a_write_in_doubt_is_final(void **state)
{
    const kvc_op_options options = within(300);
    kvc_cq *queue = new_queue(client, 1);
    kvc_op op = put_op(text("resolved"), text("of a queue"));
    kvc_result first, again;
    kvc_completion done;
    kvc_doubt none;
    kvc_buf got;
    int status;

    (void)state;
    continue_all(NULL);
    assert_int_equal(run_op(queue, op).status, KVC_OK);
    assert_status(kvc_put(client, text("resolved"), text("before"), NULL, NULL), KVC_OK);
    stop_processes(pids, pid_count);
    assert_status(kvc_put(client, text("resolved"), text("after"), &options, &first), KVC_IN_DOUBT);
    assert_true(first.doubt.opaque[0] != 0 && first.version == 0 && first.copies == 0);
    op.timeout_ms = 300;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_IN_DOUBT);
    /* While no server responds the outcome is unknown, and a read of the key fails too. */
    status = kvc_resolve(client, first.doubt, 300, &again);
    assert_true(status == KVC_TIMEOUT || status == KVC_UNAVAILABLE);
    assert_status(kvc_get(client, text("resolved"), &options, &got), KVC_UNAVAILABLE);
    assert_non_null(strstr(kvc_last_error(), "in doubt"));
    continue_all(NULL);

    status = kvc_resolve(client, done.doubt, 0, NULL);
    assert_true(status == KVC_OK || status == KVC_NOT_DONE);
    status = kvc_resolve(client, first.doubt, 0, &again);
    assert_true(status == KVC_OK || status == KVC_NOT_DONE);
    assert_int_equal(kvc_resolve(client, first.doubt, 0, &again), status);
    if (status == KVC_OK)
        assert_true(again.version > 0 && again.copies == 2);
    assert_status(kvc_get(client, text("resolved"), NULL, &got), KVC_OK);
    if (status == KVC_NOT_DONE)
        assert_true(strcmp(got.data, "after") != 0);
    kvc_buf_free(&got);

    memset(&none, 0, sizeof none);
    assert_status(kvc_resolve(client, none, 0, NULL), KVC_INVALID);
    none.opaque[0] = 1;
    assert_status(kvc_resolve(client, none, 0, NULL), KVC_INVALID);
    assert_status(kvc_resolve(NULL, none, 0, NULL), KVC_INVALID);
    kvc_cq_free(queue);
    stop_processes(pids, pid_count);
}

/* All threads share the connections of a handle, and no call waits for another to end. */
static void a_short_call_does_not_wait_for_a_long_one(void **state)
{
    const kvc_op_options brief = within(50);
    int64_t start;
    pthread_t thread;
    const kvc_slice keys[] = {text("a"), text("b")};
    kvc_buf got, out[2];
    int n, statuses[2];

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, stand, client), 0);
    start = now_ms();
    for (n = 0; n < 10; n++) {
        const int status = kvc_get(client, text("doubt"), &brief, &got);

        assert_true(status == KVC_TIMEOUT || status == KVC_UNAVAILABLE);
    }
    assert_in_range(now_ms() - start, 10 * 50, 10 * 50 + SLACK_MS);
    start = now_ms();
    memset(out, 0x5a, sizeof out);
    n = kvc_mget(client, keys, 2, out, statuses, &brief);
    assert_true(n == KVC_TIMEOUT || n == KVC_UNAVAILABLE);
    assert_true(out[0].data == NULL && out[1].data == NULL);
    for (n = 0; n < 2; n++)
        assert_true(statuses[n] == KVC_TIMEOUT || statuses[n] == KVC_UNAVAILABLE);
    assert_in_range(now_ms() - start, 50, 50 + SLACK_MS);
    pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_write_is_in_doubt_and_a_read_times_out),
        cmocka_unit_test(a_batch_ends_at_its_deadline),
        cmocka_unit_test(a_queue_ends_its_operations_at_their_deadlines),
        cmocka_unit_test(a_queue_whose_writes_were_sent_is_in_doubt),
        cmocka_unit_test(a_queue_in_a_call_rejects_other_threads),
        cmocka_unit_test(the_settled_outcome_of_a_write_in_doubt_is_final),
        cmocka_unit_test(a_short_call_does_not_wait_for_a_long_one),
    };
    int failed;

    if (argc < 3 || argc - 2 > MOST_PIDS)
        return 2;
    endpoint = argv[1];
    pid_count = read_pids(argc, argv, pids);
    client = open_client(endpoint, NULL);
    failed = cmocka_run_group_tests(tests, stop_all, continue_all);
    kvc_close(client);
    return failed;
}
