//! 29: every response answers a request that came on its connection, and each request gets at most one.

use kv_protocol::ids::RequestId;

use crate::invariants::Violation;
use crate::network::ConnectionNumber;

/// Returns the violation of a response without a request on its connection.
pub fn unasked(to: ConnectionNumber, request: RequestId) -> Violation {
    let words = format!(
        "a response to request {request} is sent on connection {}, which has no such request",
        to.0
    );
    Violation::new(29, words)
}
