/*
 * async_epoll.c: uses the store in an event loop that waits for standard input and a completion queue. A
 * line "key=value" puts a value, and a line "key" gets it. Results are printed in the order of arrival.
 *
 *   cc -std=c99 async_epoll.c $(pkg-config --cflags --libs kvclient) -o async_epoll
 *   seq 1000 | sed 's/.*&=&/' | ./async_epoll localhost:PORT     (a pipe or a terminal, not a file)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <kvclient.h>

#define DEPTH 16 /* the maximum number of operations in flight; small, so that KVC_FULL occurs here */
#define MOST 256 /* lines must be shorter than this */

struct request { /* one line in progress; its address is the tag of the operation */
    char key[MOST], value[MOST];
};

static kvc_cq *queue;
static char input[16 * MOST + 1]; /* one byte more, to end a last line without '\n' */
static size_t input_len, in_flight;

static int submit(const char *line, size_t len)
{
    const char *equals = memchr(line, '=', len);
    const size_t key_len = equals != NULL ? (size_t)(equals - line) : len;
    struct request *request = len < MOST ? calloc(1, sizeof *request) : NULL;
    kvc_op op = {.size = sizeof op, .kind = KVC_OP_GET, .timeout_ms = 2000, .key = {line, key_len}};
    int status;

    if (request == NULL)
        return KVC_TOO_BIG;
    memcpy(request->key, line, key_len);
    if (equals != NULL) {
        op.kind = KVC_OP_PUT;
        op.flags = KVC_KEEP; /* the value is not copied, so it stays in the request */
        op.value.len = len - key_len - 1;
        op.value.data = memcpy(request->value, equals + 1, op.value.len);
    } else {
        op.dst = request->value; /* the library writes the value here, so there is no buffer to free */
        op.cap = sizeof request->value - 1;
    }
    status = kvc_cq_submit(queue, &op, (uintptr_t)request);
    in_flight += status == KVC_OK;
    if (status != KVC_OK)
        free(request);
    return status;
}

/* Submits lines until the queue is full. The rest stays in `input` until there is room in the queue. */
static int submit_lines(void)
{
    char *line = input, *end;
    int status = KVC_OK;

    while ((end = memchr(line, '\n', input_len)) && (status = submit(line, end - line)) != KVC_FULL) {
        if (status != KVC_OK)
            printf("%.*s: %s\n", (int)(end - line), line, kvc_status_name(status));
        input_len -= end + 1 - line;
        line = end + 1;
    }
    memmove(input, line, input_len);
    return status;
}

/* Sends the submitted operations and prints the available completions, without waiting. */
static void collect(void)
{
    kvc_completion done[DEPTH];
    int i, count = kvc_cq_poll(queue, done, DEPTH, 0);

    for (i = 0; i < count; i++) {
        struct request *request = (struct request *)(uintptr_t)done[i].tag;
        printf("%s: %s\n", request->key, done[i].status == KVC_OK ? request->value : done[i].words);
        free(request);
        in_flight--;
    }
    if (count < 0)
        fprintf(stderr, "polling: %s\n", kvc_last_error()), exit(1);
}

static void watch(int epoll, int how, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, how, fd, &event) != 0)
        perror("epoll_ctl"), exit(1);
}

int main(int argc, char **argv)
{
    int epoll = epoll_create1(0), is_watched = 1, at_end = 0, is_full = 0;
    struct epoll_event event;
    kvc_client *client;

    if (argc != 2 || kvc_open(argv[1], NULL, &client) || kvc_cq_new(client, DEPTH, &queue)) {
        fprintf(stderr, "usage: %s HOST:PORT; %s\n", argv[0], kvc_last_error());
        return 2;
    }
    watch(epoll, EPOLL_CTL_ADD, STDIN_FILENO);
    watch(epoll, EPOLL_CTL_ADD, kvc_cq_fd(queue)); /* also readable after a submit */
    while (!at_end || is_full || in_flight > 0) {
        if (epoll_wait(epoll, &event, 1, -1) == 1 && event.data.fd == STDIN_FILENO) {
            ssize_t len = read(STDIN_FILENO, input + input_len, sizeof input - 1 - input_len);
            at_end = len <= 0; /* the end of the input, or a line longer than the buffer */
            input_len += !at_end ? (size_t)len : input_len > 0 && (input[input_len] = '\n');
        }
        collect();
        is_full = submit_lines() == KVC_FULL;
        if (is_watched != (!at_end && !is_full))
            watch(epoll, (is_watched = !is_watched) ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, STDIN_FILENO);
        fflush(stdout);
    }
    kvc_cq_free(queue);
    return kvc_close(client);
}
