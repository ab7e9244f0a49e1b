//! Owns: the time that a worker has to end as a Python program does: its exit code goes up through the frames of whoever started
//! the server, threads are waited for, exit handlers run, the interpreter is taken apart.
//! Rule: when the time is over a thread of ours, which needs no interpreter, says what holds the process and ends it.
//! Never: decides with what code.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::running::PROBE;
use crate::event_loop::EventLoop;
use crate::python::{self, Holders};
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::{crash, process};

/// How long the end of a worker may take at least, whatever is left of `graceful_timeout`.
pub const EXIT_TIME: Nanos = 3 * SECOND;

pub(super) struct Leaving {
    /// For the log.
    who: &'static str,
    has_begun: AtomicBool,
    leaves_thread: AtomicBool,
}

impl Leaving {
    pub(super) fn of(who: &'static str) -> Leaving {
        Leaving { who, has_begun: AtomicBool::new(false), leaves_thread: AtomicBool::new(false) }
    }

    /// By the main thread, which may not have the interpreter yet.
    pub(super) fn loop_has_ended(&self, event_loop: &EventLoop, graceful: Nanos) {
        self.leaves_thread.store(event_loop.has_stuck_thread(), Relaxed);
        let until = event_loop.drains_until();
        self.begin(until.unwrap_or_else(|| clock::monotonic().saturating_add(graceful)), 0);
    }

    /// A thread of the worker goes on, though the loop has ended: a signal to stop at once waits for no request.
    pub(super) fn leave_thread(&self) {
        self.leaves_thread.store(true, Relaxed);
    }

    /// Whether a thread of the worker is still in a request.
    pub(super) fn leaves_thread(&self) -> bool {
        self.leaves_thread.load(Relaxed)
    }

    /// From now on the process ends within the time: until then, and not before `EXIT_TIME` is over. Said twice, the first
    /// counts.
    pub(super) fn begin(&self, until: Nanos, code: i32) {
        if self.has_begun.swap(true, Relaxed) {
            return;
        }
        let (who, began) = (self.who, clock::monotonic());
        let until = until.max(began + EXIT_TIME);
        let watch = move || {
            thread::sleep(Duration::from_nanos(until.saturating_sub(clock::monotonic())));
            end_late(who, (until - began) / SECOND, code)
        };
        // Without it the arbiter ends the process, a little later.
        if let Err(e) = thread::Builder::new().name("exit-watch".into()).spawn(watch) {
            log::warn!("Cannot watch how the process ends: {e}");
        }
    }
}

fn end_late(who: &str, seconds: Nanos, code: i32) {
    let pid = process::id();
    let holders = python::holders_within(PROBE);
    let what = match &holders {
        Some(Holders { threads, .. }) if !threads.is_empty() => {
            format!("it waits for threads that are no daemons: {}", threads.join(", "))
        }
        Some(_) => "an exit handler (atexit), or what follows run(), does not return".to_string(),
        None => "something keeps the interpreter".to_string(),
    };
    log::error!(
        "{who} (pid:{pid}) has not ended within {seconds} s and is ended: {what} (--graceful-timeout)"
    );
    match holders {
        Some(Holders { stacks, .. }) => log::error!("Stacks of all threads\n{stacks}"),
        None => crash::write_stacks(),
    }
    process::exit_now(code)
}
