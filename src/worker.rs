//! Owns: a worker's life, top to bottom: what it inherits, signals, the application, ready, the loop, the end.
//! Rule: it reports READY when the application is loaded and takes no connection before; it outlives neither its drain
//! nor its arbiter.
//! Never: restarts anything; what follows its exit is the arbiter's business.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use pyo3::prelude::*;

use crate::access_sink::{AccessLog, Recipients, Witness};
use crate::app::App;
use crate::config::{AppSpec, Config};
use crate::conn::Settings;
use crate::development::{self, Observer};
use crate::event_loop::{Directive, EventLoop, Overrun, Plan};
use crate::handoff::Mailbox;
use crate::hooks::{report, Hook, Hooks, Server, WorkerHooks};
use crate::identity::Identity;
use crate::launch::Launch;
use crate::listener::Listener;
use crate::log::{critical, init, routes, LogFile, Routes, Stream};
use crate::logger::{self, Logger};
use crate::proxy::{Introductions, Trust};
use crate::python::{self, Interrupts, Mode};
use crate::scoreboard::{Notice, Phase, Slot};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::poll::Waker;
use crate::sys::signal::{self, Blocked, Signals};
use crate::sys::{crash, process};
use crate::tls::Context;
use crate::watch::journal::Journal;
use crate::wsgi::load::{self, LoadError};
use crate::wsgi::{self, Circumstances, WsgiApp};

pub const BOOT_FAILED: i32 = 3;
pub const APP_NOT_FOUND: i32 = 4;

/// How long the interpreter may be had by one thread before it counts as stuck: many of Python's switch intervals.
const PROBE: Duration = Duration::from_millis(200);

/// How long a worker that a reload has on trial takes no connection: one that dies at once dies without a request.
pub const QUIET: Nanos = SECOND * 3 / 10;

/// The other end of it is held by the arbiter alone: when it reads as ended, the arbiter is gone.
pub type Lifeline = OwnedFd;

/// What every process of a generation inherits from the arbiter.
#[derive(Clone)]
pub struct Heritage {
    pub generation: u64,
    pub config: Arc<Config>,
    pub tls: Option<Context>,
    pub listeners: Vec<Arc<Listener>>,
    pub mailbox: Arc<Mailbox>,
    pub notice: Arc<Notice>,
    pub lifeline: Arc<Lifeline>,
    pub arbiter: Arc<Waker>,
    pub interrupts: Interrupts,
    pub launch: Arc<Launch>,
    pub hooks: Arc<Hooks>,
    pub server: Arc<Server>,
    /// Where it says why it could not load the application.
    pub report: Arc<OwnedFd>,
    /// As whom to run, until that has been done.
    pub identity: Option<Identity>,
    /// The access log, once it has been opened.
    pub access: Option<Arc<LogFile>>,
    /// With `reload`: where to note what is imported.
    pub imports: Option<Arc<Journal>>,
}

/// Why the application could not be loaded; it has been logged.
pub struct Failure {
    pub code: i32,
    pub sentence: String,
}

impl Heritage {
    /// Reports to the arbiter; returns the exit code.
    pub fn failed(&self, failure: &Failure) -> i32 {
        use nix::sys::socket::{send, MsgFlags};
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // The arbiter knows the exit code all the same.
        let _ = send(self.report.as_raw_fd(), failure.sentence.as_bytes(), flags);
        failure.code
    }

    /// Does what takes the arbiter's rights, then gives them up. Once, in the first process after the arbiter.
    ///
    /// Errors: the exit code; the process must not load the application.
    pub fn settle(&mut self) -> Result<(), i32> {
        let native = self.config.logging.python.is_none();
        if let (Some(target), None) = (self.config.accesslog.as_ref().filter(|_| native), &self.access) {
            let opened = LogFile::open(target, Stream::Stdout);
            self.access = Some(Arc::new(
                opened.map_err(|e| refused("Cannot open the access log", &e, "--access-logfile"))?,
            ));
        }
        let Some(identity) = self.identity.take() else {
            return Ok(());
        };
        let what = format!("Cannot run as {identity}");
        identity.assume().map_err(|e| refused(&what, &e, "--user"))
    }
}

