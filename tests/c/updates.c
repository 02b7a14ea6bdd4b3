/* Updates of one key and of several keys, deadlines, and updates in queues and batches, against a healthy cluster. */
#include "suite.h"

static const char *endpoint;
static kvc_client *client;
/* Two keys of one group and shard, and one of another. */
static char near_name[32], far_name[32];
static const char own_name[] = "own";

static kvc_update update_of(uint32_t action)
{
    kvc_update update;

    assert_status(kvc_update_init(&update, sizeof update), KVC_OK);
    assert_int_equal(update.size, sizeof update);
    update.action = action;
    return update;
}

static kvc_update put_of(kvc_slice value)
{
    kvc_update update = update_of(KVC_ACTION_PUT);
    update.value = value;
    return update;
}

static kvc_update add_of(int64_t amount)
{
    kvc_update update = update_of(KVC_ACTION_ADD);
    update.number = amount;
    return update;
}

static kvc_condition condition_of(uint32_t kind)
{
    kvc_condition condition = {.size = sizeof condition, .kind = kind};
    return condition;
}

static kvc_op update_op(kvc_slice key, const kvc_update *updates, size_t n)
{
    kvc_op op = {.size = sizeof op, .kind = KVC_OP_UPDATE, .key = key, .updates = updates, .n = n};
    return op;
}

static int is_text(kvc_buf buf, const char *string)
{
    return buf.data != NULL && buf.len == strlen(string) && strcmp(buf.data, string) == 0;
}

static void assert_value(const char *key, const char *value)
{
    kvc_buf got;

    assert_status(kvc_get(client, text(key), NULL, &got), KVC_OK);
    assert_string_equal(got.data, value);
    kvc_buf_free(&got);
}

static uint64_t deadline_of(const char *key)
{
    uint64_t deadline = 1;

    assert_status(kvc_get_deadline(client, text(key), NULL, &deadline, NULL), KVC_OK);
    return deadline;
}

static uint64_t wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int exists(const char *key)
{
    int found = 7;

    assert_status(kvc_exists(client, text(key), NULL, &found), KVC_OK);
    assert_in_range(found, 0, 1);
    return found;
}

static int open_it(void **state)
{
    kvc_update check = update_of(KVC_ACTION_CHECK);
    int n;

    (void)state;
    client = open_client(endpoint, NULL);
    check.condition = KVC_IF_ABSENT;
    for (n = 0; near_name[0] == '\0' || far_name[0] == '\0'; n++) {
        char name[32];
        int status;

        snprintf(name, sizeof name, "key-%d", n);
        check.key = text(name);
        status = kvc_update_one(client, text(own_name), &check, NULL, NULL);
        if (status != KVC_CROSS_SHARD)
            assert_status(status, KVC_OK);
        strcpy(status == KVC_OK ? near_name : far_name, name);
    }
    return 0;
}

static int close_it(void **state)
{
    (void)state;
    return kvc_close(client);
}

