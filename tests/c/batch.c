/* Batches with valid and invalid arguments, against a healthy cluster. */
#include "suite.h"


#define MANY 500
#define LARGE 6 /* values of 16 MiB: more than may be in flight at once */

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

static void remove_all(const kvc_slice *keys, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++)
        assert_status(kvc_delete(client, keys[i], NULL, NULL), KVC_OK);
}

/* Keys with any bytes, including NUL, up to the maximum length; values of 0 to 8 bytes. */
static void many_keys_are_stored_and_read_in_one_call(void **state)
{
    static char names[MANY][8], longest[65535];
    static kvc_slice keys[MANY], values[MANY];
    static kvc_buf out[MANY];
    static int statuses[MANY];
    size_t i;

    (void)state;
    for (i = 0; i < MANY; i++) {
        const char name[8] = {'b', 0, '\n', (char)0xff, (char)i, (char)(i >> 8), 0, 0};
        memcpy(names[i], name, sizeof name);
        keys[i] = bytes(names[i], sizeof names[i]);
        values[i] = bytes(names[i], i % 9);
        statuses[i] = 1;
    }
    memset(longest, 'l', sizeof longest);
    keys[7] = bytes(longest, sizeof longest);
    values[0] = bytes(NULL, 0);
    assert_status(kvc_mput(client, keys, values, MANY, statuses, NULL), KVC_OK);
    for (i = 0; i < MANY; i++) {
        assert_int_equal(statuses[i], KVC_OK);
        statuses[i] = 1;
    }
    assert_status(kvc_mget(client, keys, MANY, out, statuses, NULL), KVC_OK);
    for (i = 0; i < MANY; i++) {
        assert_int_equal(statuses[i], KVC_OK);
        assert_int_equal(out[i].len, values[i].len);
        assert_non_null(out[i].data);
        assert_memory_equal(out[i].data, names[i], out[i].len);
        assert_int_equal(((char *)out[i].data)[out[i].len], 0);
        assert_true(out[i].version > 0);
        kvc_buf_free(&out[i]);
        assert_null(out[i].data);
    }
    remove_all(keys, MANY);
}

static void unreadable_keys_are_empty_and_have_a_status(void **state)
{
    const kvc_slice keys[] = {text("there"), text("missing"), text("there"), text("missing too")};
    kvc_buf out[4];
    int statuses[4], i;

    (void)state;
    memset(out, 0x5a, sizeof out);
    assert_status(kvc_put(client, keys[0], text("value"), NULL, NULL), KVC_OK);
    assert_status(kvc_mget(client, keys, 4, out, statuses, NULL), KVC_NOT_FOUND);
    assert_non_null(strstr(kvc_last_error(), "2 of 4 failed"));
    assert_non_null(strstr(kvc_last_error(), "missing"));
    for (i = 0; i < 4; i++) {
        assert_int_equal(statuses[i], i % 2 == 0 ? KVC_OK : KVC_NOT_FOUND);
        if (i % 2 == 0)
            assert_string_equal(out[i].data, "value");
        else
            assert_true(out[i].data == NULL && out[i].len == 0 && out[i].version == 0);
        kvc_buf_free(&out[i]);
    }
    /* The statuses are optional. */
    assert_status(kvc_mget(client, keys, 4, out, NULL, NULL), KVC_NOT_FOUND);
    for (i = 0; i < 4; i++)
        kvc_buf_free(&out[i]);
    remove_all(keys, 1);
}

