//! Settling of writes in doubt by the engine: the operations that wait for a write, and the effects of the response.

use std::time::Instant;

use kv_protocol::ids::{GroupId, ShardId};

use super::Engine;
use crate::completion::{Ends, Reply};
use crate::doubt::{Doubt, Open, Settled};
use crate::error::Error;
use crate::operation::{Notify, Op, OpId, Operation, Stage};
use crate::options::OpOptions;

/// The next step of an operation on the key of a write in doubt.
pub(super) enum Meeting {
    GoOn,
    /// Wait until the write is settled.
    Wait,
    /// The operation is a RESOLVE of a write whose result is known.
    Settled(Result<Settled, Error>),
}

impl Engine {
    /// Makes an operation wait for an earlier write in doubt to the same key, if there is one, and starts to settle
    /// that write. A RESOLVE continues, waits for another RESOLVE of the same write, or ends with the known result.
    pub(super) fn meet_doubt(&mut self, id: OpId, now: Instant) -> Meeting {
        let Some(operation) = self.operations.get_mut(id) else { return Meeting::Wait };
        let open = match &operation.doubt {
            Some(doubt) => {
                if let Some(result) = doubt.write.settled.get() {
                    return Meeting::Settled(result.clone());
                }
                match self.doubts.get_mut(doubt) {
                    // The write belongs to another client. Only a server of its cluster has the result.
                    None if self.router.is_heir_of(doubt.write.cluster) => return Meeting::GoOn,
                    None if !self.router.has_map() => {
                        operation.stage = Stage::AwaitingMap;
                        let deadline = operation.deadline;
                        self.timers.set(id, &mut operation.timer, deadline);
                        self.want_map(None);
                        return Meeting::Wait;
                    }
                    None => {
                        let cluster = doubt.write.cluster;
                        let reason = format!(
                            "the write belongs to cluster {cluster}, from which this client's cluster was not restored"
                        );
                        return Meeting::Settled(Err(Error::Invalid {
                            action: operation.action(),
                            reason,
                        }));
                    }
                    Some(open) => open,
                }
            }
            None => {
                let own = operation.digest();
                let doubts = &mut self.doubts;
                let mut keys = std::iter::once(&own).chain(&operation.other_keys);
                let met = keys.find(|&&digest| doubts.has_key(digest));
                match met.and_then(|&digest| doubts.of_key(digest)) {
                    None => return Meeting::GoOn,
                    Some(open) => open,
                }
            }
        };
        if operation.doubt.is_some() && open.resolver.is_none_or(|resolver| resolver == id) {
            open.resolver = Some(id);
            return Meeting::GoOn;
        }
        operation.stage = Stage::AwaitingDoubt;
        let deadline = operation.deadline;
        self.timers.set(id, &mut operation.timer, deadline);
        open.waiting.push_back(id);
        if open.resolver.is_none() {
            let doubt = open.doubt.clone();
            self.start_resolver(&doubt, deadline, now);
        }
        Meeting::Wait
    }

    /// Starts to settle the writes in doubt that occupy the window of a place.
    pub(super) fn settle_place(&mut self, place: (GroupId, ShardId), now: Instant) {
        if self.doubts.is_empty() {
            return;
        }
        for doubt in self.doubts.unattended(place) {
            self.start_resolver(&doubt, now + self.options.deadline, now);
        }
    }

    fn start_resolver(&mut self, doubt: &Doubt, deadline: Instant, now: Instant) {
        let (op, options) = (Op::Resolve { doubt }, OpOptions::default());
        let allowed = self.options.deadline;
        let made = Operation::new(op, &options, allowed, Notify::None, now, &mut self.free_list);
        // If no memory is available, the next operation retries.
        let Ok(mut operation) = made else { return };
        operation.deadline = deadline.max(now);
        self.resolvers += 1;
        self.counts.resolvers += 1;
        let id = self.start(operation);
        if let Some(open) = self.doubts.get_mut(doubt) {
            open.resolver = Some(id);
        }
    }

    /// Ends a RESOLVE of a write whose result is known.
    pub(super) fn finish_settled(
        &mut self,
        id: OpId,
        result: Result<Settled, Error>,
        ends: &mut dyn Ends,
    ) {
        let responded = result.as_ref().map(Reply::of_settled).map_err(Error::clone);
        self.finish(id, responded, ends);
    }

    /// Handles the end of a RESOLVE.
    pub(super) fn on_resolved(
        &mut self,
        id: OpId,
        doubt: &Doubt,
        result: &Result<Reply<'_>, Error>,
        ends: &mut dyn Ends,
    ) {
        let settled = match result {
            &Ok(Reply { version, copies, value, has_value, deadline, .. }) => {
                let value = has_value.then(|| value.into());
                Ok(Settled { version, copies, value, deadline })
            }
            // These errors are results of the write. InDoubt means that its outcome stays unknown: the session has
            // expired, or another process uses the client id. In the second case the write may still take effect, but
            // another RESOLVE would get the same response. So operations on the key wait no longer (consistency.md §8).
            Err(
                error @ (Error::NotFound { .. }
                | Error::Conflict { .. }
                | Error::NotANumber { .. }
                | Error::Overflow { .. }
                | Error::TooBig { .. }
                | Error::NotDone { .. }
                | Error::InDoubt { .. }),
            ) => Err(error.clone()),
            Err(error) => return self.on_unresolved(id, doubt, error, ends),
        };
        // Several RESOLVEs may have run at once; all get the same result.
        let _ = doubt.write.settled.set(settled);
        let Some(Open { waiting, .. }) = self.doubts.remove(doubt) else { return };
        self.leave_session(doubt.write.place, Some((doubt.write.client, doubt.write.seq)));
        for id in waiting {
            self.make_ready(id);
        }
    }

    /// Handles a RESOLVE that ended without a result: waiting operations retry until their deadlines, or end if the
    /// error is final.
    fn on_unresolved(&mut self, id: OpId, doubt: &Doubt, error: &Error, ends: &mut dyn Ends) {
        let Some(open) = self.doubts.get_mut(doubt) else { return };
        if open.resolver == Some(id) {
            open.resolver = None;
        }
        let waiting = std::mem::take(&mut open.waiting);
        let is_final = !matches!(
            error,
            Error::Timeout { .. }
                | Error::Unavailable { .. }
                | Error::Busy { .. }
                | Error::Interrupted { .. }
                | Error::Cancelled { .. }
        );
        for id in waiting {
            let Some(operation) = self.operations.get(id) else { continue };
            if !is_final {
                self.make_ready(id);
                continue;
            }
            let action = operation.action();
            let error = match error.clone() {
                Error::Lost { cause, .. } => Error::Lost { action, cause },
                Error::OtherCluster { known, got, .. } => {
                    Error::OtherCluster { action, known, got }
                }
                error => Error::Protocol { action, reason: error.to_string() },
            };
            self.finish(id, Err(error), ends);
        }
        let place = doubt.write.place;
        let has_waiting = self.routes.get_mut(place).is_some_and(|place| place.waiting.has_any());
        if has_waiting && !is_final {
            self.settle_place(place, Instant::now());
        }
    }
}
