//! Owns: the verified reload (HUP): a new generation boots beside the old one and takes over only when it is complete.
//! Rule: until every new worker is ready, and has stayed alive for a moment, nothing of the old generation changes;
//! whatever fails before that, the old one serves on, and the log and whoever asked for the reload are told why.
//! Never: touches a connection.

use pyo3::prelude::*;

use super::asker::{self, Askers};
use super::children::Child;
use super::generation::{Generation, Ground, Tries};
use super::setup::{self, hand_over_logs, read_config, Reading};
use super::{logs, Arbiter};
use crate::config::fixed_changes;
use crate::error::Error;
use crate::scoreboard::Phase;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::worker::QUIET;

/// How long all new workers have to be ready together before the old ones go: first without requests, then, beside the old
/// ones, with their share of them. An application that dies at once has done so by then.
const PROBATION: Nanos = QUIET + SECOND / 5;

/// How long an old worker is waited for before a reload is called complete; one that is in a request hears nothing before
/// its end, but accepts nothing either.
const RELIEF: Nanos = SECOND;

pub struct Reload {
    pub generation: Generation,
    /// How many workers it is to have.
    wanted: usize,
    /// When it has failed if the workers are not ready.
    until: Nanos,
    /// When they have proved themselves, once all are ready.
    proved: Option<Nanos>,
}

impl Reload {
    fn new(generation: Generation, now: Nanos) -> Reload {
        let limit = match generation.config.boot_timeout.as_nanos() {
            0 => Nanos::MAX,
            nanos => Nanos::try_from(nanos).unwrap_or(Nanos::MAX),
        };
        let wanted = generation.config.workers;
        Reload { generation, wanted, until: now.saturating_add(limit), proved: None }
    }

    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// When it may be over.
    pub fn deadline(&self) -> Nanos {
        self.proved.unwrap_or(self.until)
    }
}

impl Arbiter {
    /// Another HUP during a reload starts it over.
    pub(super) fn start_reload(&mut self, py: Python<'_>) {
        log::info!("Hang up: Master");
        self.code.forget_reload();
        self.begin_reload(py);
    }

    pub(super) fn begin_reload(&mut self, py: Python<'_>) {
        // The one before is complete, and its askers have nothing to do with this one.
        self.answer_askers(Nanos::MAX);
        if self.reload.is_some() {
            log::info!("The reload under way is overtaken by another one");
            self.drop_next_generation();
        }
        self.service.reloads(clock::monotonic());
        match self.next_generation(py) {
            Ok(generation) => {
                // Whoever has saved a file wants to see what comes of it, and at once.
                if !self.code.is_reloading() {
                    self.notice.set_proving(generation.number);
                }
                self.reload = Some(Reload::new(generation, clock::monotonic()));
                self.tell_of_reload(py);
            }
            Err(e) => {
                // First, as the new configuration may be one of logging that loses lines.
                self.restore_process(py);
                self.bring_back(py);
                log::error!("Reload failed, the old configuration stays: {e}");
                self.reload_ended(Err(e.to_string()));
            }
        }
    }

    fn next_generation(&mut self, py: Python<'_>) -> Result<Generation, Error> {
        self.raw_env.become_that(py, &[]).map_err(|e| Error::Other(format!("{e} (--env)")))?;
        let setup = read_config(py, &self.launch, Reading::Again, &self.start_folder)?;
        let config = &setup.config;
        self.launch.check(config)?;
        for name in fixed_changes(&self.current.config, config) {
            log::warn!("{name} changed; only a restart takes that over");
        }
        logs::take_up(py, &self.start_folder, &setup)?;
        hand_over_logs(config, self.identity.as_ref());
        let before = Some(&self.current);
        let ground = Ground {
            passed: &self.passed,
            inherited: &[],
            identity: self.identity.as_ref(),
            start_folder: &self.start_folder,
            tickets: self.tickets.keys(),
        };
        let generation = Generation::new(self.next_generation, setup, &ground, before, Tries::Once)?;
        self.next_generation += 1;
        Ok(generation)
    }

    /// Puts folder and log back to what the serving configuration says.
    fn restore_process(&self, py: Python<'_>) {
        let config = &self.current.config;
        if let Err(e) = setup::enter(py, &setup::folder(config, &self.start_folder)) {
            log::error!("{e}");
        }
        self.restore_logs(py);
    }

    /// Takes over when every new worker has proved itself.
    pub(super) fn judge_reload(&mut self, py: Python<'_>, now: Nanos) {
        let Some(reload) = &mut self.reload else {
            return;
        };
        let (ready, wanted) = (self.children.serving(reload.generation.number), reload.wanted());
        let probation = if self.code.is_reloading() { 0 } else { PROBATION };
        reload.proved = (ready >= wanted).then(|| reload.proved.unwrap_or(now + probation));
        match reload.proved {
            Some(proved) if proved <= now => self.complete_reload(py),
            None if reload.until <= now => {
                let seconds = reload.generation.config.boot_timeout.as_secs_f64();
                let why =
                    format!("{ready} of {wanted} new worker(s) ready within {seconds} s (--boot-timeout)");
                self.abandon_reload(py, &why);
            }
            _ => {}
        }
    }

