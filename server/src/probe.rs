//! Checks before the start. They report a missing permission in one line, instead of a later failure inside the
//! runtime.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};

use kv_daemon::port_owner;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::fatal::{Fatal, NoUring};
use crate::net::uring;

/// The part of RLIMIT_MEMLOCK that glommio requires for each executor, even if the kernel does not.
const MEMLOCK_BYTES_PER_EXECUTOR: u64 = 512 << 10;
/// The maximum number of connections that wait to be accepted.
pub(crate) const BACKLOG: i32 = 1_024;

/// Checks that the network engine uring can be used: io_uring is allowed and has the features that the engine needs,
/// and the memory that glommio requires may be locked.
pub(crate) fn uring(shards: u16) -> Result<(), NoUring> {
    io_uring()?;
    uring::try_out().map_err(NoUring::features)?;
    memlock(shards)
}

fn io_uring() -> Result<(), NoUring> {
    /// The size of `struct io_uring_params` in the kernel's ABI.
    const PARAMS_BYTES: usize = 120;
    let mut params = [0u64; PARAMS_BYTES / 8];
    // SAFETY: io_uring_setup(2) reads and writes one io_uring_params, for which `params` has room and alignment; all
    // zeros requests no feature.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2u32, params.as_mut_ptr()) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let advice = io_uring_advice(&error, switch.as_deref().map(str::trim));
        return Err(NoUring::Setup { error, advice });
    }
    let fd = i32::try_from(fd).expect("a descriptor fits 32 bits");
    // SAFETY: the descriptor was just created and has no other user.
    unsafe { libc::close(fd) };
    Ok(())
}

fn io_uring_advice(error: &io::Error, switch: Option<&str>) -> String {
    match (error.raw_os_error(), switch) {
        (Some(libc::ENOSYS), _) => {
            "this kernel has no io_uring (Linux 6.1 or newer is needed), or a seccomp profile blocks it (to \
             try it in Docker: --security-opt seccomp=unconfined)"
                .to_owned()
        }
        (_, Some(value @ ("1" | "2"))) => format!(
            "the kernel forbids it: kernel.io_uring_disabled is {value}; allow it with \
             `sysctl kernel.io_uring_disabled=0`"
        ),
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp or security policy forbids it; in Docker run with a profile that allows \
             io_uring (to try it: --security-opt seccomp=unconfined)"
                .to_owned()
        }
        (Some(libc::ENOMEM), _) => "raise the memlock limit (`ulimit -l`)".to_owned(),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "raise the limit on open files (`ulimit -n`)".to_owned()
        }
        _ => "check that this kernel and its security policy allow io_uring".to_owned(),
    }
}

/// Raises the limit on locked memory, if necessary, to the value that glommio requires.
fn memlock(shards: u16) -> Result<(), NoUring> {
    let need = MEMLOCK_BYTES_PER_EXECUTOR * u64::from(shards);
    let limit = getrlimit(Resource::Memlock);
    let is_enough = |bytes: Option<u64>| bytes.is_none_or(|bytes| bytes >= need);
    if is_enough(limit.current) {
        return Ok(());
    }
    let maximum = if is_enough(limit.maximum) { limit.maximum } else { Some(need) };
    let raised = Rlimit { current: Some(need), maximum };
    setrlimit(Resource::Memlock, raised).map_err(|_| NoUring::Memlock {
        have: limit.maximum.unwrap_or(u64::MAX).min(limit.current.unwrap_or(u64::MAX)),
        need,
        shards,
    })
}

/// Raises the limit on descriptors to the hard limit if possible; returns the resulting limit.
pub(crate) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Listens without SO_REUSEPORT, so that a port in use is an error instead of being shared.
pub(crate) fn listen(ip: IpAddr, port: u16, purpose: &'static str) -> Result<TcpListener, Fatal> {
    let address = SocketAddr::new(ip, port);
    bind(address).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => match port_owner::of_another_user(address) {
                Some(user) => format!(
                    "a process of another user (id {user}) listens on the port; stop it, or choose another \
                     port or 0"
                ),
                None => "another process listens on the port; stop it, or choose another port or 0".to_owned(),
            },
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; check --bind".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need privileges; choose another port".to_owned()
            }
            _ => "check --bind and the port".to_owned(),
        };
        Fatal::Listen { address, purpose, error, advice }
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A server that restarts on the same port must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_port_in_use_names_it_with_advice() {
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let first = listen(ip, 0, "clients").unwrap();
        let port = first.local_addr().unwrap().port();
        let error = listen(ip, port, "clients").unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
        assert!(text.contains("another process listens on the port"), "{text}");
    }

    #[test]
    fn the_advice_names_the_setting_that_disables_io_uring() {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        assert!(io_uring_advice(&error, Some("2")).contains("io_uring_disabled is 2"));
        assert!(io_uring_advice(&error, Some("0")).contains("seccomp"));
        let error = io::Error::from_raw_os_error(libc::ENOSYS);
        let advice = io_uring_advice(&error, None);
        assert!(advice.contains("6.1") && advice.contains("seccomp"), "{advice}");
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        assert!(
            !io_uring_advice(&error, Some("0")).contains("seccomp"),
            "it is the limit of memory"
        );
    }
}
