//! Owns: supervision. The arbiter binds, forks, watches, replaces; `run` is its whole policy on one screen.
//! Rule: it never runs the application nor reads a client's octet; single-threaded; it sleeps until a signal, a worker's
//! word or a deadline. Once a worker has been ready, nothing but a stop signal ends it.
//! Never: http, conn, wsgi, threads.

pub mod asker;
mod blame;
pub mod children;
mod code;
mod control;
mod death;
mod generation;
mod hooks;
mod kin;
mod logs;
mod operators;
mod raw_env;
mod reload;
mod spawn;
mod stop;
mod upgrade;

use std::io::Write;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use self::asker::Askers;
use self::children::{Child, Children, Life, Stage, BACKSTOP};
use self::code::Code;
use self::control::Control;
use self::death::Coroner;
use self::generation::{Generation, Ground, Setup, Tries};
use self::logs::Metrics;
use self::raw_env::RawEnv;
use self::reload::Reload;
use self::spawn::Which;
use self::upgrade::{Beside, Inheritance, Origin};
use crate::config::{self, Config, Loaded};
use crate::daemon::{self, PidFile};
use crate::error::{self, Error};
use crate::handoff::Mailbox;
use crate::hooks::{Hooks, Server};
use crate::identity::Identity;
use crate::launch::Launch;
use crate::mold::MoldSeed;
use crate::python::{self, Interrupts};
use crate::scoreboard::{Notice, Phase};
use crate::sys::clock::{self, Nanos, Vigil, SECOND};
use crate::sys::poll::{wait_each, Interest, Waker};
use crate::sys::process::{self, Ending};
use crate::sys::signal::{self, Blocked, Signals};
use crate::sys::socket;
use crate::systemd::{self, Service};
use crate::tls::Context;
use crate::worker::{Lifeline, Seed, APP_NOT_FOUND, BOOT_FAILED};

/// What workers are given to end a request themselves, after a time in which the arbiter did not run.
const MERCY: Nanos = BACKSTOP + SECOND;

const HEARD: [i32; 10] = [
    signal::SIGCHLD,
    signal::SIGTERM,
    signal::SIGINT,
    signal::SIGQUIT,
    signal::SIGHUP,
    signal::SIGUSR1,
    signal::SIGUSR2,
    signal::SIGTTIN,
    signal::SIGTTOU,
    signal::SIGWINCH,
];

/// How a process leaves `run`: as the arbiter, done, or as what it forked.
pub enum Outcome {
    Exit(i32),
    Worker(Box<Seed>),
    Mold(Box<MoldSeed>),
}

/// What ends the arbiter's loop.
type Flow = ControlFlow<Outcome>;

pub struct Arbiter {
    launch: Arc<Launch>,
    start_folder: PathBuf,
    origin: Origin,
    signals: Signals,
    interrupts: Interrupts,
    waker: Arc<Waker>,
    /// There is more to do at once. Not said by the waker, which workers have too and could have filled.
    hurry: bool,
    /// Where workers of all generations leave connections for one another.
    mailbox: Arc<Mailbox>,
    notice: Arc<Notice>,
    /// Workers hold the first, the arbiter alone the second.
    lifeline: Arc<Lifeline>,
    _alive: std::os::fd::OwnedFd,
    children: Children,
    vigil: Vigil,
    /// Knows why they died.
    coroner: Coroner,
    /// What hooks are given, and where they find `raw_env`.
    server: Arc<Server>,
    raw_env: RawEnv,
    current: Generation,
    reload: Option<Reload>,
    code: Code,
    /// How many workers there should be; TTIN and TTOU move it.
    wanted: usize,
    next_age: u64,
    next_generation: u64,
    ever_ready: bool,
    daemonized: bool,
    /// The server that replaces this one, or that it replaces.
    beside: Beside,
    pidfile: Option<PidFile>,
    /// Beside it.
    askers: Option<Askers>,
    /// When they are told, at the latest, that a reload is complete.
    relieved: Option<Nanos>,
    service: Service,
    /// Listeners that the service manager has opened; they take the place of `bind`.
    passed: Vec<RawFd>,
    /// As whom workers run, if not as we do.
    identity: Option<Identity>,
    metrics: Metrics,
    control: Control,
}

