//! Owns: what a fork means to the process that it makes: whether that is one of the server's own, and that otherwise signals do
//! what they do in a plain process.
//! Rule: everything in the handlers of pthread_atfork(3) is async-signal-safe. Signals wait from before the fork until the child
//! has no handler of ours: one that came earlier would be written to the pipe of its parent, which would obey it.
//! Never: forks; that is Python's own `os.fork`, called from `python`.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::OnceLock;

use super::{crash, signal};

static FORKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread forks a process of the server's.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
    /// What was blocked before the fork.
    static MASK: Cell<MaybeUninit<libc::sigset_t>> = const { Cell::new(MaybeUninit::uninit()) };
}

/// This process is one of the server's. A process that is forked from it, by Python or by C code, knows that it is not: it has
/// our code to run, and none of our business.
pub fn mark() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    FORKED.store(false, Relaxed);
    // SAFETY: the handlers only use what `Rule` allows, and their code is never unloaded.
    let install = || unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
    match INSTALLED.get_or_init(install) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(*errno)),
    }
}

/// Whether this process was forked by somebody else than the server.
pub fn is_foreign() -> bool {
    FORKED.load(Relaxed)
}

/// Runs what forks a process of the server's.
pub fn ours<R>(fork: impl FnOnce() -> R) -> R {
    IS_OURS.set(true);
    let result = fork();
    IS_OURS.set(false);
    result
}

extern "C" fn prepare() {
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set that sigprocmask reads; `before` is only filled.
    unsafe {
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    MASK.set(before);
}

extern "C" fn in_parent() {
    let before = MASK.get();
    // SAFETY: `prepare` has filled it in this thread.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
}

/// In the only thread of the child, which is the one that forked.
extern "C" fn in_child() {
    if !IS_OURS.get() {
        FORKED.store(true, Relaxed);
        signal::stand_aside();
        crash::stand_aside();
    }
    in_parent();
}
