/* Writes while one server is stopped, as primary of some keys and as secondary of others: stopped_server ENDPOINT
   PID. Each write in doubt is settled once its group has failed over, and the outcome is final. */
#include "suite.h"

enum { KEYS = 24 };

static pid_t server;
static kvc_client *client;

static void writes_in_doubt_are_settled_after_the_failover(void **state)
{
    const kvc_op_options brief = within(300), long_enough = within(30000);
    static char names[KEYS][32];
    static kvc_op ops[KEYS];
    static kvc_completion done[KEYS];
    kvc_result settled;
    kvc_buf got;
    int n, in_doubt = 0;

    (void)state;
    for (n = 0; n < KEYS; n++) {
        snprintf(names[n], sizeof names[n], "stopped-%d", n);
        assert_status(kvc_put(client, text(names[n]), text("before"), NULL, NULL), KVC_OK);
        ops[n] = put_op(text(names[n]), text("after"));
    }
    stop_processes(&server, 1);
    assert_true(kvc_batch(client, ops, KEYS, done, &brief) != KVC_OK);
    for (n = 0; n < KEYS; n++) {
        int status = done[n].status;
        uint64_t version = done[n].value.version;

        /* Keys whose holders are the two other servers are written meanwhile. */
        assert_true(status == KVC_OK || status == KVC_IN_DOUBT || status == KVC_UNAVAILABLE);
        if (status == KVC_IN_DOUBT) {
            in_doubt++;
            assert_true(done[n].doubt.opaque[0] != 0);
            status = kvc_resolve(client, done[n].doubt, long_enough.timeout_ms, &settled);
            assert_true(status == KVC_OK || status == KVC_NOT_DONE);
            version = settled.version;
        }
        assert_status(kvc_get(client, text(names[n]), &long_enough, &got), KVC_OK);
        assert_string_equal(got.data, status == KVC_OK ? "after" : "before");
        assert_true(status != KVC_OK || got.version == version);
        kvc_buf_free(&got);
    }
    /* Each of 24 keys is on two of three servers: about 16 are on the stopped one. */
    assert_in_range(in_doubt, 1, KEYS);
    /* Usually the coordinator has killed and replaced the process by now. */
    (void)kill(server, SIGCONT);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_in_doubt_are_settled_after_the_failover),
    };
    int failed;

    if (argc != 3)
        return 2;
    server = atoi(argv[2]);
    client = open_client(argv[1], NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    kvc_close(client);
    return failed;
}