/// Starts the server and supervises it until it stops.
///
/// Errors: anything that keeps it from starting; nothing is left behind.
pub fn run(py: Python<'_>, launch: Launch) -> Result<Outcome, Error> {
    check_passed()?;
    let origin = Origin::of_this_process(py);
    let start_folder = daemon::start_folder().map_err(|e| Error::system("current folder", &e, "--chdir"))?;
    let setup = read_config(py, &launch, Reading::First, &start_folder)?;
    let config = &setup.config;
    let located = |error| blame::locate(py, &start_folder, error);
    code::check_extra_files(config, &start_folder).map_err(located)?;
    let identity = Identity::wanted(config).map_err(located)?;
    if config.print_config {
        // Whoever reads it may have seen enough.
        let _ = std::io::stdout().write_all(config.listing().as_bytes());
    }
    if config.check_config || config.print_config {
        return check(py, &launch, &start_folder, &setup);
    }
    launch.check(config)?;
    identity.iter().try_for_each(|identity| identity.permit(config)).map_err(located)?;
    let inheritance = Inheritance::take(&|name| std::env::var(name).ok())?;
    let manager = meet_manager(py).map_err(|e| Error::Other(format!("environment: {e}")))?;
    let mut arbiter =
        Arbiter::start(py, Start { launch, start_folder, origin, setup, identity, manager, inheritance })?;
    arbiter.show_name(py);
    arbiter.attend(py);
    log::info!("Listening at: {} ({})", arbiter.current.addresses(), process::id());
    let config = &arbiter.current.config;
    let (workers, threads) = (arbiter.wanted, config.threads);
    log::info!("Using worker: {} (workers: {workers}, threads in each: {threads})", config.worker_kind());
    match arbiter.announce_ready(py) {
        true => {
            arbiter.open_control();
            Ok(arbiter.supervise(py))
        }
        false => Ok(arbiter.give_up(py, 1)),
    }
}

/// Before anything is opened that could get such a number.
fn check_passed() -> Result<(), Error> {
    let passed = systemd::listeners(&|name| std::env::var(name).ok(), process::id());
    passed.into_iter().try_for_each(|fd| {
        socket::check(fd).map_err(|e| Error::system(&format!("bind fd://{fd}"), &e, "LISTEN_FDS"))
    })
}

/// What the server is started with.
struct Start {
    launch: Launch,
    start_folder: PathBuf,
    origin: Origin,
    setup: Setup,
    identity: Option<Identity>,
    manager: Manager,
    inheritance: Option<Inheritance>,
}

/// What the service manager gave us.
struct Manager {
    service: Service,
    passed: Vec<RawFd>,
}

/// Reads its part of the environment and takes it away: a child that found it there would speak in our name.
fn meet_manager(py: Python<'_>) -> PyResult<Manager> {
    let (env, pid) = (|name: &str| std::env::var(name).ok(), process::id());
    let manager = Manager { service: Service::new(&env, pid), passed: systemd::listeners(&env, pid) };
    let variables = systemd::VARIABLES.iter().chain(&upgrade::VARIABLES);
    variables.into_iter().try_for_each(|name| python::replace_env(py, name, None).map(drop))?;
    Ok(manager)
}

/// `--check-config`: the configuration is good by now; the certificate has to be, and the application has to load.
fn check(py: Python<'_>, launch: &Launch, start_folder: &Path, setup: &Setup) -> Result<Outcome, Error> {
    let config = &setup.config;
    launch.check(config)?;
    logs::take_up(py, start_folder, setup)?;
    config.tls.as_ref().map(Context::load).transpose()?;
    match crate::worker::load_app(py, launch, config) {
        Ok(_) => Ok(Outcome::Exit(0)),
        Err(_) => Ok(Outcome::Exit(1)),
    }
}

