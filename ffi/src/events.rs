//! Events as C programs get them.

use std::ffi::{c_char, c_void};
use std::net::SocketAddr;
use std::ptr;

use kv_client::{Event, Events, ServerId};

use crate::error::c_text;
use crate::options::Argument;

/// kvc_event.kind: a server has welcomed a connection.
pub const KVC_EVENT_CONNECTION_OPENED: u32 = 1;
/// kvc_event.kind: a connection to a server has ended, or could not be opened; the words say why.
pub const KVC_EVENT_CONNECTION_LOST: u32 = 2;
/// kvc_event.kind: the library has closed a connection that it needs no more.
pub const KVC_EVENT_CONNECTION_CLOSED: u32 = 3;
/// kvc_event.kind: a newer map of the cluster was taken.
pub const KVC_EVENT_MAP_CHANGED: u32 = 4;
/// kvc_event.kind: by the newer map a server is up, or has started anew. The first map reports each server.
pub const KVC_EVENT_SERVER_UP: u32 = 5;
/// kvc_event.kind: by the newer map a server is not up. The first map reports each server.
pub const KVC_EVENT_SERVER_DOWN: u32 = 6;
/// kvc_event.kind: a write has ended KVC_IN_DOUBT.
pub const KVC_EVENT_IN_DOUBT: u32 = 7;
/// kvc_event.kind: a session with a shard was begun anew: the servers had forgotten it, or another process uses its id.
pub const KVC_EVENT_SESSION_BEGUN: u32 = 8;

/// kvc_event.server: the event is of no server in particular.
pub const KVC_NO_SERVER: u32 = 0xffff_ffff;

/// Something that happened to a handle or a queue. The library fills it. A later library may have more fields and more
/// kinds: a program looks at the fields that its header knows, and ignores kinds that it does not know.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_event {
    /// sizeof(kvc_event) of the library.
    pub size: u32,
    /// KVC_EVENT_CONNECTION_OPENED and so on.
    pub kind: u32,
    /// The server's number in the ring, or KVC_NO_SERVER.
    pub server: u32,
    /// Zero.
    pub reserved: u32,
    /// Of KVC_EVENT_MAP_CHANGED the revision of the map; else zero.
    pub revision: u64,
    /// The server's address, or that from which the map came, as "host:port"; NULL if there is none.
    pub address: *const c_char,
    /// The event in one line of words, without a line end. Never NULL.
    pub words: *const c_char,
}

/// Receives the events of a handle and its queues. Each of the handle's connections_per_shard and each queue has
/// connections and a map of its own, and reports its own events.
///
/// It is called within calls on the handle and its queues, never at another time: on whichever thread is in a call,
/// perhaps on several at once, and under the handle's lock, so that other calls wait until it returns. It must
/// return: not by longjmp or a C++ exception, and not a second time in the child of a fork. It must not call the
/// library: a call on a handle or a queue from within it ends KVC_INVALID, but for kvc_interrupt() and
/// kvc_resume(). `event` and its texts live until it returns.
pub type kvc_event_fn =
    Option<unsafe extern "C" fn(event_context: *mut c_void, event: *const kvc_event)>;

/// The parts of an event that differ by its kind.
struct Parts {
    kind: u32,
    server: Option<ServerId>,
    revision: u64,
    address: Option<SocketAddr>,
    words: String,
}

/// Events that call a function of the program.
pub(crate) fn events(to: kvc_event_fn, context: *mut c_void) -> Events {
    let Some(to) = to else { return Events::default() };
    let argument = Argument(context);
    Events::to(move |event| {
        let Argument(context) = &argument;
        let Some(parts) = parts(event) else { return };
        let words = c_text(parts.words);
        let address = parts.address.map(|address| c_text(address.to_string()));
        let event = kvc_event {
            size: u32::try_from(size_of::<kvc_event>()).unwrap_or(u32::MAX),
            kind: parts.kind,
            server: parts.server.map_or(KVC_NO_SERVER, |server| server.0.into()),
            reserved: 0,
            revision: parts.revision,
            address: address.as_ref().map_or(ptr::null(), |address| address.as_ptr()),
            words: words.as_ptr(),
        };
        // SAFETY: the program passes a function of this type, and lives with its argument.
        unsafe { to(*context, &raw const event) };
    })
}

/// The parts of an event; `None` of a kind that this interface does not know.
fn parts(event: &Event<'_>) -> Option<Parts> {
    let of = |kind, server, address, words| Parts { kind, server, revision: 0, address, words };
    let at = |address: Option<SocketAddr>| match address {
        Some(address) => format!(" at {address}"),
        None => String::new(),
    };
    Some(match *event {
        Event::ConnectionOpened { server, address } => {
            let words = format!("connected to server {server} at {address}");
            of(KVC_EVENT_CONNECTION_OPENED, Some(server), Some(address), words)
        }
        Event::ConnectionLost { server, address, why } => {
            let words = format!("connection to server {server} at {address} lost: {why}");
            of(KVC_EVENT_CONNECTION_LOST, Some(server), Some(address), words)
        }
        Event::ConnectionClosed { server, address, why } => {
            let words = format!("connection to server {server} at {address} closed: {why}");
            of(KVC_EVENT_CONNECTION_CLOSED, Some(server), Some(address), words)
        }
        Event::MapChanged { revision, source } => {
            let words = format!("map {revision} taken from {source}");
            let parts = of(KVC_EVENT_MAP_CHANGED, None, Some(source), words);
            Parts { revision: revision.0, ..parts }
        }
        Event::ServerUp { server, address } => {
            let words = format!("server {server}{} is up", at(address));
            of(KVC_EVENT_SERVER_UP, Some(server), address, words)
        }
        Event::ServerDown { server, address, why } => {
            let words = format!("server {server}{} is not up: {why}", at(address));
            of(KVC_EVENT_SERVER_DOWN, Some(server), address, words)
        }
        Event::InDoubt { server, error } => of(KVC_EVENT_IN_DOUBT, server, None, error.to_string()),
        Event::SessionBegunAnew { why } => {
            of(KVC_EVENT_SESSION_BEGUN, None, None, format!("{why}; another session is begun"))
        }
        _ => return None,
    })
}
