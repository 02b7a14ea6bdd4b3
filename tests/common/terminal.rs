//! A program on a pseudo-terminal, and a simulated user who types and reads the screen.
//!
//! ```text
//!   type_in("P \"a\" \"1\"\r")  -->  controller | terminal  -->  standard input of the program,
//!   wait_for("value[")        <--             |           <--   its output and errors; the program
//!                                                               leads the terminal's session
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::Duration;

use super::{TIMEOUT, poll, programs, turn};

/// Ctrl+C as sent by the keyboard.
pub(crate) const CTRL_C: &str = "\x03";
/// Ctrl+D.
pub(crate) const CTRL_D: &str = "\x04";

/// A program and its terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    controller: Option<File>,
    child: Child,
    screen: Vec<u8>,
    /// The offset up to which [`Terminal::wait_for`] has read.
    read: usize,
}

impl Terminal {
    /// Starts a program on a new terminal.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Terminal {
        turn::take();
        let (controller, terminal) = open();
        let other = || terminal.try_clone().expect("one more descriptor");
        command.stdin(other()).stdout(other()).stderr(other());
        command.env("TERM", "xterm");
        // SAFETY: between fork and exec, only setsid, ioctl and prctl are called, with integers.
        // Standard input is the terminal by then.
        unsafe {
            command.pre_exec(|| {
                let failed = libc::setsid() < 0
                    || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0
                    || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) < 0;
                if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().expect("start a program");
        let mut started =
            Terminal { controller: Some(controller), child, screen: Vec::new(), read: 0 };
        started.look();
        started
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Presses these keys.
    #[track_caller]
    pub(crate) fn type_in(&mut self, keys: &str) {
        let controller = self.controller.as_mut().expect("an open terminal");
        controller.write_all(keys.as_bytes()).expect("type");
    }

    /// Waits until this text appears on the screen after the text of the previous wait. Returns the text between the
    /// two.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let found = poll(TIMEOUT, || {
            self.look();
            let new = &self.screen[self.read..];
            let at = new.windows(text.len()).position(|window| window == text.as_bytes())?;
            let before = String::from_utf8_lossy(&new[..at]).into_owned();
            self.read += at + text.len();
            Some(before)
        });
        found.unwrap_or_else(|| panic!("{text:?} is not on the screen:\n{}", self.screen()))
    }

    /// Returns everything printed so far, including escape sequences.
    pub(crate) fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    /// Closes the terminal, as closing its window does.
    pub(crate) fn close(&mut self) {
        self.controller = None;
    }

    /// Waits for the program to end while reading its output. Returns its exit code, or `None`
    /// after a signal.
    #[track_caller]
    pub(crate) fn await_end(&mut self, limit: Duration) -> Option<i32> {
        let status = poll(limit, || {
            self.look();
            self.child.try_wait().expect("wait for the program")
        });
        self.look();
        let status = status.unwrap_or_else(|| panic!("still running:\n{}", self.screen()));
        status.code()
    }

    /// Reads what the program has printed.
    fn look(&mut self) {
        let Some(controller) = &mut self.controller else { return };
        let mut bytes = [0; 4096];
        loop {
            match controller.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => self.screen.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // EIO means that no program has the terminal open any more.
                Err(_) => return,
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the terminal's screen\n{}", self.screen());
        }
        // SIGTERM is sent first, so that a coordinator ends its servers and a script ends its cluster.
        super::process::signal(self.child.id(), super::process::Signal::TERM);
        programs::wait(&mut self.child, TIMEOUT);
    }
}

/// Opens a terminal of 24 lines and returns its controlling end, which never blocks, and the end
/// for a program. Both are opened with close-on-exec, so that a program started by another test at
/// that moment does not keep the terminal open.
#[track_caller]
fn open() -> (File, OwnedFd) {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: it takes only flags.
    let controller = owned(unsafe { libc::posix_openpt(flags) });
    let number = controller.as_raw_fd();
    // SAFETY: the descriptor is open and is a pseudo-terminal's controlling end.
    check(unsafe { libc::unlockpt(number) });
    // SAFETY: as above; this request takes flags and returns a descriptor.
    let terminal = owned(unsafe { libc::ioctl(number, libc::TIOCGPTPEER, flags) });
    let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: this request reads the size, which outlives the call.
    check(unsafe { libc::ioctl(number, libc::TIOCSWINSZ, &raw const size) });
    rustix::io::ioctl_fionbio(&controller, true).expect("make it non-blocking");
    (File::from(controller), terminal)
}

#[track_caller]
fn check(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "open a pseudo-terminal: {}", std::io::Error::last_os_error());
    result
}

#[track_caller]
fn owned(descriptor: libc::c_int) -> OwnedFd {
    // SAFETY: the descriptor was just opened for the caller and has no other owner.
    unsafe { OwnedFd::from_raw_fd(check(descriptor)) }
}
