//! The cluster file: the number of servers, and the host and ports of each.
//!
//! ```text
//! # comments and blank lines are allowed
//! 3
//! localhost        0 0 0               # <host> <clients_port> <servers_port> <coord_port>
//! kv@10.0.0.2      7000 7001 7002      # by ssh
//! ssh://kv@db:2222 7000 7001 7002      # by ssh, on another ssh port
//! ```
//!
//! The first line that is neither blank nor a comment is the number of servers. A port of 0 stands for any free port. A
//! byte order mark at the start is ignored.

use std::collections::HashMap;
use std::fmt;

use crate::ids::ServerId;
use crate::limits::{MAX_SERVERS, MIN_SERVERS};

/// The host of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Host {
    /// The coordinator's own machine; the server is a child process of the coordinator.
    Local,
    /// Another machine, reached by ssh.
    Ssh {
        /// The login name; `None` leaves it to ssh's configuration.
        user: Option<String>,
        /// The machine, in ssh's notation.
        host: String,
        /// Its ssh port; `None` leaves it to ssh's configuration.
        port: Option<u16>,
    },
}

impl Host {
    /// Parses a host in the notation of a cluster file.
    ///
    /// # Errors
    /// A message with the correct notation.
    pub fn parse(text: &str) -> Result<Host, String> {
        parse_host(0, text).map_err(|error| error.reason)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Local => f.write_str("localhost"),
            Host::Ssh { user, host, port } => {
                if port.is_some() || user.is_none() {
                    f.write_str("ssh://")?;
                }
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(host)?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

/// The line of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLine {
    /// The server's place in the ring: the index of its line, from 0.
    pub id: ServerId,
    /// Its host.
    pub host: Host,
    /// Its port for clients; 0 = any free port.
    pub clients_port: u16,
    /// Its port for other servers.
    pub servers_port: u16,
    /// Its port for the coordinator.
    pub coord_port: u16,
}

/// A valid cluster file with 3 to 1,024 servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFile {
    /// The servers, by place in the ring.
    pub servers: Vec<ServerLine>,
}

/// An error in a cluster file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ClusterFileError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The error, and how to correct it.
    pub reason: String,
}

impl ClusterFile {
    /// Parses a cluster file.
    ///
    /// # Errors
    /// The first error, with its line.
    pub fn parse(text: &str) -> Result<ClusterFile, ClusterFileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(n, line)| (n + 1, line.split('#').next().unwrap_or("").trim()))
            .filter(|(_, line)| !line.is_empty());
        let last_line = text.lines().count().max(1);
        let Some((count_line, count)) = lines.next() else {
            return Err(fail(
                last_line,
                "the file is empty; its first line is the number of servers",
            ));
        };
        let count = parse_count(count_line, count)?;
        let mut servers = Vec::new();
        let mut taken = HashMap::new();
        for (line, text) in lines {
            if servers.len() == usize::from(count) {
                return Err(fail(
                    line,
                    format!("one server too many: line {count_line} gives the number {count}"),
                ));
            }
            let id = ServerId(u16::try_from(servers.len()).expect("at most 1,024 servers"));
            let server = parse_server(line, id, text)?;
            refuse_duplicate_ports(&mut taken, line, &server)?;
            servers.push(server);
        }
        if servers.len() < usize::from(count) {
            return Err(fail(
                last_line,
                format!(
                    "the file ends after {} servers, but line {count_line} gives the number {count}",
                    servers.len()
                ),
            ));
        }
        Ok(ClusterFile { servers })
    }

    /// Returns the number of servers.
    pub fn count(&self) -> u16 {
        u16::try_from(self.servers.len()).expect("at most 1,024 servers")
    }
}

fn fail(line: usize, reason: impl Into<String>) -> ClusterFileError {
    ClusterFileError { line, reason: reason.into() }
}

fn parse_count(line: usize, text: &str) -> Result<u16, ClusterFileError> {
    let mut words = text.split_whitespace();
    let word = words.next().unwrap_or("");
    let count: u16 = word.parse().map_err(|_| {
        let shown = crate::escape::readable(word.as_bytes());
        fail(line, format!("`{shown}` is not a number of servers ({MIN_SERVERS} to {MAX_SERVERS})"))
    })?;
    refuse_trailing(line, words.next())?;
    if !(MIN_SERVERS..=MAX_SERVERS).contains(&count) {
        return Err(fail(line, format!("{count} servers; write {MIN_SERVERS} to {MAX_SERVERS}")));
    }
    Ok(count)
}

fn parse_server(line: usize, id: ServerId, text: &str) -> Result<ServerLine, ClusterFileError> {
    let mut words = text.split_whitespace();
    let host = parse_host(line, words.next().unwrap_or(""))?;
    let mut port = |name: &str| {
        let Some(word) = words.next() else {
            return Err(fail(
                line,
                format!(
                    "{name} is missing; write <host> <clients_port> <servers_port> <coord_port>"
                ),
            ));
        };
        word.parse::<u16>().map_err(|_| {
            let shown = crate::escape::readable(word.as_bytes());
            fail(line, format!("{name} `{shown}` is not a port (0 to 65535, 0 = any free one)"))
        })
    };
    let clients_port = port("clients_port")?;
    let servers_port = port("servers_port")?;
    let coord_port = port("coord_port")?;
    refuse_trailing(line, words.next())?;
    Ok(ServerLine { id, host, clients_port, servers_port, coord_port })
}

fn refuse_trailing(line: usize, word: Option<&str>) -> Result<(), ClusterFileError> {
    word.map_or(Ok(()), |word| {
        let shown = crate::escape::readable(word.as_bytes());
        Err(fail(line, format!("unexpected `{shown}`; remove it")))
    })
}

