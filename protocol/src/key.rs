//! The handshake in which both ends of a connection prove that they have the cluster's key, without
//! sending the key.
//!
//! ```text
//!   dialler                                       acceptor
//!   CHALLENGE (nonce d, shard)        ->
//!                                     <-          PROOF (nonce a, tag of the acceptor)
//!   hello + tag of the dialler over it ->         the port's own protocol follows
//! ```
//!
//! Ids (of the cluster, of processes, of epochs) are visible to every client, so they prove nothing. Only the cluster's
//! own processes have the key: it is stored in the coordinator's state, and each server receives it through a pipe.
//! Every connection between two processes of the cluster begins with this handshake. Neither side processes any other
//! message before it has verified the other side's tag. The dialler verifies first, so a foreign process that has taken
//! over the port of a coordinator receives no secret and cannot send orders.
//!
//! A tag is an HMAC-SHA-256 (RFC 2104, FIPS 180-4) with the cluster's key. It covers a label of the protocol, the role,
//! the [`Link`] and both nonces. The dialler's tag also covers the hello. Role and link prevent the use of a tag in the
//! other direction or at another port; the nonces prevent its replay.
//!
//! The handshake authenticates the two ends. It does not encrypt the messages that follow, nor protect them against an
//! attacker that can alter packets in transit.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::frame::{Checksum, write_frame};
use crate::ids::{ClusterKey, ShardId};

/// Opcodes of the handshake, on every port inside the cluster.
pub mod opcode {
    /// The dialler's first frame.
    pub const CHALLENGE: u8 = 0x70;
    /// The acceptor's response.
    pub const PROOF: u8 = 0x71;
}

/// The number of bytes of a tag.
const TAG_BYTES: usize = 32;
/// The name and version of this protocol. Every tag covers them.
const LABEL: &[u8] = b"kv cluster handshake 1";

/// The name and version of the derivation of [`table_secret`].
const TABLE_LABEL: &[u8] = b"kv table order 1";

/// Returns the secret of the hash functions of all tables of a cluster. It follows from the cluster's key, so all
/// servers have it, and clients do not. The tables of all replicas then have the same order, which a scan needs
/// (docs/decisions/2026-11-30-a-scan-survives-a-failover.md).
pub fn table_secret(key: ClusterKey) -> u128 {
    let mut mac = mac_of(key);
    mac.update(TABLE_LABEL);
    let tag: [u8; TAG_BYTES] = mac.finalize().into_bytes().into();
    let first = tag.first_chunk::<16>().expect("a tag has 32 bytes");
    u128::from_be_bytes(*first)
}

fn mac_of(key: ClusterKey) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(&key.0.to_be_bytes()).expect("HMAC takes a key of any length")
}

/// A random number that is used for one connection only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub u128);

/// The kind of a connection between two processes of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// From server to server, for one shard of a group.
    Stream = 1,
    /// From the coordinator to a server.
    Orders = 2,
    /// From a server to the coordinator.
    Reports = 3,
}

/// The side of a connection that creates a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Side {
    Dialler = 1,
    Acceptor = 2,
}

/// The dialler's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The dialler's nonce.
    pub nonce: Nonce,
    /// The shard that a stream is for, so that it reaches the right executor; 0 on other links.
    pub shard: ShardId,
}

impl Challenge {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::CHALLENGE, |body| {
            body.put_u128(self.nonce.0);
            body.put_u16(self.shard.0);
        });
    }

    /// Reads a challenge from its frame's body.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(body: &[u8]) -> Result<Challenge, DecodeError> {
        let mut reader = Reader::new(body);
        let challenge =
            Challenge { nonce: Nonce(reader.u128("nonce")?), shard: ShardId(reader.u16("shard")?) };
        reader.finish()?;
        Ok(challenge)
    }
}

/// The key and the nonces of one connection's handshake. The dialler adds a tag to its hello with them; the acceptor
/// verifies this tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    key: ClusterKey,
    link: Link,
    dialler: Nonce,
    acceptor: Nonce,
}

impl Seal {
    /// Creates the seal of a connection of this kind, with the nonces of both sides.
    pub const fn new(key: ClusterKey, link: Link, dialler: Nonce, acceptor: Nonce) -> Seal {
        Seal { key, link, dialler, acceptor }
    }

    /// Reads a PROOF from its frame's body and creates the dialler's seal. `dialler` is the nonce that the dialler sent
    /// in its challenge.
    ///
    /// # Errors
    /// If the acceptor does not have this key, or the frame is malformed.
    pub fn from_proof(
        key: ClusterKey,
        link: Link,
        dialler: Nonce,
        body: &[u8],
    ) -> Result<Seal, DecodeError> {
        let mut reader = Reader::new(body);
        let acceptor = Nonce(reader.u128("nonce")?);
        let tag: [u8; TAG_BYTES] = reader.array("tag")?;
        reader.finish()?;
        let seal = Seal { key, link, dialler, acceptor };
        seal.verify(Side::Acceptor, &[], &tag)?;
        Ok(seal)
    }

