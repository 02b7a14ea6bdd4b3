//! Nonces of handshakes, from the system's random number generator.

use std::io;

use kv_protocol::key::Nonce;

/// Draws a nonce.
///
/// # Errors
/// The error of the system's random number generator.
pub(crate) fn draw() -> io::Result<Nonce> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| io::Error::other(format!("no random number for a handshake: {error}")))?;
    Ok(Nonce(u128::from_ne_bytes(bytes)))
}
