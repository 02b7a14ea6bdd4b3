//! Operations on objects as commands of Redis, and the replies as answers.

use std::sync::Arc;

use kv_history::object::{Answer, Change, Guard, Lifetime, Outcome, Shown, Text, Update};
use kv_testkit::resp::Reply;

/// A command on the keys of an object.
#[derive(Clone, Debug)]
pub struct Command {
    /// The arguments, with the name of the command.
    pub args: Vec<Vec<u8>>,
    /// The updates that the command stands for.
    pub updates: Arc<[Update]>,
    /// True if the command changes nothing.
    pub is_read: bool,
    form: Form,
}

/// The form of the reply.
#[derive(Clone, Debug)]
enum Form {
    /// The value, or null if there is no entry.
    Value,
    /// OK, or null if the condition does not hold.
    Set,
    /// The old value or null, of a SET with this condition.
    Old(Guard),
    /// 1, or 0 for this reason.
    Flag(Outcome),
    /// 1, or 0 for one of several reasons.
    Maybe,
    /// The number after the update.
    Number,
    /// OK, or an error if there is no entry.
    Renamed,
    /// OK of several updates.
    All,
    /// 1 if all updates were executed, or 0.
    AllOrNone,
    /// The number of the updates that found an entry.
    Count,
}

/// A reply that the command cannot have.
#[derive(Debug)]
pub struct Unexpected;

/// The result of a command with a definite reply.
#[derive(Debug)]
pub enum Told {
    /// The answer.
    Answer(Answer),
    /// Nothing was changed, and the reply does not tell why.
    Unchanged,
}

impl Command {
    /// Creates a GET.
    pub fn get(keys: &[Vec<u8>], key: usize) -> Command {
        let update = Update { returns_value: true, ..Update::new(key, Change::Check) };
        let args = words(&["GET"], [&keys[key]]);
        Command { is_read: true, ..Command::of(args, vec![update], Form::Value) }
    }

    /// Creates the command of an update. Parts of the update that no command can express are left out.
    pub fn of_update(keys: &[Vec<u8>], update: Update) -> Command {
        let key = &keys[update.key];
        let plain = Update { is_optional: false, returns_value: false, ..update.clone() };
        let free = Update {
            guard: Guard::Always,
            lifetime: Update::new(plain.key, plain.change.clone()).lifetime,
            ..plain.clone()
        };
        match &plain.change {
            Change::Put(value) => Command::set(
                key,
                value,
                Update { returns_value: update.returns_value, ..plain.clone() },
            ),
            Change::Delete if update.returns_value => {
                let args = words(&["GETDEL"], [key]);
                Command::of(args, vec![Update { returns_value: true, ..free }], Form::Value)
            }
            Change::Delete => match &plain.guard {
                Guard::Value(value) => {
                    let args = words(&["DELIFEQ"], [key, &value.to_vec()]);
                    let guard = plain.guard.clone();
                    Command::of(args, vec![Update { guard, ..free }], Form::Maybe)
                }
                _ => Command::of(words(&["DEL"], [key]), vec![free], Form::Flag(Outcome::NotFound)),
            },
            Change::Add(1) => Command::of(words(&["INCR"], [key]), vec![free], Form::Number),
            Change::Add(-1) => Command::of(words(&["DECR"], [key]), vec![free], Form::Number),
            Change::Add(amount) => {
                let args = words(&["INCRBY"], [key, &decimal(*amount)]);
                Command::of(args, vec![free], Form::Number)
            }
            Change::Append(bytes) => {
                let args = words(&["APPEND"], [key, &bytes.to_vec()]);
                Command::of(args, vec![free], Form::Number)
            }
            Change::SetRange(offset, bytes) => {
                let offset = offset.to_string().into_bytes();
                let args = words(&["SETRANGE"], [key, &offset, &bytes.to_vec()]);
                Command::of(args, vec![free], Form::Number)
            }
            Change::Rename(to) => {
                Command::of(words(&["RENAME"], [key, &keys[*to]]), vec![free], Form::Renamed)
            }
            Change::Copy(to) => {
                let args = words(&["COPY"], [key, &keys[*to], &b"REPLACE".to_vec()]);
                Command::of(args, vec![free], Form::Flag(Outcome::NotFound))
            }
            Change::SetExpiry => Command::expire(key, &update, free),
            Change::Check | Change::CheckPart { .. } | Change::AddQuarters(_) => {
                let args = words(&["EXISTS"], [key]);
                let check = Update::new(plain.key, Change::Check);
                let form = Form::Flag(Outcome::NotFound);
                Command { is_read: true, ..Command::of(args, vec![check], form) }
            }
        }
    }

