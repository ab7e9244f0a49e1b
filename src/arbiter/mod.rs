//! Owns: supervision. The arbiter binds, forks, watches, replaces; `turn` is its whole policy on one screen.
//! Rule: it never runs the application nor reads a client's octet; single-threaded; it sleeps until a signal, a worker's
//! word or a deadline. Once a worker has been ready, nothing but a stop signal ends it.
//! Never: http, conn, wsgi, threads.

pub mod asker;
mod bequest;
mod blame;
pub mod children;
mod code;
mod control;
mod death;
mod generation;
mod hooks;
mod kin;
mod logs;
mod oom;
mod operators;
mod origin;
mod raw_env;
mod reaping;
mod reload;
mod setup;
mod spawn;
mod start;
mod stop;
mod upgrade;
mod wakers;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use log::Level;
use pyo3::prelude::*;

pub use self::start::run;

use self::asker::Askers;
use self::children::{Child, Children, Life, Stage, BACKSTOP};
use self::code::Code;
use self::control::Control;
use self::death::{Coroner, Deceased, Role};
use self::generation::Generation;
use self::logs::Metrics;
use self::origin::Origin;
use self::raw_env::RawEnv;
use self::reload::Reload;
use self::spawn::Which;
use self::upgrade::Beside;
use self::wakers::Wakers;
use crate::daemon::PidFile;
use crate::defect;
use crate::handoff::Mailbox;
use crate::hooks::Server;
use crate::identity::Identity;
use crate::launch::Launch;
use crate::mold::{Mold, MoldSeed};
use crate::python::{self, Interrupts};
use crate::scoreboard::{Notice, Phase};
use crate::sys::child::{Ending, Handle};
use crate::sys::clock::{self, Nanos, Vigil, SECOND};
use crate::sys::poll::{wait_each, Interest};
use crate::sys::signal::{self, Signals};
use crate::systemd::Service;
use crate::tls::tickets::Rotation;
use crate::worker::{Lifeline, Seed, APP_NOT_FOUND, BOOT_FAILED, EXIT_TIME};

/// What workers are given to end a request themselves, after a time in which the arbiter did not run.
const MERCY: Nanos = BACKSTOP + SECOND;

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
    wakers: Wakers,
    /// There is more to do at once.
    hurry: bool,
    /// When it was looked last whether there is something to do.
    looked: Nanos,
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
    tickets: Rotation,
    metrics: Metrics,
    control: Control,
}

