//! Owns: a logger in Python (`logconfig`, `logconfig_dict`, `logconfig_json`, `logger_class`): the object, and how lines of
//! Rust's get to it.
//! Rule: a process with one thread calls it at once (`Direct`: the arbiter, a mold, a worker that boots). A worker that
//! serves has threads without the interpreter, and threads that hold it or a lock of ours: each line goes into a queue
//! (`Queued`), which a Python thread empties that waits for nothing else. A second thread, which never takes the
//! interpreter, watches the queue: what has waited too long (an extension keeps the interpreter to itself, a handler
//! hangs) goes to the error log's file instead. So a line may be late or lost, and is counted then; nobody hangs for it.
//! Neither thread exists before the fork; a process that the application forks has no such thread and uses the file.
//! Never: imported into a process whose logs Rust writes; decides what is logged.

mod queue;

use std::any::Any;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyModule, PyType};

use self::queue::{Entry, Queue};
use crate::access_sink::{Answered, Witness};
use crate::config::Config;
use crate::error::Error;
use crate::log::{self, Outlet, Routes, Severity};
use crate::python::{self, traceback};
use crate::sys::process;
use crate::transport::Peer;

/// How long a line waits for the interpreter.
const PATIENCE: Duration = Duration::from_secs(1);

/// The classes; the stand-alone binary carries them itself.
fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    python::module(py, "rgunicorn.hooks", include_str!("../../python/rgunicorn/hooks.py"))?;
    files(py)?;
    let module =
        python::module(py, "rgunicorn.glogging", include_str!("../../python/rgunicorn/glogging.py"))?;
    let statsd = include_str!("../../python/rgunicorn/instrument/statsd.py");
    python::module(py, "rgunicorn.instrument.statsd", statsd)?;
    Ok(module)
}

/// The files of Python's logging.
fn files(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    python::module(py, "rgunicorn._files", include_str!("../../python/rgunicorn/_files.py"))
}

/// gunicorn's loggers while Rust writes the logs.
fn watch(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    python::module(py, "rgunicorn._watch", include_str!("../../python/rgunicorn/_watch.py"))
}

/// The logger of one configuration.
pub struct Logger {
    object: Py<PyAny>,
    /// With what it was made.
    cfg: Py<PyAny>,
    level: ::log::LevelFilter,
}

impl Logger {
    /// Makes the one that the configuration asks for, or whoever gave gunicorn's loggers handlers or filters, through which
    /// the server's lines are to pass; None where Rust writes the logs.
    ///
    /// Errors: a sentence that names the setting.
    pub fn new(py: Python<'_>, config: &Config, cfg: &Py<PyAny>) -> Result<Option<Arc<Logger>>, Error> {
        let touched = || watch(py)?.getattr("touched")?.call0()?.is_truthy();
        let (class_name, option) = match &config.logging.python {
            Some(wanted) => (wanted.class.as_str(), wanted.option),
            None if touched().unwrap_or(false) => ("gunicorn.glogging.Logger", "logger_class"),
            None => return Ok(None),
        };
        let wrong = |e: PyErr| match e.is_instance_of::<PyRuntimeError>(py) {
            true => config.wrong(option, e.value(py).to_string()),
            false => {
                let kind = e.get_type(py).name().map_or_else(|_| "exception".into(), |name| name.to_string());
                config.wrong(
                    "logger_class",
                    format!("'{}' cannot be used: {kind}: {}", class_name, e.value(py)),
                )
            }
        };
        let make = || -> PyResult<Logger> {
            let module = module(py)?;
            let class = class(&module, config, cfg.bind(py))?;
            let object = class.call1((cfg,))?;
            let level: i32 = module.getattr("least_level")?.call1((&object,))?.extract()?;
            watch(py)?.call_method0("know")?;
            Ok(Logger { object: object.unbind(), cfg: cfg.clone_ref(py), level: filter(level) })
        };
        let made = make();
        back(py, &made);
        made.map(|logger| Some(Arc::new(logger))).map_err(wrong)
    }

    pub fn object(&self) -> &Py<PyAny> {
        &self.object
    }

    /// Configures Python's logging as it was for this logger, after another one has been at it.
    pub fn restore(&self, py: Python<'_>) {
        let restored = self.object.bind(py).call_method1(intern!(py, "setup"), (&self.cfg,));
        back(py, &restored);
        if let Err(e) = restored {
            ::log::error!("Cannot restore the configuration of logging\n{}", traceback(py, &e));
        }
    }

    /// In a process with one thread.
    pub fn take_lines(self: &Arc<Self>) {
        let outlet = Arc::new(Direct(self.clone()));
        log::route(Routes { outlet: Some(outlet), syslog: None, statsd: None }, self.level);
    }

