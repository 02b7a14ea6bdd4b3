//! 22: the two holders understand each other: a stream ends for a view, a stop, a lack of memory or a
//! death, never because one end says what the other does not take.

use kv_core::replica::StreamError;
use kv_protocol::ids::GroupId;

use crate::invariants::Violation;

/// A replica refused a message of its stream. The last words of the dead may come behind the proof of
/// their death, on which their successor has taken over. With a rule left out that is how the others notice, and
/// what is to be seen is the promise behind the rule: there, nothing is judged.
pub fn refused(group: GroupId, error: &StreamError, is_of_the_dead: bool) -> Result<(), Violation> {
    let is_known = matches!(
        error,
        StreamError::View { .. }
            | StreamError::Frozen
            | StreamError::OutOfMemory { .. }
            | StreamError::Diverged { .. } // number 11's
    );
    if is_known || is_of_the_dead || cfg!(feature = "holes") {
        return Ok(());
    }
    Err(Violation::of(group, 22, format_args!("a stream broke: {error}")))
}
