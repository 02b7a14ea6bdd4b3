//! `coord flush`: removes every key of a running cluster, and reports the progress to the caller.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};

use super::context::Driver;
use super::requests::send;
use crate::clock;
use crate::stop_port::{FlushRequest, Flushed, Line};

/// The interval at which the progress is read. The servers report theirs as often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The timeout for the delivery of a line to the caller.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A flush in progress. It ends with its caller.
struct Running<'a>(&'a Rc<Driver>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.input(|cluster, _, _| cluster.end_flush());
    }
}

/// Serves a request to flush.
///
/// # Errors
/// The caller has disconnected, or does not read.
pub(super) async fn serve(
    driver: &Rc<Driver>,
    request: FlushRequest,
    read: &mut (impl AsyncBufRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut text = String::new();
    let last = tokio::select! {
        last = carry_out(driver, request, write) => last?,
        // A caller says nothing more; it can only disconnect.
        _ = read.read_line(&mut text) => {
            driver.console.warn(
                "flush: the command has ended before the flush; shards that have the order complete it",
            );
            return Ok(());
        }
    };
    let say = |is_well: bool, text: &str| match is_well {
        true => driver.console.say(text),
        false => driver.console.warn(text),
    };
    say(last.ended == Some(true), &format!("flush: {}", last.say));
    deliver(write, &last).await
}

async fn deliver(write: &mut (impl AsyncWrite + Unpin), line: &Line) -> io::Result<()> {
    timeout(TIMEOUT, send(write, line)).await.map_err(io::Error::other)?
}

/// Carries out a flush, and returns the last line for the caller.
async fn carry_out(
    driver: &Rc<Driver>,
    request: FlushRequest,
    write: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Line> {
    let ended = |say: String, is_well: bool, flushed: Flushed| {
        Ok(Line { flush: Some(flushed), ..Line::last(say, is_well) })
    };
    let mut known = driver.keys();
    let Flushed { keys, servers, .. } = known;
    if !request.yes {
        let say = format!(
            "this would remove every key: about {keys} on {servers} servers, as of the servers' last reports; nothing was \
             removed; to remove them, repeat the command with --yes"
        );
        return ended(say, false, known);
    }
    if let Err(refused) = driver.input(|cluster, now, sink| cluster.on_flush(now, sink)) {
        return Ok(Line::last(format!("cannot flush: {refused}"), false));
    }
    let _running = Running(driver);
    let line = Line { flush: Some(known.clone()), ..Line::saying(String::new()) };
    deliver(write, &line).await?;
    driver.console.say(&format!("flush: removing every key, about {keys} on {servers} servers"));
    let mut progress_at = Instant::now();
    loop {
        let Some(now) = driver.flushed(&known) else {
            return ended("the cluster is being stopped".to_owned(), false, known);
        };
        if now.left.is_empty() {
            return ended("every shard is done".to_owned(), true, now);
        }
        if now != known {
            (known, progress_at) = (now, Instant::now());
            let line = Line { flush: Some(known.clone()), ..Line::saying(String::new()) };
            deliver(write, &line).await?;
        } else if progress_at.elapsed() >= Duration::from_millis(request.timeout_ms) {
            let say = format!(
                "no progress for {} s; check with coord status that a server serves each group that is not done",
                progress_at.elapsed().as_secs()
            );
            return ended(say, false, known);
        }
        sleep(LOOK_EVERY).await;
    }
}

impl Driver {
    /// Returns the numbers of keys and servers, and that no shard is done.
    fn keys(&self) -> Flushed {
        let cluster = self.cluster();
        let status = cluster.status(clock::now(), &self.places.hosts());
        let shards = 0..cluster.config().shards;
        let left = status.groups.iter().map(|group| (group.group.0, shards.clone().collect()));
        Flushed {
            keys: status.groups.iter().map(|group| group.entries).sum(),
            servers: status.servers.len(),
            removed: 0,
            is_exact: true,
            shards: status.groups.len() * usize::from(cluster.config().shards),
            left: left.collect(),
        }
    }

    /// Returns the progress of the flush; `None` if there is none.
    fn flushed(&self, before: &Flushed) -> Option<Flushed> {
        let cluster = self.cluster();
        let shards = cluster.flushed_shards()?;
        let mut left: Vec<(u16, Vec<u16>)> = Vec::new();
        for place in shards.iter().filter(|place| !place.is_done) {
            match left.last_mut() {
                Some((group, shards)) if *group == place.group.0 => shards.push(place.shard.0),
                _ => left.push((place.group.0, vec![place.shard.0])),
            }
        }
        Some(Flushed {
            removed: shards.iter().map(|place| place.removed).sum(),
            is_exact: shards.iter().all(|place| place.is_exact),
            left,
            ..*before
        })
    }
}
