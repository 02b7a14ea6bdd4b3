//! Signals that must end neither a server nor a coordinator, though they do by default.
//!
//! A server that dies of a stray SIGALRM takes its copies with it, without dumps. SIGTERM and SIGINT stop
//! in order, SIGHUP opens the log anew, SIGQUIT and the signals of faults end the process as ever: who
//! sends those wants its core.

use std::mem::MaybeUninit;

use libc::{SA_RESTART, SIG_BLOCK, SIG_DFL, SIG_IGN, c_int, sigset_t};

/// Signals without a meaning for either program.
const MEANINGLESS: [c_int; 11] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    // The failing call says the rest: EPIPE, EFBIG; a hard limit of processor time kills anyway.
    libc::SIGPIPE,
    libc::SIGXFSZ,
    libc::SIGXCPU,
];

fn meaningless() -> impl Iterator<Item = c_int> {
    MEANINGLESS.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// Ignores them, and SIGHUP until [`block`] holds it back. Async-signal-safe: may run between fork and exec.
pub fn ignore() {
    meaningless().chain([libc::SIGHUP]).for_each(|signal| set(signal, SIG_IGN, 0));
}

/// Has them do nothing, and SIGHUP until it gets a handler of its own. Unlike ignored signals, these have
/// their default effect again in the programs that this process executes.
pub fn pass_over() {
    extern "C" fn nothing(_: c_int) {}
    let handler = nothing as extern "C" fn(c_int) as libc::sighandler_t;
    meaningless().chain([libc::SIGHUP]).for_each(|signal| set(signal, handler, SA_RESTART));
}

fn set(signal: c_int, handler: libc::sighandler_t, flags: c_int) {
    // SAFETY: zeros are a valid sigaction; the handler is a constant of the system's or a function that
    // does nothing; the old action is not asked for. A signal that there is not is refused, and left.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// A set of these signals.
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

/// Holds these signals back for sigtimedwait(2), in this thread and those it starts.
///
/// # Errors
/// The system refuses.
pub fn block(signals: &[c_int]) -> std::io::Result<()> {
    let set = set_of(signals);
    // SAFETY: `set` is an initialised set; the old mask is not asked for.
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

    /// The test runs itself once more, as the process that is to live.
    #[test]
    fn signals_that_mean_nothing_end_no_process_that_passes_them_over_or_ignores_them() {
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
        let this_test = "signals::tests::signals_that_mean_nothing_end_no_process_that_passes_them_over_or_ignores_them";
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