static void each_simple_function_has_its_effect(void **state)
{
    int64_t sum = 0;
    size_t len = 0;
    kvc_result result;
    kvc_buf out;

    (void)state;
    memset(&result, 0x5a, sizeof result);
    assert_status(kvc_add(client, text("n"), 5, NULL, &sum, &result), KVC_OK);
    assert_true(sum == 5 && result.version > 0 && result.copies == 2 && result.reserved == 0);
    assert_status(kvc_add(client, text("n"), -7, NULL, &sum, NULL), KVC_OK);
    assert_true(sum == -2);
    assert_status(kvc_add(client, text("n"), 1, NULL, NULL, NULL), KVC_OK);
    assert_value("n", "-1");

    assert_status(kvc_add_float(client, text("f"), text("1.5"), NULL, &out, &result), KVC_OK);
    assert_true(is_text(out, "1.5") && out.version == result.version);
    kvc_buf_free(&out);
    assert_status(kvc_add_float(client, text("f"), text("0.25"), NULL, NULL, NULL), KVC_OK);
    assert_value("f", "1.75");

    assert_status(kvc_append(client, text("t"), text("abc"), NULL, &len, NULL), KVC_OK);
    assert_int_equal(len, 3);
    assert_status(kvc_set_range(client, text("t"), 1, text("xyz"), NULL, &len, &result), KVC_OK);
    assert_int_equal(len, 4);
    assert_value("t", "axyz");
    assert_status(kvc_append(client, text("t"), text("!"), NULL, NULL, NULL), KVC_OK);

    assert_true(exists("t"));
    assert_status(kvc_take(client, text("t"), NULL, &out, &result), KVC_OK);
    assert_true(is_text(out, "axyz!"));
    assert_int_equal(result.copies, 2);
    kvc_buf_free(&out);
    assert_false(exists("t"));
    out.len = 7;
    assert_status(kvc_take(client, text("t"), NULL, &out, NULL), KVC_NOT_FOUND);
    assert_int_equal(out.len, 7);

    assert_status(kvc_put(client, text(own_name), text("moved"), NULL, NULL), KVC_OK);
    assert_status(kvc_copy(client, text(own_name), text(near_name), NULL, NULL), KVC_OK);
    assert_value(near_name, "moved");
    assert_status(kvc_rename(client, text(near_name), text(own_name), NULL, &result), KVC_OK);
    assert_false(exists(near_name));
    assert_status(kvc_rename(client, text(near_name), text(own_name), NULL, NULL), KVC_NOT_FOUND);
    assert_status(kvc_rename(client, text(own_name), text(far_name), NULL, NULL), KVC_CROSS_SHARD);
    assert_status(kvc_copy(client, text(own_name), text(far_name), NULL, NULL), KVC_CROSS_SHARD);
    assert_status(kvc_delete(client, text(own_name), NULL, NULL), KVC_OK);
    assert_status(kvc_delete(client, text("n"), NULL, NULL), KVC_OK);
    assert_status(kvc_delete(client, text("f"), NULL, NULL), KVC_OK);
}

static void a_condition_can_demand_a_version_a_value_or_existence(void **state)
{
    kvc_condition absent = condition_of(KVC_IF_ABSENT), present = condition_of(KVC_IF_PRESENT);
    kvc_condition version = condition_of(KVC_IF_VERSION), value = condition_of(KVC_IF_VALUE);
    kvc_op_options options = within(0);
    kvc_result first, found;
    int64_t sum = 7;

    (void)state;
    assert_status(kvc_put_if(client, text("c"), text("0"), &present, NULL, &found), KVC_CONFLICT);
    assert_true(found.version == 0);
    assert_status(kvc_put_if(client, text("c"), text("1"), &absent, NULL, &first), KVC_OK);
    assert_status(kvc_put_if(client, text("c"), text("2"), &absent, NULL, &found), KVC_CONFLICT);
    assert_true(found.version == first.version && found.copies == 0);
    value.value = text("9");
    assert_status(kvc_put_if(client, text("c"), text("2"), &value, NULL, &found), KVC_CONFLICT);
    assert_true(found.version == first.version);
    value.value = text("1");
    assert_status(kvc_put_if(client, text("c"), text("2"), &value, NULL, &found), KVC_OK);
    version.version = first.version;
    assert_status(kvc_delete_if(client, text("c"), &version, NULL, NULL), KVC_CONFLICT);
    assert_status(kvc_put_if(client, text("c"), text("3"), NULL, NULL, &first), KVC_OK);

    /* The condition in the options applies too, but not both. */
    options.if_version = found.version;
    assert_status(kvc_add(client, text("c"), 1, &options, &sum, &found), KVC_CONFLICT);
    assert_true(sum == 7 && found.version == first.version);
    options.if_version = first.version;
    assert_status(kvc_add(client, text("c"), 1, &options, &sum, NULL), KVC_OK);
    assert_true(sum == 4);
    assert_status(kvc_put_if(client, text("c"), text("5"), &present, &options, NULL), KVC_INVALID);
    assert_status(kvc_persist(client, text("c"), &options, NULL), KVC_INVALID);
    assert_status(kvc_delete_if(client, text("c"), &present, NULL, NULL), KVC_OK);
    assert_status(kvc_delete_if(client, text("c"), &present, NULL, NULL), KVC_CONFLICT);
    assert_status(kvc_delete_if(client, text("c"), NULL, NULL, NULL), KVC_NOT_FOUND);
}

