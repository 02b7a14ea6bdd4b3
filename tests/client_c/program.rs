//! C programs with the shipped header and library, against a real cluster.

use std::fs;

use crate::common::Cluster;
use crate::common::workshop::{Workshop, library, root};
use kv_client::OpOptions;

#[test]
fn the_example_does_what_its_comments_say_with_the_shared_and_the_static_library() {
    let cluster = Cluster::builder().shards(2).start();
    let workshop = Workshop::open();
    let hello = root().join("examples/c/hello.c");
    let archive = library("libkvclient.a");
    let archive = archive.to_str().expect("a path in UTF-8");
    for shared in [true, false] {
        let program = match shared {
            true => workshop.compile_shared(&hello, &[]),
            false => workshop.compile(&hello, &[archive, "-lpthread", "-ldl", "-lm"]),
        };
        let ended = workshop.run(&program, &[&cluster.endpoint()]).with_code(0);
        let lines = ["stored on 2 servers", "read: hello (5 bytes)", "changed", "deleted"]
            .join("\n")
            + "\n";
        assert_eq!((ended.stdout, ended.stderr), (lines, String::new()), "shared: {shared}");
    }
    // The dumps show that both copies are empty.
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert!(dumps.entries().is_empty());
}

#[test]
fn a_c_program_reaches_the_cluster_by_the_sockets_of_its_servers() {
    let dir = tempfile::tempdir().expect("make a directory");
    let cluster =
        Cluster::builder().flag("--unix").flag(dir.path().to_str().expect("UTF-8")).start();
    let workshop = Workshop::open();
    let program = workshop.compile_shared(&root().join("examples/c/hello.c"), &[]);
    let endpoint = format!("unix:{}", dir.path().display());
    let ended = workshop.run(&program, &[&endpoint]).with_code(0);
    assert!(
        ended.stdout.starts_with("stored on 2 servers\nread: hello (5 bytes)"),
        "{}",
        ended.stdout
    );
    cluster.stop();
    let ended = workshop.run(&program, &[&endpoint]).with_code(1);
    assert!(ended.stderr.contains("KVC_UNAVAILABLE"), "{}", ended.stderr);
    assert!(ended.stderr.contains("server_ID.sock"), "{}", ended.stderr);
}

#[test]
fn the_example_reports_that_the_cluster_cannot_be_reached() {
    let workshop = Workshop::open();
    let program = workshop.compile_shared(&root().join("examples/c/hello.c"), &[]);
    let ended = workshop.run(&program, &["nonsense"]).with_code(1);
    assert!(ended.stderr.contains("KVC_INVALID"), "{}", ended.stderr);
    let ended = workshop.run(&program, &["127.0.0.1:1"]).with_code(1);
    assert!(ended.stderr.contains("KVC_UNAVAILABLE"), "{}", ended.stderr);
    assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
}

/// A program that prints a line and exits at the first step that fails.
const STATUSES: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvclient.h>

