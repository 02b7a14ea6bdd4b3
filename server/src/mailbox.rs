//! Messages to an executor from other threads: two bounded queues and an eventfd.
//!
//! ```text
//!   any thread:   push_order -> [ orders ] -+-> eventfd ("bell")
//!                 push       -> [ queue  ] -+
//!   executor:     its engine waits for the eventfd -> pop, orders first
//! ```
//!
//! Orders have a separate queue, so connections that are handed over cannot displace them. Each engine waits for the
//! eventfd in its own way.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

/// The maximum number of messages that wait for one executor, apart from orders.
pub(crate) const MAILBOX_CAPACITY: usize = 1_024;
/// The maximum number of orders that wait for one executor: far more than run at the same time.
pub(crate) const ORDERS_CAPACITY: usize = 64;

/// The sending end; cheap to clone, usable from any thread.
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
    /// Queues a message, or returns it if the mailbox is full.
    pub(crate) fn push(&self, message: T) -> Result<(), T> {
        self.queues.others.push(message)?;
        self.ring();
        Ok(())
    }

    /// Queues an order, ahead of the messages of [`Sender::push`]. Returns it if too many orders wait.
    pub(crate) fn push_order(&self, order: T) -> Result<(), T> {
        self.queues.orders.push(order)?;
        self.ring();
        Ok(())
    }

    fn ring(&self) {
        let rung = rustix::io::write(self.bell.as_fd(), &1u64.to_ne_bytes());
        debug_assert!(rung.is_ok(), "an eventfd counts to 2^64 - 2 before a write blocks");
    }
}

/// The receiving end, on one executor.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    queues: Arc<Queues<T>>,
    bell: OwnedFd,
}

/// Creates a mailbox of [`MAILBOX_CAPACITY`] messages and [`ORDERS_CAPACITY`] orders.
pub(crate) fn mailbox<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    // The flag EFD_NONBLOCK is not set, because io_uring returns EAGAIN for a non-blocking file instead of waiting.
    let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
    let orders = ArrayQueue::new(ORDERS_CAPACITY);
    let queues = Arc::new(Queues { orders, others: ArrayQueue::new(MAILBOX_CAPACITY) });
    let receiver = Receiver { queues: Arc::clone(&queues), bell: bell.try_clone()? };
    Ok((Sender { queues, bell: Arc::new(bell) }, receiver))
}

impl<T> Receiver<T> {
    /// Splits the mailbox into its eventfd, which is signalled after every message, and its messages.
    pub(crate) fn into_parts(self) -> (OwnedFd, Messages<T>) {
        (self.bell, Messages { queues: self.queues })
    }

    /// Takes one message, if there is any.
    #[cfg(test)]
    pub(crate) fn pop(&self) -> Option<T> {
        self.queues.pop()
    }
}

/// The messages of a mailbox, without its eventfd.
#[derive(Debug)]
pub(crate) struct Messages<T> {
    queues: Arc<Queues<T>>,
}

impl<T> Messages<T> {
    /// Takes one message, orders first, if there is any.
    pub(crate) fn pop(&self) -> Option<T> {
        self.queues.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_returns_the_message() {
        let (sender, _receiver) = mailbox().unwrap();
        for n in 0..MAILBOX_CAPACITY {
            sender.push(n).unwrap();
        }
        assert_eq!(sender.push(7), Err(7));
    }

    #[test]
    fn orders_have_their_own_room_and_come_first() {
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
}
