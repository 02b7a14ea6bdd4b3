//! Flush: by the primary, through the log, page by page.

use kv_protocol::control_message::FlushReport;
use kv_protocol::ids::OrderId;

use super::flush::FLUSH_INTERVAL;
use super::*;

const FLUSH: OrderId = OrderId(7);
const VIEW: ViewVersion = ViewVersion(1);
/// More entries than several pages have.
const MANY: usize = 3_000;

impl Pair {
    fn with_many() -> Pair {
        let mut pair = Pair::new();
        for n in 0..MANY {
            let put = pair.put(format!("key {n}").as_bytes(), b"old");
            pair.settle();
            assert_eq!(pair.status(put), Some(Status::Ok));
        }
        pair
    }

    /// Wakes the primary up after the interval of a flush, without a delivery.
    fn wake_primary(&mut self) {
        self.now = self.now + FLUSH_INTERVAL;
        self.primary.on_timeout(self.now, &mut self.inbox);
    }

    /// Wakes the primary up, and delivers everything in both directions.
    fn flush_step(&mut self) {
        self.wake_primary();
        self.settle();
    }

    fn finish_flush(&mut self) -> FlushReport {
        for _ in 0..1_000 {
            if self.primary.flush_report().is_done {
                return self.primary.flush_report();
            }
            self.flush_step();
        }
        panic!("the flush does not end: {:?}", self.primary.flush);
    }

    /// Returns the last write that the primary has logged.
    fn last(&self) -> u64 {
        self.primary.report(self.now).unwrap().last.0
    }
}

#[test]
fn a_flush_removes_every_key_on_both_replicas_in_bounded_writes() {
    let mut pair = Pair::with_many();
    let before = pair.last();
    pair.primary.begin_flush(FLUSH, VIEW);
    let mut entries = pair.primary.table.len();
    while entries > 0 {
        pair.flush_step();
        let left = pair.primary.table.len();
        assert!(entries - left <= 520, "one write removed {}", entries - left);
        entries = left;
    }
    let report = pair.finish_flush();
    assert_eq!(report, FlushReport { id: FLUSH, removed: MANY as u64, is_done: true });
    assert!(pair.last() - before <= 12, "{} writes", pair.last() - before);
    for replica in [&pair.primary, &pair.secondary] {
        assert_eq!(contents(replica), BTreeMap::new());
        assert_eq!(replica.report(pair.now).unwrap().last.0, pair.last(), "numbers continue");
    }
    assert_eq!(pair.get(b"key 1").status, Status::NotFound);
    assert!(pair.primary.next_flush().is_none(), "nothing is left to do");
}

#[test]
fn a_flush_is_done_only_when_its_removals_are_committed() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.begin_flush(FLUSH, VIEW);
    for _ in 0..5 {
        pair.wake_primary();
        let report = pair.primary.flush_report();
        assert_eq!((report.removed, report.is_done), (0, false), "no ack has arrived");
        assert_eq!(pair.get(b"a").status, Status::Ok, "the removal is not committed");
    }
    pair.settle();
    assert_eq!(pair.get(b"a").status, Status::NotFound);
    assert_eq!(pair.finish_flush().removed, 1);
}

