//! Owns: a worker's life, top to bottom: what it inherits, signals, the application, ready, the loop, the end.
//! Rule: it reports READY when the application is loaded and takes no connection before; it outlives neither its drain
//! nor its arbiter.
//! Never: restarts anything; what follows its exit is the arbiter's business.

mod application;
mod heritage;
mod leaving;
mod plan;
mod running;

pub use application::{load, load_app};
pub use heritage::{Failure, Heritage, Lifeline};
pub use leaving::EXIT_TIME;

use std::sync::Arc;
use std::time::Duration;

use log::Level;
use pyo3::prelude::*;

use application::initialised;
use leaving::Leaving;
use plan::{circumstances, plan, trust, Logs, Post};
use running::{lead_threads, reopen_logs, start_loop, Heard};

use crate::crash_report;
use crate::event_loop::EventLoop;
use crate::hooks::WorkerHooks;
use crate::log::routes;
use crate::logger;
use crate::panic;
use crate::python::{self, Interrupts, Mode};
use crate::scoreboard::{Phase, Slot};
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::signal::{self, Blocked, Signals};
use crate::sys::{crash, process};
use crate::wsgi::{self, WsgiApp};

pub const BOOT_FAILED: i32 = 3;
pub const APP_NOT_FOUND: i32 = 4;

/// How long a worker that a reload has on trial takes no connection: one that dies at once dies without a request.
pub const QUIET: Nanos = SECOND * 3 / 10;

/// How long a thread that shows the stacks, or calls a hook, is waited for.
const VISITS_END: Duration = Duration::from_secs(1);

/// A worker that is about to live.
pub struct Seed {
    pub heritage: Heritage,
    pub slot: Slot,
    /// Its serial number.
    pub age: u64,
    /// What `pre_fork` has seen of it; a mold's has not been in the same process.
    pub worker: Option<Py<PyAny>>,
    /// `max_requests` with this worker's jitter; 0 is never.
    pub most_requests: u64,
    /// Held from before the fork until the worker has its own handlers.
    pub blocked: Blocked,
}

/// Runs the worker; returns its exit code, with which Python is to end now: within a time that this has begun. `app` is given
/// when a mold has loaded it.
pub fn run(py: Python<'_>, seed: Seed, app: Option<Py<PyAny>>) -> i32 {
    log::info!("Booting worker with pid: {}", process::id());
    let (own, slot) = (process::id(), seed.slot.clone());
    panic::ends("worker", move || {
        // What the application forks is no worker.
        if process::id() == own {
            slot.set_panic();
        }
    });
    let interrupts = seed.heritage.interrupts.clone();
    crash_report::worker_boots(seed.slot.clone());
    let hooks = match hooks(py, &seed) {
        Ok(hooks) => hooks,
        Err(e) => return boot_failed(py, &e),
    };
    let slot = seed.slot.clone();
    let graceful = seed.heritage.config.graceful_timeout.as_nanos() as Nanos;
    let leaving = Leaving::of("Worker");
    let code = match serve(py, seed, app, (&hooks, &leaving)) {
        Ok(()) => 0,
        Err(code) => code,
    };
    leaving.begin(clock::monotonic().saturating_add(graceful), code);
    if code == 0 {
        slot.set_leaves();
    }
    // Python may not have come to handle a signal that the loop has seen; `worker_int` goes before `worker_exit`.
    let _ = py.check_signals();
    // What a signal started is under way; exit handlers run undisturbed.
    interrupts.set(Mode::Quiet);
    log::info!("Worker exiting (pid: {})", process::id());
    hooks.worker_exit(py);
    let is_alone = logger::wind_down(py) && python::end_visits(py, VISITS_END);
    if !is_alone || leaving.leaves_thread() {
        end_beside_thread(py, code);
    }
    interrupts.forget();
    if let Err(e) = interrupts.disregard(py).and_then(|()| python::unfreeze_heap(py)) {
        log::warn!("The worker may not end as it should: {e}");
    }
    code
}

/// Of a thread that is in the application, and below that in our code, the interpreter cannot be taken apart.
fn end_beside_thread(py: Python<'_>, code: i32) -> ! {
    python::wind_down(py);
    process::exit_now(code)
}

/// The end of a mold, which is that of a worker.
pub fn leave_mold(py: Python<'_>, code: i32) -> i32 {
    logger::wind_down(py);
    Leaving::of("Mold").begin(clock::monotonic(), code);
    code
}

fn hooks(py: Python<'_>, seed: &Seed) -> PyResult<Arc<WorkerHooks>> {
    let Heritage { hooks, server, listeners, interrupts, .. } = &seed.heritage;
    server.enter(py, hooks, listeners)?;
    let worker = match &seed.worker {
        Some(worker) => worker.clone_ref(py),
        None => server.new_worker(py, seed.age, &seed.slot, seed.most_requests)?,
    };
    let hooks = Arc::new(WorkerHooks::new(py, hooks.clone(), server, worker, seed.slot.clone())?);
    let told = hooks.clone();
    interrupts.tell(move |py, signal| told.signalled(py, signal));
    Ok(hooks)
}

