//! The verdict on a round: the checks of its history and its dumps.
//!
//! ```text
//!   history + the contents of the dumps, as final reads -> one register for each key, or one object; each write once
//!   the same with one impossible response               -> must be rejected
//!   dumps of i.primary and (i+1).secondary              -> equal, entry by entry
//!   last sequence number of each dump                   -> between the certain and the possible count
//!   scans                                               -> every key that existed throughout, no other
//!   the bulk data of the round                          -> present
//! ```
//!
//! There is no separate check that the dumps contain every acknowledged write. The entries of the dumps are added to
//! the history as final reads, and a history with a lost write is not linearizable.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_core::dump::{Dump, DumpHeader};
use kv_core::restore;
use kv_history::object::ObjectRecord;
use kv_history::{Effects, Function, Kind, Operations, Payload, Record, corrupted, effects};
use kv_protocol::limits::SESSION_IDLE;
use kv_protocol::placement::Placement;
use kv_protocol::{GroupId, Member, ShardId};

use crate::bulk::Bulk;
use crate::dumps;
use crate::histories::Histories;
use crate::load::write_history;
use crate::noticed;
use crate::objects::verdict::{
    Judged, Tallies, Written, count_register, judge_objects, judge_scans, objects_of, read_of_dump,
};
use crate::ordinary::writes::Beside;
use crate::restored::{Found, Restored};
use crate::strike::Struck;
use crate::worker::{client_of, value_of};

/// The process number of the final reads.
const LAST_READER: u32 = u32::MAX;

/// A group's shard.
type Place = (GroupId, ShardId);

/// The counts of a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) ok: u64,
    pub(crate) fail: u64,
    pub(crate) info: u64,
    /// The number of failed operations, except failed conditions and deletes of absent keys.
    pub(crate) unserved: u64,
    pub(crate) keys: u64,
    pub(crate) unknown: u64,
    pub(crate) illegal: u64,
    /// The number of entries of the bulk data that are lost or wrong.
    pub(crate) damaged: u64,
    /// The number of effects that occurred twice.
    pub(crate) twice: u64,
    /// The longest time, over all places, for which no operation of a place succeeded although one was requested.
    pub(crate) longest_stall: Duration,
    /// The counts by kind of operation.
    pub(crate) kinds: Tallies,
    /// The counts of objects.
    pub(crate) objects: Judged,
    /// For each fault, in order, true if it struck while a write to its groups was in flight.
    pub(crate) in_flight: Vec<bool>,
    /// For each fault, in order, the longest stall that ended after the fault and before the next one.
    pub(crate) stalls: Vec<Duration>,
}

/// The entries at the end of a round, by place. LOST places have none.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    shards: HashMap<Place, Remain>,
}

#[derive(Debug)]
struct Remain {
    /// The value, the version and the deadline of each entry, by key.
    entries: HashMap<Vec<u8>, (Vec<u8>, u64, Option<i64>)>,
    last: u64,
}

impl Remains {
    /// Collects the dumps of all groups except `lost` ones. Each of these groups must have been whole when it was
    /// dumped, and its two dumps must be equal.
    pub(crate) fn of_whole(
        dir: &Path,
        placement: Placement,
        lost: &[GroupId],
    ) -> anyhow::Result<Remains> {
        let mut remains = Remains::default();
        for group in (0..placement.servers()).map(GroupId).filter(|group| !lost.contains(group)) {
            let primary = dumps::of_group(dir, placement, group)?;
            (0..placement.shards())
                .for_each(|shard| remains.take(&primary, ShardId(shard), placement));
        }
        Ok(remains)
    }

