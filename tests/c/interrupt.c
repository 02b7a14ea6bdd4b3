/* Operations that an interrupt or a cancellation ends before their deadline, while the whole cluster is stopped:
   interrupt ENDPOINT PID..., the coordinator's pid before those of its servers. */
#include "suite.h"

/* A deadline far beyond the duration of an interrupted call. */
#define DEADLINE_MS 50000
/* The longest duration of an interrupted call on a busy machine. */
#define AT_ONCE_MS 10000

static const char *endpoint;
static pid_t pids[MOST_PIDS];
static int pid_count;
static kvc_client *client;
static kvc_cq *queue;

/* Opens the connections, fetches the map and writes the keys before it stops the cluster. */
static int stop_all(void **state)
{
    (void)state;
    client = open_client(endpoint, NULL);
    queue = new_queue(client, 8);
    assert_status(kvc_put(client, text("read"), text("before"), NULL, NULL), KVC_OK);
    assert_status(kvc_put(client, text("written"), text("before"), NULL, NULL), KVC_OK);
    assert_status(kvc_ping(client, bytes(NULL, 0), 0, NULL), KVC_OK);
    assert_int_equal(run_op(queue, put_op(text("queued"), text("before"))).status, KVC_OK);
    assert_int_equal(run_op(queue, put_op(text("kept"), text("before"))).status, KVC_OK);
    stop_processes(pids, pid_count);
    return 0;
}

static int continue_all(void **state)
{
    (void)state;
    continue_processes(pids, pid_count);
    assert_status(kvc_cq_free(queue), KVC_OK);
    assert_status(kvc_close(client), KVC_OK);
    return 0;
}

/* A thread in a call, and the result of the call. */
struct caller {
    pthread_t thread;
    kvc_client *of;
    int status;
    int statuses[3];
    kvc_result result;
    char words[256];
};

static void *note(struct caller *self, int status)
{
    self->status = status;
    snprintf(self->words, sizeof self->words, "%s", kvc_last_error());
    return NULL;
}

static void *read_it(void *argument)
{
    const kvc_op_options options = within(DEADLINE_MS);
    kvc_buf got;

    return note(argument, kvc_get(client, text("read"), &options, &got));
}

static void *write_it(void *argument)
{
    const kvc_op_options options = within(DEADLINE_MS);
    struct caller *self = argument;

    return note(self, kvc_put(client, text("written"), text("after"), &options, &self->result));
}

static void *write_three(void *argument)
{
    const kvc_op_options options = within(DEADLINE_MS);
    const kvc_slice keys[] = {text("written, 1"), text("written, 2"), text("written, 3")};
    struct caller *self = argument;

    return note(self, kvc_mput(client, keys, keys, 3, self->statuses, &options));
}

static void *ping_it(void *argument)
{
    return note(argument, kvc_ping(client, text("pinged"), DEADLINE_MS, NULL));
}

static void *poll_it(void *argument)
{
    kvc_completion done;
    int status;

    /* The other thread may be in a call at this moment. Then this call is rejected. */
    do
        status = kvc_cq_poll(queue, &done, 1, -1);
    while (status == KVC_INVALID);
    return note(argument, status);
}