fn refused(what: &str, e: &std::io::Error, option: &str) -> i32 {
    log::error!("{what}: {e} ({option})");
    BOOT_FAILED
}

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

/// Runs the worker; returns its exit code. `app` is given when a mold has loaded it.
pub fn run(py: Python<'_>, seed: Seed, app: Option<Py<PyAny>>) -> i32 {
    log::info!("Booting worker with pid: {}", process::id());
    // Where the operator looks, rather than on standard error.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    let interrupts = seed.heritage.interrupts.clone();
    let hooks = match hooks(py, &seed) {
        Ok(hooks) => hooks,
        Err(e) => return boot_failed(py, &e),
    };
    let code = match serve(py, seed, app, &hooks) {
        Ok(()) => 0,
        Err(code) => code,
    };
    // Python may not have come to handle a signal that the loop has seen; `worker_int` goes before `worker_exit`.
    let _ = py.check_signals();
    // What a signal started is under way; exit handlers run undisturbed.
    interrupts.set(Mode::Quiet);
    log::info!("Worker exiting (pid: {})", process::id());
    hooks.worker_exit(py);
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

fn serve(py: Python<'_>, seed: Seed, app: Option<Py<PyAny>>, hooks: &WorkerHooks) -> Result<(), i32> {
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
    let on_trial = heritage.notice.proving() == heritage.generation;
    let app = initialised(py, hooks, app, &heritage.config)?;
    let Heritage { config, tls, listeners, mailbox, notice, lifeline, arbiter, interrupts, access, .. } =
        heritage;
    let signals = serve_signals(py, &interrupts).map_err(|e| boot_failed(py, &e))?;
    if let Some(syslog) = routes().syslog {
        syslog.meet(SECOND);
    }
    hooks.adopt_logger(py, &config);
    let access_hook = hooks.of_access(py).map_err(|e| boot_failed(py, &e))?;
    let error_stream = hooks.logger().map(|logger| logger.error_stream(py)).transpose();
    let witness = hooks.logger().map(|logger| logger.take_lines_queued(py)).transpose();
    let witness = witness.map_err(|e| boot_failed(py, &e))?.filter(|_| access_hook.is_some());
    // A USR1 that came while the application was imported has been missed: the inherited file may have been moved.
    let access = access_log(&config, access, witness);
    reopen_logs(&config, access.as_deref(), Level::Debug);
    logger::reopen_files(py, hooks.logger().map(Arc::as_ref), Level::Debug);
    let trust = trust(&config).map_err(|e| boot_failed(py, &e))?;
    let circumstances = Circumstances {
        threads: config.threads,
        workers: config.workers,
        sendfile: config.sendfile,
        interrupts: interrupts.clone(),
        trust: trust.clone(),
        root_path: config.root_path.clone(),
        hooks: hooks.of_requests(py).map_err(|e| boot_failed(py, &e))?,
        access: access_hook,
        errors: error_stream.map_err(|e| boot_failed(py, &e))?,
        locals: listeners.iter().map(|listener| listener.local().clone()).collect(),
    };
    wsgi::take_server_name(py).map_err(|e| boot_failed(py, &e))?;
    let app = Arc::new(WsgiApp::new(app, circumstances).map_err(|e| boot_failed(py, &e))?);
    let plan = Plan {
        settings: settings(&config),
        trust,
        introductions: introductions(&config).map_err(|e| boot_failed(py, &e))?,
        access: access.clone(),
        tls,
        listeners,
        mailbox,
        notice,
        slot: slot.clone(),
        threads: config.threads,
        parallel: python::is_parallel(py),
        workers: config.workers,
        most_connections: config.worker_connections,
        most_requests,
        quiet: if on_trial { QUIET } else { 0 },
        timeout: limit(config.timeout),
        queue_timeout: Some(nanos(config.queue_timeout)).filter(|limit| *limit > 0),
        graceful_timeout: nanos(config.graceful_timeout),
        overrun: Box::new(OverrunPolicy(interrupts.clone())),
    };
    let logger = hooks.logger().cloned();
    let heard = Heard { signals, lifeline, config, access, logger, interrupts };
    let event_loop =
        start_loop(plan, arbiter.clone(), heard).map_err(|e| boot_failed(py, &PyErr::from(e)))?;
    slot.set_phase(Phase::Ready);
    arbiter.wake();
    lead_threads(py, event_loop, app)
}

/// The exit code for what kept the worker from serving; a signal to stop is no failure.
fn boot_failed(py: Python<'_>, e: &PyErr) -> i32 {
    if python::is_stop(py, e) {
        return 0;
    }
    logger::exception(py, "Exception in worker process", e);
    BOOT_FAILED
}

/// From here on signals are for this worker, and nothing of what the arbiter was told is left.
fn boot_signals(py: Python<'_>, interrupts: &Interrupts) -> PyResult<()> {
    python::mark_forks(py)?;
    python::reset_signals(py, &[signal::SIGCHLD])?;
    interrupts.install(py, &[signal::SIGABRT])?;
    // Before the application is there: handlers of its own come before ours, and decide.
    crash::install()?;
    crash::install_abort()?;
    interrupts.set(Mode::Booting);
    python::dump_stacks_on(py, signal::stack_dump())?;
    guard_stack();
    Ok(())
}

/// For a thread of the worker that may run out of stack.
fn guard_stack() {
    if let Err(e) = crash::guard_thread() {
        log::warn!("Cannot prepare a thread for a crash: {e}");
    }
}

/// From here on the loop hears of signals. One that came before is still waiting in Python and raises here.
fn serve_signals(py: Python<'_>, interrupts: &Interrupts) -> PyResult<Signals> {
    let heard = [signal::SIGTERM, signal::SIGINT, signal::SIGQUIT, signal::SIGABRT, signal::SIGUSR1];
    // faulthandler gives the thread that enables it a stack with little room on it.
    guard_stack();
    let _blocked = Blocked::all()?;
    let signals = Signals::new(&heard)?;
    interrupts.check(py)?;
    interrupts.set(Mode::Serving);
    Ok(signals)
}

/// The application for a worker or a mold; with `reload`, one that shows why it cannot be loaded.
pub fn load<'py>(py: Python<'py>, heritage: &Heritage) -> Result<Bound<'py, PyAny>, Failure> {
    let config = &heritage.config;
    if config.spew {
        development::spew(py).map_err(|e| load_failed(py, e.into()))?;
    }
    let Some(journal) = heritage.imports.clone() else {
        return load_app(py, &heritage.launch, config);
    };
    let observer =
        Observer::start(py, journal, heritage.arbiter.clone()).map_err(|e| load_failed(py, e.into()))?;
    let loaded = find_app(py, &heritage.launch, config);
    observer.tell_of_all(py).map_err(|e| load_failed(py, e.into()))?;
    loaded.or_else(|e| explain(py, e))
}