static void a_condition_holds_for_every_key(void **state)
{
    const kvc_slice keys[] = {text("new"), text("old"), text("newer")};
    const kvc_slice values[] = {text("1"), text("2"), text("3")};
    kvc_op_options options = within(0);
    kvc_buf out[3];
    int statuses[3], i;

    (void)state;
    options.if_version = KVC_ABSENT;
    assert_status(kvc_put(client, keys[1], text("0"), NULL, NULL), KVC_OK);
    assert_status(kvc_mput(client, keys, values, 3, statuses, &options), KVC_CONFLICT);
    assert_int_equal(statuses[0], KVC_OK);
    assert_int_equal(statuses[1], KVC_CONFLICT);
    assert_int_equal(statuses[2], KVC_OK);
    /* A read ignores the condition. */
    assert_status(kvc_mget(client, keys, 3, out, statuses, &options), KVC_OK);
    assert_string_equal(out[0].data, "1");
    assert_string_equal(out[1].data, "0");
    assert_string_equal(out[2].data, "3");
    for (i = 0; i < 3; i++)
        kvc_buf_free(&out[i]);
    assert_status(kvc_mput(client, keys, values, 3, NULL, &options), KVC_CONFLICT);
    assert_non_null(strstr(kvc_last_error(), "3 of 3 failed"));
    remove_all(keys, 3);
}

static void a_key_that_is_named_twice_gets_either_value(void **state)
{
    const kvc_slice keys[] = {text("twice"), text("twice")};
    const kvc_slice values[] = {text("a"), text("b")};
    kvc_buf out[2];
    int statuses[2];

    (void)state;
    assert_status(kvc_mput(client, keys, values, 2, statuses, NULL), KVC_OK);
    assert_status(kvc_mget(client, keys, 2, out, statuses, NULL), KVC_OK);
    assert_string_equal(out[0].data, out[1].data);
    assert_true(out[0].data != out[1].data && out[0].version == out[1].version);
    assert_true(*(char *)out[0].data == 'a' || *(char *)out[0].data == 'b');
    kvc_buf_free(&out[0]);
    kvc_buf_free(&out[1]);
    remove_all(keys, 1);
}

static void an_empty_batch_is_done(void **state)
{
    const kvc_slice key = text("k");
    kvc_buf out = {NULL, 7, 7};
    int status = 7;

    (void)state;
    assert_status(kvc_mput(client, NULL, NULL, 0, NULL, NULL), KVC_OK);
    assert_status(kvc_mget(client, NULL, 0, NULL, NULL, NULL), KVC_OK);
    assert_status(kvc_mput(client, &key, &key, 0, &status, NULL), KVC_OK);
    assert_status(kvc_mget(client, &key, 0, &out, &status, NULL), KVC_OK);
    assert_true(status == 7 && out.len == 7);
}

static void large_values_are_stored_and_read_and_overlong_ones_are_left_out(void **state)
{
    static char names[LARGE][32], long_key[65536];
    unsigned char *value = malloc(16 * MIB + LARGE);
    kvc_slice keys[LARGE + 2], values[LARGE + 2];
    kvc_op_options options = within(60000);
    kvc_buf out[LARGE + 2];
    int statuses[LARGE + 2];
    size_t n;

    (void)state;
    assert_non_null(value);
    for (n = 0; n < 16 * MIB + LARGE; n++)
        value[n] = (unsigned char)(n * 31 + n / 256);
    for (n = 0; n < LARGE; n++) {
        snprintf(names[n], sizeof names[n], "big-%d", (int)n);
        keys[n] = text(names[n]);
        values[n] = bytes(value + n, 16 * MIB);
    }
    memset(long_key, 'k', sizeof long_key);
    keys[LARGE] = text("too long");
    values[LARGE] = bytes(value, 16 * MIB + 1);
    keys[LARGE + 1] = bytes(long_key, sizeof long_key);
    values[LARGE + 1] = text("v");
    assert_status(kvc_mput(client, keys, values, LARGE + 2, statuses, &options), KVC_TOO_BIG);
    for (n = 0; n < LARGE + 2; n++)
        assert_int_equal(statuses[n], n < LARGE ? KVC_OK : KVC_TOO_BIG);
    assert_status(kvc_mget(client, keys, LARGE + 2, out, statuses, &options), KVC_TOO_BIG);
    for (n = 0; n < LARGE; n++) {
        assert_int_equal(statuses[n], KVC_OK);
        assert_int_equal(out[n].len, 16 * MIB);
        assert_memory_equal(out[n].data, value + n, 16 * MIB);
        kvc_buf_free(&out[n]);
    }
    assert_int_equal(statuses[LARGE], KVC_NOT_FOUND);
    assert_int_equal(statuses[LARGE + 1], KVC_TOO_BIG);
    assert_true(out[LARGE].data == NULL && out[LARGE + 1].data == NULL);
    remove_all(keys, LARGE);
    free(value);
}

