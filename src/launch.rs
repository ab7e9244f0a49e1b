//! Owns: what was started: the command with its words, or a Python program with an application object of its own.
//! Rule: such an object is asked: for its settings at the start and on every reload, for the application in the process
//! that is to serve it.
//! Never: decides what a setting means, loads the application itself.

use pyo3::exceptions::PySystemExit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::Config;
use crate::error::Error;
use crate::python;

pub enum Launch {
    /// The words after the program's name, read again at every reload.
    Command(Vec<String>),
    Program(Program),
}

/// An object with the methods of `rgunicorn.app.base.BaseApplication`.
pub struct Program(Py<PyAny>);

impl Launch {
    pub fn program(&self) -> Option<&Program> {
        match self {
            Launch::Command(_) => None,
            Launch::Program(program) => Some(program),
        }
    }

    /// Errors: nothing says what to serve.
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        match self {
            Launch::Command(_) if config.app.is_none() => Err(Error::Other(
                "No application module specified (rgunicorn MODULE:APP, wsgi_app or --paste)".into(),
            )),
            _ => Ok(()),
        }
    }
}

impl Program {
    pub fn new(object: Py<PyAny>) -> Program {
        Program(object)
    }

    pub fn object<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.0.bind(py)
    }

    /// What it has set, by name, with the warnings about what could not be.
    ///
    /// Errors: it has no usable `cfg`.
    pub fn settings<'py>(&self, py: Python<'py>) -> Result<(Bound<'py, PyDict>, Vec<String>), Error> {
        let read = || -> PyResult<_> {
            let cfg = self.object(py).getattr(intern!(py, "cfg"))?;
            let given = cfg.call_method0(intern!(py, "_given"))?.cast_into::<PyDict>()?;
            Ok((given, cfg.getattr(intern!(py, "_warnings"))?.extract()?))
        };
        let read = read();
        python::returned(py, read.as_ref().err(), || "cfg of the application".into());
        read.map_err(|e| refusal(py, "cfg", &e))
    }

    /// Has it read its configuration again.
    ///
    /// Errors: whatever it raised, with the text of a SystemExit.
    pub fn reload(&self, py: Python<'_>) -> Result<(), Error> {
        let told = self.object(py).call_method0(intern!(py, "reload"));
        python::returned(py, told.as_ref().err(), || "reload() of the application".into());
        told.map(|_| ()).map_err(|e| refusal(py, "reload()", &e))
    }

    /// The application, which is loaded by this; not in the arbiter.
    pub fn application<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.object(py).call_method0(intern!(py, "wsgi"))
    }
}

fn refusal(py: Python<'_>, what: &str, e: &PyErr) -> Error {
    if !e.is_instance_of::<PySystemExit>(py) {
        return Error::Other(format!("{what} of the application raised\n{}", python::traceback(py, e)));
    }
    let code = e.value(py).getattr(intern!(py, "code"));
    match code.and_then(|code| code.extract::<String>()) {
        Ok(text) => Error::Other(text.trim_start_matches("rgunicorn: ").to_string()),
        Err(_) => Error::Other(format!("{what} of the application raised SystemExit")),
    }
}
