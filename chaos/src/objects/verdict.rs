//! The checks of the objects and the scans of a round, and the counts of their operations by kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::Context as _;
use kv_history::object::{
    Answer, Change, ObjectEntry, ObjectRecord, Outcome, Shown, Span, Text, Update,
    corrupted_object, judge_object,
};
use kv_history::{
    Asked, Kind, Operation, Operations, Reason, Verdict, existed_throughout, may_have_existed,
};
use serde::Serialize;

use super::scanner::{ScanKind, ScanRecord};
use super::{CLOCK_MARGIN_MS, kinds, wall_ms};
use crate::bulk::Bulk;
use crate::noticed::is_served;
use crate::strike::Struck;

/// The counts of the operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tally {
    pub(crate) ran: u64,
    pub(crate) ok: u64,
    /// The number of operations whose condition did not hold or whose key was absent.
    pub(crate) unmet: u64,
    pub(crate) in_doubt: u64,
    pub(crate) unserved: u64,
    /// The number of operations in histories that are not linearizable, or of scans that returned wrong keys.
    pub(crate) illegal: u64,
    /// The number of operations in histories for which the check timed out, or of scans that were not completed.
    pub(crate) not_judged: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.ran += other.ran;
        self.ok += other.ok;
        self.unmet += other.unmet;
        self.in_doubt += other.in_doubt;
        self.unserved += other.unserved;
        self.illegal += other.illegal;
        self.not_judged += other.not_judged;
    }
}

/// The counts by kind.
pub(crate) type Tallies = BTreeMap<&'static str, Tally>;

/// Counts an operation that is part of a history with this verdict.
pub(crate) fn count(
    tallies: &mut Tallies,
    kind: &'static str,
    operation: &Operation,
    verdict: Verdict,
) {
    let is_unmet = matches!(operation.error, Some(Reason::Conflict | Reason::NotFound));
    let is_in_doubt = operation.kind == Kind::Info;
    *tallies.entry(kind).or_default() += Tally {
        ran: 1,
        ok: u64::from(is_served(operation) && !is_unmet),
        unmet: u64::from(is_unmet),
        in_doubt: u64::from(is_in_doubt),
        unserved: u64::from(!is_served(operation) && !is_in_doubt),
        illegal: u64::from(verdict == Verdict::Illegal),
        not_judged: u64::from(verdict == Verdict::Unknown),
    };
}

/// Counts an operation on a register, which is part of a history with this verdict.
pub(crate) fn count_register(tallies: &mut Tallies, operation: &Operation, verdict: Verdict) {
    let kind = match operation.asked {
        Asked::Read => "register: read",
        Asked::Write(_) => "register: write",
        Asked::Delete => "register: delete",
        Asked::Swap { .. } => "register: compare and swap",
    };
    count(tallies, kind, operation, verdict);
}

/// The counts of objects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Judged {
    pub(crate) objects: u64,
    pub(crate) illegal: u64,
    pub(crate) unknown: u64,
}

/// Returns the keys of each object.
pub(crate) fn objects_of(records: &[ObjectRecord]) -> BTreeSet<&Vec<String>> {
    records.iter().map(|record| &record.keys).collect()
}

/// Creates a read of a key of an object after the end of the load: the entry as (value, version, deadline), or `None` if
/// it is absent.
pub(crate) fn last_read(
    keys: &[String],
    key: usize,
    found: Option<(Vec<u8>, u64, Option<i64>)>,
    wall: Span,
) -> ObjectRecord {
    let update = Update { returns_value: true, ..Update::new(key, Change::Check) };
    let (version, shown) = match found {
        Some((value, version, deadline)) => {
            let value = Some(Text::from(value));
            (version, Shown { outcome: Outcome::Done, value, deadline })
        }
        None => (0, Shown { outcome: Outcome::NotFound, value: None, deadline: None }),
    };
    ObjectRecord {
        keys: keys.to_vec(),
        client: u32::MAX,
        start: 0,
        end: 0,
        wall,
        is_read: true,
        shows_deadline: true,
        updates: vec![update],
        answer: Answer::Shown { version, updates: vec![shown] },
    }
}

/// Creates the read of a key of an object in a dump. A dump also contains entries whose deadline has passed, if their
/// removal was not committed. So the read may have happened at any time so far.
pub(crate) fn read_of_dump(
    keys: &[String],
    key: usize,
    found: Option<(Vec<u8>, u64, Option<i64>)>,
) -> ObjectRecord {
    last_read(keys, key, found, Span { from: 0, to: wall_ms() })
}

