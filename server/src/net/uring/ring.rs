//! One io_uring: requests in, completions out, and the ownership of memory in between.
//!
//! ```text
//!   accept, receive, send ...     enter()                      reap()
//!   --> [ submission queue ] --> kernel: submits, runs work --> [ completion queue ] --> Completion
//!                                deferred to this thread
//! ```
//!
//! The ring belongs to one thread (SINGLE_ISSUER), and the kernel runs its deferred work only when that thread calls
//! io_uring_enter(2) (DEFER_TASKRUN). So the kernel does not interrupt the thread, and one system call serves all
//! connections. A buffer that the kernel sends or receives into is kept here until its completion. Until then, no other
//! code can access it. (io_uring(7), io_uring_setup(2); Linux 6.1.)

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;

use super::buffers::{Buffers, Filling, Group, Lent, Shape};

/// The slot of requests that belong to no socket.
const NO_SLOT: SlotId = SlotId(u32::MAX);

/// The sizes of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// The number of entries of the submission queue. If it is full, requests are submitted early.
    pub(super) requests: u32,
    /// The number of entries of the completion queue. If it is full, completions wait in the kernel.
    pub(super) completions: u32,
    /// The receive buffers of each group, if the kernel fills buffers piece by piece, and if it does not (`at_once`).
    pub(super) in_pieces: Shape,
    pub(super) at_once: Shape,
}

/// The index of a socket in the engine's table; requests and completions carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId(pub(super) u32);

impl SlotId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A request to the kernel. Except for cancellations, each slot has at most one of each kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Request {
    Accept = 1,
    Connect,
    Receive,
    /// A receive into a buffer of this process, not of the ring.
    ReceiveInto,
    Send,
    Cancel,
    /// A timeout that ends a wait.
    SharedTimer,
}

/// The behaviour of a send when its socket is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The send fails, so it always completes during submission.
    Fail,
    Wait,
}

/// A completion of a request.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) slot: SlotId,
    /// True if the request stays armed, and more completions follow.
    pub(super) has_more: bool,
    pub(super) event: Event,
}

/// The result of a request.
#[derive(Debug)]
pub(super) enum Event {
    Accepted(io::Result<OwnedFd>),
    Connected(io::Result<()>),
    /// Received bytes, or none at the end of the input.
    Received(io::Result<Option<Lent>>),
    /// The number of bytes appended to the buffer; 0 at the end of the input.
    ReceivedInto(io::Result<usize>, Vec<u8>),
    /// The number of bytes sent from the buffer, beginning at this offset.
    Sent(io::Result<usize>, Vec<u8>, usize),
    Cancelled,
}

/// One io_uring with its buffers; see the module documentation.
pub(super) struct Uring {
    ring: IoUring,
    /// The receive buffers, by group.
    buffers: [Buffers; 2],
    lent: Vec<InKernel>,
    /// The number of queued requests that complete during submission.
    prompt: usize,
    timer: SharedTimer,
}

/// A single timer that all waits share, because setting and cancelling the timer that expires next costs hypervisor
/// calls on a virtual machine.
#[derive(Default)]
struct SharedTimer {
    is_set: bool,
    /// The timeout that the kernel reads when the request is submitted.
    after: Box<Timespec>,
}

/// Memory of one slot's requests that the kernel may access.
#[derive(Default)]
struct InKernel {
    address: Option<Box<SockAddr>>,
    received: Option<Vec<u8>>,
    /// The group of the receive into the ring's buffers.
    group: Group,
    sent: Option<(Vec<u8>, usize)>,
}

