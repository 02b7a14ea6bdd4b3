//! Writes that ended in doubt, until they are settled (consistency.md §8).
//!
//! ```text
//!   given up -> waiting -> settling: done, with its first response; or not done, and never will be
//!                 ^            | no response until a deadline
//!                 +------------+
//! ```
//!
//! The sequence number of a write in doubt stays incomplete. The client settles the write before it sends a later
//! operation on the same key, when the session's window is full, or else after a delay.

use kv_protocol::client_message::{Response, Status};
use kv_protocol::ids::{GroupId, RequestSeq};
use kv_protocol::limits::SESSION_WINDOW;

use super::flight::Stage;
use super::{ASK_AGAIN, Client, DEADLINE, FIRST_PAUSE, Flight, Wish};
use crate::object::Mixed;
use kv_history::{Asked, Returned};

/// The interval between checks of whether a blocked operation may be sent, in nanoseconds.
const LOOK_AGAIN: u64 = 5_000_000;

impl Client {
    /// Ends an operation. If it is a write in doubt, records it to be settled later.
    pub(super) fn end_or_give_up(
        &mut self,
        now: u64,
        id: u64,
        responded: Returned,
        wishes: &mut Vec<Wish>,
    ) {
        let is_in_doubt = responded == Returned::InDoubt;
        let Some(flight) = self.flights.get(&id) else { return };
        if !is_in_doubt || !flight.is_write() {
            return self.end(id, responded, None, wishes);
        }
        let Some(mut flight) = self.flights.remove(&id) else { return };
        wishes.push(Wish::GivenUp(Box::new(flight.clone())));
        self.seen.remove(&flight.key);
        flight.due = match flight.stage {
            Stage::Asked => now + flight.settling.after,
            Stage::GivenUp | Stage::Asking(_) => now + ASK_AGAIN,
        };
        flight.stage = Stage::GivenUp;
        self.doubts.insert(id, flight);
    }

    /// Starts to settle the writes in doubt that `which` selects.
    pub(super) fn settle(&mut self, now: u64, which: impl Fn(&Flight) -> bool) {
        let due = |(id, doubt): (&u64, &Flight)| which(doubt).then_some(*id);
        let due: Vec<u64> = self.doubts.iter().filter_map(due).collect();
        for id in due {
            let Some(mut flight) = self.doubts.remove(&id) else { continue };
            if flight.settling.overtakes {
                self.connections.retain(|_, number| Some(*number) != flight.connection);
            }
            flight.stage = Stage::Asking(now + DEADLINE);
            (flight.sent, flight.due, flight.pause) = (None, now, FIRST_PAUSE);
            self.flights.insert(id, flight);
        }
    }

    /// Returns whether an operation must not be sent yet because of a write in doubt or a full window. Starts to
    /// settle the writes for which the operation waits.
    pub(super) fn waits_for_doubts(&mut self, now: u64, id: u64) -> bool {
        let Some(flight) = self.flights.get(&id) else { return false };
        // A retry never waits: the operation was first sent before the write ended in doubt.
        if flight.was_sent {
            return false;
        }
        let (key, place, seq) = (flight.key.clone(), flight.place, flight.seq);
        let is_full = flight.is_write()
            && self.sessions.get(&place).is_some_and(|session| {
                session.client == flight.client
                    && seq.0 - session.first_incomplete().0.min(seq.0) >= SESSION_WINDOW
            });
        let is_open = |other: &Flight| is_full && other.place == place && other.is_before(seq);
        let concerns = |other: &Flight| other.was_given_up() && other.key == key || is_open(other);
        if !self.flights.values().any(concerns) && !self.doubts.values().any(concerns) {
            return false;
        }
        self.settle(now, concerns);
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.due = now + LOOK_AGAIN;
        }
        true
    }

    /// Handles a response to a RESOLVE, or a late response to the write itself.
    pub(super) fn on_settled(
        &mut self,
        now: u64,
        jitter: u64,
        response: &Response<'_>,
        wishes: &mut Vec<Wish>,
    ) {
        let id = response.id.0;
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let answer = flight.object.as_ref().map(|ask| ask.answer(response));
        match answer {
            Some(Err(Mixed)) => return wishes.push(Wish::Mixed(flight.place.0)),
            Some(Ok(Some(answer))) => {
                flight.answer = Some(answer);
                return self.end(id, Returned::Done { changed: true }, None, wishes);
            }
            Some(Ok(None)) | None => {}
        }
        let responded = match (response.status, flight.asked) {
            (Status::Ok, _) => Returned::Done { changed: true },
            (Status::NotFound, Asked::Delete) | (Status::Conflict, Asked::Swap { .. }) => {
                Returned::Done { changed: false }
            }
            (Status::NotDone, _) => Returned::Refused,
            (Status::SessionExpired, _) => {
                wishes.push(Wish::Expired(flight.place, flight.client));
                Returned::Undecided
            }
            // If two clients share a name, the outcome of the write stays unknown. The number may belong to a write
            // of the other client, or be too far ahead of a write that only the other client can settle.
            (Status::SessionMismatch | Status::Invalid, _) => {
                let (place, name) = (flight.place, flight.client);
                self.leave_session(place, name);
                Returned::InDoubt
            }
            (status, _) => return self.try_again(now, jitter, id, status, wishes),
        };
        let version = (response.status == Status::Ok).then_some(response.version);
        self.end(id, responded, version, wishes);
    }

    /// Handles the settlement of a write: operations that waited for it may be sent now.
    pub(super) fn on_no_doubt(&mut self, settled: &Flight) {
        for flight in self.flights.values_mut().filter(|flight| !flight.was_sent) {
            if flight.key == settled.key || flight.seq != RequestSeq(0) {
                flight.due = 0;
            }
        }
    }

    /// Ends all operations in flight or in doubt with the result "in doubt". They will never be settled.
    pub fn end_all(&mut self, wishes: &mut Vec<Wish>) {
        self.flights.append(&mut self.doubts);
        let flights: Vec<u64> = self.flights.keys().copied().collect();
        for id in flights {
            self.end(id, Returned::InDoubt, None, wishes);
        }
    }

    /// Returns whether any operation is in flight or in doubt, except writes in doubt of groups without a holder. These
    /// cannot be settled, although the client tries.
    pub fn waits(&self, has_none: impl Fn(GroupId) -> bool) -> bool {
        let is_hopeless = |flight: &Flight| flight.was_given_up() && has_none(flight.place.0);
        self.flights.values().chain(self.doubts.values()).any(|flight| !is_hopeless(flight))
    }
}
