/*
 * scan.c: stores a few keys, lists the keys of a prefix with their values, page by page, and counts all keys.
 *
 *   cc -std=c99 scan.c $(pkg-config --cflags --libs kvclient) -o scan
 *   ./scan localhost:PORT fruit/
 */
#include <stdio.h>
#include <string.h>

#include <kvclient.h>

#define LONGEST_PREFIX 100

static kvc_slice text(const char *string)
{
    kvc_slice slice;
    slice.data = string;
    slice.len = strlen(string);
    return slice;
}

/* Writes the pattern of all keys with this prefix. A backslash before a special character makes it literal. */
static void pattern_of(const char *prefix, char pattern[2 * LONGEST_PREFIX + 2])
{
    for (; *prefix != '\0'; prefix++) {
        if (strchr("*?[\\", *prefix) != NULL)
            *pattern++ = '\\';
        *pattern++ = *prefix;
    }
    strcpy(pattern, "*");
}

/* Prints all keys that match the pattern, and sets *found to their number. */
static int list(kvc_client *client, const char *pattern, size_t *found)
{
    kvc_scan_options options;
    uint64_t token = 0; /* the first page */
    size_t n;

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.flags = KVC_SCAN_VALUES;
    options.pattern = text(pattern);
    *found = 0;
    do {
        kvc_page *page;
        /* The call retries until its deadline. After KVC_TIMEOUT, KVC_UNAVAILABLE or KVC_BUSY, a program may
           continue later with the same token. */
        int status = kvc_scan(client, token, &options, &page);

        if (status != KVC_OK)
            return status;
        for (n = 0; n < page->count; n++) { /* a page may be empty although more pages follow */
            const kvc_entry *entry = &page->entries[n];
            printf("%.*s: %.*s\n", (int)entry->key.len, (const char *)entry->key.data, (int)entry->value.len,
                   (const char *)entry->value.data);
        }
        *found += page->count;
        token = page->next;
        kvc_page_free(page); /* with its keys and values */
    } while (token != 0);
    return KVC_OK;
}

static int store(kvc_client *client)
{
    static const char *const entries[][2] = {{"fruit/apple", "red"},    {"fruit/banana", "yellow"},
                                             {"fruit/cherry", "black"}, {"fruit/*", "star"},
                                             {"vegetable/leek", "green"}};
    int status = KVC_OK;
    size_t n;

    for (n = 0; n < sizeof entries / sizeof *entries && status == KVC_OK; n++)
        status = kvc_put(client, text(entries[n][0]), text(entries[n][1]), NULL, NULL);
    return status;
}

int main(int argc, char **argv)
{
    char pattern[2 * LONGEST_PREFIX + 2];
    kvc_client *client = NULL;
    uint64_t count = 0;
    size_t found = 0;
    int status;

    if (argc != 3 || strlen(argv[2]) > LONGEST_PREFIX) {
        fprintf(stderr, "usage: %s HOST:PORT PREFIX   (up to %d bytes)\n", argv[0], LONGEST_PREFIX);
        return 2;
    }
    pattern_of(argv[2], pattern);
    status = kvc_open(argv[1], NULL, &client);
    if (status == KVC_OK)
        status = store(client);
    if (status == KVC_OK)
        status = list(client, pattern, &found);
    if (status == KVC_OK)
        status = kvc_count(client, 0, &count);
    if (status == KVC_OK)
        printf("%lu of %llu keys begin with %s\n", (unsigned long)found, (unsigned long long)count, argv[2]);
    else
        fprintf(stderr, "scanning: %s: %s\n", kvc_status_name(status), kvc_last_error());
    kvc_close(client);
    return status == KVC_OK ? 0 : 1;
}
