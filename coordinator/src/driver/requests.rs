//! The coordinator's end of the socket: requests of `coord stop`, `detach`, `replace`, `set` and `flush`.
//!
//! The main loop carries out requests to stop or to detach. The task of the connection carries out the other requests.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::callers::MAX_CALLERS;
use super::context::Driver;
use crate::stop_port::{Call, Line, MAX_REQUEST_BYTES, NAME, path_in};

/// The timeout for receiving a request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The interval at which the socket's existence is checked, because the directory may be deleted and created again.
const CHECK_EVERY: Duration = Duration::from_secs(1);

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
pub(super) fn remove(dir: &Path) {
    // A leftover socket is harmless: connecting to it fails.
    let _ = fs::remove_file(dir.join(NAME));
}

/// Serves the socket forever.
pub(super) async fn serve(driver: Rc<Driver>, dir: PathBuf, requests: mpsc::Sender<Call>) {
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
                        "cannot listen on {NAME} in {dir}: {error}; retrying, and coord stop, detach, replace, set \
                         and flush fail until then"
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
                // A stalled file system must not block this thread, which makes the decisions.
                let path = path.clone();
                match tokio::task::spawn_blocking(move || path.exists()).await {
                    Ok(false) => return,
                    Ok(true) | Err(_) => continue,
                }
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
            "rejected user {peer}; the cluster belongs to user {own}"
        )));
    }
    let (read, mut write) = stream.split();
    let mut text = String::new();
    let mut read = BufReader::new(read.take(MAX_REQUEST_BYTES));
    timeout(TIMEOUT, read.read_line(&mut text)).await.map_err(io::Error::other)??;
    let call: Call = serde_json::from_str(&text).map_err(io::Error::other)?;
    if let Call::Detach { .. } = call
        && let Err(say) = driver.may_detach()
    {
        return send(&mut write, &Line::last(say, false)).await;
    }
    if let Call::Flush { flush } = call {
        return super::flush::serve(driver, flush, &mut read, &mut write).await;
    }
    let ended = match &call {
        Call::Replace(wanted) => {
            let ended = match driver.replace(wanted).await {
                Ok((say, old)) => {
                    send(&mut write, &Line::saying(say)).await?;
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
        Call::Set { set: setting } => Some(Ok(driver.set(setting))),
        Call::Stop(_) | Call::Detach { .. } | Call::Flush { .. } => None,
    };
    if let Some(ended) = ended {
        let (is_well, say) = match ended {
            Ok(say) => (true, say),
            Err(say) => (false, say),
        };
        return send(&mut write, &Line::last(say, is_well)).await;
    }
    let Some(mut lines) = driver.callers.enter() else {
        let say =
            format!("{MAX_CALLERS} other commands already wait for the stop; end one of them");
        return send(&mut write, &Line::last(say, false)).await;
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

/// Sends a line to a caller.
pub(super) async fn send(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    line: &Line,
) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line).map_err(io::Error::other)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
