/* Completion queues with valid and invalid arguments, against a healthy cluster. */
#include "suite.h"

#define LARGE (16 * MIB)

static const char *endpoint;
static kvc_client *client;
static unsigned char *large; /* LARGE + 1 bytes */

static int open_it(void **state)
{
    size_t n;

    (void)state;
    client = open_client(endpoint, NULL);
    large = malloc(LARGE + 1);
    if (large == NULL)
        return 1;
    for (n = 0; n < LARGE + 1; n++)
        large[n] = (unsigned char)(n * 31 + n / 256);
    return 0;
}

static int close_it(void **state)
{
    (void)state;
    free(large);
    return kvc_close(client);
}

static void each_kind_of_operation_ends_as_its_call_would(void **state)
{
    kvc_cq *queue = new_queue(client, 4);
    kvc_completion done;
    kvc_op op;
    char room[8] = "unused";
    uint64_t version;

    (void)state;
    done = run_op(queue, get_op(text("life")));
    assert_int_equal(done.status, KVC_NOT_FOUND);
    assert_non_null(strstr(done.words, "life"));
    assert_true(done.value.data == NULL && done.copies == 0);
    assert_int_equal(sizeof done, 64); /* part of the ABI */
    done = run_op(queue, put_op(text("life"), text("short")));
    assert_true(done.doubt.opaque[0] == 0 && done.doubt.opaque[1] == 0);
    assert_int_equal(done.status, KVC_OK);
    assert_int_equal(done.copies, 2);
    assert_true(done.words == NULL && done.value.data == NULL && done.value.len == 0 && done.value.version > 0);
    version = done.value.version;

    done = run_op(queue, get_op(text("life")));
    assert_int_equal(done.status, KVC_OK);
    assert_true(done.words == NULL && done.value.len == 5 && done.value.version == version && done.copies == 0);
    assert_string_equal(done.value.data, "short"); /* the length excludes the terminating NUL */
    kvc_buf_free(&done.value);

    op = get_op(text("life"));
    op.dst = room;
    op.cap = 5;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_OK);
    assert_true(done.value.data == NULL && done.value.len == 5 && done.value.version == version);
    assert_string_equal(room, "shortd"); /* exactly five bytes are written */

    op = put_op(text("life"), text("long"));
    op.if_version = KVC_ABSENT;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_CONFLICT);
    assert_non_null(done.words);
    assert_true(done.value.data == NULL && done.value.len == 0 && done.value.version == version);
    op.if_version = version;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_OK);
    op = delete_op(text("life"));
    op.if_version = version;
    assert_int_equal(run_op(queue, op).status, KVC_CONFLICT);
    op.if_version = done.value.version;
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_OK);
    assert_int_equal(done.copies, 2);
    assert_int_equal(run_op(queue, delete_op(text("life"))).status, KVC_NOT_FOUND);
    assert_status(kvc_cq_free(queue), KVC_OK);
}

static void keys_and_values_are_any_bytes(void **state)
{
    static char key[65535];
    kvc_cq *queue = new_queue(client, 4);
    kvc_completion done;
    size_t n;

    (void)state;
    for (n = 0; n < sizeof key; n++)
        key[n] = (char)n;
    for (n = 1; n <= sizeof key; n = n == 1 ? 300 : n == 300 ? sizeof key : sizeof key + 1) {
        done = run_op(queue, put_op(bytes(key, n), bytes(key, 256)));
        assert_int_equal(done.status, KVC_OK);
        done = run_op(queue, get_op(bytes(key, n)));
        assert_int_equal(done.value.len, 256);
        assert_memory_equal(done.value.data, key, 256);
        kvc_buf_free(&done.value);
        done = run_op(queue, put_op(bytes(key, n), bytes(NULL, 0)));
        assert_int_equal(done.status, KVC_OK);
        done = run_op(queue, get_op(bytes(key, n)));
        assert_true(done.value.data != NULL && done.value.len == 0);
        kvc_buf_free(&done.value);
        assert_int_equal(run_op(queue, delete_op(bytes(key, n))).status, KVC_OK);
    }
    kvc_cq_free(queue);
}

