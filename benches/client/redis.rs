//! The server for hiredis: redis-server on its own loopback port, in a temporary directory, without persistence.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::common::{TIMEOUT, poll};

/// A header of hiredis' development package.
const HEADER: &str = "/usr/include/hiredis/hiredis.h";

/// A running redis-server, which is killed on drop.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Redis {
    /// Starts a server, or returns the reason why it cannot.
    pub(crate) fn start() -> Result<Redis, String> {
        if !Path::new(HEADER).exists() {
            return Err("hiredis is not installed (Debian package libhiredis-dev)".to_owned());
        }
        let dir = tempfile::tempdir().map_err(|error| format!("make a directory: {error}"))?;
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.map_err(|error| format!("find a free port: {error}"))?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.args(["--loglevel", "warning"]).arg("--dir").arg(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl takes integers and is safe to call between fork and exec. The server must
        // not outlive this program.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().map_err(|error| {
            format!("start redis-server (Debian package redis-server): {error}")
        })?;
        let mut redis = Redis { child, port, _dir: dir };
        let connected = poll(TIMEOUT, || match redis.child.try_wait() {
            Ok(None) => TcpStream::connect(("127.0.0.1", port)).ok().map(|_| true),
            _ => Some(false),
        });
        match connected {
            Some(true) => Ok(redis),
            _ => Err("redis-server has exited or accepts no connection".to_owned()),
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // A server that has already ended makes kill fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
