//! Owns: the interpreter's life: its one `fork`, its signals, its paths, the configuration file, the end of a process.
//! Rule: fork only through Python's own `os.fork`, so that at-fork handlers run and the interpreter is whole in the child;
//! called with every signal blocked and no other thread in the process.
//! Never: called by http/ or conn; knows requests.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{mpsc, Arc, OnceLock};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PySystemExit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{
    IntoPyDict, PyBool, PyCFunction, PyDict, PyFloat, PyInt, PyList, PyModule, PyString, PyTuple,
};

use crate::config::sources::Script;
use crate::config::{PasteFile, Raw};
use crate::error::Error;
use crate::log;
use crate::sys::{crash, process, signal};

/// Which side of a fork this is.
pub enum Fork {
    Child,
    Parent(i32),
}

/// The only fork in the program.
pub fn fork(py: Python<'_>) -> PyResult<Fork> {
    let pid: i32 = py.import(intern!(py, "os"))?.call_method0(intern!(py, "fork"))?.extract()?;
    Ok(if pid == 0 { Fork::Child } else { Fork::Parent(pid) })
}

pyo3::create_exception!(
    rgunicorn,
    Interrupted,
    PySystemExit,
    "Raised in the main thread by a signal to the worker."
);

/// What the Python-level handler of a signal does; the kernel-level one writes to a pipe (`sys::signal`) and then lets
/// Python know. Set once before any fork, as whoever calls `signal.signal` later takes the signal away from both.
#[derive(Clone, Default)]
pub struct Interrupts {
    mode: Arc<AtomicU8>,
    /// A worker was told to stop while it booted; code that catches everything may have swallowed the exception.
    stopped: Arc<AtomicBool>,
    overrun: Arc<Overrun>,
    told: Arc<OnceLock<Told>>,
}

