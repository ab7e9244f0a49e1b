//! Owns: signals as readable bytes: signal-hook's self-pipe behind one descriptor, and the mask around a fork.
//! Rule: a handler does nothing but write to the pipe; what a signal means is decided by whoever reads it.
//! Never: runs policy in a handler.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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
        let signals_heard = SignalDelivery::with_pipe(read, write, SignalOnly, signals)?;
        if let Some(handler) = signals.first().and_then(|signal| handler_of(*signal)) {
            PIPE_HANDLER.store(handler, Relaxed);
        }
        Ok(Signals(signals_heard))
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

/// The handler that writes to pipes; one for all signals, as signal-hook has it.
static PIPE_HANDLER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

fn handler_of(signal: i32) -> Option<usize> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the call only fills `action`, which is read when it says that it has.
    unsafe {
        match libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) {
            0 => Some(action.assume_init().sa_sigaction),
            _ => None,
        }
    }
}

/// In a process that the application has forked, and async-signal-safe: signals that would be written to a pipe, which is its
/// parent's too, have the kernel's default. Handlers that somebody has put in their place stay.
pub(super) fn stand_aside() {
    for signal in 1..REAL_TIME {
        let pipe = Some(PIPE_HANDLER.load(Relaxed)).filter(|handler| *handler != libc::SIG_DFL);
        let ours = [pipe, Some(nothing as extern "C" fn(i32) as usize)];
        if handler_of(signal).is_some_and(|handler| ours.contains(&Some(handler))) {
            set_default(signal);
        }
    }
}

/// Real-time signals begin here at the earliest (signal(7)).
pub const REAL_TIME: i32 = 32;

/// The kernel's default, at once. Async-signal-safe.
pub(super) fn set_default(signal: i32) {
    // SAFETY: SIG_DFL with an empty mask is a valid action.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

extern "C" fn nothing(_: i32) {}

/// The signal does nothing any more; a program that this process runs has the kernel's default.
pub fn disregard(signal: i32) -> io::Result<()> {
    // SAFETY: the handler has the signature that sigaction(2) wants; the mask is empty.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, ptr::null_mut())
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does to this process what the kernel's default of the signal does.
pub fn obey_default(signal: i32) {
    set_default(signal);
    // It has a number that signal-hook knows, or nothing happens.
    let _ = raise(signal);
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