static void an_entry_expires_at_its_deadline(void **state)
{
    kvc_condition later = condition_of(KVC_IF_LATER), none = condition_of(KVC_IF_NO_DEADLINE);
    const int64_t limit = now_ms() + TIMEOUT_MS;
    uint64_t deadline, before;
    kvc_buf out;

    (void)state;
    assert_status(kvc_expire(client, text("e"), KVC_EXPIRY_AFTER, 60000, NULL, NULL, NULL), KVC_NOT_FOUND);
    assert_status(kvc_put(client, text("e"), text("v"), NULL, NULL), KVC_OK);
    assert_true(deadline_of("e") == 0);
    before = wall_ms();
    assert_status(kvc_expire(client, text("e"), KVC_EXPIRY_AFTER, 3600000, &none, NULL, NULL), KVC_OK);
    deadline = deadline_of("e");
    assert_true(deadline >= before + 3500000 && deadline <= wall_ms() + 3700000);
    assert_status(kvc_expire(client, text("e"), KVC_EXPIRY_AFTER, 1, &none, NULL, NULL), KVC_CONFLICT);
    assert_status(kvc_expire(client, text("e"), KVC_EXPIRY_AT, deadline - 1000, &later, NULL, NULL), KVC_CONFLICT);
    assert_status(kvc_expire(client, text("e"), KVC_EXPIRY_AT, deadline + 1000, &later, NULL, NULL), KVC_OK);
    assert_true(deadline_of("e") == deadline + 1000);

    assert_status(kvc_get_with_deadline(client, text("e"), NULL, &out, &before), KVC_OK);
    assert_true(is_text(out, "v") && before == deadline + 1000);
    kvc_buf_free(&out);
    assert_status(kvc_get_and_expire(client, text("e"), KVC_EXPIRY_AT, deadline, NULL, &out, &before, NULL), KVC_OK);
    assert_true(is_text(out, "v") && before == deadline && deadline_of("e") == deadline);
    kvc_buf_free(&out);
    assert_status(kvc_persist(client, text("e"), NULL, NULL), KVC_OK);
    assert_true(deadline_of("e") == 0);
    assert_status(kvc_persist(client, text("e"), NULL, NULL), KVC_CONFLICT);

    assert_status(kvc_get_and_expire(client, text("e"), KVC_EXPIRY_AFTER, 200, NULL, &out, NULL, NULL), KVC_OK);
    kvc_buf_free(&out);
    while (exists("e")) {
        assert_true(now_ms() < limit);
        look_again_soon();
    }
    assert_status(kvc_get_with_deadline(client, text("e"), NULL, &out, &before), KVC_NOT_FOUND);
    assert_status(kvc_get_deadline(client, text("e"), NULL, &before, NULL), KVC_NOT_FOUND);
    assert_status(kvc_persist(client, text("e"), NULL, NULL), KVC_NOT_FOUND);

    /* A deadline in the past removes the entry. */
    assert_status(kvc_put(client, text("e"), text("v"), NULL, NULL), KVC_OK);
    assert_status(kvc_expire(client, text("e"), KVC_EXPIRY_AT, 1, NULL, NULL, NULL), KVC_OK);
    assert_false(exists("e"));
}

static void one_update_returns_values_versions_and_deadlines(void **state)
{
    kvc_update update = put_of(text("1"));
    kvc_updated out;
    uint64_t version;

    (void)state;
    update.condition = KVC_IF_ABSENT;
    update.expiry = KVC_EXPIRY_AFTER;
    update.time_ms = 3600000;
    update.flags = KVC_RETURN_VALUE;
    memset(&out, 0x5a, sizeof out);
    assert_status(kvc_update_one(client, text("one"), &update, NULL, &out), KVC_OK);
    assert_int_equal(sizeof out, 80); /* part of the ABI */
    assert_true(out.status == KVC_OK && out.copies == 2 && out.version > 0 && out.value.data == NULL);
    assert_true(out.deadline_ms > wall_ms() && out.doubt.opaque[0] == 0);
    assert_true(out.reserved[0] == 0 && out.reserved[1] == 0);
    version = out.version;

    /* After a conflict, the result has the current version and value. */
    assert_status(kvc_update_one(client, text("one"), &update, NULL, &out), KVC_CONFLICT);
    assert_true(out.status == KVC_CONFLICT && out.version == version && out.copies == 0 && is_text(out.value, "1"));
    kvc_buf_free(&out.value);
    assert_status(kvc_update_one(client, text("one"), &update, NULL, NULL), KVC_CONFLICT);

    update = add_of(41);
    update.condition = KVC_IF_VERSION;
    update.version = version;
    assert_status(kvc_update_one(client, text("one"), &update, NULL, &out), KVC_OK);
    assert_true(is_text(out.value, "42") && out.value.version == out.version && out.version > version);
    kvc_buf_free(&out.value);
    assert_true(deadline_of("one") > 0);
    update = put_of(text("2")); /* removes the deadline */
    update.flags = KVC_RETURN_VALUE;
    assert_status(kvc_update_one(client, text("one"), &update, NULL, &out), KVC_OK);
    assert_true(is_text(out.value, "42") && out.deadline_ms == 0 && deadline_of("one") == 0);
    kvc_buf_free(&out.value);

    /* The key of the update may differ from that of the request. */
    update = update_of(KVC_ACTION_DELETE);
    update.key = text("one");
    assert_status(kvc_update_one(client, text("one"), &update, NULL, NULL), KVC_OK);
    assert_status(kvc_update_one(client, text("one"), &update, NULL, &out), KVC_NOT_FOUND);
    assert_true(out.status == KVC_NOT_FOUND && out.version == 0 && out.value.data == NULL);
    kvc_buf_free(&out.value);
}

