//! Places of the ring that moved to other hosts. The cause is `coord replace`, or a cluster file that was edited while
//! no coordinator ran.
//!
//! | host of a place in the cluster file | result |
//! |---|---|
//! | the host in the state | the file's line applies |
//! | its host before `coord replace` moved it | the state's line applies; a warning reports the outdated file |
//! | another host | the file's line applies: the place moves there |

use kv_protocol::ServerId;
use kv_protocol::cluster_file::ClusterFile;

use crate::place::{Moved, Place};

/// The result of comparing a cluster file with the state of a running cluster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The effective cluster file, with the current host of every place.
    pub(crate) file: ClusterFile,
    /// The moved places for which the file still names the previous host.
    pub(crate) moved: Vec<Moved>,
    /// The places that the file moves to other hosts.
    pub(crate) moves: Vec<ServerId>,
}

/// Compares a cluster file with the state, which must have the same number of servers.
pub(crate) fn read(file: ClusterFile, place: &Place) -> Reading {
    let mut reading = Reading { file, moved: Vec::new(), moves: Vec::new() };
    for (line, host) in reading.file.servers.iter_mut().zip(&place.hosts) {
        let moved = place.moved.iter().find(|moved| moved.server == line.id);
        match moved.filter(|moved| moved.from == line.host && moved.host != line.host) {
            Some(moved) => {
                *line = moved.line();
                reading.moved.push(moved.clone());
            }
            None if line.host != *host => reading.moves.push(line.id),
            None => {}
        }
    }
    reading
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    fn file(hosts: [&str; 3]) -> ClusterFile {
        let lines = hosts.map(|host| format!("{host} 0 0 0\n")).concat();
        ClusterFile::parse(&format!("3\n{lines}")).unwrap()
    }

    const DB: &str = "ssh://db:22";

    #[test]
    fn a_file_with_the_hosts_of_the_state_moves_no_place() {
        let place = record(1).place;
        let same = file(["localhost", DB, "localhost"]);
        let reading = read(same.clone(), &place);
        assert_eq!(reading, Reading { file: same, moved: Vec::new(), moves: Vec::new() });
    }

    #[test]
    fn an_edited_file_moves_a_place_and_an_outdated_one_does_not() {
        let mut place = record(1).place;
        let changed = file(["localhost", "kv@new", "localhost"]);
        assert_eq!(read(changed.clone(), &place).moves, [ServerId(1)]);

        // The same move was made by `coord replace`, and the file still names the previous host.
        let new = changed.servers[1].host.clone();
        let from = std::mem::replace(&mut place.hosts[1], new.clone());
        place.moved =
            vec![Moved { server: ServerId(1), from, host: new.clone(), ports: [7, 8, 9] }];
        let old = read(file(["localhost", DB, "localhost"]), &place);
        assert_eq!((old.moves.len(), old.moved.len()), (0, 1));
        assert_eq!((&old.file.servers[1].host, old.file.servers[1].coord_port), (&new, 9));
        assert_eq!(old.moved[0].words(), "kv@new 7 8 9");
        // The file is first up to date, and then names a third host.
        let current = read(changed, &place);
        assert_eq!((current.moves.len(), current.moved.len()), (0, 0));
        let third = read(file(["localhost", "kv@third", "localhost"]), &place);
        assert_eq!((third.moves, third.moved.len()), (vec![ServerId(1)], 0));
    }
}
