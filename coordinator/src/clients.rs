//! The clients' port: HELLO, then any number of MAP and STATUS requests. A separate thread serves it with a lower
//! priority than the driver's thread. So clients do not delay a failover, however many they are.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kv_protocol::client_message::{
    Hello, Question, Refusal, Status, Welcome, opcode, write_status_response,
};
use kv_protocol::frame::FrameRules;
use kv_protocol::limits::{
    HELLO_DEADLINE, MAX_COORDINATOR_CONNECTIONS, MAX_ERRORS_IN_A_ROW, MAX_HELLO_BODY,
    MAX_VALUE_BYTES,
};
use kv_protocol::status::{AlarmKind, AlarmStatus, ClusterStatus};
use kv_protocol::{ClusterId, DecodeError, Time};
use tokio::net::{TcpListener, TcpStream};

use crate::clock;
use crate::connection::{Connection, ConnectionError, OwnedFrame};
use crate::guests::{Guest, Guests};
use crate::listener::{self, Slots};
use crate::logs::Refusals;
use crate::snapshot::{Shape, Snapshots};

/// The rules for frames: requests have no body, so HELLO is the longest frame.
const RULES: FrameRules = FrameRules::unchecked(MAX_HELLO_BODY);

/// The maximum number of concurrent BUSY responses; further connections are closed without a response.
const MAX_REFUSALS_AT_ONCE: usize = 64;

/// The first opcode of the protocol between servers and the coordinator.
const FIRST_FOREIGN_OPCODE: u8 = 0x40;

/// The nice(2) value of the thread, which gives the driver's thread priority.
const NICE: i32 = 5;

/// The duration for which the status reports that connections were closed to make room for others.
const CROWDED_SHOWN: Duration = Duration::from_secs(60);

/// Starts the thread that serves the port until the process ends. It admits at most `descriptors` connections; BUSY
/// responses use a few more.
///
/// # Errors
/// The system cannot create a thread, or the descriptors of the runtime.
pub(crate) fn start(
    snapshots: Arc<Snapshots>,
    listener: std::net::TcpListener,
    descriptors: usize,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("clients".to_owned());
    let spawned = thread.spawn(move || {
        let own = Some(rustix::thread::gettid());
        if let Err(error) = rustix::process::setpriority_process(own, NICE) {
            tracing::debug!("cannot lower the priority of the clients thread: {error}");
        }
        tokio::task::LocalSet::new().block_on(&runtime, async {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(snapshots, listener, descriptors).await,
                Err(error) => tracing::error!("cannot serve the clients port: {error}"),
            }
        });
    });
    spawned.map(drop)
}

async fn serve(snapshots: Arc<Snapshots>, listener: TcpListener, descriptors: usize) {
    let port = Rc::new(Port {
        snapshots,
        guests: Guests::new(MAX_COORDINATOR_CONNECTIONS.min(descriptors)),
        refusals: Rc::new(Refusals::new("clients")),
        status: RefCell::default(),
        crowded: RefCell::default(),
    });
    let busy_slots = Slots::new(MAX_REFUSALS_AT_ONCE);
    listener::accept(listener, Rc::clone(&port.refusals), move |stream, address| {
        let port = Rc::clone(&port);
        let guest = port.guests.admit(address.ip());
        port.note_crowd(address.ip());
        if let Some(guest) = guest {
            tokio::task::spawn_local(async move { converse(&port, &guest, stream).await });
        } else if let Some(slot) = busy_slots.take() {
            tokio::task::spawn_local(async move {
                let mut connection = Connection::new(stream, RULES);
                let reason = "the coordinator has reached its connection limit";
                port.refusals.note(connection.peer(), reason);
                refuse(&mut connection, Status::Busy, reason).await;
                connection.end().await;
                drop(slot);
            });
        }
    })
    .await;
}

/// The state that all connections of the port share.
struct Port {
    snapshots: Arc<Snapshots>,
    guests: Rc<Guests>,
    refusals: Rc<Refusals>,
    /// The last STATUS response. Slow readers share its bytes, which bounds the memory that they can occupy.
    status: RefCell<Option<(Time, Rc<Vec<u8>>)>>,
    crowded: RefCell<Crowded>,
}

/// Idle connections that were closed to make room for others.
#[derive(Debug, Default)]
struct Crowded {
    closed: u64,
    /// The current crowding: the time of its first close, the time until which the status reports it, and the address
    /// of the last connection that caused a close.
    seen: Option<(Time, Time, IpAddr)>,
}

impl Port {
    /// Records, for the status, whether the newest connection, from this address, has caused an idle one to be closed.
    fn note_crowd(&self, address: IpAddr) {
        let mut crowded = self.crowded.borrow_mut();
        let closed = self.guests.closed_for_others();
        if crowded.closed != closed {
            crowded.closed = closed;
            let now = clock::now();
            let since = match crowded.seen {
                Some((since, until, _)) if now < until => since,
                _ => now,
            };
            crowded.seen = Some((since, now + CROWDED_SHOWN, address));
            self.refusals.note(
                address,
                "the connection limit is reached; an idle connection was closed to admit a new \
                                one",
            );
        }
    }

    fn alarm(&self, now: Time) -> Option<AlarmStatus> {
        let crowded = self.crowded.borrow();
        let (since, _, address) = crowded.seen.filter(|(_, until, _)| now < *until)?;
        let closed = crowded.closed;
        let text = format!(
            "the clients port of the coordinator has reached its connection limit: {closed} idle connections \
             were closed to admit others so far, the last for one from {address}; find the program that opens \
             too many connections"
        );
        let age_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        Some(AlarmStatus { kind: AlarmKind::Crowded, server: None, group: None, text, age_ms })
    }

