//! The lines that begin with a word.

use std::time::Duration;

use kv_client::{Expiry, WallTime};

use super::change::{Change, Condition, Kind};
use super::command::{Command, What};
use super::cursor::{Cursor, OPTIONAL, shown};
use super::help::{Word, word};
use super::parse::ParseError;
use super::scan::Scan;

/// The form of an item that only a batch has.
const CHECK: &str = "check KEY CONDITION";

/// Parses the rest of a line after its word.
pub(super) fn parse(word: &'static Word, cursor: &mut Cursor<'_>) -> Result<Command, ParseError> {
    let form = word.form;
    let command = match word.name {
        "help" => return help(cursor, form),
        "batch" => return batch(cursor, form),
        "mget" => return several(cursor, form, |key, _| Ok(Command::Get { key })),
        "mput" => {
            return several(cursor, form, |key, cursor| {
                let value = cursor.value_argument("the value", form)?;
                Ok(Command::Put { key, value, count: 1 })
            });
        }
        "scan" => Command::Scan(scan(cursor, form)?),
        "count" => Command::Count,
        "length" => read(cursor, form, What::Length)?,
        "exists" => read(cursor, form, What::Existence)?,
        "ttl" => read(cursor, form, What::Deadline)?,
        "getrange" => {
            let key = cursor.key_argument("the key", form)?;
            let (from, from_end) = cursor.number(FROM, form, offset)?;
            let most = cursor.number(MOST, form, |text| text.parse().ok())?;
            Command::Read { key, what: What::Range { from, from_end, most } }
        }
        name => plain(change(name, cursor, form)?),
    };
    cursor.end(form)?;
    Ok(command)
}

const FROM: (&str, &str) = ("the first byte", "a number from -4294967295 to 4294967295");
const MOST: (&str, &str) = ("the number of bytes", "a number from 0 to 4294967295");
const OFFSET: (&str, &str) = ("the offset", "a number from 0 to 4294967295");
const AMOUNT: (&str, &str) = ("the amount", "a 64-bit integer");
/// The bounds are one millisecond and [`WallTime::MAX`].
const SECONDS: (&str, &str) = ("the number of seconds", "a number from 0.001 to 281474976710.655");
const UNIX_MS: (&str, &str) = ("the time", "milliseconds since 1970, at most 281474976710655");
const LIMIT: (&str, &str) = ("the limit", "a number above 0");
const VERSION: (&str, &str) = ("the version", "a number above 0");

/// Replaces an update without options by the operation that servers of every version support.
fn plain(change: Change) -> Command {
    let Change { key, kind, condition, expiry, returns_value, .. } = change;
    match (kind, &condition, expiry, returns_value) {
        (Kind::Put(value), Condition::None, Expiry::Never, false) => {
            Command::Put { key, value, count: 1 }
        }
        (Kind::Delete, Condition::None, _, false) => Command::Delete { key },
        (Kind::Check, Condition::None, _, true) => Command::Get { key },
        (kind, ..) => {
            let of_kind = Change::new(key, kind);
            Command::Update(Change { condition, expiry, returns_value, ..of_kind })
        }
    }
}

fn read(cursor: &mut Cursor<'_>, form: &'static str, what: What) -> Result<Command, ParseError> {
    Ok(Command::Read { key: cursor.key_argument("the key", form)?, what })
}

fn help(cursor: &mut Cursor<'_>, form: &'static str) -> Result<Command, ParseError> {
    if cursor.is_at_end() {
        return Ok(Command::Help(None));
    }
    let name = cursor.bare();
    let found = word(name).ok_or_else(|| ParseError::UnknownWord { word: shown(name) })?;
    cursor.end(form)?;
    Ok(Command::Help(Some(found)))
}

/// Parses the arguments of a scan. A pattern that is one of the option words must be quoted.
fn scan(cursor: &mut Cursor<'_>, form: &'static str) -> Result<Scan, ParseError> {
    let mut scan = Scan::default();
    let mut may_be_pattern = true;
    while !cursor.is_at_end() {
        if !scan.values && cursor.takes(b"values") {
            scan.values = true;
        } else if scan.limit.is_none() && cursor.takes(b"limit") {
            let limit = |text: &str| text.parse().ok().filter(|&limit| limit > 0);
            scan.limit = Some(cursor.number(LIMIT, form, limit)?);
        } else if may_be_pattern {
            scan.pattern = cursor.pattern_argument(form)?;
        } else {
            break;
        }
        may_be_pattern = false;
    }
    Ok(scan)
}