static void wrong_numbers_and_too_long_values_change_nothing(void **state)
{
    kvc_buf sum = {NULL, 7, 7};
    int64_t number = 7;
    size_t len = 7;
    kvc_updated out;
    kvc_update update;

    (void)state;
    assert_status(kvc_put(client, text("w"), text("words"), NULL, NULL), KVC_OK);
    assert_status(kvc_add(client, text("w"), 1, NULL, &number, NULL), KVC_NOT_A_NUMBER);
    assert_non_null(strstr(kvc_last_error(), "not a decimal number"));
    assert_string_equal(kvc_status_name(KVC_NOT_A_NUMBER), "KVC_NOT_A_NUMBER");
    assert_status(kvc_add_float(client, text("w"), text("1"), NULL, &sum, NULL), KVC_NOT_A_NUMBER);
    assert_status(kvc_put(client, text("w"), text("9223372036854775807"), NULL, NULL), KVC_OK);
    assert_status(kvc_add(client, text("w"), 1, NULL, &number, NULL), KVC_OVERFLOW);
    assert_status(kvc_add_float(client, text("w"), text("much"), NULL, &sum, NULL), KVC_NOT_A_NUMBER);
    assert_status(kvc_set_range(client, text("w"), 16 * MIB, text("x"), NULL, &len, NULL), KVC_TOO_BIG);
    assert_status(kvc_set_range(client, text("w"), SIZE_MAX, text("x"), NULL, &len, NULL), KVC_INVALID);
    assert_true(number == 7 && len == 7 && sum.len == 7);
    update = add_of(1);
    assert_status(kvc_update_one(client, text("w"), &update, NULL, &out), KVC_OVERFLOW);
    assert_true(out.status == KVC_OVERFLOW && out.value.data == NULL);
    assert_value("w", "9223372036854775807");
    assert_status(kvc_delete(client, text("w"), NULL, NULL), KVC_OK);
}

