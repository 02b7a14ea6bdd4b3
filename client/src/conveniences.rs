//! Updates of a client: requests with one update, batches, and a method for each common update.

use std::str::FromStr;

use kv_protocol::client_message::Part;
use kv_protocol::ids::WallTime;
use kv_protocol::update::{Action as Change, Expiry, Precondition, Update};

use crate::client::{Client, Value, Written};
use crate::doubt::Doubt;
use crate::error::{Action, Error};
use crate::landing::Landing;
use crate::operation::Op;
use crate::options::OpOptions;
use crate::shared::SharedClient;
use crate::updated::{Batch, Expiring, PutOptions, Updated};

impl Client {
    /// Executes one update. Its key must be of the group and shard of `key`; without a key it applies to `key`.
    ///
    /// # Errors
    /// The errors of [`Client::put`]; [`Error::NotFound`] if the update needs an entry; [`Error::NotANumber`],
    /// [`Error::Overflow`] and [`Error::TooBig`] for the result; [`Error::CrossShard`]; [`Error::Unsupported`] if the
    /// server is too old.
    pub fn update(
        &mut self,
        key: &[u8],
        update: &Update<'_>,
        options: &OpOptions,
    ) -> Result<Updated, Error> {
        self.call(Op::Update { key, updates: std::slice::from_ref(update) }, options, Updated::of)
    }

    /// Executes updates of keys of the group and shard of `key` at once: all of them, or none. An optional update that
    /// cannot be executed is skipped.
    ///
    /// # Errors
    /// The errors of [`Client::update`]. The error names the update that failed ([`Action::index_in_batch`]). A batch
    /// of several updates does not fail with [`Error::NotFound`]; the result of the update has this status.
    pub fn batch(
        &mut self,
        key: &[u8],
        updates: &[Update<'_>],
        options: &OpOptions,
    ) -> Result<Batch, Error> {
        let count = updates.len();
        self.call(Op::Update { key, updates }, options, |reply| Batch::of(reply, count))
    }

    /// Settles an update that ended in doubt, like [`Client::resolve`], and returns the result of the update itself.
    /// The value of a batch has the encoded results ([`crate::update::UpdateResult::read_all`]).
    ///
    /// # Errors
    /// The errors of [`Client::resolve`] and [`Client::update`].
    pub fn resolve_update(&mut self, doubt: &Doubt, options: &OpOptions) -> Result<Updated, Error> {
        self.call(Op::Resolve { doubt }, options, Updated::of)
    }

    /// Adds to the decimal text of a 64-bit integer, and returns the sum. An absent key counts as 0.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn add(&mut self, key: &[u8], amount: i64, options: &OpOptions) -> Result<i64, Error> {
        let updated = self.update(key, &Update::new(Change::Add(amount)), options)?;
        number("add to", key, &updated)
    }