#[test]
fn an_entry_with_a_pending_write_is_removed_after_that_write() {
    let mut pair = Pair::new();
    pair.put(b"written", b"old");
    pair.put(b"deleted", b"old");
    pair.settle();
    let (written, deleted) = (pair.put(b"written", b"new"), pair.delete(b"deleted"));
    let created = pair.put(b"created", b"new");
    pair.primary.begin_flush(FLUSH, VIEW);
    pair.wake_primary();
    pair.wake_primary();
    assert!(!pair.primary.flush_report().is_done, "the pending delete is not committed");
    pair.settle();
    let report = pair.finish_flush();
    assert_eq!(report.removed, 1, "the delete of a client is no removal of the flush");
    for request in [written, deleted, created] {
        assert_eq!(pair.status(request), Some(Status::Ok));
    }
    assert_eq!(pair.get(b"written").status, Status::NotFound);
    assert_eq!(pair.get(b"deleted").status, Status::NotFound);
    assert_eq!(pair.get(b"created").status, Status::Ok, "it did not exist at the beginning");
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn clients_write_between_two_pages_and_retries_keep_their_responses() {
    let mut pair = Pair::with_many();
    let (retried, seq) = (pair.requests, pair.seq);
    let first = pair.given(retried).unwrap();
    pair.primary.begin_flush(FLUSH, VIEW);
    for n in 0..20 {
        pair.flush_step();
        let put = pair.put(format!("new {n}").as_bytes(), b"new");
        pair.settle();
        let given = pair.given(put).unwrap();
        assert_eq!((given.status, given.version.0), (Status::Ok, pair.last()));
    }
    pair.finish_flush();
    // The same write again, under another request id: it gets its response and is not executed again.
    let key = format!("key {}", MANY - 1);
    let again =
        pair.request(key.as_bytes(), Operation::Put(header(seq, Condition::Always), b"old"));
    pair.settle();
    assert_eq!(pair.given(again).unwrap(), first);
    assert_eq!(pair.get(key.as_bytes()).status, Status::NotFound);
}

#[test]
fn only_a_newer_order_begins_again() {
    let mut pair = Pair::new();
    pair.primary.begin_flush(FLUSH, VIEW);
    pair.finish_flush();
    pair.put(b"a", b"1");
    pair.settle();
    for old in [FLUSH, OrderId(6)] {
        pair.primary.begin_flush(old, VIEW);
        pair.flush_step();
        pair.flush_step();
        assert_eq!(pair.primary.flush_report().id, FLUSH);
        assert_eq!(pair.get(b"a").status, Status::Ok, "{old}");
    }
    pair.secondary.begin_flush(OrderId(8), VIEW);
    assert_eq!(pair.secondary.flush_report(), FlushReport::default(), "only a primary flushes");
    pair.primary.begin_flush(OrderId(8), VIEW);
    assert_eq!(pair.finish_flush().removed, 1);
}

#[test]
fn a_new_primary_has_no_progress_and_completes_the_flush_on_a_new_order() {
    let mut group = group::Group::new();
    for n in 0..MANY {
        group.put(0, format!("key {n}").as_bytes(), b"old");
        group.settle();
    }
    group.replicas[0].begin_flush(FLUSH, VIEW);
    group.pass(FLUSH_INTERVAL);
    group.pass(FLUSH_INTERVAL);
    let left = group.replicas[1].table.len();
    assert!(0 < left && left < MANY, "{left}");
    group.lose_the_primary();
    assert_eq!(group.replicas[1].flush_report(), FlushReport::default());
    group.pass(FLUSH_INTERVAL);
    assert_eq!(group.replicas[1].table.len(), left, "it removes nothing without an order");
    group.replicas[1].begin_flush(FLUSH, VIEW);
    assert_eq!(
        group.replicas[1].flush_report(),
        FlushReport::default(),
        "an order of the old view"
    );
    group.replicas[1].begin_flush(FLUSH, ViewVersion(2));
    for _ in 0..20 {
        group.pass(FLUSH_INTERVAL);
    }
    let report = group.replicas[1].flush_report();
    assert_eq!(report, FlushReport { id: FLUSH, removed: left as u64, is_done: true });
    assert!(group.replicas[1].table.is_empty());
}

#[test]
fn a_flush_goes_on_when_the_primary_gets_another_peer() {
    let mut group = group::Group::new();
    for n in 0..MANY {
        group.put(0, format!("key {n}").as_bytes(), b"old");
        group.settle();
    }
    group.replicas[0].begin_flush(FLUSH, VIEW);
    for _ in 0..3 {
        group.pass(FLUSH_INTERVAL);
    }
    let before = group.replicas[0].flush_report().removed;
    assert!(before > 0);
    group.silent.push(1);
    group.cut(1);
    group.install(0, group::view_of(2, 0, Peer::None));
    for _ in 0..20 {
        group.pass(FLUSH_INTERVAL);
    }
    let report = group.replicas[0].flush_report();
    assert_eq!(report, FlushReport { id: FLUSH, removed: MANY as u64, is_done: true });
}

#[test]
fn a_draining_primary_removes_nothing_more() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.drain();
    pair.primary.begin_flush(FLUSH, VIEW);
    pair.flush_step();
    assert!(pair.primary.next_flush().is_none() && pair.primary.is_drained());
    assert_eq!(pair.get(b"a").status, Status::Ok);
}