static void the_largest_values_are_stored_and_read_copied_and_kept(void **state)
{
    kvc_cq *queue = new_queue(client, 4);
    unsigned char *room = malloc(LARGE), *sent = malloc(LARGE);
    kvc_completion done;
    uint32_t flags;
    kvc_op op;

    (void)state;
    assert_true(room != NULL && sent != NULL);
    for (flags = 0; flags <= KVC_KEEP; flags++) {
        memcpy(sent, large + flags, LARGE);
        op = put_op(text("large"), bytes(sent, LARGE));
        op.flags = flags;
        op.timeout_ms = 60000;
        assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
        if (flags == 0)
            memset(sent, 0, LARGE); /* the queue has a copy */
        done = next_completion(queue);
        assert_true(done.status == KVC_OK && done.tag == 1);
        done = run_op(queue, get_op(text("large")));
        assert_int_equal(done.status, KVC_OK);
        assert_int_equal(done.value.len, LARGE);
        assert_memory_equal(done.value.data, large + flags, LARGE);
        kvc_buf_free(&done.value);
        memset(room, 0, LARGE);
        op = get_op(text("large"));
        op.dst = room;
        op.cap = LARGE;
        done = run_op(queue, op);
        assert_true(done.status == KVC_OK && done.value.len == LARGE && done.value.data == NULL);
        assert_memory_equal(room, large + flags, LARGE);
    }
    op = put_op(text("large"), bytes(large, LARGE + 1));
    for (op.flags = 0; op.flags <= KVC_KEEP; op.flags++)
        assert_status(kvc_cq_submit(queue, &op, 2), KVC_TOO_BIG);
    assert_int_equal(run_op(queue, delete_op(text("large"))).status, KVC_OK);
    kvc_cq_free(queue);
    free(room);
    free(sent);
}

static void a_value_that_does_not_fit_returns_its_length(void **state)
{
    kvc_cq *queue = new_queue(client, 4);
    char room[4] = "abc";
    kvc_completion done;
    kvc_op op = get_op(text("four"));

    (void)state;
    assert_int_equal(run_op(queue, put_op(text("four"), text("1234"))).status, KVC_OK);
    op.dst = room;
    for (op.cap = 0; op.cap < 4; op.cap++) {
        done = run_op(queue, op);
        assert_int_equal(done.status, KVC_TOO_BIG);
        assert_true(done.value.data == NULL && done.value.len == 4 && done.value.version > 0);
        assert_non_null(strstr(done.words, "4 bytes"));
        assert_string_equal(room, "abc");
    }
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && done.value.len == 4);
    assert_memory_equal(room, "1234", 4);
    assert_int_equal(run_op(queue, delete_op(text("four"))).status, KVC_OK);
    kvc_cq_free(queue);
}