    /// Appends the acceptor's PROOF.
    pub fn write_proof(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::PROOF, |body| {
            body.put_u128(self.acceptor.0);
            body.put_bytes(&self.mac(Side::Acceptor, &[]).finalize().into_bytes());
        });
    }

    /// Appends the dialler's tag to a hello, which begins at `start`.
    pub(crate) fn close(&self, body: &mut Vec<u8>, start: usize) {
        let tag = self.mac(Side::Dialler, &body[start..]).finalize().into_bytes();
        body.put_bytes(&tag);
    }

    /// Verifies the tag of a hello. Returns the hello without the tag.
    pub(crate) fn open<'a>(&self, body: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        let (hello, tag) =
            body.split_last_chunk::<TAG_BYTES>().ok_or(DecodeError::Truncated { field: "tag" })?;
        self.verify(Side::Dialler, hello, tag)?;
        Ok(hello)
    }

    fn verify(&self, side: Side, hello: &[u8], tag: &[u8]) -> Result<(), DecodeError> {
        // The comparison takes constant time: one that stops early would reveal how much of a tag is
        // correct.
        self.mac(side, hello).verify_slice(tag).map_err(|_| DecodeError::WrongKey)
    }

    fn mac(&self, side: Side, hello: &[u8]) -> Hmac<Sha256> {
        let mut mac = mac_of(self.key);
        mac.update(LABEL);
        mac.update(&[side as u8, self.link as u8]);
        mac.update(&self.dialler.0.to_be_bytes());
        mac.update(&self.acceptor.0.to_be_bytes());
        mac.update(hello);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{FrameRules, split_frame};

    const KEY: ClusterKey = ClusterKey(0x5ec);
    const DIALLER: Nonce = Nonce(11);
    const ACCEPTOR: Nonce = Nonce(12);

    fn body(frame: &[u8]) -> Vec<u8> {
        split_frame(frame, &FrameRules::checked(512)).unwrap().unwrap().body.to_vec()
    }

    fn proof(seal: &Seal) -> Vec<u8> {
        let mut frame = Vec::new();
        seal.write_proof(&mut frame);
        body(&frame)
    }

    fn sealed(seal: &Seal, hello: &[u8]) -> Vec<u8> {
        let mut body = b"header".to_vec();
        body.extend_from_slice(hello);
        seal.close(&mut body, b"header".len());
        body.split_off(b"header".len())
    }

    #[test]
    fn both_sides_accept_each_other_with_the_same_key_and_nonces() {
        let acceptor = Seal::new(KEY, Link::Orders, DIALLER, ACCEPTOR);
        let dialler = Seal::from_proof(KEY, Link::Orders, DIALLER, &proof(&acceptor)).unwrap();
        assert_eq!(dialler, acceptor);
        assert_eq!(acceptor.open(&sealed(&dialler, b"hello")), Ok(&b"hello"[..]));
    }

    /// Checks a tag against Python's `hmac` module over the same bytes.
    #[test]
    fn a_tag_is_hmac_sha_256_over_label_side_link_nonces_and_hello() {
        let seal = Seal::new(KEY, Link::Orders, DIALLER, ACCEPTOR);
        let tag = sealed(&seal, b"hello").split_off(b"hello".len());
        let hex: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "480ebe212e47ce210fa2de89d67568d7a8849646f4556e5068897c2d0aeb8297");
    }

    /// Checks a secret against Python's `hmac` module.
    #[test]
    fn the_secret_of_the_tables_is_hmac_sha_256_over_its_label() {
        assert_eq!(table_secret(KEY), 0xcdf09939b794fbf1df75bb473ed8ba04);
        assert_ne!(table_secret(KEY), table_secret(ClusterKey(0x5ed)));
    }

    #[test]
    fn a_proof_of_another_key_link_or_connection_is_refused() {
        let good = Seal::new(KEY, Link::Reports, DIALLER, ACCEPTOR);
        for other in [
            Seal { key: ClusterKey(0x5ed), ..good },
            Seal { link: Link::Orders, ..good },
            Seal { dialler: Nonce(13), ..good },
        ] {
            let read = Seal::from_proof(KEY, Link::Reports, DIALLER, &proof(&other));
            assert_eq!(read, Err(DecodeError::WrongKey), "{other:?}");
        }
        let mut altered = proof(&good);
        altered[0] ^= 1;
        let read = Seal::from_proof(KEY, Link::Reports, DIALLER, &altered);
        assert_eq!(read, Err(DecodeError::WrongKey), "the tag covers the nonce");
    }

    #[test]
    fn a_hello_of_another_connection_or_with_other_content_is_refused() {
        let good = Seal::new(KEY, Link::Stream, DIALLER, ACCEPTOR);
        for other in [
            Seal { key: ClusterKey(0x5ed), ..good },
            Seal { link: Link::Orders, ..good },
            Seal { dialler: Nonce(13), ..good },
            Seal { acceptor: Nonce(13), ..good },
        ] {
            let read = good.open(&sealed(&other, b"hello")).map(<[u8]>::to_vec);
            assert_eq!(read, Err(DecodeError::WrongKey), "{other:?}");
        }
        let body = sealed(&good, b"hello");
        for at in 0..body.len() {
            let mut altered = body.clone();
            altered[at] ^= 1;
            assert_eq!(good.open(&altered), Err(DecodeError::WrongKey), "byte {at}");
        }
        // The acceptor's own tag, reflected to it.
        assert_eq!(good.open(&proof(&good)[16..]), Err(DecodeError::WrongKey));
    }
}
