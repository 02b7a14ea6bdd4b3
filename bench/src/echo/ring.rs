//! The ring: submissions to the kernel, and its completions.

use std::os::fd::RawFd;

use anyhow::Context as _;
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};

use super::buffers::{Buffers, GROUP};

/// The size of the submission queue; a full queue is submitted at once.
const ENTRIES: u32 = 1_024;
/// The size of the completion queue.
const COMPLETIONS: u32 = 8_192;

/// The kind of operation that a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Accept,
    Receive,
    Send,
}

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) kind: Kind,
    /// The connection's number.
    pub(super) connection: u32,
    /// A byte count, a descriptor, or a negative error.
    pub(super) result: i32,
    /// True if the multishot request stays armed.
    pub(super) goes_on: bool,
    pub(super) buffer: Option<u16>,
}

/// The io_uring instance with its buffers. See the module.
pub(super) struct Uring {
    ring: IoUring,
    pub(super) buffers: Buffers,
}

fn name(kind: Kind, connection: u32) -> u64 {
    (kind as u64) << 32 | u64::from(connection)
}

impl Uring {
    pub(super) fn new() -> anyhow::Result<Uring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)
            .context("set up io_uring (needs permission and Linux 6.1 or newer)")?;
        let buffers = Buffers::register(&ring)?;
        Ok(Uring { ring, buffers })
    }

    fn push(&mut self, entry: &Entry) -> anyhow::Result<()> {
        loop {
            // SAFETY: the memory that an entry points to (only sends have any) outlives its completion: see
            // `Server::send`.
            match unsafe { self.ring.submission().push(entry) } {
                Ok(()) => return Ok(()),
                Err(_) => drop(self.ring.submit().context("submit to io_uring")?),
            }
        }
    }

    pub(super) fn accept(&mut self, listener: RawFd) -> anyhow::Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(listener)).build();
        self.push(&entry.user_data(name(Kind::Accept, 0)))
    }

    pub(super) fn receive(&mut self, socket: RawFd, connection: u32) -> anyhow::Result<()> {
        let entry = opcode::RecvMulti::new(types::Fd(socket), GROUP).build();
        self.push(&entry.user_data(name(Kind::Receive, connection)))
    }

    /// Submits a send. `bytes` must stay valid and in place until the completion.
    pub(super) fn send(
        &mut self,
        socket: RawFd,
        connection: u32,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(types::Fd(socket), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL)
            .build();
        self.push(&entry.user_data(name(Kind::Send, connection)))
    }

    /// Submits all entries, waits for at least one completion, and takes all available completions.
    pub(super) fn wait(&mut self, into: &mut Vec<Done>) -> anyhow::Result<()> {
        self.buffers.publish();
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            // More completions are pending than the queue holds: they are taken now.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error).context("wait for io_uring"),
        }
        into.clear();
        into.extend(self.ring.completion().map(|entry| {
            let (kind, flags) = (entry.user_data() >> 32, entry.flags());
            Done {
                kind: match kind {
                    0 => Kind::Accept,
                    1 => Kind::Receive,
                    _ => Kind::Send,
                },
                connection: u32::try_from(entry.user_data() & u64::from(u32::MAX)).unwrap_or(0),
                result: entry.result(),
                goes_on: cqueue::more(flags),
                buffer: cqueue::buffer_select(flags),
            }
        }));
        Ok(())
    }
}
