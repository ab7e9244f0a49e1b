//! Owns: Python's threads: making one, naming them all, what each of them is doing.
//! Rule: frames are read with the interpreter held; one that is stuck is asked by a signal, and answers from C.
//! Never: waits for the interpreter without a limit in a thread that has to go on.

use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};

use super::visits::visit;
use super::{is_interrupt, traceback};
use crate::sys::crash;

/// Runs `body` in a new Python thread that the interpreter does not wait for at its end.
pub fn spawn_thread(
    py: Python<'_>,
    name: &str,
    body: impl Fn(Python<'_>) + Send + Sync + 'static,
) -> PyResult<Py<PyAny>> {
    let target = PyCFunction::new_closure(py, Some(c"serve"), None, move |arguments, _| {
        guard_stack();
        body(arguments.py())
    })?;
    let options = PyDict::new(py);
    options.set_item("target", target)?;
    options.set_item("name", name)?;
    options.set_item("daemon", true)?;
    let thread =
        py.import(intern!(py, "threading"))?.getattr(intern!(py, "Thread"))?.call((), Some(&options))?;
    thread.call_method0(intern!(py, "start"))?;
    Ok(thread.unbind())
}

/// Waits for threads that are about to end, each for no longer than `patience`. A signal that came in the meantime raises in this,
/// and means nothing any more. False when one of them goes on, or that cannot be told.
pub fn join(py: Python<'_>, threads: &[Py<PyAny>], patience: Duration) -> bool {
    for thread in threads {
        let wait = || thread.call_method1(py, intern!(py, "join"), (patience.as_secs_f64(),));
        while wait().is_err_and(|e| is_interrupt(py, &e)) {}
    }
    let is_alive = |thread: &Py<PyAny>| thread.call_method0(py, intern!(py, "is_alive"))?.is_truthy(py);
    threads.iter().all(|thread| matches!(is_alive(thread), Ok(false)))
}

/// For a thread of the worker that may run out of stack.
pub fn guard_stack() {
    if let Err(e) = crash::guard_thread() {
        log::warn!("Cannot prepare a thread for a crash: {e}");
    }
}

/// Ends by abort(3) are ours also where the environment has enabled faulthandler: a fatal error of Python's takes its handlers
/// away first and puts back what they found, whoever was installed since. Before anybody else enables it, as it is enabled
/// anew.
pub fn get_behind_faulthandler(py: Python<'_>) -> PyResult<()> {
    let faulthandler = py.import(intern!(py, "faulthandler"))?;
    let speaks = !py.import(intern!(py, "sys"))?.getattr(intern!(py, "stderr"))?.is_none();
    if speaks && faulthandler.call_method0(intern!(py, "is_enabled"))?.is_truthy()? {
        faulthandler.call_method0(intern!(py, "disable"))?;
        crash::install_abort()?;
        faulthandler.call_method0(intern!(py, "enable"))?;
    }
    Ok(())
}

/// On this signal the stacks of all Python threads go to the error log, from C: for an interpreter that is stuck, as
/// frames that run on meanwhile could not be read without harm.
pub fn dump_stacks_on(py: Python<'_>, signal: i32) -> PyResult<()> {
    let Some(fd) = crate::log::descriptor() else {
        return Ok(());
    };
    let options = PyDict::new(py);
    options.set_item("file", fd.as_raw_fd())?;
    options.set_item("all_threads", true)?;
    py.import(intern!(py, "faulthandler"))?.call_method("register", (signal,), Some(&options))?;
    Ok(())
}

/// What every Python thread is doing, as far as a thread of ours can have the interpreter within that time: frames that
/// run on meanwhile cannot be read. None when the interpreter is stuck in one of them. The caller must not have it.
pub fn stacks_within(patience: Duration) -> Option<String> {
    ask_within(patience, visit, |py| stacks(py).unwrap_or_else(|e| traceback(py, &e)))
}

/// Who keeps the interpreter from ending.
pub struct Holders {
    /// By name: those for which Python waits.
    pub threads: Vec<String>,
    pub stacks: String,
}

/// As `stacks_within`, in a process whose end does not come.
pub fn holders_within(patience: Duration) -> Option<Holders> {
    ask_within(patience, Python::try_attach, |py| Holders {
        threads: awaited(py).unwrap_or_default(),
        stacks: stacks(py).unwrap_or_else(|e| traceback(py, &e)),
    })
}

fn ask_within<R: Send + 'static, Q: FnOnce(Python<'_>) -> R + Send + 'static>(
    patience: Duration,
    ask: impl FnOnce(Q) -> Option<R> + Send + 'static,
    question: Q,
) -> Option<R> {
    let (told, waits) = mpsc::channel();
    let thread = move || {
        if let Some(answer) = ask(question) {
            // Nobody listens any more when it took too long.
            let _ = told.send(answer);
        }
    };
    // A thread of its own, as it may never come back.
    thread::Builder::new().name("stacks".into()).spawn(thread).ok()?;
    waits.recv_timeout(patience).ok()
}

fn awaited(py: Python<'_>) -> PyResult<Vec<String>> {
    let threading = py.import(intern!(py, "threading"))?;
    let main = threading.call_method0(intern!(py, "main_thread"))?;
    let mut found = Vec::new();
    for thread in threading.call_method0(intern!(py, "enumerate"))?.try_iter()? {
        let thread = thread?;
        if !thread.is(&main) && !thread.getattr(intern!(py, "daemon"))?.is_truthy()? {
            found.push(format!(
                "'{}'",
                thread.getattr(intern!(py, "name"))?.extract::<String>()?.escape_debug()
            ));
        }
    }
    Ok(found)
}

fn stacks(py: Python<'_>) -> PyResult<String> {
    let frames = py.import(intern!(py, "sys"))?.call_method0(intern!(py, "_current_frames"))?;
    let format = py.import(intern!(py, "traceback"))?.getattr(intern!(py, "format_stack"))?;
    let mut text = String::new();
    for thread in py.import(intern!(py, "threading"))?.call_method0(intern!(py, "enumerate"))?.try_iter()? {
        let thread = thread?;
        let Ok(frame) = frames.get_item(thread.getattr(intern!(py, "ident"))?) else {
            continue;
        };
        let name: String = thread.getattr(intern!(py, "name"))?.extract()?;
        let lines: Vec<String> = format.call1((frame,))?.extract()?;
        text.push_str(&format!("Thread {name} (most recent call last):\n{}", lines.concat()));
    }
    Ok(text.trim_end().to_string())
}

/// The threads that Python knows of: the kernel's number, and the name.
pub fn threads(py: Python<'_>) -> PyResult<Vec<(i32, String)>> {
    let list = py.import(intern!(py, "threading"))?.call_method0(intern!(py, "enumerate"))?;
    let mut found = Vec::new();
    for thread in list.try_iter()? {
        let thread = thread?;
        // One that is only about to start has no number.
        if let Some(id) = thread.getattr(intern!(py, "native_id"))?.extract()? {
            found.push((id, thread.getattr(intern!(py, "name"))?.extract()?));
        }
    }
    Ok(found)
}