/// Checks that every object behaves as one object for all clients together, and that the checker rejects a copy of a
/// history with an impossible response.
pub(crate) fn judge_objects(
    dir: &Path,
    records: &[ObjectRecord],
    tallies: &mut Tallies,
    failures: &mut Vec<String>,
) -> anyhow::Result<Judged> {
    let mut objects: BTreeMap<&str, Vec<&ObjectRecord>> = BTreeMap::new();
    for record in records {
        let key = record.keys.first().map_or("", |key| key);
        objects.entry(key).or_default().push(record);
    }
    let mut judged = Judged { objects: objects.len() as u64, ..Judged::default() };
    let mut longest: Option<Vec<ObjectEntry>> = None;
    for (key, records) in objects {
        let mut entries: Vec<ObjectEntry> = records.iter().map(|record| record.entry()).collect();
        entries.sort_by_key(|entry| entry.start);
        let verdict = judge_object(&entries, CLOCK_MARGIN_MS);
        for record in records.iter().filter(|record| record.client != u32::MAX) {
            count(tallies, kinds::of(record), &record.operation(), verdict);
        }
        let what = match verdict {
            Verdict::Linearizable => {
                let is_longer = longest.as_ref().is_none_or(|other| other.len() < entries.len());
                if is_longer && corrupted_object(&entries).is_some() {
                    longest = Some(entries);
                }
                continue;
            }
            Verdict::Illegal => {
                judged.illegal += 1;
                "is not linearizable"
            }
            Verdict::Unknown => {
                judged.unknown += 1;
                "was not checked within the time limit"
            }
        };
        let path = dir.join(format!("object-{key}.txt"));
        let lines: Vec<String> = entries.iter().map(ObjectEntry::in_words).collect();
        fs::write(&path, lines.join("\n")).with_context(|| format!("write {}", path.display()))?;
        failures.push(format!("the history of object {key:?} {what}; it is in {}", path.display()));
    }
    if let Some(copy) = longest.and_then(|entries| corrupted_object(&entries))
        && judge_object(&copy, CLOCK_MARGIN_MS) != Verdict::Illegal
    {
        let first = copy.first().map(ObjectEntry::in_words).unwrap_or_default();
        failures.push(format!(
            "the checker accepts an impossible history of the object with the operation: {first}"
        ));
    }
    Ok(judged)
}

/// The keys that scans can return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written<'a> {
    /// The operations on registers.
    pub(crate) registers: &'a Operations,
    pub(crate) objects: &'a [ObjectRecord],
    pub(crate) bulk: Bulk,
    /// The maximum number of further writes of this program itself.
    pub(crate) beside: u64,
}

/// Checks that each scan has returned every key that existed throughout exactly once, and only keys that were written.
pub(crate) fn judge_scans(
    scans: &[ScanRecord],
    written: Written<'_>,
    struck: &[Struck],
    tallies: &mut Tallies,
    failures: &mut Vec<String>,
) {
    let mut first_writes: BTreeMap<&str, i64> = BTreeMap::new();
    for record in written.objects.iter().filter(|record| !record.is_read) {
        for key in &record.keys {
            let first = first_writes.entry(key).or_insert(record.start);
            *first = record.start.min(*first);
        }
    }
    for scan in scans {
        let wrong = wrong_in(scan, written, &first_writes, struck);
        let kind = match scan.kind {
            ScanKind::Keys => kinds::SCANS[0],
            ScanKind::Values => kinds::SCANS[1],
            ScanKind::Count => kinds::SCANS[2],
        };
        let is_ok = scan.error.is_none();
        *tallies.entry(kind).or_default() += Tally {
            ran: 1,
            ok: u64::from(is_ok),
            unserved: u64::from(!is_ok),
            illegal: u64::from(wrong.is_some()),
            not_judged: u64::from(!is_ok && wrong.is_none()),
            ..Tally::default()
        };
        if let Some(wrong) = wrong {
            let (start, end) = (scan.start, scan.end);
            failures.push(format!(
                "a {kind} of the keys with the prefix {:?}, from {start} to {end} ns: {wrong}",
                scan.prefix
            ));
        }
    }
}

