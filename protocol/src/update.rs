//! Updates: the changes that UPDATE requests (protocol version 2).
//!
//! ```text
//!   UPDATE = request head, key, item, item, ...
//!
//!   item    0  key length       u16   0: the key of the request
//!           2  action           u8
//!           3  condition        u8
//!           4  expiry           u8
//!           5  flags            u8    1: respond with the value, 2: optional
//!           6  reserved         u16 = 0
//!           8  number           u64   ADD: the amount (two's complement); SET-RANGE: the offset
//!          16  version          u64   the version of the condition
//!          24  time             u64   the time of the expiry, in milliseconds
//!          32  condition length u32
//!          36  value length     u32
//!          40  key, value of the condition, value
//! ```
//!
//! All updates of a request are executed at once, or none of them: each is evaluated against the state that the ones
//! before it leave. An optional one that cannot be executed is skipped; any other one then ends the request without
//! effect. An update whose result or change exceeds a limit of the whole request ends it even if it is optional. The
//! primary evaluates them (`kv_core::update`).

use crate::change::read_deadline;
use crate::client_message::Status;
use crate::codec::{Reader, Writer, length_u16, length_u32};
use crate::error::DecodeError;
use crate::ids::{SequenceNumber, WallTime};
use crate::limits::{MAX_FLOAT_UPDATES, MAX_KEY_BYTES, MAX_UPDATES, MAX_VALUE_BYTES};

/// The number of bytes of an item before its key.
pub const UPDATE_FIXED_BYTES: usize = 40;

/// One update of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// The key; `None` for the key of the request.
    pub key: Option<&'a [u8]>,
    /// The change.
    pub action: Action<'a>,
    /// The condition. If it does not hold, the request changes nothing, or nothing here if the update is optional.
    pub condition: Precondition<'a>,
    /// The deadline of the entry afterwards.
    pub expiry: Expiry,
    /// True if the response contains the value before a PUT or DELETE, or after any other action that has no result of
    /// its own, and the deadline of the entry afterwards. If the update is not executed, it contains those of the entry.
    pub returns_value: bool,
    /// True if the other updates of the request are executed even if this one cannot be.
    pub is_optional: bool,
}

