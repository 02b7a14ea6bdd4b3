//! Scans: every key that exists throughout comes exactly once, in bounded pages, at whichever replica.

use std::collections::BTreeSet;

use kv_protocol::client_message::{SCAN_PAGE_BYTES, SCAN_VALUE_BYTES_MAX, Scan, ScanPage};
use kv_protocol::update::{Action, Expiry, Update};

use super::group::Group;
use super::*;

const KEYS: Scan = Scan { cursor: 0, values: false, deadlines: false };
const ALL: Scan = Scan { cursor: 0, values: true, deadlines: true };

/// The items of a page: key, value, deadline, and whether the client has to compare the key.
type Items = Vec<(Vec<u8>, Option<Vec<u8>>, Option<WallTime>, bool)>;

fn read(given: &Given) -> (u64, u64, Items) {
    assert_eq!(given.status, Status::Ok, "{}", String::from_utf8_lossy(&given.value));
    let page = ScanPage::read(&given.value).unwrap();
    let items = page.items().map(|item| {
        let value = item.value.map(<[u8]>::to_vec);
        (item.key.to_vec(), value, item.deadline, item.is_unmatched)
    });
    (page.next, page.entries, items.collect())
}

impl Pair {
    fn page(&mut self, pattern: &[u8], scan: Scan) -> (u64, u64, Items) {
        let id = self.request(pattern, Operation::Scan(scan));
        read(&self.given(id).expect("a page comes at once"))
    }

    /// Scans everything, with `between` after each page. Returns the items and the number of pages.
    fn scan(
        &mut self,
        pattern: &[u8],
        scan: Scan,
        mut between: impl FnMut(&mut Pair),
    ) -> (Items, usize) {
        let (mut all, mut pages, mut cursor) = (Vec::new(), 0, 0);
        loop {
            let (next, _, items) = self.page(pattern, Scan { cursor, ..scan });
            all.extend(items);
            pages += 1;
            if next == 0 {
                return (all, pages);
            }
            assert!(next > cursor);
            cursor = next;
            between(self);
        }
    }
}

fn keys(items: &Items) -> Vec<Vec<u8>> {
    items.iter().map(|(key, ..)| key.clone()).collect()
}

fn stays(number: u64) -> Vec<u8> {
    format!("stays-{number:05}").into_bytes()
}

#[test]
fn a_scan_returns_every_key_once_while_the_table_grows_shrinks_and_is_compacted() {
    let mut pair = Pair::new();
    for number in 0..6_000 {
        pair.put(&stays(number), b"v");
        pair.put(format!("goes-{number}").as_bytes(), &[7; 200]);
        if number % 50 == 0 {
            pair.settle();
        }
    }
    pair.settle();
    let (mut added, mut removed) = (0, 0);
    let (items, pages) = pair.scan(b"", ALL, |pair| {
        for _ in 0..500 {
            pair.delete(format!("goes-{removed}").as_bytes());
            pair.put(format!("comes-{added}").as_bytes(), b"new");
            (added, removed) = (added + 1, removed + 1);
        }
        pair.settle();
        pair.now = pair.now + Duration::from_millis(1);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
        pair.settle();
    });
    assert!(pages > 8, "{pages} pages");
    let found: Vec<_> = keys(&items).into_iter().filter(|key| key.starts_with(b"stays")).collect();
    let unique: BTreeSet<_> = found.iter().cloned().collect();
    assert_eq!(unique.len(), found.len(), "a key came twice");
    assert_eq!(unique.into_iter().collect::<Vec<_>>(), (0..6_000).map(stays).collect::<Vec<_>>());
}

#[test]
fn a_scan_continues_at_the_secondary_after_a_failover() {
    let mut group = Group::new();
    for number in 0..5_000 {
        group.put(0, &stays(number), b"v");
        if number % 50 == 0 {
            group.settle();
        }
    }
    group.settle();
    let mut found = Vec::new();
    let mut at = 0;
    let mut cursor = 0;
    loop {
        let id = group.ask(at, b"", Operation::Scan(Scan { cursor, ..KEYS }));
        let (next, entries, items) = read(&group.given(id).unwrap());
        assert_eq!(entries, 5_000);
        found.extend(keys(&items));
        if next == 0 {
            break;
        }
        cursor = next;
        if at == 0 {
            group.lose_the_primary();
            at = 1;
        }
    }
    found.sort();
    assert_eq!(found, (0..5_000).map(stays).collect::<Vec<_>>());
}