static void several_updates_are_all_executed_or_none(void **state)
{
    kvc_update updates[4] = {put_of(text("1")), add_of(2), update_of(KVC_ACTION_DELETE), update_of(KVC_ACTION_CHECK)};
    kvc_updated out[4];
    int n;

    (void)state;
    updates[1].key = text(near_name);
    updates[2].key = text(near_name);
    updates[2].flags = KVC_RETURN_VALUE;
    updates[3].flags = KVC_RETURN_VALUE;
    memset(out, 0x5a, sizeof out);
    assert_status(kvc_update_many(client, text(own_name), updates, 4, NULL, out), KVC_OK);
    for (n = 0; n < 4; n++)
        assert_true(out[n].status == KVC_OK && out[n].copies == 2 && out[n].version == out[0].version &&
                    out[n].reserved[0] == 0 && out[n].doubt.opaque[0] == 0);
    assert_true(out[0].value.data == NULL && is_text(out[1].value, "2") && is_text(out[2].value, "2") &&
                is_text(out[3].value, "1"));
    for (n = 0; n < 4; n++)
        kvc_buf_free(&out[n].value);

    /* A condition that does not hold ends the request; the result names the update. */
    updates[0].value = text("2");
    updates[2].condition = KVC_IF_VERSION;
    updates[2].version = 1;
    assert_status(kvc_update_many(client, text(own_name), updates, 4, NULL, out), KVC_CONFLICT);
    assert_non_null(strstr(kvc_last_error(), "update 3 of 4"));
    for (n = 0; n < 4; n++)
        assert_true(out[n].status == (n == 2 ? KVC_CONFLICT : KVC_NOT_DONE) && out[n].value.data == NULL);
    assert_value(own_name, "1");

    /* An optional update is skipped. A missing key ends nothing. */
    updates[2].flags = KVC_OPTIONAL;
    updates[1] = update_of(KVC_ACTION_DELETE);
    updates[1].key = text(near_name);
    assert_status(kvc_update_many(client, text(own_name), updates, 4, NULL, out), KVC_OK);
    assert_true(out[0].status == KVC_OK && out[1].status == KVC_NOT_FOUND && out[2].status == KVC_CONFLICT);
    assert_true(out[3].status == KVC_OK && is_text(out[3].value, "2"));
    kvc_buf_free(&out[3].value);

    updates[3].key = text(far_name);
    assert_status(kvc_update_many(client, text(own_name), updates, 4, NULL, out), KVC_CROSS_SHARD);
    assert_true(out[0].status == KVC_CROSS_SHARD && out[3].status == KVC_CROSS_SHARD);
    assert_status(kvc_update_many(client, text(own_name), updates, 3, NULL, NULL), KVC_OK);
    assert_status(kvc_delete(client, text(own_name), NULL, NULL), KVC_OK);
}