/// Is told of each signal in Python's handler of it, in the main thread.
type Told = Box<dyn Fn(Python<'_>, i32) + Send + Sync>;

/// The main thread's request has run too long and is to be broken off.
#[derive(Default)]
struct Overrun {
    /// Until that request ends.
    wanted: AtomicBool,
    /// A signal is on its way for it, which must not hit the next request.
    sent: AtomicBool,
    ever: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Signals are only read from the pipe.
    Quiet,
    /// The application is being imported: every stop signal ends that, wherever it is.
    Booting,
    /// TERM waits for the request to finish; INT, QUIT and ABRT end it.
    Serving,
}

impl Interrupts {
    /// Makes Python call the handler for these signals.
    pub fn install(&self, py: Python<'_>, signals: &[i32]) -> PyResult<()> {
        let Interrupts { mode, stopped, overrun, told } = self.clone();
        let handler =
            PyCFunction::new_closure(py, Some(c"interrupt"), None, move |arguments, _| -> PyResult<()> {
                let number: i32 = arguments.get_item(0)?.extract()?;
                if number == signal::SIGABRT && overrun.came_late() {
                    return Ok(());
                }
                if let Some(tell) = told.get() {
                    tell(arguments.py(), number);
                }
                match exit_code(mode.load(Relaxed), number) {
                    Some(code) => {
                        stopped.store(true, Relaxed);
                        Err(Interrupted::new_err(code))
                    }
                    None => Ok(()),
                }
            })?;
        set_handler(py, signals, handler.as_any())
    }

    /// Whether the main thread's request is to be broken off, should `break_off` come.
    pub fn want(&self, wanted: bool) {
        self.overrun.wanted.store(wanted, Relaxed);
    }

    /// From now on, once and for all, `tell` hears of every signal for this process.
    pub fn tell(&self, tell: impl Fn(Python<'_>, i32) + Send + Sync + 'static) {
        // A second caller there is none: a process becomes a worker once.
        let _ = self.told.set(Box::new(tell));
    }

    /// Breaks off the request that the main thread is running. By another thread, with or without the interpreter.
    pub fn break_off(&self) {
        self.overrun.ever.store(true, Relaxed);
        self.overrun.sent.store(true, Relaxed);
        crash::expect_abort();
        process::send_signal(process::id(), signal::SIGABRT);
    }

    /// Whether an ABRT may be our own, for a request only.
    pub fn has_broken_off(&self) -> bool {
        self.overrun.ever.load(Relaxed)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// Errors: a signal has interrupted this process, whether or not anybody noticed.
    pub fn check(&self, py: Python<'_>) -> PyResult<()> {
        py.check_signals()?;
        match self.stopped.load(Relaxed) {
            true => Err(Interrupted::new_err(0)),
            false => Ok(()),
        }
    }

    /// Runs what must not be left half done; a signal that comes meanwhile is only read from the pipe.
    pub fn shield<R>(&self, body: impl FnOnce() -> R) -> R {
        let before = self.mode.swap(Mode::Quiet as u8, Relaxed);
        let result = body();
        self.mode.store(before, Relaxed);
        result
    }
}

impl Overrun {
    fn came_late(&self) -> bool {
        self.sent.swap(false, Relaxed) && !self.wanted.load(Relaxed)
    }
}

/// Whether an exception is a worker's being told to stop, which is nobody's fault.
pub fn is_stop(py: Python<'_>, e: &PyErr) -> bool {
    let code = || e.value(py).getattr(intern!(py, "code"))?.extract::<i32>();
    e.is_instance_of::<Interrupted>(py) && code().is_ok_and(|code| code == 0)
}

/// With what a process ends that this exception ends; one that is no SystemExit is printed.
pub fn exit_code_of(py: Python<'_>, e: &PyErr) -> i32 {
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

/// With what SystemExit the frame that runs in the main thread is ended, if it is.
fn exit_code(mode: u8, signal: i32) -> Option<i32> {
    let booting = mode == Mode::Booting as u8;
    match signal {
        _ if mode == Mode::Quiet as u8 => None,
        signal::SIGABRT => Some(1),
        signal::SIGINT | signal::SIGQUIT => Some(0),
        signal::SIGTERM if booting => Some(0),
        _ => None,
    }
}

fn set_handler(py: Python<'_>, signals: &[i32], handler: &Bound<'_, PyAny>) -> PyResult<()> {
    let module = py.import(intern!(py, "signal"))?;
    for number in signals {
        module.call_method1(intern!(py, "signal"), (number, handler))?;
    }
    Ok(())
}

/// From now on a process that is forked from this one by Python knows that it is.
pub fn mark_forks(py: Python<'_>) -> PyResult<()> {
    let mark = PyCFunction::new_closure(py, Some(c"mark_forked"), None, |_, _| process::mark_forked())?;
    let options = PyDict::new(py);
    options.set_item("after_in_child", mark)?;
    py.import(intern!(py, "os"))?.call_method("register_at_fork", (), Some(&options))?;
    Ok(())
}

/// Gives signals back to the kernel's default.
pub fn reset_signals(py: Python<'_>, signals: &[i32]) -> PyResult<()> {
    let default = py.import(intern!(py, "signal"))?.getattr(intern!(py, "SIG_DFL"))?;
    set_handler(py, signals, &default)
}

/// On this signal the stacks of all Python threads go to the error log, from C: for an interpreter that is stuck, as
/// frames that run on meanwhile could not be read without harm.
pub fn dump_stacks_on(py: Python<'_>, signal: i32) -> PyResult<()> {
    use std::os::fd::AsRawFd;
    let Some(fd) = log::descriptor() else {
        return Ok(());
    };
    let options = PyDict::new(py);
    options.set_item("file", fd.as_raw_fd())?;
    options.set_item("all_threads", true)?;
    py.import(intern!(py, "faulthandler"))?.call_method("register", (signal,), Some(&options))?;
    Ok(())
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
            ::log::warn!("Cannot set the process title: {e} (--name)");
        }
        _ => {}
    }
}

/// Runs `body` in a new Python thread that the interpreter does not wait for at its end.
pub fn spawn_thread(
    py: Python<'_>,
    name: &str,
    body: impl Fn(Python<'_>) + Send + Sync + 'static,
) -> PyResult<()> {
    let target = PyCFunction::new_closure(py, Some(c"serve"), None, move |arguments, _| {
        if let Err(e) = crash::guard_thread() {
            ::log::warn!("Cannot prepare a thread for a crash: {e}");
        }
        body(arguments.py())
    })?;
    let options = PyDict::new(py);
    options.set_item("target", target)?;
    options.set_item("name", name)?;
    options.set_item("daemon", true)?;
    let thread =
        py.import(intern!(py, "threading"))?.getattr(intern!(py, "Thread"))?.call((), Some(&options))?;
    thread.call_method0(intern!(py, "start"))?;
    Ok(())
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
        ::log::error!("Exception at exit\n{}", traceback(py, &e));
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

/// Whether Python threads run side by side: a free-threaded build whose lock nothing has turned on again.
pub fn is_parallel(py: Python<'_>) -> bool {
    let enabled =
        || py.import(intern!(py, "sys"))?.call_method0(intern!(py, "_is_gil_enabled"))?.extract::<bool>();
    // Before 3.13 there is no such function, and always a lock.
    enabled().is_ok_and(|enabled| !enabled)
}

/// What every Python thread is doing, as far as a thread of ours can have the interpreter within that time: frames that
/// run on meanwhile cannot be read. None when the interpreter is stuck in one of them. The caller must not have it.
pub fn stacks_within(patience: Duration) -> Option<String> {
    let (told, waits) = mpsc::channel();
    let ask = move || {
        let text = Python::attach(|py| stacks(py).unwrap_or_else(|e| traceback(py, &e)));
        // Nobody listens any more when it took too long.
        let _ = told.send(text);
    };
    // A thread of its own, as it may never come back.
    thread::Builder::new().name("stacks".into()).spawn(ask).ok()?;
    waits.recv_timeout(patience).ok()
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

// ---- the configuration file

/// Runs a configuration file, or imports `python:MODULE`, and gives its names.
///
/// Errors: it cannot be read, or it raised; the sentence carries the traceback.
pub fn run_config<'py>(py: Python<'py>, path: &Path) -> Result<Bound<'py, PyDict>, Error> {
    let text = path.to_string_lossy();
    let names = match text.strip_prefix("python:") {
        Some(module) => py.import(module).map(|module| module.dict()),
        None => execute(py, path)?,
    };
    names.map_err(|e| {
        let trace = traceback(py, &e);
        Error::Other(format!("Failed to read config file: {text} (--config)\n{trace}"))
    })
}

/// What is asked of PasteDeploy; the stand-alone binary carries it itself.
pub fn paste(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    module(py, "rgunicorn._paste", include_str!("../python/rgunicorn/_paste.py"))
}

/// Errors: the predicate of a sentence about the file.
fn server_section(py: Python<'_>, file: &PasteFile) -> Result<Vec<(String, Raw)>, Error> {
    let read = || -> PyResult<_> {
        let variables = file.variables.clone().into_py_dict(py)?;
        let found =
            paste(py)?.call_method1("server_settings", (file.path.display().to_string(), variables))?;
        Ok(values(&found.cast_into::<PyDict>()?))
    };
    read().map_err(|e| Error::Other(e.value(py).to_string()))
}

/// Runs configuration files as `run_config` does, for their values; `given` keeps the names of the last one.
pub fn config_reader<'a, 'py>(
    py: Python<'py>,
    given: &'a mut Option<Bound<'py, PyDict>>,
) -> impl FnMut(Script) -> Result<Vec<(String, Raw)>, Error> + use<'a, 'py> {
    move |script| {
        let path = match script {
            Script::File(path) => path,
            Script::Server(file) => return server_section(py, file),
        };
        let names = run_config(py, path)?;
        let values = values(&names);
        *given = Some(names);
        Ok(values)
    }
}

/// What the names stand for, as the configuration takes it.
pub fn values(names: &Bound<'_, PyDict>) -> Vec<(String, Raw)> {
    names.iter().map(|(name, value)| (name.to_string(), raw(&value))).collect()
}

/// As the module `__config__`, afresh each time, so that a reload sees what the file says now. The module's `__file__` is
/// good in whatever folder the server goes to.
fn execute<'py>(py: Python<'py>, path: &Path) -> Result<PyResult<Bound<'py, PyDict>>, Error> {
    let shown = path.display();
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    if path.extension().is_some_and(|end| end == "pyc") {
        return Ok(compiled(py, &full).and_then(|code| run_as_module(py, code, &full)));
    }
    let code = fs::read(path).map_err(|e| Error::system(&format!("config file {shown}"), &e, "--config"))?;
    if code.contains(&0) {
        return Err(Error::Other(format!("config file {shown} contains a NUL byte (--config)")));
    }
    let compiled = py.import("builtins").and_then(|builtins| {
        let source = pyo3::types::PyBytes::new(py, &code);
        builtins.call_method1("compile", (source, &full, "exec"))
    });
    Ok(compiled.and_then(|code| run_as_module(py, code, &full)))
}

fn compiled<'py>(py: Python<'py>, file: &Path) -> PyResult<Bound<'py, PyAny>> {
    let loader = py.import("importlib.machinery")?.getattr("SourcelessFileLoader")?;
    loader.call1(("__config__", file))?.call_method1("get_code", ("__config__",))
}

