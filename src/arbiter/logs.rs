//! Owns: where the arbiter's lines go, what it hands on to its children, and the metrics that only it can tell.
//! Rule: a configuration of logging that cannot be used ends a server that starts, and refuses a reload; then the one
//! before is put back as it was.
//! Never: writes a line.

use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;

use super::generation::Setup;
use super::setup::hand_over_logs;
use super::Arbiter;
use crate::config::Config;
use crate::error::Error;
use crate::hooks::Hooks;
use crate::log::{self, Routes};
use crate::logger::{self, Logger};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::{signal, socket};

/// Between two looks at how many connections wait.
const LOOK: Nanos = SECOND;

/// From now on lines go where the configuration says, which was read in `folder`.
///
/// Errors: a sentence that names the setting; lines may go anywhere until `restore`.
pub fn take_up(py: Python<'_>, folder: &Path, setup: &Setup) -> Result<(), Error> {
    route(py, setup).map_err(|error| super::blame::locate(py, folder, error))
}

/// Whether `take_up` will succeed, as far as one can tell.
pub fn check(py: Python<'_>, folder: &Path, setup: &Setup) -> Result<(), Error> {
    let made = setup.hooks.new_logger(py, &setup.config);
    made.map(drop).map_err(|error| super::blame::locate(py, folder, error))
}

fn route(py: Python<'_>, setup: &Setup) -> Result<(), Error> {
    let Setup { config, hooks, warnings } = setup;
    match hooks.new_logger(py, config)? {
        Some(logger) => {
            logger.take_lines();
            hooks.set_logger(logger);
        }
        None => {
            log::route(Routes::native(config)?, config.loglevel);
            logger::bridge(py, config);
        }
    }
    warnings.iter().for_each(|warning| ::log::warn!("{warning}"));
    Ok(())
}

/// Puts back what another configuration, which failed, may have changed.
fn restore(py: Python<'_>, config: &Config, hooks: &Hooks) {
    log::take_up(config);
    let Some(logger) = hooks.logger() else {
        let routes = Routes::native(config).unwrap_or_else(|e| {
            ::log::error!("{e}");
            Routes::default()
        });
        log::route(routes, config.loglevel);
        return logger::bridge(py, config);
    };
    logger.restore(py);
    logger.take_lines();
}

/// What has been told, so that only changes are.
#[derive(Default)]
pub struct Metrics {
    workers: Option<usize>,
    /// When to look at the backlog.
    look_at: Nanos,
}

impl Arbiter {
    pub(super) fn restore_logs(&self, py: Python<'_>) {
        restore(py, &self.current.config, &self.current.hooks);
    }

    pub(super) fn reopen_logs(&self, py: Python<'_>) {
        log::take_up(&self.current.config);
        logger::reopen_files(py, self.logger().map(Arc::as_ref), ::log::Level::Error);
        hand_over_logs(&self.current.config, self.identity.as_ref());
        self.signal_all(signal::SIGUSR1);
    }

    fn logger(&self) -> Option<&Arc<Logger>> {
        self.current.hooks.logger()
    }

    /// How many workers there are, when that has changed, and how many connections wait.
    pub(super) fn measure(&mut self, py: Python<'_>, now: Nanos) {
        let workers = self.children.iter().count();
        if self.metrics.workers.replace(workers) != Some(workers) {
            self.tell_metric(py, Metric::Workers(workers));
        }
        if self.watches_backlog() && self.metrics.look_at <= now {
            self.metrics.look_at = now + LOOK;
            let listeners = &self.current.listeners;
            // Not TCP, and so without a number.
            let waiting = listeners.iter().filter_map(|listener| socket::backlog(&**listener).ok());
            let waiting = waiting.map(u64::from).sum();
            self.tell_metric(py, Metric::Backlog(waiting));
        }
    }

    fn watches_backlog(&self) -> bool {
        self.current.config.logging.statsd.as_ref().is_some_and(|statsd| statsd.backlog)
    }

    /// When `measure` has something to do without anything happening.
    pub(super) fn next_measure(&self) -> Option<Nanos> {
        self.watches_backlog().then_some(self.metrics.look_at)
    }

    fn tell_metric(&self, py: Python<'_>, metric: Metric) {
        if let Some(logger) = self.logger() {
            return match metric {
                Metric::Workers(count) => {
                    logger.metric(
                        py,
                        &format!("{count} workers"),
                        ("gunicorn.workers", count as u64, "gauge"),
                    );
                }
                Metric::Backlog(count) => {
                    let text = format!("socket backlog: {count}");
                    logger.metric(py, &text, ("gunicorn.backlog", count, "histogram"));
                }
            };
        }
        if let Some(statsd) = log::routes().statsd {
            match metric {
                Metric::Workers(count) => statsd.workers(count),
                Metric::Backlog(count) => statsd.waiting(count),
            }
        }
    }
}

enum Metric {
    Workers(usize),
    Backlog(u64),
}