    async fn respond(&self, question: Question) -> Response {
        match question {
            Question::Map => Response::Map(self.snapshots.map()),
            Question::Status => Response::Status(self.status().await),
        }
    }

    async fn status(&self) -> Rc<Vec<u8>> {
        let shown = self.snapshots.status().await;
        if let Some((at, bytes)) = &*self.status.borrow()
            && *at == shown.at
        {
            return Rc::clone(bytes);
        }
        let mut status = ClusterStatus::clone(&shown.status);
        status.alarms.extend(self.alarm(shown.at));
        let json = serde_json::to_string(&status).expect("a status contains only numbers and text");
        let mut bytes = Vec::new();
        write_status_response(&mut bytes, &json);
        let bytes = Rc::new(bytes);
        *self.status.borrow_mut() = Some((shown.at, Rc::clone(&bytes)));
        bytes
    }
}

/// The bytes of a response.
enum Response {
    Map(Arc<Vec<u8>>),
    Status(Rc<Vec<u8>>),
}

impl Response {
    fn bytes(&self) -> &[u8] {
        match self {
            Response::Map(bytes) => bytes,
            Response::Status(bytes) => bytes,
        }
    }
}

async fn refuse(connection: &mut Connection, status: Status, reason: &str) {
    let mut bytes = Vec::new();
    Refusal { status, reason }.write(&mut bytes);
    let _ = connection.send(&bytes).await;
}

async fn converse(port: &Port, guest: &Guest, stream: TcpStream) {
    let mut connection = Connection::new(stream, RULES);
    match respond_to_all(port, guest, &mut connection).await {
        Ok(()) => {}
        Err(End::Connection(ConnectionError::Io(_))) => {}
        Err(End::Connection(error)) => {
            port.refusals.note(connection.peer(), &error);
            let status = match &error {
                ConnectionError::Frame(kv_protocol::FrameError::UnsupportedVersion { .. }) => {
                    Status::Unsupported
                }
                _ => Status::Invalid,
            };
            refuse(&mut connection, status, &error.to_string()).await;
            connection.end().await;
        }
        Err(End::Refused(status, reason)) => {
            port.refusals.note(connection.peer(), &reason);
            refuse(&mut connection, status, &reason).await;
            connection.end().await;
        }
    }
}

/// The reason for ending a client's connection.
enum End {
    Connection(ConnectionError),
    Refused(Status, String),
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> End {
        End::Connection(error)
    }
}

async fn respond_to_all(
    port: &Port,
    guest: &Guest,
    connection: &mut Connection,
) -> Result<(), End> {
    let hello = next_frame(connection, guest, Some(HELLO_DEADLINE)).await?;
    let Some(frame) = hello else { return Ok(()) };
    let welcome = welcome_to(port.snapshots.shape, &frame)
        .map_err(|(status, reason)| End::Refused(status, reason))?;
    connection.send(&welcome).await?;
    let mut errors = 0;
    while let Some(frame) = next_frame(connection, guest, None).await? {
        match Question::read(frame.opcode, &frame.body) {
            Ok(question) => {
                errors = 0;
                guest.take_turn(question).await;
                connection.send(port.respond(question).await.bytes()).await?;
            }
            Err(error) if frame.opcode >= FIRST_FOREIGN_OPCODE || frame.opcode <= opcode::ERROR => {
                return Err(End::Refused(status_of(&error), error.to_string()));
            }
            Err(error) => {
                errors += 1;
                if errors >= MAX_ERRORS_IN_A_ROW {
                    let reason = format!("{errors} rejected requests in a row; the last: {error}");
                    return Err(End::Refused(status_of(&error), reason));
                }
                refuse(connection, status_of(&error), &error.to_string()).await;
            }
        }
    }
    Ok(())
}

/// Returns the next frame, or `None` at the end of the stream or if this connection must make room for another.
async fn next_frame(
    connection: &mut Connection,
    guest: &Guest,
    timeout: Option<Duration>,
) -> Result<Option<OwnedFrame>, ConnectionError> {
    match guest.await_request(connection.next_frame(timeout)).await {
        Some(frame) => frame,
        None => Ok(None),
    }
}

fn status_of(error: &DecodeError) -> Status {
    match error {
        DecodeError::UnknownOpcode { .. } => Status::Unsupported,
        _ => Status::Invalid,
    }
}

fn welcome_to(shape: Shape, frame: &OwnedFrame) -> Result<Vec<u8>, (Status, String)> {
    if frame.opcode != opcode::HELLO {
        let reason = format!("opcode {:#04x} before HELLO", frame.opcode);
        return Err((Status::Unsupported, reason));
    }
    let hello = Hello::read(&frame.body).map_err(|error| (Status::Invalid, error.to_string()))?;
    if hello.cluster != ClusterId::default() && hello.cluster != shape.cluster {
        let reason = format!("this is cluster {}, not {}", shape.cluster, hello.cluster);
        return Err((Status::Invalid, reason));
    }
    let placement = shape.placement;
    hello.check_placement(placement).map_err(|(status, reason)| (status, reason.to_owned()))?;
    let mut bytes = Vec::new();
    Welcome {
        cluster: shape.cluster,
        server: None,
        servers: placement.servers(),
        shards: placement.shards(),
        max_value: u32::try_from(MAX_VALUE_BYTES).expect("16 MiB fit 32 bits"),
        starts: Default::default(),
        version: hello.agreed_version(),
    }
    .write(&mut bytes);
    Ok(bytes)
}