/// Whether a program has read its configuration already: it does when its object is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    First,
    Again,
}

/// Reads the configuration from the folder we were started in, then takes over what it says of the process: folder,
/// import path, error log.
fn read_config(
    py: Python<'_>,
    launch: &Launch,
    reading: Reading,
    start_folder: &PathBuf,
) -> Result<Setup, Error> {
    take_config(py, launch, reading, start_folder).map_err(|error| blame::locate(py, start_folder, error))
}

fn take_config(
    py: Python<'_>,
    launch: &Launch,
    reading: Reading,
    start_folder: &PathBuf,
) -> Result<Setup, Error> {
    enter(py, start_folder)?;
    let (loaded, given) = load_config(py, launch, reading)?;
    let mut config = loaded.config;
    if let Some(folder) = &config.chdir {
        enter(py, folder)?;
    }
    for folder in &config.pythonpath {
        python::add_path(py, folder).map_err(|e| Error::Other(format!("{folder}: {e} (--pythonpath)")))?;
    }
    crate::log::belong_to(Identity::wanted(&config)?);
    init_log(&config)?;
    let hooks = Arc::new(Hooks::resolve(py, &config, given.as_ref())?);
    if let Some(tls) = hooks.ssl_context(py, &config)? {
        config.tls = Some(tls);
    }
    Ok(Setup { config: Arc::new(config), hooks, warnings: loaded.warnings })
}

/// The configuration, and the names that it was made from where there are Python objects among them.
fn load_config<'py>(
    py: Python<'py>,
    launch: &Launch,
    reading: Reading,
) -> Result<(Loaded, Option<Bound<'py, PyDict>>), Error> {
    let env = |name: &str| std::env::var(name).ok();
    match launch {
        Launch::Command(args) => {
            let mut given = None;
            let loaded = config::load(args, &env, &mut python::config_reader(py, &mut given))?;
            Ok((loaded, given))
        }
        Launch::Program(program) => {
            if reading == Reading::Again {
                program.reload(py)?;
            }
            let (given, warnings) = program.settings(py)?;
            let mut loaded = config::load_set(python::values(&given), &env)?;
            loaded.warnings.splice(..0, warnings);
            Ok((loaded, Some(given)))
        }
    }
}

fn init_log(config: &Config) -> Result<(), Error> {
    crate::log::init(config).map_err(|e| {
        let file =
            config.settings().find(|(name, _)| *name == "errorlog").map(|(_, value)| value.to_string());
        config.wrong(
            "errorlog",
            format!("'{}' cannot be written: {}", file.unwrap_or_default(), error::reason(&e)),
        )
    })
}

/// Workers that are somebody else will have to reopen what was made here.
fn hand_over_logs(config: &Config, identity: Option<&Identity>) {
    if let Some(identity) = identity {
        let targets = config.accesslog.iter().chain([&config.errorlog]);
        targets.for_each(|target| crate::log::hand_over(target, identity));
    }
}

fn enter(py: Python<'_>, folder: &PathBuf) -> Result<(), Error> {
    let shown = folder.display().to_string();
    std::env::set_current_dir(folder)
        .map_err(|e| Error::system(&format!("folder {shown}"), &e, "--chdir"))?;
    python::add_path(py, &shown).map_err(|e| Error::Other(format!("{shown}: {e} (--chdir)")))
}

