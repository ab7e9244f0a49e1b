//! Owns: the verified reload (HUP): a new generation boots beside the old one and takes over only when it is complete.
//! Rule: until every new worker is ready nothing of the old generation changes; whatever fails before that, the old one
//! serves on and the log says why.
//! Never: touches a connection.

use pyo3::prelude::*;

use super::generation::{Generation, Ground, Tries};
use super::{hand_over_logs, logs, read_config, Arbiter, Reading};
use crate::config::fixed_changes;
use crate::error::Error;
use crate::sys::{clock, process, signal};

pub struct Reload {
    pub generation: Generation,
}

impl Reload {
    pub fn wanted(&self) -> usize {
        self.generation.config.workers
    }
}

impl Arbiter {
    /// Another HUP during a reload starts it over.
    pub(super) fn start_reload(&mut self, py: Python<'_>) {
        if self.reload.is_some() {
            log::info!("The reload under way is overtaken by another one");
            self.drop_next_generation();
        }
        log::info!("Hang up: Master");
        self.service.reloads(clock::monotonic());
        match self.next_generation(py) {
            Ok(generation) => {
                self.reload = Some(Reload { generation });
                self.tell_of_reload(py);
            }
            Err(e) => {
                // First, as the new configuration may be one of logging that loses lines.
                self.restore_process(py);
                self.bring_back(py);
                log::error!("Reload failed, the old configuration stays: {e}");
                self.reload_ended("Reload failed, the old workers serve on");
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
        let ground = Ground { passed: &self.passed, inherited: &[], identity: self.identity.as_ref() };
        let generation = Generation::new(self.next_generation, setup, &ground, before, Tries::Once)?;
        self.next_generation += 1;
        Ok(generation)
    }

    /// Puts folder and log back to what the serving configuration says.
    fn restore_process(&self, py: Python<'_>) {
        let config = &self.current.config;
        let folder = config.chdir.as_ref().unwrap_or(&self.start_folder);
        if let Err(e) = super::enter(py, folder) {
            log::error!("{e}");
        }
        self.restore_logs(py);
    }

    /// Takes over when every new worker is ready.
    pub(super) fn judge_reload(&mut self, py: Python<'_>) {
        let complete = |reload: &Reload| self.children.ready(reload.generation.number) >= reload.wanted();
        if !self.reload.as_ref().is_some_and(complete) {
            return;
        }
        if let Some(Reload { generation }) = self.reload.take() {
            log::info!(
                "Reload complete: {} new worker(s) ready, the old ones drain",
                generation.config.workers
            );
            let before = std::mem::replace(&mut self.current, generation);
            self.unlink(&before, &self.current.listeners);
            self.wanted = self.current.config.workers;
            self.show_name(py);
            self.reload_ended("Reload complete");
        }
    }

    /// Drops the new generation; the old one has not been touched.
    pub(super) fn abandon_reload(&mut self, py: Python<'_>, why: &str) {
        self.drop_next_generation();
        self.restore_logs(py);
        log::error!("Reload failed, the old workers serve on: {why}");
        self.bring_back(py);
        self.reload_ended("Reload failed, the old workers serve on");
    }

    /// Of a server whose workers were ended (WINCH), which HUP is to bring back: better the old ones than none.
    fn bring_back(&mut self, py: Python<'_>) {
        if self.wanted == 0 {
            self.scale(py, self.current.config.workers);
        }
    }

    fn reload_ended(&mut self, how: &str) {
        let ready = self.children.ready(self.current.number);
        let status = format!("{how}: {ready} of {} worker(s) ready", self.wanted);
        self.service.has_reloaded(&status, ready, self.wanted);
    }

    fn drop_next_generation(&mut self) {
        let Some(Reload { generation }) = self.reload.take() else {
            return;
        };
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
        if let Some(mold) = &generation.mold {
            process::send_signal(mold.pid, signal::SIGKILL);
        }
    }
}