    /// Collects the dumps that a restore would use: the newest valid dump of every place. `dead` are the killed
    /// processes. Every group whose last view names a process that is not in `dead` must have a dump, even if this
    /// process is a replacement.
    pub(crate) fn of_survivors(
        dir: &Path,
        placement: Placement,
        dead: &[Member],
    ) -> anyhow::Result<Remains> {
        let state = dumps::read_state(&dir.join("coordinator.state"))?;
        let mut found: Vec<Dump> = Vec::new();
        for id in 0..placement.servers() {
            for role in ["primary", "secondary"] {
                let path = dir.join(format!("server_{id}.{role}"));
                let holds = state.views.iter().any(|view| {
                    let is_its = |member: Option<kv_protocol::Member>| {
                        member
                            .is_some_and(|member| member.server.0 == id && !dead.contains(&member))
                    };
                    let is_group = match role {
                        "primary" => view.group.0 == id,
                        _ => view.group.home_secondary(placement.servers()).0 == id,
                    };
                    is_group && (is_its(view.primary) || is_its(view.secondary()))
                });
                match path.exists() {
                    true => found.push(dumps::read(&path)?),
                    false => ensure!(
                        !holds,
                        "server {id} is alive and holds a group, but left no {}",
                        path.display()
                    ),
                }
            }
        }
        let headers: Vec<DumpHeader> = found.iter().map(|dump| dump.header.clone()).collect();
        let plan = restore::choose(&state, &headers)?;
        let mut remains = Remains::default();
        for view in &state.views {
            let holders = [view.primary, view.secondary()];
            let lives = holders.iter().flatten().any(|member| !dead.contains(member));
            for shard in (0..placement.shards()).map(ShardId) {
                match plan.source(view.group, shard) {
                    Some(source) => remains.take(&found[source.dump.0], shard, placement),
                    None => ensure!(
                        !lives,
                        "a holder of group {} is alive, but it has no valid dump: {view:?}",
                        view.group
                    ),
                }
            }
        }
        Ok(remains)
    }

    fn take(&mut self, dump: &Dump, shard: ShardId, placement: Placement) {
        let place = (dump.header.origin.group, shard);
        let entries = dump.entries.iter().filter(|entry| placement.locate(&entry.key) == place);
        let entries = entries
            .map(|entry| {
                let deadline = entry.deadline.map(|deadline| deadline.millis().cast_signed());
                (entry.key.clone(), (entry.value.clone(), entry.sn.0, deadline))
            })
            .collect();
        let last = dump.header.shards[usize::from(shard.0)].last.0;
        self.shards.insert(place, Remain { entries, last });
    }

    /// Returns the groups without any dump.
    pub(crate) fn lost(&self, placement: Placement) -> Vec<GroupId> {
        let groups = (0..placement.servers()).map(GroupId);
        groups.filter(|group| !self.shards.contains_key(&(*group, ShardId(0)))).collect()
    }

    fn at(&self, place: Place) -> Option<&Remain> {
        self.shards.get(&place)
    }
}

/// The state of a round at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    /// The entries of the dumps.
    pub(crate) remains: &'a Remains,
    /// The values that a client read from a cluster that was restored from these dumps; empty if none was restored.
    pub(crate) restored: &'a Restored,
    /// The bulk data that was written at the beginning of the round.
    pub(crate) bulk: Bulk,
    /// The additional writes of this program itself.
    pub(crate) beside: &'a Beside,
    /// The lifetime of the cluster.
    pub(crate) age: Duration,
}