static void an_interrupt_ends_every_wait_and_reports_the_outcome_of_writes(void **state)
{
    enum { READ, WRITE, BATCH, PING, POLL, CALLERS };
    void *(*const bodies[CALLERS])(void *) = {read_it, write_it, write_three, ping_it, poll_it};
    static struct caller callers[CALLERS];
    kvc_op op = put_op(text("queued"), text("after"));
    kvc_completion done;
    kvc_buf got;
    int64_t start;
    int n, status;

    (void)state;
    op.timeout_ms = DEADLINE_MS;
    assert_status(kvc_cq_submit(queue, &op, 5), KVC_OK);
    for (n = 0; n < CALLERS; n++)
        assert_int_equal(pthread_create(&callers[n].thread, NULL, bodies[n], &callers[n]), 0);
    await_in_flight(client, 1 + 1 + 3 + 1);
    start = now_ms();
    while (kvc_cq_fd(queue) >= 0) { /* until the other thread is in its call */
        assert_true(now_ms() - start < TIMEOUT_MS);
        look_again_soon();
    }

    start = now_ms();
    assert_status(kvc_interrupt(client), KVC_OK);
    for (n = 0; n < CALLERS; n++)
        assert_int_equal(pthread_join(callers[n].thread, NULL), 0);
    assert_true(now_ms() - start < AT_ONCE_MS);
    assert_int_equal(callers[READ].status, KVC_INTERRUPTED);
    assert_int_equal(callers[PING].status, KVC_INTERRUPTED);
    assert_int_equal(callers[POLL].status, KVC_INTERRUPTED);
    /* The writes were sent, so their outcome is unknown. */
    assert_int_equal(callers[WRITE].status, KVC_IN_DOUBT);
    assert_non_null(strstr(callers[WRITE].words, "interrupted"));
    assert_true(callers[WRITE].result.doubt.opaque[0] != 0);
    assert_int_equal(callers[BATCH].status, KVC_IN_DOUBT);
    for (n = 0; n < 3; n++)
        assert_int_equal(callers[BATCH].statuses[n], KVC_IN_DOUBT);
    assert_int_equal(counters_of(client).in_flight, 0);
    assert_int_equal(counters_of(client).in_doubt, 4);
    assert_int_equal(counters_of(client).given_up, 2);

    /* While the handle is interrupted, no operation begins and no call waits. */
    start = now_ms();
    assert_status(kvc_interrupt(client), KVC_OK);
    assert_status(kvc_get(client, text("read"), NULL, &got), KVC_INTERRUPTED);
    assert_status(kvc_put(client, text("written"), text("later"), NULL, NULL), KVC_INTERRUPTED);
    assert_status(kvc_resolve(client, callers[WRITE].result.doubt, 0, NULL), KVC_INTERRUPTED);
    assert_status(kvc_cq_submit(queue, &op, 6), KVC_INTERRUPTED);
    assert_true(is_readable(kvc_cq_fd(queue), 0));
    assert_status(kvc_cq_poll(queue, &done, 1, -1), KVC_INTERRUPTED);
    assert_true(now_ms() - start < AT_ONCE_MS);

    /* The submitted operation is still in flight. */
    assert_status(kvc_resume(client), KVC_OK);
    assert_int_equal(kvc_cq_poll(queue, &done, 1, 0), 0);
    continue_processes(pids, pid_count);
    done = next_completion(queue);
    assert_true(done.tag == 5 && done.status == KVC_OK);
    status = kvc_resolve(client, callers[WRITE].result.doubt, 0, NULL);
    assert_true(status == KVC_OK || status == KVC_NOT_DONE);
    assert_status(kvc_get(client, text("written"), NULL, &got), KVC_OK);
    assert_string_equal(got.data, status == KVC_OK ? "after" : "before");
    kvc_buf_free(&got);
    assert_status(kvc_resume(client), KVC_OK);
    assert_status(kvc_put(client, text("written"), text("later"), NULL, NULL), KVC_OK);
    stop_processes(pids, pid_count);
}

static void *write_by_a_fresh_handle(void *argument)
{
    const kvc_op_options options = within(DEADLINE_MS);
    struct caller *self = argument;

    return note(self, kvc_put(self->of, text("never sent"), text("v"), &options, &self->result));
}

/* The handle has no connection, so nothing can have been sent. */
static void an_interrupted_write_that_was_not_sent_was_not_done(void **state)
{
    static struct caller caller;
    kvc_buf got;

    (void)state;
    caller.of = open_client(endpoint, NULL);
    assert_int_equal(pthread_create(&caller.thread, NULL, write_by_a_fresh_handle, &caller), 0);
    await_in_flight(caller.of, 1);
    assert_status(kvc_interrupt(caller.of), KVC_OK);
    assert_int_equal(pthread_join(caller.thread, NULL), 0);
    assert_int_equal(caller.status, KVC_INTERRUPTED);
    assert_non_null(strstr(caller.words, "not executed"));
    assert_true(counters_of(caller.of).given_up == 1 && counters_of(caller.of).in_doubt == 0);
    /* An interrupt ends the calls of its handle alone: another handle works. */
    continue_processes(pids, pid_count);
    assert_status(kvc_get(client, text("never sent"), NULL, &got), KVC_NOT_FOUND);
    stop_processes(pids, pid_count);
    assert_status(kvc_close(caller.of), KVC_OK);
}

static void *read_on_and_on(void *argument)
{
    struct caller *self = argument;
    char room[16];
    size_t len;

    do
        self->status = kvc_get_into(self->of, text("read"), room, sizeof room, &len, NULL, NULL);
    while (self->status == KVC_OK);
    return self->status == KVC_INTERRUPTED ? NULL : argument;
}

