/* Events of a handle and of a queue. While server 0 is killed: events ENDPOINT PID-OF-SERVER-0. While the cluster is
   healthy, and while it is stopped: events ENDPOINT PID..., the coordinator's pid before those of its servers. */
#include "suite.h"

#define MOST_EVENTS 4096
#define SERVERS 3

static const char *endpoint;
static pid_t pids[MOST_PIDS];
static int pid_count;

/* The events received, and the first error. */
struct told {
    pthread_mutex_t lock;
    int count;
    struct {
        uint32_t kind, server;
        uint64_t revision;
        char address[64], words[256];
        pthread_t thread;
    } events[MOST_EVENTS];
    kvc_client *client;
    kvc_cq *queue;
    const char *wrong;
};

static void copy(char *to, size_t room, const char *from)
{
    snprintf(to, room, "%s", from == NULL ? "" : from);
}

/* Makes every call on a handle or a queue from within the callback: each must return at once, all but kvc_interrupt
   and kvc_resume with an error. Returns the first defect. */
static const char *call_from_within(struct told *told)
{
    kvc_counters counters = {.size = sizeof counters};
    kvc_completion done;
    kvc_cq *queue = NULL;
    kvc_op op = get_op(text("within"));
    kvc_slice key = text("within");
    kvc_buf got;
    int status;

    if (told->client != NULL) {
        if (kvc_get(told->client, key, NULL, &got) != KVC_INVALID ||
            kvc_put(told->client, key, key, NULL, NULL) != KVC_INVALID ||
            kvc_mget(told->client, &key, 1, &got, &status, NULL) != KVC_INVALID)
            return "a call from within the callback was not rejected";
        if (strstr(kvc_last_error(), "event function") == NULL)
            return "the message does not name the reason";
        if (kvc_ping(told->client, key, 0, NULL) != KVC_INVALID ||
            kvc_statistics(told->client, &counters, NULL, 0) != KVC_INVALID ||
            kvc_cq_new(told->client, 1, &queue) != KVC_INVALID ||
            kvc_close(told->client) != KVC_INVALID)
            return "a call from within the callback was not rejected";
        if (kvc_interrupt(told->client) != KVC_OK || kvc_resume(told->client) != KVC_OK)
            return "an interrupt from within the callback was rejected";
    }
    if (told->queue != NULL &&
        (kvc_cq_submit(told->queue, &op, 1) != KVC_INVALID ||
         kvc_cq_poll(told->queue, &done, 1, 0) != KVC_INVALID ||
         kvc_cq_cancel(told->queue, 1) != KVC_INVALID || kvc_cq_fd(told->queue) != KVC_INVALID ||
         kvc_cq_statistics(told->queue, &counters, NULL, 0) != KVC_INVALID ||
         kvc_cq_free(told->queue) != KVC_INVALID))
        return "a call on the queue from within the callback was not rejected";
    return NULL;
}

static void take(void *context, const kvc_event *event)
{
    struct told *told = context;
    const char *wrong = NULL;

    pthread_mutex_lock(&told->lock);
    if (event->size < sizeof *event || event->words == NULL || *event->words == '\0' || event->reserved != 0)
        wrong = "an event has empty fields";
    if (told->count < MOST_EVENTS) {
        told->events[told->count].kind = event->kind;
        told->events[told->count].server = event->server;
        told->events[told->count].revision = event->revision;
        told->events[told->count].thread = pthread_self();
        copy(told->events[told->count].address, sizeof told->events->address, event->address);
        copy(told->events[told->count].words, sizeof told->events->words, event->words);
        told->count++;
    }
    if (wrong == NULL)
        wrong = call_from_within(told);
    if (told->wrong == NULL)
        told->wrong = wrong;
    pthread_mutex_unlock(&told->lock);
}

/* Counts the events of a kind from index `from` on, of one server or of all (KVC_NO_SERVER). */
static int count(struct told *told, int from, uint32_t kind, uint32_t server)
{
    int n, found = 0;

    pthread_mutex_lock(&told->lock);
    for (n = from; n < told->count; n++)
        found += told->events[n].kind == kind && (server == KVC_NO_SERVER || told->events[n].server == server);
    if (told->wrong != NULL)
        fail_msg("%s", told->wrong);
    pthread_mutex_unlock(&told->lock);
    return found;
}

static int all_so_far(struct told *told)
{
    int so_far;

    pthread_mutex_lock(&told->lock);
    so_far = told->count;
    pthread_mutex_unlock(&told->lock);
    return so_far;
}

static struct told *new_told(void)
{
    struct told *told = calloc(1, sizeof *told);

    assert_non_null(told);
    assert_int_equal(pthread_mutex_init(&told->lock, NULL), 0);
    return told;
}

static kvc_client *open_with(struct told *told)
{
    kvc_options options;

    assert_status(kvc_options_init(&options, sizeof options), KVC_OK);
    options.on_event = take;
    options.event_context = told;
    return open_client(endpoint, &options);
}

