//! Tests of the model of an object.

use super::*;

fn text(text: &str) -> Text {
    text.as_bytes().into()
}

/// Creates an operation from `start` to `end` milliseconds.
fn entry(start: i64, end: i64, updates: Vec<Update>, answer: Answer) -> ObjectEntry {
    let nanos = |millis: i64| millis.saturating_mul(1_000_000);
    ObjectEntry {
        client: u32::try_from(start).unwrap(),
        start: nanos(start),
        end: nanos(end),
        wall: Span { from: start, to: end },
        is_read: false,
        shows_deadline: true,
        shows_version: true,
        updates: updates.into(),
        answer,
    }
}

fn shown(version: u64, value: Option<&str>) -> Answer {
    let shown = Shown { outcome: Outcome::Done, value: value.map(text), deadline: None };
    Answer::Shown { version, updates: vec![shown] }
}

fn failed(outcome: Outcome) -> Answer {
    Answer::Shown { version: 0, updates: vec![Shown { outcome, value: None, deadline: None }] }
}

fn add(start: i64, end: i64, version: u64, sum: &str) -> ObjectEntry {
    entry(start, end, vec![Update::new(0, Change::Add(1))], shown(version, Some(sum)))
}

fn put(start: i64, end: i64, value: &str, lifetime: Lifetime, version: u64) -> ObjectEntry {
    let update = Update { lifetime, ..Update::new(0, Change::Put(text(value))) };
    entry(start, end, vec![update], shown(version, None))
}

/// Creates a read of a key. Version 0 stands for an absent entry.
fn read_of(key: usize, start: i64, version: u64, value: &str) -> ObjectEntry {
    let update = Update { returns_value: true, ..Update::new(key, Change::Check) };
    let answer = match version {
        0 => failed(Outcome::NotFound),
        _ => shown(version, Some(value)),
    };
    let read = entry(start, start + 1, vec![update], answer);
    ObjectEntry { is_read: true, shows_deadline: false, ..read }
}

fn read(start: i64, version: u64, value: &str) -> ObjectEntry {
    read_of(0, start, version, value)
}

fn is_legal(history: &[ObjectEntry], bound: i64) -> bool {
    judge_object(history, bound) == Verdict::Linearizable
}

#[test]
fn two_additions_never_have_the_same_sum() {
    assert!(is_legal(&[add(0, 9, 1, "1"), add(1, 9, 2, "2"), read(20, 2, "2")], 0));
    assert!(!is_legal(&[add(0, 9, 1, "1"), add(1, 9, 2, "1")], 0));
    assert!(!is_legal(&[add(0, 9, 1, "1"), read(20, 2, "1")], 0), "another version");
}

#[test]
fn an_addition_in_doubt_takes_effect_at_most_once() {
    let in_doubt = ObjectEntry { end: i64::MAX, answer: Answer::InDoubt, ..add(0, 1, 0, "") };
    for (sum, is_possible) in [("1", true), ("2", true), ("3", false)] {
        assert_eq!(is_legal(&[in_doubt.clone(), add(2, 3, 7, sum)], 0), is_possible, "{sum}");
    }
}

#[test]
fn many_deletes_in_doubt_are_judged_at_once() {
    let delete = |key| {
        let updates = vec![Update::new(key, Change::Delete)];
        ObjectEntry { end: i64::MAX, ..entry(8, 9, updates, Answer::InDoubt) }
    };
    let mut history: Vec<ObjectEntry> = (1_000_u32..)
        .zip([0, 1, 2].repeat(8))
        .map(|(client, key)| ObjectEntry { client, ..delete(key) })
        .collect();
    let begun = history.len();
    let mut time = 10;
    for round in 1..=8 {
        history.push(put(time, time + 1, "a", Lifetime::Never, round));
        history.push(read(time + 2, round, "a"));
        history.push(read(time + 4, 0, ""));
        time += 10;
    }
    assert_eq!(judge_object(&history, 0), Verdict::Linearizable);
    history.push(put(time, time + 1, "a", Lifetime::Never, 9));
    history.push(read(time + 4, 0, ""));
    assert_eq!(judge_object(&history, 0), Verdict::Illegal, "nine deletes of eight");
    let early = [put(0, 1, "a", Lifetime::Never, 1), read(2, 0, "")];
    let early = [&early[..], &history[..begun]].concat();
    assert_eq!(judge_object(&early, 0), Verdict::Illegal, "deleted before the start");
}