static void invalid_updates_are_rejected_and_still_empty_the_results(void **state)
{
    struct { kvc_update update; uint64_t more; } newer[2] = {{add_of(1), 0}, {add_of(2), 0}};
    kvc_update two[2] = {add_of(1), update_of(77)};
    kvc_condition bad = condition_of(9);
    kvc_op_options options = within(0);
    kvc_updated out[2], one;
    kvc_update update;
    kvc_buf buf = {NULL, 7, 7};
    uint64_t deadline = 7;
    int found = 7;

    (void)state;
    memset(out, 0x5a, sizeof out);
    assert_status(kvc_update_many(client, text("i"), two, 2, NULL, out), KVC_INVALID);
    assert_non_null(strstr(kvc_last_error(), "updates[1]"));
    assert_true(out[0].status == KVC_INVALID && out[1].status == KVC_INVALID && out[1].value.data == NULL);
    assert_status(kvc_update_one(NULL, text("i"), two, NULL, &one), KVC_INVALID);
    assert_true(one.status == KVC_INVALID && one.value.data == NULL);
    assert_status(kvc_update_one(client, text("i"), NULL, NULL, &one), KVC_INVALID);
    assert_status(kvc_update_one(client, text(""), two, NULL, &one), KVC_INVALID);
    assert_status(kvc_update_one(client, bytes(NULL, 1), two, NULL, &one), KVC_INVALID);
    memset(out, 0x5a, sizeof out);
    assert_status(kvc_update_many(client, text("i"), two, 0, NULL, out), KVC_INVALID);
    assert_status(kvc_update_many(client, text("i"), two, 1025, NULL, out), KVC_TOO_BIG);
    assert_status(kvc_update_many(client, text("i"), two, SIZE_MAX, NULL, out), KVC_TOO_BIG);
    assert_int_equal(out[0].status, 0x5a5a5a5a);
    options.if_version = 1;
    assert_status(kvc_update_one(client, text("i"), two, &options, &one), KVC_INVALID);
    assert_non_null(strstr(kvc_last_error(), "condition of each update"));

    update = add_of(1);
    update.condition = KVC_IF_LATER; /* without a new deadline */
    assert_status(kvc_update_one(client, text("i"), &update, NULL, &one), KVC_INVALID);
    update = add_of(1);
    update.value = bytes(NULL, 1);
    assert_status(kvc_update_one(client, text("i"), &update, NULL, &one), KVC_INVALID);
    for (update.size = 0; update.size < 4; update.size++)
        assert_status(kvc_update_one(client, text("i"), &update, NULL, &one), KVC_INVALID);
    assert_status(kvc_update_init(NULL, sizeof update), KVC_INVALID);
    assert_status(kvc_update_init(&update, 0), KVC_INVALID);
    assert_status(kvc_update_init(&update, SIZE_MAX), KVC_INVALID);

    assert_status(kvc_put_if(client, text("i"), text("v"), &bad, NULL, NULL), KVC_INVALID);
    bad = condition_of(KVC_IF_ABSENT);
    bad.size = 3;
    assert_status(kvc_delete_if(client, text("i"), &bad, NULL, NULL), KVC_INVALID);
    assert_status(kvc_expire(client, text("i"), 0, 0, NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_expire(client, text("i"), KVC_EXPIRY_NEVER, 1, NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_take(client, text("i"), NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get_and_expire(client, text("i"), KVC_EXPIRY_NEVER, 0, NULL, NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get_deadline(client, text("i"), NULL, NULL, NULL), KVC_INVALID);
    assert_status(kvc_get_with_deadline(client, text("i"), NULL, &buf, NULL), KVC_INVALID);
    assert_status(kvc_get_with_deadline(client, text("i"), NULL, NULL, &deadline), KVC_INVALID);
    assert_status(kvc_exists(client, text("i"), NULL, NULL), KVC_INVALID);
    assert_status(kvc_exists(NULL, text("i"), NULL, &found), KVC_INVALID);
    assert_status(kvc_add(NULL, text("i"), 1, NULL, NULL, NULL), KVC_INVALID);
    assert_true(buf.len == 7 && deadline == 7 && found == 7 && !exists("i"));

    /* Larger structs of a newer header are accepted while their unknown fields are zero. */
    newer[0].update.size = newer[1].update.size = sizeof newer[0];
    assert_status(kvc_update_many(client, text("i"), &newer[0].update, 2, NULL, NULL), KVC_OK);
    assert_value("i", "3");
    newer[1].more = 1;
    assert_status(kvc_update_many(client, text("i"), &newer[0].update, 2, NULL, NULL), KVC_INVALID);
    assert_value("i", "3");
    assert_status(kvc_delete(client, text("i"), NULL, NULL), KVC_OK);
}

static void a_queue_executes_updates(void **state)
{
    kvc_cq *queue = new_queue(client, 4);
    kvc_update updates[2] = {add_of(5), put_of(text("other"))};
    kvc_op op = update_op(text(own_name), updates, 1);
    kvc_completion done;
    kvc_updated results[2];
    uint64_t deadline = 7, version;

    (void)state;
    /* The completion owns the value of a single update. */
    updates[0].expiry = KVC_EXPIRY_KEEP_OR_AFTER;
    updates[0].time_ms = 3600000;
    updates[0].flags = KVC_RETURN_VALUE;
    op.deadline_ms = &deadline;
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && done.copies == 2 && is_text(done.value, "5") && deadline > wall_ms());
    version = done.value.version;
    kvc_buf_free(&done.value);
    updates[0].condition = KVC_IF_ABSENT;
    done = run_op(queue, op);
    assert_true(done.status == KVC_CONFLICT && done.value.version == version && is_text(done.value, "5"));
    assert_non_null(done.words);
    kvc_buf_free(&done.value);
    updates[0] = update_of(KVC_ACTION_SET_EXPIRY);
    updates[0].expiry = KVC_EXPIRY_NEVER;
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && done.value.data == NULL && done.value.len == 0 && deadline == 0);

    /* With results, the program's memory has the values. */
    updates[0] = add_of(1);
    updates[1].key = text(near_name);
    op = update_op(text(own_name), updates, 2);
    op.results = results;
    memset(results, 0x5a, sizeof results);
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && done.value.data == NULL && done.value.len == 0 && done.value.version > 0);
    assert_true(results[0].status == KVC_OK && is_text(results[0].value, "6") && results[0].copies == 2);
    assert_true(results[1].status == KVC_OK && results[1].value.data == NULL);
    assert_true(results[1].version == results[0].version);
    kvc_buf_free(&results[0].value);
    updates[1].condition = KVC_IF_ABSENT;
    done = run_op(queue, op);
    assert_true(done.status == KVC_CONFLICT && results[0].status == KVC_NOT_DONE && results[1].status == KVC_CONFLICT);
    op.results = NULL;
    updates[1].condition = 0;
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && done.value.data == NULL && done.value.len == 0);
    updates[1].key = text(far_name);
    op.results = results;
    done = run_op(queue, op);
    assert_true(done.status == KVC_CROSS_SHARD && results[0].status == KVC_CROSS_SHARD);

    /* The updates are read during the call only. Values that were not polled belong to the program. */
    {
        kvc_update *short_lived = malloc(sizeof *short_lived);
        char key[] = "own";

        assert_non_null(short_lived);
        *short_lived = add_of(1);
        op = update_op(text(key), short_lived, 1);
        op.results = results;
        assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
        assert_true(results[0].value.data == NULL);
        free(short_lived);
        memset(key, 'x', sizeof key - 1);
    }
    done = next_completion(queue);
    assert_true(done.status == KVC_OK && is_text(results[0].value, "8"));
    kvc_buf_free(&results[0].value);
    op = update_op(text(own_name), updates, 1);
    op.results = results;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
    assert_int_equal(kvc_cq_poll(queue, &done, 1, TIMEOUT_MS), 1);
    kvc_buf_free(&results[0].value);
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
    assert_status(kvc_cq_free(queue), KVC_OK);
    kvc_buf_free(&results[0].value);
    assert_status(kvc_delete(client, text(near_name), NULL, NULL), KVC_OK);
    assert_true(exists(own_name));
}

