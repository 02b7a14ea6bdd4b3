//! Listening and accepting: bounded, and alive when descriptors run out.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::Failure;
use crate::logs::Refusals;

/// How long accepting pauses when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on a port of this machine.
///
/// # Errors
/// The port, the address, and what to do about it.
pub(crate) async fn bind(
    address: IpAddr,
    port: u16,
    purpose: &str,
    flag: &str,
) -> Result<TcpListener, Failure> {
    TcpListener::bind(SocketAddr::new(address, port)).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program has it; choose another, or 0",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges",
            std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "choose another port, or 0 for a free one",
        };
        Failure::Failed(format!(
            "listen on {address}:{port} for {purpose} ({flag}): {error}; {advice}"
        ))
    })
}

/// A place among a bounded number of connections; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    taken: Rc<Cell<usize>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
    }
}

/// How many connections a port serves at once.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    taken: Rc<Cell<usize>>,
    most: usize,
}

impl Slots {
    /// At most `most`.
    pub(crate) fn new(most: usize) -> Slots {
        Slots { taken: Rc::default(), most }
    }

    /// One of them, if one is free.
    pub(crate) fn take(&self) -> Option<Slot> {
        if self.taken.get() >= self.most {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Slot { taken: Rc::clone(&self.taken) })
    }
}

/// Accepts for ever and hands every connection to `serve`, which must not block.
pub(crate) async fn accept(
    listener: TcpListener,
    refusals: Rc<Refusals>,
    serve: impl Fn(TcpStream),
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream),
            Err(error) => {
                // Most often no descriptor is left. The links that stand live on; those that end
                // give theirs back.
                refusals.note("anyone", format_args!("accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_and_come_back() {
        let slots = Slots::new(2);
        let first = slots.take();
        let second = slots.take();
        assert!(first.is_some() && second.is_some());
        assert!(slots.take().is_none());
        drop(first);
        assert!(slots.take().is_some());
    }
}
