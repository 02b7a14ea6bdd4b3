//! The clients' port: HELLO, then MAP and STATUS, as often as asked. Whoever has asked nothing for
//! longest gives room to those who come.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use kv_protocol::client_message::{
    Hello, Question, Refusal, Status, Welcome, opcode, write_map_answer, write_status_answer,
};
use kv_protocol::frame::FrameRules;
use kv_protocol::limits::{
    HELLO_DEADLINE, MAX_COORDINATOR_CONNECTIONS, MAX_ERRORS_IN_A_ROW, MAX_HELLO_BODY,
    MAX_VALUE_BYTES,
};
use kv_protocol::{ClusterId, DecodeError, Time};
use tokio::net::{TcpListener, TcpStream};

use crate::clock;
use crate::connection::{Connection, ConnectionError, OwnedFrame};
use crate::driver::Driver;
use crate::listener::{self, Slots, WaitingRoom};
use crate::logs::Refusals;

/// Questions have no body, so this port never takes more than a hello.
const RULES: FrameRules = FrameRules::unchecked(MAX_HELLO_BODY);

/// An answer to STATUS may be this old. Slow readers of one answer then share its bytes, which
/// bounds what they can make the coordinator hold.
const STATUS_AGE: Duration = Duration::from_millis(50);

/// Connections that are told BUSY at once; one more is closed without a word.
const MAX_REFUSALS_AT_ONCE: usize = 64;

/// Opcodes from here on belong to the servers' and coordinator's own connections.
const FIRST_FOREIGN_OPCODE: u8 = 0x40;

/// Serves the port for ever.
pub(crate) async fn serve(driver: Rc<Driver>, listener: TcpListener) {
    let refusals = Rc::new(Refusals::new("clients"));
    let most = MAX_COORDINATOR_CONNECTIONS.min(driver.descriptors / 2);
    let slots = Slots::new(most);
    // Idle connections leave a part of the slots to those that ask.
    let idle = WaitingRoom::new(most - most / 4);
    let busy_slots = Slots::new(MAX_REFUSALS_AT_ONCE);
    let answers = Rc::new(Answers::default());
    let accepted = Rc::clone(&refusals);
    listener::accept(listener, accepted, move |stream| {
        let (driver, refusals) = (Rc::clone(&driver), Rc::clone(&refusals));
        if let Some(slot) = slots.take() {
            let (answers, idle) = (Rc::clone(&answers), Rc::clone(&idle));
            tokio::task::spawn_local(async move {
                converse(driver, &answers, &idle, stream, &refusals).await;
                drop(slot);
            });
        } else if let Some(slot) = busy_slots.take() {
            tokio::task::spawn_local(async move {
                let mut connection = Connection::new(stream, RULES);
                let reason = "the coordinator serves as many connections as it may";
                refusals.note(connection.peer(), reason);
                refuse(&mut connection, Status::Busy, reason).await;
                connection.end().await;
                drop(slot);
            });
        }
    })
    .await;
}

async fn refuse(connection: &mut Connection, status: Status, reason: &str) {
    let mut bytes = Vec::new();
    Refusal { status, reason }.write(&mut bytes);
    let _ = connection.send(&bytes).await;
}

async fn converse(
    driver: Rc<Driver>,
    answers: &Answers,
    idle: &Rc<WaitingRoom>,
    stream: TcpStream,
    refusals: &Refusals,
) {
    let mut connection = Connection::new(stream, RULES);
    match answer_all(&driver, answers, idle, &mut connection).await {
        Ok(()) => {}
        Err(End::Connection(ConnectionError::Io(_))) => {}
        Err(End::Connection(error)) => {
            refusals.note(connection.peer(), &error);
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
            refusals.note(connection.peer(), &reason);
            refuse(&mut connection, status, &reason).await;
            connection.end().await;
        }
    }
}

/// Why a client is not served any more.
enum End {
    Connection(ConnectionError),
    Refused(Status, String),
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> End {
        End::Connection(error)
    }
}

