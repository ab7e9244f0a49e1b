//! Owns: noticing that a child of the arbiter has ended, whatever ended it and whoever has taken its status.
//! Rule: who is on the books is there until its end is known: by waitpid(2); or, where a hook of the operator's has waited
//! for it or has had it ignored, by its pidfd or by there being no children at all.
//! Never: decides what follows.

use std::ops::ControlFlow;

use pyo3::prelude::*;

use super::{Arbiter, Flow};
use crate::mold::Mold;
use crate::sys::child::{self, Ending, Handle, Reaped};
use crate::sys::clock::Nanos;
use crate::sys::poll::{wait_few, Interest};

/// In one turn. The arbiter reaps orphans too, and a worker can make any number of them.
pub(super) const MOST_ENDINGS: usize = 256;

impl Arbiter {
    pub(super) fn reap(&mut self, py: Python<'_>, now: Nanos) -> Flow {
        for (pid, stopped) in std::iter::from_fn(child::halted).take(MOST_ENDINGS) {
            self.children.set_stopped(pid, Some(now).filter(|_| stopped));
        }
        for _ in 0..MOST_ENDINGS {
            let Some((pid, ending)) = self.next_ending(&[]) else {
                return ControlFlow::Continue(());
            };
            match self.children.remove(pid, self.current.number, now) {
                Some(child) => self.worker_died(py, &child, ending, now)?,
                None => self.other_died(py, pid, ending, now)?,
            }
        }
        // There may be more.
        self.hurry = true;
        ControlFlow::Continue(())
    }

    /// A child that has ended, each once. `molds` are those that have left their generation.
    pub(super) fn next_ending(&self, molds: &[Mold]) -> Option<(i32, Ending)> {
        let lost = match child::reap() {
            Reaped::Child(pid, ending) => return Some((pid, ending)),
            Reaped::Nobody => self.lost(molds),
            Reaped::NoChildren => self.all_processes(molds).next(),
        };
        lost.map(|process| (process.pid(), Ending::Unknown))
    }

    /// One that has ended and cannot be reaped any more.
    fn lost<'a>(&'a self, molds: &'a [Mold]) -> Option<&'a Handle> {
        let watched = self.all_processes(molds).filter_map(|process| Some((process, process.waits()?)));
        let (processes, fds): (Vec<_>, Vec<_>) = watched.unzip();
        // Without an answer nobody is known to have ended.
        let ended = wait_few(&fds, Interest::Read, Some(0)).unwrap_or_default();
        let mut ended = processes.into_iter().zip(ended).filter(|(_, has_ended)| *has_ended);
        ended.find(|(process, _)| process.is_lost()).map(|(process, _)| process)
    }

    /// The children that the arbiter knows.
    pub(super) fn processes(&self) -> impl Iterator<Item = &Handle> {
        let next = self.reload.as_ref().map(|reload| &reload.generation);
        let generations = [Some(&self.current), next].into_iter().flatten();
        let molds = generations.filter_map(|generation| generation.mold.as_ref()).map(Mold::process);
        self.children.iter().map(|child| &child.process).chain(molds).chain(self.beside.child())
    }

    fn all_processes<'a>(&'a self, molds: &'a [Mold]) -> impl Iterator<Item = &'a Handle> {
        self.processes().chain(molds.iter().map(Mold::process))
    }
}
