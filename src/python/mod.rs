//! Owns: the interpreter's life: its one `fork`, its paths and environment, the collector, the end of a process.
//! Rule: fork only through Python's own `os.fork`, so that at-fork handlers run and the interpreter is whole in the child;
//! called with every signal blocked and no other thread in the process.
//! Never: called by http/ or conn; knows requests.

mod config_file;
mod forks;
mod interrupts;
mod threads;
mod visits;

pub use config_file::{config_reader, paste, raw, run_config, values};
pub use forks::{end_with, mark, returned};
pub use interrupts::{comes_of_stop, is_interrupt, is_stop, reset_signals, Interrupts, Mode};
pub use threads::{
    dump_stacks_on, get_behind_faulthandler, guard_stack, holders_within, join, spawn_thread, stacks_within,
    threads, Holders,
};

pub use visits::{attach, end_visits, have_visits_ended, visit};

use std::ffi::CString;
use std::path::PathBuf;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyModule, PyTuple};

use crate::sys::fork;

/// Which side of a fork this is.
pub enum Fork {
    Child,
    Parent(i32),
}

/// The only fork in the program.
pub fn fork(py: Python<'_>) -> PyResult<Fork> {
    let os = py.import(intern!(py, "os"))?;
    let pid: i32 = fork::ours(|| os.call_method0(intern!(py, "fork")))?.extract()?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(pid) })
}

/// The interpreter's program, where it has one.
pub fn executable(py: Python<'_>) -> Option<PathBuf> {
    let sys = py.import(intern!(py, "sys")).ok()?;
    sys.getattr(intern!(py, "executable")).ok()?.extract().ok()
}

/// One of our modules. The stand-alone binary carries their `source` itself: the package would bring the server with it.
pub fn module<'py>(py: Python<'py>, name: &str, source: &str) -> PyResult<Bound<'py, PyModule>> {
    let modules = py.import("sys")?.getattr("modules")?;
    if modules.contains("rgunicorn")? || modules.contains(name)? {
        return py.import(name);
    }
    let file = format!("{}.py", name.replace('.', "/"));
    PyModule::from_code(py, &CString::new(source)?, &CString::new(file)?, &CString::new(name)?)
}

/// Puts a folder in front of `sys.path`, once.
pub fn add_path(py: Python<'_>, folder: &str) -> PyResult<()> {
    let path = py.import(intern!(py, "sys"))?.getattr(intern!(py, "path"))?.cast_into::<PyList>()?;
    if !path.contains(folder)? {
        path.insert(0, folder)?;
    }
    Ok(())
}

/// Sets a variable in `os.environ`, and so in the process.
pub fn set_env(py: Python<'_>, name: &str, value: &str) -> PyResult<()> {
    py.import(intern!(py, "os"))?.getattr(intern!(py, "environ"))?.set_item(name, value)
}

/// Sets or removes a variable and gives what it was before.
pub fn replace_env(py: Python<'_>, name: &str, value: Option<&str>) -> PyResult<Option<String>> {
    let environ = py.import(intern!(py, "os"))?.getattr(intern!(py, "environ"))?;
    let before = environ.call_method1(intern!(py, "get"), (name,))?.extract()?;
    match value {
        Some(value) => environ.set_item(name, value)?,
        None => environ.call_method1(intern!(py, "pop"), (name, py.None())).map(|_| ())?,
    }
    Ok(before)
}

/// Shows the process as `rgunicorn: ROLE [NAME]` where setproctitle is installed, and as what was started elsewhere.
pub fn set_title(py: Python<'_>, role: &str, name: &str) {
    let title = format!("rgunicorn: {role} [{name}]");
    let set = py
        .import(intern!(py, "setproctitle"))
        .and_then(|module| module.call_method1(intern!(py, "setproctitle"), (title,)));
    match set {
        Err(e) if !e.is_instance_of::<pyo3::exceptions::PyImportError>(py) => {
            log::warn!("Cannot set the process title: {e} (--name)");
        }
        _ => {}
    }
}

/// What Python does at the end of a process, short of taking the interpreter apart: threads it waits for, exit handlers,
/// buffers. The caller leaves with `_exit`.
pub fn wind_down(py: Python<'_>) {
    run_quietly(py, "threading", "_shutdown");
    run_quietly(py, "atexit", "_run_exitfuncs");
    flush(py);
}