/// Checks a round, and adds every error to `failures`.
pub(crate) fn judge(
    dir: &Path,
    placement: Placement,
    histories: Histories,
    ends: Ends<'_>,
    struck: &[Struck],
    failures: &mut Vec<String>,
) -> anyhow::Result<Counts> {
    let Ends { remains, restored, bulk, age, .. } = ends;
    let forgotten = forgotten_at_most(histories.processes(), age);
    let place_of = |key: &str| placement.locate(key.as_bytes());
    let live = histories.operations()?;
    let Histories { registers: mut records, mut objects, scans } = histories;
    let of_registers: BTreeSet<String> = records.iter().map(|record| record.key.clone()).collect();
    let mut counts = count(&live);
    let stalls = noticed::stalls(&live, |key| {
        let place = place_of(key);
        remains.at(place).is_some().then_some(place)
    });
    counts.longest_stall = noticed::longest(&stalls, i64::MIN, i64::MAX);
    counts.stalls = (0..struck.len())
        .map(|at| {
            let next = struck.get(at + 1).map_or(i64::MAX, |fault| fault.began_ns);
            noticed::longest(&stalls, struck[at].began_ns, next)
        })
        .collect();
    failures.extend(noticed::too_long(struck, &counts.stalls));
    counts.in_flight =
        struck.iter().map(|fault| noticed::was_in_flight(&live, placement, fault)).collect();
    if noticed::is_idle(&live) {
        failures.push("no operation succeeded in the whole round".into());
    }
    let in_dumps = of_registers.iter().filter_map(|key| {
        let found = remains.at(place_of(key))?.entries.get(key.as_bytes());
        Some((key.clone(), found.map(|(bytes, version, _)| (value_of(bytes), *version))))
    });
    read_last(&mut records, LAST_READER, &in_dumps.collect());
    read_last(&mut records, LAST_READER - 1, &restored.registers);
    let in_dumps = objects_of(&objects).into_iter().flat_map(|keys| {
        keys.iter().enumerate().filter_map(|(at, key)| {
            let found = remains.at(place_of(key))?.entries.get(key.as_bytes());
            Some(read_of_dump(keys, at, found.cloned()))
        })
    });
    let in_dumps: Vec<ObjectRecord> = in_dumps.collect();
    read_objects_last(&mut objects, in_dumps.into_iter().chain(restored.objects.clone()));
    write_history(&dir.join("history.jsonl"), &records)?;
    let operations = Operations::pair(&records)?;
    let verdicts = operations.judge();
    for (key, operation) in live.all().filter(|(key, _)| of_registers.contains(*key)) {
        let verdict = verdicts.iter().find(|(bad, _)| *bad == key).map(|(_, verdict)| *verdict);
        let verdict = verdict.unwrap_or(kv_history::Verdict::Linearizable);
        count_register(&mut counts.kinds, operation, verdict);
    }
    for (key, verdict) in verdicts {
        let what = match verdict {
            kv_history::Verdict::Unknown => {
                counts.unknown += 1;
                "was not checked within the time limit"
            }
            _ => {
                counts.illegal += 1;
                "is not linearizable"
            }
        };
        let path = dir.join(format!("key-{key}.txt"));
        let lines: Vec<String> =
            operations.by_key[key].iter().map(|operation| format!("{operation:?}")).collect();
        fs::write(&path, lines.join("\n")).with_context(|| format!("write {}", path.display()))?;
        failures.push(format!("the history of key {key:?} {what}; it is in {}", path.display()));
    }
    counts.objects = judge_objects(dir, &objects, &mut counts.kinds, failures)?;
    let beside = ends.beside.possible();
    let written = Written { registers: &operations, objects: &objects, bulk, beside };
    judge_scans(&scans, written, struck, &mut counts.kinds, failures);
    match effects(&operations, &objects, place_of) {
        Ok(found) => check_numbers(&found, placement, ends, forgotten, failures),
        Err(twice) => {
            counts.twice += 1;
            failures.push(twice.to_string());
        }
    }
    counts.damaged = check_bulk(remains, placement, bulk, failures);
    check_checker(dir, &records, &operations, failures)?;
    Ok(counts)
}

fn count(operations: &Operations) -> Counts {
    let mut counts = Counts { keys: operations.by_key.len() as u64, ..Counts::default() };
    for (_, operation) in operations.all() {
        match operation.kind {
            Kind::Ok => counts.ok += 1,
            Kind::Info => counts.info += 1,
            _ => counts.fail += 1,
        }
        let is_fail = operation.kind == Kind::Fail;
        counts.unserved += u64::from(is_fail && !noticed::is_served(operation));
    }
    counts
}

/// Adds reads of the values that were found after the end of the load.
fn read_last(records: &mut Vec<Record>, process: u32, found: &Found) {
    let mut time_ns = records.last().map_or(0, |record| record.time_ns);
    for (key, found) in found {
        let value = Payload::One(found.map(|(value, _)| value));
        let version = found.map(|(_, version)| version);
        let record = |kind, time_ns, value, version| Record {
            process,
            kind,
            f: Function::Read,
            key: key.clone(),
            value,
            time_ns,
            version,
            error: None,
        };
        records.push(record(Kind::Invoke, time_ns + 1, Payload::One(None), None));
        records.push(record(Kind::Ok, time_ns + 2, value, version));
        time_ns += 2;
    }
}

