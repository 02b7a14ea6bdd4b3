//! The key of a cluster, at the head of every first frame between its processes: STARTED, ORDERS-HELLO and
//! PEER-HELLO.
//!
//! Names (of the cluster, of processes, of epochs) are told to every client, so they prove nothing. The key
//! is told to nobody: it stands in the coordinator's state and in the environment of its servers. It is sent
//! in clear, so it keeps out strangers who can dial, not those who can listen.

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::ids::ClusterKey;

/// The variable by which a server is given its key, 32 hex digits.
pub const ENVIRONMENT_VARIABLE: &str = "KV_CLUSTER_KEY";

pub(crate) fn write_key(body: &mut Vec<u8>, key: ClusterKey) {
    body.put_u128(key.0);
}

/// Nothing else of a first frame is looked at before its key is right.
pub(crate) fn check_key(reader: &mut Reader<'_>, key: ClusterKey) -> Result<(), DecodeError> {
    match ClusterKey(reader.u128("cluster key")?) == key {
        true => Ok(()),
        false => Err(DecodeError::WrongKey),
    }
}
