//! Owns: children of this process: how they ended, and a handle of each through which a signal reaches it and nobody else.
//! Rule: every child that ends is reaped, known or not (the arbiter may be PID 1), whatever its status says.
//! Never: forks; that is Python's own `os.fork`, called from `python`.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

use super::signal;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(i32),
    Signalled {
        signal: i32,
        /// It has left a core dump.
        core: bool,
    },
    /// It has ended, and its status is lost.
    Unknown,
}

impl Ending {
    /// What a status of wait(2) says; None for a child that was stopped or goes on. Signals that have no name are signals
    /// too: real-time ones, and whatever a later kernel has.
    fn of(status: i32) -> Option<Ending> {
        if libc::WIFEXITED(status) {
            Some(Ending::Exited(libc::WEXITSTATUS(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Ending::Signalled { signal: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) })
        } else if libc::WIFSTOPPED(status) || libc::WIFCONTINUED(status) {
            None
        } else {
            Some(Ending::Unknown)
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exited(code) => write!(f, "exited with code {code}"),
            Ending::Signalled { signal, core } => {
                let core = if *core { " (core dumped)" } else { "" };
                write!(f, "was killed by {}{core}", signal::shown(*signal))
            }
            Ending::Unknown => f.write_str("ended, and it is not known how"),
        }
    }
}

/// What `reap` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// The child with this pid has ended.
    Child(i32, Ending),
    /// All children live.
    Nobody,
    /// There are no children (ECHILD).
    NoChildren,
}

/// Takes the status of a child that has ended, if there is one; never waits.
pub fn reap() -> Reaped {
    loop {
        let mut status = 0;
        // SAFETY: the status is ours.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            0 => return Reaped::Nobody,
            -1 if Errno::last() == Errno::EINTR => {}
            // waitpid(2) has ECHILD, EINTR, and EINVAL for options that are not these.
            -1 => return Reaped::NoChildren,
            pid => {
                if let Some(ending) = Ending::of(status) {
                    return Reaped::Child(pid, ending);
                }
            }
        }
    }
}

/// A child that somebody has stopped (true) or let go on, waitid(2); never waits.
pub fn halted() -> Option<(i32, bool)> {
    let look = libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG;
    let (pid, code) = wait_id(libc::P_ALL, 0, look).ok()??;
    Some((pid, code != libc::CLD_CONTINUED))
}

/// Waits for one child of ours, which is about to end.
pub fn await_child(pid: i32) -> io::Result<()> {
    loop {
        let mut status = 0;
        // SAFETY: the status is ours.
        match unsafe { libc::waitpid(pid, &mut status, 0) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(()),
        }
    }
}

/// Whether the process is a child of ours, alive or not yet reaped.
pub fn is_child(pid: i32) -> bool {
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let number = libc::id_t::try_from(pid).ok().filter(|number| *number > 0);
    number.is_some_and(|number| wait_id(libc::P_PID, number, look).is_ok())
}

