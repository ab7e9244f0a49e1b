//! Owns: the end of the server: telling workers, waiting for them, what is left behind (nothing).
//! Rule: bounded by `graceful_timeout` and the time to end; a second INT or QUIT shortens it; every process and file of ours is gone after.
//! Never: starts anything.

use std::os::fd::AsFd;

use pyo3::prelude::*;

use super::asker::Askers;
use super::children::BACKSTOP;
use super::reaping::MOST_ENDINGS;
use super::{Arbiter, Outcome};
use crate::daemon::PidFile;
use crate::hooks::Hook;
use crate::mold::Mold;
use crate::sys::child::Handle;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::{wait_few, Interest};
use crate::sys::signal;

/// What a hurried operator has to wait at the most.
const QUICK: Nanos = 2 * SECOND;
/// What the kernel has for ending a process that was killed.
const LAST: Nanos = 10 * SECOND;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Requests are finished.
    Graceful,
    /// Requests are broken off.
    Quick,
}

impl Arbiter {
    pub(super) fn stop(&mut self, py: Python<'_>, manner: Manner) -> Outcome {
        let deadline = clock::monotonic().saturating_add(self.time_to_leave() + BACKSTOP);
        self.end(py, manner, deadline);
        log::info!("Shutting down: Master");
        self.tell(py, Hook::OnExit);
        Outcome::Exit(0)
    }

    /// For a server that never became one.
    pub(super) fn give_up(&mut self, py: Python<'_>, code: i32) -> Outcome {
        let deadline = clock::monotonic() + QUICK;
        self.end(py, Manner::Quick, deadline);
        self.tell(py, Hook::OnExit);
        Outcome::Exit(code)
    }

    fn end(&mut self, py: Python<'_>, manner: Manner, deadline: Nanos) {
        let told = if manner == Manner::Graceful { signal::SIGTERM } else { signal::SIGQUIT };
        // A reload that is complete has been one, whatever comes now.
        self.answer_askers(Nanos::MAX);
        self.tell_of_leaving();
        self.control.close();
        let mut molds = self.dismiss_molds();
        self.signal_all(told);
        // Workers take what waits there; who comes later is refused at once.
        self.current.listeners.iter().for_each(|listener| listener.close());
        self.await_children(py, &mut molds, manner, deadline);
        let left: Vec<i32> = self.children.iter().map(|child| child.pid).collect();
        for pid in left {
            self.kill(pid, "did not stop in time (--graceful-timeout)");
        }
        // SIGKILL needs no consent: they are reaped as soon as the kernel, or a debugger, is done with them.
        let killed = clock::monotonic();
        self.await_children(py, &mut molds, Manner::Quick, killed.saturating_add(LAST));
        self.tell_of_those_left(&molds);
        self.unlink(&self.current, &[]);
        self.askers.iter().for_each(Askers::remove);
        self.pidfile.iter().for_each(PidFile::remove);
    }

    fn tell_of_those_left(&self, molds: &[Mold]) {
        let workers = self.children.iter().map(|child| ("Worker", child.pid));
        for (role, pid) in workers.chain(molds.iter().map(|mold| ("Mold", mold.pid))) {
            let seconds = LAST / SECOND;
            log::error!(
                "{role} (pid:{pid}) was killed {seconds} s ago and has not ended: the kernel or a debugger holds it. \
                 The server ends without it."
            );
        }
    }

    /// Returns those that are still to be reaped.
    fn dismiss_molds(&mut self) -> Vec<Mold> {
        let reload = self.reload.take();
        if let Some(reload) = &reload {
            self.unlink(&reload.generation, &self.current.listeners);
        }
        let molds = [self.current.mold.take(), reload.and_then(|reload| reload.generation.mold)];
        let mut molds: Vec<Mold> = molds.into_iter().flatten().collect();
        molds.iter_mut().for_each(Mold::give_up);
        molds
    }

    /// Until there are none or the time is over. INT or QUIT while requests are being finished breaks them off.
    fn await_children(
        &mut self,
        py: Python<'_>,
        molds: &mut Vec<Mold>,
        mut manner: Manner,
        mut deadline: Nanos,
    ) {
        loop {
            // Read before the dead are: a SIGCHLD that is taken out of the pipe has its child reaped in this turn.
            let hurried = self.is_hurried();
            for _ in 0..MOST_ENDINGS {
                let Some((pid, ending)) = self.next_ending(molds) else {
                    break;
                };
                let now = clock::monotonic();
                molds.retain(|mold| mold.pid != pid);
                if let Some(child) = self.children.remove(pid, self.current.number, now) {
                    self.bury(&child, ending, now);
                    self.tell_of_end(py, &child);
                } else if self.is_successor(pid) {
                    self.successor_died(py, pid, ending);
                    // There is nobody left to leave connections to.
                    self.notice.set_stopping();
                    self.signal_all(signal::SIGTERM);
                }
            }
            let now = clock::monotonic();
            if self.children.is_empty() && molds.is_empty() || now >= deadline {
                return;
            }
            if hurried && manner == Manner::Graceful {
                log::info!("Quick shutdown requested");
                manner = Manner::Quick;
                deadline = deadline.min(now + QUICK);
                self.signal_all(signal::SIGQUIT);
            }
            self.sleep_until(py, molds, deadline, now);
        }
    }

    fn is_hurried(&mut self) -> bool {
        self.signals.pending().iter().any(|signal| matches!(*signal, signal::SIGINT | signal::SIGQUIT))
    }

    fn sleep_until(&self, py: Python<'_>, molds: &[Mold], deadline: Nanos, now: Nanos) {
        let mut fds = vec![self.signals.as_fd()];
        fds.extend(self.processes().chain(molds.iter().map(Mold::process)).filter_map(Handle::waits));
        let wait = || wait_few(&fds, Interest::Read, Some(deadline - now));
        if let Err(e) = py.detach(wait) {
            log::error!("Cannot wait: {e}");
        }
    }
}
