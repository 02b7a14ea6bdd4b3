//! The coordinator's end of `coord stop`, `detach`, `replace` and `set`: a socket in the directory of the cluster.
//!
//! ```text
//!   coord stop --dir DIR  ->  DIR/coord.sock (0600; peers of another user are rejected)
//!      {"dump_dir":"/mnt/other","force":false}\n   ->  main loop: begins the stop, or changes one in progress
//!      <-  {"say":"stop, 2 of 3: ..."}\n ...  {"ended":true,"say":"stopped"}\n
//!
//!   coord detach --dir DIR  ->  {"detach":null}\n  <-  {"ended":true,"say":"..."}\n
//!   coord replace 1 HOST, coord set --memory-limit SIZE: the same, without the main loop
//! ```
//!
//! Only the user that runs the coordinator, and root, are accepted. The mode of the socket and the credentials of the
//! peer enforce this; a network port would need a secret.

use std::cell::RefCell;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use kv_protocol::ServerId;
use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::limits::MAX_DUMP_DIRECTORY_BYTES;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::driver::Driver;

/// The name of the socket.
const NAME: &str = "coord.sock";
/// The maximum number of callers that receive messages; further callers are rejected.
const MAX_CALLERS: usize = 16;
/// The maximum number of lines queued for a caller. A caller that does not read them misses lines.
const MAX_LINES: usize = 64;
/// The maximum length of a request: a path in which every byte may be escaped, and a few keywords.
const MAX_REQUEST_BYTES: u64 = MAX_DUMP_DIRECTORY_BYTES as u64 * 6 + 256;
/// The timeout for receiving a request, and for delivering the last line.
const PATIENCE: Duration = Duration::from_secs(2);
/// The interval at which the socket is checked, because the directory may be deleted and created again.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The request of `coord stop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The directory for dumps on every server's host.
    pub(crate) dump_dir: Option<String>,
    /// True to abandon tables that cannot be dumped.
    pub(crate) force: bool,
}

/// A request on the socket. A coordinator that does not support `coord detach` rejects it, because a request to
/// stop has other fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Call {
    /// `coord stop`.
    Stop(Request),
    /// `coord detach`.
    Detach { detach: () },
    /// `coord replace`.
    Replace(Replacement),
    /// `coord set`.
    Set(Setting),
}

/// The request of `coord replace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replacement {
    /// The place of the ring.
    pub(crate) server: u16,
    /// The new host, as in a cluster file; `None` for the current host with its ports.
    pub(crate) host: Option<String>,
    /// The ports for clients, servers and the coordinator; 0 selects any free port.
    pub(crate) ports: [u16; 3],
}

impl Replacement {
    /// Returns the line of the cluster file after the replacement. `now` is its current line.
    ///
    /// # Errors
    /// The host is invalid; the message has the reason.
    pub(crate) fn line(&self, now: &ServerLine) -> Result<ServerLine, String> {
        let Some(host) = &self.host else { return Ok(now.clone()) };
        let host = Host::parse(host)?;
        let [clients_port, servers_port, coord_port] = self.ports;
        Ok(ServerLine { id: ServerId(self.server), host, clients_port, servers_port, coord_port })
    }
}

/// The request of `coord set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setting {
    /// The memory limit of each server, as written on the command line.
    pub(crate) memory_limit: String,
}

/// A line sent to a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The text for the operator.
    pub(crate) say: String,
    /// In the last line: true if the request succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<bool>,
}

/// The callers that wait for the end of the stop.
#[derive(Debug, Default)]
pub(crate) struct Callers(RefCell<Vec<mpsc::Sender<Line>>>);