/* Calls that are rejected as a whole: nothing is done or written, not even for the valid keys. */
static void null_and_bad_sizes_are_rejected(void **state)
{
    const kvc_slice good[] = {text("good"), text("good too")};
    const kvc_slice null[] = {text("good"), bytes(NULL, 1)};
    const kvc_slice empty[] = {text("good"), bytes("", 0)};
    const kvc_slice huge[] = {text("good"), bytes("k", SIZE_MAX)};
    const kvc_slice *bad[] = {null, empty, huge};
    const size_t bad_counts[] = {SIZE_MAX, SIZE_MAX / sizeof(kvc_slice), SIZE_MAX / 2};
    kvc_buf out[2] = {{NULL, 7, 7}, {NULL, 7, 7}}, got;
    int statuses[2] = {7, 7};
    kvc_op_options options;
    size_t n;

    (void)state;
    assert_status(kvc_mput(NULL, good, good, 2, statuses, NULL), KVC_INVALID);
    assert_status(kvc_mget(NULL, good, 2, out, statuses, NULL), KVC_INVALID);
    assert_status(kvc_mput(client, NULL, good, 2, statuses, NULL), KVC_INVALID);
    assert_status(kvc_mput(client, good, NULL, 2, statuses, NULL), KVC_INVALID);
    assert_status(kvc_mget(client, NULL, 2, out, statuses, NULL), KVC_INVALID);
    assert_status(kvc_mget(client, good, 2, NULL, statuses, NULL), KVC_INVALID);
    for (n = 0; n < 3; n++) {
        assert_status(kvc_mput(client, bad[n], good, 2, statuses, NULL), KVC_INVALID);
        assert_status(kvc_mget(client, bad[n], 2, out, statuses, NULL), KVC_INVALID);
        if (bad[n] != empty) /* which is a valid value */
            assert_status(kvc_mput(client, good, bad[n], 2, statuses, NULL), KVC_INVALID);
        assert_status(kvc_mput(client, good, good, bad_counts[n], statuses, NULL), KVC_INVALID);
        assert_status(kvc_mget(client, good, bad_counts[n], out, statuses, NULL), KVC_INVALID);
    }
    for (n = 0; n < 4; n++) {
        options = within(0);
        options.size = n;
        assert_status(kvc_mput(client, good, good, 2, statuses, &options), KVC_INVALID);
        assert_status(kvc_mget(client, good, 2, out, statuses, &options), KVC_INVALID);
    }
    options = within(60001);
    assert_status(kvc_mput(client, good, good, 2, statuses, &options), KVC_INVALID);
    assert_status(kvc_mget(client, good, 2, out, statuses, &options), KVC_INVALID);
    for (n = 0; n < 2; n++) {
        assert_true(statuses[n] == 7 && out[n].data == NULL && out[n].len == 7 && out[n].version == 7);
        assert_status(kvc_get(client, good[n], NULL, &got), KVC_NOT_FOUND);
    }
}

/* Errors that need no server are reported at once. */
static void a_batch_without_a_sendable_operation_does_not_wait(void **state)
{
    static char long_key[65536];
    const kvc_slice keys[] = {bytes(long_key, sizeof long_key), bytes(long_key, sizeof long_key)};
    const kvc_slice values[] = {text("a"), text("b")};
    const int64_t start = now_ms();
    int statuses[2], n;

    (void)state;
    for (n = 0; n < 20; n++) {
        assert_status(kvc_mput(client, keys, values, 2, statuses, NULL), KVC_TOO_BIG);
        assert_int_equal(statuses[1], KVC_TOO_BIG);
    }
    assert_true(now_ms() - start < 20 * 500);
}

