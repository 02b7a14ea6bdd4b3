//! Newtypes for ids, versions, numbers and times that would otherwise be bare integers.
//!
//! The compiler rejects one id in place of another. The comment on each type gives its meaning, its range and the
//! process that assigns it. `docs/consistency.md` explains the terms.

use std::fmt;
use std::num::NonZeroU64;

/// Defines a newtype over an unsigned integer with `Display`, ordering and a public field.
macro_rules! integer_id {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

integer_id! {
    /// A server's place in the ring, 0 to N-1. The coordinator assigns it; it never changes.
    ServerId(u16)
}
integer_id! {
    /// A group g of keys: those with `MD5(key) mod N` = g. Group g is at home on server g (primary)
    /// and server (g+1) mod N (secondary).
    GroupId(u16)
}
integer_id! {
    /// A slice of a group by digest, served by the executor of the same number on every server.
    ShardId(u16)
}
integer_id! {
    /// The version of a group's view. Only the coordinator creates views; versions start at 1 and only increase. Zero
    /// means "none known".
    ViewVersion(u64)
}
integer_id! {
    /// The position of a write in the log of its (group, shard): from 1, without gaps, assigned by the primary,
    /// never reused. It is also the version of the entry that the write leaves.
    SequenceNumber(u64)
}
integer_id! {
    /// The number of a write in its session (client, group, shard), from 1. A retry keeps it. Zero in requests that are
    /// not writes.
    RequestSeq(u64)
}
integer_id! {
    /// A hash of the request of a write; see [`crate::request_hash`]. Zero means unknown.
    RequestHash(u64)
}
integer_id! {
    /// The id of a request in flight on one connection; chosen by the client, repeated by the server.
    RequestId(u64)
}
integer_id! {
    /// The id of an order, unique in the life of a cluster. The server's report repeats it. The upper half is the
    /// coordinator's epoch, so a coordinator distinguishes reports on its own orders from those on orders of an earlier
    /// coordinator.
    OrderId(u64)
}

integer_id! {
    /// The id of a PID namespace, valid until the machine reboots. Zero means "not known".
    PidNamespace(u64)
}

impl OrderId {
    /// Returns the first order id of a coordinator; the following ids are consecutive.
    pub fn first_of(epoch: Epoch) -> OrderId {
        OrderId((epoch.number << 32) | 1)
    }

    /// Returns whether the coordinator with this epoch issued the order.
    pub fn is_of(self, epoch: Epoch) -> bool {
        self.0 >> 32 == epoch.number & u64::from(u32::MAX)
    }
}

impl GroupId {
    /// Returns the home server of this group's primary.
    pub fn home_primary(self) -> ServerId {
        ServerId(self.0)
    }

    /// Returns the home server of this group's secondary in a ring of `servers`.
    pub fn home_secondary(self, servers: u16) -> ServerId {
        ServerId(self.0).successor(servers)
    }
}

impl ServerId {
    /// Returns the next server of the ring: the home of the secondary of this server's home group.
    pub fn successor(self, servers: u16) -> ServerId {
        assert!(self.0 < servers, "server {self} is not in a ring of {servers}");
        ServerId(if self.0 + 1 == servers { 0 } else { self.0 + 1 })
    }

    /// Returns the group whose primary has its home on this server.
    pub fn home_group(self) -> GroupId {
        GroupId(self.0)
    }
}

impl SequenceNumber {
    /// The position before the first write.
    pub const ZERO: SequenceNumber = SequenceNumber(0);

    /// Returns the sequence number after this one.
    #[must_use]
    pub fn next(self) -> SequenceNumber {
        SequenceNumber(self.0 + 1)
    }
}

integer_id! {
    /// The number of a map within a coordinator's epoch: a later map has a higher number.
    MapRevision(u64)
}

/// Defines a random 64- or 128-bit identity that is printed in hex.
macro_rules! random_id {
    ($(#[$meta:meta])* $name:ident($inner:ty, $width:literal)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $width, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                <$inner>::from_str_radix(text, 16).map($name)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_id! {
    /// The id of a cluster; random, drawn by the coordinator at its first start. Zero in a client's hello means "any
    /// cluster".
    ClusterId(u128, "32")
}
random_id! {
    /// The secret shared by the processes of one cluster; see [`key`](crate::key). It is random, drawn by the
    /// coordinator at its first start. A server that was started without a key uses zero.
    ClusterKey(u128, "32")
}
random_id! {
    /// The id of a client; random, drawn by the client. It identifies the client's sessions (consistency.md §8).
    ClientId(u128, "32")
}
random_id! {
    /// The id of one server process; random, drawn by the coordinator before it spawns the process.
    Incarnation(u64, "16")
}
random_id! {
    /// The id of one coordinator process; random, the second half of an [`Epoch`].
    BootId(u64, "16")
}

/// One server process at one place of the ring, as named in views.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Member {
    /// The place in the ring.
    pub server: ServerId,
    /// The process at that place.
    pub incarnation: Incarnation,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.server, self.incarnation)
    }
}

