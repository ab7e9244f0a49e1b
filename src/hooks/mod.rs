//! Owns: the operator's functions (gunicorn's server hooks): which there are, with how many arguments, and the calls.
//! Rule: the configuration says that a hook is set, the function itself is here; each generation has its own. What comes
//! of a hook that raises is decided by whoever calls it.
//! Never: decides when; runs anything where no hook is set.

mod objects;
mod server;
mod tls;
mod worker;

pub use self::objects::{address_value, python_value};
pub use self::server::Server;
pub use self::worker::{AccessHook, RequestHooks, WorkerHooks};

use std::sync::{Arc, OnceLock};

use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule};

use crate::config::{Config, HookSpec, Value};
use crate::error::Error;
use crate::logger::{self, Logger};
use crate::python::{self, traceback};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    OnStarting,
    OnReload,
    WhenReady,
    PreFork,
    PostFork,
    PostWorkerInit,
    WorkerInt,
    WorkerAbort,
    PreExec,
    PreRequest,
    PostRequest,
    ChildExit,
    WorkerExit,
    NworkersChanged,
    OnExit,
    SslContext,
}

/// The setting of each, and how many arguments its function may take; the first is what it is called with.
const HOOKS: [(Hook, &str, &[usize]); 16] = [
    (Hook::OnStarting, "on_starting", &[1]),
    (Hook::OnReload, "on_reload", &[1]),
    (Hook::WhenReady, "when_ready", &[1]),
    (Hook::PreFork, "pre_fork", &[2]),
    (Hook::PostFork, "post_fork", &[2]),
    (Hook::PostWorkerInit, "post_worker_init", &[1]),
    (Hook::WorkerInt, "worker_int", &[1]),
    (Hook::WorkerAbort, "worker_abort", &[1]),
    (Hook::PreExec, "pre_exec", &[1]),
    (Hook::PreRequest, "pre_request", &[2]),
    (Hook::PostRequest, "post_request", &[4, 3, 2]),
    (Hook::ChildExit, "child_exit", &[2]),
    (Hook::WorkerExit, "worker_exit", &[2]),
    (Hook::NworkersChanged, "nworkers_changed", &[3]),
    (Hook::OnExit, "on_exit", &[1]),
    (Hook::SslContext, "ssl_context", &[2]),
];

impl Hook {
    pub fn name(self) -> &'static str {
        HOOKS[self as usize].1
    }
}

struct Function {
    hook: Hook,
    callable: Py<PyAny>,
    arguments: usize,
}

/// The hooks of one configuration, and that configuration as they see it.
pub struct Hooks {
    functions: Vec<Function>,
    cfg: Py<PyAny>,
    /// What `log` is, where it is the operator's.
    logger: OnceLock<Arc<Logger>>,
}

impl Hooks {
    /// Finds the functions that the configuration names; `given` are the names of its file, where that is Python.
    ///
    /// Errors: one cannot be imported, or takes other arguments.
    pub fn resolve(
        py: Python<'_>,
        config: &Config,
        given: Option<&Bound<'_, PyDict>>,
    ) -> Result<Hooks, Error> {
        let failed = |e: PyErr| Error::Other(format!("cannot prepare hooks: {e} (--config)"));
        let module = objects::module(py).map_err(failed)?;
        let mut functions = Vec::new();
        for (hook, name, arities) in HOOKS {
            let Some(spec) = spec(config, name) else {
                continue;
            };
            let wrong = |why: String| config.wrong(name, why);
            let callable = find(py, name, spec, given).map_err(wrong)?;
            let arguments = arity(&module, &callable, arities).map_err(wrong)?;
            functions.push(Function { hook, callable: callable.unbind(), arguments });
        }
        let cfg = objects::cfg(&module, config, &functions, given).map_err(failed)?.unbind();
        Ok(Hooks { functions, cfg, logger: OnceLock::new() })
    }

    /// Makes the logger in Python that the configuration asks for, if it does.
    ///
    /// Errors: a sentence that names the setting.
    pub fn new_logger(&self, py: Python<'_>, config: &Config) -> Result<Option<Arc<Logger>>, Error> {
        Logger::new(py, config, &self.cfg)
    }

    /// Once; it is theirs from then on.
    pub fn set_logger(&self, logger: Arc<Logger>) {
        let _ = self.logger.set(logger);
    }

    pub fn logger(&self) -> Option<&Arc<Logger>> {
        self.logger.get()
    }

    fn find(&self, hook: Hook) -> Option<&Function> {
        self.functions.iter().find(|function| function.hook == hook)
    }

    /// Calls the hook, where it is set.
    fn call<'py>(&self, py: Python<'py>, hook: Hook, arguments: impl PyCallArgs<'py>) -> PyResult<()> {
        match self.find(hook) {
            Some(function) => called(py, hook, function.callable.bind(py).call1(arguments)),
            None => Ok(()),
        }
    }
}

// ---- finding the functions

fn spec<'c>(config: &'c Config, name: &str) -> Option<&'c HookSpec> {
    let found = config.settings().find(|(known, _)| *known == name);
    match found {
        Some((_, Value::Hook(spec))) => Some(spec),
        _ => None,
    }
}

fn find<'py>(
    py: Python<'py>,
    name: &str,
    spec: &HookSpec,
    given: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyAny>, String> {
    let found = match spec {
        HookSpec::Given => given.and_then(|names| names.get_item(name).ok().flatten()),
        HookSpec::Import { module, name } => Some(import(py, module, name)?),
    };
    match found {
        Some(found) if found.is_callable() => Ok(found),
        _ => Err("it is not a function".to_string()),
    }
}

fn import<'py>(py: Python<'py>, module: &str, name: &str) -> Result<Bound<'py, PyAny>, String> {
    let imported = py.import(module);
    python::returned(py, imported.as_ref().err(), || format!("the import of {module}"));
    let found = imported.map_err(|e| match e.is_instance_of::<PyImportError>(py) {
        true => format!("cannot import '{module}': {}", e.value(py)),
        false => format!("cannot import '{module}'\n{}", traceback(py, &e)),
    })?;
    found.getattr(name).map_err(|_| format!("there is no '{name}' in '{module}'"))
}

fn arity(
    module: &Bound<'_, PyModule>,
    callable: &Bound<'_, PyAny>,
    arities: &[usize],
) -> Result<usize, String> {
    let counted = module.getattr("arity").and_then(|count| count.call1((callable,))?.extract::<usize>());
    let count = counted.map_err(|e| format!("its arguments cannot be counted: {e}"))?;
    if arities.contains(&count) {
        return Ok(count);
    }
    let accepted: Vec<String> = arities.iter().map(usize::to_string).collect();
    let plural = if arities == [1] { "" } else { "s" };
    Err(format!("it has to take {} argument{plural}, and the function takes {count}", accepted.join(", ")))
}

/// A hook has come back.
fn called(py: Python<'_>, hook: Hook, outcome: PyResult<Bound<'_, PyAny>>) -> PyResult<()> {
    python::returned(py, outcome.as_ref().err(), || format!("the {} hook", hook.name()));
    outcome.map(drop)
}

/// What a hook raises where nothing can be made of it.
pub fn report(py: Python<'_>, hook: Hook, result: PyResult<()>) {
    if let Err(e) = result {
        logger::exception(py, &format!("Exception in {} hook", hook.name()), &e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_hooks_and_every_one_is_a_setting() {
        let config = Config::default();
        for (at, (hook, name, _)) in HOOKS.iter().enumerate() {
            assert_eq!((*hook as usize, hook.name()), (at, *name));
            assert!(config.settings().any(|(known, _)| known == *name));
        }
    }
}