impl Arbiter {
    fn start(py: Python<'_>, with: Start) -> Result<Arbiter, Error> {
        let Start { launch, start_folder, origin, setup, identity, manager, mut inheritance } = with;
        let config = setup.config.clone();
        let system =
            |what: &'static str| move |e: std::io::Error| Error::system(what, &e, "the system's limits");
        if config.daemon && inheritance.is_none() {
            // While there is somebody to be told what is wrong with it.
            logs::check(py, &start_folder, &setup)?;
            daemon::detach(py, config.logging.enable_stdio_inheritance)?;
            // `-` means the standard error of the process as it is now.
            init_log(&config)?;
        }
        logs::take_up(py, &start_folder, &setup)?;
        log::info!("Starting rgunicorn {}", crate::version::VERSION);
        if !manager.passed.is_empty() && config.bind != Config::default().bind {
            log::warn!("The service manager has opened the listeners; bind is not used (LISTEN_FDS)");
        }
        hand_over_logs(&config, identity.as_ref());
        let mut raw_env = RawEnv::default();
        let prepared =
            raw_env.become_that(py, &config.raw_env).and_then(|()| Server::new(py, launch.program()));
        let server = prepared.map_err(|e| Error::Other(format!("cannot prepare hooks: {e} (--config)")))?;
        let create = if inheritance.is_some() { PidFile::create_second } else { PidFile::create };
        let pidfile = config.pidfile.as_deref().map(create).transpose()?;
        let askers = pidfile.as_ref().and_then(listen_for_askers);
        let interrupts = Interrupts::default();
        let signals = listen_to_signals(py, &interrupts).map_err(system("signal handlers"))?;
        // Not fatal: without it a worker of a mold would be reaped by init and missed by us.
        if let Err(e) = process::become_subreaper() {
            log::warn!("Cannot become a subreaper: {e}");
        }
        let (lifeline, alive) = process::pipe().map_err(system("lifeline pipe"))?;
        let waker = Arc::new(Waker::new().map_err(system("eventfd"))?);
        let mut service = manager.service;
        if inheritance.is_some() {
            service.hush();
        }
        let mailbox = inheritance.as_mut().and_then(|from| from.mailbox.take());
        let mailbox = Arc::new(mailbox.map_or_else(Mailbox::new, Ok).map_err(system("mailbox"))?);
        let notice = Notice::new().map_err(system("shared memory"))?;
        let daemonized = config.daemon;
        let ground = Ground {
            passed: &manager.passed,
            inherited: &[],
            identity: identity.as_ref(),
            start_folder: &start_folder,
        };
        let started = hooks::start(py, &server, &setup.hooks, config.workers);
        let manner = ground.manner(&config);
        let inherited = inheritance.as_mut().map(|from| from.listeners(&config, &manner));
        let inherited = started.and_then(|()| Ok(inherited.transpose()?.unwrap_or_default()));
        let first = inherited.and_then(|listeners| {
            let ground = Ground { inherited: &listeners, ..ground };
            Generation::new(1, setup, &ground, None, Tries::Several)
        });
        let current = match first {
            Ok(current) => current,
            Err(e) => {
                askers.iter().for_each(Askers::remove);
                pidfile.iter().for_each(PidFile::remove);
                return Err(e);
            }
        };
        if let Some(Err(e)) = identity.as_ref().map(Identity::limit_ourselves) {
            log::warn!("Cannot give up what only root can do and a server need not: {e} (--user)");
        }
        Ok(Arbiter {
            launch: Arc::new(launch),
            start_folder,
            origin,
            signals,
            interrupts,
            waker,
            hurry: false,
            mailbox,
            notice,
            lifeline: Arc::new(lifeline),
            _alive: alive,
            children: Children::default(),
            vigil: Vigil::default(),
            coroner: Coroner::new(),
            server: Arc::new(server),
            raw_env,
            wanted: current.config.workers,
            current,
            reload: None,
            code: Code::default(),
            next_age: 1,
            next_generation: 2,
            ever_ready: false,
            daemonized,
            beside: inheritance.map_or(Beside::Nobody, |from| Beside::Old(from.old)),
            pidfile,
            askers,
            relieved: None,
            service,
            passed: manager.passed,
            identity,
            metrics: Metrics::default(),
            control: Control::new(),
        })
    }

