//! The processes of the ring: their kill channels, their command lines and their exits.

use std::cell::RefCell;

use kv_protocol::{Member, ServerId};
use tokio::sync::mpsc;

use super::places::index;
use crate::spawn::Exit;

/// The current process of each place, and processes that have lost their places.
#[derive(Debug)]
pub(super) struct Processes {
    /// By server: the kill channel of its process.
    killers: RefCell<Vec<Option<mpsc::Sender<()>>>>,
    /// The kill channels of processes that have lost their places.
    given_up: RefCell<Vec<(Member, mpsc::Sender<()>)>>,
    /// By server: the command line of its process, and the exit of that process.
    commands: RefCell<Vec<String>>,
    exits: RefCell<Vec<Option<Exit>>>,
}

impl Processes {
    /// Returns the processes of a ring without any process.
    pub(super) fn new(count: usize) -> Processes {
        Processes {
            killers: RefCell::new((0..count).map(|_| None).collect()),
            given_up: RefCell::default(),
            commands: RefCell::new(vec![String::new(); count]),
            exits: RefCell::new(vec![None; count]),
        }
    }

    /// Records the command line of the next process of a place, and forgets the exit of the previous one.
    pub(super) fn note_command(&self, server: ServerId, command: String) {
        self.commands.borrow_mut()[index(server)] = command;
        self.exits.borrow_mut()[index(server)] = None;
    }

    /// Records the exit of the current process of a place.
    pub(super) fn note_exit(&self, server: ServerId, exit: Exit) {
        self.exits.borrow_mut()[index(server)] = Some(exit);
    }

    /// Returns the command line of the current process of a place.
    pub(super) fn command(&self, server: ServerId) -> String {
        self.commands.borrow()[index(server)].clone()
    }

    /// Returns the exit of the current process of a place, if it has exited.
    pub(super) fn exit(&self, server: ServerId) -> Option<Exit> {
        self.exits.borrow()[index(server)].clone()
    }

    /// Creates the kill channel of the next process of a place, and returns its receiver.
    pub(super) fn killer(&self, server: ServerId) -> mpsc::Receiver<()> {
        let (sender, receiver) = mpsc::channel(1);
        self.killers.borrow_mut()[index(server)] = Some(sender);
        receiver
    }

    /// Kills the current process of a place.
    pub(super) fn kill(&self, server: ServerId) {
        if let Some(killer) = &self.killers.borrow()[index(server)] {
            // One queued message is enough.
            let _ = killer.try_send(());
        }
    }

    /// Kills a process that has lost its place, and keeps its kill channel until the process is proven dead. Must be
    /// called before the kill channel of the next process is created.
    pub(super) fn give_up(&self, member: Member) {
        let mut given_up = self.given_up.borrow_mut();
        if given_up.iter().any(|(known, _)| *known == member) {
            return;
        }
        if let Some(killer) = self.killers.borrow_mut()[index(member.server)].take() {
            let _ = killer.try_send(());
            given_up.push((member, killer));
        }
    }

    /// Creates the kill channel of a process of an earlier coordinator that has lost its place and is killed. Its place
    /// may have another process, with another kill channel.
    pub(super) fn killer_of_given_up(&self, member: Member) -> mpsc::Receiver<()> {
        let (killer, kill) = mpsc::channel(1);
        let _ = killer.try_send(());
        self.given_up.borrow_mut().push((member, killer));
        kill
    }

    /// Forgets a process that had lost its place and has ended.
    pub(super) fn forget_given_up(&self, member: Member) {
        self.given_up.borrow_mut().retain(|(of, _)| *of != member);
    }
}