static void null_and_bad_sizes_are_rejected(void **state)
{
    static char long_key[65536];
    struct { kvc_op op; uint64_t more; } newer = {get_op(text("k")), 0};
    kvc_cq *queue = (kvc_cq *)&newer; /* must stay unchanged */
    kvc_completion done = {.tag = 7};
    kvc_op op;
    uint32_t bad;

    (void)state;
    assert_status(kvc_cq_new(NULL, 1, &queue), KVC_INVALID);
    assert_status(kvc_cq_new(client, 1, NULL), KVC_INVALID);
    assert_status(kvc_cq_new(client, 0, &queue), KVC_INVALID);
    assert_status(kvc_cq_new(client, 65537, &queue), KVC_INVALID);
    assert_status(kvc_cq_new(client, UINT32_MAX, &queue), KVC_INVALID);
    assert_ptr_equal(queue, &newer);
    queue = new_queue(client, 65536);
    op = get_op(text("k"));
    assert_status(kvc_cq_fd(NULL), KVC_INVALID);
    assert_status(kvc_cq_submit(NULL, &op, 1), KVC_INVALID);
    assert_status(kvc_cq_submit(queue, NULL, 1), KVC_INVALID);
    assert_status(kvc_cq_poll(NULL, &done, 1, 0), KVC_INVALID);
    assert_status(kvc_cq_poll(queue, NULL, 1, 0), KVC_INVALID);
    assert_status(kvc_cq_poll(queue, &done, 0, 0), KVC_INVALID);
    assert_status(kvc_cq_free(NULL), KVC_OK);

    for (bad = 0; bad < 8; bad++) { /* too small to contain the kind */
        op.size = bad;
        assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    }
    op.size = UINT32_MAX;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    newer.op.size = sizeof newer;
    newer.more = 1; /* a field of a newer header that is set */
    assert_status(kvc_cq_submit(queue, &newer.op, 1), KVC_INVALID);
    op = get_op(text("k"));
    for (op.kind = 0; op.kind < 6; op.kind = op.kind == 0 ? KVC_OP_DELETE + 1 : op.kind + 1)
        assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = put_op(text("k"), text("v"));
    for (op.flags = 2; op.flags != 0; op.flags <<= 1)
        assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op.flags = KVC_KEEP | 1u << 31;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(text("k"));
    op.cap = 1;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(bytes(NULL, 1));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(bytes(NULL, 0));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(bytes("k", SIZE_MAX));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(bytes(long_key, sizeof long_key));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_TOO_BIG);
    op = put_op(text("k"), bytes(NULL, 1));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = put_op(text("k"), bytes("v", SIZE_MAX));
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(text("k"));
    op.timeout_ms = 60001;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);

    /* None of these operations is in the queue. */
    assert_int_equal(kvc_cq_poll(queue, &done, 1, -1), 0);
    assert_true(done.tag == 7);
    newer.more = 0;
    assert_status(kvc_cq_submit(queue, &newer.op, 1), KVC_OK);
    assert_int_equal(next_completion(queue).status, KVC_NOT_FOUND);
    kvc_cq_free(queue);
}

static void a_full_queue_takes_more_once_it_was_polled(void **state)
{
    const kvc_op op = get_op(text("none"));
    kvc_cq *queue = new_queue(client, 3);
    kvc_completion done[8];
    int n, count;
    uint64_t tags = 0;

    (void)state;
    for (n = 0; n < 3; n++)
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
    assert_status(kvc_cq_submit(queue, &op, 9), KVC_FULL);
    assert_non_null(strstr(kvc_last_error(), "3 operations"));
    /* Completed operations that were not polled count too. */
    for (n = 0; n < 3; n += count) {
        count = kvc_cq_poll(queue, done, 1, TIMEOUT_MS);
        assert_int_equal(count, 1);
        tags |= 1u << done->tag;
        assert_status(kvc_cq_submit(queue, &op, 3 + n), KVC_OK);
        assert_status(kvc_cq_submit(queue, &op, 9), KVC_FULL);
    }
    for (n = 0; n < 3; n += count) {
        int i;
        count = kvc_cq_poll(queue, done, 8, TIMEOUT_MS);
        assert_in_range(count, 1, 3);
        for (i = 0; i < count; i++)
            tags |= 1u << done[i].tag;
    }
    assert_int_equal(tags, 0x3f); /* each once */
    kvc_cq_free(queue);
}

static void sixty_four_mebibytes_are_full_too(void **state)
{
    kvc_cq *queue = new_queue(client, 100);
    char key[32];
    int n, count = 0, status = KVC_OK;

    (void)state;
    for (n = 0; n < 8 && status == KVC_OK; n++) {
        kvc_op op;
        snprintf(key, sizeof key, "full-%d", n);
        op = put_op(text(key), bytes(large, LARGE));
        op.flags = KVC_KEEP;
        op.timeout_ms = 60000;
        status = kvc_cq_submit(queue, &op, n);
        count += status == KVC_OK;
    }
    assert_int_equal(status, KVC_FULL);
    assert_int_equal(count, 3); /* the keys count as well */
    while (count-- > 0) {
        const kvc_completion done = next_completion(queue);
        assert_int_equal(done.status, KVC_OK);
        snprintf(key, sizeof key, "full-%d", (int)done.tag);
        assert_status(kvc_delete(client, text(key), NULL, NULL), KVC_OK);
    }
    kvc_cq_free(queue);
}

