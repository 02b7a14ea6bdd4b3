//! The panic boundary: unwinding into C is undefined behaviour.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Failure, KVC_PANIC, fail};

/// Runs the body of an entry point and converts failures and panics into statuses.
pub(crate) fn guard(body: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    // A panic poisons the lock of the handle's client, or marks the queue as poisoned. So no inconsistent state is used
    // again.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => fail(failure),
        Err(payload) => {
            let words = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no panic message");
            let words =
                format!("a defect in libkvclient ({words}); close the handle and report it");
            let status = fail(Failure::new(KVC_PANIC, words));
            // The panic's payload is leaked, because its drop may panic too.
            std::mem::forget(payload);
            status
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Runs `call` while this thread unwinds from a panic, as a destructor in a Rust program would.
    pub(crate) fn unwinding(call: impl Fn()) {
        struct Destructor<F: Fn()>(F);
        impl<F: Fn()> Drop for Destructor<F> {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        let panicking = || {
            let _destructor = Destructor(call);
            panic!("on purpose");
        };
        assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::kvc_last_error;
    use std::ffi::CStr;

    #[test]
    fn a_panic_becomes_a_status_with_its_message() {
        assert_eq!(guard(|| panic!("seven of {}", 9)), KVC_PANIC);
        // SAFETY: this thread has not failed since.
        let words = unsafe { CStr::from_ptr(kvc_last_error()) }.to_str().unwrap();
        assert!(words.contains("seven of 9"), "{words}");
    }
}
