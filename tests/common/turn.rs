//! The turns of a program's modules: their tests do not run beside those of another module, as if each module were a
//! program of its own.
//!
//! Some tests measure times or memory, and expect of other tests no more load than those of their own file make. The
//! harness starts tests in the order of their names, and so mostly module after module. A test keeps its module's turn
//! from its first fixture to the end of its thread. One without a fixture takes no turn.

use std::cell::RefCell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The module whose turn it is, and the number of its tests that are running.
static TURN: Mutex<(String, usize)> = Mutex::new((String::new(), 0));
/// Notified when the last of them has ended.
static OVER: Condvar = Condvar::new();

thread_local! {
    static OWN: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// A test that is running in its module's turn.
struct Running;

/// Waits until no test of another module is running. Every fixture calls it before it starts a process.
pub(crate) fn take() {
    let thread = std::thread::current();
    // The harness names a test's thread by the test. Other threads, and a single one for all tests, need no turn.
    let Some((module, _)) = thread.name().and_then(|name| name.split_once("::")) else { return };
    OWN.with_borrow_mut(|own| {
        own.get_or_insert_with(|| {
            let is_others = |turn: &mut (String, usize)| turn.1 > 0 && turn.0 != module;
            let mut turn =
                OVER.wait_while(lock(), is_others).unwrap_or_else(PoisonError::into_inner);
            *turn = (module.to_owned(), turn.1 + 1);
            Running
        });
    });
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut turn = lock();
        turn.1 -= 1;
        if turn.1 == 0 {
            OVER.notify_all();
        }
    }
}

fn lock() -> MutexGuard<'static, (String, usize)> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