#[test]
fn an_entry_expires_within_the_bound_around_its_deadline() {
    let put = put(0, 1, "a", Lifetime::At(100), 1);
    for (start, bound, absent, present) in [
        (50, 0, false, true),
        (98, 0, false, true),
        (99, 0, true, true),
        (100, 0, true, false),
        (79, 20, true, true),
        (78, 20, false, true),
        (119, 20, true, true),
        (120, 20, true, false),
    ] {
        let gone = [put.clone(), read(start, 0, "")];
        let there = [put.clone(), read(start, 1, "a")];
        let found = (is_legal(&gone, bound), is_legal(&there, bound));
        assert_eq!(found, (absent, present), "read at {start}, bound {bound}");
    }
}

#[test]
fn an_expired_entry_never_comes_back() {
    let put = put(0, 1, "a", Lifetime::At(100), 1);
    assert!(!is_legal(&[put.clone(), read(95, 0, ""), read(97, 1, "a")], 20));
    assert!(is_legal(&[put, read(95, 1, "a"), read(97, 0, "")], 20));
}

#[test]
fn a_lifetime_counts_from_the_execution() {
    let put = put(0, 10, "a", Lifetime::After(100), 1);
    assert!(!is_legal(&[put.clone(), read(98, 0, "")], 0));
    assert!(is_legal(&[put.clone(), read(100, 0, "")], 0));
    assert!(is_legal(&[put.clone(), read(109, 1, "a")], 0));
    assert!(!is_legal(&[put, read(110, 1, "a")], 0));
}

#[test]
fn a_deadline_in_a_response_is_the_only_one_afterwards() {
    let update = Update {
        lifetime: Lifetime::After(100),
        returns_value: true,
        ..Update::new(0, Change::Put(text("a")))
    };
    let done = Shown { outcome: Outcome::Done, value: None, deadline: Some(105) };
    let answer = Answer::Shown { version: 1, updates: vec![done] };
    let put = entry(0, 10, vec![update], answer);
    assert!(!is_legal(&[put.clone(), read(103, 0, "")], 0));
    assert!(is_legal(&[put, read(104, 0, "")], 0));
}

#[test]
fn a_batch_changes_all_keys_or_none() {
    let updates = vec![
        Update::new(0, Change::Put(text("a"))),
        Update { guard: Guard::Absent, ..Update::new(1, Change::Put(text("b"))) },
    ];
    let done = Shown { outcome: Outcome::Done, value: None, deadline: None };
    let answer = Answer::Shown { version: 4, updates: vec![done.clone(), done] };
    let batch = entry(0, 1, updates.clone(), answer);
    let [a, b] = [read_of(0, 2, 4, "a"), read_of(1, 4, 4, "b")];
    assert!(is_legal(&[batch.clone(), a.clone(), b.clone()], 0));
    assert!(!is_legal(&[batch.clone(), a.clone(), read_of(1, 4, 0, "")], 0), "applied in part");
    let conflict = Answer::Failed { index: 1, outcome: Outcome::Conflict };
    let again = entry(6, 7, updates.clone(), conflict.clone());
    assert!(is_legal(&[batch.clone(), again, read_of(0, 8, 4, "a")], 0));
    assert!(!is_legal(&[entry(6, 7, updates.clone(), conflict)], 0), "nothing conflicts");
    let in_doubt = ObjectEntry { end: i64::MAX, ..entry(0, 1, updates, Answer::InDoubt) };
    assert!(!is_legal(&[in_doubt.clone(), a, read_of(1, 4, 0, "")], 0));
    assert!(is_legal(&[in_doubt, b, read_of(0, 6, 4, "a")], 0));
}

#[test]
fn a_renamed_entry_keeps_its_value_and_deadline() {
    let rename = entry(2, 3, vec![Update::new(0, Change::Rename(1))], shown(2, None));
    let history = [put(0, 1, "a", Lifetime::At(100), 1), rename];
    let with = |reads: [ObjectEntry; 2]| is_legal(&[&history[..], &reads].concat(), 0);
    assert!(with([read_of(0, 4, 0, ""), read_of(1, 6, 2, "a")]));
    assert!(!with([read_of(0, 4, 1, "a"), read_of(1, 6, 2, "a")]));
    assert!(with([read_of(1, 98, 2, "a"), read_of(1, 100, 0, "")]));
    assert!(!with([read_of(1, 98, 2, "a"), read_of(1, 100, 2, "a")]));
}