/* An interrupt ends the calls of all threads, whichever of them is receiving and whatever the others wait for. */
static void threads_that_are_busy_all_end(void **state)
{
    enum { CALLERS = 8, ROUNDS = 20 };
    static struct caller callers[CALLERS];
    kvc_client *busy;
    kvc_options options;
    void *wrong;
    int n, round;

    (void)state;
    continue_processes(pids, pid_count);
    assert_status(kvc_options_init(&options, sizeof options), KVC_OK);
    options.connections_per_shard = 2;
    busy = open_client(endpoint, &options);
    for (round = 0; round < ROUNDS; round++) {
        const uint64_t had = counters_of(busy).responses;

        for (n = 0; n < CALLERS; n++) {
            callers[n].of = busy;
            assert_int_equal(pthread_create(&callers[n].thread, NULL, read_on_and_on, &callers[n]), 0);
        }
        while (counters_of(busy).responses < had + CALLERS)
            look_again_soon();
        assert_status(kvc_interrupt(busy), KVC_OK);
        for (n = 0; n < CALLERS; n++) {
            assert_int_equal(pthread_join(callers[n].thread, &wrong), 0);
            if (wrong != NULL)
                fail_msg("%s", kvc_status_name(callers[n].status));
        }
        assert_status(kvc_resume(busy), KVC_OK);
    }
    assert_status(kvc_ping(busy, text("k"), 0, NULL), KVC_OK);
    kvc_close(busy);
    stop_processes(pids, pid_count);
}

static kvc_completion cancelled(uint64_t tag)
{
    kvc_completion done;

    assert_status(kvc_cq_cancel(queue, tag), KVC_OK);
    assert_true(is_readable(kvc_cq_fd(queue), 0));
    assert_int_equal(kvc_cq_poll(queue, &done, 1, 0), 1);
    assert_true(done.tag == tag);
    return done;
}

/* Makes the queue send its operations; no server responds. */
static void send_all(void)
{
    kvc_completion done;

    assert_int_equal(kvc_cq_poll(queue, &done, 1, 0), 0);
}

static void a_cancelled_write_that_was_sent_is_in_doubt_and_can_be_settled(void **state)
{
    kvc_op op = put_op(text("queued"), text("cancelled"));
    kvc_counters counters = {.size = sizeof counters};
    kvc_completion done;
    kvc_buf got;
    int status;

    (void)state;
    op.timeout_ms = DEADLINE_MS;
    assert_status(kvc_cq_submit(queue, &op, 7), KVC_OK);
    send_all();
    done = cancelled(7);
    assert_int_equal(done.status, KVC_IN_DOUBT);
    assert_non_null(strstr(done.words, "cancelled"));
    assert_true(done.doubt.opaque[0] != 0);
    assert_status(kvc_cq_cancel(queue, 7), KVC_NOT_FOUND);
    assert_status(kvc_cq_statistics(queue, &counters, NULL, 0), KVC_OK);
    assert_true(counters.in_doubt == 1 && counters.unsettled == 1 && counters.in_flight == 0);

    continue_processes(pids, pid_count);
    status = kvc_resolve(client, done.doubt, 0, NULL);
    assert_true(status == KVC_OK || status == KVC_NOT_DONE);
    assert_status(kvc_get(client, text("queued"), NULL, &got), KVC_OK);
    assert_true((strcmp(got.data, "cancelled") == 0) == (status == KVC_OK));
    kvc_buf_free(&got);
    /* The queue's next operation on the key also settles the write in doubt, and then completes. */
    assert_int_equal(run_op(queue, put_op(text("queued"), text("before"))).status, KVC_OK);
    assert_status(kvc_cq_statistics(queue, &counters, NULL, 0), KVC_OK);
    assert_true(counters.unsettled == 0);
    stop_processes(pids, pid_count);
}

static void an_unsent_operation_is_cancelled_and_not_done(void **state)
{
    unsigned char *kept = calloc(8, MIB);
    kvc_op op = put_op(text("kept"), text("cancelled"));
    kvc_completion done;

    (void)state;
    assert_non_null(kept);
    assert_status(kvc_cq_submit(queue, &op, 8), KVC_OK);
    done = cancelled(8);
    assert_int_equal(done.status, KVC_CANCELLED);
    assert_non_null(strstr(done.words, "not executed"));
    /* A write that fills the socket is sent in part and never executed. Its memory may be freed after completion. */
    op.value = bytes(kept, 8 * MIB);
    op.flags = KVC_KEEP;
    assert_status(kvc_cq_submit(queue, &op, 9), KVC_OK);
    send_all();
    assert_int_equal(cancelled(9).status, KVC_CANCELLED);
    free(kept);
    continue_processes(pids, pid_count);
    done = run_op(queue, get_op(text("kept")));
    assert_int_equal(done.status, KVC_OK);
    assert_string_equal(done.value.data, "before");
    kvc_buf_free(&done.value);
    stop_processes(pids, pid_count);
}

