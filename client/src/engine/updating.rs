//! Updates in the engine: the check of their keys, servers without support for them, and the responses to them.

use kv_protocol::client_message::{Response, Status};
use kv_protocol::ids::{GroupId, ServerId, ShardId};
use kv_protocol::placement::Digest;
use kv_protocol::update::UpdateResult;

use super::Engine;
use super::traffic::spoken;
use crate::completion::Ends;
use crate::error::{Action, Error};
use crate::operation::{Kind, OpId, Operation};

/// The reason why a batch is too big, with the limits of a value, of the changes and of the results.
const BEYOND_LIMITS: &str = "the batch exceeds a limit, and nothing was changed: a value has at most 16 MiB, the keys and \
                             values that all updates write have 16 MiB + 256 KiB, and the results have 16 MiB; divide the \
                             batch";

impl Engine {
    /// Checks that all keys of the updates belong to this place, and records the digests of the keys. Otherwise ends
    /// the operation and returns false.
    pub(super) fn check_keys(
        &mut self,
        id: OpId,
        place: (GroupId, ShardId),
        ends: &mut dyn Ends,
    ) -> bool {
        let Some(operation) = self.operations.get_mut(id) else { return false };
        let own = operation.digest();
        let mut others = Vec::new();
        let mut elsewhere = None;
        let of_updates = operation.updates().flat_map(|update| [update.key, update.second_key()]);
        for key in of_updates.flatten() {
            let digest = Digest::of(key);
            match self.router.locate(digest, key) {
                Some(found) if found != place => {
                    elsewhere = Some((key, found));
                    break;
                }
                _ if digest == own => {}
                _ => others.push(digest),
            }
        }
        let Some((key, found)) = elsewhere else {
            operation.other_keys = others.into();
            return true;
        };
        let of = |key: &[u8], (group, shard): (GroupId, ShardId)| {
            format!("{} is in group {group}, shard {shard}", Action::new("key", key))
        };
        let reason = format!("{}, but {}", of(operation.key(), place), of(key, found));
        let error = Error::CrossShard { action: operation.action(), reason };
        self.finish(id, Err(error), ends);
        false
    }

    /// Ends an operation that the server does not support because of its version of the protocol.
    pub(super) fn finish_unsupported(
        &mut self,
        id: OpId,
        server: ServerId,
        version: u16,
        ends: &mut dyn Ends,
    ) {
        let Some(operation) = self.operations.get(id) else { return };
        let action = operation.action();
        let unsupported = Error::Unsupported { action: action.clone(), server, version };
        let error = match operation.doubtful {
            0 => unsupported,
            _ => Error::InDoubt { action, cause: unsupported.to_string(), doubt: None },
        };
        self.finish(id, Err(error), ends);
    }
}

/// Returns the error in a response to an update that the server has logged; the response to a retry is the same.
/// Returns `None` for any other response. The responses to logged writes name the number of copies.
pub(super) fn logged_failure(operation: &Operation, response: &Response<'_>) -> Option<Error> {
    if response.copies == 0 || !(operation.kind.is_update() || operation.kind == Kind::Resolve) {
        return None;
    }
    let action = || operation.failed_action(response.value);
    Some(match response.status {
        Status::NotANumber => Error::NotANumber { action: action() },
        Status::Overflow => Error::Overflow { action: action() },
        Status::TooBig => {
            let reason = match operation.batch_count() {
                Some(_) => BEYOND_LIMITS,
                None => "the value would be longer than 16 MiB; nothing was changed",
            };
            Error::TooBig { action: action(), reason: reason.to_owned() }
        }
        _ => return None,
    })
}

/// Returns the error of a write whose condition does not hold.
pub(super) fn conflict(operation: &Operation, response: &Response<'_>) -> Error {
    let action = operation.failed_action(response.value);
    let has_value = response.has_value && operation.batch_count().is_none();
    let value = has_value.then(|| response.value.into());
    Error::Conflict { action, version: response.version, value }
}

/// Returns the error of an update that was rejected and not logged, or `None` for another status.
pub(super) fn rejection(
    operation: &Operation,
    response: &Response<'_>,
    action: &Action,
) -> Option<Error> {
    let action = action.clone();
    Some(match response.status {
        Status::CrossShard => Error::CrossShard { action, reason: spoken(operation, response) },
        Status::NotANumber => Error::NotANumber { action },
        Status::Overflow => Error::Overflow { action },
        _ => return None,
    })
}

/// Returns whether the value of a successful response to a batch has a result for each update. For other operations,
/// returns true.
pub(super) fn has_all_results(operation: &Operation, response: &Response<'_>) -> bool {
    match operation.batch_count() {
        Some(count) if response.status == Status::Ok => {
            UpdateResult::read_all(response.value).is_ok_and(|results| results.len() == count)
        }
        _ => true,
    }
}
