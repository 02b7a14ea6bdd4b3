//! Random ids and nonces.

use kv_protocol::key::Nonce;

/// Returns a random number that is never zero, because zero means "none" in ids.
///
/// # Errors
/// The system provides no random bytes; the message has the reason.
pub(crate) fn nonzero_u64() -> Result<u64, String> {
    loop {
        let drawn = getrandom::u64()
            .map_err(|error| format!("cannot get a random number from the system: {error}"))?;
        match drawn {
            0 => {}
            number => return Ok(number),
        }
    }
}

/// Returns a random number like [`nonzero_u64`], with 128 bits.
///
/// # Errors
/// As for [`nonzero_u64`].
pub(crate) fn nonzero_u128() -> Result<u128, String> {
    Ok((u128::from(nonzero_u64()?) << 64) | u128::from(nonzero_u64()?))
}

/// Returns a nonce for a handshake.
///
/// # Errors
/// The system provides no random bytes; the message has the reason.
pub(crate) fn nonce() -> Result<Nonce, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| format!("cannot get a random number for a handshake: {error}"))?;
    Ok(Nonce(u128::from_ne_bytes(bytes)))
}