static void a_get_returns_the_deadline_into_any_memory(void **state)
{
    kvc_cq *queue = new_queue(client, 1);
    char room[8] = "-------";
    kvc_op op = get_op(text("g"));
    kvc_completion done;
    uint64_t deadline = 7;

    (void)state;
    assert_status(kvc_put(client, text("g"), text("value"), NULL, NULL), KVC_OK);
    op.deadline_ms = &deadline;
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && is_text(done.value, "value") && deadline == 0);
    kvc_buf_free(&done.value);
    assert_status(kvc_expire(client, text("g"), KVC_EXPIRY_AFTER, 3600000, NULL, NULL, NULL), KVC_OK);
    done = run_op(queue, op);
    assert_true(is_text(done.value, "value") && deadline == deadline_of("g"));
    kvc_buf_free(&done.value);
    deadline = 7;
    op.dst = room;
    op.cap = 5;
    done = run_op(queue, op);
    assert_true(done.value.data == NULL && done.value.len == 5 && deadline == deadline_of("g"));
    assert_string_equal(room, "value--");
    deadline = 7;
    op.cap = 2;
    done = run_op(queue, op);
    assert_true(done.status == KVC_TOO_BIG && done.value.len == 5 && deadline == 7);
    op.flags = KVC_RANGE;
    op.offset = 1;
    done = run_op(queue, op);
    assert_true(done.status == KVC_OK && done.value.len == 5 && deadline == deadline_of("g"));
    assert_string_equal(room, "allue--");
    assert_status(kvc_delete(client, text("g"), NULL, NULL), KVC_OK);
    deadline = 7;
    done = run_op(queue, op);
    assert_true(done.status == KVC_NOT_FOUND && deadline == 7);
    kvc_cq_free(queue);
}

static void operations_with_wrong_fields_are_rejected(void **state)
{
    kvc_cq *queue = new_queue(client, 1);
    kvc_update update = add_of(1);
    kvc_updated result = {.status = 7};
    kvc_completion done;
    uint64_t deadline = 7;
    kvc_op op = update_op(text("r"), &update, 1);

    (void)state;
    op.if_version = KVC_ABSENT;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = update_op(text("r"), NULL, 1);
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = update_op(text("r"), &update, 0);
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = update_op(text("r"), &update, 1025);
    op.results = &result;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_TOO_BIG);
    op = update_op(text(""), &update, 1);
    op.results = &result;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = put_op(text("r"), text("v"));
    op.deadline_ms = &deadline;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = put_op(text("r"), text("v"));
    op.updates = &update;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    op = get_op(text("r"));
    op.results = &result;
    assert_status(kvc_cq_submit(queue, &op, 1), KVC_INVALID);
    assert_true(result.status == 7 && deadline == 7);

    /* The struct of the first version ends before the updates. */
    op = get_op(text("r"));
    op.size = offsetof(kvc_op, updates);
    assert_int_equal(op.size, 80); /* part of the ABI */
    memset((char *)&op + op.size, 0x5a, sizeof op - op.size);
    done = run_op(queue, op);
    assert_int_equal(done.status, KVC_NOT_FOUND);
    kvc_cq_free(queue);
}

