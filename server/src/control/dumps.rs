//! The dumps of this process: their directory, the failed attempts, and the descriptors that are reserved for dumps. An
//! order or a signal starts a dump ([`super::operation`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kv_core::dump::DumpOrigin;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::DumpedBytes;
use kv_protocol::ids::{GroupId, ServerId, Time};
use kv_shard::Identity;

use crate::aside;
use crate::clock;
use crate::descriptors::DumpReserve;
use crate::dump::{self, DumpFileError, Wanted};
use crate::mailbox;
use crate::message::ShardMessage;
use crate::mutex::lock;

/// The state of the dumps of both tables.
#[derive(Debug)]
pub(crate) struct Dumps {
    /// The origins that the dumps of the primary and the secondary table record.
    origins: [DumpOrigin; 2],
    /// The directory of the dumps, unless [`Dumps::set_directory`] sets another.
    pub(crate) directory: PathBuf,
    /// The absolute path of that directory at the start. It is tried if the directory no longer exists, because a new
    /// directory may have been created at this path.
    absolute_directory: Option<PathBuf>,
    /// The directory that the coordinator has set for the dumps, and whether dumps of an earlier run in it were set
    /// aside.
    dump_to: Mutex<Option<DumpTo>>,
    /// The bytes of keys and values in the dump of each role that were written in the current or last attempt.
    written: [AtomicU64; 2],
    /// For each role, the time of the first failure of its dump since the last success.
    failing: Mutex<[Option<Time>; 2]>,
    /// The descriptors reserved for a dump. The lock is held while a dump is written: two dumps of one table must not
    /// write to one file at the same time.
    reserve: Mutex<DumpReserve>,
}

impl Dumps {
    /// Creates the state of a process that has written no dump, with the directory for its dumps.
    pub(crate) fn new(identity: &Identity, directory: PathBuf) -> Dumps {
        let origins = [identity.primary_group(), identity.secondary_group()];
        let origins = origins.map(|group| DumpOrigin {
            cluster: identity.cluster,
            writer: identity.me,
            group,
            shards: identity.placement.shards(),
            hash_tags: identity.placement.hash_tags(),
        });
        Dumps {
            origins,
            absolute_directory: std::path::absolute(&directory).ok(),
            directory,
            dump_to: Mutex::default(),
            written: Default::default(),
            failing: Mutex::default(),
            reserve: Mutex::default(),
        }
    }

    /// Opens the descriptors that a dump will need.
    ///
    /// # Errors
    /// The error of open(2), such as a lack of descriptors.
    pub(crate) fn fill_reserve(&self) -> io::Result<()> {
        lock(&self.reserve).fill()
    }

    /// Writes the dump of the table of this role, and logs the outcome; returns the number of entries in the dump.
    pub(crate) fn write(
        &self,
        role: ReplicaRole,
        shards: &[mailbox::Sender<ShardMessage>],
    ) -> Result<u64, DumpFileError> {
        let mut reserve = lock(&self.reserve);
        reserve.release();
        let start = Instant::now();
        let origin = self.origins[place_of(role)];
        let result = self.write_file(&Wanted { origin, role }, shards);
        let name = dump::file_name(origin.writer.server, role);
        let failing = &mut lock(&self.failing)[place_of(role)];
        match &result {
            Ok((directory, entries)) => {
                *failing = None;
                let (directory, took) = (directory.display(), start.elapsed());
                tracing::info!(
                    "wrote {name}: {entries} entries in {took:?}, directory {directory}"
                );
            }
            Err(error) if error.is_no_copy() => {
                *failing = None;
                tracing::info!("skipped the dump {name}: {error}");
            }
            Err(error) => {
                failing.get_or_insert_with(clock::now);
                tracing::error!("{error}; the table stays in memory");
            }
        }
        // If a descriptor cannot be reserved again now, one may still be available for the next dump.
        let _ = reserve.fill();
        result.map(|(_, entries)| entries)
    }

    /// Writes a dump to the directory that is set for dumps; returns that directory and the number of entries in the
    /// dump.
    fn write_file(
        &self,
        wanted: &Wanted,
        shards: &[mailbox::Sender<ShardMessage>],
    ) -> Result<(PathBuf, u64), DumpFileError> {
        let written = &self.written[place_of(wanted.role)];
        let write = |directory: &Path| {
            let entries = dump::write(directory, wanted, shards, written)?;
            Ok((directory.to_owned(), entries))
        };
        // The lock is released before the dump: the orders thread sets the directory, and must never wait for a dump.
        let dump_to = lock(&self.dump_to).clone();
        if let Some(mut to) = dump_to {
            to.prepare(wanted.origin.writer.server)?;
            if let Some(known) = &mut *lock(&self.dump_to)
                && known.directory == to.directory
            {
                known.is_prepared = true;
            }
            return write(&to.directory);
        }
        match (write(&self.directory), &self.absolute_directory) {
            (Err(error), Some(path)) if error.is_not_found() => write(path),
            (result, _) => result,
        }
    }

    /// Sets the directory of the following dumps.
    pub(crate) fn set_directory(&self, directory: PathBuf) {
        let mut dump_to = lock(&self.dump_to);
        if dump_to.as_ref().is_none_or(|known| known.directory != directory) {
            tracing::info!("dumps go to {} from now on", directory.display());
            *dump_to = Some(DumpTo { directory, is_prepared: false });
        }
    }

    /// Returns the bytes of keys and values written in the current or last attempt at each dump.
    pub(crate) fn written(&self) -> DumpedBytes {
        let [primary, secondary] = [&self.written[0], &self.written[1]];
        DumpedBytes {
            primary: primary.load(Ordering::Relaxed),
            secondary: secondary.load(Ordering::Relaxed),
        }
    }

    /// Returns the roles whose last dump has failed, each with the time of the first failure since the last success.
    pub(crate) fn failing(&self) -> Vec<(ReplicaRole, Time)> {
        let failing = *lock(&self.failing);
        let roles = [ReplicaRole::Primary, ReplicaRole::Secondary];
        roles.into_iter().zip(failing).filter_map(|(role, since)| Some((role, since?))).collect()
    }

    /// Returns the group whose home assigns this role to this server.
    pub(crate) fn group_of(&self, role: ReplicaRole) -> GroupId {
        self.origins[place_of(role)].group
    }
}

fn place_of(role: ReplicaRole) -> usize {
    match role {
        ReplicaRole::Primary => 0,
        ReplicaRole::Secondary => 1,
    }
}

/// A directory that the coordinator has set for the dumps.
#[derive(Clone, Debug)]
struct DumpTo {
    directory: PathBuf,
    is_prepared: bool,
}

impl DumpTo {
    /// Creates the directory if it does not exist, and sets dumps of an earlier run aside, once.
    fn prepare(&mut self, server: ServerId) -> Result<(), DumpFileError> {
        if !self.is_prepared {
            dump::make_directory(&self.directory)?;
            aside::set_aside(&self.directory, server);
            self.is_prepared = true;
        }
        Ok(())
    }
}
