//! Owns: the `server` that hooks are given, and the `worker` as the arbiter has it.
//! Rule: one object for the arbiter's whole life; before a hook of a generation is called, `enter` shows it that
//! generation's configuration and listeners.
//! Never: decides what becomes of a hook that raises.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;

use super::{objects, Hook, Hooks};
use crate::launch::Program;
use crate::listener::Listener;
use crate::scoreboard::{Phase, Slot};

/// In the arbiter's children it is a copy, as of the fork.
pub struct Server {
    pub(super) object: Py<PyAny>,
    /// `log`, where Rust writes the logs.
    log: Py<PyAny>,
}

impl Server {
    /// `program` is the application object of whoever started us, if it was not the command.
    pub fn new(py: Python<'_>, program: Option<&Program>) -> PyResult<Server> {
        let module = objects::module(py)?;
        let app = program.map(|program| program.object(py));
        let log = objects::log(&module)?;
        let object = module.getattr("Server")?.call1((&log, app))?.unbind();
        Ok(Server { object, log: log.unbind() })
    }

    /// From here on it is seen with this generation's configuration and listeners.
    pub fn enter(&self, py: Python<'_>, hooks: &Hooks, listeners: &[Arc<Listener>]) -> PyResult<()> {
        let server = self.object.bind(py);
        let bound = server.getattr(intern!(py, "LISTENERS"))?.len()?;
        if server.getattr(intern!(py, "cfg"))?.is(&hooks.cfg) && bound == listeners.len() {
            return Ok(());
        }
        let module = objects::module(py)?;
        let secure = hooks.cfg.bind(py).getattr(intern!(py, "certfile"))?.is_truthy()?;
        let listeners: PyResult<Vec<_>> =
            listeners.iter().map(|one| objects::listener(&module, one, secure)).collect();
        server.setattr(intern!(py, "cfg"), &hooks.cfg)?;
        server.setattr(intern!(py, "log"), hooks.logger().map_or(&self.log, |logger| logger.object()))?;
        server.setattr(intern!(py, "LISTENERS"), listeners?)
    }

    /// The servers beside this one: the one that it is to replace, and the one that is to replace it; 0 for none.
    pub fn set_kin(&self, py: Python<'_>, old: i32, new: i32) -> PyResult<()> {
        let server = self.object.bind(py);
        server.setattr(intern!(py, "master_pid"), old)?;
        server.setattr(intern!(py, "reexec_pid"), new)
    }

    pub fn set_workers(&self, py: Python<'_>, wanted: usize) -> PyResult<()> {
        self.object.bind(py).setattr(intern!(py, "num_workers"), wanted)
    }

    pub fn call(&self, py: Python<'_>, hooks: &Hooks, hook: Hook) -> PyResult<()> {
        hooks.call(py, hook, (&self.object,))
    }

    /// For `pre_fork` and `child_exit`.
    pub fn call_about(&self, py: Python<'_>, hooks: &Hooks, hook: Hook, worker: &Py<PyAny>) -> PyResult<()> {
        hooks.call(py, hook, (&self.object, worker))
    }

    pub fn workers_changed(
        &self,
        py: Python<'_>,
        hooks: &Hooks,
        new: usize,
        old: Option<usize>,
    ) -> PyResult<()> {
        self.set_workers(py, new)?;
        hooks.call(py, Hook::NworkersChanged, (&self.object, new, old))
    }

    /// The `worker` that hooks are given, not forked yet.
    pub fn new_worker(
        &self,
        py: Python<'_>,
        age: u64,
        slot: &Slot,
        most_requests: u64,
    ) -> PyResult<Py<PyAny>> {
        let (counted, watched) = (slot.clone(), slot.clone());
        let served = PyCFunction::new_closure(py, None, None, move |_, _| -> PyResult<u64> {
            Ok(counted.requests())
        })?;
        let drains = PyCFunction::new_closure(py, None, None, move |_, _| -> PyResult<bool> {
            Ok(watched.phase() == Phase::Draining)
        })?;
        let arguments = (&self.object, age, most_requests, served, drains);
        Ok(objects::module(py)?.getattr("Worker")?.call1(arguments)?.unbind())
    }

    /// The worker has been forked.
    pub fn add(&self, py: Python<'_>, pid: i32, age: u64, worker: &Py<PyAny>) -> PyResult<()> {
        worker.bind(py).setattr(intern!(py, "pid"), pid)?;
        let server = self.object.bind(py);
        server.setattr(intern!(py, "worker_age"), age)?;
        server.getattr(intern!(py, "WORKERS"))?.set_item(pid, worker)
    }

    /// The worker is gone.
    pub fn remove(&self, py: Python<'_>, pid: i32) -> PyResult<Py<PyAny>> {
        let workers = self.object.bind(py).getattr(intern!(py, "WORKERS"))?;
        let worker = workers.get_item(pid)?.unbind();
        workers.del_item(pid)?;
        Ok(worker)
    }
}