fn run_as_module<'py>(py: Python<'py>, code: Bound<'py, PyAny>, file: &Path) -> PyResult<Bound<'py, PyDict>> {
    let module = PyModule::new(py, "__config__")?;
    module.setattr("__file__", file.display().to_string())?;
    py.import("sys")?.getattr("modules")?.set_item("__config__", &module)?;
    let names = module.dict();
    let builtins = py.import("builtins")?;
    names.set_item("__builtins__", &builtins)?;
    builtins.call_method1("exec", (code, &names))?;
    Ok(names)
}

/// As the configuration takes it.
pub fn raw(value: &Bound<'_, PyAny>) -> Raw {
    if value.is_none() {
        return Raw::None;
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Raw::Bool(flag.is_true());
    }
    if let (Ok(_), Ok(number)) = (value.cast::<PyInt>(), value.extract::<i64>()) {
        return Raw::Int(number);
    }
    if let Ok(number) = value.cast::<PyFloat>() {
        return Raw::Float(number.value());
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Raw::Text(text.to_string_lossy().into_owned());
    }
    let shown = || value.repr().map_or_else(|_| "?".into(), |text| text.to_string());
    match value.is_callable() {
        true => Raw::Callable(shown()),
        false => raw_container(value).unwrap_or_else(|| Raw::Other(shown())),
    }
}

fn raw_container(value: &Bound<'_, PyAny>) -> Option<Raw> {
    if let Ok(list) = value.cast::<PyList>() {
        return Some(Raw::List(list.iter().map(|item| raw(&item)).collect()));
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return Some(Raw::List(tuple.iter().map(|item| raw(&item)).collect()));
    }
    let map = value.cast::<PyDict>().ok()?;
    Some(Raw::Map(map.iter().map(|(name, value)| (name.to_string(), raw(&value))).collect()))
}

// ---- the embedded interpreter

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
