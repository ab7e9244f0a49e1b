//! Owns: what a signal does to the Python code that the main thread runs: nothing, or the exception that ends it.
//! Rule: the handlers are set once before any fork and ask for the mode of the process; the kernel's side of a signal, the
//! pipe of `sys::signal`, is told whatever Python does.
//! Never: decides what a signal means to the server; who reads the pipe does.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use pyo3::exceptions::PySystemExit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyCFunction;

use super::forks::register;
use crate::sys::{crash, fork, process, signal};

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
    told: Arc<Mutex<Option<Told>>>,
    handler: Arc<OnceLock<Py<PyAny>>>,
}

/// Is told of each signal in Python's handler of it, in the main thread.
type Told = Arc<dyn Fn(Python<'_>, i32) + Send + Sync>;

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
        let handler = match self.handler.get() {
            Some(handler) => handler.clone_ref(py),
            None => self.new_handler(py)?.into_any().unbind(),
        };
        // Two threads there are none yet.
        set_handler(py, signals, self.handler.get_or_init(|| handler).bind(py))
    }

    fn new_handler<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCFunction>> {
        let Interrupts { mode, stopped, overrun, told, .. } = self.clone();
        PyCFunction::new_closure(py, Some(c"interrupt"), None, move |arguments, _| -> PyResult<()> {
            let number: i32 = arguments.get_item(0)?.extract()?;
            if fork::is_foreign() {
                // A handler of the application's has called the one that it found.
                signal::obey_default(number);
                return Ok(());
            }
            if number == signal::SIGABRT && overrun.came_late() {
                return Ok(());
            }
            let tell = lock(&told).clone();
            if let Some(tell) = tell {
                tell(arguments.py(), number);
            }
            match exit_code(mode.load(Relaxed), number) {
                Some(code) => {
                    stopped.store(true, Relaxed);
                    Err(Interrupted::new_err(code))
                }
                None => Ok(()),
            }
        })
    }

    /// Nobody hears of signals any more; who did can be taken apart.
    pub fn forget(&self) {
        let told = lock(&self.told).take();
        drop(told);
    }

    /// The process ends: signals are heard of by nobody any more, and end nothing. Python would give them their defaults in the
    /// end, so that one that comes late would kill a process that leaves as it was told to.
    pub fn disregard(&self, py: Python<'_>) -> PyResult<()> {
        let module = py.import(intern!(py, "_signal"))?;
        let default = module.getattr(intern!(py, "SIG_DFL"))?;
        let Some(ours) = self.handler.get() else { return Ok(()) };
        // By ABRT a process ends that has crashed.
        for number in (1..signal::REAL_TIME).filter(|number| *number != signal::SIGABRT) {
            if module.call_method1(intern!(py, "getsignal"), (number,))?.is(ours) {
                module.call_method1(intern!(py, "signal"), (number, &default))?;
                signal::disregard(number)?;
            }
        }
        Ok(())
    }

    /// From now on a process that somebody else than the server forks has no handler of ours, and the others that it found.
    pub fn leave_at_fork(&self, py: Python<'_>) -> PyResult<()> {
        let handler = self.handler.clone();
        let leave =
            PyCFunction::new_closure(py, Some(c"leave"), None, move |arguments, _| -> PyResult<()> {
                match handler.get().filter(|_| fork::is_foreign()) {
                    Some(handler) => become_plain(arguments.py(), handler),
                    None => Ok(()),
                }
            })?;
        register(py, leave.as_any())
    }

    /// Whether the main thread's request is to be broken off, should `break_off` come.
    pub fn want(&self, wanted: bool) {
        self.overrun.wanted.store(wanted, Relaxed);
    }

    /// From now on `tell` hears of every signal for this process.
    pub fn tell(&self, tell: impl Fn(Python<'_>, i32) + Send + Sync + 'static) {
        *lock(&self.told) = Some(Arc::new(tell));
    }

    /// Breaks off the request that the main thread is running. By another thread, with or without the interpreter.
    pub fn break_off(&self) {
        self.overrun.ever.store(true, Relaxed);
        self.overrun.sent.store(true, Relaxed);
        crash::expect_abort();
        process::signal_self(signal::SIGABRT);
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

/// Whether an exception is a worker's being told to stop, or was raised while that was handled: imports turn one exception
/// into another, and so does Python (`__set_name__` before 3.12).
pub fn comes_of_stop(py: Python<'_>, e: &PyErr) -> bool {
    let mut next = Some(e.clone_ref(py));
    for _ in 0..MOST_CAUSES {
        let Some(e) = next.take() else { break };
        if is_stop(py, &e) {
            return true;
        }
        let context = e.value(py).getattr(intern!(py, "__context__"));
        let context = context.ok().filter(|context| !context.is_none()).map(PyErr::from_value);
        next = e.cause(py).or(context);
    }
    false
}

/// A chain may be a ring.
const MOST_CAUSES: usize = 32;

/// Whether an exception is the one by which a signal ends a request.
pub fn is_interrupt(py: Python<'_>, e: &PyErr) -> bool {
    e.is_instance_of::<Interrupted>(py)
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

/// Held for an instant, and never by who waits for the interpreter.
fn lock(told: &Mutex<Option<Told>>) -> MutexGuard<'_, Option<Told>> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_handler(py: Python<'_>, signals: &[i32], handler: &Bound<'_, PyAny>) -> PyResult<()> {
    let module = py.import(intern!(py, "signal"))?;
    for number in signals {
        module.call_method1(intern!(py, "signal"), (number, handler))?;
    }
    Ok(())
}

/// Signals that are ours do what they do in a plain Python process.
fn become_plain(py: Python<'_>, ours: &Py<PyAny>) -> PyResult<()> {
    // Not `signal`: that is slower, and others replace its functions.
    let module = py.import(intern!(py, "_signal"))?;
    for number in 1..signal::REAL_TIME {
        if !module.call_method1(intern!(py, "getsignal"), (number,))?.is(ours) {
            continue;
        }
        let plain = match number {
            signal::SIGINT => intern!(py, "default_int_handler"),
            _ => intern!(py, "SIG_DFL"),
        };
        module.call_method1(intern!(py, "signal"), (number, module.getattr(plain)?))?;
    }
    py.import(intern!(py, "faulthandler"))?
        .call_method1(intern!(py, "unregister"), (signal::stack_dump(),))
        .map(drop)
}

/// Gives signals back to the kernel's default.
pub fn reset_signals(py: Python<'_>, signals: &[i32]) -> PyResult<()> {
    let default = py.import(intern!(py, "signal"))?.getattr(intern!(py, "SIG_DFL"))?;
    set_handler(py, signals, &default)
}