fn serve(
    py: Python<'_>,
    seed: Seed,
    app: Option<Py<PyAny>>,
    (hooks, leaving): (&Arc<WorkerHooks>, &Leaving),
) -> Result<(), i32> {
    let Seed { mut heritage, slot, most_requests, blocked, .. } = seed;
    python::set_title(py, "worker", &heritage.config.proc_name);
    boot_signals(py, &heritage.interrupts).map_err(|e| boot_failed(py, &e))?;
    drop(blocked);
    // As in gunicorn, it still has the arbiter's rights; a mold has given them up before.
    hooks.post_fork(py).map_err(|e| boot_failed(py, &e))?;
    heritage.settle()?;
    let app = match app {
        Some(app) => app.into_bound(py),
        None => load(py, &heritage).map_err(|failure| heritage.failed(&failure))?,
    };
    let on_trial = heritage.is_on_trial();
    let graceful = heritage.config.graceful_timeout.as_nanos() as Nanos;
    let app = initialised(py, hooks, app, &heritage.config)?;
    let post = Post { slot, hooks: hooks.clone(), most_requests, quiet: if on_trial { QUIET } else { 0 } };
    let prepared = prepare(py, hooks, app, &heritage, post);
    let (event_loop, app) = prepared.map_err(|e| boot_failed(py, &e))?;
    let has_ended = |event_loop: &EventLoop| leaving.loop_has_ended(event_loop, graceful);
    if !lead_threads(py, event_loop, app, has_ended)? {
        leaving.leave_thread();
    }
    Ok(())
}

/// Makes what the worker's threads share, and reports READY.
fn prepare(
    py: Python<'_>,
    hooks: &WorkerHooks,
    app: Bound<'_, PyAny>,
    heritage: &Heritage,
    post: Post,
) -> PyResult<(EventLoop, Arc<WsgiApp>)> {
    let signals = serve_signals(py, &heritage.interrupts)?;
    if let Some(syslog) = routes().syslog {
        syslog.meet(SECOND);
    }
    let config = &heritage.config;
    hooks.adopt_logger(py, config);
    let logs = Logs::of(py, hooks, heritage)?;
    // A USR1 that came while the application was imported has been missed: the inherited file may have been moved.
    reopen_logs(config, logs.access.as_deref(), Level::Debug);
    logger::reopen_files(py, hooks.logger().map(Arc::as_ref), Level::Debug);
    let trust = trust(config)?;
    let circumstances = circumstances(py, hooks, heritage, &logs, trust.clone())?;
    wsgi::take_server_name(py)?;
    let app = Arc::new(WsgiApp::new(app, circumstances)?);
    let slot = post.slot.clone();
    let plan = plan(heritage, post, &logs, trust, python::is_parallel(py))?;
    let heard = Heard {
        signals,
        lifeline: heritage.lifeline.clone(),
        config: config.clone(),
        access: logs.access,
        logger: hooks.logger().map(Arc::downgrade).unwrap_or_default(),
        interrupts: heritage.interrupts.clone(),
    };
    let event_loop = start_loop(plan, heritage.arbiter.clone(), heard)?;
    slot.set_phase(Phase::Ready);
    heritage.arbiter.wake();
    Ok((event_loop, app))
}

/// The exit code for what kept the worker from serving; a signal to stop is no failure.
fn boot_failed(py: Python<'_>, e: &PyErr) -> i32 {
    if python::comes_of_stop(py, e) {
        return 0;
    }
    logger::exception(py, "Exception in worker process", e);
    BOOT_FAILED
}

/// From here on signals are for this worker, and nothing of what the arbiter was told is left.
fn boot_signals(py: Python<'_>, interrupts: &Interrupts) -> PyResult<()> {
    python::reset_signals(py, &[signal::SIGCHLD])?;
    interrupts.install(py, &[signal::SIGABRT])?;
    // Before the application is there: handlers of its own come before ours, and decide.
    crash::install()?;
    crash::install_abort()?;
    interrupts.set(Mode::Booting);
    python::dump_stacks_on(py, signal::stack_dump())?;
    python::guard_stack();
    Ok(())
}

/// From here on the loop hears of signals. One that came before is still waiting in Python and raises here.
fn serve_signals(py: Python<'_>, interrupts: &Interrupts) -> PyResult<Signals> {
    let heard = [signal::SIGTERM, signal::SIGINT, signal::SIGQUIT, signal::SIGABRT, signal::SIGUSR1];
    // faulthandler gives the thread that enables it a stack with little room on it.
    python::guard_stack();
    let _blocked = Blocked::all()?;
    let signals = Signals::new(&heard)?;
    interrupts.check(py)?;
    interrupts.set(Mode::Serving);
    Ok(signals)
}