static void a_batch_without_a_listener_is_unavailable_at_its_deadline(void **state)
{
    const kvc_op_options options = within(300);
    kvc_client *nobody = open_client("127.0.0.1:1", NULL);
    const kvc_slice keys[] = {text("a"), text("b")};
    const int64_t start = now_ms();
    kvc_buf out[2];
    int statuses[2];

    (void)state;
    assert_status(kvc_mput(nobody, keys, keys, 2, statuses, &options), KVC_UNAVAILABLE);
    assert_int_equal(statuses[1], KVC_UNAVAILABLE);
    assert_status(kvc_mget(nobody, keys, 2, out, statuses, &options), KVC_UNAVAILABLE);
    assert_int_equal(statuses[1], KVC_UNAVAILABLE);
    assert_true(out[0].data == NULL && out[1].data == NULL);
    assert_true(now_ms() - start < 2 * (300 + SLACK_MS));
    kvc_close(nobody);
}

static void *put_and_get(void *argument)
{
    char names[20][32];
    kvc_slice keys[20];
    kvc_buf out[20];
    int round, n;

    for (n = 0; n < 20; n++) {
        snprintf(names[n], sizeof names[n], "batch-%p-%d", argument, n);
        keys[n] = text(names[n]);
    }
    for (round = 0; round < 5; round++) {
        if (kvc_mput(client, keys, keys, 20, NULL, NULL) != KVC_OK || kvc_mget(client, keys, 20, out, NULL, NULL) != KVC_OK)
            return argument;
        for (n = 0; n < 20; n++) {
            if (strcmp(out[n].data, names[n]) != 0)
                return argument;
            kvc_buf_free(&out[n]);
        }
    }
    for (n = 0; n < 20; n++) {
        if (kvc_delete(client, keys[n], NULL, NULL) != KVC_OK)
            return argument;
    }
    return NULL;
}

static void threads_have_batches_of_their_own(void **state)
{
    (void)state;
    in_threads(8, put_and_get);
}

static void a_child_is_rejected(void **state)
{
    const kvc_slice key = text("fork");
    kvc_buf out = {NULL, 7, 7};
    int status = 7;
    pid_t child = fork();

    (void)state;
    if (child == 0) {
        const int good = kvc_mput(client, &key, &key, 1, &status, NULL) == KVC_FORKED &&
                         kvc_mget(client, &key, 1, &out, &status, NULL) == KVC_FORKED &&
                         kvc_put_str(client, "fork", "x") == KVC_FORKED && status == 7 && out.len == 7;
        end_child(good);
    }
    await_child(child);
}

static void texts_end_with_nul_and_belong_to_the_caller(void **state)
{
    char *value = NULL;

    (void)state;
    assert_status(kvc_get_str(client, "text", &value), KVC_NOT_FOUND);
    assert_null(value);
    assert_status(kvc_put_str(client, "text", "some words"), KVC_OK);
    assert_status(kvc_get_str(client, "text", &value), KVC_OK);
    assert_string_equal(value, "some words");
    kvc_free(value);
    assert_status(kvc_put_str(client, "text", ""), KVC_OK);
    assert_status(kvc_get_str(client, "text", &value), KVC_OK);
    assert_string_equal(value, "");
    kvc_free(value);
    /* A value that was not stored as a string still ends with NUL. */
    assert_status(kvc_put(client, text("text"), bytes("a\0b", 3), NULL, NULL), KVC_OK);
    assert_status(kvc_get_str(client, "text", &value), KVC_OK);
    assert_memory_equal(value, "a\0b", 4);
    kvc_free(value);
    value = NULL;
    assert_status(kvc_put_str(NULL, "text", "x"), KVC_INVALID);
    assert_status(kvc_put_str(client, NULL, "x"), KVC_INVALID);
    assert_status(kvc_put_str(client, "text", NULL), KVC_INVALID);
    assert_status(kvc_put_str(client, "", "x"), KVC_INVALID);
    assert_status(kvc_get_str(NULL, "text", &value), KVC_INVALID);
    assert_status(kvc_get_str(client, NULL, &value), KVC_INVALID);
    assert_status(kvc_get_str(client, "text", NULL), KVC_INVALID);
    assert_status(kvc_get_str(client, "", &value), KVC_INVALID);
    assert_null(value);
    assert_status(kvc_delete(client, text("text"), NULL, NULL), KVC_OK);
}