static void a_batch_mixes_updates_with_other_operations(void **state)
{
    kvc_update updates[2] = {add_of(1), add_of(2)}, one = add_of(7);
    kvc_updated results[2];
    kvc_op ops[4] = {update_op(text("b1"), updates, 2), put_op(text("b2"), text("v")), update_op(text("b3"), &one, 1),
                     get_op(text("b2"))};
    kvc_completion done[4];
    uint64_t deadline = 7;

    (void)state;
    ops[0].results = results;
    assert_status(kvc_batch(client, ops, 3, done, NULL), KVC_OK);
    assert_true(is_text(results[0].value, "1") && is_text(results[1].value, "3") && done[0].value.data == NULL);
    assert_true(done[0].copies == 2 && done[1].status == KVC_OK && is_text(done[2].value, "7"));
    kvc_buf_free(&results[0].value);
    kvc_buf_free(&results[1].value);
    kvc_buf_free(&done[2].value);
    updates[1].condition = KVC_IF_ABSENT;
    one.condition = KVC_IF_ABSENT;
    one.flags = KVC_RETURN_VALUE;
    ops[3].deadline_ms = &deadline;
    assert_status(kvc_batch(client, ops, 4, done, NULL), KVC_CONFLICT);
    assert_true(results[0].status == KVC_NOT_DONE && results[1].status == KVC_CONFLICT);
    assert_true(done[2].status == KVC_CONFLICT && is_text(done[2].value, "7") && deadline == 0);
    kvc_buf_free(&done[2].value);
    kvc_buf_free(&done[3].value);
    ops[2].n = 0;
    done[0].status = 7;
    assert_status(kvc_batch(client, ops, 4, done, NULL), KVC_INVALID);
    assert_int_equal(done[0].status, 7);
    assert_status(kvc_delete(client, text("b1"), NULL, NULL), KVC_OK);
    assert_status(kvc_delete(client, text("b2"), NULL, NULL), KVC_OK);
    assert_status(kvc_delete(client, text("b3"), NULL, NULL), KVC_OK);
}

static void *count_to_fifty(void *argument)
{
    int n;

    for (n = 0; n < 50; n++)
        if (kvc_add(client, text("sum"), 1, NULL, NULL, NULL) != KVC_OK)
            return argument;
    return NULL;
}

static void additions_of_eight_threads_are_exact(void **state)
{
    (void)state;
    in_threads(8, count_to_fifty);
    assert_value("sum", "400");
    assert_status(kvc_delete(client, text("sum"), NULL, NULL), KVC_OK);
}

static void a_child_is_rejected(void **state)
{
    kvc_update update = add_of(1);
    kvc_doubt doubt = {{1, 1}};
    pid_t child = fork();

    (void)state;
    if (child == 0) {
        kvc_updated out, settled;
        uint64_t deadline = 7;
        int64_t sum = 7;
        const int good = kvc_update_one(client, text("k"), &update, NULL, &out) == KVC_FORKED &&
                         out.status == KVC_FORKED && out.value.data == NULL &&
                         kvc_resolve_update(client, doubt, 0, 1, &settled) == KVC_FORKED &&
                         kvc_add(client, text("k"), 1, NULL, &sum, NULL) == KVC_FORKED && sum == 7 &&
                         kvc_get_deadline(client, text("k"), NULL, &deadline, NULL) == KVC_FORKED && deadline == 7;
        end_child(good);
    }
    await_child(child);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_simple_function_has_its_effect),
        cmocka_unit_test(a_condition_can_demand_a_version_a_value_or_existence),
        cmocka_unit_test(an_entry_expires_at_its_deadline),
        cmocka_unit_test(one_update_returns_values_versions_and_deadlines),
        cmocka_unit_test(wrong_numbers_and_too_long_values_change_nothing),
        cmocka_unit_test(several_updates_are_all_executed_or_none),
        cmocka_unit_test(invalid_updates_are_rejected_and_still_empty_the_results),
        cmocka_unit_test(a_queue_executes_updates),
        cmocka_unit_test(a_get_returns_the_deadline_into_any_memory),
        cmocka_unit_test(operations_with_wrong_fields_are_rejected),
        cmocka_unit_test(a_batch_mixes_updates_with_other_operations),
        cmocka_unit_test(additions_of_eight_threads_are_exact),
        cmocka_unit_test(a_child_is_rejected),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, open_it, close_it);
}