impl Arbiter {
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
        defect::planted("arbiter");
        // Python calls handlers of signals, which a configuration file may have set, wherever it likes.
        python::returned(py, None, || "the arbiter".into());
        for signal in self.signals.pending() {
            self.obey(py, signal)?;
        }
        let now = clock::monotonic();
        self.looked = now;
        self.coroner.follow(now);
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
        self.tickets.turn(now);
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
            signal::SIGTTIN => self.resize(py, self.wanted + 1),
            signal::SIGTTOU => self.resize(py, self.wanted.saturating_sub(1).max(1)),
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
            // One that has ended will be reaped.
            let _ = child.process.signal(signal);
        }
    }

    fn signal_worker(&self, pid: i32, signal: i32) {
        if let Some(child) = self.children.iter().find(|child| child.pid == pid) {
            let _ = child.process.signal(signal);
        }
    }

    // ---- the dead

    fn worker_died(&mut self, py: Python<'_>, child: &Child, ending: Ending, now: Nanos) -> Flow {
        let told = self.bury(child, ending, now);
        let is_new = self.reload.as_ref().is_some_and(|next| next.generation.number == child.generation);
        if (is_new || !child.has_been_ready()) && !told {
            self.boot_failed(py, child.generation, ending)?;
        }
        self.tell_of_end(py, child);
        ControlFlow::Continue(())
    }

    /// Says why a worker died and what it was running; returns whether it had been told to go.
    fn bury(&mut self, child: &Child, ending: Ending, now: Nanos) -> bool {
        self.control.count_ended(child);
        let Child { pid, born, slot, .. } = child;
        let told = matches!(child.stage, Stage::Killed | Stage::Draining { .. })
            || slot.phase() == Phase::Draining
            || slot.leaves();
        let facts = self.coroner.facts(
            &Deceased {
                role: Role::Worker,
                pid: *pid,
                born: *born,
                ending,
                told,
                has_been_ready: child.has_been_ready(),
                given_up: false,
                slot: Some(slot),
            },
            now,
        );
        let undone = slot.in_flight();
        let level = match told && ending == Ending::Exited(0) {
            true if undone.is_empty() => Level::Debug,
            true => Level::Info,
            false => Level::Error,
        };
        log::log!(level, "{}", death::sentence(*pid, &facts));
        for request in undone {
            log::log!(level, "{}", death::victim(&request, now));
        }
        told
    }

    fn bury_mold(&mut self, mold: &Mold, given_up: bool, ending: Ending, now: Nanos) {
        let facts = self.coroner.facts(
            &Deceased {
                role: Role::Mold,
                pid: mold.pid,
                born: mold.born,
                ending,
                told: false,
                has_been_ready: mold.was_ready(),
                given_up,
                slot: None,
            },
            now,
        );
        log::error!("{}", death::sentence(mold.pid, &facts));
    }

    fn other_died(&mut self, py: Python<'_>, pid: i32, ending: Ending, now: Nanos) -> Flow {
        let is_mold = |generation: &Generation| generation.mold.as_ref().is_some_and(|mold| mold.pid == pid);
        if is_mold(&self.current) {
            if let Some(mut mold) = self.current.mold.take() {
                let given_up = mold.is_given_up();
                mold.set_reaped();
                self.bury_mold(&mold, given_up, ending, now);
                let was_ready = mold.was_ready();
                let stable = was_ready && children::is_old(mold.born, now);
                self.children.backoff.died(Life::of(stable, was_ready), now);
                if !was_ready {
                    return self.boot_failed(py, self.current.number, ending);
                }
            }
        } else if let Some(next) = self.reload.as_mut().filter(|reload| is_mold(&reload.generation)) {
            let why = format!("its mold {}", next.generation.why(ending));
            if let Some(mut mold) = next.generation.mold.take() {
                let given_up = mold.is_given_up();
                mold.set_reaped();
                self.bury_mold(&mold, given_up, ending, now);
            }
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
        self.signal_worker(pid, signal::SIGTERM);
        self.children.set_stage(pid, Stage::Draining { since: clock::monotonic() });
    }

    fn kill_stuck(&mut self, now: Nanos) {
        if self.vigil.wake(now) > 0 {
            self.vigil.hold(now, MERCY);
        }
        if self.vigil.held(now).is_some() {
            return;
        }
        let graceful = self.time_to_leave();
        if let Some(timeout) = self.timeout() {
            for pid in self.children.overdue(timeout, now) {
                crate::log::critical(format_args!("WORKER TIMEOUT (pid:{pid})"));
                self.kill(pid, "does not end a request that runs too long (--timeout)");
            }
        }
        for pid in self.timeout().map_or(Vec::new(), |timeout| self.children.halted(timeout, now)) {
            self.kill(pid, "has been stopped for too long (--timeout)");
        }
        for pid in self.children.undrained(graceful, now) {
            self.kill(pid, "did not finish in time (--graceful-timeout)");
        }
    }

    fn kill(&mut self, pid: i32, why: &'static str) {
        log::error!("Killing worker (pid:{pid}), which {why}");
        self.coroner.killed(pid, why);
        self.control.count_killed();
        self.signal_worker(pid, signal::SIGKILL);
        self.children.set_stage(pid, Stage::Killed);
    }

    // ---- time

    fn timeout(&self) -> Option<Nanos> {
        Some(self.current.config.timeout.as_nanos() as Nanos).filter(|timeout| *timeout > 0)
    }

    fn graceful_timeout(&self) -> Nanos {
        self.current.config.graceful_timeout.as_nanos() as Nanos
    }

    /// Of a worker that was told to go: for its requests, then to end as a program.
    fn time_to_leave(&self) -> Nanos {
        self.graceful_timeout() + EXIT_TIME
    }

    fn wait(&mut self, py: Python<'_>) {
        let hurry = std::mem::take(&mut self.hurry).then_some(0);
        let now = clock::monotonic();
        let mut until = self.children.next_deadline(self.timeout(), self.time_to_leave(), now);
        if let Some(over) = self.children.backoff.ends_after(self.looked).filter(|_| self.lacks_processes()) {
            until = Some(until.unwrap_or(Nanos::MAX).min(over));
        }
        if let Some(held) = self.vigil.held(now) {
            until = until.map(|until| until.max(held));
        }
        self.wakers.forget();
        let deadlines = [
            self.wakers.deadline(now),
            self.service.deadline(),
            self.beside.deadline(now),
            self.next_measure(),
            self.reload.as_ref().map(Reload::deadline),
            self.relieved,
            self.code_deadline(),
            self.control.deadline(),
            self.current.tls.as_ref().map(|_| self.tickets.due()),
        ];
        let until = until.into_iter().chain(deadlines.into_iter().flatten()).min();
        self.vigil.plan(until.unwrap_or(0));
        let molds = [Some(&self.current), self.reload.as_ref().map(|reload| &reload.generation)];
        let booting = molds.into_iter().flatten().filter_map(|generation| generation.mold.as_ref());
        let mut fds: Vec<BorrowedFd<'_>> = self.wakers.waits(now).collect();
        let wakers = fds.len();
        fds.push(self.signals.as_fd());
        fds.extend(booting.map(AsFd::as_fd));
        fds.extend(self.beside.waits());
        // Who comes before the last reload is quite over is heard afterwards.
        let heard = self.askers.as_ref().filter(|_| self.relieved.is_none());
        fds.extend(heard.into_iter().flat_map(Askers::waits));
        fds.extend(self.code_fds());
        fds.extend(self.coroner.waits());
        fds.extend(self.processes().filter_map(Handle::waits));
        let waits = fds.into_iter().map(|fd| (fd, Interest::Read)).chain(self.control.waits());
        let waits: Vec<_> = waits.collect();
        let patience = hurry.or(until.map(|until| until.saturating_sub(now)));
        match py.detach(|| wait_each(waits.into_iter(), patience)) {
            Ok(ready) => self.hear_wakers(now, &ready[..wakers]),
            Err(e) => log::error!("Cannot wait: {e}"),
        }
    }

    fn hear_wakers(&mut self, before: Nanos, woken: &[bool]) {
        for (role, pid) in self.wakers.hear(before, woken, clock::monotonic()) {
            log::warn!(
                "{role} (pid:{pid}) wakes the arbiter without an end, and is heard once a second from now on"
            );
        }
    }
}
