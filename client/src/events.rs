//! Events of a client (connections, map, servers, sessions, writes in doubt), passed to a function of the program.
//!
//! ```text
//!   program's call -> engine -> an event occurs -> the program's function -> back to the engine
//!                     (locked)                       (must not call the client)
//! ```
//!
//! The function runs in the middle of a call; in a shared client, under a lock. A thread-local counter marks a thread
//! that runs such a function. A shared client rejects a call from that thread, because the call would deadlock.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use kv_protocol::ids::{MapRevision, ServerId};
use kv_protocol::map::{MapServer, ServerState};

use crate::address::Address;
use crate::error::Error;

/// An event of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection to a server has completed its handshake.
    ConnectionOpened {
        /// The server.
        server: ServerId,
        /// The address at which it accepts clients.
        address: Address,
    },
    /// A connection was lost or could not be opened.
    ConnectionLost {
        /// The server.
        server: ServerId,
        /// The address at which it accepts clients.
        address: Address,
        /// The reason, as text.
        why: &'a str,
    },
    /// The client has closed a connection that it no longer needs.
    ConnectionClosed {
        /// The server.
        server: ServerId,
        /// The address at which it accepts clients.
        address: Address,
        /// The reason, as text.
        why: &'a str,
    },
    /// A newer map was applied.
    MapChanged {
        /// The revision of the map.
        revision: MapRevision,
        /// The address from which the map was received.
        source: Address,
    },
    /// According to a newer map, a server has come up, or a new process has replaced its previous one. The first map
    /// reports every server that is up.
    ServerUp {
        /// The server.
        server: ServerId,
        /// The address of its clients port, if known.
        address: Option<SocketAddr>,
    },
    /// According to a newer map, a server that was up is down or starting. The first map reports every server that is
    /// not up.
    ServerDown {
        /// The server.
        server: ServerId,
        /// The previous or future address, if known.
        address: Option<SocketAddr>,
        /// The reason, as text.
        why: &'static str,
    },
    /// A write has ended in doubt.
    InDoubt {
        /// The server to which the write was last routed.
        server: Option<ServerId>,
        /// The result of the write, which includes the [`crate::Doubt`].
        error: &'a Error,
    },
    /// A new session with a shard has replaced the previous one.
    SessionBegunAnew {
        /// The reason, as text.
        why: &'a str,
    },
}

type Take = dyn Fn(&Event<'_>) + Send + Sync;

/// The function that receives a client's events; none by default. The function runs within calls of the client, on the
/// threads of the calls. A shared client runs it under a lock, and possibly on several threads at once. It must be
/// quick and must not call the client. A shared client rejects such a call ([`Error::WithinCallback`]).
#[derive(Clone, Default)]
pub struct Events(Option<Arc<Take>>);

impl Events {
    /// Creates a receiver that passes each event to `take`.
    pub fn to(take: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Events {
        Events(Some(Arc::new(take)))
    }

    /// Returns whether a function is set.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        if let Some(take) = &self.0 {
            let _within = Within::enter();
            take(event);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "Events(to a function)" } else { "Events(nowhere)" })
    }
}

thread_local! {
    /// The number of callbacks that this thread is running for clients.
    static RUNNING: Cell<u32> = const { Cell::new(0) };
}

/// A guard that marks this thread as running a callback.
pub(crate) struct Within(());

impl Within {
    pub(crate) fn enter() -> Within {
        RUNNING.set(RUNNING.get() + 1);
        Within(())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        RUNNING.set(RUNNING.get() - 1);
    }
}

/// Returns whether this thread is running a callback of a client: its log function or its event function.
pub fn is_in_callback() -> bool {
    RUNNING.get() > 0
}

/// Reports the servers whose state or process differs in a newer map.
pub(crate) fn tell_changes(events: &Events, before: &[MapServer], now: &[MapServer]) {
    for server in now {
        let known = before.get(usize::from(server.id.0));
        let (id, address) = (server.id, server.clients);
        let is_up = server.state == ServerState::Up;
        let was_up = known.map(|known| known.state == ServerState::Up);
        let is_same = known.is_some_and(|known| known.incarnation == server.incarnation);
        if is_up && !(was_up == Some(true) && is_same) {
            events.tell(&Event::ServerUp { server: id, address });
        } else if !is_up && was_up != Some(false) {
            let why = match server.state {
                ServerState::Starting => "it is starting",
                ServerState::Up | ServerState::Down => "the coordinator reports the server as down",
            };
            events.tell(&Event::ServerDown { server: id, address, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::ids::Incarnation;
    use std::sync::Mutex;

    fn server(id: u16, incarnation: u64, state: ServerState) -> MapServer {
        let clients = Some(SocketAddr::from(([127, 0, 0, 1], 4_000 + id)));
        MapServer { id: ServerId(id), incarnation: Incarnation(incarnation), state, clients }
    }

    #[test]
    fn each_server_is_reported_once_and_then_only_when_it_changes() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&told);
        let events = Events::to(move |event| {
            assert!(is_in_callback());
            let word = match event {
                Event::ServerUp { server, .. } => format!("{server} up"),
                Event::ServerDown { server, .. } => format!("{server} down"),
                other => panic!("{other:?}"),
            };
            to.lock().unwrap().push(word);
        });
        use ServerState::{Down, Starting, Up};
        let maps = [
            [server(0, 1, Up), server(1, 2, Starting)],
            [server(0, 1, Up), server(1, 2, Up)],
            [server(0, 1, Down), server(1, 2, Up)],
            [server(0, 3, Starting), server(1, 4, Up)],
        ];
        let expected: [&[&str]; 4] = [&["0 up", "1 down"], &["1 up"], &["0 down"], &["1 up"]];
        let mut before: &[MapServer] = &[];
        for (map, expected) in maps.iter().zip(expected) {
            tell_changes(&events, before, map);
            assert_eq!(std::mem::take(&mut *told.lock().unwrap()), expected);
            before = map;
        }
        assert!(!is_in_callback());
    }
}
