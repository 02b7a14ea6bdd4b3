/* Blocking calls with valid and invalid arguments, against a healthy cluster. */
#include "suite.h"

#include <fcntl.h>
#include <sys/socket.h>

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

static void names_and_versions_are_those_of_the_header(void **state)
{
    (void)state;
    assert_int_equal(kvc_version(), KVC_VERSION);
    assert_string_equal(kvc_status_name(KVC_OK), "KVC_OK");
    assert_string_equal(kvc_status_name(KVC_PANIC), "KVC_PANIC");
    assert_string_equal(kvc_status_name(1), "KVC_UNKNOWN");
    assert_string_equal(kvc_status_name(INT32_MIN), "KVC_UNKNOWN");
}

static void a_value_lives_until_it_is_deleted(void **state)
{
    kvc_result written, deleted;
    kvc_buf got;

    (void)state;
    assert_status(kvc_get(client, text("life"), NULL, &got), KVC_NOT_FOUND);
    assert_non_null(strstr(kvc_last_error(), "life"));
    memset(&written, 0x5a, sizeof written);
    assert_status(kvc_put(client, text("life"), text("short"), NULL, &written), KVC_OK);
    assert_int_equal(written.copies, 2);
    assert_int_equal(sizeof written, 32); /* part of the ABI */
    assert_true(written.reserved == 0 && written.doubt.opaque[0] == 0 && written.doubt.opaque[1] == 0);
    assert_status(kvc_get(client, text("life"), NULL, &got), KVC_OK);
    /* The length excludes the terminating NUL. */
    assert_int_equal(got.len, 5);
    assert_string_equal(got.data, "short");
    assert_true(got.version == written.version);
    kvc_buf_free(&got);
    assert_status(kvc_delete(client, text("life"), NULL, &deleted), KVC_OK);
    assert_true(deleted.version > written.version);
    assert_status(kvc_delete(client, text("life"), NULL, NULL), KVC_NOT_FOUND);
}

static void a_write_can_demand_a_version(void **state)
{
    kvc_op_options options = within(0);
    kvc_result first, second, found;

    (void)state;
    options.if_version = KVC_ABSENT;
    assert_status(kvc_put(client, text("cas"), text("1"), &options, &first), KVC_OK);
    memset(&found, 0x5a, sizeof found);
    assert_status(kvc_put(client, text("cas"), text("2"), &options, &found), KVC_CONFLICT);
    assert_true(found.version == first.version && found.copies == 0 && found.reserved == 0);
    options.if_version = first.version;
    assert_status(kvc_put(client, text("cas"), text("2"), &options, &second), KVC_OK);
    assert_status(kvc_put(client, text("cas"), text("3"), &options, NULL), KVC_CONFLICT);
    assert_status(kvc_delete(client, text("cas"), &options, &found), KVC_CONFLICT);
    assert_true(found.version == second.version);
    options.if_version = second.version;
    assert_status(kvc_delete(client, text("cas"), &options, NULL), KVC_OK);
    /* The version of an absent key is zero; other failures leave the result unchanged. */
    assert_status(kvc_put(client, text("cas"), text("4"), &options, &found), KVC_CONFLICT);
    assert_true(found.version == 0);
    assert_status(kvc_delete(client, text("cas"), NULL, &first), KVC_NOT_FOUND);
    assert_true(first.copies == 2); /* unchanged */
}

