//! The shapes of floods.

use std::fmt;

/// The kind of bytes that a flood sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Noop,
    GetMissing,
    /// Reads of a value with this many bytes.
    Get(usize),
    Put(usize),
    /// Requests for pages with values, with a pattern that matches no key.
    Scan,
    /// Updates that add to as many keys as one request may have.
    Batch,
    /// Updates that set the largest number with a fraction that a text can have, and add to it as often as one request
    /// may.
    Floats,
    /// Writes with the shortest expiry, and reads of keys that have expired.
    Expired,
    Map,
    /// Connections that send a hello and are then reset.
    Hellos,
    /// Connections that send nothing and are reset.
    Silent,
    /// Random bytes after a hello.
    Garbage,
    /// Random bytes to the port for servers.
    GarbageToServers,
}

/// The way in which requests are sent and responses are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The next request is sent after the response to the last one.
    Closed,
    /// Requests are sent as fast as the socket accepts them.
    Open,
    /// Requests are sent as fast as the socket accepts them, and no response is read.
    Unread,
}

/// The shape of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    pub(crate) manner: Manner,
    pub(crate) connections: usize,
}

const fn shape(kind: Kind, manner: Manner, connections: usize) -> Shape {
    Shape { kind, manner, connections }
}

/// All shapes.
pub(crate) const SHAPES: &[Shape] = &[
    shape(Kind::Noop, Manner::Open, 1),
    shape(Kind::Noop, Manner::Open, 2),
    shape(Kind::Noop, Manner::Open, 50),
    shape(Kind::Noop, Manner::Open, 1_000),
    shape(Kind::Noop, Manner::Closed, 1_000),
    shape(Kind::GetMissing, Manner::Open, 6),
    shape(Kind::GetMissing, Manner::Open, 1_000),
    shape(Kind::GetMissing, Manner::Closed, 100),
    shape(Kind::Get(64), Manner::Open, 6),
    shape(Kind::Get(64), Manner::Closed, 1_000),
    shape(Kind::Get(64), Manner::Unread, 200),
    shape(Kind::Get(16 << 10), Manner::Open, 16),
    shape(Kind::Get(16 << 10), Manner::Closed, 1_000),
    shape(Kind::Get(1 << 20), Manner::Open, 8),
    shape(Kind::Get(1 << 20), Manner::Closed, 100),
    shape(Kind::Get(4 << 20), Manner::Unread, 200),
    shape(Kind::Get(16 << 20), Manner::Closed, 1),
    shape(Kind::Get(16 << 20), Manner::Open, 64),
    shape(Kind::Put(64), Manner::Open, 16),
    shape(Kind::Put(64), Manner::Closed, 1_000),
    shape(Kind::Put(64 << 10), Manner::Open, 8),
    shape(Kind::Put(1 << 20), Manner::Closed, 16),
    shape(Kind::Put(16 << 20), Manner::Closed, 4),
    shape(Kind::Scan, Manner::Open, 6),
    shape(Kind::Scan, Manner::Closed, 1_000),
    shape(Kind::Scan, Manner::Unread, 200),
    shape(Kind::Batch, Manner::Open, 8),
    shape(Kind::Batch, Manner::Closed, 200),
    shape(Kind::Floats, Manner::Open, 8),
    shape(Kind::Floats, Manner::Closed, 200),
    shape(Kind::Expired, Manner::Open, 16),
    shape(Kind::Expired, Manner::Closed, 1_000),
    shape(Kind::Map, Manner::Open, 4),
    shape(Kind::Map, Manner::Closed, 1_000),
    shape(Kind::Hellos, Manner::Open, 200),
    shape(Kind::Silent, Manner::Open, 1_000),
    shape(Kind::Garbage, Manner::Open, 8),
    shape(Kind::GarbageToServers, Manner::Open, 8),
];

/// A short selection: shapes that once made clusters change their views, and shapes of further kinds.
pub(crate) const QUICK: &[Shape] = &[
    shape(Kind::Noop, Manner::Open, 2),
    shape(Kind::GetMissing, Manner::Open, 6),
    shape(Kind::Noop, Manner::Closed, 1_000),
    shape(Kind::Get(64), Manner::Unread, 20),
    shape(Kind::Hellos, Manner::Open, 200),
    shape(Kind::Garbage, Manner::Open, 8),
    shape(Kind::Scan, Manner::Open, 6),
    shape(Kind::Expired, Manner::Open, 16),
];

impl Shape {
    /// Returns whether responses arrive and are read.
    pub(crate) fn is_answered(&self) -> bool {
        let is_garbage = matches!(self.kind, Kind::Garbage | Kind::GarbageToServers);
        self.manner != Manner::Unread && !is_garbage
    }

    /// Returns whether the flood sends writes.
    pub(crate) fn writes(&self) -> bool {
        matches!(self.kind, Kind::Put(_) | Kind::Batch | Kind::Floats | Kind::Expired)
    }

    /// Returns whether the flood needs entries under all keys of [`Aim`](super::sender::Aim).
    pub(crate) fn needs_entries(&self) -> bool {
        self.kind == Kind::Scan
    }

    /// Returns the length of the value that the flood reads; `None` if it reads no value.
    pub(crate) fn value_bytes(&self) -> Option<usize> {
        match self.kind {
            Kind::Get(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { kind, manner, connections } = self;
        match kind {
            Kind::Noop => f.write_str("NOOP"),
            Kind::GetMissing => f.write_str("GET of a missing key"),
            Kind::Get(bytes) => write!(f, "GET of {}", Size(*bytes)),
            Kind::Put(bytes) => write!(f, "PUT of {}", Size(*bytes)),
            Kind::Scan => f.write_str("SCAN without a match"),
            Kind::Batch => f.write_str("UPDATE of 1,024 keys"),
            Kind::Floats => f.write_str("UPDATE with 31 sums of 4,932 digits"),
            Kind::Expired => f.write_str("expired keys"),
            Kind::Map => f.write_str("MAP"),
            Kind::Hellos => return write!(f, "hellos, {connections} connections open"),
            Kind::Silent => return write!(f, "silent connections, {connections} open"),
            Kind::Garbage => return write!(f, "garbage, {connections} connections"),
            Kind::GarbageToServers => {
                return write!(f, "garbage at the servers port, {connections} connections");
            }
        }?;
        let manner = match manner {
            Manner::Closed => "closed loop",
            Manner::Open => "open loop",
            Manner::Unread => "responses unread",
        };
        write!(
            f,
            ", {manner}, {connections} connection{}",
            if *connections == 1 { "" } else { "s" }
        )
    }
}

struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_a_unique_name() {
        let mut names: Vec<String> = SHAPES.iter().map(Shape::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), SHAPES.len());
        assert!(names.contains(&"GET of 16 MiB, open loop, 64 connections".to_owned()));
    }
}
