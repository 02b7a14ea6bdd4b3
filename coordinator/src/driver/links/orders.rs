//! The connection for orders to each server's coordinator port. It is established again whenever it breaks.
//!
//! The cluster's state machine keeps outstanding orders and repeats them on each new connection. The queue of a
//! connection holds only orders that are about to be sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use kv_core::node::MAX_REMEMBERED;
use kv_protocol::control_message::{
    Admission, Order, OrderKind, OrdersHello, Report, opcode, write_dump_directory,
};
use kv_protocol::frame::FrameRules;
use kv_protocol::key::{self, Challenge, Link, Seal};
use kv_protocol::limits::{HELLO_DEADLINE, MAX_CONTROL_BODY};
use kv_protocol::{Member, ShardId};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::connection::{Connection, ConnectionError, OwnedFrame};
use crate::driver::context::Driver;
use crate::random;

/// The timeout of one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The first back-off before another attempt to connect; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest back-off.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The maximum number of queued orders for one server. Each of the server's groups has only a few outstanding orders.
const MAX_QUEUED: usize = 64;

/// The reason why a connection for orders ended or could not be established.
#[derive(Debug, thiserror::Error)]
enum OrdersError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("cannot connect: no response within {} s", CONNECT_TIMEOUT.as_secs())]
    NoResponse,
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Decode(#[from] kv_protocol::DecodeError),
    #[error("the connection was closed")]
    Closed,
    #[error("expected PROOF in response to CHALLENGE, not opcode {0:#04x}")]
    NoProof(u8),
    #[error("{0}")]
    Random(String),
    #[error("the server rejected the connection: {0}")]
    Refused(String),
    #[error("expected ORDERS-WELCOME in response to ORDERS-HELLO, not ADMITTED")]
    NoWelcome,
}

/// Maintains the connection to a process until the process is proven to have ended.
pub(in crate::driver) async fn keep(driver: Rc<Driver>, member: Member, address: SocketAddr) {
    let mut pause = FIRST_PAUSE;
    while driver.cluster().may_run(member) {
        match connect(&driver, member, address).await {
            Ok(connection) => {
                pause = FIRST_PAUSE;
                let (sender, receiver) = mpsc::channel(MAX_QUEUED);
                driver.set_orders(member, Some(sender));
                driver.input(|cluster, _, sink| cluster.on_orders_connected(member, sink));
                let end = converse(&driver, member, connection, receiver).await;
                driver.set_orders(member, None);
                driver.input(|cluster, _, _| cluster.on_orders_lost(member));
                tracing::debug!("orders to server {}: {end}", member.server);
            }
            Err(error) => {
                tracing::debug!("orders to server {} at {address}: {error}", member.server)
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(
    driver: &Driver,
    member: Member,
    address: SocketAddr,
) -> Result<Connection, OrdersError> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| OrdersError::NoResponse)?
        .map_err(OrdersError::Connect)?;
    let mut connection = Connection::new(stream, FrameRules::checked(MAX_CONTROL_BODY));
    let seal = shake_hands(driver, &mut connection).await?;
    let mut hello = Vec::new();
    {
        let cluster = driver.cluster();
        let config = cluster.config();
        OrdersHello { cluster: config.cluster, epoch: config.epoch, to: member }
            .write(&seal, &mut hello);
    }
    connection.send(&hello).await?;
    let frame = connection.next_frame(Some(HELLO_DEADLINE)).await?.ok_or(OrdersError::Closed)?;
    match frame.opcode {
        opcode::ORDERS_WELCOME => Ok(connection),
        _ => match Admission::read(frame.opcode, &frame.body)? {
            Admission::Refused { reason } => Err(OrdersError::Refused(reason)),
            Admission::Admitted { .. } => Err(OrdersError::NoWelcome),
        },
    }
}

/// Makes the server prove that it has the cluster's key. Another program may have reused the server's port.
async fn shake_hands(driver: &Driver, connection: &mut Connection) -> Result<Seal, OrdersError> {
    let nonce = random::nonce().map_err(OrdersError::Random)?;
    let mut bytes = Vec::new();
    Challenge { nonce, shard: ShardId(0) }.write(&mut bytes);
    connection.send(&bytes).await?;
    let frame = connection.next_frame(Some(HELLO_DEADLINE)).await?.ok_or(OrdersError::Closed)?;
    match frame.opcode {
        key::opcode::PROOF => Ok(Seal::from_proof(driver.key, Link::Orders, nonce, &frame.body)?),
        _ => Err(OrdersError::NoProof(frame.opcode)),
    }
}

/// Sends orders and settings, and receives reports, until the connection ends. Returns the reason for the end.
async fn converse(
    driver: &Rc<Driver>,
    member: Member,
    mut connection: Connection,
    mut orders: mpsc::Receiver<Order>,
) -> OrdersError {
    // Reports identify their order only by number.
    let mut sent = VecDeque::new();
    let mut settings = driver.settings_told();
    // The current settings are sent at once.
    settings.mark_changed();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return OrdersError::Closed };
                tracing::debug!("{} (order {}) to server {}", order.name(), order.id, member.server);
                let mut bytes = Vec::new();
                let is_dump = matches!(order.kind, OrderKind::DumpPrimary | OrderKind::DumpSecondary);
                if let Some(directory) = driver.dump_dir().filter(|_| is_dump) {
                    write_dump_directory(&mut bytes, &directory);
                }
                order.write(&mut bytes);
                if let Err(error) = connection.send(&bytes).await {
                    return error.into();
                }
                sent.truncate(MAX_REMEMBERED - 1);
                sent.push_front(order);
            }
            Ok(()) = settings.changed() => {
                let mut bytes = Vec::new();
                driver.settings_of(member.server).write(&mut bytes);
                if let Err(error) = connection.send(&bytes).await {
                    return error.into();
                }
            }
            frame = connection.next_frame(None) => match frame {
                Ok(Some(frame)) => {
                    if let Err(error) = take_report(driver, member, &sent, &frame) {
                        return error;
                    }
                }
                Ok(None) => return OrdersError::Closed,
                Err(error) => return error.into(),
            }
        }
    }
}

fn take_report(
    driver: &Rc<Driver>,
    member: Member,
    sent: &VecDeque<Order>,
    frame: &OwnedFrame,
) -> Result<(), OrdersError> {
    if frame.opcode != opcode::REPORT {
        return Err(OrdersError::Decode(kv_protocol::DecodeError::UnknownOpcode {
            opcode: frame.opcode,
            supported: "REPORT",
        }));
    }
    let report = Report::read(&frame.body)?;
    let (id, is_done) = (report.id, report.outcome.is_ok());
    let order = sent.iter().find(|order| order.id == id);
    let name = order.map_or("REPORT", |order| order.report_name(is_done));
    tracing::debug!("{name} (order {id}) from server {}", member.server);
    let noted = driver.input(|cluster, now, sink| cluster.on_report(now, member, report, sink));
    if let Err(ignored) = noted {
        let server = member.server;
        tracing::debug!("ignored {name} (order {id}) of server {server}, because {ignored}");
    }
    Ok(())
}