    /// In a worker that is about to serve. The requests that the server answers itself are for whom this returns.
    ///
    /// Errors: a thread cannot be started.
    pub fn take_lines_queued(self: &Arc<Self>, py: Python<'_>) -> PyResult<Arc<dyn Witness>> {
        let queued = Arc::new(Queued { logger: self.clone(), queue: Queue::default(), pid: process::id() });
        let drained = queued.clone();
        python::spawn_thread(py, "rgunicorn-log", move |py| {
            while py.detach(|| drained.queue.wait_or_end()) {
                drained.drain(py);
            }
        })?;
        let watched = queued.clone();
        thread::Builder::new().name("log-watch".into()).spawn(move || watched.watch())?;
        log::route(Routes { outlet: Some(queued.clone()), syslog: None, statsd: None }, self.level);
        Ok(queued)
    }

    /// What an application gets as `wsgi.errors`.
    pub fn error_stream(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(module(py)?.getattr("ErrorStream")?.call1((&self.object,))?.unbind())
    }

    /// Whether it is to hear of requests.
    pub fn wants_access(&self, py: Python<'_>) -> PyResult<bool> {
        module(py)?.getattr("wants_access")?.call1((&self.object,))?.extract()
    }

    /// A line that is there for its metric: name, value and gunicorn's word for what it is. By the arbiter.
    pub fn metric(&self, py: Python<'_>, text: &str, (name, value, kind): (&str, u64, &str)) {
        let told = || {
            let extra = PyDict::new(py);
            extra.set_item("metric", name)?;
            extra.set_item("value", value)?;
            extra.set_item("mtype", kind)?;
            let options = PyDict::new(py);
            options.set_item("extra", extra)?;
            self.object.bind(py).call_method("debug", (text,), Some(&options))
        };
        let told = told();
        back(py, &told);
        if let Err(e) = told {
            complain(py, &e);
        }
    }

    fn line(&self, py: Python<'_>, severity: Severity, text: &str) {
        let name = match severity {
            Severity::Critical => intern!(py, "critical"),
            Severity::Error => intern!(py, "error"),
            Severity::Warning => intern!(py, "warning"),
            Severity::Info => intern!(py, "info"),
            Severity::Debug => intern!(py, "debug"),
        };
        let told = self.object.bind(py).call_method1(name, (text,));
        back(py, &told);
        if let Err(e) = told {
            log::to_file(severity, text);
            complain(py, &e);
        }
    }

    fn request(&self, py: Python<'_>, request: &Answered) {
        let Answered { peer, method, target, status, sent, elapsed } = request;
        let peer = match peer {
            Peer::Tcp(address) => (peer.to_string(), address.port().to_string()),
            Peer::Unix | Peer::Other => (String::new(), String::new()),
        };
        let text = |octets: &[u8]| octets.iter().map(|octet| char::from(*octet)).collect::<String>();
        let seconds = elapsed.as_secs_f64();
        let arguments = (&self.object, peer, text(method), text(target), *status, *sent, seconds);
        let told = module(py).and_then(|module| module.getattr("answered")?.call1(arguments).map(|_| ()));
        back(py, &told);
        if let Err(e) = told {
            complain(py, &e);
        }
    }

    fn exception(&self, py: Python<'_>, message: &str, e: &PyErr) {
        let options = PyDict::new(py);
        let told = options
            .set_item("exc_info", (e.get_type(py), e.value(py), e.traceback(py)))
            .and_then(|()| self.object.bind(py).call_method("exception", (message,), Some(&options)));
        back(py, &told);
        if let Err(failure) = told {
            log::to_file(Severity::Error, &format!("{message}\n{}", traceback(py, e)));
            complain(py, &failure);
        }
    }
}

/// The logger has come back.
fn back<T>(py: Python<'_>, outcome: &PyResult<T>) {
    python::returned(py, outcome.as_ref().err(), || "the logger".into());
}

fn class<'py>(
    module: &Bound<'py, PyModule>,
    config: &Config,
    cfg: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let class = cfg.getattr("logger_class")?;
    if class.is_instance_of::<PyType>() {
        return Ok(class);
    }
    module.getattr("find_class")?.call1((class, config.logging.statsd.is_some()))
}

/// The levels of Python's `logging`.
fn filter(level: i32) -> ::log::LevelFilter {
    match level {
        ..=10 => ::log::LevelFilter::Debug,
        11..=20 => ::log::LevelFilter::Info,
        21..=30 => ::log::LevelFilter::Warn,
        31..=40 => ::log::LevelFilter::Error,
        _ => ::log::LevelFilter::Off,
    }
}

/// Where Rust writes the logs, `gunicorn.error` leads there: programs give its handlers to loggers of their own.
pub fn bridge(py: Python<'_>, config: &Config) {
    let level = match config.loglevel {
        ::log::LevelFilter::Trace | ::log::LevelFilter::Debug => 10,
        ::log::LevelFilter::Info => 20,
        ::log::LevelFilter::Warn => 30,
        ::log::LevelFilter::Error => 40,
        ::log::LevelFilter::Off => 50,
    };
    let write = PyCFunction::new_closure(py, Some(c"write"), None, |arguments, _| -> PyResult<()> {
        let (level, text): (i32, String) = arguments.extract()?;
        log::of_application(severity(level), &text);
        Ok(())
    });
    // The files are a matter of every worker's: with them loaded here, it need not read the module.
    let led = files(py).and(write).and_then(|write| watch(py)?.call_method1("bridge", (write, level)));
    if let Err(e) = led {
        ::log::warn!("The logger gunicorn.error leads nowhere\n{}", traceback(py, &e));
    }
}