/// The term of a coordinator. The number increases by one at every start of a coordinator. Servers reject orders of a
/// lower epoch.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Epoch {
    /// The number, which increases at every start.
    pub number: u64,
    /// The process, which distinguishes two coordinators that claim the same number.
    pub boot: BootId,
}

/// A reading of a node's own monotonic clock (CLOCK_BOOTTIME), in nanoseconds since that node's boot. Readings of two
/// nodes are never compared. A reading in a message (`t_send`) is only echoed to the node that took it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Nanoseconds since the node's boot.
    pub nanos: u64,
}

impl Time {
    /// Returns the reading `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Time {
        Time { nanos }
    }

    /// Returns the time from `earlier` to this reading; zero if this reading is not later.
    pub fn since(self, earlier: Time) -> std::time::Duration {
        std::time::Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}

impl std::ops::Add<std::time::Duration> for Time {
    type Output = Time;
    fn add(self, duration: std::time::Duration) -> Time {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Time { nanos: self.nanos.saturating_add(nanos) }
    }
}

/// A point in wall time (CLOCK_REALTIME): milliseconds since 1970-01-01 00:00 UTC, at most [`WallTime::MAX`]. Wall
/// clocks of two machines differ and may be set, so only the expiry of entries depends on wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime {
    /// One more than the number of milliseconds, so that an `Option<WallTime>` takes 8 bytes.
    after: NonZeroU64,
}

impl WallTime {
    /// The latest time: 2^48 - 1 milliseconds, in the year 10889.
    pub const MAX: WallTime = WallTime::from_millis(u64::MAX);

    /// Returns the time `millis` milliseconds after 1970, or [`WallTime::MAX`] if that is earlier.
    pub const fn from_millis(millis: u64) -> WallTime {
        let most = (1 << 48) - 1;
        let millis = if millis < most { millis } else { most };
        WallTime { after: NonZeroU64::MIN.saturating_add(millis) }
    }

    /// Returns the number of milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.after.get() - 1
    }

    /// Returns the time `millis` milliseconds later.
    #[must_use]
    pub const fn after(self, millis: u64) -> WallTime {
        WallTime::from_millis(self.millis().saturating_add(millis))
    }
}

impl Default for WallTime {
    fn default() -> WallTime {
        WallTime::from_millis(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_closes() {
        assert_eq!(ServerId(0).successor(3), ServerId(1));
        assert_eq!(ServerId(2).successor(3), ServerId(0));
        assert_eq!(GroupId(2).home_secondary(3), ServerId(0));
    }

    #[test]
    fn random_ids_survive_text_and_json() {
        let id = ClusterId(0x00ab_cdef_0000_0000_0000_0000_0000_0001);
        assert_eq!(id.to_string(), "00abcdef000000000000000000000001");
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<ClusterId>(&json).unwrap(), id);
    }

    #[test]
    fn the_time_since_a_later_reading_is_zero() {
        let early = Time::from_nanos(5);
        let late = Time::from_nanos(9);
        assert_eq!(late.since(early).as_nanos(), 4);
        assert_eq!(early.since(late).as_nanos(), 0);
        assert_eq!((Time::from_nanos(u64::MAX) + std::time::Duration::MAX).nanos, u64::MAX);
    }
}
