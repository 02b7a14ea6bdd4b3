/* The counters of a handle and of a queue, and pings, against a healthy cluster: statistics ENDPOINT. */
#include "suite.h"

#define MOST_SERVERS 8

static const char *endpoint;

/* The counters of a handle with those of its servers. */
struct numbers {
    kvc_counters all;
    kvc_server_counters servers[MOST_SERVERS];
};

static struct numbers numbers_of(kvc_client *client)
{
    struct numbers numbers;

    memset(&numbers, 0x5a, sizeof numbers);
    numbers.all.size = sizeof numbers.all;
    numbers.servers[0].size = sizeof numbers.servers[0];
    assert_status(kvc_statistics(client, &numbers.all, numbers.servers, MOST_SERVERS), KVC_OK);
    assert_in_range(numbers.all.servers, 0, MOST_SERVERS);
    return numbers;
}

static uint64_t sum_of(const struct numbers *numbers, size_t offset)
{
    uint64_t sum = 0, number;
    uint32_t n;

    for (n = 0; n < numbers->all.servers; n++) {
        memcpy(&number, (const char *)&numbers->servers[n] + offset, sizeof number);
        sum += number;
    }
    return sum;
}

#define SUM(numbers, field) sum_of(numbers, offsetof(kvc_server_counters, field))

static void a_handle_counts_what_its_calls_do(void **state)
{
    enum { KEYS = 60, BYTES = 2000 };
    kvc_client *client = open_client(endpoint, NULL);
    char key[32], value[BYTES] = {0};
    struct numbers before, after;
    kvc_buf got;
    uint32_t server;
    int n;

    (void)state;
    before = numbers_of(client);
    assert_true(before.all.servers == 0 && before.all.operations == 0 && before.all.maps == 0);
    assert_true(before.all.heard_ms == KVC_NEVER && before.all.map_revision == 0);
    for (n = 0; n < KEYS; n++) {
        snprintf(key, sizeof key, "count-%d", n);
        assert_status(kvc_put(client, text(key), bytes(value, BYTES), NULL, NULL), KVC_OK);
        assert_status(kvc_get(client, text(key), NULL, &got), KVC_OK);
        kvc_buf_free(&got);
        assert_status(kvc_delete(client, text(key), NULL, NULL), KVC_OK);
    }
    after = numbers_of(client);
    assert_int_equal(after.all.size, sizeof after.all);
    assert_int_equal(after.all.servers, 3);
    assert_int_equal(after.all.operations, 3 * KEYS);
    assert_int_equal(after.all.in_flight, 0);
    assert_int_equal(after.all.bytes_in_flight, 0);
    assert_true(after.all.maps >= 1 && after.all.map_revision > 0);
    assert_true(after.all.heard_ms < TIMEOUT_MS);
    /* On a busy machine the handle may have retried operations. */
    assert_in_range(after.all.requests, 3 * KEYS, 3 * KEYS + after.all.retries);
    assert_in_range(after.all.responses, 3 * KEYS, after.all.requests);
    assert_in_range(after.all.bytes_sent, KEYS * BYTES, 2 * KEYS * BYTES * (1 + after.all.retries));
    assert_in_range(after.all.bytes_received, KEYS * BYTES, 2 * KEYS * BYTES * (1 + after.all.retries));
    assert_true(after.all.in_doubt == 0 && after.all.unsettled == 0 && after.all.given_up == 0);
    assert_int_equal(after.all.connections_open,
                     after.all.connections_opened - after.all.connections_lost);
    assert_int_equal(SUM(&after, requests), after.all.requests);
    assert_int_equal(SUM(&after, responses), after.all.responses);
    assert_int_equal(SUM(&after, connections_open), after.all.connections_open);
    assert_int_equal(SUM(&after, connections_opened), after.all.connections_opened);
    assert_int_equal(SUM(&after, retries), after.all.retries);
    /* The map arrives over a separate connection. */
    assert_true(SUM(&after, bytes_received) < after.all.bytes_received);
    for (server = 0; server < 3; server++) {
        const kvc_server_counters *of = &after.servers[server];

        assert_int_equal(of->size, sizeof *of);
        assert_int_equal(of->server, server);
        assert_true(of->is_up == 1 && of->reserved == 0 && of->outstanding == 0);
        assert_true(of->requests > 0 && of->connections_open > 0 && of->heard_ms < TIMEOUT_MS);
        assert_non_null(strchr(of->address, ':'));
    }
    /* Nothing is written beyond the array. */
    assert_int_equal(after.servers[3].size, 0x5a5a5a5a);
    assert_true(numbers_of(client).all.requests == after.all.requests);
    kvc_close(client);
}

