//! Owns: when the arbiter calls which hook, and what it does about one that raises.
//! Rule: a hook sees its own generation's settings. One that raises ends a server that is only starting; in one that has
//! served it is logged and changes nothing.
//! Never: runs in a worker.

use pyo3::prelude::*;

use super::children::Child;
use super::generation::Generation;
use super::spawn::Which;
use super::Arbiter;
use crate::error::Error;
use crate::hooks::{report, Hook, Hooks, Server};
use crate::logger;
use crate::scoreboard::Slot;

/// The traceback goes to the log, and the server does not start.
fn must(py: Python<'_>, hook: Hook, result: PyResult<()>) -> Result<(), Error> {
    result.map_err(|e| {
        let name = hook.name();
        logger::exception(py, &format!("Exception in {name} hook"), &e);
        Error::Other(format!("{name} raised {e}"))
    })
}

/// `nworkers_changed` and `on_starting`, before there are listeners.
pub fn start(py: Python<'_>, server: &Server, hooks: &Hooks, workers: usize) -> Result<(), Error> {
    must(py, Hook::NworkersChanged, server.enter(py, hooks, &[]))?;
    must(py, Hook::NworkersChanged, server.workers_changed(py, hooks, workers, None))?;
    must(py, Hook::OnStarting, server.call(py, hooks, Hook::OnStarting))
}

impl Arbiter {
    /// Calls `when_ready`; false when the server is to end because it raised.
    pub(super) fn announce_ready(&mut self, py: Python<'_>) -> bool {
        let entered = self.enter(py, Which::Current);
        let called = entered.and_then(|()| self.server.call(py, &self.current.hooks, Hook::WhenReady));
        let raised = called.is_err();
        report(py, Hook::WhenReady, called);
        !raised
    }

    /// Calls a hook of the generation that serves.
    pub(super) fn tell(&mut self, py: Python<'_>, hook: Hook) {
        let entered = self.enter(py, Which::Current);
        report(py, hook, entered.and_then(|()| self.server.call(py, &self.current.hooks, hook)));
    }

    pub(super) fn tell_of_workers(&mut self, py: Python<'_>, which: Which, new: usize, old: usize) {
        let entered = self.enter(py, which);
        let hooks = self.generation(which).hooks.clone();
        let called = entered.and_then(|()| self.server.workers_changed(py, &hooks, new, Some(old)));
        report(py, Hook::NworkersChanged, called);
    }

    /// The new generation is complete but for its workers.
    pub(super) fn tell_of_reload(&mut self, py: Python<'_>) {
        let Some(new) = self.reload.as_ref().map(|reload| reload.wanted()) else {
            return;
        };
        self.tell_of_workers(py, Which::Next, new, self.wanted);
        let hooks = self.generation(Which::Next).hooks.clone();
        report(py, Hook::OnReload, self.server.call(py, &hooks, Hook::OnReload));
    }

    /// Makes what hooks are given for a worker and calls `pre_fork`.
    ///
    /// None when the server is to end because it raised.
    pub(super) fn before_fork(
        &mut self,
        py: Python<'_>,
        which: Which,
        slot: &Slot,
        most_requests: u64,
    ) -> PyResult<Option<Py<PyAny>>> {
        self.enter(py, which)?;
        let worker = self.server.new_worker(py, self.next_age, slot, most_requests)?;
        let hooks = self.generation(which).hooks.clone();
        let called = self.server.call_about(py, &hooks, Hook::PreFork, &worker);
        let fatal = called.is_err() && !self.ever_ready;
        report(py, Hook::PreFork, called);
        Ok(Some(worker).filter(|_| !fatal))
    }

    /// Of a worker that has been reaped.
    pub(super) fn tell_of_end(&mut self, py: Python<'_>, child: &Child) {
        let entered = self.enter(py, Which::Current);
        let worker = entered.and_then(|()| self.server.remove(py, child.pid));
        let hooks = &self.current.hooks;
        let called = worker.and_then(|w| self.server.call_about(py, hooks, Hook::ChildExit, &w));
        report(py, Hook::ChildExit, called);
    }

    /// What follows happens in the name of this generation: its configuration, its listeners, its `raw_env`.
    pub(super) fn enter(&mut self, py: Python<'_>, which: Which) -> PyResult<()> {
        let (generation, wanted) = match (which, &self.reload) {
            (Which::Next, Some(reload)) => (&reload.generation, reload.wanted()),
            _ => (&self.current, self.wanted),
        };
        let Generation { hooks, listeners, config, .. } = generation;
        self.raw_env.become_that(py, &config.raw_env)?;
        self.server.enter(py, hooks, listeners)?;
        self.server.set_workers(py, wanted)
    }
}