/// The change of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Changes nothing. With a condition it guards the other updates of its request; it can return the value.
    Check,
    /// Sets the value.
    Put(&'a [u8]),
    /// Removes the entry.
    Delete,
    /// Adds to the decimal text of a 64-bit integer; an absent entry counts as 0. The response has the sum.
    Add(i64),
    /// Adds this decimal text to that of a floating-point number; an absent entry counts as 0. The response has the
    /// sum.
    AddFloat(&'a [u8]),
    /// Appends to the value; an absent entry counts as empty. The response has the length as a decimal text.
    Append(&'a [u8]),
    /// Overwrites a part of the value. The gap before the part, if there is one, is filled with zero bytes. The
    /// response has the length as a decimal text.
    SetRange {
        /// The offset of the part.
        offset: u32,
        /// The new bytes of the part. If there are none, nothing is changed.
        bytes: &'a [u8],
    },
    /// Moves the entry, with its deadline, to this key, whose entry it replaces.
    Rename(&'a [u8]),
    /// Copies the entry, with its deadline, to this key, whose entry it replaces.
    Copy(&'a [u8]),
    /// Sets or removes the deadline of an entry, and gives it a new version.
    SetExpiry,
}

/// The condition of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition<'a> {
    /// No condition.
    None,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The entry has this version.
    Version(SequenceNumber),
    /// The entry has this value.
    Value(&'a [u8]),
    /// The entry exists and has no deadline.
    NoDeadline,
    /// The entry exists and has a deadline.
    HasDeadline,
    /// The entry exists, and the new deadline is later than its own. No deadline is later than any.
    Later,
    /// The entry exists, and the new deadline is earlier than its own. No deadline is later than any.
    Earlier,
}

/// The deadline of an entry after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// No deadline.
    Never,
    /// The deadline that the entry has.
    Keep,
    /// This number of milliseconds after the execution, by the wall clock of the primary.
    After(u64),
    /// This time.
    At(WallTime),
    /// The deadline that the entry has; if it has none, this number of milliseconds after the execution.
    KeepOrAfter(u64),
}

const CHECK: u8 = 0;
const PUT: u8 = 1;
const DELETE: u8 = 2;
const ADD: u8 = 3;
const ADD_FLOAT: u8 = 4;
const APPEND: u8 = 5;
const SET_RANGE: u8 = 6;
const RENAME: u8 = 7;
const COPY: u8 = 8;
const SET_EXPIRY: u8 = 9;

const NO_CONDITION: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;
const VERSION: u8 = 3;
const VALUE: u8 = 4;
const NO_DEADLINE: u8 = 5;
const HAS_DEADLINE: u8 = 6;
const LATER: u8 = 7;
const EARLIER: u8 = 8;

const NEVER: u8 = 0;
const KEEP: u8 = 1;
const AFTER: u8 = 2;
const AT: u8 = 3;
const KEEP_OR_AFTER: u8 = 4;

/// The actions whose items have a value.
const TAKE_VALUE: u16 =
    1 << PUT | 1 << ADD_FLOAT | 1 << APPEND | 1 << SET_RANGE | 1 << RENAME | 1 << COPY;
/// The actions whose value is a second key.
const NAME_KEY: u16 = 1 << RENAME | 1 << COPY;
/// The actions that cannot set or remove a deadline.
const KEEP_DEADLINE: u16 = 1 << CHECK | 1 << DELETE | 1 << RENAME | 1 << COPY;

/// Returns whether an action belongs to a set. Unknown actions belong to none.
#[inline]
fn is_in(set: u16, action: u8) -> bool {
    u32::from(set).checked_shr(action.into()).is_some_and(|set| set & 1 == 1)
}

const RETURNS_VALUE: u8 = 1;
const IS_OPTIONAL: u8 = 2;

impl<'a> Update<'a> {
    /// Creates an update of the request's key without condition. A PUT removes the deadline of the entry; every other
    /// action keeps it.
    pub fn new(action: Action<'a>) -> Update<'a> {
        let expiry = match action {
            Action::Put(_) => Expiry::Never,
            _ => Expiry::Keep,
        };
        let condition = Precondition::None;
        Update { key: None, action, condition, expiry, returns_value: false, is_optional: false }
    }

    /// Returns the other key that the update changes, besides its own.
    #[inline]
    pub fn second_key(&self) -> Option<&'a [u8]> {
        match self.action {
            Action::Rename(key) | Action::Copy(key) => Some(key),
            _ => None,
        }
    }

    /// Returns the number of bytes of the update in a request.
    pub fn wire_bytes(&self) -> usize {
        let (_, value, _) = self.action.parts();
        let (_, condition, _) = self.condition.parts();
        UPDATE_FIXED_BYTES + self.key.map_or(0, <[u8]>::len) + condition.len() + value.len()
    }

    /// Appends the update to a request. The caller has checked it with [`Update::validate`].
    pub fn write(&self, output: &mut Vec<u8>) {
        let (action, value, number) = self.action.parts();
        let (condition, condition_value, version) = self.condition.parts();
        let (expiry, time) = self.expiry.parts();
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        let flags = flag(self.returns_value, RETURNS_VALUE) | flag(self.is_optional, IS_OPTIONAL);
        let key = self.key.unwrap_or(&[]);
        output.put_u16(length_u16(key.len(), "key"));
        output.put_u8(action);
        output.put_u8(condition);
        output.put_u8(expiry);
        output.put_u8(flags);
        output.put_u16(0);
        output.put_u64(number);
        output.put_u64(version);
        output.put_u64(time);
        output.put_u32(length_u32(condition_value.len(), "value of the condition"));
        output.put_u32(length_u32(value.len(), "value"));
        output.put_bytes(key);
        output.put_bytes(condition_value);
        output.put_bytes(value);
    }

    /// Checks the update against the limits. Returns the reason if it is invalid.
    pub fn validate(&self) -> Result<(), InvalidUpdate> {
        let (action, value, number) = self.action.parts();
        let (condition, condition_value, _) = self.condition.parts();
        let lengths = Lengths {
            key: self.key.map(<[u8]>::len),
            condition_value: condition_value.len(),
            value: value.len(),
        };
        lengths.validate([action, condition, self.expiry.parts().0], number)
    }
}

/// The lengths of the parts of an update.
struct Lengths {
    key: Option<usize>,
    condition_value: usize,
    value: usize,
}

impl Lengths {
    /// Checks an update with these lengths against the limits. `number` is that of its action.
    #[inline]
    fn validate(
        &self,
        [action, condition, expiry]: [u8; 3],
        number: u64,
    ) -> Result<(), InvalidUpdate> {
        let second_key = is_in(NAME_KEY, action).then_some(self.value);
        let has_length = |length: usize| (1..=MAX_KEY_BYTES).contains(&length);
        if !self.key.is_none_or(has_length) || !second_key.is_none_or(has_length) {
            return Err(InvalidUpdate::KeyLength);
        }
        let value = match action {
            PUT | APPEND => self.value as u64,
            SET_RANGE => number + self.value as u64,
            _ => 0,
        };
        if value > MAX_VALUE_BYTES as u64 || self.condition_value > MAX_VALUE_BYTES {
            return Err(InvalidUpdate::ValueLength);
        }
        if matches!(condition, LATER | EARLIER) && !matches!(expiry, AFTER | AT) {
            return Err(InvalidUpdate::NoDeadline);
        }
        if expiry != KEEP && is_in(KEEP_DEADLINE, action) {
            return Err(InvalidUpdate::UselessExpiry);
        }
        Ok(())
    }
}

/// An update in the encoding of the wire.
struct Item<'a> {
    fixed: &'a [u8; UPDATE_FIXED_BYTES],
    key: &'a [u8],
    condition_value: &'a [u8],
    value: &'a [u8],
}

impl<'a> Item<'a> {
    /// Takes an item from the front of a request.
    #[inline(always)]
    fn read(reader: &mut Reader<'a>) -> Result<Item<'a>, DecodeError> {
        let fixed: &[u8; UPDATE_FIXED_BYTES] = reader.array_ref("an update")?;
        let u32_at =
            |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
        let key_length = u16::from_le_bytes([fixed[0], fixed[1]]);
        let key = reader.bytes(usize::from(key_length), "key")?;
        let condition_value = reader.bytes(u32_at(32) as usize, "value of the condition")?;
        let value = reader.bytes(u32_at(36) as usize, "value")?;
        Ok(Item { fixed, key, condition_value, value })
    }

    fn action(&self) -> u8 {
        self.fixed[2]
    }

    fn condition(&self) -> u8 {
        self.fixed[3]
    }

    fn expiry(&self) -> u8 {
        self.fixed[4]
    }

    fn flags(&self) -> u8 {
        self.fixed[5]
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.fixed[at..at + 8].try_into().expect("eight bytes"))
    }

    fn number(&self) -> u64 {
        self.u64_at(8)
    }

    fn time(&self) -> u64 {
        self.u64_at(24)
    }

    /// Checks that [`Item::update`] decodes the item.
    #[inline(always)]
    fn check(&self) -> Result<(), DecodeError> {
        let bad = |field, value: u64| Err(DecodeError::BadValue { field, value });
        let reserved = u16::from_le_bytes([self.fixed[6], self.fixed[7]]);
        let (action, condition, expiry) = (self.action(), self.condition(), self.expiry());
        if reserved != 0 {
            return bad("reserved", reserved.into());
        }
        if self.flags() & !(RETURNS_VALUE | IS_OPTIONAL) != 0 {
            return bad("flags", self.flags().into());
        }
        if action > SET_EXPIRY {
            return bad("action", action.into());
        }
        if !self.value.is_empty() && !is_in(TAKE_VALUE, action) {
            return bad("value length", self.value.len() as u64);
        }
        if action == SET_RANGE && u32::try_from(self.number()).is_err() {
            return bad("offset", self.number());
        }
        if condition > EARLIER {
            return bad("condition", condition.into());
        }
        if !self.condition_value.is_empty() && condition != VALUE {
            return bad("length of the condition", self.condition_value.len() as u64);
        }
        if expiry > KEEP_OR_AFTER {
            return bad("expiry", expiry.into());
        }
        if expiry == AT && self.time() > WallTime::MAX.millis() {
            return bad("time", self.time());
        }
        Ok(())
    }

    /// Checks the update against the limits. Returns the reason if it is invalid.
    #[inline(always)]
    fn validate(&self) -> Result<(), InvalidUpdate> {
        let lengths = Lengths {
            key: (!self.key.is_empty()).then_some(self.key.len()),
            condition_value: self.condition_value.len(),
            value: self.value.len(),
        };
        lengths.validate([self.action(), self.condition(), self.expiry()], self.number())
    }

    /// Returns whether the update has another key than that of the request.
    fn names_key(&self) -> bool {
        !self.key.is_empty() || is_in(NAME_KEY, self.action())
    }

    /// Decodes the update; `None` if [`Item::check`] fails.
    #[inline(always)]
    fn update(&self) -> Option<Update<'a>> {
        let action = match self.action() {
            CHECK => Action::Check,
            PUT => Action::Put(self.value),
            DELETE => Action::Delete,
            ADD => Action::Add(self.number().cast_signed()),
            ADD_FLOAT => Action::AddFloat(self.value),
            APPEND => Action::Append(self.value),
            SET_RANGE => {
                Action::SetRange { offset: self.number().try_into().ok()?, bytes: self.value }
            }
            RENAME => Action::Rename(self.value),
            COPY => Action::Copy(self.value),
            SET_EXPIRY => Action::SetExpiry,
            _ => return None,
        };
        let condition = match self.condition() {
            NO_CONDITION => Precondition::None,
            ABSENT => Precondition::Absent,
            PRESENT => Precondition::Present,
            VERSION => Precondition::Version(SequenceNumber(self.u64_at(16))),
            VALUE => Precondition::Value(self.condition_value),
            NO_DEADLINE => Precondition::NoDeadline,
            HAS_DEADLINE => Precondition::HasDeadline,
            LATER => Precondition::Later,
            EARLIER => Precondition::Earlier,
            _ => return None,
        };
        let expiry = match self.expiry() {
            NEVER => Expiry::Never,
            KEEP => Expiry::Keep,
            AFTER => Expiry::After(self.time()),
            AT => Expiry::At(WallTime::from_millis(self.time())),
            KEEP_OR_AFTER => Expiry::KeepOrAfter(self.time()),
            _ => return None,
        };
        let key = (!self.key.is_empty()).then_some(self.key);
        let returns_value = self.flags() & RETURNS_VALUE != 0;
        let is_optional = self.flags() & IS_OPTIONAL != 0;
        Some(Update { key, action, condition, expiry, returns_value, is_optional })
    }
}

/// The reason why an update is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidUpdate {
    /// A key is empty or too long.
    KeyLength,
    /// A value is too long.
    ValueLength,
    /// The condition compares deadlines, but the update sets none.
    NoDeadline,
    /// The action cannot set a deadline.
    UselessExpiry,
    /// There are more than [`MAX_FLOAT_UPDATES`] additions of floating-point numbers.
    Floats,
}