static void bytes_of_every_kind_come_back(void **state)
{
    static char key[65535];
    const size_t lengths[] = {0, 1, 4096, MIB, 16 * MIB};
    unsigned char *sent = malloc(16 * MIB), *room = malloc(16 * MIB);
    kvc_buf got;
    size_t n, len;

    (void)state;
    assert_true(sent != NULL && room != NULL);
    for (n = 0; n < sizeof key; n++)
        key[n] = (char)n;
    for (n = 0; n < 16 * MIB; n++)
        sent[n] = (unsigned char)(n * 31 + n / 256);
    for (n = 0; n < sizeof lengths / sizeof *lengths; n++) {
        assert_status(kvc_put(client, bytes(key, sizeof key), bytes(sent, lengths[n]), NULL, NULL), KVC_OK);
        assert_status(kvc_get(client, bytes(key, sizeof key), NULL, &got), KVC_OK);
        assert_int_equal(got.len, lengths[n]);
        assert_memory_equal(got.data, sent, lengths[n]);
        kvc_buf_free(&got);
        memset(room, 0, lengths[n]);
        assert_status(kvc_get_into(client, bytes(key, sizeof key), room, lengths[n], &len, NULL, NULL), KVC_OK);
        assert_int_equal(len, lengths[n]);
        assert_memory_equal(room, sent, len);
    }
    assert_status(kvc_put(client, text("long"), bytes(sent, 16 * MIB + 1), NULL, NULL), KVC_TOO_BIG);
    assert_status(kvc_delete(client, bytes(key, sizeof key), NULL, NULL), KVC_OK);
    free(sent);
    free(room);
}

static void a_value_that_does_not_fit_returns_its_length(void **state)
{
    char room[4] = "abc";
    size_t len = 0;
    kvc_result result;

    (void)state;
    assert_status(kvc_put(client, text("four"), text("1234"), NULL, NULL), KVC_OK);
    assert_status(kvc_get_into(client, text("four"), room, 3, &len, NULL, NULL), KVC_TOO_BIG);
    assert_int_equal(len, 4);
    assert_string_equal(room, "abc");
    assert_status(kvc_get_into(client, text("four"), NULL, 0, &len, NULL, NULL), KVC_TOO_BIG);
    assert_status(kvc_get_into(client, text("four"), room, 4, &len, NULL, &result), KVC_OK);
    assert_memory_equal(room, "1234", 4);
    assert_true(result.version > 0 && result.copies == 0);
    assert_status(kvc_delete(client, text("four"), NULL, NULL), KVC_OK);
}