fn parse_host(line: usize, word: &str) -> Result<Host, ClusterFileError> {
    if word == "localhost" {
        return Ok(Host::Local);
    }
    let bad = || {
        let shown = crate::escape::readable(word.as_bytes());
        fail(
            line,
            format!(
                "`{shown}` is not a host; write localhost, user@host or ssh://user@host[:port]"
            ),
        )
    };
    let (rest, is_url) = match word.strip_prefix("ssh://") {
        Some(rest) => (rest, true),
        None => (word, false),
    };
    let (user, rest) = match rest.split_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None if is_url => (None, rest),
        None => return Err(bad()),
    };
    let (host, port) = match rest.rsplit_once(':') {
        // The colons of an IPv6 address in brackets do not separate a port.
        Some((host, port)) if is_url && !port.ends_with(']') => {
            let port: u16 = port.parse().map_err(|_| bad())?;
            if port == 0 {
                return Err(bad());
            }
            (host, Some(port))
        }
        _ => (rest, None),
    };
    // Text passed to ssh must not look like an option, and must not contain characters that a shell
    // interprets.
    let is_name = |name: &str, extra: &str| {
        !name.is_empty()
            && !name.starts_with('-')
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || extra.contains(c))
    };
    if !user.is_none_or(|user| is_name(user, "")) || !is_name(host, "[]:%") {
        return Err(bad());
    }
    Ok(Host::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port })
}

/// Rejects a server whose port is already taken by an earlier listener on the same machine, and records its ports.
fn refuse_duplicate_ports(
    taken: &mut HashMap<(String, u16), usize>,
    line: usize,
    server: &ServerLine,
) -> Result<(), ClusterFileError> {
    let machine = match &server.host {
        Host::Local => "localhost".to_owned(),
        Host::Ssh { host, .. } => host.clone(),
    };
    for port in [server.clients_port, server.servers_port, server.coord_port] {
        if port == 0 {
            continue;
        }
        if let Some(earlier) = taken.insert((machine.clone(), port), line) {
            return Err(fail(
                line,
                format!("port {port} of {machine} is already taken by line {earlier}"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blank_lines_and_all_host_forms_are_read() {
        let text = "# a cluster\n\n 3 # servers\nlocalhost 0 0 0\nkv@db 7000 7001 7002\n\
                    ssh://kv@db:2222 7003 7004 7005 # the third\n";
        let file = ClusterFile::parse(text).unwrap();
        assert_eq!(file.count(), 3);
        assert_eq!(file.servers[0].host, Host::Local);
        assert_eq!(file.servers[1].host.to_string(), "kv@db");
        assert_eq!(file.servers[2].host.to_string(), "ssh://kv@db:2222");
        assert_eq!(file.servers[2].coord_port, 7005);
        assert_eq!(file.servers[2].id, ServerId(2));
    }

    #[test]
    fn a_byte_order_mark_at_the_start_is_skipped() {
        let text = "\u{feff}3\r\nlocalhost 0 0 0\r\nlocalhost 0 0 0\r\nlocalhost 0 0 0\r\n";
        assert_eq!(ClusterFile::parse(text).unwrap().count(), 3);
        let error = ClusterFile::parse("3\n\u{feff}localhost 0 0 0\n").unwrap_err();
        assert_eq!(error.line, 2);
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let three = "localhost 0 0 0\n".repeat(3);
        for (text, line, words) in [
            (String::new(), 1, "empty"),
            ("# nothing\n\n".into(), 2, "empty"),
            ("three\n".into(), 1, "`three` is not a number"),
            ("3 4\n".into(), 1, "unexpected `4`"),
            (format!("2\n{three}"), 1, "3 to 1024"),
            (format!("1025\n{three}"), 1, "3 to 1024"),
            (format!("99999\n{three}"), 1, "not a number"),
            (format!("4\n{three}"), 4, "ends after 3"),
            (format!("3\n{three}localhost 0 0 0\n"), 5, "one server too many"),
            ("3\nlocalhost 0 0\n".into(), 2, "coord_port is missing"),
            ("3\nlocalhost 0 0 0 0\n".into(), 2, "unexpected `0`"),
            ("3\nlocalhost 0 0 65536\n".into(), 2, "`65536` is not a port"),
            ("3\nlocalhost -1 0 0\n".into(), 2, "`-1` is not a port"),
            ("3\ndb 0 0 0\n".into(), 2, "`db` is not a host"),
            ("3\nssh://kv@db:x 0 0 0\n".into(), 2, "not a host"),
            ("3\nssh://kv@db:0 0 0 0\n".into(), 2, "not a host"),
            ("3\n-oProxyCommand=x@db 0 0 0\n".into(), 2, "not a host"),
            ("3\nkv@-oProxyCommand=x 0 0 0\n".into(), 2, "not a host"),
            ("3\nkv@$(reboot) 0 0 0\n".into(), 2, "not a host"),
            ("3\n@db 0 0 0\n".into(), 2, "not a host"),
            ("3\nlocalhost 7 7 0\n".into(), 2, "port 7 of localhost is already taken by line 2"),
            ("3\nlocalhost 7 8 9\nlocalhost 9 0 0\n".into(), 3, "taken by line 2"),
        ] {
            let error = ClusterFile::parse(&text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(error.reason.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_same_port_on_two_machines_is_fine() {
        let text = "3\nkv@a 7 8 9\nkv@b 7 8 9\nlocalhost 7 8 9\n";
        assert_eq!(ClusterFile::parse(text).unwrap().count(), 3);
    }
}
