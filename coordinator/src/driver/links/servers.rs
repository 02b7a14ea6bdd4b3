//! The servers' port: the handshake and STARTED, then heartbeats and requests to leave. The response to a heartbeat
//! is the newest map, if it has changed.

use std::rc::Rc;
use std::time::Duration;

use kv_core::cluster::{Ignored, LinkId};
use kv_protocol::control_message::{Admission, ServerMessage, Started, opcode};
use kv_protocol::frame::FrameRules;
use kv_protocol::key::{self, Challenge, Link, Seal};
use kv_protocol::limits::{HELLO_DEADLINE, MAX_CONTROL_BODY, MAX_HELLO_BODY};
use kv_protocol::{FailureTimeout, ServerId};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::newest_map::NewestMap;
use crate::connection::{Connection, ConnectionError};
use crate::driver::context::Driver;
use crate::listener::{self, Slots, WaitingRoom};
use crate::logs::Refusals;
use crate::random;

/// The maximum number of connections without a STARTED report, in addition to one for each server. Such connections
/// come from unknown peers and from servers that reconnect.
const SPARE_CONNECTIONS: usize = 256;

/// The maximum number of rejected connections that are kept open for up to 500 ms, so that the peers can read the
/// reason. Further ones are closed at once.
const MAX_FAREWELLS_AT_ONCE: usize = 64;

/// The minimum time without a frame after which a link is closed.
const MIN_LINK_SILENCE: Duration = Duration::from_secs(30);

/// Returns the time without a frame after which a link is closed. The end of a link marks its server down, so this time
/// is longer than the failure timeout: a silent server is down already. A server that still runs reconnects.
fn link_silence(times: FailureTimeout) -> Duration {
    MIN_LINK_SILENCE.max(times.timeout() * 2)
}

/// Serves the port forever.
pub(super) async fn serve(driver: Rc<Driver>, listener: TcpListener) {
    let refusals = Rc::new(Refusals::new("servers"));
    // Unknown peers, however many, do not displace admitted servers, nor servers at other addresses that are about to
    // report.
    let room = WaitingRoom::new(SPARE_CONNECTIONS + usize::from(driver.cluster().count()));
    let farewells = Slots::new(MAX_FAREWELLS_AT_ONCE);
    let newest = Rc::new(NewestMap::default());
    let accepted = Rc::clone(&refusals);
    listener::accept(listener, accepted, move |stream, address| {
        let (driver, refusals) = (Rc::clone(&driver), Rc::clone(&refusals));
        let (place, farewells) = (room.enter(address.ip()), farewells.clone());
        let newest = Rc::clone(&newest);
        tokio::task::spawn_local(async move {
            let mut connection = Connection::new(stream, FrameRules::checked(MAX_HELLO_BODY));
            let first = tokio::select! {
                first = first_frames(&driver, &mut connection) => first,
                () = place.must_go() => {
                    let reason = "it has sent no STARTED report, and too many connections wait to send one";
                    return refusals.note(connection.peer(), reason);
                }
            };
            drop(place);
            let Some((link, server)) = admit(&driver, &mut connection, first, &refusals).await
            else {
                if let Some(_slot) = farewells.take() {
                    connection.end().await;
                }
                return;
            };
            follow(&driver, &newest, &mut connection, link, server, &refusals).await;
            driver.input(|cluster, now, sink| cluster.on_link_lost(now, link, server, sink));
        });
    })
    .await;
}

/// Admits a server, or sends it the reason for its rejection.
async fn admit(
    driver: &Rc<Driver>,
    connection: &mut Connection,
    first: Result<Option<Started>, End>,
    refusals: &Refusals,
) -> Option<(LinkId, ServerId)> {
    let started = match first {
        Ok(Some(started)) => Ok(started),
        Ok(None) | Err(End::Connection(ConnectionError::Io(_))) => return None,
        Err(error) => Err(error.to_string()),
    };
    let link = driver.next_link();
    let admitted = started.and_then(|started| {
        driver.check_epoch(&started)?;
        let result =
            driver.input(|cluster, now, sink| cluster.on_started(now, link, &started, sink));
        result.map(|()| started).map_err(|refused| refused.to_string())
    });
    let mut bytes = Vec::new();
    match admitted {
        Ok(started) => {
            driver.note_started(&started);
            connection.set_rules(FrameRules::checked(MAX_CONTROL_BODY));
            let epoch = driver.cluster().config().epoch;
            Admission::Admitted { epoch }.write(&mut bytes);
            // If the send fails, the reads that follow fail too.
            let _ = connection.send(&bytes).await;
            Some((link, started.member.server))
        }
        Err(reason) => {
            refusals.note(connection.peer(), &reason);
            Admission::Refused { reason }.write(&mut bytes);
            let _ = connection.send(&bytes).await;
            None
        }
    }
}

