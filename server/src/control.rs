//! The link to the coordinator: this server dials it, says who it is, and reports every 100 ms.
//!
//! ```text
//!   connect -> STARTED -> ADMITTED -> HEARTBEAT, HEARTBEAT, ... (DRAIN-REQUEST once, on SIGTERM)
//!      ^                     | REFUSED: the first time the process ends, in words
//!      +---- back-off <------+ lost: the server goes on serving and dials again, for ever
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_protocol::control_message::{Admission, Heartbeat, OrdersHello, ServerMessage, Started};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::limits::{HEARTBEAT_INTERVAL, MAX_CONTROL_BODY, MAX_HEARTBEAT_REPLICAS};

use crate::fatal::Fatal;
use crate::operation::Node;
use crate::watch;

/// How long connecting, and each answer or send, may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first pause before the coordinator is dialled again; it doubles up to the last.
const REDIAL_FIRST: Duration = Duration::from_millis(10);
const REDIAL_LAST: Duration = Duration::from_secs(1);
/// How often the process's resident memory is asked for.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// A process that no coordinator has ever admitted is of use to nobody, and ends after this long.
const NEVER_ADMITTED: Duration = Duration::from_secs(30);

/// What the link is made with.
#[derive(Clone, Debug)]
pub(crate) struct LinkConfig {
    /// The coordinator's servers port.
    pub(crate) coordinator: SocketAddr,
    /// The address to tell; `None`: the one that the coordinator is reached from.
    pub(crate) advertise: Option<IpAddr>,
    pub(crate) clients_port: u16,
    pub(crate) servers_port: u16,
    pub(crate) coord_port: u16,
}

/// How a link ended.
enum Ended {
    Lost(io::Error),
    Refused(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Lost(error)
    }
}

/// Keeps the link for the life of the process.
pub(crate) fn run(node: &Arc<Node>, config: &LinkConfig) -> ! {
    let start = Instant::now();
    let coordinator = config.coordinator;
    let mut was_admitted = false;
    let mut pause = REDIAL_FIRST;
    loop {
        let mut admitted_now = false;
        let ended = hold_link(node, config, &mut admitted_now);
        node.set_linked(false);
        was_admitted |= admitted_now;
        if admitted_now {
            pause = REDIAL_FIRST;
        }
        match ended {
            Ended::Lost(error) if admitted_now => {
                tracing::warn!("the link to the coordinator at {coordinator} is lost: {error}");
            }
            Ended::Lost(error) => {
                tracing::debug!("link to the coordinator at {coordinator}: {error}");
            }
            Ended::Refused(reason) if !was_admitted => {
                Fatal::Refused { coordinator, reason }.end_process();
            }
            Ended::Refused(reason) => {
                tracing::error!("the coordinator at {coordinator} refused this server: {reason}");
            }
        }
        if !was_admitted && start.elapsed() >= NEVER_ADMITTED {
            let seconds = NEVER_ADMITTED.as_secs();
            Fatal::NoCoordinator { coordinator, seconds }.end_process();
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(REDIAL_LAST);
    }
}

fn hold_link(node: &Arc<Node>, config: &LinkConfig, is_admitted: &mut bool) -> Ended {
    match try_hold_link(node, config, is_admitted) {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

fn try_hold_link(
    node: &Arc<Node>,
    config: &LinkConfig,
    is_admitted: &mut bool,
) -> Result<std::convert::Infallible, Ended> {
    let mut stream = TcpStream::connect_timeout(&config.coordinator, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let started = started(node, config, stream.local_addr()?.ip())?;
    send(&mut stream, &ServerMessage::Started(started))?;
    await_admission(node, &mut stream)?;
    *is_admitted = true;
    node.set_linked(true);
    tracing::info!("admitted by the coordinator at {}", config.coordinator);
    let mut asked_for_drain = false;
    let mut due = Instant::now();
    let mut memory = Memory::default();
    loop {
        if node.is_stopping() && !asked_for_drain {
            asked_for_drain = true;
            send(&mut stream, &ServerMessage::DrainRequest)?;
        }
        send(&mut stream, &ServerMessage::Heartbeat(heartbeat(node, memory.resident_bytes())))?;
        due = (due + HEARTBEAT_INTERVAL).max(Instant::now());
        wait_for_end(&mut stream, due)?;
    }
}

fn started(node: &Node, config: &LinkConfig, local: IpAddr) -> io::Result<Started> {
    Ok(Started {
        cluster: node.cluster,
        member: node.me,
        pid: std::process::id(),
        start_time: watch::start_time("self")?.unwrap_or(0),
        shards: node.placement.shards(),
        address: config.advertise.unwrap_or(local),
        clients_port: config.clients_port,
        servers_port: config.servers_port,
        coord_port: config.coord_port,
        epoch: node.epoch(),
    })
}

fn await_admission(node: &Node, stream: &mut TcpStream) -> Result<(), Ended> {
    let mut input = FrameBuffer::new(FrameRules::checked(MAX_CONTROL_BODY));
    let mut bytes = [0; 4096];
    loop {
        if let Some(frame) = input.next_frame().map_err(io::Error::other)? {
            let admission = Admission::read(frame.opcode, frame.body).map_err(io::Error::other)?;
            return match admission {
                Admission::Refused { reason } => Err(Ended::Refused(reason)),
                Admission::Admitted { epoch } => {
                    let hello = OrdersHello { cluster: node.cluster, epoch, to: node.me };
                    node.obey(&hello)
                        .map_err(|refused| Ended::Lost(io::Error::other(refused.to_string())))
                }
            };
        }
        let received = stream.read(&mut bytes)?;
        if received == 0 {
            return Err(Ended::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        input.extend(&bytes[..received]);
    }
}

fn heartbeat(node: &Node, resident_bytes: u64) -> Heartbeat {
    let counters = node.board.counters();
    let mut replicas = node.board.replicas();
    replicas.truncate(MAX_HEARTBEAT_REPLICAS);
    Heartbeat {
        incarnation: node.me.incarnation,
        epoch: node.epoch(),
        resident_bytes,
        clients: u32::try_from(node.board.clients()).unwrap_or(u32::MAX),
        requests: counters.requests,
        refused: counters.refused,
        replicas,
    }
}

/// Resident memory, asked for once a second only: it costs more than all else of a heartbeat.
#[derive(Default)]
struct Memory {
    asked_at: Option<Instant>,
    resident_bytes: u64,
}

impl Memory {
    fn resident_bytes(&mut self) -> u64 {
        if self.asked_at.is_none_or(|at| at.elapsed() >= MEMORY_INTERVAL) {
            self.asked_at = Some(Instant::now());
            self.resident_bytes = resident_bytes();
        }
        self.resident_bytes
    }
}

/// Resident memory: the second number of proc_pid_statm(5), in pages. 0 if it cannot be read.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

fn send(stream: &mut TcpStream, message: &ServerMessage) -> io::Result<()> {
    let mut frame = Vec::new();
    message.write(&mut frame);
    stream.write_all(&frame)
}

/// Waits until `due`; an end of the connection ends the wait. What the coordinator might say here is
/// nothing yet, and is read past.
fn wait_for_end(stream: &mut TcpStream, due: Instant) -> io::Result<()> {
    let mut bytes = [0; 512];
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_known() {
        assert!(resident_bytes() > 100_000);
    }
}
