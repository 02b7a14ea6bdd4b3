/*
 * The lower bound of a blocking call: send() and recv() on blocking sockets, one to each server, with the
 * frames that the library sends (docs/protocol.md). There are no deadlines, retries or map changes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "client_cost.h"

/* Offsets in a request frame. */
enum { ID_AT = 8, SEQ_AT = 40, FIRST_INCOMPLETE_AT = 48 };
/* Offsets in a response frame, and its sizes. */
enum { STATUS_AT = 32, COPIES_AT = 33, VALUE_AT = 36, HEADER_BYTES = 8, MAX_BYTES = 4096 };

struct connection {
    int socket;
    /* The number of the session's last write. */
    uint64_t seq;
};

struct bare {
    const struct job *job;
    struct connection *connections;
    uint64_t id;
};

static void start(const struct job *job)
{
    (void)job;
}

static void send_all(int socket, const unsigned char *bytes, size_t count)
{
    while (count > 0) {
        const ssize_t sent = send(socket, bytes, count, MSG_NOSIGNAL);

        if (sent < 0)
            die("send: %s", strerror(errno));
        bytes += sent;
        count -= (size_t)sent;
    }
}

static uint32_t length_of(const unsigned char *frame)
{
    return (uint32_t)frame[0] | (uint32_t)frame[1] << 8 | (uint32_t)frame[2] << 16 |
           (uint32_t)frame[3] << 24;
}

/* Receives one frame. Further bytes are an error. */
static size_t receive_frame(int socket, unsigned char frame[MAX_BYTES])
{
    size_t count = 0;

    while (count < HEADER_BYTES || count < HEADER_BYTES + (size_t)length_of(frame)) {
        const ssize_t got = recv(socket, frame + count, MAX_BYTES - count, 0);

        if (got <= 0)
            die("recv: %s", got == 0 ? "closed" : strerror(errno));
        count += (size_t)got;
    }
    if (count != HEADER_BYTES + (size_t)length_of(frame))
        die("more bytes than one response arrived");
    return count;
}

static void *open_thread(const struct job *job)
{
    const struct plan *plan = &job->plan;
    struct bare *bare = room(1, sizeof *bare);
    unsigned char hello[MAX_BYTES], welcome[MAX_BYTES];

    bare->job = job;
    bare->connections = room(plan->head.servers, sizeof *bare->connections);
    if (plan->head.hello_bytes > sizeof hello || plan->head.put_bytes > MAX_BYTES)
        die("the frames are too long");
    memcpy(hello, plan->hello, plan->head.hello_bytes);
    if (getrandom(hello + plan->head.client_at, 16, 0) != 16)
        die("getrandom: %s", strerror(errno));
    for (uint32_t i = 0; i < plan->head.servers; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET};
        const int one = 1;
        int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        address.sin_port = htons((uint16_t)plan->ports[i]);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (s < 0 || setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
            connect(s, (struct sockaddr *)&address, sizeof address) != 0)
            die("connect to port %u: %s", plan->ports[i], strerror(errno));
        send_all(s, hello, plan->head.hello_bytes);
        receive_frame(s, welcome);
        bare->connections[i].socket = s;
    }
    return bare;
}

static void call(void *state, struct entry entry)
{
    struct bare *bare = state;
    const struct plan_head *head = &bare->job->plan.head;
    struct connection *connection = &bare->connections[bare->job->plan.servers[entry.number]];
    const bool is_put = bare->job->is_put;
    const size_t bytes = is_put ? head->put_bytes : head->get_bytes;
    unsigned char frame[MAX_BYTES];
    size_t got;

    memcpy(frame, (is_put ? bare->job->plan.puts : bare->job->plan.gets) + bytes * entry.number, bytes);
    bare->id++;
    memcpy(frame + ID_AT, &bare->id, sizeof bare->id);
    if (is_put) {
        connection->seq++;
        memcpy(frame + SEQ_AT, &connection->seq, sizeof connection->seq);
        memcpy(frame + FIRST_INCOMPLETE_AT, &connection->seq, sizeof connection->seq);
    }
    send_all(connection->socket, frame, bytes);
    got = receive_frame(connection->socket, frame);
    if (got < VALUE_AT || frame[STATUS_AT] != 0 || memcmp(frame + ID_AT, &bare->id, 8) != 0)
        die("the response has status %u, or the id of another request", frame[STATUS_AT]);
    if (is_put ? frame[COPIES_AT] != 2
               : got != VALUE_AT + head->value_bytes ||
                     memcmp(frame + VALUE_AT, entry.value, head->value_bytes) != 0)
        die(is_put ? "a PUT does not have two copies" : "a GET returned a wrong value");
}

const struct side side_bare = {"bare", start, open_thread, call, NULL, NULL};