async fn answer_all(
    driver: &Driver,
    answers: &Answers,
    idle: &Rc<WaitingRoom>,
    connection: &mut Connection,
) -> Result<(), End> {
    let hello = next_frame(connection, idle, Some(HELLO_DEADLINE)).await?;
    let Some(frame) = hello else { return Ok(()) };
    let welcome = greet(driver, &frame).map_err(|(status, reason)| End::Refused(status, reason))?;
    connection.send(&welcome).await?;
    let mut errors = 0;
    while let Some(frame) = next_frame(connection, idle, None).await? {
        match Question::read(frame.opcode, &frame.body) {
            Ok(question) => {
                errors = 0;
                connection.send(&answers.to(driver, question)).await?;
            }
            Err(error) if frame.opcode >= FIRST_FOREIGN_OPCODE || frame.opcode <= opcode::ERROR => {
                return Err(End::Refused(status_of(&error), error.to_string()));
            }
            Err(error) => {
                errors += 1;
                if errors >= MAX_ERRORS_IN_A_ROW {
                    let reason = format!("{errors} refused requests in a row; the last: {error}");
                    return Err(End::Refused(status_of(&error), reason));
                }
                refuse(connection, status_of(&error), &error.to_string()).await;
            }
        }
    }
    Ok(())
}

/// The next frame; `None` at the end, and when this connection has to give room to others.
async fn next_frame(
    connection: &mut Connection,
    idle: &Rc<WaitingRoom>,
    patience: Option<Duration>,
) -> Result<Option<OwnedFrame>, ConnectionError> {
    let place = idle.enter();
    tokio::select! {
        biased;
        frame = connection.next_frame(patience) => frame,
        () = place.must_go() => Ok(None),
    }
}

fn status_of(error: &DecodeError) -> Status {
    match error {
        DecodeError::UnknownOpcode { .. } => Status::Unsupported,
        _ => Status::Invalid,
    }
}

fn greet(driver: &Driver, frame: &OwnedFrame) -> Result<Vec<u8>, (Status, String)> {
    if frame.opcode != opcode::HELLO {
        let reason = format!("opcode {:#04x} before HELLO", frame.opcode);
        return Err((Status::Unsupported, reason));
    }
    let hello = Hello::read(&frame.body).map_err(|error| (Status::Invalid, error.to_string()))?;
    let cluster = driver.cluster();
    let config = cluster.config();
    if hello.cluster != ClusterId::default() && hello.cluster != config.cluster {
        let reason = format!("this is cluster {}, not {}", config.cluster, hello.cluster);
        return Err((Status::Invalid, reason));
    }
    let mut bytes = Vec::new();
    Welcome {
        cluster: config.cluster,
        server: None,
        servers: cluster.count(),
        shards: config.shards,
        max_value: u32::try_from(MAX_VALUE_BYTES).expect("16 MiB fit 32 bits"),
        starts: Default::default(),
    }
    .write(&mut bytes);
    Ok(bytes)
}

/// The newest answers, shared by all who ask.
#[derive(Debug, Default)]
struct Answers {
    map: RefCell<Option<Kept>>,
    status: RefCell<Option<Kept>>,
}

/// An answer, and what it was made from.
#[derive(Debug)]
struct Kept {
    revision: u64,
    at: Time,
    bytes: Rc<Vec<u8>>,
}

impl Answers {
    fn to(&self, driver: &Driver, question: Question) -> Rc<Vec<u8>> {
        match question {
            Question::Map => self.map(driver),
            Question::Status => self.status(driver),
        }
    }

    fn map(&self, driver: &Driver) -> Rc<Vec<u8>> {
        let cluster = driver.cluster();
        Kept::renew(&self.map, cluster.revision(), Duration::MAX, |_, bytes| {
            write_map_answer(bytes, &cluster.map());
        })
    }

    fn status(&self, driver: &Driver) -> Rc<Vec<u8>> {
        let cluster = driver.cluster();
        Kept::renew(&self.status, cluster.revision(), STATUS_AGE, |now, bytes| {
            let status = cluster.status(now, &driver.hosts);
            let json = serde_json::to_string(&status)
                .expect("a status is made of numbers and texts alone");
            write_status_answer(bytes, &json);
        })
    }
}

impl Kept {
    /// The bytes kept, if they are of this revision and no older than `age`; else new ones.
    fn renew(
        kept: &RefCell<Option<Kept>>,
        revision: u64,
        age: Duration,
        write: impl FnOnce(Time, &mut Vec<u8>),
    ) -> Rc<Vec<u8>> {
        let now = clock::now();
        let mut kept = kept.borrow_mut();
        if let Some(kept) = &*kept
            && kept.revision == revision
            && now.since(kept.at) < age
        {
            return Rc::clone(&kept.bytes);
        }
        let mut bytes = Vec::new();
        write(now, &mut bytes);
        let bytes = Rc::new(bytes);
        *kept = Some(Kept { revision, at: now, bytes: Rc::clone(&bytes) });
        bytes
    }
}