static void a_queue_counts_for_itself(void **state)
{
    enum { OPERATIONS = 10 };
    kvc_client *client = open_client(endpoint, NULL);
    kvc_cq *queue = new_queue(client, OPERATIONS);
    kvc_counters of_queue = {.size = sizeof of_queue};
    kvc_server_counters servers[2] = {{.size = sizeof servers[0]}};
    kvc_op op = put_op(text("counted"), text("value"));
    kvc_completion done;
    uint64_t tag;

    (void)state;
    for (tag = 0; tag < OPERATIONS; tag++)
        assert_status(kvc_cq_submit(queue, &op, tag), KVC_OK);
    assert_status(kvc_cq_statistics(queue, &of_queue, NULL, 0), KVC_OK);
    assert_int_equal(of_queue.operations, OPERATIONS);
    assert_int_equal(of_queue.in_flight, OPERATIONS);
    assert_int_equal(of_queue.bytes_in_flight, OPERATIONS * strlen("countedvalue"));
    assert_int_equal(of_queue.requests, 0);
    for (tag = 0; tag < OPERATIONS; tag++) {
        done = next_completion(queue);
        assert_int_equal(done.status, KVC_OK);
    }
    assert_status(kvc_cq_statistics(queue, &of_queue, servers, 2), KVC_OK);
    assert_int_equal(of_queue.in_flight, 0);
    assert_true(of_queue.responses >= OPERATIONS && of_queue.servers == 3);
    assert_true(servers[0].server == 0 && servers[1].server == 1 && servers[1].is_up == 1);
    assert_int_equal(counters_of(client).operations, 0);
    assert_int_equal(run_op(queue, delete_op(text("counted"))).status, KVC_OK);
    kvc_cq_free(queue);
    kvc_close(client);
}

static void every_connection_of_a_shard_counts(void **state)
{
    kvc_client *client;
    kvc_options options;
    char key[32];
    int n;

    (void)state;
    assert_status(kvc_options_init(&options, sizeof options), KVC_OK);
    options.connections_per_shard = 4;
    client = open_client(endpoint, &options);
    for (n = 0; n < 40; n++) {
        snprintf(key, sizeof key, "lane-%d", n);
        assert_status(kvc_delete(client, text(key), NULL, NULL), KVC_NOT_FOUND);
    }
    assert_int_equal(counters_of(client).operations, 40);
    assert_true(counters_of(client).connections_open > 3);
    assert_int_equal(numbers_of(client).all.servers, 3);
    kvc_close(client);
}

static void structs_of_other_headers_are_accepted_and_invalid_ones_are_rejected(void **state)
{
    struct { kvc_counters counters; uint64_t more; } newer;
    kvc_client *client = open_client(endpoint, NULL);
    kvc_cq *queue = new_queue(client, 1);
    kvc_counters counters = {.size = 16, .in_flight = 7};
    kvc_server_counters server = {.size = 3};

    (void)state;
    assert_status(kvc_ping(client, text("k"), 0, NULL), KVC_OK);
    assert_status(kvc_statistics(client, &counters, NULL, 0), KVC_OK);
    assert_true(counters.operations == 1 && counters.in_flight == 7 && counters.size == 16);
    memset(&newer, 0x5a, sizeof newer);
    newer.counters.size = sizeof newer;
    assert_status(kvc_statistics(client, &newer.counters, NULL, 0), KVC_OK);
    assert_true(newer.counters.operations == 1 && newer.more == 0);
    assert_status(kvc_statistics(client, &counters, &server, 1), KVC_INVALID);
    assert_status(kvc_statistics(client, &counters, NULL, 1), KVC_INVALID);
    assert_status(kvc_statistics(client, NULL, NULL, 0), KVC_INVALID);
    assert_status(kvc_statistics(NULL, &counters, NULL, 0), KVC_INVALID);
    assert_status(kvc_cq_statistics(queue, NULL, NULL, 0), KVC_INVALID);
    assert_status(kvc_cq_statistics(NULL, &counters, NULL, 0), KVC_INVALID);
    counters.size = 0;
    assert_status(kvc_statistics(client, &counters, NULL, 0), KVC_INVALID);
    assert_non_null(strstr(kvc_last_error(), "sizeof(kvc_counters)"));
    kvc_cq_free(queue);
    kvc_close(client);
}

static void a_ping_goes_to_one_server_or_to_all(void **state)
{
    kvc_client *client = open_client(endpoint, NULL), *nobody = open_client("127.0.0.1:1", NULL);
    struct numbers numbers;
    uint64_t took = 0, untouched = 7;
    uint32_t server;

    (void)state;
    assert_status(kvc_ping(client, text("k"), 0, &took), KVC_OK);
    assert_in_range(took, 1, (uint64_t)TIMEOUT_MS * 1000000);
    numbers = numbers_of(client);
    assert_int_equal(numbers.all.connections_open, 1);
    took = 0;
    assert_status(kvc_ping(client, bytes(NULL, 0), 0, &took), KVC_OK);
    assert_in_range(took, 1, (uint64_t)TIMEOUT_MS * 1000000);
    numbers = numbers_of(client);
    for (server = 0; server < 3; server++)
        assert_true(numbers.servers[server].responses > 0);
    assert_status(kvc_ping(client, bytes(NULL, 0), 0, NULL), KVC_OK);
    assert_status(kvc_ping(nobody, text("k"), 100, &untouched), KVC_UNAVAILABLE);
    assert_status(kvc_ping(nobody, bytes(NULL, 0), 100, &untouched), KVC_UNAVAILABLE);
    assert_int_equal(untouched, 7);
    assert_int_equal(counters_of(nobody).unserved, 2);
    assert_status(kvc_ping(client, bytes(NULL, 1), 0, NULL), KVC_INVALID);
    assert_status(kvc_ping(client, text("k"), 60001, NULL), KVC_INVALID);
    assert_status(kvc_ping(NULL, text("k"), 0, NULL), KVC_INVALID);
    kvc_close(nobody);
    kvc_close(client);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_handle_counts_what_its_calls_do),
        cmocka_unit_test(a_queue_counts_for_itself),
        cmocka_unit_test(every_connection_of_a_shard_counts),
        cmocka_unit_test(structs_of_other_headers_are_accepted_and_invalid_ones_are_rejected),
        cmocka_unit_test(a_ping_goes_to_one_server_or_to_all),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
