//! The throughput of a TCP stream over this machine's loopback, as a reference for the rate of a copy.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// The number of bytes of one write.
const PIECE: usize = 64 << 10;

/// Sends this many bytes over a TCP connection on the loopback. Returns the duration.
pub(super) fn stream(bytes: u64) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on the loopback")?;
    let mut sender =
        TcpStream::connect(listener.local_addr()?).context("connect over the loopback")?;
    let (mut receiver, _) = listener.accept()?;
    let start = Instant::now();
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let piece = vec![7; PIECE];
        let mut left = bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            sender.write_all(&piece[..now])?;
            left -= now as u64;
        }
        Ok(())
    });
    let (mut piece, mut read) = (vec![0; PIECE], 0);
    while read < bytes {
        let now = receiver.read(&mut piece).context("read from the loopback")?;
        anyhow::ensure!(now > 0, "the loopback ended after {read} of {bytes} bytes");
        read += now as u64;
    }
    let took = start.elapsed();
    writer.join().expect("a thread does not panic").context("write to the loopback")?;
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives() {
        assert!(stream(3 * PIECE as u64 + 1).unwrap() > Duration::ZERO);
    }
}