#[test]
fn only_an_active_primary_with_a_lease_serves_a_scan() {
    let mut group = Group::new();
    let id = group.ask(1, b"", Operation::Scan(KEYS));
    assert_eq!(group.status(id), Some(Status::WrongView));
    group.silent.push(1);
    group.now = group.now + kv_protocol::limits::LEASE;
    let id = group.ask(0, b"", Operation::Scan(KEYS));
    assert_eq!(group.status(id), Some(Status::Unavailable));
}

#[test]
fn expired_entries_do_not_come_and_deadlines_do() {
    let mut pair = Pair::new();
    for replica in [&mut pair.primary, &mut pair.secondary] {
        replica.note_wall(pair.now, WallTime::from_millis(1_000_000));
    }
    for (key, millis) in [(b"soon", 200), (b"late", 9_000)] {
        let put = Update { expiry: Expiry::After(millis), ..Update::new(Action::Put(b"v")) };
        pair.updated(key, &[put]);
    }
    pair.put(b"ever", b"w");
    pair.settle();
    pair.now = pair.now + Duration::from_millis(250);
    let (_, entries, mut items) = pair.page(b"*", ALL);
    items.sort();
    let late = Some(WallTime::from_millis(1_009_000));
    let expected = vec![
        (b"ever".to_vec(), Some(b"w".to_vec()), None, false),
        (b"late".to_vec(), Some(b"v".to_vec()), late, false),
    ];
    assert_eq!((entries, items), (3, expected));
    let (_, _, items) = pair.page(b"l*", KEYS);
    assert_eq!(items, vec![(b"late".to_vec(), None, None, false)]);
}

#[test]
fn a_page_is_bounded_in_entries_bytes_and_steps() {
    let mut pair = Pair::new();
    for number in 0..3_000 {
        pair.put(&stays(number), &[7; 100]);
        if number % 50 == 0 {
            pair.settle();
        }
    }
    pair.settle();
    let (next, _, items) = pair.page(b"no such key", KEYS);
    assert!(next > 0 && items.is_empty(), "1,024 entries are examined at most");
    let (_, pages) = pair.scan(b"no such key", KEYS, |_| {});
    assert!((3..=4).contains(&pages), "{pages}");
    let (_, _, items) = pair.page(b"", ALL);
    let bytes: usize =
        items.iter().map(|(key, value, ..)| key.len() + value.iter().flatten().count()).sum();
    assert!(bytes <= SCAN_PAGE_BYTES + 200, "{bytes}");
    assert!(items.len() > 400, "{}", items.len());

    let hostile = [b"*s*t".repeat(30), b"x".to_vec()].concat();
    pair.put(&b"st".repeat(20_000), b"long");
    pair.settle();
    let (items, _) = pair.scan(&hostile, KEYS, |_| {});
    assert_eq!(keys(&items), vec![b"st".repeat(20_000)]);
    assert!(items[0].3, "the client compares it");
}

#[test]
fn a_long_value_is_left_to_a_get() {
    let mut pair = Pair::new();
    pair.put(b"long", &vec![7; SCAN_VALUE_BYTES_MAX + 1]);
    pair.settle();
    pair.put(b"most", &vec![7; SCAN_VALUE_BYTES_MAX]);
    pair.settle();
    let (items, _) = pair.scan(b"", ALL, |_| {});
    let values: BTreeMap<_, _> =
        items.into_iter().map(|(key, value, ..)| (key, value.map(|value| value.len()))).collect();
    let most = Some(SCAN_VALUE_BYTES_MAX);
    assert_eq!(values, BTreeMap::from([(b"long".to_vec(), None), (b"most".to_vec(), most)]));
}

#[test]
fn a_number_that_is_no_cursor_is_rejected() {
    let mut pair = Pair::new();
    let id = pair.request(b"", Operation::Scan(Scan { cursor: 1 << 32, ..KEYS }));
    assert_eq!(pair.status(id), Some(Status::Invalid));
}
