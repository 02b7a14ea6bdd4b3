//! A filter of system calls that denies io_uring, like the filters of container runtimes.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// The calls that are denied. Their numbers are the same on every architecture.
const DENIED: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Makes every io_uring call of a program and its descendants fail with EPERM.
pub(crate) fn deny_io_uring(command: &mut Command) {
    let filter = filter();
    let length = filter.len().try_into().expect("a short filter");
    let install = move || {
        let mut filter = filter;
        install(&libc::sock_fprog { len: length, filter: filter.as_mut_ptr() })
    };
    // SAFETY: the closure makes two system calls on integers and memory of its own, which are safe to make between fork
    // and exec.
    unsafe { command.pre_exec(install) };
}

/// Returns the BPF program of the filter, over `struct seccomp_data` (seccomp(2)).
fn filter() -> [sock_filter; 6] {
    let instruction = |code: u32, jump: u8, k: u32| sock_filter {
        code: code.try_into().expect("codes have 16 bits"),
        jt: jump,
        jf: 0,
        k,
    };
    let number = |call: libc::c_long| u32::try_from(call).expect("a small number");
    let deny = |call, skipped| instruction(BPF_JMP | BPF_JEQ | BPF_K, skipped, number(call));
    let errno = number(libc::EPERM.into());
    [
        // The number of the call is the first field.
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0),
        deny(DENIED[0], 3),
        deny(DENIED[1], 2),
        deny(DENIED[2], 1),
        instruction(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        instruction(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ERRNO | errno),
    ]
}

fn install(program: &libc::sock_fprog) -> io::Result<()> {
    let (on, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: prctl takes integers here.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, none, none, none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the kernel copies the program, which lives across the call.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const *program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