    /// Creates a SET.
    fn set(key: &Vec<u8>, value: &Text, mut update: Update) -> Command {
        let mut args = words(&["SET"], [key, &value.to_vec()]);
        match &update.guard {
            Guard::Absent => args.push(b"NX".to_vec()),
            Guard::Present => args.push(b"XX".to_vec()),
            Guard::Value(value) => args.extend([b"IFEQ".to_vec(), value.to_vec()]),
            _ => update.guard = Guard::Always,
        }
        update.lifetime = match update.lifetime {
            Lifetime::Keep => {
                args.push(b"KEEPTTL".to_vec());
                Lifetime::Keep
            }
            Lifetime::Never => Lifetime::Never,
            timed => with_time(timed, &mut args),
        };
        let form = match update.returns_value {
            true => {
                args.push(b"GET".to_vec());
                Form::Old(update.guard.clone())
            }
            false => Form::Set,
        };
        Command::of(args, vec![update], form)
    }

    /// Creates a command that changes the deadline only.
    fn expire(key: &Vec<u8>, wanted: &Update, free: Update) -> Command {
        if matches!(wanted.lifetime, Lifetime::Never | Lifetime::Keep) {
            let guard = Guard::HasDeadline;
            let update = Update { guard, lifetime: Lifetime::Never, ..free };
            return Command::of(words(&["PERSIST"], [key]), vec![update], Form::Maybe);
        }
        if wanted.returns_value {
            let mut args = words(&["GETEX"], [key]);
            let lifetime = with_time(wanted.lifetime, &mut args);
            let update = Update { lifetime, returns_value: true, ..free };
            return Command::of(args, vec![update], Form::Value);
        }
        let (name, time, lifetime) = match wanted.lifetime {
            Lifetime::At(time) => ("PEXPIREAT", time, wanted.lifetime),
            Lifetime::After(millis) | Lifetime::KeepOrAfter(millis) => {
                ("PEXPIRE", millis, Lifetime::After(millis))
            }
            Lifetime::Never | Lifetime::Keep => unreachable!("it was handled before"),
        };
        let mut args = words(&[name], [key, &decimal(time)]);
        let option = match wanted.guard {
            Guard::NoDeadline => "NX",
            Guard::HasDeadline => "XX",
            Guard::Later => "GT",
            Guard::Earlier => "LT",
            _ => {
                let form = Form::Flag(Outcome::NotFound);
                return Command::of(args, vec![Update { lifetime, ..free }], form);
            }
        };
        args.push(option.as_bytes().to_vec());
        let guard = wanted.guard.clone();
        Command::of(args, vec![Update { lifetime, guard, ..free }], Form::Maybe)
    }

    /// Creates an MSET or MSETNX of all keys.
    pub fn set_all(keys: &[Vec<u8>], values: &[Text], only_new: bool) -> Command {
        let mut args = words(&[if only_new { "MSETNX" } else { "MSET" }], []);
        let mut updates = Vec::new();
        for (index, (key, value)) in keys.iter().zip(values).enumerate() {
            args.extend([key.clone(), value.to_vec()]);
            let guard = if only_new { Guard::Absent } else { Guard::Always };
            updates.push(Update { guard, ..Update::new(index, Change::Put(Arc::clone(value))) });
        }
        Command::of(args, updates, if only_new { Form::AllOrNone } else { Form::All })
    }

    /// Creates a DEL of all keys.
    pub fn delete_all(keys: &[Vec<u8>]) -> Command {
        let updates = (0..keys.len()).map(|key| Update::new(key, Change::Delete)).collect();
        Command::of(words(&["DEL"], keys), updates, Form::Count)
    }

    fn of(args: Vec<Vec<u8>>, updates: Vec<Update>, form: Form) -> Command {
        Command { args, updates: updates.into(), is_read: false, form }
    }