    fn complete_reload(&mut self, py: Python<'_>) {
        if let Some(Reload { generation, wanted, .. }) = self.reload.take() {
            log::info!("Reload complete: {wanted} new worker(s) ready, the old ones drain");
            self.notice.set_proving(0);
            let before = std::mem::replace(&mut self.current, generation);
            self.unlink(&before, &self.current.listeners);
            self.wanted = wanted;
            self.mark_outdated();
            self.show_name(py);
            self.control.count_reload();
            self.open_control();
            self.reload_ended(Ok(()));
        }
    }

    /// Drops the new generation; the old one has not been touched.
    pub(super) fn abandon_reload(&mut self, py: Python<'_>, why: &str) {
        self.drop_next_generation();
        self.restore_logs(py);
        log::error!("Reload failed, the old workers serve on: {why}");
        self.bring_back(py);
        self.reload_ended(Err(why.to_string()));
    }

    /// More workers or fewer are wanted, of a reload under way too.
    pub(super) fn resize(&mut self, py: Python<'_>, wanted: usize) {
        let before = self.wanted;
        self.scale(py, wanted);
        if let Some(reload) = &mut self.reload {
            let most = reload.generation.board.slots() / 2;
            let resized = (reload.wanted + self.wanted).saturating_sub(before);
            reload.wanted = resized.clamp(1, most);
        }
    }

    /// WINCH: no worker is to be left, not of a reload under way either.
    pub(super) fn end_workers(&mut self, py: Python<'_>) {
        if self.reload.is_some() {
            log::info!("The reload under way is given up");
            self.drop_next_generation();
            self.reload_ended(Err("all workers were told to end (WINCH)".into()));
        }
        self.scale(py, 0);
    }

    /// Of a server whose workers were ended (WINCH), which HUP is to bring back: better the old ones than none.
    fn bring_back(&mut self, py: Python<'_>) {
        if self.wanted == 0 {
            self.scale(py, self.current.config.workers);
        }
    }

    /// Tells everybody who waits for it, with the reason where it has failed.
    fn reload_ended(&mut self, result: Result<(), String>) {
        let ready = self.children.serving(self.current.number);
        let how = match &result {
            Ok(()) => "Reload complete",
            Err(_) => "Reload failed, the old workers serve on",
        };
        let status = format!("{how}: {ready} of {} worker(s) ready", self.wanted);
        self.service.has_reloaded(&status, ready, self.wanted);
        match (result, &mut self.askers) {
            (Ok(()), Some(_)) => self.relieved = Some(clock::monotonic() + RELIEF),
            (Err(why), Some(askers)) => askers.answer(asker::FAILED, &format!("{status}\n{why}")),
            (_, None) => {}
        }
    }

    /// Answers those who asked for a reload that is complete, once the old workers accept nothing more.
    pub(super) fn answer_askers(&mut self, now: Nanos) {
        let number = self.current.number;
        let drains = |child: &Child| child.generation >= number || child.slot.phase() == Phase::Draining;
        let over = |until: &Nanos| *until <= now || self.children.iter().all(drains);
        if self.relieved.filter(over).is_none() {
            return;
        }
        self.relieved = None;
        let (ready, wanted) = (self.children.serving(number), self.wanted);
        if let Some(askers) = &mut self.askers {
            askers.answer(asker::DONE, &format!("Reload complete: {ready} of {wanted} worker(s) ready"));
        }
    }

    /// Whoever asks for a reload on the channel beside the pid file has it begin, as HUP does.
    pub(super) fn hear_askers(&mut self, py: Python<'_>) {
        if self.relieved.is_some() {
            // Those who come now want another reload than those who wait.
            return;
        }
        if self.askers.as_mut().is_some_and(Askers::hear) {
            self.start_reload(py);
        }
    }

    fn drop_next_generation(&mut self) {
        let Some(Reload { mut generation, .. }) = self.reload.take() else {
            return;
        };
        self.notice.set_proving(0);
        self.current.learn_from(&mut generation);
        self.unlink(&generation, &self.current.listeners);
        let new: Vec<i32> = self
            .children
            .iter()
            .filter(|child| child.generation == generation.number)
            .map(|c| c.pid)
            .collect();
        // Not killed: those that were ready have begun to serve.
        for pid in new {
            self.drain(pid);
        }
        if let Some(mold) = &mut generation.mold {
            mold.give_up();
        }
    }
}
