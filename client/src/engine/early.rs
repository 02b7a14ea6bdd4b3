//! Operations that the program ends before the deadline, by an interrupt or by cancelling one operation.

use super::Engine;
use crate::completion::Ends;
use crate::error::{Action, Error};
use crate::operation::{Notify, OpId};

/// The reason for an early end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Early {
    Interrupted,
    Cancelled,
}

impl Early {
    /// Returns the error of an operation that changed nothing.
    pub(crate) fn error(self, action: Action) -> Error {
        match self {
            Early::Interrupted => Error::Interrupted { action },
            Early::Cancelled => Error::Cancelled { action },
        }
    }

    /// Returns the cause of a write in doubt.
    fn cause(self) -> &'static str {
        match self {
            Early::Interrupted => "interrupted by the program before the response",
            Early::Cancelled => "cancelled by the program before the response",
        }
    }
}

impl Engine {
    /// Returns whether the program has interrupted this client.
    #[inline]
    pub(crate) fn is_interrupted(&self) -> bool {
        self.options.interrupt.as_ref().is_some_and(|interrupt| interrupt.is_interrupted())
    }

    /// Ends an operation early. A write that may have been executed ends in doubt. Returns false if the operation had
    /// already ended.
    pub(crate) fn end_early(&mut self, id: OpId, early: Early, ends: &mut dyn Ends) -> bool {
        // A request that was not sent whole has no effect.
        self.release(id);
        let Some(operation) = self.operations.get(id) else { return false };
        let action = operation.action();
        let error = match operation.doubtful {
            0 => early.error(action),
            _ => Error::InDoubt { action, cause: early.cause().to_owned(), doubt: None },
        };
        self.finish(id, Err(error), ends);
        true
    }

    /// Ends all operations of the program early if it has interrupted this client.
    pub(crate) fn heed_interrupt(&mut self, ends: &mut dyn Ends) {
        if !self.is_interrupted() {
            return;
        }
        let of_program = |notify| notify != Notify::None;
        let all = self.operations.iter().filter(|(_, operation)| of_program(operation.notify));
        let all: Vec<OpId> = all.map(|(id, _)| id).collect();
        for id in all {
            self.end_early(id, Early::Interrupted, ends);
        }
    }
}