impl InvalidUpdate {
    /// Returns the reason as text.
    pub fn reason(self) -> &'static str {
        match self {
            InvalidUpdate::KeyLength => "a key has 1 to 65,535 bytes",
            InvalidUpdate::ValueLength => "a value has at most 16 MiB",
            InvalidUpdate::NoDeadline => {
                "the condition compares deadlines, but the update sets none"
            }
            InvalidUpdate::UselessExpiry => "this action cannot set or remove a deadline",
            InvalidUpdate::Floats => "a request has at most 32 ADD-FLOAT updates",
        }
    }
}

impl<'a> Action<'a> {
    /// Returns the number of the action, its bytes and its number on the wire.
    fn parts(&self) -> (u8, &'a [u8], u64) {
        match *self {
            Action::Check => (CHECK, &[], 0),
            Action::Put(value) => (PUT, value, 0),
            Action::Delete => (DELETE, &[], 0),
            Action::Add(amount) => (ADD, &[], amount.cast_unsigned()),
            Action::AddFloat(amount) => (ADD_FLOAT, amount, 0),
            Action::Append(bytes) => (APPEND, bytes, 0),
            Action::SetRange { offset, bytes } => (SET_RANGE, bytes, offset.into()),
            Action::Rename(key) => (RENAME, key, 0),
            Action::Copy(key) => (COPY, key, 0),
            Action::SetExpiry => (SET_EXPIRY, &[], 0),
        }
    }
}

