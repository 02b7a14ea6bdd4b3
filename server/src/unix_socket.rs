//! The Unix-domain socket of a server, beside its port for clients.
//!
//! ```text
//!   lock of the directory
//!     +- nothing at the path          -> bind, listen
//!     +- a socket without a listener  -> a dead server left it: remove, bind, listen
//!     +- a socket with a listener     -> the listener may be ending: try again for a while, then an error
//!     +- another kind of file         -> an error
//! ```
//!
//! The lock serialises servers that start at the same time. Without it, one could remove the socket that another has just
//! made in place of the same stale one. The kernel frees the lock when its holder ends.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kv_protocol::unix::MAX_SOCKET_PATH;
use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, connect, listen as start_to_listen, socket_with};

use crate::fatal::Fatal;
use crate::probe::BACKLOG;

/// The permissions of the socket: its owner and its group may connect.
const MODE: u32 = 0o660;
/// The time for which a listener in the place of the socket may be one that is ending. The kernel closes the descriptors
/// of a killed process that used io_uring shortly after its end.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// The socket of this process.
static OWN: OnceLock<Own> = OnceLock::new();

#[derive(Debug)]
struct Own {
    path: PathBuf,
    file: FileId,
}

/// The device and the inode of a file.
type FileId = (u64, u64);

/// The reason why an attempt to listen has failed.
enum Failed {
    /// It may pass.
    Busy(String),
    Final(String),
}

/// Listens on a socket at this path, in place of one that a dead server left.
///
/// # Errors
/// The directory does not exist, another file or a living listener has the path, or the path is too long.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, Fatal> {
    let until = Instant::now() + PATIENCE;
    let reason = loop {
        match attempt(path) {
            Ok(socket) => return Ok(socket),
            Err(Failed::Busy(_)) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(Failed::Busy(reason) | Failed::Final(reason)) => break reason,
        }
    };
    Err(Fatal::UnixSocket { path: path.to_owned(), reason })
}

/// Removes the socket of this process, if it has one and the file at its path is still that socket.
pub(crate) fn remove() {
    let Some(own) = OWN.get() else { return };
    if file_id(&own.path).is_ok_and(|file| file == own.file)
        && let Err(error) = fs::remove_file(&own.path)
    {
        tracing::warn!(
            "cannot remove the socket {}: {error}; the next server of this place replaces it",
            own.path.display()
        );
    }
}

fn attempt(path: &Path) -> Result<OwnedFd, Failed> {
    let address = address_of(path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let _lock = lock(dir)?;
    make_room(path, &address)?;
    let failed = |doing: &str, error: io::Error| {
        Failed::Final(format!(
            "{doing}: {error}; check that this user may write to {}",
            dir.display()
        ))
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed("create a socket", error.into()))?;
    // A new socket file has the permissions of the socket, less those of the umask. So they are never wider than MODE.
    fchmod(&socket, Mode::from_raw_mode(MODE))
        .map_err(|error| failed("set the permissions of the socket", error.into()))?;
    bind(&socket, &address).map_err(|error| failed("bind", error.into()))?;
    let set = fs::set_permissions(path, Permissions::from_mode(MODE));
    set.map_err(|error| failed("set the permissions of the file", error))?;
    let file = file_id(path).map_err(|error| failed("look at the file", error))?;
    // A process listens on one socket.
    let _ = OWN.set(Own { path: path.to_owned(), file });
    start_to_listen(&socket, BACKLOG).map_err(|error| failed("listen", error.into()))?;
    Ok(socket)
}

fn address_of(path: &Path) -> Result<SocketAddrUnix, Failed> {
    let bytes = path.as_os_str().len();
    if bytes > MAX_SOCKET_PATH {
        return Err(Failed::Final(format!(
            "the path has {bytes} bytes, and at most {MAX_SOCKET_PATH} are possible; choose a directory with a shorter path"
        )));
    }
    SocketAddrUnix::new(path).map_err(|error| Failed::Final(io::Error::from(error).to_string()))
}

/// The lock of a directory.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the descriptor is not enough if a process or a table of descriptors has a copy. The call cannot fail on
        // a locked file.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Locks the directory until the result is dropped.
fn lock(dir: &Path) -> Result<Lock, Failed> {
    let shown = dir.display();
    let file = File::open(dir).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "create the directory on the host of this server",
            _ => "this user must be able to read the directory, and to write to it",
        };
        Failed::Final(format!("open the directory {shown}: {error}; {advice}"))
    })?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Failed::Final(format!("{shown} is not a directory; choose another")));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Err(Failed::Busy(format!(
            "another process has the lock of the directory {shown}; find it with `lslocks`, and end it"
        ))),
        Err(error) => {
            let error = io::Error::from(error);
            Err(Failed::Final(format!(
                "lock the directory {shown}: {error}; choose a local file system"
            )))
        }
    }
}