/// As the application for a worker that goes on, unless it is told to stop.
fn explain(py: Python<'_>, e: LoadError) -> Result<Bound<'_, PyAny>, Failure> {
    let text = match &e {
        LoadError::Raised(stop) if python::is_stop(py, stop) => return Err(load_failed(py, e)),
        LoadError::Raised(raised) => python::traceback(py, raised),
        LoadError::NotFound(sentence) | LoadError::NoModule(sentence) => sentence.clone(),
    };
    load_failed(py, e);
    log::info!("Every request is answered with this until a file changes (--reload)");
    development::failure(py, &text).map_err(|e| load_failed(py, e.into()))
}

/// After `post_worker_init`, which fails like the application.
fn initialised<'py>(
    py: Python<'py>,
    hooks: &WorkerHooks,
    app: Bound<'py, PyAny>,
    config: &Config,
) -> Result<Bound<'py, PyAny>, i32> {
    match hooks.post_worker_init(py, &app) {
        Ok(()) => Ok(app),
        Err(e) if development::is_failure(&app) => {
            report(py, Hook::PostWorkerInit, Err(e));
            Ok(app)
        }
        Err(e) if config.reload.is_some() => explain(py, e.into()).map_err(|failure| failure.code),
        Err(e) => Err(boot_failed(py, &e)),
    }
}