impl<'a> Precondition<'a> {
    /// Returns the number of the condition, its value and its version on the wire.
    fn parts(&self) -> (u8, &'a [u8], u64) {
        match *self {
            Precondition::None => (NO_CONDITION, &[], 0),
            Precondition::Absent => (ABSENT, &[], 0),
            Precondition::Present => (PRESENT, &[], 0),
            Precondition::Version(version) => (VERSION, &[], version.0),
            Precondition::Value(value) => (VALUE, value, 0),
            Precondition::NoDeadline => (NO_DEADLINE, &[], 0),
            Precondition::HasDeadline => (HAS_DEADLINE, &[], 0),
            Precondition::Later => (LATER, &[], 0),
            Precondition::Earlier => (EARLIER, &[], 0),
        }
    }
}

impl Expiry {
    /// Returns the number of the expiry and its time on the wire.
    fn parts(self) -> (u8, u64) {
        match self {
            Expiry::Never => (NEVER, 0),
            Expiry::Keep => (KEEP, 0),
            Expiry::After(millis) => (AFTER, millis),
            Expiry::At(time) => (AT, time.millis()),
            Expiry::KeepOrAfter(millis) => (KEEP_OR_AFTER, millis),
        }
    }
}

/// The updates of one request, in the encoding of the wire. Every item is well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Updates<'a> {
    bytes: &'a [u8],
    count: u16,
    /// True if an update names a key of its own.
    names_keys: bool,
    /// The number of additions of floating-point numbers.
    floats: u16,
    /// The reason why the first invalid update is invalid.
    invalid: Option<InvalidUpdate>,
}

