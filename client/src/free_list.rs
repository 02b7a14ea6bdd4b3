//! A free list of operations and their request memory. In the steady state, an operation with a request of up to 64 KiB
//! allocates nothing.

use std::collections::TryReserveError;
use std::time::Instant;

use crate::operation::Operation;

/// The maximum number of bytes of request memory in the free list.
const MAX_KEPT_BYTES: usize = 16 << 20;
/// The size in bytes above which request memory is freed instead of kept.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// The maximum number of operations in the free list.
const MAX_KEPT_OPERATIONS: usize = crate::options::MAX_IN_FLIGHT;
/// The minimum capacity in bytes of request memory, sufficient for most requests.
const MIN_REQUEST_BYTES: usize = 256;

/// The free list of one engine; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct FreeList {
    #[allow(clippy::vec_box)] // The boxes themselves are reused.
    operations: Vec<Box<Operation>>,
    /// The total capacity in bytes of the request memory of these operations.
    bytes: usize,
}

impl FreeList {
    /// Returns a blank operation with room for a request of `bytes`.
    ///
    /// # Errors
    /// If the allocation fails.
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

    /// Adds an ended operation to the free list, unless a limit of the list is reached. Frees request memory of more
    /// than 64 KiB.
    #[inline]
    pub(crate) fn give(&mut self, mut operation: Box<Operation>) {
        let frame = operation.clear();
        let bytes = frame.capacity();
        if bytes > MAX_REQUEST_BYTES {
            // Only the request memory is freed. The box of the operation is reused.
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

    /// Creates an operation. All operations have the same start time, so that they can be compared.
    fn operation(value: &[u8], free_list: &mut FreeList) -> Box<Operation> {
        static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
        let (options, deadline) = (OpOptions::default(), Duration::from_secs(1));
        let op = Op::Put { key: b"k", value };
        Operation::new(op, &options, deadline, Notify::Caller, *NOW, free_list).unwrap()
    }

    #[test]
    fn returned_operations_are_reused_and_large_or_surplus_memory_is_freed() {
        let mut free_list = FreeList::default();
        let first = operation(&[b'v'; 1_000], &mut free_list);
        let memory = (&raw const *first, first.frame.as_ptr());
        free_list.give(first);
        let again = operation(b"v", &mut free_list);
        assert_eq!((&raw const *again, again.frame.as_ptr()), memory);
        free_list.give(again);

        let large = operation(&[b'v'; MAX_REQUEST_BYTES], &mut free_list);
        free_list.give(large);
        assert_eq!(free_list.bytes, 0);
        let many = (0..MAX_KEPT_OPERATIONS + 1).map(|_| operation(b"v", &mut free_list));
        let many: Vec<_> = many.collect();
        for operation in many {
            free_list.give(operation);
        }
        assert_eq!(free_list.operations.len(), MAX_KEPT_OPERATIONS);
        assert!(free_list.take(usize::MAX, Instant::now()).is_err());
    }

    #[test]
    fn the_kept_bytes_are_bounded() {
        let mut free_list = FreeList::default();
        let value = vec![b'v'; MAX_REQUEST_BYTES / 2];
        let many: Vec<_> = (0..1_000).map(|_| operation(&value, &mut free_list)).collect();
        for operation in many {
            free_list.give(operation);
        }
        assert!(
            free_list.bytes > MAX_KEPT_BYTES - MAX_REQUEST_BYTES
                && free_list.bytes <= MAX_KEPT_BYTES
        );
        let kept = free_list.operations.iter().map(|operation| operation.frame.capacity());
        assert_eq!(kept.sum::<usize>(), free_list.bytes);
    }

    #[test]
    fn a_reused_operation_keeps_no_state_of_its_first_use() {
        let mut free_list = FreeList::default();
        let mut first = operation(b"v", &mut free_list);
        first.digest();
        first.doubtful = 2;
        first.was_busy = true;
        first.trouble = Some("something".into());
        free_list.give(first);
        let fresh = operation(b"w", &mut FreeList::default());
        let again = operation(b"w", &mut free_list);
        assert_eq!(format!("{again:?}"), format!("{fresh:?}"));
    }
}
