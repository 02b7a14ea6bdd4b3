/*
 * session_cache.c: a small server with a line protocol that keeps its sessions in the store. It has no
 * state of its own, so several such servers can share the sessions, and a crash loses no session.
 *
 *   LOGIN <id> <name>   ->  OK, even if <name> already has the session; or TAKEN
 *   WHO <id>            ->  OK <name>, or NOBODY
 *   LOGOUT <id>         ->  OK, or NOBODY
 *   if a line fails     ->  ERROR <reason>
 *
 *   cc -std=c99 session_cache.c $(pkg-config --cflags --libs kvclient) -lpthread -o session_cache
 *   ./session_cache localhost:PORT        (prints the port on which it listens)
 */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <kvclient.h>

static kvc_client *store; /* one handle for all threads */

static kvc_slice text(const char *string)
{
    return (kvc_slice){string, strlen(string)};
}

/* Responds to one line. A request to the store fails if there is no response within half a second. A
   missing key and a conflict are normal results here. */
static void answer(FILE *to, const char *command, const char *id, const char *name)
{
    kvc_op_options options = {sizeof(kvc_op_options), 500, 0};
    char key[80];
    kvc_buf found;
    int status = KVC_INVALID;

    snprintf(key, sizeof key, "session/%s", id);
    if (strcmp(command, "LOGIN") == 0 && *name != '\0') {
        options.if_version = KVC_ABSENT; /* never replaces an existing session */
        status = kvc_put(store, text(key), text(name), &options, NULL);
        /* An earlier LOGIN with this name may have been executed: the stored name decides. */
        if (status == KVC_IN_DOUBT || status == KVC_CONFLICT) {
            status = kvc_get(store, text(key), &options, &found);
            if (status == KVC_OK) {
                status = strcmp(found.data, name) == 0 ? KVC_OK : KVC_CONFLICT;
                kvc_buf_free(&found);
            } else if (status == KVC_NOT_FOUND)
                status = KVC_IN_DOUBT; /* not executed, or logged out since: ERROR */
        }
    } else if (strcmp(command, "WHO") == 0) {
        status = kvc_get(store, text(key), &options, &found);
        if (status == KVC_OK) {
            fprintf(to, "OK %.*s\n", (int)found.len, (const char *)found.data);
            kvc_buf_free(&found);
            return;
        }
    } else if (strcmp(command, "LOGOUT") == 0) {
        status = kvc_delete(store, text(key), &options, NULL);
    } else {
        fprintf(to, "ERROR unknown command\n");
        return;
    }
    switch (status) {
    case KVC_OK: fprintf(to, "OK\n"); break;
    case KVC_CONFLICT: fprintf(to, "TAKEN\n"); break;
    case KVC_NOT_FOUND: fprintf(to, "NOBODY\n"); break;
    default: fprintf(to, "ERROR %s\n", kvc_last_error()); break;
    }
}

/* Serves one connection, in a separate thread that main() starts. */
static void *serve(void *argument)
{
    FILE *stream = argument;
    char line[256], command[16], id[64], name[128];

    while (fgets(line, sizeof line, stream) != NULL) {
        *command = *id = *name = '\0';
        sscanf(line, "%15s %63s %127s", command, id, name);
        fseek(stream, 0, SEEK_CUR); /* required by C between reading and writing */
        answer(stream, command, id, name);
        fflush(stream);
    }
    fclose(stream);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {0};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t thread;

    if (argc != 2 || kvc_open(argv[1], NULL, &store) != KVC_OK) {
        fprintf(stderr, "usage: %s HOST:PORT; %s\n", argv[0], kvc_last_error());
        return 2;
    }
    signal(SIGPIPE, SIG_IGN); /* for the sockets of this program; the library never raises SIGPIPE */
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 64) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
        perror("listening");
        return 1;
    }
    printf("listening on port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        FILE *stream = connection < 0 ? NULL : fdopen(connection, "r+");
        if (stream != NULL && pthread_create(&thread, NULL, serve, stream) == 0)
            pthread_detach(thread);
    }
}