impl<'a> Updates<'a> {
    /// Reads the updates of a request.
    ///
    /// # Errors
    /// If an item is malformed, or there is none, or there are more than [`MAX_UPDATES`].
    pub fn read(bytes: &'a [u8]) -> Result<Updates<'a>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut updates = Updates { bytes, count: 0, names_keys: false, floats: 0, invalid: None };
        while reader.left() > 0 && usize::from(updates.count) <= MAX_UPDATES {
            let item = Item::read(&mut reader)?;
            item.check()?;
            updates.count += 1;
            updates.names_keys |= item.names_key();
            updates.floats += u16::from(item.action() == ADD_FLOAT);
            updates.invalid = updates.invalid.or(item.validate().err());
        }
        if updates.count == 0 || usize::from(updates.count) > MAX_UPDATES {
            let field = "number of updates";
            return Err(DecodeError::BadValue { field, value: updates.count.into() });
        }
        Ok(updates)
    }

    /// Returns the encoded items.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the number of updates, at least one.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Returns the number of additions of floating-point numbers.
    pub fn floats(&self) -> u16 {
        self.floats
    }

    /// Returns whether an update has another key than that of the request.
    pub fn names_keys(&self) -> bool {
        self.names_keys
    }

    /// Returns the update of a request with only one; `None` if there are several.
    #[inline]
    pub fn single(&self) -> Option<Update<'a>> {
        if self.count != 1 {
            return None;
        }
        Item::read(&mut Reader::new(self.bytes)).ok()?.update()
    }

    /// Returns the updates in order.
    pub fn iter(&self) -> impl Iterator<Item = Update<'a>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        (0..self.count).map_while(move |_| Item::read(&mut reader).ok()?.update())
    }

    /// Checks every update against the limits.
    ///
    /// # Errors
    /// The reason for which the first invalid one is rejected.
    pub fn validate(&self) -> Result<(), InvalidUpdate> {
        match self.invalid {
            Some(invalid) => Err(invalid),
            None if self.floats > MAX_FLOAT_UPDATES => Err(InvalidUpdate::Floats),
            None => Ok(()),
        }
    }
}

