//! The search for the dumps of a process that has ended with an unknown exit status (`--dumped`).

use std::io::{self, ErrorKind};
use std::path::Path;

use kv_core::dump::{DumpError, DumpItem, DumpOrigin, DumpReader};
use kv_daemon::files;
use kv_protocol::ids::Incarnation;

const READ_BYTES: usize = 256 << 10;

/// The reason why a dump is not read further.
enum Stopped {
    Broken(DumpError),
    OfAnother,
}

impl From<DumpError> for Stopped {
    fn from(error: DumpError) -> Stopped {
        Stopped::Broken(error)
    }
}

/// Checks a whole dump and returns its origin. Returns `None` if the file does not exist, or if another process wrote
/// it; such a file is read only up to its header.
///
/// # Errors
/// The file cannot be read, is not a valid dump, or is incomplete.
pub(crate) fn by(writer: Incarnation, path: &Path) -> io::Result<Option<DumpOrigin>> {
    let mut file = match files::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let broken = |error: DumpError| io::Error::new(ErrorKind::InvalidData, error.to_string());
    let mut bytes = vec![0; READ_BYTES];
    let mut reader = DumpReader::new();
    loop {
        let count = files::read_some(&mut file, &mut bytes)?;
        if count == 0 {
            break;
        }
        let fed = reader.feed(&bytes[..count], |item| match item {
            DumpItem::Origin(origin) if origin.writer.incarnation != writer => {
                Err(Stopped::OfAnother)
            }
            _ => Ok(()),
        });
        match fed {
            Ok(()) => {}
            Err(Stopped::OfAnother) => return Ok(None),
            Err(Stopped::Broken(error)) => return Err(broken(error)),
        }
    }
    Ok(Some(reader.finish().map_err(broken)?.origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::dump::{DumpWriter, DumpedShard, HeldAs};
    use kv_protocol::ids::{
        ClusterId, GroupId, Member, SequenceNumber, ServerId, ShardId, ViewVersion,
    };

    const WRITER: Member = Member { server: ServerId(1), incarnation: Incarnation(7) };

    #[test]
    fn only_a_complete_dump_of_this_process_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let origin = DumpOrigin {
            cluster: ClusterId(3),
            writer: WRITER,
            group: GroupId(1),
            shards: 1,
            hash_tags: false,
        };
        let mut text = Vec::new();
        let mut writer = DumpWriter::begin(&origin, &mut text);
        let (view, last) = (ViewVersion(2), SequenceNumber(5));
        let line = DumpedShard {
            shard: ShardId(0),
            held_as: HeldAs::Primary,
            view,
            last,
            forgotten: SequenceNumber::ZERO,
        };
        writer.shard(&line, &mut text);
        writer.entry(b"key", b"value", None, SequenceNumber(5), &mut text);
        let length = text.len();
        writer.end(&mut text);
        let path = dir.path().join("server_1.primary");
        assert_eq!(by(WRITER.incarnation, &path).unwrap(), None, "it does not exist");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(by(WRITER.incarnation, &path).unwrap(), Some(origin));
        assert_eq!(by(Incarnation(8), &path).unwrap(), None, "another process wrote it");
        std::fs::write(&path, &text[..length]).unwrap();
        assert!(by(WRITER.incarnation, &path).is_err(), "it is incomplete");
    }
}
