//! The format of a state: the names of its files, and its bytes.

use super::record::{self, Record};

/// The name of the state in the coordinator's directory.
pub(crate) const FILE_NAME: &str = "coordinator.state";
/// The name of the state of the previous cluster.
pub(crate) const OLD_NAME: &str = "coordinator.state.old";
/// The name of the file that is written next.
pub(super) const SPARE_NAME: &str = "coordinator.state.spare";
const MAGIC: &str = "kv-coordinator-state";
/// The version of the format.
pub(super) const VERSION: &str = "3";
/// The maximum length of the header line.
const HEADER_ROOM: usize = 64;

/// Returns the bytes of a state, with the header line. The JSON is padded with spaces, so that states that fit into
/// `room` bytes have the same size.
pub(super) fn encode_in(record: &Record, room: usize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(record).expect("a state has only strings for keys");
    json.resize(json.len().max(room.saturating_sub(HEADER_ROOM)), b' ');
    let crc = crc32c::crc32c(&json);
    let mut bytes = format!("{MAGIC} {VERSION} {} {crc:08x}\n", json.len()).into_bytes();
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    bytes
}

/// The reason why bytes are not a valid state.
#[derive(Debug)]
pub(super) enum Bad {
    Version(String),
    Bytes(String),
}

fn bad(what: impl Into<String>) -> Bad {
    Bad::Bytes(what.into())
}

/// Returns the state in these bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, Bad> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let header = std::str::from_utf8(line).unwrap_or_default();
    let json = bytes.get(line.len() + 1..).unwrap_or_default();
    let words: Vec<&str> = header.split(' ').collect();
    let (length, crc) = match words[..] {
        [MAGIC, VERSION, length, crc] => (length, crc),
        [MAGIC, other, ..] if other.parse::<u32>().is_ok() => {
            return Err(Bad::Version(format!("version {other}")));
        }
        _ => return Err(bad("its first line does not mark it as a coordinator's state")),
    };
    let json = json.strip_suffix(b"\n").unwrap_or(json);
    if length.parse() != Ok(json.len()) {
        return Err(bad(format!("the header gives {length} bytes, but there are {}", json.len())));
    }
    let found = crc32c::crc32c(json);
    if u32::from_str_radix(crc, 16) != Ok(found) {
        return Err(bad(format!("its CRC-32C is {found:08x}, not {crc}")));
    }
    let record: Record = serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
    record::check(&record).map_err(bad)?;
    Ok(record)
}