static void a_part_of_a_value_can_be_read(void **state)
{
    const struct {
        size_t offset, cap, bytes;
    } parts[] = {{0, 0, 0}, {0, 3, 3}, {7, 3, 3}, {7, 9, 3}, {10, 9, 0}, {SIZE_MAX, 9, 0}, {0, SIZE_MAX >> 1, 10}};
    char room[11];
    size_t n, len;
    kvc_result written, result;

    (void)state;
    assert_status(kvc_put(client, text("ten"), text("0123456789"), NULL, &written), KVC_OK);
    for (n = 0; n < sizeof parts / sizeof *parts; n++) {
        memset(room, 'x', sizeof room);
        assert_status(kvc_get_range(client, text("ten"), parts[n].offset, room, parts[n].cap, &len, NULL, &result),
                      KVC_OK);
        assert_true(len == 10 && result.version == written.version && result.copies == 0);
        assert_memory_equal(room, &"0123456789"[10 - parts[n].bytes < parts[n].offset ? 10 - parts[n].bytes
                                                                                      : parts[n].offset],
                            parts[n].bytes);
        assert_true(room[parts[n].bytes] == 'x');
    }
    len = 0;
    assert_status(kvc_length(client, text("ten"), &len, NULL, &result), KVC_OK);
    assert_true(len == 10 && result.version == written.version);
    assert_status(kvc_get_range(client, text("ten"), 0, room, 4, NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get_range(client, text("ten"), 0, NULL, 4, &len, NULL, NULL), KVC_INVALID);
    assert_status(kvc_length(client, text("ten"), NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_delete(client, text("ten"), NULL, NULL), KVC_OK);
    assert_status(kvc_get_range(client, text("ten"), 0, room, 4, &len, NULL, NULL), KVC_NOT_FOUND);
    assert_status(kvc_length(client, text("ten"), &len, NULL, NULL), KVC_NOT_FOUND);
}

/* A buffer is freed by kvc_buf_free, even twice, or its memory is taken out and freed by kvc_free. */
static void a_buffer_belongs_to_the_caller(void **state)
{
    kvc_buf got;
    void *taken;

    (void)state;
    assert_status(kvc_put(client, text("owned"), text("mine"), NULL, NULL), KVC_OK);
    assert_status(kvc_get(client, text("owned"), NULL, &got), KVC_OK);
    kvc_buf_free(&got);
    assert_true(got.data == NULL && got.len == 0 && got.version == 0);
    kvc_buf_free(&got);
    assert_status(kvc_get(client, text("owned"), NULL, &got), KVC_OK);
    taken = got.data;
    assert_status(kvc_delete(client, text("owned"), NULL, NULL), KVC_OK);
    assert_string_equal(taken, "mine");
    kvc_free(taken);
    kvc_buf_free(NULL);
    kvc_free(NULL);
}

static void null_and_bad_sizes_are_rejected(void **state)
{
    static char long_key[65536];
    const kvc_slice key = text("key"), null = bytes(NULL, 3), huge = bytes("k", SIZE_MAX);
    kvc_options options;
    kvc_op_options bad = within(0);
    kvc_client *other = NULL;
    kvc_buf got = {NULL, 7, 7};
    char room[1];
    size_t len;

    (void)state;
    assert_status(kvc_put(NULL, key, key, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get(NULL, key, NULL, &got), KVC_INVALID);
    assert_status(kvc_get_into(NULL, key, room, 1, &len, NULL, NULL), KVC_INVALID);
    assert_status(kvc_delete(NULL, key, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get(client, key, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get_into(client, key, room, 1, NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get_into(client, key, NULL, 1, &len, NULL, NULL), KVC_INVALID);
    assert_status(kvc_put(client, null, key, NULL, NULL), KVC_INVALID);
    assert_status(kvc_put(client, key, null, NULL, NULL), KVC_INVALID);
    assert_status(kvc_put(client, huge, key, NULL, NULL), KVC_INVALID);
    assert_status(kvc_put(client, key, huge, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get(client, bytes("", 0), NULL, &got), KVC_INVALID);
    assert_status(kvc_get(client, bytes(long_key, sizeof long_key), NULL, &got), KVC_TOO_BIG);
    assert_true(got.data == NULL && got.len == 7 && got.version == 7);

    for (bad.size = 0; bad.size < 4; bad.size++)
        assert_status(kvc_get(client, key, &bad, &got), KVC_INVALID);
    bad.size = UINT32_MAX;
    assert_status(kvc_get(client, key, &bad, &got), KVC_INVALID);
    bad = within(60001);
    assert_status(kvc_get(client, key, &bad, &got), KVC_INVALID);

    assert_status(kvc_options_init(NULL, sizeof options), KVC_INVALID);
    assert_status(kvc_options_init(&options, 0), KVC_INVALID);
    assert_status(kvc_options_init(&options, SIZE_MAX), KVC_INVALID);
    assert_status(kvc_options_init(&options, sizeof options), KVC_OK);
    assert_int_equal(options.size, sizeof options);
    options.connections_per_shard = UINT32_MAX;
    assert_status(kvc_open(endpoint, &options, &other), KVC_INVALID);
    assert_status(kvc_options_init(&options, sizeof options), KVC_OK);
    options.size = 3;
    assert_status(kvc_open(endpoint, &options, &other), KVC_INVALID);
    options.size = (uint32_t)sizeof options;
    options.timeout_ms = 60001;
    assert_status(kvc_open(endpoint, &options, &other), KVC_INVALID);
    options.timeout_ms = 0;
    options.connect_timeout_ms = 60001;
    assert_status(kvc_open(endpoint, &options, &other), KVC_INVALID);
    assert_status(kvc_open(NULL, NULL, &other), KVC_INVALID);
    assert_status(kvc_open("", NULL, &other), KVC_INVALID);
    assert_status(kvc_open("nonsense", NULL, &other), KVC_INVALID);
    assert_status(kvc_open("\xff:1", NULL, &other), KVC_INVALID);
    assert_status(kvc_open(endpoint, NULL, NULL), KVC_INVALID);
    assert_null(other);
    assert_status(kvc_close(NULL), KVC_OK);
}

static void a_call_without_a_listener_is_unavailable_at_its_deadline(void **state)
{
    const kvc_op_options options = within(300);
    kvc_client *nobody = open_client("127.0.0.1:1", NULL);
    const int64_t start = now_ms();
    kvc_buf got;

    (void)state;
    assert_status(kvc_put(nobody, text("k"), text("v"), &options, NULL), KVC_UNAVAILABLE);
    assert_status(kvc_get(nobody, text("k"), &options, &got), KVC_UNAVAILABLE);
    assert_true(now_ms() - start < 2 * (300 + SLACK_MS));
    kvc_close(nobody);
}

/* The cluster was started with a small memory limit. The test removes the values that filled the memory. */
static void a_full_cluster_is_out_of_space(void **state)
{
    char *value = calloc(16, MIB), key[32];
    int n, status = KVC_OK;
    kvc_slice name;
    kvc_cq *queue;
    kvc_op put;

    (void)state;
    assert_non_null(value);
    for (n = 0; n < 64 && status == KVC_OK; n++) {
        snprintf(key, sizeof key, "fill-%d", n);
        status = kvc_put(client, text(key), bytes(value, 16 * MIB), NULL, NULL);
    }
    assert_status(status, KVC_OUT_OF_SPACE);
    /* A batch and a queue report the same status. */
    name = text(key);
    put = put_op(name, bytes(value, 16 * MIB));
    assert_status(kvc_mput(client, &name, &put.value, 1, &status, NULL), KVC_OUT_OF_SPACE);
    assert_int_equal(status, KVC_OUT_OF_SPACE);
    queue = new_queue(client, 1);
    assert_int_equal(run_op(queue, put).status, KVC_OUT_OF_SPACE);
    kvc_cq_free(queue);
    while (n-- > 0) {
        snprintf(key, sizeof key, "fill-%d", n);
        status = kvc_delete(client, text(key), NULL, NULL);
        assert_true(status == KVC_OK || status == KVC_NOT_FOUND);
    }
    assert_status(kvc_put(client, text("fits"), text("again"), NULL, NULL), KVC_OK);
    free(value);
}

static void *count_to_ten(void *argument)
{
    char key[32], room[32];
    size_t len;
    int n;

    for (n = 0; n < 10; n++) {
        const int size = snprintf(key, sizeof key, "thread-%p-%d", argument, n);
        if (kvc_put(client, text(key), text(key), NULL, NULL) != KVC_OK ||
            kvc_get_into(client, text(key), room, sizeof room, &len, NULL, NULL) != KVC_OK ||
            len != (size_t)size || memcmp(room, key, len) != 0 ||
            kvc_delete(client, text(key), NULL, NULL) != KVC_OK ||
            kvc_delete(client, text(key), NULL, NULL) != KVC_NOT_FOUND ||
            strstr(kvc_last_error(), key) == NULL) /* the message of this thread, not of another */
            return argument;
    }
    return NULL;
}

static void sixty_four_threads_share_a_handle(void **state)
{
    (void)state;
    in_threads(64, count_to_ten);
}

static void a_child_opens_a_handle_of_its_own(void **state)
{
    pid_t child;
    kvc_buf got;

    (void)state;
    assert_status(kvc_put(client, text("fork"), text("before"), NULL, NULL), KVC_OK);
    child = fork();
    if (child == 0) {
        kvc_client *own = NULL;
        int good = kvc_get(client, text("fork"), NULL, &got) == KVC_FORKED &&
                   kvc_close(client) == KVC_FORKED && kvc_open(endpoint, NULL, &own) == KVC_OK &&
                   kvc_put(own, text("fork"), text("after"), NULL, NULL) == KVC_OK &&
                   kvc_close(own) == KVC_OK;
        end_child(good);
    }
    await_child(child);
    assert_status(kvc_get(client, text("fork"), NULL, &got), KVC_OK);
    assert_string_equal(got.data, "after");
    kvc_buf_free(&got);
}

static int count_threads(void)
{
    DIR *threads = opendir("/proc/self/task");
    struct dirent *entry;
    int count = 0;

    assert_non_null(threads);
    while ((entry = readdir(threads)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(threads);
    return count;
}

static void no_thread_is_started_and_no_signal_is_taken(void **state)
{
    struct sigaction before[NSIG], after;
    const int threads = count_threads();
    kvc_client *other;
    kvc_cq *queue;
    kvc_buf got;
    int n, masked;

    (void)state;
    for (n = 1; n < NSIG; n++)
        sigaction(n, NULL, &before[n]); /* fails for the two signals that the C library reserves */
    other = open_client(endpoint, NULL);
    queue = new_queue(other, 4);
    assert_status(kvc_put(other, text("quiet"), text("v"), NULL, NULL), KVC_OK);
    assert_status(kvc_get(other, text("quiet"), NULL, &got), KVC_OK);
    kvc_buf_free(&got);
    assert_int_equal(run_op(queue, delete_op(text("quiet"))).status, KVC_OK);
    assert_int_equal(count_threads(), threads);
    for (n = 1; n < NSIG; n++) {
        if (sigaction(n, NULL, &after) != 0)
            continue;
        assert_true(after.sa_handler == before[n].sa_handler && after.sa_flags == before[n].sa_flags);
        for (masked = 1; masked < NSIG; masked++)
            assert_int_equal(sigismember(&after.sa_mask, masked), sigismember(&before[n].sa_mask, masked));
    }
    kvc_cq_free(queue);
    kvc_close(other);
}

/* A SIGPIPE would end this program. */
static void writes_to_closed_sockets_raise_no_signal(void **state)
{
    enum { FDS = 256, ROUNDS = 20 };
    char was_open[FDS];
    struct sigaction disposition;
    kvc_client *other;
    kvc_cq *queue;
    int fd, round, closed = 0;

    (void)state;
    assert_int_equal(sigaction(SIGPIPE, NULL, &disposition), 0);
    assert_true(disposition.sa_handler == SIG_DFL);
    for (fd = 0; fd < FDS; fd++)
        was_open[fd] = fcntl(fd, F_GETFD) >= 0;
    other = open_client(endpoint, NULL);
    queue = new_queue(other, 1);
    for (round = 0; round < ROUNDS; round++) {
        assert_status(kvc_put(other, text("pipe"), text("v"), NULL, NULL), KVC_OK);
        assert_int_equal(run_op(queue, put_op(text("pipe"), text("v"))).status, KVC_OK);
        /* Shuts down the connections of the handle and the queue; fails for other descriptors. */
        for (fd = 0; fd < FDS; fd++)
            closed += !was_open[fd] && shutdown(fd, SHUT_WR) == 0;
    }
    assert_true(closed >= 2 * ROUNDS);
    assert_status(kvc_delete(other, text("pipe"), NULL, NULL), KVC_OK);
    kvc_cq_free(queue);
    kvc_close(other);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_versions_are_those_of_the_header),
        cmocka_unit_test(a_value_lives_until_it_is_deleted),
        cmocka_unit_test(a_write_can_demand_a_version),
        cmocka_unit_test(bytes_of_every_kind_come_back),
        cmocka_unit_test(a_value_that_does_not_fit_returns_its_length),
        cmocka_unit_test(a_part_of_a_value_can_be_read),
        cmocka_unit_test(a_buffer_belongs_to_the_caller),
        cmocka_unit_test(null_and_bad_sizes_are_rejected),
        cmocka_unit_test(a_call_without_a_listener_is_unavailable_at_its_deadline),
        cmocka_unit_test(no_thread_is_started_and_no_signal_is_taken),
        cmocka_unit_test(writes_to_closed_sockets_raise_no_signal),
        cmocka_unit_test(a_full_cluster_is_out_of_space),
        cmocka_unit_test(sixty_four_threads_share_a_handle),
        cmocka_unit_test(a_child_opens_a_handle_of_its_own),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, open_it, close_it);
}