/// The reason why a connection sent no valid STARTED.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Decode(#[from] kv_protocol::DecodeError),
    #[error("expected {expected}, not opcode {opcode:#04x}")]
    OutOfOrder { expected: &'static str, opcode: u8 },
    #[error("{0}")]
    Random(String),
}

/// Performs the handshake and returns the STARTED that follows, or `None` if the connection was closed before.
async fn first_frames(
    driver: &Driver,
    connection: &mut Connection,
) -> Result<Option<Started>, End> {
    let deadline = Instant::now() + HELLO_DEADLINE;
    let left = || Some(deadline.saturating_duration_since(Instant::now()));
    let Some(frame) = connection.next_frame(left()).await? else { return Ok(None) };
    if frame.opcode != key::opcode::CHALLENGE {
        let expected = "CHALLENGE as the first message";
        return Err(End::OutOfOrder { expected, opcode: frame.opcode });
    }
    let challenge = Challenge::read(&frame.body)?;
    let own = random::nonce().map_err(End::Random)?;
    let seal = Seal::new(driver.key, Link::Reports, challenge.nonce, own);
    let mut proof = Vec::new();
    seal.write_proof(&mut proof);
    connection.send(&proof).await?;
    let Some(frame) = connection.next_frame(left()).await? else { return Ok(None) };
    if frame.opcode != opcode::STARTED {
        let expected = "STARTED after the handshake";
        return Err(End::OutOfOrder { expected, opcode: frame.opcode });
    }
    Ok(Some(Started::read(&frame.body, &seal)?))
}

/// Receives the messages of an admitted server until its connection ends.
async fn follow(
    driver: &Rc<Driver>,
    newest: &NewestMap,
    connection: &mut Connection,
    link: LinkId,
    server: ServerId,
    refusals: &Refusals,
) {
    let mut sent = None;
    let silence = link_silence(driver.cluster().config().failure_timeout);
    loop {
        let frame = match connection.next_frame(Some(silence)).await {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(ConnectionError::Io(_)) => return,
            Err(error) => return refusals.note(format_args!("server {server}"), error),
        };
        let ignored = match ServerMessage::read(frame.opcode, &frame.body) {
            Ok(ServerMessage::Heartbeat(heartbeat)) => driver.input(|cluster, now, sink| {
                cluster.on_heartbeat(now, link, server, heartbeat, sink)
            }),
            Ok(ServerMessage::DrainRequest) => {
                driver.input(|cluster, now, sink| cluster.on_drain_request(now, link, server, sink))
            }
            Err(error) => return refusals.note(format_args!("server {server}"), error),
        };
        if let Err(ignored) = ignored {
            refusals.note(format_args!("server {server}"), ignored);
            if ignored == Ignored::OldLink {
                return;
            }
        }
        if connection.has_sent_all()
            && let Some(map) = newest.later_than(sent, &driver.cluster())
        {
            sent = Some(map.revision);
            connection.queue(&map.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_protocol::failure_timeout::FAILURE_TIMEOUT_SECONDS;

    use super::*;

    #[test]
    fn a_link_stays_open_for_longer_than_the_failure_timeout() {
        let longest = *FAILURE_TIMEOUT_SECONDS.end();
        for seconds in [*FAILURE_TIMEOUT_SECONDS.start(), 0.5, 30.0, 60.0, longest] {
            let timeout = Duration::from_secs_f64(seconds);
            let silence = link_silence(FailureTimeout::new(timeout));
            assert!(silence >= MIN_LINK_SILENCE && silence > timeout, "{seconds}: {silence:?}");
        }
    }
}
