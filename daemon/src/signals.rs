//! Signals that have no meaning for a server or a coordinator, but end a process by default.
//!
//! If a stray SIGALRM killed a server, its replicas would be lost without dumps. SIGTERM and SIGINT request an orderly
//! stop, and SIGHUP reopens the log. SIGQUIT and the fault signals keep their default action: they end the process,
//! with a core dump if core dumps are allowed.

use std::mem::MaybeUninit;

use libc::{SA_RESTART, SIG_BLOCK, SIG_DFL, SIG_IGN, c_int, sigset_t};

/// The standard signals that have no meaning for either program.
const MEANINGLESS: [c_int; 11] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    // Without these signals, the failing call still returns EPIPE or EFBIG, and the hard limit on CPU time (RLIMIT_CPU)
    // still kills the process.
    libc::SIGPIPE,
    libc::SIGXFSZ,
    libc::SIGXCPU,
];

fn meaningless() -> impl Iterator<Item = c_int> {
    MEANINGLESS.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// Ignores the signals without a meaning and SIGHUP. [`block`] resets the action of the signals that it blocks.
/// Async-signal-safe: may run between fork and exec.
pub fn ignore() {
    meaningless().chain([libc::SIGHUP]).for_each(|signal| set(signal, SIG_IGN, 0));
}

/// Installs an empty handler for SIGHUP and for the signals that this program does not use. The program may replace the handler of
/// SIGHUP. Unlike ignored signals, handled ones are reset to their default action when this process executes another
/// program.
pub fn pass_over() {
    extern "C" fn nothing(_: c_int) {}
    let handler = nothing as extern "C" fn(c_int) as libc::sighandler_t;
    meaningless().chain([libc::SIGHUP]).for_each(|signal| set(signal, handler, SA_RESTART));
}

fn set(signal: c_int, handler: libc::sighandler_t, flags: c_int) {
    // SAFETY: zeros are a valid sigaction. The handler is SIG_IGN, SIG_DFL or a function that does nothing. The old
    // action is not requested. A call for a nonexistent signal fails and changes nothing.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// Returns the set of these signals.
pub fn set_of(signals: &[c_int]) -> sigset_t {
    // SAFETY: sigset_t is plain data for which zeros are valid, and sigemptyset initialises it.
    unsafe {
        let mut set = MaybeUninit::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks these signals in this thread and in the threads that it starts later, for sigtimedwait(2). Resets their
/// actions to the default.
///
/// # Errors
/// The error of pthread_sigmask(3). Then no action is reset.
pub fn block(signals: &[c_int]) -> std::io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is an initialised set; the old mask is not requested.
    let result = unsafe { libc::pthread_sigmask(SIG_BLOCK, &set, std::ptr::null_mut()) };
    if result != 0 {
        return Err(std::io::Error::from_raw_os_error(result));
    }
    signals.iter().for_each(|signal| self::set(*signal, SIG_DFL, 0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test executes itself as a child process, once for each function. The child must survive the signals.
    #[test]
    fn meaningless_signals_end_no_process_that_handles_or_ignores_them() {
        const CHILD: &str = "KV_DAEMON_TEST_SIGNALS";
        if let Some(how) = std::env::var_os(CHILD) {
            if how == "ignored" {
                ignore()
            } else {
                pass_over()
            }
            for signal in meaningless().chain([libc::SIGHUP]) {
                // SAFETY: raise takes an integer.
                assert_eq!(unsafe { libc::raise(signal) }, 0, "{signal}");
            }
            return;
        }
        let this_test =
            "signals::tests::meaningless_signals_end_no_process_that_handles_or_ignores_them";
        for how in ["ignored", "passed over"] {
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", this_test])
                .env(CHILD, how)
                .output()
                .unwrap();
            assert!(child.status.success(), "{how}: {child:?}");
            assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "{child:?}");
        }
    }
}