static void a_batch_of_operations_returns_every_field_of_each_result(void **state)
{
    kvc_op ops[4] = {put_op(text("one"), text("1")), put_op(text("two"), text("2")), get_op(text("one")),
                     delete_op(text("none"))};
    kvc_completion done[4];
    const kvc_slice keys[] = {text("one"), text("none"), text("two")};
    uint64_t version;
    int statuses[3];

    (void)state;
    assert_status(kvc_batch(client, ops, 2, done, NULL), KVC_OK);
    assert_true(done[0].tag == 0 && done[1].tag == 1 && done[0].copies == 2 && done[0].value.version > 0);
    version = done[0].value.version;
    /* Each operation has its own condition and status; the call returns the most serious status. */
    ops[0].if_version = version;
    ops[1].if_version = KVC_ABSENT;
    assert_status(kvc_batch(client, ops, 4, done, NULL), KVC_CONFLICT);
    assert_non_null(strstr(kvc_last_error(), "2 of 4 failed; the most serious is number 1"));
    assert_true(done[0].status == KVC_OK && done[0].value.version > version && done[0].words == NULL);
    assert_true(done[1].status == KVC_CONFLICT && done[1].value.version > 0 && done[1].words == NULL);
    assert_true(done[2].status == KVC_OK && done[2].value.len == 1 && done[2].doubt.opaque[0] == 0);
    assert_int_equal(done[3].status, KVC_NOT_FOUND);
    kvc_buf_free(&done[2].value);

    ops[3].timeout_ms = 1;
    assert_status(kvc_batch(client, ops, 4, done, NULL), KVC_INVALID);
    assert_status(kvc_batch(client, NULL, 1, done, NULL), KVC_INVALID);
    assert_status(kvc_batch(client, ops, 1, NULL, NULL), KVC_INVALID);
    assert_status(kvc_batch(client, NULL, 0, NULL, NULL), KVC_OK);
    ops[0].kind = 9;
    assert_status(kvc_batch(client, ops, 1, done, NULL), KVC_INVALID);

    assert_status(kvc_mdelete(client, keys, 3, statuses, NULL), KVC_NOT_FOUND);
    assert_true(statuses[0] == KVC_OK && statuses[1] == KVC_NOT_FOUND && statuses[2] == KVC_OK);
    assert_status(kvc_mdelete(client, NULL, 0, NULL, NULL), KVC_OK);
    assert_status(kvc_mdelete(client, NULL, 1, NULL, NULL), KVC_INVALID);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_keys_are_stored_and_read_in_one_call),
        cmocka_unit_test(unreadable_keys_are_empty_and_have_a_status),
        cmocka_unit_test(a_condition_holds_for_every_key),
        cmocka_unit_test(a_key_that_is_named_twice_gets_either_value),
        cmocka_unit_test(an_empty_batch_is_done),
        cmocka_unit_test(large_values_are_stored_and_read_and_overlong_ones_are_left_out),
        cmocka_unit_test(null_and_bad_sizes_are_rejected),
        cmocka_unit_test(a_batch_without_a_sendable_operation_does_not_wait),
        cmocka_unit_test(a_batch_without_a_listener_is_unavailable_at_its_deadline),
        cmocka_unit_test(threads_have_batches_of_their_own),
        cmocka_unit_test(a_child_is_rejected),
        cmocka_unit_test(a_batch_of_operations_returns_every_field_of_each_result),
        cmocka_unit_test(texts_end_with_nul_and_belong_to_the_caller),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, open_it, close_it);
}
