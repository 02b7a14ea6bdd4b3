//! A real redis-server, for tests that compare with it.

use std::io::{BufRead, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};

use kv_testkit::process::Signal;
use kv_testkit::{TIMEOUT, coord, programs, wait_for};

/// The text of a response, or that of an error.
pub(crate) type Response = Result<Vec<u8>, String>;

/// A redis-server without persistence, on its own loopback port. It is killed on drop.
pub(crate) struct Redis {
    child: Child,
    pub(crate) stream: BufReader<TcpStream>,
}

impl Redis {
    pub(crate) fn start() -> anyhow::Result<Redis> {
        let [port] = coord::free_ports()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        programs::end_with_this(&mut command, Signal::KILL);
        let mut child = command.spawn().map_err(|error| {
            anyhow::anyhow!("start redis-server (`scripts/setup.sh sim` installs it): {error}")
        })?;
        let connected =
            wait_for("redis-server accepts a connection", TIMEOUT, || match child.try_wait() {
                Ok(None) => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(Some),
                _ => Some(None),
            });
        let stream = match connected {
            Ok(Some(stream)) => stream,
            other => {
                let _ = child.kill();
                let _ = child.wait();
                anyhow::bail!("redis-server on port {port} accepts no connection: {other:?}");
            }
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Redis { child, stream: BufReader::new(stream) })
    }

    /// Reads a response: the text of a string or an integer, or that of an error. A missing value is `-1`.
    pub(crate) fn response(&mut self) -> std::io::Result<Response> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let line = line.strip_suffix(b"\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let (kind, text) = line.split_first().ok_or(std::io::ErrorKind::InvalidData)?;
        let text = text.to_vec();
        match kind {
            b'+' | b':' => Ok(Ok(text)),
            b'-' => Ok(Err(String::from_utf8_lossy(&text).into_owned())),
            b'$' => {
                if text == b"-1" {
                    return Ok(Ok(text));
                }
                let length: usize = String::from_utf8_lossy(&text).parse().expect("a length");
                let mut text = vec![0; length + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(length);
                Ok(Ok(text))
            }
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // A server that has already ended makes kill fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Appends a command with its arguments.
pub(crate) fn push_request(requests: &mut Vec<u8>, words: &[&[u8]]) {
    requests.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        requests.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        requests.extend_from_slice(word);
        requests.extend_from_slice(b"\r\n");
    }
}
