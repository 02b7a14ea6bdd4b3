//! Mutual exclusion of the modules of a test program: tests of different modules do not run at the same time, as if
//! each module were a separate program.
//!
//! Some tests measure times or memory. They tolerate only the load of the other tests in their own file. The harness
//! starts tests in the order of their names, so the modules follow each other. A test takes its module's turn at its
//! first fixture and keeps it until its thread ends. A test without a fixture needs no turn.

use std::cell::RefCell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The module whose turn it is, and the number of its tests that are running.
static TURN: Mutex<(String, usize)> = Mutex::new((String::new(), 0));
/// Notified when the last running test of the module ends.
static OVER: Condvar = Condvar::new();

thread_local! {
    static OWN: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// A test that is running in its module's turn.
struct Running;

/// Waits until no test of another module is running. Every fixture calls it before it starts a process.
pub(crate) fn take() {
    let thread = std::thread::current();
    // The harness names the thread of a test after the test. Threads with other names, such as the only one of a run
    // with one test thread, need no turn.
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