/// The levels of Python's `logging`.
fn severity(level: i32) -> Severity {
    match level {
        50.. => Severity::Critical,
        40.. => Severity::Error,
        30.. => Severity::Warning,
        20.. => Severity::Info,
        _ => Severity::Debug,
    }
}

/// A logger that raises is no place to tell of it.
fn complain(py: Python<'_>, e: &PyErr) {
    log::to_file(Severity::Error, &format!("Exception in the logger (--logger-class)\n{}", traceback(py, e)));
}

/// An exception, with the words that introduce it: a logger in Python gets the exception itself.
pub fn exception(py: Python<'_>, message: &str, e: &PyErr) {
    let outlet = log::routes().outlet;
    let outlet = outlet.as_deref().map(Outlet::as_any);
    if let Some(direct) = outlet.and_then(|outlet| outlet.downcast_ref::<Direct>()) {
        return direct.0.exception(py, message, e);
    }
    if let Some(queued) = outlet.and_then(|outlet| outlet.downcast_ref::<Queued>()).filter(|q| q.is_here()) {
        queued.drain(py);
        return queued.logger.exception(py, message, e);
    }
    log::exception(format_args!("{message}\n{}", traceback(py, e)));
}

/// What waits for a logger in Python is written, and what comes after goes to the file: the process ends. False when a thread
/// of ours is still in that logger.
pub fn wind_down(py: Python<'_>) -> bool {
    let Some(outlet) = log::routes().outlet else {
        return true;
    };
    log::route(Routes::default(), ::log::max_level());
    let Some(queued) = outlet.as_any().downcast_ref::<Queued>() else {
        return true;
    };
    queued.drain(py);
    py.detach(|| queued.queue.close(PATIENCE))
}

/// Goes on in the files that now have the names of those that Python's logging writes to, the application's too.
/// `level` says how much a failure matters.
pub fn reopen_files(py: Python<'_>, logger: Option<&Logger>, level: ::log::Level) {
    let reopened = || -> PyResult<()> {
        match logger {
            Some(logger) => logger.object.bind(py).call_method0("reopen_files")?,
            None => files(py)?.call_method0("reopen")?,
        };
        Ok(())
    };
    let reopened = reopened();
    back(py, &reopened);
    if let Err(e) = reopened {
        ::log::log!(level, "Cannot reopen the log files of Python's logging: {}", e.value(py));
    }
}

struct Direct(Arc<Logger>);

impl Outlet for Direct {
    fn take(&self, severity: Severity, text: String) {
        Python::attach(|py| self.0.line(py, severity, &text));
    }

    fn give_up(&self) {}

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Queued {
    logger: Arc<Logger>,
    queue: Queue,
    pid: i32,
}

impl Queued {
    /// A process that the application forked has no thread that empties the queue.
    fn is_here(&self) -> bool {
        process::id() == self.pid
    }

    fn drain(&self, py: Python<'_>) {
        while let Some(entry) = self.queue.take() {
            match entry {
                Entry::Line(severity, text) => self.logger.line(py, severity, &text),
                Entry::Request(request) => self.logger.request(py, &request),
            }
        }
        match self.queue.take_lost() {
            0 => {}
            lost => self.logger.line(py, Severity::Warning, &lost_lines(lost)),
        }
    }

    fn watch(&self) {
        loop {
            let age = self.queue.wait_for_age();
            match PATIENCE.checked_sub(age) {
                Some(left) if !left.is_zero() => thread::sleep(left),
                _ => self.rescue(PATIENCE),
            }
        }
    }

    /// Writes what has waited too long to the file.
    fn rescue(&self, patience: Duration) {
        let mut lost = self.queue.take_lost();
        for entry in self.queue.take_older(patience.as_nanos() as u64) {
            match entry {
                Entry::Line(severity, text) => log::to_file(severity, &text),
                Entry::Request(_) => lost += 1,
            }
        }
        if lost > 0 {
            log::to_file(Severity::Warning, &lost_lines(lost));
        }
    }
}

fn lost_lines(count: u64) -> String {
    format!("{count} line(s) of the log were lost: the logger was too slow for them")
}

impl Outlet for Queued {
    fn take(&self, severity: Severity, text: String) {
        match self.is_here() {
            true => self.queue.put(Entry::Line(severity, text)),
            false => log::to_file(severity, &text),
        }
    }

    fn give_up(&self) {
        self.rescue(Duration::ZERO);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Witness for Queued {
    fn answered(&self, request: Answered) {
        self.queue.put(Entry::Request(request));
    }
}