/// The result of one update of a request with several of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateResult<'a> {
    /// The outcome: OK, NOT_FOUND, or for an optional update the status with which it was skipped.
    pub status: Status,
    /// The value, if the update returns one and there is one.
    pub value: Option<&'a [u8]>,
    /// The deadline of the entry after the update, if the update returns the value and there is a deadline.
    pub deadline: Option<WallTime>,
}

impl<'a> UpdateResult<'a> {
    /// The number of bytes of a result besides its value.
    pub const FIXED_BYTES: usize = 1 + 1 + 8 + 4;

    /// Appends the result to the value of a response.
    pub fn write(&self, output: &mut Vec<u8>) {
        let value = self.value.unwrap_or(&[]);
        output.put_u8(self.status as u8);
        output.put_u8(self.value.is_some().into());
        output.put_u64(self.deadline.map_or(0, WallTime::millis));
        output.put_u32(length_u32(value.len(), "value"));
        output.put_bytes(value);
    }

    /// Returns the results in the value of a response to several updates, in order.
    ///
    /// # Errors
    /// If the value is malformed.
    pub fn read_all(value: &'a [u8]) -> Result<Vec<UpdateResult<'a>>, DecodeError> {
        let mut reader = Reader::new(value);
        let mut results = Vec::new();
        while reader.left() > 0 {
            let status = Status::read(&mut reader)?;
            let has_value = match reader.u8("value present")? {
                0 => false,
                1 => true,
                other => {
                    let field = "value present";
                    return Err(DecodeError::BadValue { field, value: other.into() });
                }
            };
            let deadline = read_deadline(&mut reader)?;
            let length = reader.u32("value length")? as usize;
            let value = reader.bytes(length, "value")?;
            results.push(UpdateResult { status, value: has_value.then_some(value), deadline });
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Update<'static>> {
        let update = Update::new;
        let conditions = [
            Precondition::None,
            Precondition::Absent,
            Precondition::Present,
            Precondition::Version(SequenceNumber(7)),
            Precondition::Value(b"x"),
            Precondition::NoDeadline,
            Precondition::HasDeadline,
            Precondition::Later,
            Precondition::Earlier,
        ];
        let actions = [
            Action::Check,
            Action::Put(b"v"),
            Action::Put(b""),
            Action::Delete,
            Action::Add(-3),
            Action::Add(i64::MAX),
            Action::AddFloat(b"1.5"),
            Action::Append(b"tail"),
            Action::SetRange { offset: 9, bytes: b"mid" },
            Action::Rename(b"other"),
            Action::Copy(b"other"),
            Action::SetExpiry,
        ];
        let expiries = [
            Expiry::Never,
            Expiry::Keep,
            Expiry::After(5),
            Expiry::At(WallTime::from_millis(9)),
            Expiry::KeepOrAfter(6),
        ];
        let mut all: Vec<Update<'_>> = actions.into_iter().map(update).collect();
        let put = update(Action::Put(b"v"));
        all.extend(conditions.map(|condition| Update { condition, ..put }));
        all.extend(expiries.map(|expiry| Update { expiry, ..put }));
        all.push(Update { key: Some(b"own"), returns_value: true, is_optional: true, ..put });
        all
    }

    #[test]
    fn every_update_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        for update in all() {
            let before = bytes.len();
            update.write(&mut bytes);
            assert_eq!(bytes.len() - before, update.wire_bytes());
            let read = Updates::read(&bytes[before..]).unwrap();
            assert_eq!(read.iter().collect::<Vec<_>>(), [update]);
        }
        let read = Updates::read(&bytes).unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), all());
    }

    #[test]
    fn the_number_of_additions_of_floats_is_bounded() {
        let mut bytes = Vec::new();
        for count in 1..=MAX_FLOAT_UPDATES + 1 {
            Update::new(Action::AddFloat(b"1.5")).write(&mut bytes);
            let expected = match count <= MAX_FLOAT_UPDATES {
                true => Ok(()),
                false => Err(InvalidUpdate::Floats),
            };
            assert_eq!(Updates::read(&bytes).unwrap().validate(), expected);
        }
        assert!(InvalidUpdate::Floats.reason().contains(&MAX_FLOAT_UPDATES.to_string()));
    }

    #[test]
    fn a_cut_update_is_malformed() {
        let mut bytes = Vec::new();
        all().iter().for_each(|update| update.write(&mut bytes));
        let mut ends = vec![0];
        for update in all() {
            ends.push(ends.last().unwrap() + update.wire_bytes());
        }
        for end in 0..=bytes.len() {
            let is_whole = end > 0 && ends.contains(&end);
            assert_eq!(Updates::read(&bytes[..end]).is_ok(), is_whole, "{end}");
        }
    }

    #[test]
    fn every_item_that_is_well_formed_is_decoded_and_validated_like_its_update() {
        let numbers = (0..=SET_EXPIRY + 1).flat_map(|action| {
            (0..=EARLIER + 1).flat_map(move |condition| {
                (0..=KEEP_OR_AFTER + 1).map(move |expiry| [action, condition, expiry])
            })
        });
        let mut decoded = 0;
        for numbers in numbers {
            for (key, value, condition_value, number) in [
                (&b""[..], &b""[..], &b""[..], 0),
                (b"key", b"value", b"", MAX_VALUE_BYTES as u64),
                (b"", b"", b"condition", u64::MAX),
            ] {
                let mut bytes = vec![0; UPDATE_FIXED_BYTES];
                bytes[..2].copy_from_slice(&length_u16(key.len(), "key").to_le_bytes());
                bytes[2..5].copy_from_slice(&numbers);
                bytes[8..16].copy_from_slice(&number.to_le_bytes());
                bytes[24..32].copy_from_slice(&number.to_le_bytes());
                for (at, part) in [(32, condition_value), (36, value)] {
                    let length = length_u32(part.len(), "part").to_le_bytes();
                    bytes[at..at + 4].copy_from_slice(&length);
                }
                for part in [key, condition_value, value] {
                    bytes.extend_from_slice(part);
                }
                let Ok(updates) = Updates::read(&bytes) else { continue };
                let update = updates.single().expect("it is well-formed");
                assert_eq!(updates.iter().collect::<Vec<_>>(), [update]);
                assert_eq!(updates.validate(), update.validate(), "{update:?}");
                assert_eq!(
                    updates.names_keys(),
                    update.key.is_some() || update.second_key().is_some()
                );
                decoded += 1;
            }
        }
        assert!(decoded > 300, "{decoded}");
    }

    #[test]
    fn unknown_numbers_are_malformed() {
        let mut bytes = Vec::new();
        Update::new(Action::Check).write(&mut bytes);
        for (at, value) in [(2, 10), (3, 9), (4, 5), (5, 4), (6, 1), (7, 1), (32, 1), (36, 1)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(Updates::read(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn results_are_read_as_they_were_written() {
        let deadline = Some(WallTime::from_millis(4));
        let results = [
            UpdateResult { status: Status::NotFound, value: None, deadline: None },
            UpdateResult { status: Status::Ok, value: Some(b""), deadline: None },
            UpdateResult { status: Status::Overflow, value: Some(b"abc"), deadline },
        ];
        let mut bytes = Vec::new();
        results.iter().for_each(|result| result.write(&mut bytes));
        assert_eq!(UpdateResult::read_all(&bytes).unwrap(), results);
        assert!(UpdateResult::read_all(&bytes[..bytes.len() - 1]).is_err());
    }
}
