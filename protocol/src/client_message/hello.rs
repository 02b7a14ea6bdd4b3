//! The first two frames of a client's connection.

use super::{Status, opcode};
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::frame::{Checksum, write_frame};
use crate::ids::{ClientId, ClusterId, GroupId, Member, SequenceNumber, ServerId, ShardId};
use crate::limits::{MAX_SERVERS, MAX_SHARDS, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use crate::map::bounded;
use crate::placement::Placement;
use crate::view::{read_member, write_member};

/// The first frame of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster that the client expects; zero for any cluster.
    pub cluster: ClusterId,
    /// The id of the client.
    pub client: ClientId,
    /// The shard whose executor is to serve the connection; ignored by the coordinator.
    pub shard: ShardId,
    /// The highest version of the protocol that the client supports.
    pub version: u16,
}

impl Hello {
    /// Creates the hello of a client that supports [`PROTOCOL_VERSION`].
    pub fn new(cluster: ClusterId, client: ClientId, shard: ShardId) -> Hello {
        Hello { cluster, client, shard, version: PROTOCOL_VERSION }
    }

    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Absent, opcode::HELLO, |body| {
            body.put_u128(self.cluster.0);
            body.put_u128(self.client.0);
            body.put_u16(self.shard.0);
            if self.version > PROTOCOL_VERSION_MIN {
                body.put_u16(self.version);
            }
        });
    }

    /// Returns the version that applies to the connection: the lower one of both sides.
    pub fn agreed_version(&self) -> u16 {
        self.version.min(PROTOCOL_VERSION)
    }

    /// Checks that the client places keys as the cluster does. Returns the status and the reason to reject it with if
    /// it does not: version 1 of the protocol has no hash tags.
    pub fn check_placement(&self, placement: Placement) -> Result<(), (Status, &'static str)> {
        if placement.hash_tags() && self.version == PROTOCOL_VERSION_MIN {
            return Err((
                Status::Unsupported,
                "this cluster has hash tags, so it needs protocol version 2, but this client speaks version 1 and \
                 would look for keys in wrong places; upgrade the client",
            ));
        }
        Ok(())
    }

    /// Reads a hello from its frame's body.
    pub fn read(body: &[u8]) -> Result<Hello, DecodeError> {
        let mut reader = Reader::new(body);
        let mut hello = Hello {
            cluster: ClusterId(reader.u128("cluster id")?),
            client: ClientId(reader.u128("client id")?),
            shard: ShardId(reader.u16("shard")?),
            version: PROTOCOL_VERSION_MIN,
        };
        if reader.left() > 0 {
            hello.version = reader.u16("protocol version")?;
            if hello.version <= PROTOCOL_VERSION_MIN {
                let field = "protocol version";
                return Err(DecodeError::BadValue { field, value: hello.version.into() });
            }
        }
        reader.finish()?;
        Ok(hello)
    }
}

/// The number of groups with their home on one server. One connection carries writes to at most this many groups.
pub const GROUPS_OF_A_SERVER: usize = 2;

/// A log position of a group's shard at which a session may begin (consistency.md §8). It is the last committed write
/// at the time of the connection's handshake, or zero if the server is not the group's primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStart {
    /// The group.
    pub group: GroupId,
    /// The last committed write of the connection's shard of that group.
    pub committed: SequenceNumber,
}

/// The response to a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// The responding server; `None` for the coordinator.
    pub server: Option<Member>,
    /// The number of servers in the ring.
    pub servers: u16,
    /// The number of shards of a group.
    pub shards: u16,
    /// The length of the longest value accepted, in bytes.
    pub max_value: u32,
    /// The log position at which a new session of this connection's client may begin, for each group of the server.
    pub starts: [SessionStart; GROUPS_OF_A_SERVER],
    /// The version of the protocol that both sides support. Version 1 has no UPDATE and no field after `starts`.
    pub version: u16,
}

impl Welcome {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Absent, opcode::WELCOME, |body| {
            body.put_u128(self.cluster.0);
            body.put_u8(self.server.is_some().into());
            let nobody = Member { server: ServerId(0), incarnation: Default::default() };
            write_member(body, self.server.unwrap_or(nobody));
            body.put_u16(self.servers);
            body.put_u16(self.shards);
            body.put_u32(self.max_value);
            for start in self.starts {
                body.put_u16(start.group.0);
                body.put_u64(start.committed.0);
            }
            if self.version > PROTOCOL_VERSION_MIN {
                body.put_u16(self.version);
            }
        });
    }

    /// Reads a welcome from its frame's body.
    pub fn read(body: &[u8]) -> Result<Welcome, DecodeError> {
        let mut reader = Reader::new(body);
        let cluster = ClusterId(reader.u128("cluster id")?);
        let is_server = reader.u8("role")?;
        let member = read_member(&mut reader)?;
        let mut welcome = Welcome {
            cluster,
            server: (is_server != 0).then_some(member),
            servers: bounded(reader.u16("server count")?, MAX_SERVERS, "server count")?,
            shards: bounded(reader.u16("shard count")?, MAX_SHARDS, "shard count")?,
            max_value: reader.u32("longest value")?,
            starts: Default::default(),
            version: PROTOCOL_VERSION_MIN,
        };
        for start in &mut welcome.starts {
            start.group = GroupId(reader.u16("group")?);
            start.committed = SequenceNumber(reader.u64("session start")?);
        }
        if reader.left() > 0 {
            welcome.version = reader.u16("protocol version")?;
        }
        reader.finish()?;
        Ok(welcome)
    }
}
