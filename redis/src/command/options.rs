//! The options of SET and GETEX, and the times of commands.

use kv_protocol::ids::WallTime;
use kv_protocol::update::{Expiry, Precondition};

use super::{Context, integer};
use crate::error::{self, Error};

/// The meaning of a number that is a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// True for seconds, false for milliseconds.
    pub(super) is_seconds: bool,
    /// True for a time since 1970, false for one from now.
    pub(super) is_absolute: bool,
}

impl Unit {
    pub(super) const EX: Unit = Unit { is_seconds: true, is_absolute: false };
    pub(super) const PX: Unit = Unit { is_seconds: false, is_absolute: false };
    pub(super) const EXAT: Unit = Unit { is_seconds: true, is_absolute: true };
    pub(super) const PXAT: Unit = Unit { is_seconds: false, is_absolute: true };

    /// Returns a number of this unit in milliseconds, or `None` if it is so large that Redis rejects it.
    pub(super) fn millis(self, number: i64, wall: WallTime) -> Option<i64> {
        let millis = if self.is_seconds { number.checked_mul(1_000)? } else { number };
        let now = if self.is_absolute { 0 } else { i64::try_from(wall.millis()).ok()? };
        millis.checked_add(now).map(|_| millis)
    }

    /// Returns the deadline that a number of milliseconds means. A time in the past is the past.
    pub(super) fn expiry(self, millis: i64) -> Expiry {
        match u64::try_from(millis) {
            Ok(millis) if self.is_absolute => Expiry::At(WallTime::from_millis(millis)),
            Ok(millis) => Expiry::After(millis),
            Err(_) => Expiry::At(WallTime::from_millis(0)),
        }
    }

    /// Returns the deadline in an option of a command.
    ///
    /// # Errors
    /// If the text is no positive number, or too large.
    pub(super) fn parse(self, text: &[u8], wall: WallTime, command: &str) -> Result<Expiry, Error> {
        let number = integer(text).ok_or(error::NOT_AN_INTEGER)?;
        match self.millis(number, wall) {
            Some(millis) if millis > 0 => Ok(self.expiry(millis)),
            _ => Err(error::expire_time(command)),
        }
    }
}

/// The options of SET.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options<'a> {
    /// The condition, if there is one.
    pub(super) condition: Option<Precondition<'a>>,
    /// True if the reply is the old value.
    pub(super) returns_old: bool,
    /// The new deadline, if an option names one: KEEPTTL is [`Expiry::Keep`].
    pub(super) expiry: Option<Expiry>,
}

/// The option about the deadline, of which a command has at most one. The same one may be repeated; the last one counts.
#[derive(Clone, Copy)]
enum Deadline<'a> {
    Keep,
    Persist,
    Time(Unit, &'a [u8]),
}

impl<'a> Options<'a> {
    /// Reads the options of SET, from the fourth argument on.
    pub(super) fn of_set(context: &Context<'a>) -> Result<Options<'a>, Error> {
        let args = &context.args[3..];
        let mut options = Options::default();
        let (mut deadline, mut at) = (None, 0);
        while let Some(&option) = args.get(at) {
            let next = args.get(at + 1).copied();
            let condition = options.condition;
            if is(option, "nx") && matches!(condition, None | Some(Precondition::Absent)) {
                options.condition = Some(Precondition::Absent);
            } else if is(option, "xx") && matches!(condition, None | Some(Precondition::Present)) {
                options.condition = Some(Precondition::Present);
            } else if let (true, Some(value)) = (is(option, "ifeq") && condition.is_none(), next) {
                options.condition = Some(Precondition::Value(value));
                at += 1;
            } else if is(option, "get") {
                options.returns_old = true;
            } else if is(option, "keepttl") && matches!(deadline, None | Some(Deadline::Keep)) {
                deadline = Some(Deadline::Keep);
            } else {
                deadline = Some(time(option, next, deadline)?);
                at += 1;
            }
            at += 1;
        }
        Ok(Options { expiry: expiry(deadline, context, "set")?, ..options })
    }

    /// Reads the options of GETEX, from the third argument on. The inner result is the new deadline if there is one, or
    /// the error about its time, which Redis reports only if the key exists.
    pub(super) fn of_getex(context: &Context<'a>) -> Result<Result<Option<Expiry>, Error>, Error> {
        let args = &context.args[2..];
        let (mut deadline, mut at) = (None, 0);
        while let Some(&option) = args.get(at) {
            if is(option, "persist") && matches!(deadline, None | Some(Deadline::Persist)) {
                deadline = Some(Deadline::Persist);
            } else {
                deadline = Some(time(option, args.get(at + 1).copied(), deadline)?);
                at += 1;
            }
            at += 1;
        }
        Ok(expiry(deadline, context, "getex"))
    }
}

/// Returns the deadline that an option means.
fn expiry(
    deadline: Option<Deadline<'_>>,
    context: &Context<'_>,
    command: &str,
) -> Result<Option<Expiry>, Error> {
    Ok(match deadline {
        None => None,
        Some(Deadline::Keep) => Some(Expiry::Keep),
        Some(Deadline::Persist) => Some(Expiry::Never),
        Some(Deadline::Time(unit, text)) => Some(unit.parse(text, context.wall(), command)?),
    })
}

fn is(option: &[u8], word: &str) -> bool {
    option.eq_ignore_ascii_case(word.as_bytes())
}

/// Reads an option with a time after the option about the deadline that was read before.
fn time<'a>(
    option: &[u8],
    next: Option<&'a [u8]>,
    before: Option<Deadline<'_>>,
) -> Result<Deadline<'a>, Error> {
    let units = [("ex", Unit::EX), ("px", Unit::PX), ("exat", Unit::EXAT), ("pxat", Unit::PXAT)];
    let unit = units.iter().find(|(word, _)| is(option, word)).map(|(_, unit)| *unit);
    let may_follow = match before {
        None => true,
        Some(Deadline::Time(earlier, _)) => Some(earlier) == unit,
        Some(Deadline::Keep | Deadline::Persist) => false,
    };
    match (unit, next) {
        (Some(unit), Some(text)) if may_follow => Ok(Deadline::Time(unit, text)),
        _ => Err(error::SYNTAX),
    }
}
