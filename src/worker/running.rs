//! Owns: the loop in every thread of the worker, and who interferes with it: signals, the arbiter's end, the helper.
//! Rule: nothing in the loop waits for the interpreter; what needs it has a thread of its own.
//! Never: decides when the worker ends; it is told.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use log::Level;
use pyo3::prelude::*;

use super::{boot_failed, Lifeline};
use crate::access_sink::AccessLog;
use crate::app::App;
use crate::config::Config;
use crate::event_loop::{Directive, EventLoop, Overrun, Plan};
use crate::hooks::WorkerHooks;
use crate::log::{critical, init};
use crate::logger::{self, Logger};
use crate::python::{self, Interrupts};
use crate::sys::crash;
use crate::sys::poll::Waker;
use crate::sys::signal::{self, Signals};
use crate::wsgi::WsgiApp;

/// How long the interpreter may be had by one thread before it counts as stuck: many of Python's switch intervals.
pub(super) const PROBE: Duration = Duration::from_millis(200);

/// Threads of a loop that has stopped end at once, when they get the interpreter.
const THREADS_END: Duration = Duration::from_secs(1);

/// It is shown what every thread is doing, and a request is broken off where Python can: in the main thread.
pub(super) struct OverrunPolicy {
    pub(super) interrupts: Interrupts,
    /// The loop outlives them.
    pub(super) hooks: Weak<WorkerHooks>,
}

impl Overrun for OverrunPolicy {
    fn begins(&self, thread: usize) {
        if thread == 0 {
            self.interrupts.want(true);
        }
    }

    fn deal(&self, thread: usize, runs: &dyn Fn() -> bool) -> bool {
        let stacks = python::stacks_within(PROBE);
        match &stacks {
            Some(stacks) => critical(format_args!("Stacks of all threads\n{stacks}")),
            // The process ends, and so does the request.
            None if python::have_visits_ended() => return true,
            None => {
                log::error!("The request keeps the interpreter to itself; this worker takes no more of them");
                // Handled in the thread that raises it, so that no system call of the application is interrupted.
                if let Err(e) = signal::raise(signal::stack_dump()) {
                    log::error!("Cannot show the stacks: {e}");
                }
            }
        }
        match (thread, runs()) {
            // The hook is called in Python's handler of the signal, before the exception is raised.
            (0, true) => self.interrupts.break_off(),
            (_, true) => self.tell_of_abort(),
            (_, false) => {}
        }
        stacks.is_some()
    }

    fn ended(&self, thread: usize) {
        if thread == 0 {
            self.interrupts.want(false);
        }
    }
}

impl OverrunPolicy {
    /// In a thread of its own, as the interpreter may be had late or never, and the hook may take its time.
    fn tell_of_abort(&self) {
        let Some(hooks) = self.hooks.upgrade().filter(|hooks| hooks.hears_of_abort()) else {
            return;
        };
        let tell = move || python::visit(|py| hooks.signalled(py, signal::SIGABRT));
        if let Err(e) = std::thread::Builder::new().name("worker-abort".into()).spawn(tell) {
            log::error!("Cannot call the worker_abort hook: {e}");
        }
    }
}

/// What tells a worker to do something.
pub(super) struct Heard {
    pub(super) signals: Signals,
    pub(super) lifeline: Arc<Lifeline>,
    pub(super) config: Arc<Config>,
    pub(super) access: Option<Arc<AccessLog>>,
    pub(super) logger: Weak<Logger>,
    pub(super) interrupts: Interrupts,
}

impl Heard {
    fn directive(&mut self, index: usize) -> Directive {
        if index > 0 {
            log::info!("Parent changed, shutting down");
            return Directive::Orphaned;
        }
        let told = self.signals.pending().into_iter().map(|signal| self.obey(signal)).max();
        told.unwrap_or(Directive::Continue)
    }

    fn obey(&self, signal: i32) -> Directive {
        match signal {
            // Ours, for a request and not for the worker.
            signal::SIGABRT if self.interrupts.has_broken_off() => Directive::Continue,
            signal::SIGTERM | signal::SIGABRT => Directive::Drain,
            signal::SIGINT | signal::SIGQUIT => Directive::Stop,
            _ => {
                reopen_logs(&self.config, self.access.as_deref(), Level::Error);
                reopen_python_logs(self.logger.upgrade());
                Directive::Continue
            }
        }
    }
}

pub(super) fn start_loop(plan: Plan, arbiter: Arc<Waker>, mut heard: Heard) -> std::io::Result<EventLoop> {
    let signals = heard.signals.as_fd().try_clone_to_owned()?;
    let lifeline = heard.lifeline.as_fd().try_clone_to_owned()?;
    let control = Box::new(move |index| heard.directive(index));
    EventLoop::new(plan, arbiter, vec![signals, lifeline], control)
}

/// A log that cannot be opened, perhaps not by this user, stays where it is; `level` says how much that matters.
pub(super) fn reopen_logs(config: &Config, access: Option<&AccessLog>, level: Level) {
    if let Err(e) = init(config) {
        log::log!(level, "Cannot reopen the error log: {e} (--error-logfile)");
    }
    if let Some(Err(e)) = access.map(AccessLog::reopen) {
        log::log!(level, "Cannot reopen the access log: {e} (--access-logfile)");
    }
}

/// In a thread of its own, as the loop must not wait for the interpreter.
fn reopen_python_logs(logger: Option<Arc<Logger>>) {
    let reopen = move || python::visit(|py| logger::reopen_files(py, logger.as_deref(), Level::Error));
    if let Err(e) = std::thread::Builder::new().name("reopen".into()).spawn(reopen) {
        log::error!("Cannot reopen the log files of Python's logging: {e}");
    }
}

/// Runs the loop in every thread of the worker; returns when it has stopped in this one, and whether all others have ended.
/// `ended` is called when it has stopped, at once.
pub(super) fn lead_threads(
    py: Python<'_>,
    event_loop: EventLoop,
    app: Arc<WsgiApp>,
    ended: impl Fn(&EventLoop) + Sync,
) -> Result<bool, i32> {
    let event_loop = Arc::new(event_loop);
    // It lives as long as the process, which ends without taking anything apart.
    let kept: &'static Arc<EventLoop> = Box::leak(Box::new(event_loop.clone()));
    crash::set_scene(&**kept);
    start_helper(&event_loop).map_err(|e| boot_failed(py, &PyErr::from(e)))?;
    if event_loop.threads() == 1 {
        let mut caller = app.caller(0);
        event_loop.run(0, &mut *caller);
        ended(&event_loop);
        return Ok(true);
    }
    let mut threads = Vec::new();
    for thread in 1..event_loop.threads() {
        let (event_loop, app) = (event_loop.clone(), app.clone());
        let name = format!("rgunicorn-{thread}");
        let spawned = python::spawn_thread(py, &name, move |py| {
            py.detach(|| event_loop.run(thread, &mut *app.caller(thread)));
        });
        threads.push(spawned.map_err(|e| boot_failed(py, &e))?);
    }
    py.detach(|| {
        event_loop.run(0, &mut *app.caller(0));
        // It may be long until this thread has the interpreter.
        ended(&event_loop);
    });
    // The application is theirs too: what it has open is closed when nobody has it any more.
    Ok(!event_loop.has_stuck_thread() && python::join(py, &threads, THREADS_END))
}

fn start_helper(event_loop: &Arc<EventLoop>) -> std::io::Result<()> {
    let event_loop = event_loop.clone();
    std::thread::Builder::new().name("helper".into()).spawn(move || {
        python::guard_stack();
        event_loop.help();
    })?;
    Ok(())
}
