//! The link to the coordinator: this server connects to the coordinator, identifies itself, and sends a heartbeat every
//! 100 ms.
//!
//! ```text
//!   connect -> CHALLENGE, PROOF -> STARTED -> ADMITTED -> HEARTBEAT, HEARTBEAT, ... (DRAIN-REQUEST once, on SIGTERM)
//!      |                     |        <- CLUSTER-MAP at times: kept if it is newer
//!      ^                     | REFUSED: before the first admission the process ends with the reason
//!      +---- back-off <------+ lost: the server continues to serve and dials again, until it has been
//!                              without a coordinator for --orphan-timeout
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_protocol::control_message::{
    Admission, Heartbeat, OrdersHello, ServerMessage, Started, read_cluster_map,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{PidNamespace, ShardId, Time};
use kv_protocol::key::{self, Challenge, Seal};
use kv_protocol::limits::{HEARTBEAT_INTERVAL, MAX_CONTROL_BODY, MAX_HEARTBEAT_REPLICAS};
use kv_shard::LogLimit;

use super::operation::ServerProcess;
use crate::clock;
use crate::fatal::Fatal;
use crate::nonce;
use crate::watchdog::{Activity, Pulse};

/// The timeout of connecting, and of each response or send.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The initial back-off before the coordinator is dialled again; it doubles up to [`REDIAL_LAST`]. It is short because
/// a restarted coordinator makes no decisions until every live server has reported. If a server died with the
/// coordinator, the clients of its groups wait for these reports.
const REDIAL_FIRST: Duration = Duration::from_millis(10);
/// The longest back-off before the coordinator is dialled again.
const REDIAL_LAST: Duration = Duration::from_millis(100);
/// The maximum number of bytes received at once.
const READ_BYTES: usize = 16 << 10;
/// The interval between log lines of a server that is without a coordinator or rejected by it.
const ALONE_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The time after which a process ends if no coordinator has ever admitted it.
const NEVER_ADMITTED: Duration = Duration::from_secs(30);

/// The parameters of the link.
#[derive(Clone, Debug)]
pub(crate) struct LinkConfig {
    /// The address of the coordinator's port for servers.
    pub(crate) coordinator: SocketAddr,
    /// The time for which the server continues without a coordinator; `None` means forever.
    pub(crate) orphan_timeout: Option<Duration>,
    /// The address to report; `None` means the local address of the connection to the coordinator.
    pub(crate) advertise: Option<IpAddr>,
    pub(crate) clients_port: u16,
    pub(crate) servers_port: u16,
    pub(crate) coord_port: u16,
    /// The start time of this process, in clock ticks since boot, and the namespace of its pid; 0 if unknown.
    pub(crate) identity: (u64, PidNamespace),
}

/// The reason why a link ended.
enum Ended {
    Lost(io::Error),
    Refused(String),
    /// The other end did not prove that it has the cluster's key.
    Impostor(String),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Lost(error)
    }
}

/// Keeps the link for the life of the process.
pub(crate) fn run(node: &Arc<ServerProcess>, config: &LinkConfig) -> ! {
    let start = Instant::now();
    let pulse = &node.statistics.control;
    pulse.own();
    pulse.begin(Activity::Link);
    let mut was_admitted = false;
    let mut pause = REDIAL_FIRST;
    let mut impostors = LogLimit::default();
    let mut refusals = LogLimit::every(ALONE_LOG_INTERVAL);
    let mut alone = Alone { since: clock::now(), log: LogLimit::every(ALONE_LOG_INTERVAL) };
    loop {
        let coordinator = node.coordinator().unwrap_or(config.coordinator);
        let began = clock::now();
        let mut admitted_now = false;
        let dialled = Instant::now();
        let ended = hold_link(node, config, coordinator, &mut admitted_now);
        node.set_linked(false);
        was_admitted |= admitted_now;
        if admitted_now {
            alone.since = clock::now();
        } else if was_admitted {
            alone.look(node, config, coordinator, began);
        }
        // If a link ends soon after its admission, the back-off keeps growing.
        if admitted_now && dialled.elapsed() >= REDIAL_LAST {
            pause = REDIAL_FIRST;
        }
        match ended {
            Ended::Lost(error) if admitted_now => {
                tracing::warn!("lost the link to the coordinator at {coordinator}: {error}");
            }
            Ended::Impostor(error) if !was_admitted => {
                let reason = format!(
                    "{error}; it may be another cluster's coordinator; check -h, -m and --key-file"
                );
                Fatal::Refused { coordinator, reason }.end_process();
            }
            Ended::Impostor(error) => {
                if let Some(suppressed) = impostors.admit(clock::now()) {
                    tracing::error!(
                        suppressed,
                        "the program at {coordinator} is not this cluster's coordinator: {error}; no report \
                         was sent to it"
                    );
                }
            }
            Ended::Lost(error) => {
                tracing::debug!("cannot link to the coordinator at {coordinator}: {error}");
            }
            Ended::Refused(reason) if !was_admitted => {
                let reason = format!("it rejected this server: {reason}");
                Fatal::Refused { coordinator, reason }.end_process();
            }
            Ended::Refused(reason) => {
                if let Some(suppressed) = refusals.admit(clock::now()) {
                    tracing::error!(
                        suppressed,
                        "the coordinator at {coordinator} rejected this server: {reason}"
                    );
                }
            }
        }
        if !was_admitted && start.elapsed() >= NEVER_ADMITTED {
            let seconds = NEVER_ADMITTED.as_secs();
            Fatal::NoCoordinator { coordinator, seconds }.end_process();
        }
        pulse.beat_before(pause);
        std::thread::sleep(pause);
        pause = (pause * 2).min(REDIAL_LAST);
    }
}

