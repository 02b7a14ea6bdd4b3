//! Memory of requests that have ended, for those that come: in the long run an operation allocates
//! nothing.

use std::collections::TryReserveError;
use std::time::Instant;

use crate::operation::Operation;

/// Most bytes of requests that are kept.
const MAX_KEPT_BYTES: usize = 16 << 20;
/// A request's memory that is larger goes back to the allocator, which is good at large ones.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Most operations that are kept.
const MAX_KEPT_OPERATIONS: usize = crate::options::MAX_IN_FLIGHT;
/// The least memory for a request, so that it serves for most.
const MIN_REQUEST_BYTES: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    #[allow(clippy::vec_box)] // It is the boxes that are kept.
    operations: Vec<Box<Operation>>,
    /// Of their requests' memory.
    bytes: usize,
}

impl Spares {
    /// A blank operation with room for a request of `bytes`.
    ///
    /// # Errors
    /// If there is no memory for it.
    #[inline]
    pub(crate) fn take(
        &mut self,
        bytes: usize,
        now: Instant,
    ) -> Result<Box<Operation>, TryReserveError> {
        let mut operation = match self.operations.pop() {
            Some(operation) => {
                self.bytes -= operation.frame.capacity();
                operation
            }
            None => Box::new(Operation::blank(Vec::new(), now)),
        };
        operation.frame.try_reserve_exact(bytes.max(MIN_REQUEST_BYTES))?;
        Ok(operation)
    }

    /// Keeps the memory of an operation that has ended, unless there is enough.
    #[inline]
    pub(crate) fn give(&mut self, mut operation: Box<Operation>) {
        let frame = operation.clear();
        let bytes = frame.capacity();
        if bytes > MAX_REQUEST_BYTES {
            // The rest of it is worth keeping.
            *frame = Vec::new();
        }
        let bytes = frame.capacity();
        if self.operations.len() < MAX_KEPT_OPERATIONS && self.bytes + bytes <= MAX_KEPT_BYTES {
            self.bytes += bytes;
            self.operations.push(operation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Notify, Op};
    use crate::options::OpOptions;
    use std::sync::LazyLock;
    use std::time::Duration;

    /// Each at the same moment.
    fn operation(value: &[u8], spares: &mut Spares) -> Box<Operation> {
        static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
        let (options, deadline) = (OpOptions::default(), Duration::from_secs(1));
        let op = Op::Put { key: b"k", value };
        Operation::new(op, &options, deadline, Notify::Caller, *NOW, spares).unwrap()
    }

    #[test]
    fn what_was_given_is_taken_and_what_is_large_or_too_much_is_not_kept() {
        let mut spares = Spares::default();
        let first = operation(&[b'v'; 1_000], &mut spares);
        let memory = (&raw const *first, first.frame.as_ptr());
        spares.give(first);
        let again = operation(b"v", &mut spares);
        assert_eq!((&raw const *again, again.frame.as_ptr()), memory);
        spares.give(again);

        let large = operation(&[b'v'; MAX_REQUEST_BYTES], &mut spares);
        spares.give(large);
        assert_eq!(spares.bytes, 0);
        let many = (0..MAX_KEPT_OPERATIONS + 1).map(|_| operation(b"v", &mut spares));
        let many: Vec<_> = many.collect();
        for operation in many {
            spares.give(operation);
        }
        assert_eq!(spares.operations.len(), MAX_KEPT_OPERATIONS);
        assert!(spares.take(usize::MAX, Instant::now()).is_err());
    }

    #[test]
    fn the_bytes_that_are_kept_are_bounded() {
        let mut spares = Spares::default();
        let value = vec![b'v'; MAX_REQUEST_BYTES / 2];
        let many: Vec<_> = (0..1_000).map(|_| operation(&value, &mut spares)).collect();
        for operation in many {
            spares.give(operation);
        }
        assert!(
            spares.bytes > MAX_KEPT_BYTES - MAX_REQUEST_BYTES && spares.bytes <= MAX_KEPT_BYTES
        );
        let kept = spares.operations.iter().map(|operation| operation.frame.capacity());
        assert_eq!(kept.sum::<usize>(), spares.bytes);
    }

    #[test]
    fn an_operation_that_is_used_again_knows_nothing_of_its_first_use() {
        let mut spares = Spares::default();
        let mut first = operation(b"v", &mut spares);
        first.digest();
        first.doubtful = 2;
        first.was_busy = true;
        first.trouble = Some("something".into());
        spares.give(first);
        let fresh = operation(b"w", &mut Spares::default());
        let again = operation(b"w", &mut spares);
        assert_eq!(format!("{again:?}"), format!("{fresh:?}"));
    }
}