/* Submits reads of one key and polls the first completion. The responses of one server arrive together, so the library
   has completed other operations by then. */
static void await_answers(kvc_cq *queue, int answers)
{
    const kvc_op op = get_op(text("last"));
    kvc_completion done;
    int n;

    for (n = 0; n < answers; n++)
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
    done = next_completion(queue);
    assert_int_equal(done.status, KVC_OK);
    kvc_buf_free(&done.value);
}

static void completions_left_by_one_poll_are_returned_by_the_next_ones(void **state)
{
    enum { ANSWERS = 200 };
    kvc_cq *queue = new_queue(client, ANSWERS);
    kvc_completion done[3];
    int n, count, fd, taken = 1;

    (void)state;
    assert_int_equal(run_op(queue, put_op(text("last"), text("value"))).status, KVC_OK);
    await_answers(queue, ANSWERS);
    while (taken < ANSWERS) {
        /* Gets the descriptor each time, as some loops do. */
        fd = kvc_cq_fd(queue);
        assert_true(fd >= 0);
        assert_true(is_readable(fd, TIMEOUT_MS));
        count = kvc_cq_poll(queue, done, 3, 0);
        assert_in_range(count, 0, 3);
        for (n = 0; n < count; n++) {
            assert_string_equal(done[n].value.data, "value");
            kvc_buf_free(&done[n].value);
        }
        taken += count;
    }
    assert_int_equal(kvc_cq_poll(queue, done, 3, -1), 0);
    assert_int_equal(run_op(queue, delete_op(text("last"))).status, KVC_OK);
    kvc_cq_free(queue);
}

static void the_descriptor_is_readable_when_there_is_work(void **state)
{
    const kvc_op op = get_op(text("none"));
    kvc_cq *queue = new_queue(client, 8);
    const int fd = kvc_cq_fd(queue);
    int64_t start = now_ms();
    kvc_completion done;
    int count = 0, n;

    (void)state;
    assert_true(fd >= 0);
    assert_false(is_readable(fd, 0));
    /* The queue is empty: even a poll without a timeout returns at once. */
    assert_int_equal(kvc_cq_poll(queue, &done, 1, -1), 0);
    assert_int_equal(kvc_cq_poll(queue, &done, 1, INT32_MAX), 0);
    assert_true(now_ms() - start < SLACK_MS);
    for (n = 0; n < 5; n++) {
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
        assert_true(is_readable(fd, TIMEOUT_MS)); /* to send it */
        assert_int_equal(kvc_cq_fd(queue), fd);
        assert_true(is_readable(fd, TIMEOUT_MS));
        start = now_ms();
        do {
            assert_true(is_readable(fd, TIMEOUT_MS)); /* for responses */
            count = kvc_cq_poll(queue, &done, 1, 0);
            assert_in_range(count, 0, 1);
            assert_true(now_ms() - start < TIMEOUT_MS);
        } while (count == 0);
        assert_true(done.tag == (uint64_t)n && done.status == KVC_NOT_FOUND);
        assert_false(is_readable(fd, 0));
    }
    kvc_cq_free(queue);
}

static void words_live_until_the_next_poll(void **state)
{
    kvc_cq *queue = new_queue(client, 8);
    kvc_completion done[8];
    char key[32];
    int n, i, count;

    (void)state;
    for (n = 0; n < 8; n++) {
        kvc_op op;
        snprintf(key, sizeof key, "nobody-%d", n);
        op = get_op(text(key));
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
    }
    for (n = 0; n < 8; n += count) {
        count = kvc_cq_poll(queue, done, 8, TIMEOUT_MS);
        assert_in_range(count, 1, 8);
        for (i = 0; i < count; i++) {
            snprintf(key, sizeof key, "nobody-%d", (int)done[i].tag);
            assert_non_null(strstr(done[i].words, key));
        }
    }
    kvc_cq_free(queue);
}

