//! A Redis client for the tests, without any comfort: commands out, replies in.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::common::{Cluster, TIMEOUT};

/// Returns the addresses of the servers for clients, in order.
pub(crate) fn servers(cluster: &Cluster) -> Vec<SocketAddr> {
    let servers = cluster.status().servers.into_iter();
    let address = |clients: Option<String>| clients?.parse().ok();
    servers.map(|server| address(server.clients).expect("an address")).collect()
}

/// A reply of RESP2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Option<Vec<Reply>>),
}

impl Reply {
    pub(crate) fn bulk(text: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(Some(text.as_ref().to_vec()))
    }

    pub(crate) fn ok() -> Reply {
        Reply::Simple("OK".to_owned())
    }
}

/// A connection to a server.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).expect("connect to a server");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set a timeout");
        stream.set_nodelay(true).expect("set an option");
        Connection { stream: BufReader::new(stream) }
    }

    /// Returns whether nothing listens at the address.
    pub(crate) fn is_refused(address: SocketAddr) -> bool {
        TcpStream::connect(address).is_err()
    }

    /// Sends commands whose words are separated by spaces.
    pub(crate) fn send(&mut self, lines: &[&str]) {
        let mut bytes = Vec::new();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
            for word in words {
                bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
            }
        }
        self.send_bytes(&bytes);
    }

    /// Sends bytes as they are.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("send commands");
    }

    /// Receives a reply. `None` if the connection has ended.
    pub(crate) fn receive(&mut self) -> Option<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).expect("a line") == 0 {
            return None;
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().expect("a number");
        Some(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()),
            "$" => Reply::Bulk(usize::try_from(number()).ok().map(|length| {
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes).expect("a bulk string");
                bytes.truncate(length);
                bytes
            })),
            "*" => {
                Reply::Array(usize::try_from(number()).ok().map(|length| {
                    (0..length).map(|_| self.receive().expect("an element")).collect()
                }))
            }
            _ => panic!("{line:?} is no reply of RESP2"),
        })
    }

    /// Sends a command and receives its reply.
    pub(crate) fn ask(&mut self, line: &str) -> Reply {
        self.send(&[line]);
        self.receive().expect("a reply")
    }
}