/// The time without a coordinator. Like the clock of the leases, this time includes the time in which the machine is
/// suspended.
struct Alone {
    since: Time,
    log: LogLimit,
}

impl Alone {
    /// Handles a failed attempt that began at `began`. If the orphan timeout had expired by then, the server is
    /// recorded as an orphan, which dumps its tables and exits. A sole primary continues.
    fn look(
        &mut self,
        node: &ServerProcess,
        config: &LinkConfig,
        coordinator: SocketAddr,
        began: Time,
    ) {
        let alone = began.since(self.since);
        if config.orphan_timeout.is_none_or(|most| alone < most) || node.is_orphaned() {
            return;
        }
        if !node.statistics.is_sole_primary() {
            tracing::error!("no coordinator at {coordinator} for {alone:?}; exiting after dumps");
            return node.orphan();
        }
        if let Some(suppressed) = self.log.admit(began) {
            tracing::warn!(
                suppressed,
                "no coordinator at {coordinator} for {alone:?}; this server holds the only copy of a group, so it \
                 continues to serve"
            );
        }
    }
}

fn hold_link(
    node: &Arc<ServerProcess>,
    config: &LinkConfig,
    coordinator: SocketAddr,
    is_admitted: &mut bool,
) -> Ended {
    match try_hold_link(node, config, coordinator, is_admitted) {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

fn try_hold_link(
    node: &Arc<ServerProcess>,
    config: &LinkConfig,
    coordinator: SocketAddr,
    is_admitted: &mut bool,
) -> Result<std::convert::Infallible, Ended> {
    let mut link = Link::dial(coordinator, &node.statistics.control)?;
    let seal = shake_hands(node, &mut link)?;
    let started = started(node, config, link.stream.local_addr()?.ip())?;
    link.send(|output| started.write(&seal, output))?;
    await_admission(node, &mut link)?;
    *is_admitted = true;
    node.set_linked(true);
    tracing::info!("admitted by the coordinator at {coordinator}");
    let mut asked_for_drain = false;
    let mut due = Instant::now();
    let mut refusals = LogLimit::default();
    loop {
        if node.coordinator().is_some_and(|newest| newest != coordinator) {
            return Err(Ended::Lost(io::Error::other(
                "the coordinator has moved to another address",
            )));
        }
        if node.is_stopping() && !asked_for_drain {
            asked_for_drain = true;
            link.send(|output| ServerMessage::DrainRequest.write(output))?;
        }
        let heartbeat = ServerMessage::Heartbeat(heartbeat(node));
        link.send(|output| heartbeat.write(output))?;
        due = (due + HEARTBEAT_INTERVAL).max(Instant::now());
        while let Some((opcode, body)) = link.next_frame(due)? {
            hear(node, opcode, &body, &mut refusals);
        }
    }
}

/// Processes a frame that the coordinator sends to an admitted server: a map. An invalid frame is counted and changes
/// nothing.
fn hear(node: &ServerProcess, opcode: u8, body: &[u8], refusals: &mut LogLimit) {
    let taken = read_cluster_map(opcode, body).map_err(|error| error.to_string());
    let taken = taken.and_then(|map| node.take_map(map).map_err(|error| error.to_string()));
    if let Err(reason) = taken {
        node.statistics.reject();
        if let Some(suppressed) = refusals.admit(clock::now()) {
            tracing::warn!(suppressed, "rejected a map from the coordinator: {reason}");
        }
    }
}

fn started(node: &ServerProcess, config: &LinkConfig, local: IpAddr) -> io::Result<Started> {
    Ok(Started {
        cluster: node.cluster,
        member: node.me,
        pid: std::process::id(),
        start_time: config.identity.0,
        namespace: config.identity.1,
        shards: node.placement.shards(),
        address: config.advertise.unwrap_or(local),
        clients_port: config.clients_port,
        servers_port: config.servers_port,
        coord_port: config.coord_port,
        epoch: node.epoch(),
    })
}

/// Makes the other end prove that it has the cluster's key. Before that, this server sends only the challenge, and ends
/// the link if the response is not a valid PROOF: another program may listen on the port of a coordinator that has
/// died.
fn shake_hands(node: &ServerProcess, link: &mut Link<'_>) -> Result<Seal, Ended> {
    let nonce = nonce::draw()?;
    link.send(|output| Challenge { nonce, shard: ShardId(0) }.write(output))?;
    let Some((opcode, body)) = link.next_frame(Instant::now() + TIMEOUT)? else {
        return Err(Ended::Lost(io::ErrorKind::TimedOut.into()));
    };
    if opcode != key::opcode::PROOF {
        let words = format!("its response to CHALLENGE had opcode {opcode:#04x}, not PROOF");
        return Err(Ended::Impostor(words));
    }
    Seal::from_proof(node.key, key::Link::Reports, nonce, &body)
        .map_err(|error| Ended::Impostor(error.to_string()))
}

fn await_admission(node: &ServerProcess, link: &mut Link<'_>) -> Result<(), Ended> {
    let Some((opcode, body)) = link.next_frame(Instant::now() + TIMEOUT)? else {
        return Err(Ended::Lost(io::ErrorKind::TimedOut.into()));
    };
    match Admission::read(opcode, &body).map_err(io::Error::other)? {
        Admission::Refused { reason } => Err(Ended::Refused(reason)),
        Admission::Admitted { epoch } => {
            let hello = OrdersHello { cluster: node.cluster, epoch, to: node.me };
            node.obey(&hello).map_err(|refused| Ended::Lost(io::Error::other(refused.to_string())))
        }
    }
}

fn heartbeat(node: &ServerProcess) -> Heartbeat {
    let counters = node.statistics.counters();
    let mut replicas = node.statistics.replicas(node.failure_timeout);
    replicas.truncate(MAX_HEARTBEAT_REPLICAS);
    Heartbeat {
        incarnation: node.me.incarnation,
        epoch: node.epoch(),
        resident_bytes: node.statistics.resident_bytes(),
        memory_limit: node.statistics.admission.memory().memory_limit().unwrap_or(0),
        connection_bytes: node.statistics.admission.memory().held(),
        connection_limit: node.statistics.admission.memory().limit(),
        clients: u32::try_from(node.statistics.admission.clients()).unwrap_or(u32::MAX),
        requests: counters.requests,
        refused: counters.refused,
        out_of_space: counters.out_of_space,
        evicted: counters.removals.evicted,
        expired: counters.removals.expired,
        stood_ms: node.statistics.stood_ms(),
        dumped: node.dumps.written(),
        crowd: node.statistics.admission.crowd_report(clock::now()),
        replicas,
    }
}

/// The connection, which sends and receives whole frames. It records every wait for the coordinator in the thread's
/// pulse, for the watchdog.
struct Link<'a> {
    stream: TcpStream,
    input: FrameBuffer,
    pulse: &'a Pulse,
}

impl Link<'_> {
    fn dial(coordinator: SocketAddr, pulse: &Pulse) -> io::Result<Link<'_>> {
        pulse.beat_before(TIMEOUT);
        let stream = TcpStream::connect_timeout(&coordinator, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let input = FrameBuffer::new(FrameRules::checked(MAX_CONTROL_BODY));
        Ok(Link { stream, input, pulse })
    }

    fn send(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut frame = Vec::new();
        write(&mut frame);
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            self.pulse.beat_before(TIMEOUT);
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the next frame; `None` if none is complete by `due`.
    fn next_frame(&mut self, due: Instant) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            self.pulse.beat();
            // The wait ends at `due` even if input is pending, because a heartbeat may be due.
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if let Some(frame) = self.input.next_frame().map_err(io::Error::other)? {
                return Ok(Some((frame.opcode, frame.body.to_vec())));
            }
            self.stream.set_read_timeout(Some(left))?;
            self.pulse.beat_before(left);
            let mut bytes = [0; READ_BYTES];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => self.input.extend(&bytes[..received]),
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
}
