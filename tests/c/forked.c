/* The child of a fork releases inherited descriptors while its parent continues: forked ENDPOINT. */
#include "suite.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>

static const char *endpoint;

/* Counts the descriptors of this process, except those of valgrind, which are beyond the soft limit. */
static int count_descriptors(void)
{
    DIR *descriptors = opendir("/proc/self/fd");
    const struct dirent *entry;
    struct rlimit limit;
    int count = 0;

    if (descriptors == NULL || getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -1;
    while ((entry = readdir(descriptors)) != NULL)
        count += entry->d_name[0] != '.' && strtoul(entry->d_name, NULL, 10) < limit.rlim_cur;
    closedir(descriptors);
    return count;
}

static bool is_running(pid_t child)
{
    siginfo_t info;

    memset(&info, 0, sizeof info);
    assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOHANG | WNOWAIT), 0);
    return info.si_pid == 0;
}

static void a_child_releases_descriptors_and_its_parent_continues(void **state)
{
    enum { CHILDREN = 3 };
    const int before = count_descriptors();
    kvc_client *client = open_client(endpoint, NULL);
    kvc_cq *queue = new_queue(client, 8);
    kvc_op op = put_op(text("forked, queued"), text("v"));
    kvc_counters counters = {.size = sizeof counters};
    kvc_completion done;
    kvc_buf got;
    pid_t child;
    int n;

    (void)state;
    assert_status(kvc_ping(client, bytes(NULL, 0), 0, NULL), KVC_OK);
    assert_true(kvc_cq_fd(queue) >= 0); /* creates a timer */
    assert_int_equal(run_op(queue, op).status, KVC_OK);
    assert_status(kvc_close_forked(client), KVC_INVALID);
    assert_status(kvc_cq_free_forked(queue), KVC_INVALID);
    assert_status(kvc_close_forked(NULL), KVC_OK);
    assert_status(kvc_cq_free_forked(NULL), KVC_OK);
    for (n = 0; n < CHILDREN; n++) {
        const int with_handle = count_descriptors();

        assert_true(with_handle >= before + 7);
        /* One operation has completed, and one is submitted but not sent. */
        assert_status(kvc_cq_submit(queue, &op, 1), KVC_OK);
        assert_int_equal(kvc_cq_poll(queue, &done, 1, TIMEOUT_MS), 1);
        assert_status(kvc_cq_submit(queue, &op, 2), KVC_OK);
        child = fork();
        if (child == 0) {
            kvc_client *own = NULL;
            int is_good = count_descriptors() == with_handle &&
                          kvc_get(client, text("k"), NULL, &got) == KVC_FORKED &&
                          kvc_interrupt(client) == KVC_FORKED;

            if (n == 1) /* in either order */
                is_good = is_good && kvc_cq_free_forked(queue) == KVC_OK;
            is_good = is_good && kvc_close_forked(client) == KVC_OK;
            if (n != 1)
                is_good = is_good && kvc_cq_free_forked(queue) == KVC_OK;
            is_good = is_good && count_descriptors() == before &&
                      kvc_open(endpoint, NULL, &own) == KVC_OK &&
                      kvc_put(own, text("forked"), text("child"), NULL, NULL) == KVC_OK &&
                      kvc_close(own) == KVC_OK && count_descriptors() == before;
            end_child(is_good);
        }
        /* The parent works while the child closes its copies. */
        do
            assert_status(kvc_put(client, text("forked, busy"), text("v"), NULL, NULL), KVC_OK);
        while (is_running(child));
        await_child(child);
        done = next_completion(queue);
        assert_true(done.tag == 2 && done.status == KVC_OK);
        assert_int_equal(run_op(queue, op).status, KVC_OK);
        assert_status(kvc_ping(client, bytes(NULL, 0), 0, NULL), KVC_OK);
        assert_status(kvc_get(client, text("forked"), NULL, &got), KVC_OK);
        assert_string_equal(got.data, "child");
        kvc_buf_free(&got);
    }
    /* No child has closed a connection of the parent. */
    assert_int_equal(counters_of(client).connections_lost, 0);
    assert_status(kvc_cq_statistics(queue, &counters, NULL, 0), KVC_OK);
    assert_int_equal(counters.connections_lost, 0);
    kvc_cq_free(queue);
    kvc_close(client);
    assert_int_equal(count_descriptors(), before);
}

static atomic_bool is_over;

static void *write_on(void *client)
{
    char key[32];
    int n;

    for (n = 0; !atomic_load(&is_over); n++) {
        snprintf(key, sizeof key, "forked-%d", n % 100);
        if (kvc_put(client, text(key), text("v"), NULL, NULL) != KVC_OK)
            return client;
    }
    return NULL;
}

static void *poll_on(void *queue)
{
    kvc_op op = put_op(text("forked, polled"), text("v"));
    kvc_completion done;

    while (!atomic_load(&is_over))
        if (kvc_cq_submit(queue, &op, 1) != KVC_OK || kvc_cq_poll(queue, &done, 1, -1) != 1 ||
            done.status != KVC_OK)
            return queue;
    return NULL;
}

/* At the fork, threads of the parent are anywhere in their calls, with or without the lock of the handle. */
static void a_child_releases_descriptors_whatever_its_parents_threads_did(void **state)
{
    enum { THREADS = 4, CHILDREN = 60, SERVERS = 3 };
    const int before = count_descriptors();
    pthread_t threads[THREADS + 1];
    kvc_client *client = open_client(endpoint, NULL);
    kvc_cq *queue = new_queue(client, 1);
    char key[32];
    void *wrong;
    pid_t child;
    int n;

    (void)state;
    /* Opens most connections before the forks. Then the handle and the queue have more descriptors than may remain. */
    assert_status(kvc_ping(client, bytes(NULL, 0), 0, NULL), KVC_OK);
    assert_true(kvc_cq_fd(queue) >= 0);
    for (n = 0; n < 50; n++) {
        snprintf(key, sizeof key, "forked-%d", n);
        assert_int_equal(run_op(queue, put_op(text(key), text("v"))).status, KVC_OK);
    }
    assert_true(count_descriptors() >= before + 2 * (SERVERS + 1) + 2);
    atomic_store(&is_over, false);
    for (n = 0; n < THREADS; n++)
        assert_int_equal(pthread_create(&threads[n], NULL, write_on, client), 0);
    assert_int_equal(pthread_create(&threads[n], NULL, poll_on, queue), 0);
    for (n = 0; n < CHILDREN; n++) {
        child = fork();
        if (child == 0) {
            const int is_good = kvc_close_forked(client) == KVC_OK && kvc_cq_free_forked(queue) == KVC_OK;
            const int left = count_descriptors() - before;

            /* At most one that a thread was opening for the handle, and one for the queue. */
            if (!is_good || left < 0 || left > 2)
                fprintf(stderr, "child %d: %d descriptors are left (%s)\n", n, left, kvc_last_error());
            end_child(is_good && left >= 0 && left <= 2);
        }
        await_child(child);
    }
    atomic_store(&is_over, true);
    for (n = 0; n <= THREADS; n++) {
        assert_int_equal(pthread_join(threads[n], &wrong), 0);
        assert_null(wrong);
    }
    assert_int_equal(counters_of(client).connections_lost, 0);
    kvc_cq_free(queue);
    kvc_close(client);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_releases_descriptors_and_its_parent_continues),
        cmocka_unit_test(a_child_releases_descriptors_whatever_its_parents_threads_did),
    };

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
