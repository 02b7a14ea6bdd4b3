//! Memory of requests that have ended, for those that come: in the long run an operation allocates
//! nothing.

use std::collections::TryReserveError;

use crate::operation::Operation;

/// Most bytes that are kept.
const MAX_KEPT_BYTES: usize = 8 << 20;
/// A buffer that is larger goes back to the allocator, which is good at large ones.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// Most operations whose own memory is kept.
const MAX_KEPT_OPERATIONS: usize = 4_096;
/// The smallest buffer, so that one serves for most requests.
const MIN_BUFFER_BYTES: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    #[allow(clippy::vec_box)] // It is the boxes that are kept.
    operations: Vec<Box<Operation>>,
}

impl Spares {
    /// An empty buffer with room for `bytes`.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<Vec<u8>, TryReserveError> {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer.try_reserve_exact(bytes.max(MIN_BUFFER_BYTES))?;
        Ok(buffer)
    }

    /// Puts an operation where one was that has ended.
    pub(crate) fn place(&mut self, operation: Operation) -> Box<Operation> {
        match self.operations.pop() {
            Some(mut place) => {
                *place = operation;
                place
            }
            None => Box::new(operation),
        }
    }

    /// Keeps the memory of an operation that has ended, unless there is enough.
    pub(crate) fn give_operation(&mut self, mut operation: Box<Operation>) {
        self.give(operation.clear());
        if self.operations.len() < MAX_KEPT_OPERATIONS {
            self.operations.push(operation);
        }
    }

    /// Keeps a buffer for later, unless there are enough.
    fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = buffer.capacity();
        if bytes <= MAX_BUFFER_BYTES && self.bytes + bytes <= MAX_KEPT_BYTES {
            buffer.clear();
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_taken_and_what_is_large_or_too_much_is_not_kept() {
        let mut spares = Spares::default();
        let mut buffer = spares.take(1_000).unwrap();
        buffer.extend_from_slice(b"x");
        let memory = buffer.as_ptr();
        spares.give(buffer);
        let again = spares.take(10).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (memory, 0));

        spares.give(Vec::with_capacity(MAX_BUFFER_BYTES + 1));
        assert_eq!(spares.bytes, 0);
        for _ in 0..1_000 {
            spares.give(Vec::with_capacity(MAX_BUFFER_BYTES));
        }
        assert_eq!(spares.bytes, MAX_KEPT_BYTES);
        assert!(spares.take(usize::MAX).is_err());
    }
}
