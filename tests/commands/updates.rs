//! Tests of the words of the command line on real clusters: updates, deadlines and batches.

use std::time::Duration;

use crate::common::Cluster;

/// Returns two keys of one group and shard, and one of another group.
fn keys(cluster: &Cluster) -> [String; 3] {
    let place = |key: &str| cluster.placement().locate(key.as_bytes());
    let first = "key-0".to_owned();
    let others = || (1..).map(|n| format!("key-{n}"));
    let near = others().find(|key| place(key) == place(&first)).expect("a key");
    let far = others().find(|key| place(key).0 != place(&first).0).expect("a key");
    [first, near, far]
}

#[test]
fn words_change_values_on_both_servers() {
    let cluster = Cluster::builder().shards(2).start();
    let operations = "\
        put k v if-absent\n\
        put k w old\n\
        append k xyz\n\
        getrange k -2 2\n\
        V \"k\" \"wxyz\"\n\
        incr n 41\n\
        incr n\n\
        incrfloat f 1.5\n\
        incrfloat g 1e400\n\
        V \"n\" \"42\"\n\
        mput a 1 b 2\n\
        mget a b\n\
        take k\n\
        V \"k\" absent\n";
    let ended = cluster.client(operations).with_code(0);
    let expected = [
        "value[\"k\"] <- \"v\"",
        "value[\"k\"] <- \"w\" (before: \"v\")",
        "length[\"k\"] == 4",
        "part[\"k\"] == \"yz\"",
        "check passed: value[\"k\"] == \"wxyz\"",
        "value[\"n\"] <- \"41\"",
        "value[\"n\"] <- \"42\"",
        "value[\"f\"] <- \"1.5\"",
        "check passed: value[\"n\"] == \"42\"",
        "value[\"a\"] <- \"1\"",
        "value[\"b\"] <- \"2\"",
        "value[\"a\"] == \"1\"",
        "value[\"b\"] == \"2\"",
        "value[\"k\"] == \"wxyz\" (deleted)",
        "check passed: key \"k\" not found",
    ];
    let mut lines = ended.lines();
    // The sum has 401 digits, the first 19 of which are exact.
    let long = lines.remove(8);
    assert!(long.starts_with("value[\"g\"] <- \"1000000000000000000"), "{long}");
    assert_eq!(lines, expected);
    assert_eq!(ended.stderr, "");
    cluster.stop().assert_copies_agree();
}

#[test]
fn an_entry_expires_and_can_be_kept() {
    let cluster = Cluster::start();
    let ended = cluster.client("put k v expires 1\nput l v expires 1\npersist l\nttl l\n");
    assert_eq!(ended.with_code(0).lines()[3], "key \"l\" does not expire");
    std::thread::sleep(Duration::from_millis(1_500));
    let past = "put l w expires-at 5\nget l\nput l v\nexpire-at l 5\nget l\nput l v\n";
    let removed = "key \"l\" removed: its deadline 5 has passed";
    let ended = cluster.client(past).with_code(1);
    assert_eq!([ended.lines()[0], ended.lines()[3]], [removed, removed]);
    let not_found = "key \"l\" not found";
    assert_eq!([ended.lines()[1], ended.lines()[4]], [not_found, not_found]);
    let ended = cluster.client("V \"l\" \"v\"\nget k\n").with_code(1);
    assert_eq!(ended.lines()[1], "key \"k\" not found");
    let ended = cluster.client("expire l 60\nttl l\nexpire l 90 if-earlier\n").with_code(1);
    assert!(ended.lines()[1].starts_with("key \"l\" expires in "), "{ended:#?}");
    assert!(ended.lines()[2].contains("the condition does not hold"), "{ended:#?}");
}

#[test]
fn a_batch_is_done_as_a_whole_or_not_at_all() {
    let cluster = Cluster::builder().shards(2).start();
    let [first, near, far] = keys(&cluster);
    let ended = cluster.client(&format!("batch put {first} 1; incr {near} 5\n")).with_code(0);
    assert_eq!(
        ended.lines(),
        [format!("value[\"{first}\"] <- \"1\""), format!("value[\"{near}\"] <- \"5\"")]
    );
    let failing = format!("batch incr {first}; check {near} if-absent\n");
    let ended = cluster.client(&failing).with_code(1);
    assert!(ended.stdout.contains("(update 2 of 2)"), "{ended:#?}");
    let ended = cluster.client(&format!("batch incr {first}; incr {far}\n")).with_code(1);
    assert!(ended.stderr.contains("of one group and shard"), "{ended:#?}");
    cluster.client(&format!("V \"{first}\" \"1\"\nV \"{near}\" \"5\"\n")).with_code(0);
    // A key that is not found does not end a batch, which then succeeds. By itself, its line fails.
    let missing = format!("batch del {near}; take {near}; incr {first}\n");
    let ended = cluster.client(&missing).with_code(0);
    assert_eq!(
        ended.lines()[1..],
        [format!("key \"{near}\" not found"), format!("value[\"{first}\"] <- \"2\"")]
    );
    cluster.client(&format!("take {near}\n")).with_code(1);
    cluster.stop().assert_copies_agree();
}
