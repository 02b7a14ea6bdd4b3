/* A handle whose cluster is stopped and restored, and then replaced by an unrelated one: restored ENDPOINT
   FILE. It creates FILE.stored after its first writes, waits for FILE.restored, creates FILE.read, and waits
   for FILE.replaced. */
#include "suite.h"

static const char *endpoint;
static const char *file;

static void path_of(char *path, size_t room, const char *what)
{
    snprintf(path, room, "%s.%s", file, what);
}

static void say(const char *what)
{
    char path[4096];
    FILE *made;

    path_of(path, sizeof path, what);
    made = fopen(path, "w");
    assert_non_null(made);
    assert_int_equal(fclose(made), 0);
}

static void wait_for(const char *what)
{
    char path[4096];
    const int64_t start = now_ms();

    path_of(path, sizeof path, what);
    while (access(path, F_OK) != 0) {
        assert_true(now_ms() - start < TIMEOUT_MS);
        usleep(1000);
    }
}

static void a_handle_follows_its_cluster_through_a_restore_and_no_other(void **state)
{
    const kvc_op_options options = within(20000);
    kvc_client *client = open_client(endpoint, NULL);
    kvc_result before, after;
    kvc_buf got;
    int64_t start;

    (void)state;
    assert_status(kvc_put(client, text("in C"), text("before"), &options, &before), KVC_OK);
    say("stored");
    wait_for("restored");
    assert_status(kvc_get(client, text("in C"), &options, &got), KVC_OK);
    assert_int_equal(got.len, strlen("before"));
    kvc_buf_free(&got);
    assert_status(kvc_put(client, text("in C"), text("after"), &options, &after), KVC_OK);
    assert_true(after.version > before.version);
    say("read");
    wait_for("replaced");
    start = now_ms();
    assert_status(kvc_get(client, text("in C"), &options, &got), KVC_OTHER_CLUSTER);
    assert_status(kvc_put(client, text("in C"), text("lost"), &options, NULL), KVC_OTHER_CLUSTER);
    assert_true(now_ms() - start < 10000);
    assert_string_equal(kvc_status_name(KVC_OTHER_CLUSTER), "KVC_OTHER_CLUSTER");
    assert_status(kvc_close(client), KVC_OK);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_handle_follows_its_cluster_through_a_restore_and_no_other),
    };

    assert_int_equal(argc, 3);
    endpoint = argv[1];
    file = argv[2];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
