//! Owns: `reload` in the arbiter: what each generation's code depends on, and a new generation when it has changed.
//! Rule: each generation has its own watch, made before its first worker is. A change is an ordinary, verified reload; that
//! code which cannot be loaded shows its traceback is the workers' doing.
//! Never: reads the code; waits.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::generation::Generation;
use super::Arbiter;
use crate::config::{AppSpec, Config};
use crate::development;
use crate::error::Error;
use crate::sys::clock::{Nanos, SECOND};
use crate::watch::pattern::{self, Pattern};
use crate::watch::Watch;

/// Whatever goes on in the files, no more than so many reloads are started within that time.
const MOST_STARTS: usize = 20;
const WITHIN: Nanos = 10 * SECOND;

/// What is remembered from one generation to the next.
#[derive(Default)]
pub(super) struct Code {
    changed: BTreeSet<PathBuf>,
    starts: VecDeque<Nanos>,
    remark: String,
    /// The reload under way is for a change, and not for a signal.
    reloads: bool,
}

impl Code {
    /// From when on a reload may be started.
    fn allowed_from(&self) -> Nanos {
        match self.starts.len() < MOST_STARTS {
            true => 0,
            false => self.starts[0] + WITHIN,
        }
    }

    /// What has changed, if a reload is to be started for it now.
    fn take(&mut self, now: Nanos) -> Option<BTreeSet<PathBuf>> {
        if self.changed.is_empty() || now < self.allowed_from() {
            return None;
        }
        if self.starts.len() == MOST_STARTS {
            self.starts.pop_front();
        }
        self.starts.push_back(now);
        self.reloads = true;
        Some(std::mem::take(&mut self.changed))
    }

    /// The reload that is about to begin has another reason.
    pub(super) fn forget_reload(&mut self) {
        self.reloads = false;
    }

    /// Whether the reload under way is for a change.
    pub(super) fn is_reloading(&self) -> bool {
        self.reloads
    }

    fn deadline(&self) -> Option<Nanos> {
        (!self.changed.is_empty()).then(|| self.allowed_from())
    }

    /// Each generation finds the same; it is said once.
    fn tell(&mut self, remark: Option<String>) {
        if let Some(remark) = remark.filter(|remark| *remark != self.remark) {
            log::info!("reload: {remark} (--reload-engine)");
            self.remark = remark;
        }
    }
}

/// Errors: an extra file is not there, or a pattern is none.
pub(super) fn check_extra_files(config: &Config, start_folder: &Path) -> Result<(), Error> {
    for name in &config.reload_extra_files {
        let why = match pattern::is_pattern(name) {
            true => pattern::fault(name),
            false => (!start_folder.join(name).exists()).then(|| "there is no such file".to_string()),
        };
        if let Some(why) = why {
            return Err(config.wrong("reload_extra_files", format!("'{name}': {why}")));
        }
    }
    Ok(())
}

/// What a generation depends on before any of its workers runs; None without `reload`.
///
/// Errors: there is no memory for the journal.
pub(super) fn watch(config: &Config, start_folder: &Path) -> Result<Option<Watch>, Error> {
    let Some(engine) = config.reload else {
        return Ok(None);
    };
    let mut watch = Watch::new(engine).map_err(|e| Error::system("journal of imports", &e, "--reload"))?;
    for name in &config.reload_extra_files {
        match pattern::is_pattern(name) {
            true => watch.add_pattern(Pattern::new(start_folder, name)),
            false => watch.add(&start_folder.join(name)),
        }
    }
    if let Some(file) = &config.config_file {
        // `python:MODULE` is told of by the workers, who inherit the module.
        if !file.to_string_lossy().starts_with("python:") {
            watch.add(&start_folder.join(file.strip_prefix(".").unwrap_or(file)));
        }
    }
    if let Some(AppSpec::Paste(file)) = &config.app {
        watch.add(&file.path);
    }
    Ok(Some(watch))
}

impl Arbiter {
    /// Takes in what has changed, and starts a new generation once that has settled.
    pub(super) fn follow_code(&mut self, py: Python<'_>, now: Nanos) {
        let next = self.reload.as_mut().map(|reload| &mut reload.generation);
        for watch in next.into_iter().chain([&mut self.current]).filter_map(|one| one.watch.as_mut()) {
            watch.hear(now);
            self.code.tell(watch.remark());
            self.code.changed.extend(watch.settled(now));
        }
        if let Some(changed) = self.code.take(now) {
            self.code_changed(py, &changed);
        }
    }

    fn code_changed(&mut self, py: Python<'_>, changed: &BTreeSet<PathBuf>) {
        let Some(first) = changed.first().map(|path| path.display()) else {
            return;
        };
        match changed.len() - 1 {
            0 => log::info!("Worker reloading: {first} modified"),
            others => log::info!("Worker reloading: {first} modified, and {others} more"),
        }
        // The configuration file is run again, and what it imports may be among what has changed.
        if let Err(e) = development::forget(py) {
            log::error!("Cannot forget modules: {e} (--reload)");
        }
        self.begin_reload(py);
    }

    /// The workers of the generations before will know that it is their code that had to go (`worker_int`).
    pub(super) fn mark_outdated(&self) {
        if self.code.reloads {
            let old = self.children.iter().filter(|child| child.generation != self.current.number);
            old.for_each(|child| child.slot.set_outdated());
        }
    }

    /// When there may be something to do that no descriptor tells of.
    pub(super) fn code_deadline(&self) -> Option<Nanos> {
        let watched = self.watches().filter_map(Watch::deadline);
        watched.chain(self.code.deadline()).min()
    }

    pub(super) fn code_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watches().filter_map(Watch::fd)
    }

    fn watches(&self) -> impl Iterator<Item = &Watch> {
        let next = self.reload.as_ref().map(|reload| &reload.generation);
        next.into_iter().chain([&self.current]).filter_map(|one| one.watch.as_ref())
    }
}

impl Generation {
    /// What a generation that never served depended on: its fault is fixed in one of these files.
    pub(super) fn learn_from(&mut self, abandoned: &mut Generation) {
        if let (Some(watch), Some(other)) = (&mut self.watch, abandoned.watch.take()) {
            watch.absorb(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_changes_is_no_storm_of_reloads() {
        let mut code = Code::default();
        assert_eq!((code.take(1), code.deadline()), (None, None));
        for at in 1..=MOST_STARTS as Nanos {
            code.changed.insert("a".into());
            assert!(code.take(at).is_some());
        }
        code.changed.insert("a".into());
        assert_eq!(code.take(WITHIN), None);
        assert_eq!(code.deadline(), Some(1 + WITHIN));
        assert!(code.take(1 + WITHIN).is_some());
        assert_eq!(code.deadline(), None);
        assert_eq!(code.allowed_from(), 2 + WITHIN);
    }
}