/* Abandons operations in flight at every stage. Their memory is freed before the queue's sockets could have sent it.
   The sanitizers and valgrind would report an access after that. */
static void a_queue_that_is_freed_touches_nothing_any_more(void **state)
{
    kvc_completion done;
    int polls, n;

    (void)state;
    assert_status(kvc_put(client, text("read"), bytes(large, MIB), NULL, NULL), KVC_OK);
    for (polls = 0; polls < 12; polls++) {
        kvc_cq *queue = new_queue(client, 16);
        unsigned char *kept = malloc(LARGE), *room = malloc(MIB);
        kvc_op put, get;
        assert_true(kept != NULL && room != NULL);
        memset(kept, 1, LARGE);
        put = put_op(text("given up"), bytes(kept, LARGE));
        put.flags = KVC_KEEP;
        assert_status(kvc_cq_submit(queue, &put, 1), KVC_OK);
        get = get_op(text("read"));
        get.dst = room;
        get.cap = MIB;
        assert_status(kvc_cq_submit(queue, &get, 2), KVC_OK);
        get = get_op(text("read"));
        assert_status(kvc_cq_submit(queue, &get, 3), KVC_OK);
        for (n = 0; n < polls; n++) {
            if (kvc_cq_poll(queue, &done, 1, n % 2) == 1)
                kvc_buf_free(&done.value);
        }
        assert_status(kvc_cq_free(queue), KVC_OK);
        free(kept);
        free(room);
    }
    assert_status(kvc_delete(client, text("read"), NULL, NULL), KVC_OK);
    n = kvc_delete(client, text("given up"), NULL, NULL);
    assert_true(n == KVC_OK || n == KVC_NOT_FOUND);
}

static void values_of_unpolled_completions_are_freed_with_the_queue(void **state)
{
    const kvc_op op = get_op(text("untaken"));
    kvc_cq *queue = new_queue(client, 64);
    kvc_completion done;
    int n;

    (void)state;
    assert_status(kvc_put(client, text("untaken"), bytes(large, MIB), NULL, NULL), KVC_OK);
    for (n = 0; n < 20; n++)
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
    for (n = 0; n < 3; n++) {
        done = next_completion(queue);
        assert_int_equal(done.value.len, MIB);
        kvc_buf_free(&done.value);
    }
    assert_status(kvc_cq_free(queue), KVC_OK);
    assert_status(kvc_delete(client, text("untaken"), NULL, NULL), KVC_OK);
}

/* The values that were received but not polled take at most 64 MiB, plus one value and one receive. In addition, one
   value is arriving from each server. */
static void values_of_unpolled_completions_are_received_only_up_to_a_limit(void **state)
{
    enum { GETS = 1000, KEYS = 16, BYTES = MIB / 4 };
    kvc_cq *queue = new_queue(client, GETS);
    const size_t before = allocated();
    char keys[KEYS][32];
    kvc_completion done;
    size_t most = 0;
    kvc_op op;
    int n;

    (void)state;
    for (n = 0; n < KEYS; n++) {
        snprintf(keys[n], sizeof keys[n], "untaken-%d", n);
        assert_status(kvc_put(client, text(keys[n]), bytes(large, BYTES), NULL, NULL), KVC_OK);
    }
    for (n = 0; n < GETS; n++) {
        op = get_op(text(keys[n % KEYS]));
        op.timeout_ms = 60000;
        assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
    }
    for (n = 0; n < GETS; n++) {
        done = next_completion(queue);
        assert_int_equal(done.status, KVC_OK);
        most = allocated() > most ? allocated() : most;
        kvc_buf_free(&done.value);
    }
    assert_in_range(most, before, before + (64 + 17 + 3 * 17) * MIB);
    assert_status(kvc_cq_free(queue), KVC_OK);
    for (n = 0; n < KEYS; n++)
        assert_status(kvc_delete(client, text(keys[n]), NULL, NULL), KVC_OK);
}

