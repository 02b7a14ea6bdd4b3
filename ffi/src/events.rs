//! Events in their C form.

use std::ffi::{c_char, c_void};
use std::net::SocketAddr;
use std::ptr;

use kv_client::{Event, Events, ServerId};

use crate::error::c_text;
use crate::options::Argument;

/// kvc_event.kind: a connection to a server has completed its handshake.
pub const KVC_EVENT_CONNECTION_OPENED: u32 = 1;
/// kvc_event.kind: a connection to a server was lost or could not be opened; words has the reason.
pub const KVC_EVENT_CONNECTION_LOST: u32 = 2;
/// kvc_event.kind: the library has closed a connection that it no longer needs.
pub const KVC_EVENT_CONNECTION_CLOSED: u32 = 3;
/// kvc_event.kind: a newer map of the cluster was applied.
pub const KVC_EVENT_MAP_CHANGED: u32 = 4;
/// kvc_event.kind: a newly applied map shows that a server has come up, or that a new process has replaced it. The
/// first map produces one UP or DOWN event for each server.
pub const KVC_EVENT_SERVER_UP: u32 = 5;
/// kvc_event.kind: a newly applied map shows a server that was up as starting or down. The first map produces one UP or
/// DOWN event for each server.
pub const KVC_EVENT_SERVER_DOWN: u32 = 6;
/// kvc_event.kind: a write has ended with KVC_IN_DOUBT.
pub const KVC_EVENT_IN_DOUBT: u32 = 7;
/// kvc_event.kind: a new session with a shard has begun, because the servers had expired the earlier one or another
/// process uses its client id.
pub const KVC_EVENT_SESSION_BEGUN: u32 = 8;

/// kvc_event.server: the event does not concern one server.
pub const KVC_NO_SERVER: u32 = 0xffff_ffff;

/// An event of a handle or a queue, filled in by the library. A later library may add fields and kinds. A program reads
/// the fields that its header has, and ignores unknown kinds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kvc_event {
    /// sizeof(kvc_event) of the library.
    pub size: u32,
    /// One of the KVC_EVENT_ constants.
    pub kind: u32,
    /// The server's number in the ring, or KVC_NO_SERVER.
    pub server: u32,
    /// Zero.
    pub reserved: u32,
    /// The revision of the map for KVC_EVENT_MAP_CHANGED; else zero.
    pub revision: u64,
    /// The address of the server, or of the sender of the map, as "host:port", or as "unix:PATH" if it was reached by its
    /// Unix-domain socket; NULL if there is none.
    pub address: *const c_char,
    /// The event as one line of text, without a line end. Never NULL.
    pub words: *const c_char,
}

/// Receives the events of a handle and its queues. The handle has connections_per_shard separate sets of connections,
/// and each queue has one. Every set has its own map and reports its own events, so a change may be reported several
/// times.
///
/// The library calls this function only within calls on the handle and its queues, on the thread that is in the call,
/// possibly on several threads at once. A lock of the handle is held, so other calls may wait until the function
/// returns. The function must return normally, without longjmp and without a C++ exception. If it forks, it must not
/// return in the child. On handles and queues, it may call only kvc_interrupt() and kvc_resume(); any other call
/// returns KVC_INVALID. `event` and its texts are valid until the function returns.
pub type kvc_event_fn =
    Option<unsafe extern "C" fn(event_context: *mut c_void, event: *const kvc_event)>;

/// The parts of an event that depend on its kind.
struct Parts {
    kind: u32,
    server: Option<ServerId>,
    revision: u64,
    address: Option<String>,
    words: String,
}

/// Creates the events of a client, which call a function of the program; without a function, they are discarded.
pub(crate) fn events(to: kvc_event_fn, context: *mut c_void) -> Events {
    let Some(to) = to else { return Events::default() };
    let argument = Argument(context);
    Events::to(move |event| {
        let Argument(context) = &argument;
        let Some(parts) = parts(event) else { return };
        let words = c_text(parts.words);
        let address = parts.address.map(c_text);
        let event = kvc_event {
            size: u32::try_from(size_of::<kvc_event>()).unwrap_or(u32::MAX),
            kind: parts.kind,
            server: parts.server.map_or(KVC_NO_SERVER, |server| server.0.into()),
            reserved: 0,
            revision: parts.revision,
            address: address.as_ref().map_or(ptr::null(), |address| address.as_ptr()),
            words: words.as_ptr(),
        };
        // SAFETY: the program passes a function of this type, which stays valid together with its argument.
        unsafe { to(*context, &raw const event) };
    })
}

/// Returns the parts of an event, or `None` if this interface has no such kind of event.
fn parts(event: &Event<'_>) -> Option<Parts> {
    let of = |kind, server: Option<&ServerId>, address: Option<String>, words| Parts {
        kind,
        server: server.copied(),
        revision: 0,
        address,
        words,
    };
    let at = |address: &Option<SocketAddr>| match address {
        Some(address) => format!(" at {address}"),
        None => String::new(),
    };
    let shown = |address: &Option<SocketAddr>| address.map(|address| address.to_string());
    Some(match event {
        Event::ConnectionOpened { server, address } => {
            let words = format!("connected to server {server} at {address}");
            of(KVC_EVENT_CONNECTION_OPENED, Some(server), Some(address.to_string()), words)
        }
        Event::ConnectionLost { server, address, why } => {
            let words = format!("connection to server {server} at {address} lost: {why}");
            of(KVC_EVENT_CONNECTION_LOST, Some(server), Some(address.to_string()), words)
        }
        Event::ConnectionClosed { server, address, why } => {
            let words = format!("connection to server {server} at {address} closed: {why}");
            of(KVC_EVENT_CONNECTION_CLOSED, Some(server), Some(address.to_string()), words)
        }
        Event::MapChanged { revision, source } => {
            let words = format!("map {revision} received from {source}");
            let parts = of(KVC_EVENT_MAP_CHANGED, None, Some(source.to_string()), words);
            Parts { revision: revision.0, ..parts }
        }
        Event::ServerUp { server, address } => {
            let words = format!("server {server}{} is up", at(address));
            of(KVC_EVENT_SERVER_UP, Some(server), shown(address), words)
        }
        Event::ServerDown { server, address, why } => {
            let words = format!("server {server}{} is not up: {why}", at(address));
            of(KVC_EVENT_SERVER_DOWN, Some(server), shown(address), words)
        }
        Event::InDoubt { server, error } => {
            of(KVC_EVENT_IN_DOUBT, server.as_ref(), None, error.to_string())
        }
        Event::SessionBegunAnew { why } => {
            of(KVC_EVENT_SESSION_BEGUN, None, None, format!("{why}; a new session begins"))
        }
        _ => return None,
    })
}
