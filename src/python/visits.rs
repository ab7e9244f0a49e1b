//! Owns: how threads of the server that Python does not wait for come to the interpreter, and that none is there when it is taken
//! apart: CPython before 3.14 ends such a thread wherever it is, or crashes.
//! Rule: the lock is held for a few instructions, never by a thread that waits for the interpreter.
//! Never: keeps the end waiting without a limit.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use crate::sys::crash;

static VISITS: Mutex<Visits> = Mutex::new(Visits { closed: false, inside: 0 });
static LEFT: Condvar = Condvar::new();

struct Visits {
    closed: bool,
    /// Threads that have the interpreter, or wait for it.
    inside: usize,
}

fn visits() -> MutexGuard<'static, Visits> {
    VISITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` with the interpreter, in a thread that lives for this; None when the process is about to end.
pub fn visit<R>(body: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let mut state = visits();
    if state.closed {
        return None;
    }
    state.inside += 1;
    drop(state);
    let result = Python::try_attach(body);
    visits().inside -= 1;
    LEFT.notify_all();
    result
}

/// From now on there are no visits; false when one has not ended within the time.
pub fn end_visits(py: Python<'_>, patience: Duration) -> bool {
    visits().closed = true;
    py.detach(|| {
        let ended = LEFT.wait_timeout_while(visits(), patience, |state| state.inside > 0);
        !ended.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    })
}

/// Whether there are no more visits.
pub fn have_visits_ended() -> bool {
    visits().closed
}

/// The interpreter for a thread that serves: where that has come to its end, so does the thread.
pub fn attach<R>(body: impl FnOnce(Python<'_>) -> R) -> R {
    Python::try_attach(body).unwrap_or_else(|| crash::wait_for_the_end())
}