static void a_handle_reports_events_of_its_map_and_its_connections(void **state)
{
    struct told *told = new_told();
    kvc_client *client = open_with(told);
    uint32_t server;
    int n;

    (void)state;
    told->client = client;
    assert_int_equal(told->count, 0);
    assert_status(kvc_ping(client, bytes(NULL, 0), 0, NULL), KVC_OK);
    assert_true(count(told, 0, KVC_EVENT_MAP_CHANGED, KVC_NO_SERVER) >= 1);
    for (server = 0; server < SERVERS; server++) {
        assert_true(count(told, 0, KVC_EVENT_CONNECTION_OPENED, server) >= 1);
        assert_int_equal(count(told, 0, KVC_EVENT_SERVER_UP, server), 1);
        assert_int_equal(count(told, 0, KVC_EVENT_SERVER_DOWN, server), 0);
    }
    assert_int_equal(count(told, 0, KVC_EVENT_CONNECTION_OPENED, KVC_NO_SERVER),
                     counters_of(client).connections_opened);
    for (n = 0; n < told->count; n++) {
        assert_true(pthread_equal(told->events[n].thread, pthread_self()));
        assert_non_null(strchr(told->events[n].address, ':'));
        assert_int_equal(told->events[n].revision > 0, told->events[n].kind == KVC_EVENT_MAP_CHANGED);
    }
    told->client = NULL;
    kvc_close(client);
    free(told);
}

static void a_queue_reports_events_of_its_own(void **state)
{
    struct told *told = new_told();
    kvc_client *client = open_with(told);
    kvc_cq *queue = new_queue(client, 4);

    (void)state;
    told->queue = queue;
    assert_int_equal(run_op(queue, put_op(text("queue"), text("v"))).status, KVC_OK);
    assert_int_equal(count(told, 0, KVC_EVENT_CONNECTION_OPENED, KVC_NO_SERVER), 1);
    assert_int_equal(count(told, 0, KVC_EVENT_MAP_CHANGED, KVC_NO_SERVER), 1);
    assert_int_equal(counters_of(client).connections_opened, 0);
    told->queue = NULL;
    assert_int_equal(run_op(queue, delete_op(text("queue"))).status, KVC_OK);
    kvc_cq_free(queue);
    kvc_close(client);
    free(told);
}

static void a_write_in_doubt_is_an_event(void **state)
{
    const kvc_op_options options = within(300);
    struct told *told = new_told();
    kvc_client *client = open_with(told);
    int n;

    (void)state;
    assert_status(kvc_put(client, text("doubtful"), text("before"), NULL, NULL), KVC_OK);
    stop_processes(pids, pid_count);
    assert_status(kvc_put(client, text("doubtful"), text("after"), &options, NULL), KVC_IN_DOUBT);
    continue_processes(pids, pid_count);
    assert_int_equal(count(told, 0, KVC_EVENT_IN_DOUBT, KVC_NO_SERVER), 1);
    for (n = 0; told->events[n].kind != KVC_EVENT_IN_DOUBT; n++)
        assert_true(n < told->count);
    assert_in_range(told->events[n].server, 0, SERVERS - 1);
    assert_non_null(strstr(told->events[n].words, "doubtful"));
    assert_status(kvc_put(client, text("doubtful"), text("again"), NULL, NULL), KVC_OK);
    kvc_close(client);
    free(told);
}

static void a_killed_server_is_reported_as_events(void **state)
{
    const kvc_op_options options = within(20000);
    const int64_t deadline = now_ms() + TIMEOUT_MS;
    struct told *told = new_told();
    kvc_client *client = open_with(told);
    kvc_server_counters servers[SERVERS] = {{.size = sizeof servers[0]}};
    kvc_counters counters = {.size = sizeof counters};
    char key[32];
    int n, from;

    (void)state;
    told->client = client;
    assert_status(kvc_ping(client, bytes(NULL, 0), 20000, NULL), KVC_OK);
    from = all_so_far(told);
    assert_int_equal(kill(pids[0], SIGKILL), 0);
    /* The next map may be so late that another process already runs in the place of server 0. */
    for (n = 0; count(told, from, KVC_EVENT_CONNECTION_LOST, 0) == 0 ||
                count(told, from, KVC_EVENT_SERVER_DOWN, 0) + count(told, from, KVC_EVENT_SERVER_UP, 0) == 0;
         n++) {
        if (now_ms() > deadline)
            fail_msg("%d lost, %d maps", count(told, from, KVC_EVENT_CONNECTION_LOST, 0),
                     count(told, from, KVC_EVENT_MAP_CHANGED, KVC_NO_SERVER));
        snprintf(key, sizeof key, "killed-%d", n);
        assert_status(kvc_put(client, text(key), text("v"), &options, NULL), KVC_OK);
    }
    assert_true(count(told, from, KVC_EVENT_MAP_CHANGED, KVC_NO_SERVER) >= 1);
    told->client = NULL;
    assert_status(kvc_statistics(client, &counters, servers, SERVERS), KVC_OK);
    assert_true(counters.connections_lost >= 1 && servers[0].connections_lost >= 1);
    assert_int_equal(count(told, 0, KVC_EVENT_CONNECTION_LOST, KVC_NO_SERVER), counters.connections_lost);
    kvc_close(client);
    free(told);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest of_a_fault[] = {
        cmocka_unit_test(a_killed_server_is_reported_as_events),
    };
    const struct CMUnitTest others[] = {
        cmocka_unit_test(a_handle_reports_events_of_its_map_and_its_connections),
        cmocka_unit_test(a_queue_reports_events_of_its_own),
        cmocka_unit_test(a_write_in_doubt_is_an_event),
    };

    if (argc < 3 || argc - 2 > MOST_PIDS)
        return 2;
    endpoint = argv[1];
    pid_count = read_pids(argc, argv, pids);
    return pid_count == 1 ? cmocka_run_group_tests(of_a_fault, NULL, NULL)
                          : cmocka_run_group_tests(others, NULL, NULL);
}
