//! 22: the two holders accept each other's messages. A stream ends because of a view, a stop, a lack of memory
//! or a death, never because of a message that the other end rejects. It does end when the other end has closed it.

use kv_core::replica::StreamError;
use kv_protocol::ids::GroupId;

use crate::invariants::Violation;
use crate::network::ConnectionNumber;

/// Checks a message that a replica rejected on its stream. Messages of a dead process may arrive after the
/// proof of its death, when its successor has already taken over. With a mutation, a rejected message is an
/// expected symptom of another broken promise, so it is no violation.
pub fn refused(group: GroupId, error: &StreamError, is_of_the_dead: bool) -> Result<(), Violation> {
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
pub fn kept(number: ConnectionNumber) -> Violation {
    Violation::new(22, format!("stream {} is kept although the other end has closed it", number.0))
}
