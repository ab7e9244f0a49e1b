//! Owns: a worker's hooks with what they are given: its birth and end, its signals, its requests.
//! Rule: what is about requests is decided once a worker; without such a hook there is nothing to ask for each request.
//! Never: makes requests and responses; that is `wsgi::request`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::{called, objects, report, Hook, Hooks, Server};
use crate::config::Config;
use crate::logger::Logger;
use crate::python;
use crate::scoreboard::Slot;
use crate::sys::{process, signal};

/// A worker's hooks, with what they are given.
pub struct WorkerHooks {
    hooks: Arc<Hooks>,
    server: Py<PyAny>,
    worker: Py<PyAny>,
    slot: Slot,
    interrupted: AtomicBool,
}

impl WorkerHooks {
    pub fn new(
        py: Python<'_>,
        hooks: Arc<Hooks>,
        server: &Server,
        worker: Py<PyAny>,
        slot: Slot,
    ) -> PyResult<WorkerHooks> {
        worker.bind(py).setattr(intern!(py, "pid"), process::id())?;
        let server = server.object.clone_ref(py);
        Ok(WorkerHooks { hooks, server, worker, slot, interrupted: AtomicBool::new(false) })
    }

    pub fn post_fork(&self, py: Python<'_>) -> PyResult<()> {
        self.hooks.call(py, Hook::PostFork, (&self.server, &self.worker))
    }

    pub fn post_worker_init(&self, py: Python<'_>, app: &Bound<'_, PyAny>) -> PyResult<()> {
        let worker = self.worker.bind(py);
        worker.call_method1(intern!(py, "_loaded"), (app,))?;
        self.hooks.call(py, Hook::PostWorkerInit, (worker,))?;
        worker.setattr(intern!(py, "booted"), true)
    }

    pub fn hears_of_abort(&self) -> bool {
        self.hooks.find(Hook::WorkerAbort).is_some()
    }

    /// In Python's handler of a signal, in the main thread; `worker_abort` elsewhere too, for a request that another thread runs.
    pub fn signalled(&self, py: Python<'_>, number: i32) {
        let hook = match number {
            signal::SIGABRT => Hook::WorkerAbort,
            signal::SIGINT | signal::SIGQUIT if self.is_first() => Hook::WorkerInt,
            // As in gunicorn, where a reload on change is the worker's own doing.
            signal::SIGTERM if self.slot.is_outdated() && self.is_first() => Hook::WorkerInt,
            _ => return,
        };
        let worker = self.worker.bind(py);
        let mark = if hook == Hook::WorkerAbort { intern!(py, "aborted") } else { intern!(py, "_gone") };
        report(py, hook, worker.setattr(mark, true));
        report(py, hook, self.hooks.call(py, hook, (worker,)));
    }

    fn is_first(&self) -> bool {
        !self.interrupted.swap(true, Relaxed)
    }

    pub fn worker_exit(&self, py: Python<'_>) {
        let worker = self.worker.bind(py);
        report(py, Hook::WorkerExit, worker.setattr(intern!(py, "_gone"), true));
        report(py, Hook::WorkerExit, self.hooks.call(py, Hook::WorkerExit, (&self.server, worker)));
    }

    /// Where the application has given gunicorn's loggers handlers or filters, the worker's lines pass there from now on.
    pub fn adopt_logger(&self, py: Python<'_>, config: &Config) {
        if self.hooks.logger().is_some() {
            return;
        }
        match self.hooks.new_logger(py, config) {
            Ok(Some(logger)) => {
                logger.take_lines();
                self.hooks.set_logger(logger);
            }
            Ok(None) => {}
            Err(e) => log::error!("The handlers and filters of gunicorn's loggers are not used: {e}"),
        }
    }

    pub fn logger(&self) -> Option<&Arc<Logger>> {
        self.hooks.logger()
    }

    /// None where Rust writes the access log, or nobody does.
    pub fn of_access(&self, py: Python<'_>) -> PyResult<Option<Arc<AccessHook>>> {
        let Some(logger) = self.hooks.logger() else {
            return Ok(None);
        };
        if !logger.wants_access(py)? {
            return Ok(None);
        }
        let module = objects::module(py)?;
        Ok(Some(Arc::new(AccessHook {
            access: logger.object().getattr(py, intern!(py, "access"))?,
            delta: py.import("datetime")?.getattr("timedelta")?.unbind(),
            request: module.getattr("Request")?.unbind(),
            response: module.getattr("Response")?.unbind(),
        })))
    }

    /// None where no hook is about requests.
    pub fn of_requests(&self, py: Python<'_>) -> PyResult<Option<Arc<RequestHooks>>> {
        let [before, after] = [Hook::PreRequest, Hook::PostRequest].map(|hook| self.hooks.find(hook));
        if before.is_none() && after.is_none() {
            return Ok(None);
        }
        let module = objects::module(py)?;
        Ok(Some(Arc::new(RequestHooks {
            worker: self.worker.clone_ref(py),
            before: before.map(|function| function.callable.clone_ref(py)),
            after: after.map(|function| (function.callable.clone_ref(py), function.arguments)),
            request: module.getattr("Request")?.unbind(),
            response: module.getattr("Response")?.unbind(),
        })))
    }
}

/// The `access` of a logger in Python.
pub struct AccessHook {
    access: Py<PyAny>,
    delta: Py<PyAny>,
    /// The classes of `req` and `resp`.
    pub request: Py<PyAny>,
    pub response: Py<PyAny>,
}

impl AccessHook {
    pub fn access<'py>(
        &self,
        response: &Bound<'py, PyAny>,
        request: &Bound<'py, PyAny>,
        environ: &Bound<'py, PyDict>,
        elapsed: Duration,
    ) -> PyResult<()> {
        let py = request.py();
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let time = self.delta.bind(py).call1((0, 0, micros))?;
        let told = self.access.bind(py).call1((response, request, environ, time));
        python::returned(py, told.as_ref().err(), || "access() of the logger".into());
        told.map(drop)
    }
}

/// `pre_request` and `post_request`, at least one of them.
pub struct RequestHooks {
    worker: Py<PyAny>,
    before: Option<Py<PyAny>>,
    /// With how many of its arguments it is called.
    after: Option<(Py<PyAny>, usize)>,
    /// The classes of `req` and `resp`.
    pub request: Py<PyAny>,
    pub response: Py<PyAny>,
}

impl RequestHooks {
    pub fn pre_request(&self, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = request.py();
        match &self.before {
            Some(hook) => called(py, Hook::PreRequest, hook.bind(py).call1((&self.worker, request))),
            None => Ok(()),
        }
    }

    pub fn post_request<'py>(
        &self,
        request: &Bound<'py, PyAny>,
        environ: &Bound<'py, PyDict>,
        response: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = request.py();
        let Some((hook, count)) = &self.after else {
            return Ok(());
        };
        let all = [self.worker.bind(py), request, environ.as_any(), response];
        called(py, Hook::PostRequest, hook.bind(py).call1(PyTuple::new(py, &all[..*count])?))
    }
}
