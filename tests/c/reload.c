/* Loads and unloads the library a hundred times: descriptors and memory do not grow. This program is not linked with
   the library. */
#include "suite.h"

#include <dirent.h>
#include <dlfcn.h>

static const char *endpoint;

static int descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

/* Looks up a function by name; ISO C has no conversion from data to function pointers. */
#define FIND(library, name, pointer)                                                              \
    do {                                                                                          \
        void *found_ = dlsym(library, name);                                                      \
        assert_non_null(found_);                                                                  \
        memcpy(&pointer, &found_, sizeof pointer);                                                \
    } while (0)

static void use_once(void)
{
    void *library = dlopen("libkvclient.so.1", RTLD_NOW | RTLD_LOCAL);
    int (*open_handle)(const char *, const kvc_options *, kvc_client **);
    int (*put)(kvc_client *, kvc_slice, kvc_slice, const kvc_op_options *, kvc_result *);
    int (*close_handle)(kvc_client *);
    int (*make_queue)(kvc_client *, uint32_t, kvc_cq **);
    int (*submit)(kvc_cq *, const kvc_op *, uint64_t);
    int (*poll_queue)(kvc_cq *, kvc_completion *, size_t, int);
    int (*descriptor)(kvc_cq *);
    int (*free_queue)(kvc_cq *);
    void (*free_value)(kvc_buf *);
    const kvc_op op = get_op(text("loaded"));
    kvc_completion done;
    kvc_cq *queue = NULL;
    kvc_client *client = NULL;

    if (library == NULL)
        fail_msg("dlopen: %s", dlerror());
    FIND(library, "kvc_open", open_handle);
    FIND(library, "kvc_put", put);
    FIND(library, "kvc_close", close_handle);
    FIND(library, "kvc_cq_new", make_queue);
    FIND(library, "kvc_cq_submit", submit);
    FIND(library, "kvc_cq_poll", poll_queue);
    FIND(library, "kvc_cq_fd", descriptor);
    FIND(library, "kvc_cq_free", free_queue);
    FIND(library, "kvc_buf_free", free_value);
    assert_int_equal(open_handle(endpoint, NULL, &client), KVC_OK);
    assert_int_equal(put(client, text("loaded"), text("again"), NULL, NULL), KVC_OK);
    assert_int_equal(make_queue(client, 8, &queue), KVC_OK);
    assert_true(descriptor(queue) >= 0);
    assert_int_equal(submit(queue, &op, 1), KVC_OK);
    assert_int_equal(submit(queue, &op, 2), KVC_OK);
    /* The other value is not polled: the queue frees it. */
    assert_int_equal(poll_queue(queue, &done, 1, TIMEOUT_MS), 1);
    assert_int_equal(done.value.len, 5);
    free_value(&done.value);
    assert_int_equal(free_queue(queue), KVC_OK);
    assert_int_equal(close_handle(client), KVC_OK);
    assert_int_equal(dlclose(library), 0);
}

static void loading_a_hundred_times_leaves_nothing(void **state)
{
    int n, before;
    size_t memory;

    (void)state;
    /* Memory that remains is allocated in the first rounds: the library itself (nodelete) and libc's caches. */
    for (n = 0; n < 3; n++)
        use_once();
    before = descriptors();
    memory = allocated();
    for (n = 0; n < 100; n++)
        use_once();
    assert_int_equal(descriptors(), before);
    assert_int_equal(allocated(), memory);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(loading_a_hundred_times_leaves_nothing)};

    endpoint = argc == 2 ? argv[1] : "";
    return cmocka_run_group_tests(tests, NULL, NULL);
}
