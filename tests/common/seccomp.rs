//! A filter of system calls as containers have one, under which io_uring is denied.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The calls that are denied; their numbers are the same on every architecture.
const DENIED: [libc::c_long; 3] =
    [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
/// Loads the number of the system call, the first field of `struct seccomp_data` (seccomp(2)).
const LOAD_NUMBER: libc::sock_filter =
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0);
const ALLOW: libc::sock_filter =
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
const DENY: libc::sock_filter =
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

/// Skips so many of the next instructions if the number is this one.
const fn skip_if(number: libc::c_long, skipped: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, skipped, 0, number as u32)
}

const FILTER: [libc::sock_filter; 6] =
    [LOAD_NUMBER, skip_if(DENIED[0], 3), skip_if(DENIED[1], 2), skip_if(DENIED[2], 1), ALLOW, DENY];

/// Lets a program, and all that it starts, find every call of io_uring denied with EPERM.
pub(crate) fn deny_io_uring(command: &mut Command) {
    // SAFETY: the closure makes two system calls on integers and memory of its own, which are safe to make between fork
    // and exec.
    unsafe { command.pre_exec(install) };
}

fn install() -> io::Result<()> {
    let mut filter = FILTER;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let (on, none) = (1 as libc::c_ulong, 0 as libc::c_ulong);
    // SAFETY: prctl takes integers here.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, none, none, none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: the kernel copies the program, which lives across the call.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