    /// Adds to the decimal text of a floating-point number, and returns the sum as a decimal text. An absent key counts
    /// as 0.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn add_float(
        &mut self,
        key: &[u8],
        amount: &str,
        options: &OpOptions,
    ) -> Result<String, Error> {
        let update = Update::new(Change::AddFloat(amount.as_bytes()));
        number("add to", key, &self.update(key, &update, options)?)
    }

    /// Appends to a value, and returns its new length. An absent key counts as an empty value.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn append(
        &mut self,
        key: &[u8],
        bytes: &[u8],
        options: &OpOptions,
    ) -> Result<usize, Error> {
        let updated = self.update(key, &Update::new(Change::Append(bytes)), options)?;
        number("append to", key, &updated)
    }

    /// Overwrites a part of a value from `offset` on, and returns the length of the value. A gap before the part is
    /// filled with zero bytes.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn set_range(
        &mut self,
        key: &[u8],
        offset: u32,
        bytes: &[u8],
        options: &OpOptions,
    ) -> Result<usize, Error> {
        let update = Update::new(Change::SetRange { offset, bytes });
        number("overwrite a part of", key, &self.update(key, &update, options)?)
    }

    /// Sets a key if a condition holds. The entry has no deadline afterwards.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn put_if(
        &mut self,
        key: &[u8],
        value: &[u8],
        condition: Precondition<'_>,
        options: &OpOptions,
    ) -> Result<Updated, Error> {
        self.put_with(key, value, &PutOptions { condition, ..PutOptions::default() }, options)
    }

    /// Sets a key with a condition, a deadline, or the old value in the result.
    ///
    /// # Errors
    /// The errors of [`Client::update`]. [`Error::Conflict`] has the current value if the old value is requested.
    pub fn put_with(
        &mut self,
        key: &[u8],
        value: &[u8],
        with: &PutOptions<'_>,
        options: &OpOptions,
    ) -> Result<Updated, Error> {
        let PutOptions { condition, expiry, returns_old_value: returns_value } = *with;
        let put = Update::new(Change::Put(value));
        self.update(key, &Update { condition, expiry, returns_value, ..put }, options)
    }

    /// Removes a key if a condition holds.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn delete_if(
        &mut self,
        key: &[u8],
        condition: Precondition<'_>,
        options: &OpOptions,
    ) -> Result<Written, Error> {
        self.write(key, &Update { condition, ..Update::new(Change::Delete) }, options)
    }

    /// Removes a key, and returns its value with the sequence number of the delete.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn take(&mut self, key: &[u8], options: &OpOptions) -> Result<Value, Error> {
        let update = Update { returns_value: true, ..Update::new(Change::Delete) };
        let Updated { version, value, .. } = self.update(key, &update, options)?;
        Ok(Value { bytes: value.unwrap_or_default(), version })
    }

    /// Sets or removes the deadline of an entry, and returns the value.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn get_and_expire(
        &mut self,
        key: &[u8],
        expiry: Expiry,
        options: &OpOptions,
    ) -> Result<Expiring, Error> {
        let update = Update { expiry, returns_value: true, ..Update::new(Change::SetExpiry) };
        let updates = std::slice::from_ref(&update);
        self.call(Op::Update { key, updates }, options, Expiring::of)
    }

    /// Sets or removes the deadline of an entry if a condition holds.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn expire(
        &mut self,
        key: &[u8],
        expiry: Expiry,
        condition: Precondition<'_>,
        options: &OpOptions,
    ) -> Result<Written, Error> {
        let update = Update { expiry, condition, ..Update::new(Change::SetExpiry) };
        self.write(key, &update, options)
    }

    /// Removes the deadline of an entry. Returns false if the entry has none.
    ///
    /// # Errors
    /// The errors of [`Client::update`], except [`Error::Conflict`].
    pub fn persist(&mut self, key: &[u8], options: &OpOptions) -> Result<bool, Error> {
        match self.expire(key, Expiry::Never, Precondition::HasDeadline, options) {
            Ok(_) => Ok(true),
            Err(Error::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Moves an entry with its deadline to another key of the same group and shard, whose entry it replaces.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn rename(&mut self, key: &[u8], to: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.write(key, &Update::new(Change::Rename(to)), options)
    }

    /// Copies an entry with its deadline to another key of the same group and shard, whose entry it replaces.
    ///
    /// # Errors
    /// The errors of [`Client::update`].
    pub fn copy(&mut self, key: &[u8], to: &[u8], options: &OpOptions) -> Result<Written, Error> {
        self.write(key, &Update::new(Change::Copy(to)), options)
    }

    /// Reads a key with the deadline of its entry.
    ///
    /// # Errors
    /// The errors of [`Client::get`], and [`Error::Unsupported`] if the server is too old.
    pub fn get_with_deadline(
        &mut self,
        key: &[u8],
        options: &OpOptions,
    ) -> Result<Expiring, Error> {
        let read = Op::Read { key, part: Some(Part::WITH_DEADLINE), landing: Landing::Memory };
        self.call(read, options, Expiring::of)
    }

    /// Returns the deadline of an entry without fetching the value; `None` if the entry does not expire.
    ///
    /// # Errors
    /// The errors of [`Client::get_with_deadline`].
    pub fn deadline(&mut self, key: &[u8], options: &OpOptions) -> Result<Option<WallTime>, Error> {
        let read = Op::Read { key, part: Some(Part::ONLY_DEADLINE), landing: Landing::Buffer };
        self.call(read, options, |reply| reply.deadline)
    }

    /// Returns whether a key exists.
    ///
    /// # Errors
    /// The errors of [`Client::get`], except [`Error::NotFound`].
    pub fn exists(&mut self, key: &[u8], options: &OpOptions) -> Result<bool, Error> {
        match self.length(key, options) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Executes one update that returns no value.
    fn write(
        &mut self,
        key: &[u8],
        update: &Update<'_>,
        options: &OpOptions,
    ) -> Result<Written, Error> {
        let Updated { version, copies, .. } = self.update(key, update, options)?;
        Ok(Written { version, copies })
    }
}

impl SharedClient {
    /// Executes one update, like [`Client::update`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn update(
        &self,
        key: &[u8],
        update: &Update<'_>,
        options: &OpOptions,
    ) -> Result<Updated, Error> {
        self.call(Op::Update { key, updates: std::slice::from_ref(update) }, options, Updated::of)
    }

    /// Executes updates at once, all or none, like [`Client::batch`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn update_all(
        &self,
        key: &[u8],
        updates: &[Update<'_>],
        options: &OpOptions,
    ) -> Result<Batch, Error> {
        let count = updates.len();
        self.call(Op::Update { key, updates }, options, |reply| Batch::of(reply, count))
    }
}

/// Parses the decimal text in the result of an update.
fn number<T: FromStr>(verb: &'static str, key: &[u8], updated: &Updated) -> Result<T, Error> {
    let text = updated.value.as_deref().and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        let reason = "the write was done, but the response has no number as its result".to_owned();
        Error::Protocol { action: Action::new(verb, key), reason }
    })
}