#define MIB ((size_t)1 << 20)

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            printf("line %d: %s (last error: %s)\n", __LINE__, #condition, kvc_last_error());  \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

static kvc_slice slice(const void *data, size_t len)
{
    kvc_slice made;
    made.data = data;
    made.len = len;
    return made;
}

/* A key with a NUL in its middle, and a value with all bytes. */
static void binary_value(kvc_client *client)
{
    const kvc_slice key = slice("big\0key", 7);
    unsigned char *sent = malloc(MIB);
    kvc_result result;
    kvc_buf got;
    size_t n;

    CHECK(sent != NULL);
    for (n = 0; n < MIB; n++)
        sent[n] = (unsigned char)(n * 31 + n / 256);
    CHECK(kvc_put(client, key, slice(sent, MIB), NULL, &result) == KVC_OK);
    CHECK(result.copies == 2 && result.version > 0 && result.reserved == 0);
    CHECK(kvc_get(client, key, NULL, &got) == KVC_OK);
    CHECK(got.len == MIB && memcmp(got.data, sent, MIB) == 0);
    CHECK(got.version == result.version);
    kvc_buf_free(&got);
    CHECK(got.data == NULL && got.len == 0);
    kvc_buf_free(&got);
    /* Another key with the same beginning. */
    CHECK(kvc_get(client, slice("big", 3), NULL, &got) == KVC_NOT_FOUND);
    free(sent);
}

static void statuses(kvc_client *client)
{
    const kvc_slice key = slice("key", 3), value = slice("value", 5);
    kvc_op_options options;
    kvc_result result;
    kvc_buf got;

    CHECK(kvc_get(client, key, NULL, &got) == KVC_NOT_FOUND);
    CHECK(strstr(kvc_last_error(), "key") != NULL);
    CHECK(kvc_delete(client, key, NULL, &result) == KVC_NOT_FOUND);

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.if_version = KVC_ABSENT;
    CHECK(kvc_put(client, key, value, &options, NULL) == KVC_OK);
    CHECK(kvc_put(client, key, value, &options, NULL) == KVC_CONFLICT);

    CHECK(kvc_put(client, slice("empty", 5), slice(NULL, 0), NULL, NULL) == KVC_OK);
    CHECK(kvc_get(client, slice("empty", 5), NULL, &got) == KVC_OK);
    CHECK(got.len == 0);
    kvc_buf_free(&got);

    CHECK(kvc_get(client, key, NULL, &got) == KVC_OK);
    CHECK(got.len == 5 && memcmp(got.data, "value", 6) == 0);
    options.if_version = got.version;
    kvc_free(got.data);
    CHECK(kvc_delete(client, key, &options, &result) == KVC_OK);
    CHECK(result.copies == 2 && result.version > options.if_version);
    CHECK(kvc_delete(client, key, NULL, NULL) == KVC_NOT_FOUND);
}

static void invalid(kvc_client *client)
{
    static char long_key[65536];
    const kvc_slice key = slice("key", 3), null = slice(NULL, 3);
    kvc_client *other = NULL;
    kvc_buf got;

    memset(long_key, 'k', sizeof long_key);
    CHECK(kvc_put(NULL, key, key, NULL, NULL) == KVC_INVALID);
    CHECK(kvc_get(NULL, key, NULL, &got) == KVC_INVALID);
    CHECK(kvc_get(client, key, NULL, NULL) == KVC_INVALID);
    CHECK(kvc_delete(NULL, key, NULL, NULL) == KVC_INVALID);
    CHECK(kvc_put(client, null, key, NULL, NULL) == KVC_INVALID);
    CHECK(kvc_put(client, key, null, NULL, NULL) == KVC_INVALID);
    CHECK(kvc_get(client, slice("", 0), NULL, &got) == KVC_INVALID);
    CHECK(kvc_get(client, slice(long_key, sizeof long_key), NULL, &got) == KVC_TOO_BIG);
    CHECK(kvc_open(NULL, NULL, &other) == KVC_INVALID && other == NULL);
    CHECK(kvc_open("127.0.0.1:1", NULL, NULL) == KVC_INVALID);
    CHECK(strcmp(kvc_status_name(KVC_INVALID), "KVC_INVALID") == 0);
    CHECK(kvc_close(NULL) == KVC_OK);
    kvc_buf_free(NULL);
    kvc_free(NULL);
}

int main(int argc, char **argv)
{
    kvc_client *client = NULL;

    CHECK(argc == 2);
    CHECK(kvc_version() == KVC_VERSION);
    CHECK(kvc_open(argv[1], NULL, &client) == KVC_OK && client != NULL);
    binary_value(client);
    statuses(client);
    invalid(client);
    /* The handle still works after the rejected calls. */
    CHECK(kvc_put(client, slice("last", 4), slice("word", 4), NULL, NULL) == KVC_OK);
    CHECK(kvc_close(client) == KVC_OK);
    printf("all checks passed\n");
    return 0;
}
"#;

#[test]
fn statuses_binary_values_and_null_arguments_behave_as_the_header_documents() {
    let cluster = Cluster::builder().shards(2).start();
    let workshop = Workshop::open();
    let source = workshop.dir().join("statuses.c");
    fs::write(&source, STATUSES).expect("write a program");
    let program = workshop.compile_shared(&source, &[]);
    let ended = workshop.run(&program, &[&cluster.endpoint()]).with_code(0);
    assert_eq!(ended.stdout, "all checks passed\n");

    // A client in another language reads the same bytes.
    let mut client = cluster.open();
    let value = client.get(b"big\0key", &OpOptions::default()).expect("a get").bytes;
    assert_eq!(value.len(), 1 << 20);
    let expected = |n: usize| n.wrapping_mul(31).wrapping_add(n / 256).to_le_bytes()[0];
    assert!(value.iter().enumerate().all(|(n, byte)| *byte == expected(n)));
    let last = client.get(b"last", &OpOptions::default()).expect("a get").bytes;
    assert_eq!(last, b"word");
}
