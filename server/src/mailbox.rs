//! Messages to an executor from other threads: two bounded queues and an eventfd.
//!
//! ```text
//!   any thread:   push_order -> [ orders ] -+-> ring (eventfd)
//!                 push       -> [ queue  ] -+
//!   executor:     wait (a read through glommio) -> pop until both are empty, orders first
//! ```
//!
//! However many connections wait to be taken in, orders have room of their own.

use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::io::FromRawFd;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use glommio::io::BufferedFile;
use rustix::event::{EventfdFlags, eventfd};

/// Messages that may wait for one executor; a sender finds the mailbox full beyond that.
pub(crate) const MAILBOX_CAPACITY: usize = 1_024;
/// Orders that may wait for one executor: far more than are carried out at the same time.
pub(crate) const ORDERS_CAPACITY: usize = 64;

/// Puts messages in; cheap to clone, usable from any thread.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    queues: Arc<Queues<T>>,
    bell: Arc<OwnedFd>,
}

#[derive(Debug)]
struct Queues<T> {
    orders: ArrayQueue<T>,
    others: ArrayQueue<T>,
}

impl<T> Queues<T> {
    fn pop(&self) -> Option<T> {
        self.orders.pop().or_else(|| self.others.pop())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { queues: Arc::clone(&self.queues), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Sender<T> {
    /// Puts a message in, or gives it back when the mailbox is full.
    pub(crate) fn push(&self, message: T) -> Result<(), T> {
        self.queues.others.push(message)?;
        self.ring();
        Ok(())
    }

    /// Puts an order in, ahead of what [`Sender::push`] put in; gives it back when there are too
    /// many.
    pub(crate) fn push_order(&self, order: T) -> Result<(), T> {
        self.queues.orders.push(order)?;
        self.ring();
        Ok(())
    }

    fn ring(&self) {
        let rung = rustix::io::write(self.bell.as_fd(), &1u64.to_ne_bytes());
        debug_assert!(rung.is_ok(), "an eventfd takes 2^64 - 2 rings before it blocks");
    }
}

/// Takes messages out, on one executor.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    queues: Arc<Queues<T>>,
    bell: OwnedFd,
}

/// A mailbox of [`MAILBOX_CAPACITY`] messages and [`ORDERS_CAPACITY`] orders.
pub(crate) fn mailbox<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    // Not EFD_NONBLOCK: io_uring answers EAGAIN for a file that does not block instead of waiting.
    let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
    let orders = ArrayQueue::new(ORDERS_CAPACITY);
    let queues = Arc::new(Queues { orders, others: ArrayQueue::new(MAILBOX_CAPACITY) });
    let receiver = Receiver { queues: Arc::clone(&queues), bell: bell.try_clone()? };
    Ok((Sender { queues, bell: Arc::new(bell) }, receiver))
}

impl<T> Receiver<T> {
    /// Gives every message to `take`, for ever; to be run on the executor.
    pub(crate) async fn serve(self, mut take: impl FnMut(T)) -> io::Result<()> {
        // SAFETY: the descriptor is given away and the file is its only owner from here on.
        let bell = unsafe { BufferedFile::from_raw_fd(self.bell.into_raw_fd()) };
        loop {
            bell.read_at(0, size_of::<u64>()).await.map_err(io::Error::from)?;
            while let Some(message) = self.queues.pop() {
                take(message);
            }
        }
    }

    /// Takes one message, if there is any.
    #[cfg(test)]
    pub(crate) fn pop(&self) -> Option<T> {
        self.queues.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use glommio::{LocalExecutorBuilder, Placement};

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, _receiver) = mailbox().unwrap();
        for n in 0..MAILBOX_CAPACITY {
            sender.push(n).unwrap();
        }
        assert_eq!(sender.push(7), Err(7));
    }

    #[test]
    fn orders_have_room_of_their_own_and_go_first() {
        let (sender, receiver) = mailbox().unwrap();
        while sender.push(0).is_ok() {}
        for n in 1..=ORDERS_CAPACITY {
            sender.push_order(n).unwrap();
        }
        assert_eq!(sender.push_order(7), Err(7));
        for n in 1..=ORDERS_CAPACITY {
            assert_eq!(receiver.pop(), Some(n));
        }
        assert_eq!(receiver.pop(), Some(0));
    }

    #[test]
    fn messages_of_other_threads_wake_a_sleeping_executor_in_order() {
        const COUNT: u32 = 5_000;
        let (sender, receiver) = mailbox::<u32>().unwrap();
        let writer = std::thread::spawn(move || {
            for n in 0..COUNT {
                while sender.push(n).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(64 << 10)
            .spawn(move || async move {
                let taken = Rc::new(RefCell::new(Vec::new()));
                let sink = Rc::clone(&taken);
                glommio::spawn_local(async move {
                    let result = receiver.serve(|n| sink.borrow_mut().push(n)).await;
                    panic!("the mailbox failed: {result:?}");
                })
                .detach();
                while taken.borrow().len() < COUNT as usize {
                    glommio::timer::sleep(Duration::from_millis(1)).await;
                }
                taken.take()
            })
            .unwrap();
        assert_eq!(executor.join().unwrap(), (0..COUNT).collect::<Vec<_>>());
        writer.join().unwrap();
    }
}
