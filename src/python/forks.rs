//! Owns: the way back into the server from Python code of others: an application, a hook, a logger, a configuration file.
//! Rule: such code may fork, and both processes come back. Only the server's own goes on; the other one ends there as a plain
//! Python program does at its last line, or at its exception: exit handlers, buffers, exit code.
//! Never: forks.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use log::Level;
use pyo3::exceptions::PySystemExit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};

use crate::sys::{fork, process};

/// Is to be called wherever code of others returns to the server, with what it raised; `place` says whose code it is.
/// Does not return in a process that this code has forked.
pub fn returned<'e>(py: Python<'_>, raised: impl Into<Option<&'e PyErr>>, place: impl FnOnce() -> String) {
    if fork::is_foreign() {
        end_foreign(py, raised.into(), place);
    }
}

/// A line of the log may be written in Python, by a logger that returns here too.
static ENDS: AtomicBool = AtomicBool::new(false);

#[cold]
fn end_foreign(py: Python<'_>, raised: Option<&PyErr>, place: impl FnOnce() -> String) {
    if ENDS.swap(true, Relaxed) {
        return;
    }
    let is_exit = raised.is_some_and(|e| e.is_instance_of::<PySystemExit>(py));
    let level = if is_exit { Level::Info } else { Level::Warn };
    let how = if raised.is_some() { "has left by an exception:" } else { "has returned from" };
    let place = place();
    let line =
        format!("A process that the application forked {how} {place}; it is none of the server's and ends");
    match crate::log::descriptor() {
        Some(_) => log::log!(level, "{line}"),
        None => eprintln!("rgunicorn: {line}"),
    }
    if !IS_KNOWN.load(Relaxed) {
        let code = raised.map_or(0, |e| exit_code_of(py, e));
        super::flush(py);
        process::exit_now(code);
    }
    end(py, raised)
}

/// Whether Python knows that this process is forked. One that C code has forked has an interpreter that waits for threads which
/// are not there.
static IS_KNOWN: AtomicBool = AtomicBool::new(false);

/// This process is one of the server's, and those that others fork from it are not.
///
/// Errors: a process that is forked would not know.
pub fn mark(py: Python<'_>) -> PyResult<()> {
    fork::mark()?;
    let known = PyCFunction::new_closure(py, Some(c"known"), None, |_, _| {
        if fork::is_foreign() {
            IS_KNOWN.store(true, Relaxed);
        }
    })?;
    register(py, known.as_any())
}

/// Has Python call it in every process that it forks, the server's too.
pub(super) fn register(py: Python<'_>, in_child: &Bound<'_, PyAny>) -> PyResult<()> {
    let options = PyDict::new(py);
    options.set_item("after_in_child", in_child)?;
    py.import(intern!(py, "os"))?.call_method("register_at_fork", (), Some(&options)).map(drop)
}

/// With what a process ends that this exception ends; one that is no SystemExit is printed.
fn exit_code_of(py: Python<'_>, e: &PyErr) -> i32 {
    if !e.is_instance_of::<PySystemExit>(py) {
        e.print(py);
        return 1;
    }
    match e.value(py).getattr(intern!(py, "code")) {
        Ok(code) if code.is_none() => 0,
        Ok(code) => code.extract().unwrap_or(1),
        Err(_) => 1,
    }
}

/// Ends the process as Python ends it: with the code of a SystemExit, with 1 and a traceback for any other exception.
fn end(py: Python<'_>, raised: Option<&PyErr>) -> ! {
    if let Some(e) = raised {
        // Python leaves here for a SystemExit.
        e.print(py);
    }
    end_with(py, i32::from(raised.is_some()))
}

/// The same for an exit code.
pub fn end_with(py: Python<'_>, code: i32) -> ! {
    PySystemExit::new_err(code).print(py);
    // With PYTHONINSPECT it comes back.
    super::flush(py);
    process::exit_now(code)
}
