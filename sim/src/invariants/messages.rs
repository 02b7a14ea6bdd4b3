//! Messages: replicas and the coordinator accept only those of the current view and process. Each response belongs
//! to a request, is sent by the primary, and has an unchanged value.

use kv_core::replica::{Inspection, StreamError};
use kv_protocol::client_message::Status;
use kv_protocol::ids::{GroupId, RequestId, ViewVersion};
use kv_protocol::limits::STALL_DEADLINE;
use kv_protocol::{Incarnation, Member};

use crate::invariants::Violation;
use crate::network::{Actor, ConnectionNumber};
use crate::world::World;

/// Checks that an accepted message belongs to the view that its replica has installed (invariant 9).
pub fn message_is_of_this_view(
    group: GroupId,
    got: ViewVersion,
    installed: ViewVersion,
) -> Result<(), Violation> {
    if got == installed {
        return Ok(());
    }
    let words = format_args!("a message of view {got} was accepted under view {installed}");
    Err(Violation::of(group, 9, words))
}

/// Checks that a heartbeat was sent by the process to which the coordinator attributes it (invariant 9).
pub fn heartbeat_is_of_this_process(speaks: Incarnation, member: Member) -> Result<(), Violation> {
    if member.incarnation == speaks {
        return Ok(());
    }
    Err(Violation::new(9, format!("a heartbeat of {speaks} was attributed to {member}")))
}

/// Checks that the two holders accept each other's messages (invariant 22). A stream ends because of a view, a
/// stop, a lack of memory or a death, never because of a message that the other end rejects.
///
/// The function is called for a message that a replica has rejected on its stream. Messages of a dead process may
/// arrive after the proof of its death, when its successor has already taken over. In a build with mutations, a
/// rejected message may be a symptom of another violation, so it is not reported.
pub fn streams_are_whole(
    group: GroupId,
    error: &StreamError,
    is_of_the_dead: bool,
) -> Result<(), Violation> {
    let is_known = matches!(
        error,
        StreamError::View { .. }
            | StreamError::Frozen
            | StreamError::OutOfMemory { .. }
            | StreamError::Diverged { .. } // invariant 11
    );
    if is_known || is_of_the_dead || cfg!(feature = "mutations") {
        return Ok(());
    }
    Err(Violation::of(group, 22, format_args!("a stream broke: {error}")))
}

/// Returns the violation of a stream that is kept although the other end has closed it.
///
/// Invariant 22: a stream ends when the other end has closed it.
pub fn stream_is_kept(number: ConnectionNumber) -> Violation {
    Violation::new(22, format!("stream {} is kept although the other end has closed it", number.0))
}

/// Checks that only the primary of the installed view accepts writes and serves reads (invariant 14).
///
/// The function is called for a response that a replica has just sent.
pub fn only_primaries_respond(
    group: GroupId,
    sight: &Inspection,
    status: Status,
) -> Result<(), Violation> {
    let is_response =
        matches!(status, Status::Ok | Status::NotFound | Status::Conflict | Status::NotDone);
    if sight.state.is_active() || !is_response {
        return Ok(());
    }
    let words = format_args!("{status:?} is sent by a replica in state {:?}", sight.state);
    Err(Violation::of(group, 14, words))
}

/// Returns the violation of a response without a request on its connection.
///
/// Invariant 29: every response belongs to a request that arrived on the same connection, and each request gets at
/// most one response.
pub fn response_without_request(to: ConnectionNumber, request: RequestId) -> Violation {
    let words = format!(
        "a response to request {request} is sent on connection {}, which has no such request",
        to.0
    );
    Violation::new(29, words)
}

/// Checks that a client that has shut down its sending direction has received a response to each of its requests
/// (invariant 29).
///
/// The function is called when the server has closed the connection, before the client's state changes. A process
/// that has ended, a broken connection, and the deadline of a half-closed connection excuse missing responses.
pub fn half_closed_is_served(
    world: &World,
    client: usize,
    number: ConnectionNumber,
) -> Result<(), Violation> {
    let Some(since) = world.network.end_of_input_at(number, 1) else { return Ok(()) };
    // The clocks of servers may run faster by a tenth.
    if u128::from(world.now - since) >= STALL_DEADLINE.as_nanos() * 9 / 10 {
        return Ok(());
    }
    let is_alive = match world.network.get(number).ends[1] {
        Actor::Shard { process, .. } => world.processes[process].alive,
        _ => false,
    };
    let waiting = world.clients[client].flights.iter().find(|(_, flight)| flight.waits_on(number));
    match waiting {
        Some((request, _)) if is_alive => {
            let words = format!(
                "connection {} ended after the end of its input, without a response to request {request}",
                number.0
            );
            Err(Violation::new(29, words))
        }
        _ => Ok(()),
    }
}

/// Returns the violation of a value that was lost although its replica has kept its table.
///
/// Invariant 27: a value that is being sent does not change after its request, even if its key is written or deleted,
/// or its entry moves, meanwhile.
pub fn pinned_value_is_gone(group: GroupId) -> Violation {
    Violation::of(group, 27, format_args!("a value that is being sent is gone"))
}

/// Returns the violation of a response whose bytes are not those of one value (invariant 27).
pub fn value_is_mixed(group: GroupId) -> Violation {
    Violation::of(group, 27, format_args!("the bytes read are not those of one written value"))
}
