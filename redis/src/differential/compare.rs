//! Replies read from streams and compared.

use std::collections::BTreeSet;
use std::io::BufRead;

/// The difference of times in milliseconds that the delays of the test may cause.
const MARGIN: i64 = 5_000;

/// Appends the next reply.
pub(super) fn read_reply(stream: &mut impl BufRead, reply: &mut Vec<u8>) -> anyhow::Result<()> {
    let start = reply.len();
    stream.read_until(b'\n', reply)?;
    let line = &reply[start..];
    anyhow::ensure!(line.ends_with(b"\r\n"), "the connection ended");
    let number: i64 = String::from_utf8_lossy(&line[1..]).trim().parse().unwrap_or(0);
    match line[0] {
        b'$' | b'=' if number >= 0 => {
            let start = reply.len();
            reply.resize(start + usize::try_from(number)? + 2, 0);
            stream.read_exact(&mut reply[start..])?;
        }
        b'*' | b'~' | b'>' => {
            for _ in 0..number {
                read_reply(stream, reply)?;
            }
        }
        b'%' => {
            for _ in 0..2 * number {
                read_reply(stream, reply)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Returns whether the store refuses a command that Redis executes.
pub(super) fn is_refused(reply: &[u8]) -> bool {
    [&b"-CROSSSLOT"[..], b"-ERR a key has 1 to", b"-ERR keys that begin with the bytes"]
        .iter()
        .any(|error| reply.starts_with(error))
        || reply.ends_with(b" is not possible inside a transaction of this store\r\n")
        || reply.ends_with(b"a command of it needs several requests to this store.\r\n")
}

/// The comparison of the replies on one connection.
#[derive(Default)]
pub(super) struct Comparison {
    /// The commands since MULTI; `None` outside of a transaction.
    queued: Option<Vec<Vec<Vec<u8>>>>,
    /// The commands of the last EXEC.
    last: Vec<Vec<Vec<u8>>>,
    /// The number of transactions that were executed.
    pub(super) executed: usize,
}

impl Comparison {
    /// Returns whether a transaction has begun.
    pub(super) fn is_in_transaction(&self) -> bool {
        self.queued.is_some()
    }

    /// Ends a transaction that the store has refused to execute.
    pub(super) fn end(&mut self) {
        self.queued = None;
    }

    /// Returns the words of a command that has different replies. Those of an EXEC include its commands.
    pub(super) fn shown(&self, args: &[&[u8]]) -> String {
        let line = |words: &[&[u8]]| words.join(&b' ').escape_ascii().to_string();
        let mut shown = line(args);
        if args[0] == b"exec" {
            for words in &self.last {
                let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                shown += &format!("; {}", line(&words));
            }
        }
        shown
    }

    /// Returns whether two replies to the next command mean the same.
    pub(super) fn is_same(&mut self, args: &[&[u8]], ours: &[u8], theirs: &[u8]) -> bool {
        let is_array = |reply: &[u8]| reply.starts_with(b"*") && !reply.starts_with(b"*-");
        match (args[0].to_ascii_lowercase().as_slice(), &mut self.queued) {
            (b"multi", queued @ None) if ours == b"+OK\r\n" => *queued = Some(Vec::new()),
            (b"exec", Some(queued)) => {
                self.last = std::mem::take(queued);
                self.queued = None;
                if is_array(ours) && is_array(theirs) {
                    self.executed += 1;
                    return are_same(&self.last, ours, theirs);
                }
            }
            (b"discard" | b"reset", _) if args.len() == 1 => self.queued = None,
            (_, Some(queued)) if ours == b"+QUEUED\r\n" => {
                queued.push(args.iter().map(|arg| arg.to_vec()).collect());
            }
            _ => {}
        }
        is_same(args, ours, theirs)
    }
}

/// Returns whether two replies to EXEC have the same elements.
fn are_same(queued: &[Vec<Vec<u8>>], ours: &[u8], theirs: &[u8]) -> bool {
    let (mut ours, mut theirs) = (after_line(ours), after_line(theirs));
    let same = queued.iter().all(|args| {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let are_read = read_reply(&mut ours, &mut one).is_ok();
        are_read && read_reply(&mut theirs, &mut other).is_ok() && is_same(&args, &one, &other)
    });
    same && ours.is_empty() && theirs.is_empty()
}

/// Returns whether two replies to a command mean the same.
fn is_same(args: &[&[u8]], ours: &[u8], theirs: &[u8]) -> bool {
    if ours == theirs {
        return true;
    }
    if theirs.starts_with(b"-") {
        // All calls of CLUSTER have one error here, also those with too many arguments. Errors are texts.
        return args[0] == b"cluster" && ours.starts_with(b"-ERR This instance has cluster")
            || String::from_utf8_lossy(theirs).as_bytes() == ours;
    }
    if ours.starts_with(b"-") {
        return false;
    }
    let lower = |at: usize| args.get(at).map(|arg| arg.to_ascii_lowercase()).unwrap_or_default();
    let number = |reply: &[u8]| -> Option<i64> {
        str::from_utf8(reply.strip_prefix(b":")?).ok()?.trim().parse().ok()
    };
    match lower(0).as_slice() {
        b"ttl" | b"pttl" | b"expiretime" | b"pexpiretime" => match (number(ours), number(theirs)) {
            (Some(ours), Some(theirs)) => {
                let margin = if lower(0).starts_with(b"p") { MARGIN } else { MARGIN / 1_000 };
                ours > 0 && theirs > 0 && ours.abs_diff(theirs) <= margin.unsigned_abs()
            }
            _ => false,
        },
        // Redis also counts entries whose deadline has passed, until it removes them.
        b"dbsize" => number(ours) <= number(theirs),
        b"keys" => elements(ours) == elements(theirs),
        // A key is random, and a cluster says what it says of itself.
        b"randomkey" | b"hello" => ours[..2] != b"$-"[..] && ours[0] == theirs[0],
        // Redis remembers how a value was made.
        b"object" if lower(1) == b"encoding" => {
            !ours.starts_with(b"$-") && !theirs.starts_with(b"$-")
        }
        // Redis also shows the memory of entries whose deadline has passed, until it removes them.
        b"memory" => number(theirs).is_some(),
        b"object" => number(ours).is_some() && number(theirs).is_some(),
        _ => false,
    }
}

/// Returns the strings of an array, sorted.
fn elements(reply: &[u8]) -> Vec<Vec<u8>> {
    let mut elements = Vec::new();
    let mut rest = after_line(reply);
    while let Some(length) = rest.strip_prefix(b"$") {
        let digits = length.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let length: usize = String::from_utf8_lossy(&length[..digits]).parse().unwrap();
        rest = after_line(rest);
        elements.push(rest[..length].to_vec());
        rest = &rest[length + 2..];
    }
    elements.sort();
    elements
}

fn after_line(reply: &[u8]) -> &[u8] {
    let end = reply.iter().position(|byte| *byte == b'\n').unwrap();
    &reply[end + 1..]
}

type Asker<'a> = dyn FnMut(&[&[u8]]) -> anyhow::Result<Vec<u8>> + 'a;

/// Returns the keys of each database.
pub(super) fn keys_by_scan(ask: &mut Asker<'_>) -> anyhow::Result<Vec<BTreeSet<Vec<u8>>>> {
    ask(&[b"hello", b"2"])?;
    let mut databases = Vec::new();
    for database in [&b"0"[..], b"1", b"2"] {
        ask(&[b"select", database])?;
        let (mut keys, mut cursor) = (BTreeSet::new(), b"0".to_vec());
        loop {
            let reply = ask(&[b"scan", &cursor])?;
            let rest = after_line(&reply);
            cursor = elements(&reply).remove(0);
            let page = after_line(after_line(rest));
            keys.extend(elements(page));
            if cursor == b"0" {
                break;
            }
        }
        databases.push(keys);
    }
    Ok(databases)
}