pub fn load_app<'py>(
    py: Python<'py>,
    launch: &Launch,
    config: &Config,
) -> Result<Bound<'py, PyAny>, Failure> {
    find_app(py, launch, config).map_err(|e| load_failed(py, e))
}

fn find_app<'py>(py: Python<'py>, launch: &Launch, config: &Config) -> Result<Bound<'py, PyAny>, LoadError> {
    let prepared = config.raw_env.iter().try_for_each(|(name, value)| python::set_env(py, name, value));
    let found = prepared.map_err(LoadError::Raised).and_then(|()| match launch {
        Launch::Program(program) => load::ask(py, program),
        Launch::Command(_) => match &config.app {
            Some(AppSpec::Paste(file)) => load::paste(py, file),
            Some(AppSpec::Module(spec)) => load::load(py, spec),
            // `Launch::check` has seen to it that there is one.
            None => load::load(py, ""),
        },
    });
    python::flush(py);
    found
}

/// Logs what kept the application from being loaded.
fn load_failed(py: Python<'_>, e: LoadError) -> Failure {
    match e {
        LoadError::NotFound(sentence) => {
            log::error!("{sentence}");
            Failure { code: APP_NOT_FOUND, sentence }
        }
        LoadError::NoModule(sentence) => {
            log::error!("{sentence}");
            Failure { code: BOOT_FAILED, sentence }
        }
        LoadError::Raised(e) => Failure { code: boot_failed(py, &e), sentence: e.to_string() },
    }
}

pub fn trust(config: &Config) -> PyResult<Trust> {
    Trust::new(&config.forwarded_allow_ips, config.secure_scheme_headers.clone())
        .map_err(|bad| pyo3::exceptions::PyValueError::new_err(format!("{} (--forwarded-allow-ips)", bad.0)))
}

fn introductions(config: &Config) -> PyResult<Option<Introductions>> {
    let Some(mode) = config.proxy_protocol else {
        return Ok(None);
    };
    Introductions::new(mode, &config.proxy_allow_ips)
        .map(Some)
        .map_err(|bad| pyo3::exceptions::PyValueError::new_err(format!("{} (--proxy-allow-from)", bad.0)))
}

fn access_log(
    config: &Config,
    file: Option<Arc<LogFile>>,
    witness: Option<Arc<dyn Witness>>,
) -> Option<Arc<AccessLog>> {
    let Routes { syslog, statsd, .. } = routes();
    let to = Recipients {
        // A logger in Python has a file of its own.
        file: file.zip(config.accesslog.clone()).filter(|_| routes().outlet.is_none()),
        syslog: syslog.filter(|syslog| syslog.access),
        statsd,
        witness,
    };
    AccessLog::new(to, &config.access_log_format).map(Arc::new)
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX / 4)
}

/// In the configuration zero means no limit; a deadline a century away is none.
fn limit(duration: Duration) -> Nanos {
    match nanos(duration) {
        0 => 100 * 365 * 86_400 * SECOND,
        nanos => nanos,
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        policy: config.http.clone(),
        keepalive: nanos(config.keepalive),
        header_timeout: limit(config.header_timeout),
        body_timeout: limit(config.body_timeout),
        write_timeout: limit(config.write_timeout),
    }
}

/// It is shown what every thread is doing, and a request is broken off where Python can: in the main thread.
struct OverrunPolicy(Interrupts);

impl Overrun for OverrunPolicy {
    fn begins(&self, thread: usize) {
        if thread == 0 {
            self.0.want(true);
        }
    }

