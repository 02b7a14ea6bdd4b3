/* Scans by calls, in queues and in batches, against a healthy cluster. */
#include "suite.h"

#define KEYS 40
/* A value that is too long for a page. */
#define LONG_VALUE ((size_t)65537)

static const char *endpoint;
static kvc_client *client;
static kvc_cq *queue;
static unsigned char *long_value;

static int open_it(void **state)
{
    const kvc_slice value = text("value");
    char key[32];
    int n;

    (void)state;
    client = open_client(endpoint, NULL);
    queue = new_queue(client, 4);
    long_value = calloc(1, LONG_VALUE);
    if (long_value == NULL)
        return 1;
    for (n = 0; n < KEYS; n++) {
        snprintf(key, sizeof key, "scanned/%d", n);
        assert_status(kvc_put(client, text(key), value, NULL, NULL), KVC_OK);
    }
    assert_status(kvc_put(client, text("scanned/long"), bytes(long_value, LONG_VALUE), NULL, NULL), KVC_OK);
    assert_status(kvc_put(client, text("other"), value, NULL, NULL), KVC_OK);
    return 0;
}

static int close_it(void **state)
{
    (void)state;
    free(long_value);
    assert_status(kvc_cq_free(queue), KVC_OK);
    return kvc_close(client);
}

static kvc_scan_options options_of(const char *pattern, uint32_t flags)
{
    kvc_scan_options options = {.size = sizeof options, .flags = flags, .pattern = text(pattern)};
    return options;
}

static kvc_op scan_op(const kvc_scan_options *options, kvc_page **page)
{
    kvc_op op = {.size = sizeof op, .kind = KVC_OP_SCAN, .scan = options, .page = page};
    return op;
}

/* Returns the next page, by a call, a queue or a batch. */
static kvc_page *page_at(uint64_t token, const kvc_scan_options *options, int how)
{
    kvc_page *page = NULL;
    kvc_op op = scan_op(options, &page);
    kvc_completion done;

    op.token = token;
    if (how == 0) {
        assert_status(kvc_scan(client, token, options, &page), KVC_OK);
    } else if (how == 1) {
        done = run_op(queue, op);
        assert_status(done.status, KVC_OK);
        assert_true(done.value.data == NULL && done.value.version == 0 && done.copies == 0);
    } else {
        assert_status(kvc_batch(client, &op, 1, &done, NULL), KVC_OK);
    }
    assert_non_null(page);
    return page;
}

static void every_way_returns_each_key_once(void **state)
{
    const kvc_scan_options options = options_of("scanned/*", KVC_SCAN_VALUES | KVC_SCAN_DEADLINES);
    uint64_t token, count = 0;
    kvc_page *page;
    size_t n, longs;
    int how, seen[KEYS], i;

    (void)state;
    for (how = 0; how < 3; how++) {
        memset(seen, 0, sizeof seen);
        token = longs = 0;
        do {
            page = page_at(token, &options, how);
            for (n = 0; n < page->count; n++) {
                const kvc_entry entry = page->entries[n];
                char key[32];

                assert_true(entry.deadline_ms == 0 && entry.version > 0);
                snprintf(key, sizeof key, "%.*s", (int)entry.key.len, (const char *)entry.key.data);
                if (strcmp(key, "scanned/long") == 0) {
                    longs++;
                    assert_int_equal(entry.value.len, LONG_VALUE);
                    assert_true((entry.value.data != NULL) == (how == 0)); /* only the call fetches it */
                    continue;
                }
                assert_int_equal(entry.value.len, 5);
                assert_memory_equal(entry.value.data, "value", 5);
                i = atoi(strchr(key, '/') + 1);
                assert_in_range(i, 0, KEYS - 1);
                seen[i]++;
            }
            token = page->next;
            if (token == 0)
                assert_int_equal(page->places_done, page->places);
            kvc_page_free(page);
        } while (token != 0);
        assert_int_equal(longs, 1);
        for (n = 0; n < KEYS; n++)
            assert_int_equal(seen[n], 1);
    }
    assert_status(kvc_count(client, 0, &count), KVC_OK);
    assert_int_equal(count, KEYS + 2);
}

static void deadlines_are_zero_unless_requested(void **state)
{
    const uint64_t at = (UINT64_C(1) << 48) - 1;
    kvc_scan_options options = options_of("other", KVC_SCAN_DEADLINES);
    uint64_t token = 0, found = 0;
    kvc_page *page;

    (void)state;
    assert_status(kvc_expire(client, text("other"), KVC_EXPIRY_AT, at, NULL, NULL, NULL), KVC_OK);
    assert_status(kvc_expire(client, text("other"), KVC_EXPIRY_AT, at + 1, NULL, NULL, NULL), KVC_INVALID);
    assert_non_null(strstr(kvc_last_error(), "281474976710655"));
    for (; options.flags != UINT32_MAX; options.flags = options.flags == 0 ? UINT32_MAX : 0) {
        do {
            page = page_at(token, &options, 1);
            if (page->count == 1) {
                found++;
                assert_true(page->entries[0].deadline_ms == (options.flags == 0 ? 0 : at));
                assert_null(page->entries[0].value.data);
                assert_int_equal(page->entries[0].value.len, 5);
            }
            token = page->next;
            kvc_page_free(page);
        } while (token != 0);
    }
    assert_int_equal(found, 2);
    assert_status(kvc_persist(client, text("other"), NULL, NULL), KVC_OK);
}

static void pages_of_a_queue_that_is_freed_may_be_freed(void **state)
{
    const kvc_scan_options options = options_of("*", KVC_SCAN_VALUES);
    kvc_cq *other = new_queue(client, 3);
    kvc_completion done;
    kvc_page *pages[3];
    kvc_op op;
    int n;

    (void)state;
    for (n = 0; n < 3; n++) {
        memset(&pages[n], 0x5a, sizeof pages[n]);
        op = scan_op(&options, &pages[n]);
        assert_status(kvc_cq_submit(other, &op, (uint64_t)n), KVC_OK);
        assert_null(pages[n]);
    }
    done = next_completion(other); /* the others were received or not */
    assert_non_null(pages[done.tag]);
    assert_status(kvc_cq_free(other), KVC_OK);
    for (n = 0; n < 3; n++)
        kvc_page_free(pages[n]);
}

static void a_scan_that_fails_leaves_no_page(void **state)
{
    kvc_scan_options options = options_of("*", 0);
    kvc_page *page = NULL;
    kvc_op op = scan_op(&options, &page);
    kvc_completion done;

    (void)state;
    op.token = UINT64_MAX;
    assert_status(run_op(queue, op).status, KVC_INVALID);
    assert_null(page);
    op.token = 0;
    assert_status(kvc_cq_submit(queue, &op, 7), KVC_OK);
    assert_status(kvc_cq_cancel(queue, 7), KVC_OK);
    done = next_completion(queue);
    assert_status(done.status, KVC_CANCELLED);
    assert_null(page);
    options.flags = 4;
    assert_status(kvc_cq_submit(queue, &op, 7), KVC_INVALID);
    assert_status(kvc_scan(client, 0, &options, &page), KVC_INVALID);
    assert_status(kvc_scan(client, 0, NULL, NULL), KVC_INVALID);
    assert_status(kvc_count(client, 0, NULL), KVC_INVALID);
    assert_null(page);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_returns_each_key_once),
        cmocka_unit_test(deadlines_are_zero_unless_requested),
        cmocka_unit_test(pages_of_a_queue_that_is_freed_may_be_freed),
        cmocka_unit_test(a_scan_that_fails_leaves_no_page),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, open_it, close_it);
}