impl Uring {
    /// Sets up a ring for the calling thread, which alone may use it. The bell is an eventfd that the ring signals when
    /// work is pending, from [`Uring::listen_for_bell`] to [`Uring::ignore_bell`].
    pub(super) fn new(sizes: Sizes, bell: BorrowedFd<'_>) -> io::Result<Uring> {
        match Uring::with(sizes, bell, Filling::Pieces) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Uring::with(sizes, bell, Filling::Once)
            }
            made => made,
        }
    }

    fn with(sizes: Sizes, bell: BorrowedFd<'_>, filling: Filling) -> io::Result<Uring> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(sizes.completions)
            .build(sizes.requests)?;
        let shape = match filling {
            Filling::Pieces => sizes.in_pieces,
            Filling::Once => sizes.at_once,
        };
        let [streams, clients] =
            Group::ALL.map(|group| Buffers::register(&ring.submitter(), group, filling, shape));
        let buffers = [streams?, clients?];
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        let mut ring =
            Uring { ring, buffers, lent: Vec::new(), prompt: 0, timer: SharedTimer::default() };
        ring.ignore_bell();
        Ok(ring)
    }

    /// Queues a request that accepts one connection.
    pub(super) fn accept(&mut self, slot: SlotId, listener: &OwnedFd) {
        let (no_address, no_length) = (std::ptr::null_mut(), std::ptr::null_mut());
        let entry = opcode::Accept::new(Fd(listener.as_raw_fd()), no_address, no_length)
            .flags(libc::SOCK_CLOEXEC)
            .build();
        // SAFETY: the request refers to no memory.
        unsafe { self.push(slot, Request::Accept, entry) };
    }

    /// Queues a request that connects a socket.
    pub(super) fn connect(&mut self, slot: SlotId, socket: &OwnedFd, address: SocketAddr) {
        let address = Box::new(SockAddr::from(address));
        let entry =
            opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len())
                .build();
        self.in_kernel(slot).address = Some(address);
        // SAFETY: the address is boxed, and kept until the completion.
        unsafe { self.push(slot, Request::Connect, entry) };
    }

    /// Queues a request that receives into the buffers of a group, until an error or the end of the input.
    ///
    /// Only multishot receives may take buffers of the group. If single receives shared these buffers, kernels before
    /// 6.15 could post the completion of a single receive too late: after the completions of multishot receives for
    /// later bytes of the same buffer. The offset of a piece follows from the order of completions, so it would be
    /// wrong.
    pub(super) fn receive(&mut self, slot: SlotId, socket: &OwnedFd, group: Group) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), group as u16).build();
        self.in_kernel(slot).group = group;
        // SAFETY: the kernel takes a buffer of the group, which it owns until the completion.
        unsafe { self.push(slot, Request::Receive, entry) };
    }

    /// Queues one receive of up to `most` bytes, which are appended to the buffer.
    pub(super) fn receive_into(
        &mut self,
        slot: SlotId,
        socket: &OwnedFd,
        mut buffer: Vec<u8>,
        most: usize,
    ) {
        buffer.reserve(most);
        let room = buffer.spare_capacity_mut();
        let length = u32::try_from(most.min(room.len())).expect("a receive is bounded far below");
        let start = room.as_mut_ptr().cast::<u8>();
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), start, length).build();
        debug_assert!(self.in_kernel(slot).received.is_none(), "two receives of one socket");
        self.in_kernel(slot).received = Some(buffer);
        // SAFETY: the buffer's heap memory stays in place while the vector is kept, unmodified, until the completion.
        unsafe { self.push(slot, Request::ReceiveInto, entry) };
    }

    /// Queues a send of up to `most` bytes of the buffer, beginning at offset `from`.
    pub(super) fn send(
        &mut self,
        slot: SlotId,
        socket: &OwnedFd,
        buffer: Vec<u8>,
        from: usize,
        most: usize,
        when_full: WhenFull,
    ) {
        let bytes = &buffer[from..];
        let length = u32::try_from(bytes.len().min(most)).expect("a send is bounded far below");
        let is_prompt = when_full == WhenFull::Fail;
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL | if is_prompt { libc::MSG_DONTWAIT } else { 0 })
            .build();
        debug_assert!(self.in_kernel(slot).sent.is_none(), "two sends on one socket");
        self.in_kernel(slot).sent = Some((buffer, from));
        // SAFETY: as in `receive_into`.
        unsafe { self.push(slot, Request::Send, entry) };
        self.prompt += usize::from(is_prompt);
    }

    /// Queues the cancellation of a request. Both the request and the cancellation complete in any case.
    pub(super) fn cancel(&mut self, slot: SlotId, request: Request) {
        let entry =
            opcode::AsyncCancel2::new(CancelBuilder::user_data(token(slot, request))).build();
        // SAFETY: the request refers to no memory.
        unsafe { self.push(slot, Request::Cancel, entry) };
    }

    /// Submits queued requests and runs deferred work. It makes the system call only if there is work.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        let queue = self.ring.submission();
        let requests = u32::try_from(queue.len()).expect("the queue has 32 bits");
        let is_due = requests > 0 || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        self.prompt = 0;
        if !is_due {
            return Ok(());
        }
        let get = EnterFlags::GETEVENTS.bits();
        // SAFETY: the requests are in the queue, and no argument is passed.
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(requests, 0, get, None) };
        tolerate(entered)
    }

    /// Submits and runs deferred work like [`Uring::enter`], then waits for an event unless a completion is already
    /// posted. Requests that complete during submission do not end the wait. The wait ends after `longest`, or when the
    /// timer expires if an earlier wait has set it.
    pub(super) fn enter_and_sleep(&mut self, longest: Duration) -> io::Result<()> {
        if !self.ring.completion().is_empty() {
            return self.enter();
        }
        if !std::mem::replace(&mut self.timer.is_set, true) {
            *self.timer.after = Timespec::from(longest);
            let entry = opcode::Timeout::new(&raw const *self.timer.after).build();
            // SAFETY: the timeout is boxed, and changed only while no request uses it.
            unsafe { self.push_any(NO_SLOT, Request::SharedTimer, entry) };
        }
        let prompt = std::mem::take(&mut self.prompt);
        tolerate(self.ring.submit_and_wait(prompt + 1))
    }

    /// Returns whether all posted completions are reaped and more requests have completed in the kernel, which another
    /// call must post. One call posts at most a few dozen, the oldest first.
    pub(super) fn has_deferred(&mut self) -> bool {
        let queue = self.ring.submission();
        let has_deferred = queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        has_deferred && self.ring.completion().is_empty()
    }

    /// Enables the bell, which the ring then signals for pending work; returns false if work is pending already.
    pub(super) fn listen_for_bell(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel records pending work and then checks whether the bell is enabled; this function does it in the
        // opposite order. So pending work is detected by the kernel or by this function.
        fence(Ordering::SeqCst);
        let queue = self.ring.submission();
        let has_work = queue.taskrun() || queue.cq_overflow() || !queue.is_empty();
        drop(queue);
        !has_work && self.ring.completion().is_empty()
    }

    /// Disables the bell.
    pub(super) fn ignore_bell(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    /// Takes up to `most` completions from the ring, the oldest first.
    pub(super) fn reap(&mut self, into: &mut Vec<Completion>, most: usize) {
        let Uring { ring, buffers, lent, timer, .. } = self;
        for entry in ring.completion().take(most) {
            let (slot, request) = owner(entry.user_data());
            if request == Request::SharedTimer {
                timer.is_set = false;
                continue;
            }
            let in_kernel = &mut lent[slot.index()];
            let result = match entry.result() {
                error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
                count => Ok(usize::try_from(count).expect("it is not negative")),
            };
            let event = match request {
                Request::Accept => Event::Accepted(result.map(|_| {
                    // SAFETY: the descriptor is new, and this is its only owner.
                    unsafe { OwnedFd::from_raw_fd(entry.result()) }
                })),
                Request::Connect => {
                    in_kernel.address = None;
                    Event::Connected(result.map(drop))
                }
                Request::Receive => {
                    let buffers = &mut buffers[in_kernel.group as usize];
                    let buffer = cqueue::buffer_select(entry.flags());
                    match (result, buffer) {
                        (Ok(length @ 1..), Some(buffer)) => {
                            Event::Received(Ok(Some(buffers.lend(buffer, length))))
                        }
                        (result, buffer) => {
                            // The request took a buffer but did not use it.
                            if let Some(buffer) = buffer {
                                let unused = buffers.lend(buffer, 0);
                                buffers.give_back(unused);
                            }
                            Event::Received(result.map(|_| None))
                        }
                    }
                }
                Request::ReceiveInto => {
                    let mut buffer = in_kernel.received.take().expect("the memory of a request");
                    if let Ok(count) = result {
                        let length = buffer.len() + count;
                        assert!(
                            length <= buffer.capacity(),
                            "more was received than there was room"
                        );
                        // SAFETY: the kernel has written `count` bytes after the others.
                        unsafe { buffer.set_len(length) };
                    }
                    Event::ReceivedInto(result, buffer)
                }
                Request::Send => {
                    let (buffer, from) = in_kernel.sent.take().expect("the memory of a request");
                    Event::Sent(result, buffer, from)
                }
                Request::Cancel => Event::Cancelled,
                Request::SharedTimer => unreachable!("it has no slot"),
            };
            into.push(Completion { slot, has_more: cqueue::more(entry.flags()), event });
        }
    }

    /// Returns the bytes received into a buffer.
    pub(super) fn bytes(&self, lent: &Lent) -> &[u8] {
        self.buffers[lent.group as usize].bytes(lent)
    }

    /// Returns a piece, so that its buffer can be received into again.
    pub(super) fn give_back(&mut self, lent: Lent) {
        self.buffers[lent.group as usize].give_back(lent);
    }

    fn in_kernel(&mut self, slot: SlotId) -> &mut InKernel {
        if slot.index() >= self.lent.len() {
            self.lent.resize_with(slot.index() + 1, InKernel::default);
        }
        &mut self.lent[slot.index()]
    }

    /// Queues a request of a slot.
    ///
    /// # Safety
    /// As for [`Uring::push_any`].
    unsafe fn push(&mut self, slot: SlotId, request: Request, entry: squeue::Entry) {
        self.in_kernel(slot);
        // SAFETY: by this function's own contract.
        unsafe { self.push_any(slot, request, entry) };
    }

    /// Queues a request, and submits queued requests while there is no room.
    ///
    /// # Safety
    /// The memory that the request refers to must stay valid and unmodified until its completion.
    unsafe fn push_any(&mut self, slot: SlotId, request: Request, entry: squeue::Entry) {
        let entry = entry.user_data(token(slot, request));
        loop {
            // SAFETY: by this function's own contract.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            if let Err(error) = tolerate(self.ring.submit()) {
                panic!("cannot submit the requests of a full queue: {error}");
            }
        }
    }
}

impl Drop for Uring {
    /// Leaks the memory of the requests, because the kernel ends the requests of a closed ring asynchronously.
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.lent));
    }
}

fn token(slot: SlotId, request: Request) -> u64 {
    u64::from(request as u8) << 32 | u64::from(slot.0)
}

fn owner(token: u64) -> (SlotId, Request) {
    let [.., kind, a, b, c, d] = token.to_be_bytes();
    let request = match kind {
        1 => Request::Accept,
        2 => Request::Connect,
        3 => Request::Receive,
        4 => Request::ReceiveInto,
        5 => Request::Send,
        6 => Request::Cancel,
        7 => Request::SharedTimer,
        _ => unreachable!("a completion of an unknown request"),
    };
    (SlotId(u32::from_be_bytes([a, b, c, d])), request)
}

/// Maps errors that only mean pending work, an expired timeout or an interruption to success.
fn tolerate(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
