//! Owns: what a worker, or a mold, does for whoever writes the application: it tells the arbiter of the files it imports
//! (`--reload`), shows why the application cannot be loaded, prints every line that runs (`--spew`).
//! Rule: nothing of it happens, or is imported, without these settings; telling never fails an import and never waits.
//! Never: decides to reload; that is the arbiter's.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyModule};

use crate::sys::poll::Waker;
use crate::watch::journal::Journal;

/// Sees what the process imports.
pub struct Observer(Py<PyAny>);

impl Observer {
    /// From here on each import is noted in the journal, and the arbiter woken.
    pub fn start(py: Python<'_>, journal: Arc<Journal>, arbiter: Arc<Waker>) -> PyResult<Observer> {
        let tell = PyCFunction::new_closure(py, Some(c"tell"), None, move |arguments, _| -> PyResult<()> {
            let path: Vec<u8> = arguments.get_item(0)?.extract()?;
            if let Err(e) = journal.note(Path::new(OsStr::from_bytes(&path))) {
                log::warn!("Cannot have {} watched: {e} (--reload)", String::from_utf8_lossy(&path));
            }
            arbiter.wake();
            Ok(())
        })?;
        Ok(Observer(imports(py)?.call_method1("observe", (tell,))?.unbind()))
    }

    /// Modules that came by a way of their own are noted too.
    pub fn tell_of_all(&self, py: Python<'_>) -> PyResult<()> {
        self.0.bind(py).call_method0("tell_of_all").map(drop)
    }
}

/// The project's own modules are imported anew from now on, in this process.
pub fn forget(py: Python<'_>) -> PyResult<()> {
    imports(py)?.call_method0("forget").map(drop)
}

fn imports(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    module(py, c"rgunicorn.imports", include_str!("../python/rgunicorn/imports.py"))
}

fn debug(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    module(py, c"rgunicorn.debug", include_str!("../python/rgunicorn/debug.py"))
}

/// The stand-alone binary carries its Python itself.
fn module<'py>(py: Python<'py>, name: &CStr, source: &str) -> PyResult<Bound<'py, PyModule>> {
    let shown = name.to_string_lossy();
    let shown: &str = &shown;
    let modules = py.import("sys")?.getattr("modules")?;
    if modules.contains("rgunicorn")? || modules.contains(shown)? {
        return py.import(shown);
    }
    let file = CString::new(format!("{}.py", shown.replace('.', "/")))?;
    PyModule::from_code(py, &CString::new(source)?, &file, name)
}

/// An application that answers with 500 and this text.
pub fn failure<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    debug(py)?.call_method1("failure", (text,))
}

/// Whether it stands in for an application that could not be loaded.
pub fn is_failure(app: &Bound<'_, PyAny>) -> bool {
    let module = app.getattr("__module__").and_then(|name| name.extract::<String>());
    module.is_ok_and(|name| name == "rgunicorn.debug")
}

/// From here on every line that this thread, and those it starts, run is printed.
pub fn spew(py: Python<'_>) -> PyResult<()> {
    debug(py)?.call_method0("spew").map(drop)
}