static void the_memory_of_a_cancelled_read_is_left_alone(void **state)
{
    char *room = malloc(16), other[16];
    kvc_op op = get_op(text("kept"));
    kvc_completion done;

    (void)state;
    assert_non_null(room);
    op.dst = room;
    op.cap = 16;
    op.timeout_ms = DEADLINE_MS;
    assert_status(kvc_cq_submit(queue, &op, 10), KVC_OK);
    send_all();
    done = cancelled(10);
    assert_int_equal(done.status, KVC_CANCELLED);
    assert_true(done.value.data == NULL && done.value.len == 0);
    free(room); /* a sanitizer would report a write to it */
    room = malloc(16);
    assert_non_null(room);
    memset(room, 'x', 16);
    /* The response to the cancelled read arrives before the response to the next one. */
    continue_processes(pids, pid_count);
    op.dst = other;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_OK);
    assert_memory_equal(other, "before", strlen("before"));
    assert_memory_equal(room, "xxxxxxxxxxxxxxxx", 16);
    free(room);
    stop_processes(pids, pid_count);
}

static void of_several_operations_those_with_the_tag_are_cancelled(void **state)
{
    kvc_op op = get_op(text("kept"));
    kvc_completion done[4];
    uint64_t tag;
    int n;

    (void)state;
    continue_processes(pids, pid_count);
    for (tag = 0; tag < 4; tag++)
        assert_status(kvc_cq_submit(queue, &op, tag % 2), KVC_OK);
    assert_status(kvc_cq_cancel(queue, 1), KVC_OK);
    assert_status(kvc_cq_cancel(queue, 1), KVC_OK); /* not polled yet */
    assert_status(kvc_cq_cancel(queue, 2), KVC_NOT_FOUND);
    for (n = 0; n < 4; n++) {
        done[n] = next_completion(queue);
        assert_int_equal(done[n].status, done[n].tag == 1 ? KVC_CANCELLED : KVC_OK);
        kvc_buf_free(&done[n].value);
    }
    assert_int_equal(kvc_cq_poll(queue, done, 4, -1), 0);

    /* An operation that completed before the cancellation keeps its result. */
    assert_status(kvc_cq_submit(queue, &op, 3), KVC_OK);
    assert_status(kvc_cq_submit(queue, &op, 4), KVC_OK);
    done[0] = next_completion(queue);
    tag = done[0].tag == 3 ? 4 : 3;
    kvc_buf_free(&done[0].value);
    n = kvc_cq_cancel(queue, done[0].tag);
    assert_int_equal(n, KVC_NOT_FOUND);
    assert_status(kvc_cq_cancel(queue, tag), KVC_OK);
    done[1] = next_completion(queue);
    assert_true(done[1].tag == tag && (done[1].status == KVC_OK || done[1].status == KVC_CANCELLED));
    kvc_buf_free(&done[1].value);
    assert_status(kvc_cq_cancel(NULL, 1), KVC_INVALID);
    assert_status(kvc_interrupt(NULL), KVC_INVALID);
    assert_status(kvc_resume(NULL), KVC_INVALID);
    stop_processes(pids, pid_count);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_interrupt_ends_every_wait_and_reports_the_outcome_of_writes),
        cmocka_unit_test(an_interrupted_write_that_was_not_sent_was_not_done),
        cmocka_unit_test(threads_that_are_busy_all_end),
        cmocka_unit_test(a_cancelled_write_that_was_sent_is_in_doubt_and_can_be_settled),
        cmocka_unit_test(an_unsent_operation_is_cancelled_and_not_done),
        cmocka_unit_test(the_memory_of_a_cancelled_read_is_left_alone),
        cmocka_unit_test(of_several_operations_those_with_the_tag_are_cancelled),
    };

    if (argc < 3 || argc - 2 > MOST_PIDS)
        return 2;
    endpoint = argv[1];
    pid_count = read_pids(argc, argv, pids);
    return cmocka_run_group_tests(tests, stop_all, continue_all);
}
