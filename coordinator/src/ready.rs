//! `--ready-fd`: one line of JSON to whoever started the coordinator, once the cluster serves.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, RawFd};

use kv_protocol::ClusterId;
use serde::Serialize;

use crate::Failure;

/// The descriptor, checked and kept from the servers' processes.
#[derive(Debug)]
pub(crate) struct Ready {
    file: File,
}

#[derive(Serialize)]
struct Line {
    status: &'static str,
    clients_port: u16,
    servers_port: u16,
    cluster: ClusterId,
    pid: u32,
}

impl Ready {
    /// Takes the descriptor over; it is closed after the line.
    ///
    /// # Errors
    /// It is not open, or is one of the first three.
    pub(crate) fn take(descriptor: RawFd) -> Result<Ready, Failure> {
        if descriptor <= 2 {
            let message = format!("--ready-fd {descriptor}: give a descriptor above 2");
            return Err(Failure::Usage(message));
        }
        // SAFETY: fcntl with F_SETFD touches no memory; a number that is no descriptor gives EBADF.
        let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::Usage(format!(
                "--ready-fd {descriptor}: {error}; open it in the shell, as in {descriptor}>FILE"
            )));
        }
        // SAFETY: the descriptor is open (just checked) and was given to this process for this use;
        // it is taken before anything here has opened a file, so nothing else owns it.
        Ok(Ready { file: unsafe { File::from_raw_fd(descriptor) } })
    }

    /// Writes the line. Whoever waited for it may be gone: then it is only logged.
    pub(crate) fn announce(mut self, cluster: ClusterId, clients_port: u16, servers_port: u16) {
        let pid = std::process::id();
        let line = Line { status: "serving", clients_port, servers_port, cluster, pid };
        let text = serde_json::to_string(&line).expect("numbers and hex always become JSON");
        if let Err(error) = writeln!(self.file, "{text}") {
            tracing::warn!("write to --ready-fd: {error}");
        }
    }
}
