//! The results of updates, in the program's memory.

use std::ffi::c_int;

use kv_client::Reply;
use kv_client::update::UpdateResult;

use crate::buffer::{kvc_buf, own, value_of};
use crate::doubt::kvc_doubt;
use crate::error::{Failure, KVC_INVALID, KVC_NOT_DONE, KVC_OK, KVC_TOO_BIG};
use crate::handle::{kvc_client, open_here};
use crate::update::{deadline_ms, kvc_updated};

/// The program's array for the results of a request with `n` updates, or NULL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Results {
    out: *mut kvc_updated,
    pub(crate) n: usize,
}

// SAFETY: the program allows the library to write to the memory until the request has ended, on any thread.
unsafe impl Send for Results {}

impl Results {
    /// Lends the array to a request. Nothing is written yet.
    pub(crate) fn new(out: *mut kvc_updated, n: usize) -> Results {
        Results { out, n }
    }

    /// Empties the results, so that their values may be freed whatever happens.
    ///
    /// # Safety
    /// The array is NULL or has room for `n` results.
    pub(crate) unsafe fn empty(self) {
        for at in 0..self.n {
            // SAFETY: passed on.
            unsafe { self.write(at, kvc_updated::EMPTY) };
        }
    }

    /// # Safety
    /// As for [`Results::empty`].
    pub(crate) unsafe fn emptied(out: *mut kvc_updated, n: usize) -> Results {
        let results = Results::new(out, n);
        // SAFETY: passed on.
        unsafe { results.empty() };
        results
    }

    /// # Safety
    /// As for [`Results::empty`].
    unsafe fn write(self, at: usize, result: kvc_updated) {
        assert!(at < self.n, "an update of the request");
        if !self.out.is_null() {
            // SAFETY: not NULL, and there is room for `n`.
            unsafe { self.out.add(at).write(result) };
        }
    }

    /// Writes the results of a request that was executed. Returns the number of bytes of the values. Fails if there is
    /// no memory for one of them.
    ///
    /// # Safety
    /// As for [`Results::empty`].
    pub(crate) unsafe fn succeed(self, reply: Reply<'_>) -> Result<usize, Failure> {
        if self.out.is_null() {
            return Ok(0);
        }
        let (version, copies) = (reply.version.0, reply.copies.into());
        let result = kvc_updated { status: KVC_OK, version, copies, ..kvc_updated::EMPTY };
        if self.n == 1 {
            let value = if reply.has_value { value_of(reply) } else { Ok(kvc_buf::EMPTY) };
            let deadline_ms = deadline_ms(reply.deadline);
            // SAFETY: passed on.
            return unsafe { self.put(0, kvc_updated { deadline_ms, ..result }, value) };
        }
        let results = UpdateResult::read_all(reply.value).unwrap_or_default();
        if results.len() != self.n {
            let words = format!("the request has {} updates, but n is {}", results.len(), self.n);
            return Err(Failure::invalid(words));
        }
        let (mut bytes, mut end) = (0, Ok(()));
        for (at, UpdateResult { status, value, deadline }) in results.into_iter().enumerate() {
            let value = value.map_or(Ok(kvc_buf::EMPTY), |value| own(value, version));
            let (status, deadline_ms) = (of_status(status), deadline_ms(deadline));
            // SAFETY: passed on.
            match unsafe { self.put(at, kvc_updated { status, deadline_ms, ..result }, value) } {
                Ok(more) => bytes += more,
                Err(no_memory) => end = Err(no_memory),
            }
        }
        end.map(|()| bytes)
    }

    /// Writes a result with its value, or with the status of the failure for want of memory.
    ///
    /// # Safety
    /// As for [`Results::empty`].
    unsafe fn put(
        self,
        at: usize,
        result: kvc_updated,
        value: Result<kvc_buf, Failure>,
    ) -> Result<usize, Failure> {
        let (result, end) = match value {
            Ok(value) => (kvc_updated { value, ..result }, Ok(value.len)),
            Err(no_memory) => {
                (kvc_updated { status: no_memory.status, ..result }, Err(executed(no_memory)))
            }
        };
        // SAFETY: passed on.
        unsafe { self.write(at, result) };
        end
    }

    /// Writes the results of a request that failed.
    ///
    /// # Safety
    /// As for [`Results::empty`].
    pub(crate) unsafe fn fail(self, failure: &Failure, doubt: kvc_doubt) {
        if self.out.is_null() {
            return;
        }
        for at in 0..self.n {
            let mut result = kvc_updated { status: failure.status, doubt, ..kvc_updated::EMPTY };
            match failure.index {
                Some(index) if index != at => result.status = KVC_NOT_DONE,
                _ => {
                    result.version = failure.version;
                    result.value = current(failure);
                }
            }
            // SAFETY: passed on.
            unsafe { self.write(at, result) };
        }
    }

    /// Writes the results unless the request was executed; then they are written already. Returns the status.
    ///
    /// # Safety
    /// As for [`Results::empty`]; `client` is NULL or an open handle.
    pub(crate) unsafe fn tell(
        self,
        client: *mut kvc_client,
        done: Result<(), Failure>,
    ) -> Result<c_int, Failure> {
        let Err(mut failure) = done else { return Ok(KVC_OK) };
        if failure.was_executed {
            return Err(failure);
        }
        let doubt = failure.doubt.take();
        // SAFETY: passed on.
        unsafe {
            let name = |doubt| open_here(client).map(|handle| handle.doubts.name(Some(doubt)));
            let doubt = doubt.and_then(|doubt| name(doubt).ok()).unwrap_or_default();
            self.fail(&failure, doubt);
        }
        Err(failure)
    }
}

/// Returns a copy of the current value after a conflict, if the update requests it and there is memory.
pub(crate) fn current(failure: &Failure) -> kvc_buf {
    let value = failure.value.as_deref().map(|value| own(value, failure.version));
    value.and_then(Result::ok).unwrap_or(kvc_buf::EMPTY)
}

/// Adds to the failure for want of memory that the request was executed.
pub(crate) fn executed(no_memory: Failure) -> Failure {
    let words = format!("the update was executed, but there is {}", no_memory.words);
    Failure { was_executed: true, ..Failure::new(no_memory.status, words) }
}

/// Returns the status of one update in a request that was executed.
fn of_status(status: kv_client::Status) -> c_int {
    use crate::error::{KVC_CONFLICT, KVC_NOT_A_NUMBER, KVC_NOT_FOUND, KVC_OVERFLOW, KVC_PROTOCOL};
    use kv_client::Status;

    match status {
        Status::Ok => KVC_OK,
        Status::NotFound => KVC_NOT_FOUND,
        Status::Conflict => KVC_CONFLICT,
        Status::NotANumber => KVC_NOT_A_NUMBER,
        Status::Overflow => KVC_OVERFLOW,
        Status::TooBig => KVC_TOO_BIG,
        Status::Invalid => KVC_INVALID,
        _ => KVC_PROTOCOL,
    }
}
