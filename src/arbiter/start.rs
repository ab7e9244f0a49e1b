//! Owns: how a server begins: the command that only checks, what the service manager and an older server have left for it,
//! and the arbiter with everything that it stands on.
//! Rule: what keeps it from starting is said in a sentence, and nothing is left behind.
//! Never: forks a worker.

use std::io::Write;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;

use super::asker::Askers;
use super::bequest::{self, Inheritance};
use super::children::Children;
use super::code::{self, Code};
use super::control::Control;
use super::death::Coroner;
use super::generation::{Generation, Ground, Setup, Tries};
use super::logs::{self, Metrics};
use super::origin::Origin;
use super::raw_env::RawEnv;
use super::setup::{hand_over_logs, init_log, read_config, Reading};
use super::upgrade::Beside;
use super::wakers::Wakers;
use super::{blame, hooks, Arbiter, Outcome};
use crate::config::Config;
use crate::daemon::{self, PidFile};
use crate::error::Error;
use crate::handoff::Mailbox;
use crate::hooks::Server;
use crate::identity::Identity;
use crate::launch::Launch;
use crate::panic;
use crate::python::{self, Interrupts};
use crate::scoreboard::Notice;
use crate::sys::clock::Vigil;
use crate::sys::signal::{self, Blocked, Signals};
use crate::sys::{process, socket};
use crate::systemd::{self, Service};
use crate::tls::tickets::{Rotation, TicketKeys};
use crate::tls::Context;

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

/// Starts the server and supervises it until it stops.
///
/// Errors: anything that keeps it from starting; nothing is left behind.
pub fn run(py: Python<'_>, launch: Launch) -> Result<Outcome, Error> {
    // A program may have forked the process that calls this.
    python::mark(py).map_err(|e| Error::Other(format!("cannot watch forks: {e}")))?;
    check_passed()?;
    // A program may have enabled it with a file of its own.
    if launch.program().is_none() {
        python::get_behind_faulthandler(py).map_err(|e| Error::Other(format!("faulthandler: {e}")))?;
    }
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
            panic::ends("arbiter", || ());
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
    let variables = systemd::VARIABLES.iter().chain(&bequest::VARIABLES);
    variables.into_iter().try_for_each(|name| python::replace_env(py, name, None).map(drop))?;
    Ok(manager)
}

/// `--check-config`: the configuration is good by now; the certificate has to be, and the application has to load.
fn check(py: Python<'_>, launch: &Launch, start_folder: &Path, setup: &Setup) -> Result<Outcome, Error> {
    let config = &setup.config;
    launch.check(config)?;
    logs::take_up(py, start_folder, setup)?;
    if let Some(tls) = &config.tls {
        Context::load(tls, &Arc::new(ticket_keys()?))?;
    }
    match crate::worker::load_app(py, launch, config) {
        Ok(_) => Ok(Outcome::Exit(0)),
        Err(_) => Ok(Outcome::Exit(1)),
    }
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
        let mut service = manager.service;
        if inheritance.is_some() {
            service.hush();
        }
        let mailbox = inheritance.as_mut().and_then(|from| from.mailbox.take());
        let mailbox = Arc::new(mailbox.map_or_else(Mailbox::new, Ok).map_err(system("mailbox"))?);
        let notice = Notice::new().map_err(system("shared memory"))?;
        let tickets = Arc::new(ticket_keys()?);
        let daemonized = config.daemon;
        let ground = Ground {
            passed: &manager.passed,
            inherited: &[],
            identity: identity.as_ref(),
            start_folder: &start_folder,
            tickets: &tickets,
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
            wakers: Wakers::default(),
            hurry: false,
            looked: 0,
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
            tickets: Rotation::new(tickets),
            metrics: Metrics::default(),
            control: Control::new(),
        })
    }
}

fn ticket_keys() -> Result<TicketKeys, Error> {
    TicketKeys::new().map_err(|e| Error::system("keys of TLS session tickets", &e, "the system's limits"))
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
    interrupts
        .install(py, &HEARD)
        .and_then(|()| interrupts.leave_at_fork(py))
        .map_err(std::io::Error::from)?;
    Signals::new(&HEARD)
}