#[test]
fn a_condition_on_a_version_holds_only_for_that_version() {
    let update = Update { guard: Guard::Version(1), ..Update::new(0, Change::Put(text("b"))) };
    let put = put(0, 1, "a", Lifetime::Never, 1);
    let conflict = Shown { outcome: Outcome::Conflict, value: None, deadline: None };
    let conflict = Answer::Shown { version: 1, updates: vec![conflict] };
    assert!(is_legal(&[put.clone(), entry(2, 3, vec![update.clone()], shown(2, None))], 0));
    assert!(!is_legal(&[put, entry(2, 3, vec![update], conflict)], 0));
}

#[test]
fn appended_texts_keep_their_order() {
    let append = |start: i64, version, bytes: &str, length: &str| {
        let update = Update::new(0, Change::Append(text(bytes)));
        entry(start, start + 1, vec![update], shown(version, Some(length)))
    };
    let history = [append(0, 1, "ab", "2"), append(2, 2, "c", "3")];
    assert!(is_legal(&[&history[..], &[read(4, 2, "abc")]].concat(), 0));
    assert!(!is_legal(&[&history[..], &[read(4, 2, "cab")]].concat(), 0));
}

#[test]
fn a_sum_of_quarters_is_exact() {
    let add = |start, version, quarters, sum| {
        let change = Change::AddQuarters(quarters);
        entry(start, start + 1, vec![Update::new(0, change)], shown(version, Some(sum)))
    };
    let history = [add(0, 1, 3, "0.75"), add(2, 2, -5, "-0.5"), add(4, 3, 2, "0"), read(6, 3, "0")];
    assert!(is_legal(&history, 0));
    assert!(!is_legal(&[history[0].clone(), add(2, 2, 1, "0.75")], 0), "one addition was lost");
    let text = put(0, 1, "x", Lifetime::Never, 1);
    let failed = Answer::Failed { index: 0, outcome: Outcome::NotANumber };
    let refused = ObjectEntry { answer: failed, ..add(2, 0, 1, "") };
    assert!(is_legal(&[text, refused.clone()], 0));
    assert!(!is_legal(&[refused], 0), "an absent entry counts as 0");
}

#[test]
fn a_part_is_one_of_the_present_value() {
    let part = |from, most, from_end, value| {
        let change = Change::CheckPart { from, most, from_end };
        let update = Update { returns_value: true, ..Update::new(0, change) };
        ObjectEntry { is_read: true, ..entry(4, 5, vec![update], shown(1, Some(value))) }
    };
    let legal = |read| is_legal(&[put(0, 1, "abcdef", Lifetime::Never, 1), read], 0);
    assert!(legal(part(1, 3, false, "bcd")) && legal(part(2, 9, true, "ef")));
    assert!(legal(part(7, 3, false, "")) && legal(part(9, 2, true, "ab")));
    assert!(!legal(part(1, 3, false, "bc")) && !legal(part(2, 1, true, "f")));
}

#[test]
fn a_refused_request_had_no_effect() {
    let refused = Answer::Refused(crate::record::Reason::Unavailable);
    let refused = ObjectEntry { answer: refused, ..add(2, 3, 0, "") };
    assert!(is_legal(&[add(0, 1, 1, "1"), refused.clone(), add(4, 5, 2, "2")], 0));
    assert!(!is_legal(&[add(0, 1, 1, "1"), refused, add(4, 5, 2, "3")], 0));
}

#[test]
fn a_corrupted_history_is_illegal() {
    let history = [add(0, 1, 1, "1"), read(2, 1, "1"), read(4, 1, "1")];
    assert!(is_legal(&history, 0));
    assert!(!is_legal(&corrupted_object(&history).unwrap(), 0));
    assert!(corrupted_object(&history[..1]).is_none());
}

#[test]
fn an_operation_without_a_version_leaves_the_version_open() {
    let silent = |entry: ObjectEntry| ObjectEntry { shows_version: false, ..entry };
    let write = silent(put(0, 1, "a", Lifetime::Never, 0));
    let look = silent(read_of(0, 2, 9, "a"));
    assert!(is_legal(&[write.clone(), look.clone(), read(4, 3, "a"), read(6, 3, "a")], 0));
    assert!(!is_legal(&[write.clone(), look, read(4, 3, "a"), read(6, 4, "a")], 0));
    assert!(!is_legal(&[write, silent(read_of(0, 2, 9, "b"))], 0), "the values still count");
}