static void the_handle_may_be_closed_before_its_queues(void **state)
{
    kvc_client *brief = open_client(endpoint, NULL);
    kvc_cq *first = new_queue(brief, 4), *second = new_queue(brief, 4);
    const kvc_op op = put_op(text("closed"), text("x"));

    (void)state;
    assert_status(kvc_cq_submit(first, &op, 1), KVC_OK);
    assert_status(kvc_close(brief), KVC_OK);
    assert_int_equal(next_completion(first).status, KVC_OK);
    assert_int_equal(run_op(second, delete_op(text("closed"))).status, KVC_OK);
    assert_status(kvc_cq_free(first), KVC_OK);
    assert_status(kvc_cq_free(second), KVC_OK);
}

static void a_child_is_rejected_and_its_parent_continues(void **state)
{
    const kvc_op op = put_op(text("fork"), text("x"));
    kvc_cq *queue = new_queue(client, 4), *other = NULL;
    kvc_completion done;
    pid_t child;

    (void)state;
    assert_int_equal(run_op(queue, op).status, KVC_OK);
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
    child = fork();
    if (child == 0) {
        const int good = kvc_cq_new(client, 4, &other) == KVC_FORKED && other == NULL &&
                         kvc_cq_fd(queue) == KVC_FORKED && kvc_cq_submit(queue, &op, 2) == KVC_FORKED &&
                         kvc_cq_poll(queue, &done, 1, 0) == KVC_FORKED && kvc_cq_free(queue) == KVC_FORKED;
        end_child(good);
    }
    await_child(child);
    done = next_completion(queue);
    assert_true(done.tag == 1 && done.status == KVC_OK);
    assert_int_equal(run_op(queue, delete_op(text("fork"))).status, KVC_OK);
    kvc_cq_free(queue);
}

static void *hammer(void *queue)
{
    const kvc_op op = get_op(text("hammer"));
    kvc_completion done[8];
    int n, i, status;

    for (n = 0; n < 2000; n++) {
        status = kvc_cq_submit(queue, &op, n);
        if (status != KVC_OK && status != KVC_FULL && status != KVC_INVALID)
            return (void *)"submit";
        status = kvc_cq_poll(queue, done, 8, n % 2);
        if (status < 0 && status != KVC_INVALID)
            return (void *)"poll";
        for (i = 0; i < status; i++) {
            if (done[i].status != KVC_OK || done[i].value.len != 5)
                return (void *)"completion";
            kvc_buf_free(&done[i].value);
        }
        status = kvc_cq_fd(queue);
        if (status < 0 && status != KVC_INVALID)
            return (void *)"fd";
    }
    return NULL;
}

/* A programming error that is reported and does no harm. */
static void threads_that_use_a_queue_at_once_are_rejected(void **state)
{
    kvc_cq *queue = new_queue(client, 64);
    pthread_t threads[2];
    kvc_completion done;
    void *wrong;
    int n;

    (void)state;
    assert_int_equal(run_op(queue, put_op(text("hammer"), text("value"))).status, KVC_OK);
    for (n = 0; n < 2; n++)
        assert_int_equal(pthread_create(&threads[n], NULL, hammer, queue), 0);
    for (n = 0; n < 2; n++) {
        assert_int_equal(pthread_join(threads[n], &wrong), 0);
        if (wrong != NULL)
            fail_msg("%s", (const char *)wrong);
    }
    while (kvc_cq_poll(queue, &done, 1, -1) == 1)
        kvc_buf_free(&done.value);
    assert_int_equal(run_op(queue, delete_op(text("hammer"))).status, KVC_OK);
    kvc_cq_free(queue);
}