/// Describes what is wrong with a scan.
fn wrong_in(
    scan: &ScanRecord,
    written: Written<'_>,
    first_writes: &BTreeMap<&str, i64>,
    struck: &[Struck],
) -> Option<String> {
    let Written { registers, objects, bulk, beside } = written;
    if let Some(key) = scan.expired.first() {
        return Some(format!("key {key:?} came, but its deadline had passed"));
    }
    let is_away = struck.iter().any(|fault| {
        fault.away_until_ns.is_some_and(|until| scan.start < until && fault.began_ns < scan.end)
    });
    match scan.error {
        Some(Reason::Refused) if !is_away => return Some("it was rejected".to_owned()),
        Some(_) => return None,
        None => {}
    }
    if let Some(count) = scan.count {
        let keys = objects.iter().flat_map(|record| &record.keys).collect::<BTreeSet<_>>().len();
        let most = bulk.count + (registers.by_key.len() + keys) as u64 + beside;
        let is_possible = (bulk.count..=most).contains(&count);
        return (!is_possible).then(|| {
            format!("{count} keys were counted, but there were {} to {most}", bulk.count)
        });
    }
    if let Some(number) = scan.missing.first() {
        let key = Bulk::key(*number);
        let count = scan.missing.len();
        return Some(format!("{count} keys are missing or have a wrong value, {key:?} among them"));
    }
    let found: BTreeSet<&str> = scan.found.iter().map(|key| &key[..]).collect();
    let repeated: BTreeSet<&str> = scan.repeated.iter().map(|key| &key[..]).collect();
    if let Some(key) = repeated.iter().find(|key| key.starts_with("bulk-")) {
        return Some(format!("key {key:?} came twice"));
    }
    for key in registers.by_key.keys().filter(|key| key.starts_with(&scan.prefix)) {
        let history = registers.entries(key);
        let is_found = found.contains(&key[..]);
        let must_come = existed_throughout(&history, scan.start, scan.end);
        if must_come && !is_found {
            return Some(format!("key {key:?} did not come, although it existed throughout"));
        }
        if must_come && repeated.contains(&key[..]) {
            return Some(format!("key {key:?} came twice"));
        }
        if is_found && !may_have_existed(&history, scan.end) {
            return Some(format!("key {key:?} came before it was written"));
        }
    }
    let is_known = |key: &&&str| {
        registers.by_key.contains_key(**key)
            || first_writes.get(**key).is_some_and(|start| *start <= scan.end)
            || (beside > 0 && (key.starts_with("fill-") || key.starts_with("flooded")))
    };
    let stranger = found.iter().find(|key| !is_known(key));
    stranger.map(|key| format!("key {key:?} came, but was never written"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_history::{Function, Payload, Record};

    const BULK: Bulk = Bulk { count: 3, value_bytes: 8 };

    fn registers() -> Operations {
        let line = |kind, time_ns| Record {
            process: 1,
            kind,
            f: Function::Write,
            key: "h1".into(),
            value: Payload::One(Some(1)),
            time_ns,
            version: None,
            error: None,
        };
        Operations::pair(&[line(Kind::Invoke, 0), line(Kind::Ok, 10)]).unwrap()
    }

    fn scan(found: &[&str]) -> ScanRecord {
        ScanRecord {
            kind: ScanKind::Keys,
            start: 20,
            end: 30,
            prefix: String::new(),
            found: found.iter().map(|key| (*key).to_owned()).collect(),
            repeated: Vec::new(),
            missing: Vec::new(),
            expired: Vec::new(),
            count: None,
            retries: 0,
            error: None,
        }
    }

    fn wrong(scan: &ScanRecord) -> Option<String> {
        let registers = registers();
        let written = Written { registers: &registers, objects: &[], bulk: BULK, beside: 0 };
        wrong_in(scan, written, &BTreeMap::from([("Item.0", 25)]), &[])
    }

    #[test]
    fn a_scan_returns_every_key_that_exists_throughout_and_no_other() {
        assert_eq!(wrong(&scan(&["h1", "Item.0"])), None);
        let reason = |scan: &ScanRecord| wrong(scan).expect("the scan is wrong");
        assert!(reason(&scan(&[])).contains("did not come"));
        assert!(reason(&scan(&["h1", "h2"])).contains("never written"));
        let early = ScanRecord { end: 24, ..scan(&["h1", "Item.0"]) };
        assert!(reason(&early).contains("never written"), "not written before the end");
        let missing = ScanRecord { missing: vec![2], ..scan(&["h1"]) };
        assert!(reason(&missing).contains("bulk-2"));
        let repeated = ScanRecord { repeated: vec!["h1".to_owned()], ..scan(&["h1"]) };
        assert!(reason(&repeated).contains("twice"));
        let expired = ScanRecord { expired: vec!["x".to_owned()], ..scan(&["h1"]) };
        assert!(reason(&expired).contains("deadline"));
    }

    #[test]
    fn an_incomplete_scan_is_wrong_only_if_it_was_rejected() {
        let ended = |error| wrong(&ScanRecord { error: Some(error), ..scan(&[]) });
        assert_eq!(ended(Reason::Lost), None);
        assert!(ended(Reason::Refused).is_some());
    }

    #[test]
    fn the_number_of_keys_is_between_those_that_exist_and_those_that_may() {
        let counted = |count| wrong(&ScanRecord { count: Some(count), ..scan(&[]) }).is_some();
        assert_eq!([2, 3, 4, 5].map(counted), [true, false, false, true]);
    }
}