    fn supervise(&mut self, py: Python<'_>) -> Outcome {
        loop {
            match self.turn(py) {
                ControlFlow::Continue(()) => self.wait(py),
                ControlFlow::Break(outcome) => return outcome,
            }
        }
    }

    /// Everything that may need doing, in order.
    fn turn(&mut self, py: Python<'_>) -> Flow {
        for signal in self.signals.pending() {
            self.obey(py, signal)?;
        }
        let now = clock::monotonic();
        self.reap(py, now)?;
        for pid in self.children.observe(now) {
            log::info!("Worker ready (pid: {pid})");
        }
        self.ever_ready |= self.children.iter().any(|child| child.stage == Stage::Ready);
        self.hear_molds();
        self.hear_askers(py);
        self.follow_code(py, now);
        self.judge_reload(py, now);
        if self.hear_other(py, now) {
            return ControlFlow::Break(self.stop(py, stop::Manner::Graceful));
        }
        self.serve_control(py, now)?;
        self.tell_of_serving();
        self.service.serves(self.children.ready(self.current.number), self.wanted);
        self.service.live(now);
        self.measure(py, now);
        self.dismiss();
        self.answer_askers(now);
        self.kill_stuck(now);
        self.spawn_missing(py, now)
    }

    fn obey(&mut self, py: Python<'_>, signal: i32) -> Flow {
        if signal != signal::SIGCHLD {
            log::info!("Handling signal: {}", signal::name(signal));
        }
        match signal {
            signal::SIGTERM if self.puts_off_stop(clock::monotonic()) => {}
            signal::SIGTERM => return ControlFlow::Break(self.stop(py, stop::Manner::Graceful)),
            // As documented, it finishes the upgrade, and what is finished is not broken off.
            signal::SIGQUIT if self.beside.is_new_and_ready() => {
                return ControlFlow::Break(self.stop(py, stop::Manner::Graceful))
            }
            signal::SIGINT | signal::SIGQUIT => {
                return ControlFlow::Break(self.stop(py, stop::Manner::Quick))
            }
            signal::SIGHUP => self.start_reload(py),
            signal::SIGUSR1 => self.reopen_logs(py),
            signal::SIGTTIN => self.scale(py, self.wanted + 1),
            signal::SIGTTOU => self.scale(py, self.wanted.saturating_sub(1).max(1)),
            // A terminal that is resized sends it too.
            signal::SIGWINCH if self.daemonized || self.beside.is_new_and_ready() => self.end_workers(py),
            signal::SIGUSR2 => self.start_upgrade(py),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// Takes their READY out of the sockets, whoever waits for it: what stays there would keep `wait` from waiting.
    fn hear_molds(&mut self) {
        let next = self.reload.as_mut().and_then(|reload| reload.generation.mold.as_mut());
        for mold in self.current.mold.iter_mut().chain(next) {
            mold.listen();
        }
    }

    fn show_name(&self, py: Python<'_>) {
        let second = if self.beside.is_old() { ".2" } else { "" };
        python::set_title(py, "master", &format!("{}{second}", self.current.config.proc_name));
    }

    fn scale(&mut self, py: Python<'_>, wanted: usize) {
        let most = self.most_workers();
        if wanted > most {
            log::warn!("{most} workers are the most that this server was started for");
            return;
        }
        if wanted != self.wanted {
            let before = std::mem::replace(&mut self.wanted, wanted);
            self.tell_of_workers(py, Which::Current, wanted, before);
        }
    }

    /// What the scoreboard has slots for, when all are replaced at once.
    fn most_workers(&self) -> usize {
        self.current.board.slots() / 2
    }

    fn signal_all(&self, signal: i32) {
        for child in self.children.iter() {
            process::send_signal(child.pid, signal);
        }
    }

    // ---- the dead

    fn reap(&mut self, py: Python<'_>, now: Nanos) -> Flow {
        while let Some((pid, ending)) = process::reap() {
            match self.children.remove(pid, now) {
                Some(child) => self.worker_died(py, &child, ending, now)?,
                None => self.other_died(py, pid, ending, now)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn worker_died(&mut self, py: Python<'_>, child: &Child, ending: Ending, now: Nanos) -> Flow {
        self.control.count_ended(child);
        let pid = child.pid;
        let told = matches!(child.stage, Stage::Killed | Stage::Draining { .. })
            || child.slot.phase() == Phase::Draining;
        let facts = self.coroner.facts(child, ending, told, now);
        let line = death::sentence(pid, &facts);
        match ending {
            Ending::Exited(0) if told => log::debug!("{line}"),
            _ if told => log::info!("{line}"),
            _ => log::error!("{line}"),
        }
        for request in child.slot.in_flight() {
            log::error!("{}", death::victim(&request, now));
        }
        let is_new = self.reload.as_ref().is_some_and(|next| next.generation.number == child.generation);
        if (is_new || !child.has_been_ready()) && !told {
            self.boot_failed(py, child.generation, ending)?;
        }
        self.tell_of_end(py, child);
        ControlFlow::Continue(())
    }

    fn other_died(&mut self, py: Python<'_>, pid: i32, ending: Ending, now: Nanos) -> Flow {
        let is_mold = |generation: &Generation| generation.mold.as_ref().is_some_and(|mold| mold.pid == pid);
        if is_mold(&self.current) {
            log::error!("Mold (pid:{pid}) {ending}.");
            if let Some(mut mold) = self.current.mold.take() {
                mold.listen();
                let was_ready = mold.was_ready();
                let stable = was_ready && children::is_old(mold.born, now);
                self.children.backoff.died(Life::of(stable, was_ready), now);
                if !was_ready {
                    return self.boot_failed(py, self.current.number, ending);
                }
            }
        } else if let Some(next) = self.reload.as_ref().filter(|reload| is_mold(&reload.generation)) {
            let why = format!("its mold {}", next.generation.why(ending));
            self.abandon_reload(py, &why);
        } else if self.is_successor(pid) {
            if self.successor_died(py, pid, ending) {
                return ControlFlow::Break(self.stop(py, stop::Manner::Graceful));
            }
        } else {
            log::debug!("Reaped process {pid}, which {ending}");
        }
        ControlFlow::Continue(())
    }

    /// A worker, or a mold, that never became ready: fatal only for a server that never was.
    fn boot_failed(&mut self, py: Python<'_>, generation: u64, ending: Ending) -> Flow {
        if let Some(next) = self.reload.as_ref().filter(|reload| reload.generation.number == generation) {
            let why = format!("a new worker {}", next.generation.why(ending));
            self.abandon_reload(py, &why);
            return ControlFlow::Continue(());
        }
        let (code, reason) = match ending {
            Ending::Exited(APP_NOT_FOUND) => (APP_NOT_FOUND, "App failed to load."),
            Ending::Exited(BOOT_FAILED) => (BOOT_FAILED, "Worker failed to boot."),
            _ if self.children.backoff.is_hopeless() => (BOOT_FAILED, "Worker failed to boot."),
            _ => return ControlFlow::Continue(()),
        };
        if self.ever_ready {
            log::error!("{reason} The server goes on with {} worker(s).", self.children.ready(generation));
            return ControlFlow::Continue(());
        }
        log::error!("Shutting down: Master");
        log::error!("Reason: {reason}");
        ControlFlow::Break(self.give_up(py, code))
    }

    // ---- the living

    /// Tells workers to go that are one too many, or whose replacement is ready.
    fn dismiss(&mut self) {
        for pid in self.children.dispensable(self.current.number, self.wanted) {
            self.drain(pid);
        }
        if self.reload.is_none() {
            for pid in self.children.outdated(self.current.number) {
                self.drain(pid);
            }
        }
    }

    fn drain(&mut self, pid: i32) {
        process::send_signal(pid, signal::SIGTERM);
        self.children.set_stage(pid, Stage::Draining { since: clock::monotonic() });
    }

    fn kill_stuck(&mut self, now: Nanos) {
        self.vigil.wake(now, MERCY);
        if self.vigil.held(now).is_some() {
            return;
        }
        let graceful = self.graceful_timeout();
        if let Some(timeout) = self.timeout() {
            for pid in self.children.overdue(timeout, now) {
                crate::log::critical(format_args!("WORKER TIMEOUT (pid:{pid})"));
                self.kill(pid, "does not end a request that runs too long (--timeout)");
            }
        }
        for pid in self.children.undrained(graceful, now) {
            self.kill(pid, "did not finish in time (--graceful-timeout)");
        }
    }

    fn kill(&mut self, pid: i32, why: &'static str) {
        log::error!("Killing worker (pid:{pid}), which {why}");
        self.coroner.killed(pid, why);
        self.control.count_killed();
        process::send_signal(pid, signal::SIGKILL);
        self.children.set_stage(pid, Stage::Killed);
    }

    // ---- time

    fn timeout(&self) -> Option<Nanos> {
        Some(self.current.config.timeout.as_nanos() as Nanos).filter(|timeout| *timeout > 0)
    }

    fn graceful_timeout(&self) -> Nanos {
        self.current.config.graceful_timeout.as_nanos() as Nanos
    }

    fn wait(&mut self, py: Python<'_>) {
        let hurry = std::mem::take(&mut self.hurry).then_some(0);
        let now = clock::monotonic();
        let mut until = self.children.next_deadline(self.timeout(), self.graceful_timeout(), now);
        if self.lacks_processes() && self.children.backoff.until() > now {
            until = Some(until.unwrap_or(Nanos::MAX).min(self.children.backoff.until()));
        }
        if let Some(held) = self.vigil.held(now) {
            until = until.map(|until| until.max(held));
        }
        let deadlines = [
            self.service.deadline(),
            self.beside.deadline(now),
            self.next_measure(),
            self.reload.as_ref().map(Reload::deadline),
            self.relieved,
            self.code_deadline(),
            self.control.deadline(),
        ];
        let until = until.into_iter().chain(deadlines.into_iter().flatten()).min();
        self.vigil.plan(until.unwrap_or(0));
        let molds = [Some(&self.current), self.reload.as_ref().map(|reload| &reload.generation)];
        let booting = molds.into_iter().flatten().filter_map(|generation| generation.mold.as_ref());
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.signals.as_fd(), self.waker.as_fd()];
        fds.extend(booting.map(AsFd::as_fd));
        fds.extend(self.beside.waits());
        // Who comes before the last reload is quite over is heard afterwards.
        let heard = self.askers.as_ref().filter(|_| self.relieved.is_none());
        fds.extend(heard.into_iter().flat_map(Askers::waits));
        fds.extend(self.code_fds());
        let waits = fds.into_iter().map(|fd| (fd, Interest::Read)).chain(self.control.waits());
        let waits: Vec<_> = waits.collect();
        let patience = hurry.or(until.map(|until| until.saturating_sub(now)));
        if let Err(e) = py.detach(|| wait_each(waits.into_iter(), patience)) {
            log::error!("Cannot wait: {e}");
        }
        self.waker.clear();
    }
}

/// Reloads go without the channel, but nobody can wait for them.
fn listen_for_askers(pidfile: &PidFile) -> Option<Askers> {
    let askers = Askers::listen(pidfile.path());
    askers
        .map_err(|e| log::warn!("Nobody can wait for a reload: {}.reload: {e}", pidfile.path().display()))
        .ok()
}

fn listen_to_signals(py: Python<'_>, interrupts: &Interrupts) -> std::io::Result<Signals> {
    signal::unblock_all()?;
    // One that comes in between is delivered to both.
    let _blocked = Blocked::all()?;
    interrupts.install(py, &HEARD).map_err(std::io::Error::from)?;
    Signals::new(&HEARD)
}