static void operations_without_a_listener_are_unavailable_at_their_deadlines(void **state)
{
    kvc_client *nobody = open_client("127.0.0.1:1", NULL);
    kvc_cq *queue = new_queue(nobody, 4);
    const int64_t start = now_ms();
    kvc_op op = put_op(text("k"), text("v"));
    kvc_completion done;
    int n;

    (void)state;
    op.timeout_ms = 300;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
    op.kind = KVC_OP_GET;
    assert_status(kvc_cq_submit(queue, &op, 2), KVC_OK);
    for (n = 0; n < 2; n++) {
        done = next_completion(queue);
        assert_int_equal(done.status, KVC_UNAVAILABLE);
        assert_non_null(strstr(done.words, "127.0.0.1:1"));
    }
    assert_true(now_ms() - start < 300 + SLACK_MS);
    kvc_cq_free(queue);
    kvc_close(nobody);
}

/* Many more operations than a session's window, of all kinds, in one queue. */
static void thousands_of_operations_end_once_each(void **state)
{
    enum { MANY = 4000 };
    static unsigned char ended[MANY];
    kvc_cq *queue = new_queue(client, MANY);
    kvc_completion done[100];
    char key[32];
    int kind, n, i, count;

    (void)state;
    for (kind = KVC_OP_PUT; kind != 0; kind = kind == KVC_OP_PUT ? KVC_OP_GET : kind == KVC_OP_GET ? KVC_OP_DELETE : 0) {
        memset(ended, 0, sizeof ended);
        for (n = 0; n < MANY; n++) {
            kvc_op op;
            snprintf(key, sizeof key, "many-%d", n);
            op = put_op(text(key), text(key));
            op.kind = kind;
            op.timeout_ms = 60000;
            assert_status(kvc_cq_submit(queue, &op, n), KVC_OK);
        }
        for (n = 0; n < MANY; n += count) {
            count = kvc_cq_poll(queue, done, 100, TIMEOUT_MS);
            assert_in_range(count, 1, 100);
            for (i = 0; i < count; i++) {
                assert_int_equal(done[i].status, KVC_OK);
                assert_int_equal(ended[done[i].tag]++, 0);
                snprintf(key, sizeof key, "many-%d", (int)done[i].tag);
                if (kind == KVC_OP_GET)
                    assert_string_equal(done[i].value.data, key);
                kvc_buf_free(&done[i].value);
            }
        }
    }
    kvc_cq_free(queue);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_of_operation_ends_as_its_call_would),
        cmocka_unit_test(keys_and_values_are_any_bytes),
        cmocka_unit_test(the_largest_values_are_stored_and_read_copied_and_kept),
        cmocka_unit_test(a_value_that_does_not_fit_returns_its_length),
        cmocka_unit_test(null_and_bad_sizes_are_rejected),
        cmocka_unit_test(a_full_queue_takes_more_once_it_was_polled),
        cmocka_unit_test(sixty_four_mebibytes_are_full_too),
        cmocka_unit_test(completions_left_by_one_poll_are_returned_by_the_next_ones),
        cmocka_unit_test(the_descriptor_is_readable_when_there_is_work),
        cmocka_unit_test(words_live_until_the_next_poll),
        cmocka_unit_test(a_queue_that_is_freed_touches_nothing_any_more),
        cmocka_unit_test(values_of_unpolled_completions_are_freed_with_the_queue),
        cmocka_unit_test(values_of_unpolled_completions_are_received_only_up_to_a_limit),
        cmocka_unit_test(the_handle_may_be_closed_before_its_queues),
        cmocka_unit_test(a_child_is_rejected_and_its_parent_continues),
        cmocka_unit_test(threads_that_use_a_queue_at_once_are_rejected),
        cmocka_unit_test(operations_without_a_listener_are_unavailable_at_their_deadlines),
        cmocka_unit_test(thousands_of_operations_end_once_each),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, open_it, close_it);
}
