//! Views: the holders of a group. The coordinator creates views; servers install them, and clients route by them.

use serde::{Deserialize, Serialize};

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::{GroupId, Incarnation, Member, ServerId, ViewVersion};

/// Bytes of a view on the wire.
pub const VIEW_BYTES: usize = 2 + 1 + 1 + 8 + 2 * 10;

/// The member of a group besides its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// None: the primary is the only holder.
    None,
    /// A holder with a full copy. Every write waits for its ACK.
    Secondary(Member),
    /// A member with an incomplete copy. It becomes a holder when it has caught up and the next
    /// view names it as secondary.
    Candidate(Member),
}

/// The members of a group, as of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The group.
    pub group: GroupId,
    /// The version, which increases with every view of this group, from 1.
    pub version: ViewVersion,
    /// The member that serves reads and orders writes. `None` if every holder is dead: the group is
    /// LOST.
    pub primary: Option<Member>,
    /// The other member.
    pub peer: Peer,
    /// True if the primary takes over from the live secondary of this view. It serves only after the secondary's
    /// HANDOVER (consistency.md §6, step 5).
    pub handover: bool,
}

impl View {
    /// Returns the secondary, if there is one.
    pub fn secondary(&self) -> Option<Member> {
        match self.peer {
            Peer::Secondary(member) => Some(member),
            Peer::None | Peer::Candidate(_) => None,
        }
    }

    /// Returns the secondary or candidate, if there is one: the destination of the primary's stream.
    pub fn other(&self) -> Option<Member> {
        match self.peer {
            Peer::Secondary(member) | Peer::Candidate(member) => Some(member),
            Peer::None => None,
        }
    }

    /// Returns the number of copies of an acknowledged write under this view; 0 if the group is LOST.
    pub fn copies(&self) -> u8 {
        u8::from(self.primary.is_some()) + u8::from(self.secondary().is_some())
    }
}

const HAS_PRIMARY: u8 = 1;
const HAS_SECONDARY: u8 = 2;
const HAS_CANDIDATE: u8 = 4;
const HANDOVER: u8 = 8;

/// Appends a member.
pub fn write_member(output: &mut Vec<u8>, member: Member) {
    output.put_u16(member.server.0);
    output.put_u64(member.incarnation.0);
}

/// Reads a member.
pub fn read_member(reader: &mut Reader<'_>) -> Result<Member, DecodeError> {
    Ok(Member {
        server: ServerId(reader.u16("server id")?),
        incarnation: Incarnation(reader.u64("incarnation")?),
    })
}

/// Appends a view.
pub fn write_view(output: &mut Vec<u8>, view: &View) {
    let nobody = Member { server: ServerId(0), incarnation: Incarnation(0) };
    let mut flags = 0;
    if view.primary.is_some() {
        flags |= HAS_PRIMARY;
    }
    match view.peer {
        Peer::None => {}
        Peer::Secondary(_) => flags |= HAS_SECONDARY,
        Peer::Candidate(_) => flags |= HAS_CANDIDATE,
    }
    if view.handover {
        flags |= HANDOVER;
    }
    output.put_u16(view.group.0);
    output.put_u8(flags);
    output.put_u8(0);
    output.put_u64(view.version.0);
    write_member(output, view.primary.unwrap_or(nobody));
    write_member(output, view.other().unwrap_or(nobody));
}

/// Reads a view.
pub fn read_view(reader: &mut Reader<'_>) -> Result<View, DecodeError> {
    let group = GroupId(reader.u16("view group")?);
    let flags = reader.u8("view flags")?;
    let reserved = reader.u8("view reserved")?;
    let version = ViewVersion(reader.u64("view version")?);
    let primary = read_member(reader)?;
    let other = read_member(reader)?;
    let peer = match flags & (HAS_SECONDARY | HAS_CANDIDATE) {
        0 => Peer::None,
        HAS_SECONDARY => Peer::Secondary(other),
        HAS_CANDIDATE => Peer::Candidate(other),
        _ => return Err(DecodeError::BadValue { field: "view flags", value: flags.into() }),
    };
    if flags & !(HAS_PRIMARY | HAS_SECONDARY | HAS_CANDIDATE | HANDOVER) != 0 || reserved != 0 {
        return Err(DecodeError::BadValue { field: "view flags", value: flags.into() });
    }
    Ok(View {
        group,
        version,
        primary: (flags & HAS_PRIMARY != 0).then_some(primary),
        peer,
        handover: flags & HANDOVER != 0,
    })
}