    /// Returns the result that a reply shows.
    ///
    /// # Errors
    /// No execution of the command has this reply.
    pub fn told(&self, reply: &Reply) -> Result<Told, Unexpected> {
        let value = match reply {
            Reply::Bulk(bytes) => Some(Text::from(&bytes[..])),
            _ => None,
        };
        let is_value = matches!(reply, Reply::Bulk(_) | Reply::Null);
        let is_ok = *reply == Reply::Simple("OK".to_owned());
        let (outcome, value) = match (&self.form, reply) {
            (Form::Value, Reply::Bulk(_)) => (Outcome::Done, value),
            (Form::Value, Reply::Null) => (Outcome::NotFound, None),
            (Form::Set | Form::Renamed, _) if is_ok => (Outcome::Done, None),
            (Form::Set, Reply::Null) if self.updates[0].guard != Guard::Always => {
                (Outcome::Conflict, None)
            }
            (Form::Old(guard), _) if is_value => (outcome_of_old(guard, value.as_ref()), value),
            (Form::Flag(_) | Form::Maybe, Reply::Integer(1)) => (Outcome::Done, None),
            (Form::Flag(outcome), Reply::Integer(0)) => (*outcome, None),
            (Form::Maybe | Form::AllOrNone, Reply::Integer(0)) => return Ok(Told::Unchanged),
            (Form::Number, Reply::Integer(number)) => {
                (Outcome::Done, Some(decimal(*number).into()))
            }
            (Form::Number, Reply::Error(text)) if text.contains("not an integer") => {
                (Outcome::NotANumber, None)
            }
            (Form::Number, Reply::Error(text)) if text.contains("would overflow") => {
                (Outcome::Overflow, None)
            }
            (Form::Renamed, Reply::Error(text)) if text == "ERR no such key" => {
                (Outcome::NotFound, None)
            }
            (Form::All, _) if is_ok => return Ok(Told::Answer(self.all(Outcome::Done))),
            (Form::AllOrNone, Reply::Integer(1)) => {
                return Ok(Told::Answer(self.all(Outcome::Done)));
            }
            (Form::Count, Reply::Integer(count)) => return self.counted(*count),
            _ => return Err(Unexpected),
        };
        let updates = vec![Shown { outcome, value, deadline: None }];
        Ok(Told::Answer(Answer::Shown { version: 0, updates }))
    }

    fn all(&self, outcome: Outcome) -> Answer {
        let shown = Shown { outcome, value: None, deadline: None };
        Answer::Shown { version: 0, updates: vec![shown; self.updates.len()] }
    }

    /// Returns the answer of updates of which `count` found an entry. If only some did, the reply does not show which.
    fn counted(&self, count: i64) -> Result<Told, Unexpected> {
        let whole = i64::try_from(self.updates.len()).expect("keys are few");
        Ok(Told::Answer(match count {
            0 => self.all(Outcome::NotFound),
            count if count == whole => self.all(Outcome::Done),
            count if (1..whole).contains(&count) => {
                Answer::Shown { version: 0, updates: Vec::new() }
            }
            _ => return Err(Unexpected),
        }))
    }
}

/// Returns the outcome of a SET with this condition that replied with the old value.
fn outcome_of_old(guard: &Guard, old: Option<&Text>) -> Outcome {
    let is_done = match guard {
        Guard::Absent => old.is_none(),
        Guard::Present => old.is_some(),
        Guard::Value(value) => old == Some(value),
        _ => true,
    };
    if is_done { Outcome::Done } else { Outcome::Conflict }
}

/// Appends the option for a deadline. Returns the deadline that the option means.
fn with_time(lifetime: Lifetime, args: &mut Vec<Vec<u8>>) -> Lifetime {
    let (option, number, lifetime) = match lifetime {
        Lifetime::At(time) => ("PXAT", time, lifetime),
        Lifetime::After(millis) | Lifetime::KeepOrAfter(millis) => {
            ("PX", millis, Lifetime::After(millis))
        }
        Lifetime::Never | Lifetime::Keep => return lifetime,
    };
    args.extend([option.as_bytes().to_vec(), decimal(number)]);
    lifetime
}

fn words<'a>(names: &[&str], args: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<Vec<u8>> {
    let names = names.iter().map(|name| name.as_bytes().to_vec());
    names.chain(args.into_iter().cloned()).collect()
}

fn decimal(number: i64) -> Vec<u8> {
    number.to_string().into_bytes()
}