    fn deal(&self, thread: usize, runs: &dyn Fn() -> bool) -> bool {
        let stacks = python::stacks_within(PROBE);
        match &stacks {
            Some(stacks) => critical(format_args!("Stacks of all threads\n{stacks}")),
            None => {
                log::error!("The request keeps the interpreter to itself; this worker takes no more of them");
                // Handled in the thread that raises it, so that no system call of the application is interrupted.
                if let Err(e) = signal::raise(signal::stack_dump()) {
                    log::error!("Cannot show the stacks: {e}");
                }
            }
        }
        if thread == 0 && runs() {
            self.0.break_off();
        }
        stacks.is_some()
    }

    fn ended(&self, thread: usize) {
        if thread == 0 {
            self.0.want(false);
        }
    }
}

/// What tells a worker to do something.
struct Heard {
    signals: Signals,
    lifeline: Arc<Lifeline>,
    config: Arc<Config>,
    access: Option<Arc<AccessLog>>,
    logger: Option<Arc<Logger>>,
    interrupts: Interrupts,
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
                reopen_python_logs(self.logger.clone());
                Directive::Continue
            }
        }
    }
}

fn start_loop(plan: Plan, arbiter: Arc<Waker>, mut heard: Heard) -> std::io::Result<EventLoop> {
    let signals = heard.signals.as_fd().try_clone_to_owned()?;
    let lifeline = heard.lifeline.as_fd().try_clone_to_owned()?;
    let control = Box::new(move |index| heard.directive(index));
    EventLoop::new(plan, arbiter, vec![signals, lifeline], control)
}

/// A log that cannot be opened, perhaps not by this user, stays where it is; `level` says how much that matters.
fn reopen_logs(config: &Config, access: Option<&AccessLog>, level: Level) {
    if let Err(e) = init(config) {
        log::log!(level, "Cannot reopen the error log: {e} (--error-logfile)");
    }
    if let Some(Err(e)) = access.map(AccessLog::reopen) {
        log::log!(level, "Cannot reopen the access log: {e} (--access-logfile)");
    }
}

/// In a thread of its own, as the loop must not wait for the interpreter.
fn reopen_python_logs(logger: Option<Arc<Logger>>) {
    let reopen = move || Python::attach(|py| logger::reopen_files(py, logger.as_deref(), Level::Error));
    if let Err(e) = std::thread::Builder::new().name("reopen".into()).spawn(reopen) {
        log::error!("Cannot reopen the log files of Python's logging: {e}");
    }
}

/// Runs the loop in every thread of the worker; returns when it has stopped in this one.
fn lead_threads(py: Python<'_>, event_loop: EventLoop, app: Arc<WsgiApp>) -> Result<(), i32> {
    let event_loop = Arc::new(event_loop);
    // It lives as long as the process, which ends without taking anything apart.
    let kept: &'static Arc<EventLoop> = Box::leak(Box::new(event_loop.clone()));
    crash::set_scene(&**kept);
    start_helper(&event_loop).map_err(|e| boot_failed(py, &PyErr::from(e)))?;
    if event_loop.threads() == 1 {
        let mut caller = app.caller(0);
        event_loop.run(0, &mut *caller);
        return Ok(());
    }
    for thread in 1..event_loop.threads() {
        let (event_loop, app) = (event_loop.clone(), app.clone());
        let name = format!("rgunicorn-{thread}");
        python::spawn_thread(py, &name, move |py| {
            py.detach(|| event_loop.run(thread, &mut *app.caller(thread)));
        })
        .map_err(|e| boot_failed(py, &e))?;
    }
    py.detach(|| event_loop.run(0, &mut *app.caller(0)));
    Ok(())
}

fn start_helper(event_loop: &Arc<EventLoop>) -> std::io::Result<()> {
    let event_loop = event_loop.clone();
    std::thread::Builder::new().name("helper".into()).spawn(move || {
        guard_stack();
        event_loop.help();
    })?;
    Ok(())
}