/// Parses operations that begin with a key, at least one.
fn several(
    cursor: &mut Cursor<'_>,
    form: &'static str,
    each: impl Fn(Vec<u8>, &mut Cursor<'_>) -> Result<Command, ParseError>,
) -> Result<Command, ParseError> {
    let mut commands = Vec::new();
    while commands.is_empty() || !cursor.is_at_end() {
        let key = cursor.key_argument("the key", form)?;
        commands.push(each(key, cursor)?);
    }
    Ok(Command::Several(commands))
}

/// Parses the items of a batch. A semicolon may follow the last one.
fn batch(cursor: &mut Cursor<'_>, form: &'static str) -> Result<Command, ParseError> {
    let mut changes = Vec::new();
    while changes.is_empty() || !cursor.is_at_end() {
        cursor.skip_blanks();
        let name = cursor.bare();
        let item = std::str::from_utf8(name).ok().filter(|name| ITEMS.contains(name));
        let item = item.ok_or_else(|| match name {
            b"" => ParseError::Missing { what: "an item", form },
            _ => ParseError::NoItem { word: shown(name) },
        })?;
        let form = word(name).map_or(CHECK, |word| word.form);
        let mut change = change(item, cursor, form)?;
        if item == "persist" {
            // An entry without a deadline does not end the batch.
            change.condition = Condition::None;
        }
        change.is_optional = cursor.takes(OPTIONAL);
        changes.push(change);
        if !cursor.takes_semicolon() {
            cursor.end(form)?;
        }
    }
    Ok(match changes.len() {
        1 => Command::Update(changes.remove(0)),
        _ => Command::Batch(changes),
    })
}

/// The words with which an item of a batch begins.
pub(super) const ITEMS: [&str; 15] = [
    "get",
    "put",
    "del",
    "take",
    "append",
    "setrange",
    "rename",
    "copy",
    "incr",
    "decr",
    "incrfloat",
    "expire",
    "expire-at",
    "persist",
    "check",
];

/// Parses an update after its word.
fn change(name: &str, cursor: &mut Cursor<'_>, form: &'static str) -> Result<Change, ParseError> {
    let key = cursor.key_argument("the key", form)?;
    let value = |cursor: &mut Cursor<'_>| cursor.value_argument("the value", form);
    let new_key = |cursor: &mut Cursor<'_>| cursor.key_argument("the new key", form);
    let kind = match name {
        "get" | "check" => Kind::Check,
        "put" => Kind::Put(value(cursor)?),
        "del" | "take" => Kind::Delete,
        "append" => Kind::Append(value(cursor)?),
        "setrange" => {
            let offset = cursor.number(OFFSET, form, |text| text.parse().ok())?;
            Kind::SetRange { offset, bytes: value(cursor)? }
        }
        "rename" => Kind::Rename(new_key(cursor)?),
        "copy" => Kind::Copy(new_key(cursor)?),
        "incr" => Kind::Add(amount(cursor, form)?.unwrap_or(1)),
        "decr" => Kind::Add(match amount(cursor, form)?.map_or(Some(-1), i64::checked_neg) {
            Some(amount) => amount,
            None => {
                let (what, expected) = AMOUNT;
                let text = i64::MIN.to_string();
                return Err(ParseError::BadNumber { what, text, expected });
            }
        }),
        // The servers decide which texts are numbers.
        "incrfloat" => Kind::AddFloat(cursor.value_argument("the amount", form)?),
        _ => Kind::SetExpiry,
    };
    let mut change = Change::new(key, kind);
    match name {
        "get" | "take" => change.returns_value = true,
        "expire" => change.expiry = Expiry::After(cursor.number(SECONDS, form, millis)?),
        "expire-at" => change.expiry = Expiry::At(cursor.number(UNIX_MS, form, wall_time)?),
        "persist" => {
            (change.expiry, change.condition) = (Expiry::Never, Condition::HasDeadline);
        }
        _ => {}
    }
    options(name, cursor, form, &mut change)?;
    if name == "get" && change.expiry != Expiry::Keep {
        change.kind = Kind::SetExpiry;
    }
    if name == "check" && change.condition == Condition::None {
        return Err(ParseError::Missing { what: "the condition", form });
    }
    Ok(change)
}

/// Parses the options of an update, in any order, each kind at most once.
fn options(
    name: &str,
    cursor: &mut Cursor<'_>,
    form: &'static str,
    change: &mut Change,
) -> Result<(), ParseError> {
    let (mut has_condition, mut has_expiry) = (false, false);
    let has_conditions = matches!(name, "put" | "del" | "take" | "check");
    let has_expiries = matches!(name, "put" | "get");
    let compares_deadlines = matches!(name, "expire" | "expire-at");
    loop {
        let condition = match () {
            () if has_condition => None,
            () if has_conditions => key_condition(cursor, form)?,
            () if compares_deadlines => deadline_condition(cursor),
            () => None,
        };
        if let Some(condition) = condition {
            (change.condition, has_condition) = (condition, true);
            continue;
        }
        if has_expiries
            && !has_expiry
            && let Some(expiry) = expiry(name, cursor, form)?
        {
            (change.expiry, has_expiry) = (expiry, true);
            continue;
        }
        if name == "put" && !change.returns_value && cursor.takes(b"old") {
            change.returns_value = true;
            continue;
        }
        return Ok(());
    }
}

/// Takes a condition on the entry of the key.
fn key_condition(
    cursor: &mut Cursor<'_>,
    form: &'static str,
) -> Result<Option<Condition>, ParseError> {
    Ok(Some(match () {
        () if cursor.takes(b"if-absent") => Condition::Absent,
        () if cursor.takes(b"if-present") => Condition::Present,
        () if cursor.takes(b"if-version") => {
            let version = |text: &str| text.parse().ok().filter(|&version| version > 0);
            Condition::Version(cursor.number(VERSION, form, version)?)
        }
        () if cursor.takes(b"if-value") => {
            Condition::Value(cursor.value_argument("the value of the condition", form)?)
        }
        () => return Ok(None),
    }))
}

/// Takes a condition on the deadline of the entry.
fn deadline_condition(cursor: &mut Cursor<'_>) -> Option<Condition> {
    Some(match () {
        () if cursor.takes(b"if-none") => Condition::NoDeadline,
        () if cursor.takes(b"if-any") => Condition::HasDeadline,
        () if cursor.takes(b"if-later") => Condition::Later,
        () if cursor.takes(b"if-earlier") => Condition::Earlier,
        () => return None,
    })
}

/// Takes the deadline of the entry after the update.
fn expiry(
    name: &str,
    cursor: &mut Cursor<'_>,
    form: &'static str,
) -> Result<Option<Expiry>, ParseError> {
    Ok(Some(match () {
        () if cursor.takes(b"expires") => Expiry::After(cursor.number(SECONDS, form, millis)?),
        () if cursor.takes(b"expires-at") => Expiry::At(cursor.number(UNIX_MS, form, wall_time)?),
        () if name == "put" && cursor.takes(b"keep-expiry") => Expiry::Keep,
        () => return Ok(None),
    }))
}

/// Takes the amount of an addition, if there is one.
fn amount(cursor: &mut Cursor<'_>, form: &'static str) -> Result<Option<i64>, ParseError> {
    if cursor.is_at_item_end() {
        return Ok(None);
    }
    cursor.number(AMOUNT, form, |text| text.parse().ok()).map(Some)
}

/// Parses an offset; a negative one counts from the end.
fn offset(text: &str) -> Option<(u32, bool)> {
    match text.strip_prefix('-') {
        Some(from_end) => Some((from_end.parse().ok()?, true)),
        None => Some((text.parse().ok()?, false)),
    }
}

/// Parses a positive number of seconds to milliseconds.
fn millis(text: &str) -> Option<u64> {
    let duration = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
    let millis = u64::try_from(duration.as_millis()).ok()?;
    (1..=WallTime::MAX.millis()).contains(&millis).then_some(millis)
}

/// Parses a time in milliseconds since 1970.
fn wall_time(text: &str) -> Option<WallTime> {
    let millis = text.parse().ok().filter(|&millis| millis <= WallTime::MAX.millis())?;
    Some(WallTime::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn parsed(line: &str) -> Command {
        match parse(line.as_bytes()) {
            Ok(Some(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn change(kind: Kind) -> Change {
        Change::new(b"k".to_vec(), kind)
    }

    fn update(line: &str, expected: Change) {
        assert_eq!(parsed(line), Command::Update(expected), "{line}");
    }

    #[test]
    fn words_without_options_are_the_operations_of_the_letters() {
        assert_eq!(parsed("get k"), parsed("G \"k\""));
        assert_eq!(parsed("put k v"), parsed("P \"k\" \"v\""));
        assert_eq!(parsed("put \"k\" \"v\""), parsed("P \"k\" \"v\""));
        assert_eq!(parsed(" del\tk "), parsed("D \"k\""));
        assert_eq!(parsed(r#"put "a b" "\x00""#), parsed(r#"P "a b" "\x00""#));
        assert_eq!(parsed("put if-absent old"), parsed("P \"if-absent\" \"old\""));
    }

    #[test]
    fn options_of_a_put_come_in_any_order() {
        let put = || change(Kind::Put(b"v".to_vec()));
        update("put k v if-absent", Change { condition: Condition::Absent, ..put() });
        let (condition, expiry) = (Condition::Version(7), Expiry::After(2_500));
        let all = Change { condition, expiry, returns_value: true, ..put() };
        update("put k v if-version 7 expires 2.5 old", all.clone());
        update("put k v old expires 2.5 if-version 7", all);
        let condition = Condition::Value(b"w x".to_vec());
        update("put k v if-value \"w x\"", Change { condition, ..put() });
        update("put k v keep-expiry", Change { expiry: Expiry::Keep, ..put() });
        let expiry = Expiry::At(WallTime::from_millis(99));
        update("put k v expires-at 99", Change { expiry, ..put() });
    }

    #[test]
    fn every_word_that_changes_a_key_is_an_update() {
        let delete = || change(Kind::Delete);
        update("del k if-present", Change { condition: Condition::Present, ..delete() });
        update("take k", Change { returns_value: true, ..delete() });
        update("append k v", change(Kind::Append(b"v".to_vec())));
        update("setrange k 3 v", change(Kind::SetRange { offset: 3, bytes: b"v".to_vec() }));
        update("rename k n", change(Kind::Rename(b"n".to_vec())));
        update("copy k n", change(Kind::Copy(b"n".to_vec())));
        update("incr k", change(Kind::Add(1)));
        update("incr k -4", change(Kind::Add(-4)));
        update("decr k", change(Kind::Add(-1)));
        update("decr k 4", change(Kind::Add(-4)));
        update("incrfloat k 1.50", change(Kind::AddFloat(b"1.50".to_vec())));
        update("incrfloat k 1e400", change(Kind::AddFloat(b"1e400".to_vec())));
        let expiring = |expiry| Change { expiry, ..change(Kind::SetExpiry) };
        update("expire k 60", expiring(Expiry::After(60_000)));
        let later = Change { condition: Condition::Later, ..expiring(Expiry::After(1)) };
        update("expire k 0.001 if-later", later);
        let longest = expiring(Expiry::After(WallTime::MAX.millis()));
        update("expire k 281474976710.655", longest);
        update("expire-at k 5", expiring(Expiry::At(WallTime::from_millis(5))));
        let condition = Condition::HasDeadline;
        update("persist k", Change { condition, ..expiring(Expiry::Never) });
        let got = Change { returns_value: true, ..expiring(Expiry::After(5_000)) };
        update("get k expires 5", got);
    }

    #[test]
    fn the_arguments_of_a_scan_come_in_any_order_after_the_pattern() {
        let scan = |pattern: &[u8], values, limit| {
            Command::Scan(Scan { pattern: pattern.to_vec(), values, limit })
        };
        assert_eq!(parsed("scan"), scan(b"", false, None));
        assert_eq!(parsed("scan user:*"), scan(b"user:*", false, None));
        assert_eq!(parsed("scan \"a [b\\\\*\" values limit 3"), scan(b"a [b\\*", true, Some(3)));
        assert_eq!(parsed("scan limit 3 values"), scan(b"", true, Some(3)));
        assert_eq!(parsed("scan \"values\""), scan(b"values", false, None));
        assert_eq!(parsed("count"), Command::Count);
        for (line, words) in [
            ("scan a b", "unexpected \"b\" at column 8"),
            ("scan values values", "unexpected \"values\""),
            ("scan limit 0", "invalid limit \"0\""),
            ("scan limit", "the limit is missing"),
            ("count k", "unexpected \"k\""),
        ] {
            let message = parse(line.as_bytes()).expect_err(line).to_string();
            assert!(message.contains(words), "{line}: {message}");
        }
    }

    #[test]
    fn words_that_read_are_parsed() {
        let read = |what| Command::Read { key: b"k".to_vec(), what };
        assert_eq!(parsed("length k"), read(What::Length));
        assert_eq!(parsed("exists k"), read(What::Existence));
        assert_eq!(parsed("ttl k"), read(What::Deadline));
        let range = |from, from_end, most| read(What::Range { from, from_end, most });
        assert_eq!(parsed("getrange k 2 3"), range(2, false, 3));
        assert_eq!(parsed("getrange k -2 3"), range(2, true, 3));
        let several = Command::Several(vec![parsed("get a"), parsed("get b")]);
        assert_eq!(parsed("mget a \"b\""), several);
        let several = Command::Several(vec![parsed("put a 1"), parsed("put b 2")]);
        assert_eq!(parsed("mput a 1 b 2"), several);
    }

    #[test]
    fn a_batch_has_its_items_in_order() {
        let Command::Batch(changes) = parsed("batch put a 1; incr b; get c ;check d if-absent;")
        else {
            panic!("not a batch")
        };
        let keys: Vec<&[u8]> = changes.iter().map(|change| &change.key[..]).collect();
        assert_eq!(keys, [b"a", b"b", b"c", b"d"]);
        assert_eq!(changes[1].kind, Kind::Add(1));
        assert!(changes[2].returns_value);
        assert_eq!(changes[3].condition, Condition::Absent);
        let Command::Batch(changes) = parsed("batch incr a optional; persist b; incr \"c;d\" 2")
        else {
            panic!("not a batch")
        };
        assert!(changes[0].is_optional && !changes[1].is_optional);
        assert_eq!(changes[1].condition, Condition::None);
        assert_eq!(changes[2].key, b"c;d");
        assert_eq!(parsed("batch incr k"), parsed("incr k"));
        assert_eq!(parsed("batch incr a; rename b c").keys(), [b"a", b"b", b"c"]);
    }

    #[test]
    fn help_describes_every_word() {
        assert_eq!(parsed("help"), Command::Help(None));
        assert_eq!(parsed("help put"), Command::Help(word(b"put")));
    }

    #[test]
    fn every_invalid_word_line_is_rejected_with_the_correct_form() {
        for (line, words) in [
            ("put k", "the value is missing; write put KEY VALUE [CONDITION] [EXPIRY] [old]"),
            ("put", "the key is missing"),
            ("put \"\" v", "the key is empty"),
            ("put k v if-absent if-present", "unexpected \"if-present\" at column 19"),
            ("put k v if-later", "unexpected \"if-later\""),
            ("put k v if-version x", "invalid version \"x\""),
            ("put k v if-version 0", "invalid version \"0\""),
            ("put k v if-value", "the value of the condition is missing"),
            ("put k v expires -1", "invalid number of seconds \"-1\""),
            ("put k v expires 0.0004", "(expected a number from 0.001 to 281474976710.655)"),
            ("expire k 1e12", "(expected a number from 0.001 to 281474976710.655)"),
            ("expire k 281474976711", "invalid number of seconds"),
            ("put k v expires nan", "invalid number of seconds"),
            ("put k v expires-at x", "invalid time \"x\""),
            ("put k v 3", "unexpected \"3\""),
            ("put k a\\n", "the value at column 7 must be in double quotes"),
            ("put k v; del k", "unexpected \"; del k\""),
            ("get k keep-expiry", "unexpected \"keep-expiry\""),
            ("getrange k 1", "the number of bytes is missing"),
            ("getrange k 1 -2", "invalid number of bytes \"-2\""),
            ("setrange k -1 v", "invalid offset \"-1\""),
            ("incr k 1.5", "invalid amount \"1.5\" (expected a 64-bit integer)"),
            ("decr k -9223372036854775808", "invalid amount"),
            ("incrfloat k", "the amount is missing"),
            ("expire k", "the number of seconds is missing"),
            ("rename k", "the new key is missing"),
            ("mput a 1 b", "the value is missing; write mput KEY VALUE ..."),
            ("mget", "the key is missing"),
            ("batch", "an item is missing"),
            ("batch incr a;; incr b", "an item is missing"),
            ("batch mget a", "\"mget\" cannot be an item of a batch"),
            ("batch check a", "the condition is missing; write check KEY CONDITION"),
            ("batch incr a incr b", "invalid amount \"incr\""),
            ("batch append a b c", "unexpected \"c\""),
            ("check a if-absent", "unknown operation \"check\""),
            ("help P", "\"P\" is not a word"),
            ("help put get", "unexpected \"get\""),
        ] {
            let message = parse(line.as_bytes()).expect_err(line).to_string();
            assert!(message.contains(words), "{line:?} gave {message:?}");
        }
    }
}