fn run_quietly(py: Python<'_>, module: &str, function: &str) {
    if let Err(e) = py.import(module).and_then(|module| module.call_method0(function)) {
        log::error!("Exception at exit\n{}", traceback(py, &e));
    }
}

/// Flushes Python's own buffers of stdout and stderr.
pub fn flush(py: Python<'_>) {
    for name in ["stdout", "stderr"] {
        let flushed = py
            .import("sys")
            .and_then(|sys| sys.getattr(name))
            .and_then(|stream| stream.call_method0("flush"));
        // A closed or absent stream has nothing to lose.
        let _ = flushed;
    }
}

/// The thresholds of the garbage collector.
type Thresholds = (i32, i32, i32);

/// Keeps the collector from running by itself; returns how it was. By its threshold, so that an application that turns
/// it off or sets one of its own is heard.
pub fn pause_collector(py: Python<'_>) -> PyResult<Thresholds> {
    let gc = py.import(intern!(py, "gc"))?;
    let before: Thresholds = gc.call_method0(intern!(py, "get_threshold"))?.extract()?;
    gc.call_method1(intern!(py, "set_threshold"), (0, before.1, before.2))?;
    Ok(before)
}

/// Moves every object out of the collector's sight, so that children share their pages, and lets it run again. Nothing is
/// collected before: the holes that it would leave are filled in each child, a page copied for each (gc.freeze()).
pub fn freeze_heap(py: Python<'_>, before: Thresholds) -> PyResult<()> {
    let gc = py.import(intern!(py, "gc"))?;
    gc.call_method0(intern!(py, "freeze"))?;
    let now: Thresholds = gc.call_method0(intern!(py, "get_threshold"))?.extract()?;
    if now.0 == 0 {
        gc.call_method1(intern!(py, "set_threshold"), (before.0, now.1, now.2))?;
    }
    Ok(())
}

/// Undoes `freeze_heap` for a process that ends: what is in a cycle is finalised only if the collector sees it.
pub fn unfreeze_heap(py: Python<'_>) -> PyResult<()> {
    py.import(intern!(py, "gc"))?.call_method0(intern!(py, "unfreeze")).map(drop)
}

/// Whether Python threads run side by side: a free-threaded build whose lock nothing has turned on again.
pub fn is_parallel(py: Python<'_>) -> bool {
    let enabled =
        || py.import(intern!(py, "sys"))?.call_method0(intern!(py, "_is_gil_enabled"))?.extract::<bool>();
    // Before 3.13 there is no such function, and always a lock.
    enabled().is_ok_and(|enabled| !enabled)
}

/// The traceback as Python prints it, without the final line end.
pub fn traceback(py: Python<'_>, e: &PyErr) -> String {
    let format = || -> PyResult<String> {
        let module = py.import(intern!(py, "traceback"))?;
        let parts = module
            .call_method1(intern!(py, "format_exception"), (e.get_type(py), e.value(py), e.traceback(py)))?;
        let text: String = PyTuple::new(py, parts.try_iter()?.collect::<PyResult<Vec<_>>>()?)?
            .iter()
            .map(|part| part.to_string())
            .collect();
        Ok(text.trim_end().to_string())
    };
    format().unwrap_or_else(|_| e.to_string())
}

/// Makes the packages of a virtual environment importable, and its prefix the interpreter's, as activating it would.
pub fn activate(py: Python<'_>, virtual_env: Option<&str>) -> PyResult<()> {
    let Some(folder) = virtual_env.filter(|folder| !folder.is_empty()) else {
        return Ok(());
    };
    let sys = py.import("sys")?;
    let (major, minor) = (py.version_info().major, py.version_info().minor);
    let path = sys.getattr("path")?.cast_into::<PyList>()?;
    let before = path.len();
    // Free-threaded builds have folders of their own (`python3.14t`).
    let abi = sys.getattr("abiflags")?.to_string();
    let thread = if abi.contains('t') { "t" } else { "" };
    let packages = format!("{folder}/lib/python{major}.{minor}{thread}/site-packages");
    py.import("site")?.call_method1("addsitedir", (packages,))?;
    // What the environment has goes before what the interpreter has.
    let added = path.get_slice(before, path.len());
    path.del_slice(before, path.len())?;
    path.set_slice(0, 0, &added)?;
    sys.setattr("prefix", folder)?;
    sys.setattr("exec_prefix", folder)?;
    sys.setattr("executable", format!("{folder}/bin/python"))
}
