//! `--ready-fd`: one line of JSON for the parent process, once the cluster serves.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, RawFd};

use kv_protocol::ClusterId;
use serde::Serialize;

use crate::failure::Failure;
use crate::place::Ports;

/// The descriptor, checked and not inherited by the servers' processes.
#[derive(Debug)]
pub(crate) struct Ready {
    file: File,
}

#[derive(Serialize)]
struct Line {
    status: &'static str,
    #[serde(flatten)]
    ports: Ports,
    cluster: ClusterId,
    pid: u32,
}

impl Ready {
    /// Takes ownership of the descriptor, which is closed after the line.
    ///
    /// # Errors
    /// The descriptor is not open, or is one of the first three.
    pub(crate) fn take(descriptor: RawFd) -> Result<Ready, Failure> {
        if descriptor <= 2 {
            let message = format!("invalid --ready-fd {descriptor}: give a descriptor above 2");
            return Err(Failure::Usage(message));
        }
        // SAFETY: fcntl with F_SETFD touches no memory; an invalid descriptor gives EBADF.
        let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Failure::Usage(format!(
                "cannot use --ready-fd {descriptor}: {error}; open it in the shell, as in {descriptor}>FILE"
            )));
        }
        // SAFETY: the descriptor is open (just checked) and was passed to this process for this purpose. It is
        // taken before this process opens any file, so nothing else owns it.
        Ok(Ready { file: unsafe { File::from_raw_fd(descriptor) } })
    }

    /// Writes the line. A failure is only logged, because the reader may have exited.
    pub(crate) fn announce(mut self, cluster: ClusterId, ports: Ports) {
        let pid = std::process::id();
        let line = Line { status: "serving", ports, cluster, pid };
        let text = serde_json::to_string(&line).expect("numbers and hex always become JSON");
        if let Err(error) = writeln!(self.file, "{text}") {
            tracing::warn!("cannot write to --ready-fd: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::IntoRawFd as _;

    use super::*;

    #[test]
    fn the_output_is_one_line_of_json_with_the_ports() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let ready = Ready::take(writer.into_raw_fd()).unwrap();
        ready.announce(ClusterId(0xfeed), Ports { clients: 7_000, servers: 7_001 });
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let pid = std::process::id();
        let cluster = "0000000000000000000000000000feed";
        assert_eq!(
            text,
            format!(
                "{{\"status\":\"serving\",\"clients_port\":7000,\"servers_port\":7001,\
                 \"cluster\":\"{cluster}\",\"pid\":{pid}}}\n"
            )
        );
    }

    #[test]
    fn closed_and_standard_descriptors_are_bad_usage() {
        for descriptor in [-1, 0, 2, 1_000_000] {
            assert!(matches!(Ready::take(descriptor), Err(Failure::Usage(_))), "{descriptor}");
        }
    }
}