/// Removes a socket without a listener. The caller has the lock of the directory.
fn make_room(path: &Path, address: &SocketAddrUnix) -> Result<(), Failed> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failed::Final(format!("look at the path: {error}"))),
    };
    if !kind.is_socket() {
        return Err(Failed::Final(
            "a file that is not a socket has this path; move it away, or choose another directory"
                .to_owned(),
        ));
    }
    match has_listener(address) {
        Ok(false) => fs::remove_file(path)
            .map_err(|error| Failed::Final(format!("remove the socket of a dead server: {error}"))),
        Ok(true) => Err(Failed::Busy(
            "a process listens on it, perhaps a server of another cluster; stop that process, or choose another \
             directory for this cluster"
                .to_owned(),
        )),
        Err(error) => Err(Failed::Final(format!(
            "cannot find out whether a process listens on it: {error}; check the owner of the socket"
        ))),
    }
}

fn has_listener(address: &SocketAddrUnix) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(socket.as_fd(), address) {
        // EAGAIN: too many connections wait for the listener.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        // ENOENT: another process has removed it.
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // A socket of another type.
        Err(Errno::PROTOTYPE) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn file_id(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn refused(path: &Path) -> String {
        listen(path).unwrap_err().to_string()
    }

    #[test]
    fn the_owner_and_the_group_may_connect_and_nobody_else() {
        let dir = directory();
        let path = dir.path().join("server_0.sock");
        let listener = UnixListener::from(listen(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn the_socket_of_a_dead_listener_is_replaced_and_that_of_a_living_one_is_not() {
        let dir = directory();
        let path = dir.path().join("server_0.sock");
        let dead = UnixListener::bind(&path).unwrap();
        drop(dead);
        let living = listen(&path).unwrap();
        let before = file_id(&path).unwrap();
        let text = refused(&path);
        assert!(text.contains("a process listens on it"), "{text}");
        assert_eq!(file_id(&path).unwrap(), before);
        UnixStream::connect(&path).unwrap();
        drop(living);
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let dir = directory();
        let path = dir.path().join("server_0.sock");
        fs::write(&path, "mine").unwrap();
        assert!(refused(&path).contains("not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(refused(&path).contains("not a socket"), "a symbolic link is not followed");
    }

    #[test]
    fn a_missing_directory_and_a_long_path_are_named() {
        let dir = directory();
        let missing = dir.path().join("none").join("server_0.sock");
        assert!(refused(&missing).contains("create the directory"));
        let long = dir.path().join("d".repeat(MAX_SOCKET_PATH)).join("server_0.sock");
        assert!(refused(&long).contains("at most 107"));
    }

    #[test]
    fn the_lock_of_the_directory_ends_although_its_descriptor_has_a_copy() {
        let dir = directory();
        let Ok(lock_of_dir) = lock(dir.path()) else { panic!("no lock") };
        let copy = lock_of_dir.0.try_clone().unwrap();
        assert!(matches!(lock(dir.path()), Err(Failed::Busy(_))));
        drop(lock_of_dir);
        assert!(lock(dir.path()).is_ok());
        drop(copy);
    }

    #[test]
    fn servers_that_start_at_the_same_time_do_not_remove_each_others_sockets() {
        let dir = directory();
        let path = dir.path().join("server_0.sock");
        drop(UnixListener::bind(&path).unwrap());
        let both = [(); 2].map(|()| {
            let path = path.clone();
            std::thread::spawn(move || listen(&path).ok())
        });
        let made: Vec<OwnedFd> = both.into_iter().filter_map(|one| one.join().unwrap()).collect();
        assert_eq!(made.len(), 1, "the other finds a living listener");
        UnixStream::connect(&path).unwrap();
    }
}