/// Adds reads of objects after the end of the load, one after the other.
fn read_objects_last(records: &mut Vec<ObjectRecord>, last: impl Iterator<Item = ObjectRecord>) {
    let ends = records.iter().map(|record| record.end).filter(|end| *end < i64::MAX);
    let starts = records.iter().map(|record| record.start);
    let mut time = ends.chain(starts).max().unwrap_or(0);
    for record in last {
        records.push(ObjectRecord { start: time + 1, end: time + 2, ..record });
        time += 2;
    }
}

/// Returns the maximum number of sessions of a place that can have expired, each with a separate write. Each client
/// has one session in a place, which must be idle for [`SESSION_IDLE`] before each expiry.
fn forgotten_at_most(processes: impl Iterator<Item = u32>, age: Duration) -> u64 {
    let clients: BTreeSet<u32> = processes.map(client_of).collect();
    // One more client wrote the bulk data.
    (clients.len() as u64 + 1) * (age.as_secs() / SESSION_IDLE.as_secs())
}

/// Checks the last sequence number of every place. Each write that the store evaluated takes one, and so does the
/// expiry of sessions. The removals that a primary logs take further ones.
fn check_numbers(
    found: &HashMap<Place, Effects>,
    placement: Placement,
    ends: Ends<'_>,
    forgotten: u64,
    failures: &mut Vec<String>,
) {
    let Ends { remains, bulk, beside, .. } = ends;
    let mut stored: HashMap<Place, u64> = HashMap::new();
    for number in 0..bulk.count {
        let key = Bulk::key(number);
        *stored.entry(placement.locate(key.as_bytes())).or_default() += 1;
    }
    for (place, remain) in &remains.shards {
        let effects = found.get(place).copied().unwrap_or_default();
        let before = stored.get(place).copied().unwrap_or(0);
        let (certain, possible) = beside.at(*place);
        let least = before + certain + effects.returned;
        let most = before + possible + effects.possible + effects.expiring + forgotten;
        if remain.last < least.max(effects.highest) || remain.last > most {
            failures.push(format!(
                "group {}, shard {}: the last sequence number is {}; at least {least} writes \
                 took one (the highest in a response is {}), at most {most}",
                place.0, place.1, remain.last, effects.highest
            ));
        }
    }
}

fn check_bulk(
    remains: &Remains,
    placement: Placement,
    bulk: Bulk,
    failures: &mut Vec<String>,
) -> u64 {
    let is_missing = |number: &u64| {
        let key = Bulk::key(*number);
        let Some(remain) = remains.at(placement.locate(key.as_bytes())) else {
            return false;
        };
        remain.entries.get(key.as_bytes()).is_none_or(|(value, ..)| *value != bulk.value(*number))
    };
    let missing: Vec<u64> = (0..bulk.count).filter(is_missing).collect();
    if let Some(first) = missing.first() {
        let count = missing.len();
        failures.push(format!(
            "{count} entries of the bulk data are lost or wrong, {first} among them"
        ));
    }
    missing.len() as u64
}

/// Checks that the checker rejects a copy of the history with one impossible response. The copy is written to a file
/// and read back, like any history.
fn check_checker(
    dir: &Path,
    records: &[Record],
    operations: &Operations,
    failures: &mut Vec<String>,
) -> anyhow::Result<()> {
    let Some((copy, key)) = corrupted(records, operations) else {
        failures.push("cannot corrupt the history: no read succeeded in the whole round".into());
        return Ok(());
    };
    let path = dir.join("history-corrupted.jsonl");
    write_history(&path, &copy)?;
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let copy = Operations::pair(&Record::parse_all(&text)?)?;
    let is_rejected =
        |(found, verdict): &(&str, _)| *found == key && *verdict == kv_history::Verdict::Illegal;
    if !copy.judge().iter().any(is_rejected) {
        failures.push(format!(
            "the checker accepts an impossible history: {}, key {key}",
            path.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_expires_at_most_once_in_each_idle_span() {
        let processes = [1, 2, 100_001];
        let after =
            |seconds| forgotten_at_most(processes.into_iter(), Duration::from_secs(seconds));
        assert_eq!((after(599), after(600), after(1_300)), (0, 3, 6));
    }
}
