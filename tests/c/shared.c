/* One handle in many threads: shared ENDPOINT, for three servers with eight shards each. */
#include "suite.h"

#include <sys/resource.h>

#define THREADS 64
#define SHARDS (3 * 8)
#define OPS 300

static const char *endpoint;
static kvc_client *client;

static int descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count - 3; /* ".", ".." and the directory itself */
}

static void *put_and_get(void *number)
{
    int n;

    for (n = 0; n < OPS; n++) {
        char name[32];
        kvc_buf got;

        snprintf(name, sizeof name, "%d-%d", *(int *)number, n % 100);
        assert_status(kvc_put(client, text(name), text(name), NULL, NULL), KVC_OK);
        assert_status(kvc_get(client, text(name), NULL, &got), KVC_OK);
        assert_string_equal(got.data, name);
        kvc_buf_free(&got);
    }
    return NULL;
}

/* The handle needs one descriptor for each shard of a server, one for epoll, and one for interrupts. */
static void threads_share_descriptors(void **state)
{
    const int before = descriptors();

    (void)state;
    client = open_client(endpoint, NULL);
    in_threads(THREADS, put_and_get);
    assert_in_range(descriptors() - before, 3, SHARDS + 2);
    kvc_close(client);
    assert_int_equal(descriptors(), before);
}

/* Three connections must suffice for 24 shards: an idle one is closed for another. */
static void few_descriptors_are_enough(void **state)
{
    struct rlimit limit, low;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    low = limit;
    low.rlim_cur = (rlim_t)descriptors() + 2 + 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    client = open_client(endpoint, NULL);
    in_threads(8, put_and_get);
    kvc_close(client);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_share_descriptors),
        cmocka_unit_test(few_descriptors_are_enough),
    };

    if (argc != 2)
        return 2;
    endpoint = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