/// waitid(2), which takes or looks at what one child reports: its pid, and `si_code`. None when there is nothing.
fn wait_id(of: libc::idtype_t, id: libc::id_t, options: i32) -> io::Result<Option<(i32, i32)>> {
    // SAFETY: a zeroed siginfo_t is a valid one, in which waitid leaves a pid of 0 when there is nothing to report.
    let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours.
    if unsafe { libc::waitid(of, id, &mut found, options) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid fills in the fields of SIGCHLD, or the pid is 0.
    let pid = unsafe { found.si_pid() };
    Ok((pid != 0).then_some((pid, found.si_code)))
}

/// A process that can be signalled, a child of ours most often: by a pidfd, which never means another process
/// (pidfd_open(2)); or by its number, where the kernel has no pidfds.
pub struct Handle {
    pid: i32,
    fd: Option<OwnedFd>,
    /// It has ended, and cannot be reaped: a debugger has it.
    is_held: Cell<bool>,
}

impl Handle {
    /// Of a child that cannot have been reaped yet; of any other process, whoever has the number now.
    ///
    /// Errors: there are no pidfds (ENOSYS), or a filter of system calls forbids them (EPERM, ENOSYS); of a process that is
    /// no child, EPERM and ESRCH too.
    pub fn open(pid: i32) -> io::Result<Handle> {
        // SAFETY: the system call takes numbers only. Its descriptor is CLOEXEC.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let number = i32::try_from(opened).ok().filter(|number| *number >= 0);
        let number = number.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made the descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        send(fd.as_fd(), 0)?;
        Ok(Handle { pid, fd: Some(fd), is_held: Cell::new(false) })
    }

    pub fn by_number(pid: i32) -> Handle {
        Handle { pid, fd: None, is_held: Cell::new(false) }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Errors: ESRCH, it has been reaped.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.fd {
            Some(fd) => send(fd.as_fd(), signal),
            None => super::process::signal(self.pid, signal),
        }
    }

    /// It has been reaped: somebody else may have the number of one without a pidfd from now on.
    pub fn set_reaped(&mut self) {
        if self.fd.is_none() {
            self.pid = 0;
        }
    }

    /// Readable when the process has ended; None when that is known, or cannot be told.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd).filter(|_| !self.is_held.get())
    }

    /// Of a process that has ended: whether something else has reaped it. If not it is held, and reaped when that is over.
    pub fn is_lost(&self) -> bool {
        let is_lost = self.signal(0).is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH));
        self.is_held.set(!is_lost);
        is_lost
    }
}

fn send(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo_t the kernel makes up its own, as for kill(2).
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, no_info, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll::{wait_one, Interest};

    #[test]
    fn every_status_has_its_meaning() {
        for code in 0..256 {
            assert_eq!(Ending::of(code << 8), Some(Ending::Exited(code)));
        }
        for signal in 1..127 {
            assert_eq!(Ending::of(signal), Some(Ending::Signalled { signal, core: false }));
            assert_eq!(Ending::of(signal | 0x80), Some(Ending::Signalled { signal, core: true }));
            assert_eq!(Ending::of(signal << 8 | 0x7f), None, "stopped");
        }
        assert_eq!(Ending::of(0xffff), None, "goes on");
        for status in 0..=0xffff {
            // None that the kernel can report is left out.
            let is_odd = status & 0xff == 0xff && status != 0xffff;
            assert_eq!(Ending::of(status) == Some(Ending::Unknown), is_odd, "{status:#x}");
        }
    }

    #[test]
    fn an_ending_is_told_by_the_signals_name() {
        let killed = |signal, core| Ending::Signalled { signal, core }.to_string();
        assert_eq!(killed(libc::SIGSEGV, true), "was killed by SIGSEGV (core dumped)");
        assert_eq!(killed(libc::SIGRTMIN() + 3, false), "was killed by SIGRTMIN+3");
        assert_eq!(killed(32, false), "was killed by signal 32");
        assert_eq!(Ending::Exited(7).to_string(), "exited with code 7");
    }

    /// A child that ends as told. `cargo test` has other threads: it does nothing but that.
    fn forked(end: impl Fn()) -> i32 {
        // SAFETY: the child makes one system call and ends.
        match unsafe { libc::fork() } {
            0 => {
                end();
                crate::sys::process::exit_now(0)
            }
            pid => pid,
        }
    }

    #[test]
    fn a_handle_reaches_a_child_until_it_is_reaped_and_nobody_after() {
        let pid = forked(|| loop {
            // SAFETY: pause(2) has no precondition.
            unsafe { libc::pause() };
        });
        assert!(is_child(pid) && !is_child(1) && !is_child(0) && !is_child(-1));
        let handle = Handle::open(pid).unwrap();
        assert!(!wait_one(handle.waits().unwrap(), Interest::Read, Some(0)).unwrap());
        handle.signal(libc::SIGRTMIN()).unwrap();
        assert!(wait_one(handle.waits().unwrap(), Interest::Read, None).unwrap());
        assert!(is_child(pid), "its end has no name in nix");
        assert!(!handle.is_lost() && handle.waits().is_none());
        await_child(pid).unwrap();
        assert!(handle.is_lost());
        assert_eq!(handle.signal(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        let mut numbered = Handle::by_number(crate::sys::process::id());
        numbered.signal(0).unwrap();
        numbered.set_reaped();
        assert!(numbered.signal(0).is_err());
    }
}
