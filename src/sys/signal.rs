//! Owns: signals as readable bytes: signal-hook's self-pipe behind one descriptor, and the mask around a fork.
//! Rule: a handler does nothing but write to the pipe; what a signal means is decided by whoever reads it.
//! Never: runs policy in a handler.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{sigprocmask, SigSet, SigmaskHow};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

pub use signal_hook::consts::{
    SIGABRT, SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};
/// raise(3): sends a signal to the calling thread, which has handled it when this returns.
pub use signal_hook::low_level::raise;

/// Signals delivered as bytes. Dropping it takes our handlers out of the chain and closes the pipe.
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    pub fn new(signals: &[i32]) -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        Ok(Signals(SignalDelivery::with_pipe(read, write, SignalOnly, signals)?))
    }

    /// The signals that came since the last call, without waiting.
    pub fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// While it lives, signals wait: nothing is delivered between a fork and the moment the child has its own handlers.
pub struct Blocked(SigSet);

impl Blocked {
    pub fn all() -> io::Result<Blocked> {
        let mut before = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        Ok(Blocked(before))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SIG_SETMASK with a valid set cannot fail (sigprocmask(2): EFAULT and EINVAL only).
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.0), None);
    }
}

/// The signal on which a worker writes its stacks: a real-time one that programs leave alone.
pub fn stack_dump() -> i32 {
    nix::libc::SIGRTMIN() + 7
}

/// A mask with nothing blocked, whatever the parent left at exec.
pub fn unblock_all() -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// "SIGTERM" → "term", for log lines.
pub fn name(signal: i32) -> String {
    let name = nix::sys::signal::Signal::try_from(signal).map_or("SIG?", |s| s.as_str());
    name.trim_start_matches("SIG").to_ascii_lowercase()
}

/// "SIGTERM"; "SIGRTMIN+3"; of the two that the C library keeps to itself the number.
pub fn shown(signal: i32) -> String {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    match full_name(signal) {
        Some(name) => name.to_string(),
        None if signal == first => "SIGRTMIN".to_string(),
        None if (first..=last).contains(&signal) => format!("SIGRTMIN+{}", signal - first),
        None => format!("signal {signal}"),
    }
}

/// "SIGTERM". Async-signal-safe.
pub fn full_name(signal: i32) -> Option<&'static str> {
    nix::sys::signal::Signal::try_from(signal).ok().map(nix::sys::signal::Signal::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raised_signal_is_read_once() {
        let mut signals = Signals::new(&[SIGUSR2]).unwrap();
        signal_hook::low_level::raise(SIGUSR2).unwrap();
        assert_eq!(signals.pending(), [SIGUSR2]);
        assert!(signals.pending().is_empty());
    }

    #[test]
    fn names_are_lower_case() {
        assert_eq!(name(SIGTTIN), "ttin");
    }
}
