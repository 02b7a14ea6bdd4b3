/* An event loop, and the log, while a server is killed: takeover ENDPOINT SERVER-PID. */
#include "suite.h"

#define DEPTH 64
/* Long enough for another server to take over, so that nothing is left in doubt. */
#define DEADLINE_MS 20000
#define WRITES 6000
#define BEFORE 2000 /* completed when the server is killed */

static pid_t victim;
static kvc_client *client;

/* The number of log lines of each level, and the defect of one, if any. */
struct lines {
    pthread_mutex_t mutex;
    int count[KVC_LOG_DEBUG + 1];
    const char *wrong;
};

static struct lines lines = {PTHREAD_MUTEX_INITIALIZER, {0}, NULL};

static void take_line(void *argument, int level, const char *words)
{
    struct lines *to = argument;

    pthread_mutex_lock(&to->mutex);
    if (level < KVC_LOG_WARNING || level > KVC_LOG_DEBUG)
        to->wrong = "an unknown level";
    else if (words == NULL || *words == '\0')
        to->wrong = "no words";
    else if (strchr(words, '\n') != NULL)
        to->wrong = "a line end";
    else
        to->count[level]++;
    pthread_mutex_unlock(&to->mutex);
}

static void a_queue_survives_the_loss_of_a_server_and_loses_no_write(void **state)
{
    static int64_t begun[WRITES];
    static unsigned char ended[WRITES];
    kvc_cq *queue = new_queue(client, DEPTH);
    const int fd = kvc_cq_fd(queue);
    kvc_completion done[DEPTH];
    int submitted = 0, taken = 0, count, n;
    char key[32], room[32];
    size_t len;

    (void)state;
    while (taken < WRITES) {
        int status = KVC_OK;
        while (submitted < WRITES && status == KVC_OK) {
            kvc_op op;
            snprintf(key, sizeof key, "takeover-%d", submitted);
            op = put_op(text(key), text(key));
            op.timeout_ms = DEADLINE_MS;
            begun[submitted] = now_ms();
            status = kvc_cq_submit(queue, &op, submitted);
            submitted += status == KVC_OK;
        }
        assert_true(status == KVC_OK || status == KVC_FULL);
        assert_true(is_readable(fd, TIMEOUT_MS));
        count = kvc_cq_poll(queue, done, DEPTH, 0);
        assert_in_range(count, 0, DEPTH);
        for (n = 0; n < count; n++) {
            if (done[n].status != KVC_OK)
                fail_msg("%s: %s", kvc_status_name(done[n].status), done[n].words);
            assert_int_equal(ended[done[n].tag]++, 0);
            assert_true(now_ms() - begun[done[n].tag] < DEADLINE_MS + SLACK_MS);
        }
        if (taken < BEFORE && taken + count >= BEFORE)
            kill(victim, SIGKILL); /* with operations in flight */
        taken += count;
    }
    assert_status(kvc_cq_free(queue), KVC_OK);
    for (n = 0; n < WRITES; n++) {
        snprintf(key, sizeof key, "takeover-%d", n);
        assert_status(kvc_get_into(client, text(key), room, sizeof room, &len, NULL, NULL), KVC_OK);
        assert_int_equal(len, strlen(key));
        assert_memory_equal(room, key, len);
    }
}

static void the_log_of_a_failover_has_warnings_and_lower_levels_in_well_formed_lines(void **state)
{
    (void)state;
    if (lines.wrong != NULL)
        fail_msg("the log got %s", lines.wrong);
    assert_true(lines.count[KVC_LOG_WARNING] > 0);
    assert_true(lines.count[KVC_LOG_INFO] + lines.count[KVC_LOG_DEBUG] > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_queue_survives_the_loss_of_a_server_and_loses_no_write),
        cmocka_unit_test(the_log_of_a_failover_has_warnings_and_lower_levels_in_well_formed_lines),
    };
    kvc_options options;
    int failed;

    if (argc != 3 || kvc_options_init(&options, sizeof options) != KVC_OK)
        return 2;
    victim = atoi(argv[2]);
    options.log = take_line;
    options.log_arg = &lines;
    client = open_client(argv[1], &options);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    kvc_close(client);
    return failed;
}