impl Callers {
    /// Sends a line to all callers.
    pub(crate) fn say(&self, text: &str) {
        let line = Line { say: text.to_owned(), ended: None };
        self.0.borrow_mut().retain(|caller| {
            // A caller with a full queue misses the line.
            !matches!(caller.try_send(line.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    /// Sends the result of the stop to all callers, and waits briefly for its delivery.
    pub(crate) async fn end(&self, is_well: bool, text: &str) {
        let callers = self.0.take();
        let line = Line { say: text.to_owned(), ended: Some(is_well) };
        for caller in callers {
            let told = async {
                let _ = caller.send(line.clone()).await;
                caller.closed().await;
            };
            let _ = timeout(PATIENCE, told).await;
        }
    }

    fn enter(&self) -> Option<mpsc::Receiver<Line>> {
        let mut callers = self.0.borrow_mut();
        callers.retain(|caller| !caller.is_closed());
        if callers.len() >= MAX_CALLERS {
            return None;
        }
        let (sender, receiver) = mpsc::channel(MAX_LINES);
        callers.push(sender);
        Some(receiver)
    }
}

/// Returns the path for binding or connecting to a socket in a directory. The path of a socket has at most 108
/// bytes (unix(7)), but the path of the directory may be longer. The result is valid while `directory` is open.
pub(crate) fn path_in(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()).into()
}

fn bind(dir: &Path) -> io::Result<UnixListener> {
    let directory = File::open(dir)?;
    let path = path_in(&directory);
    // Only the coordinator that holds the lock of the directory reaches this line.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Removes the socket of a coordinator that ends.
pub(crate) fn remove(dir: &Path) {
    // A leftover socket is harmless: connecting to it fails.
    let _ = fs::remove_file(dir.join(NAME));
}

/// Serves the socket for ever.
pub(crate) async fn serve(driver: Rc<Driver>, dir: PathBuf, requests: mpsc::Sender<Call>) {
    let mut has_failed = false;
    loop {
        match bind(&dir) {
            Ok(listener) => {
                has_failed = false;
                accept(&driver, &dir, &listener, &requests).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut has_failed, true) {
                    let dir = dir.display();
                    tracing::warn!(
                        "cannot listen on {NAME} in {dir}: {error}; `coord stop` will not work"
                    );
                }
                tokio::time::sleep(CHECK_EVERY).await;
            }
        }
    }
}

/// Accepts until the socket has disappeared from the directory.
async fn accept(
    driver: &Rc<Driver>,
    dir: &Path,
    listener: &UnixListener,
    requests: &mpsc::Sender<Call>,
) {
    let path = dir.join(NAME);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tokio::time::sleep(CHECK_EVERY) => {
                if path.exists() {
                    continue;
                }
                return;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let (driver, requests) = (Rc::clone(driver), requests.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = converse(&driver, stream, &requests).await {
                        tracing::warn!("cannot serve a request on {NAME}: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection on {NAME}: {error}");
                tokio::time::sleep(CHECK_EVERY).await;
            }
        }
    }
}

async fn converse(
    driver: &Rc<Driver>,
    mut stream: UnixStream,
    requests: &mpsc::Sender<Call>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    if peer != own && peer != 0 {
        return Err(io::Error::other(format!(
            "rejected user {peer}; this is user {own}'s cluster"
        )));
    }
    let (read, mut write) = stream.split();
    let mut text = String::new();
    let mut read = BufReader::new(read.take(MAX_REQUEST_BYTES));
    timeout(PATIENCE, read.read_line(&mut text)).await.map_err(io::Error::other)??;
    let call: Call = serde_json::from_str(&text).map_err(io::Error::other)?;
    if let Call::Detach { .. } = call
        && let Err(say) = driver.may_detach()
    {
        return send(&mut write, &Line { say, ended: Some(false) }).await;
    }
    let ended = match &call {
        Call::Replace(wanted) => {
            let ended = match driver.replace(wanted).await {
                Ok((say, old)) => {
                    send(&mut write, &Line { say, ended: None }).await?;
                    tokio::select! {
                        say = driver.await_replaced(old) => Ok(say),
                        // The caller has disconnected; the replacement continues.
                        _ = read.read_line(&mut text) => return Ok(()),
                    }
                }
                Err(say) => Err(say),
            };
            Some(ended)
        }
        Call::Set(setting) => Some(Ok(driver.set(&setting.memory_limit))),
        Call::Stop(_) | Call::Detach { .. } => None,
    };
    if let Some(ended) = ended {
        let (is_well, say) = match ended {
            Ok(say) => (true, say),
            Err(say) => (false, say),
        };
        return send(&mut write, &Line { say, ended: Some(is_well) }).await;
    }
    let Some(mut lines) = driver.callers.enter() else {
        let say = format!("{MAX_CALLERS} other commands already wait for the stop");
        return send(&mut write, &Line { say, ended: Some(false) }).await;
    };
    requests.send(call).await.map_err(io::Error::other)?;
    while let Some(line) = lines.recv().await {
        send(&mut write, &line).await?;
        if line.ended.is_some() {
            break;
        }
    }
    Ok(())
}

async fn send(write: &mut (impl tokio::io::AsyncWrite + Unpin), line: &Line) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_directory_fits_into_a_request() {
        let longest = "\u{1}".repeat(MAX_DUMP_DIRECTORY_BYTES);
        let request = Request { dump_dir: Some(longest), force: true };
        let call = Call::Stop(request);
        let text = serde_json::to_string(&call).unwrap();
        assert!(text.len() as u64 <= MAX_REQUEST_BYTES, "{}", text.len());
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
    }

    #[test]
    fn a_request_to_detach_is_never_taken_for_one_to_stop() {
        let call = Call::Detach { detach: () };
        let text = serde_json::to_string(&call).unwrap();
        assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
        serde_json::from_str::<Request>(&text).unwrap_err();
        for neither in ["{}", r#"{"force":1}"#, r#"{"dump_dir":"/x"}"#, "null"] {
            serde_json::from_str::<Call>(neither).unwrap_err();
        }
    }

    #[tokio::test]
    async fn the_socket_of_a_deep_directory_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        for _again in 0..2 {
            let _listener = bind(&deep).unwrap();
            let mode = fs::metadata(deep.join(NAME)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let directory = File::open(&deep).unwrap();
            std::os::unix::net::UnixStream::connect(path_in(&directory)).unwrap();
        }
        remove(&deep);
        assert!(!deep.join(NAME).exists());
    }

    #[tokio::test]
    async fn callers_hear_the_end_and_no_more_than_there_may_be_are_let_in() {
        let callers = Callers::default();
        let mut inside: Vec<_> = (0..MAX_CALLERS).map(|_| callers.enter().unwrap()).collect();
        assert!(callers.enter().is_none());
        let mut last = inside.pop().unwrap();
        inside.clear();
        for n in 0..2 * MAX_LINES {
            callers.say(&format!("line {n}"));
        }
        assert_eq!(callers.0.borrow().len(), 1, "those that left are forgotten");
        // The last caller disconnects after it has received the result, for which `end` waits.
        let end = async move {
            let mut seen = 0;
            while let Some(line) = last.recv().await {
                seen += 1;
                if line.ended == Some(true) {
                    return (seen, line.say);
                }
            }
            panic!("no end");
        };
        let ((seen, said), ()) = tokio::join!(end, callers.end(true, "stopped"));
        assert_eq!((seen, &*said), (MAX_LINES + 1, "stopped"));
    }
}
