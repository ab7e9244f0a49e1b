//! Owns: making processes: which generation lacks how many, a direct fork or one from its mold.
//! Rule: one process a turn, so that signals are heard in between; a fork that fails is tried again later, never fatal.
//! Never: decides when a worker has to go.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Once};

use pyo3::prelude::*;

use super::children::{Child, Stage};
use super::generation::Generation;
use super::{Arbiter, Flow, Outcome};
use crate::config::Config;
use crate::error::reason;
use crate::mold::{self, Answer, Mold, MoldSeed};
use crate::python::{self, Fork};
use crate::scoreboard::Slot;
use crate::sys::child::{self, Handle};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::Waker;
use crate::sys::process;
use crate::sys::signal::Blocked;
use crate::worker::{Heritage, Seed};

/// The generation that serves, or the one that a reload is preparing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Current,
    Next,
}

impl Arbiter {
    /// Forks what the generations lack, one worker a turn, so that signals are heard in between.
    pub(super) fn spawn_missing(&mut self, py: Python<'_>, now: Nanos) -> Flow {
        if self.children.backoff.pause(now) == 0 && self.lacks_processes() {
            self.spawn(py, Which::Current)?;
        }
        if let Some(reload) = &self.reload {
            if self.children.missing(reload.generation.number, reload.wanted()) > 0 {
                self.spawn(py, Which::Next)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// A mold that died is replaced while its workers serve, before one of them is missing.
    pub(super) fn lacks_processes(&self) -> bool {
        let has_no_mold = self.current.config.preload_app && self.current.mold.is_none();
        self.lacks_workers() || has_no_mold && self.wanted > 0
    }

    fn lacks_workers(&self) -> bool {
        self.children.missing(self.current.number, self.wanted) > 0
    }

    pub(super) fn generation(&mut self, which: Which) -> &mut Generation {
        match (which, &mut self.reload) {
            (Which::Next, Some(reload)) => &mut reload.generation,
            _ => &mut self.current,
        }
    }

    fn spawn(&mut self, py: Python<'_>, which: Which) -> Flow {
        let generation = self.generation(which);
        let mold_ready = generation.mold.as_ref().map(Mold::is_ready);
        let spawned = match (generation.config.preload_app, mold_ready) {
            (false, _) => self.fork_worker(py, which),
            (true, None) => self.fork_mold(py, which),
            (true, Some(true)) => self.mold_worker(py, which),
            (true, Some(false)) => return ControlFlow::Continue(()),
        };
        match spawned {
            Ok(None) => {
                // Another may be missing.
                self.hurry = true;
                ControlFlow::Continue(())
            }
            Ok(Some(outcome)) => ControlFlow::Break(outcome),
            Err(e) => {
                log::error!("Cannot fork: {e}");
                self.children.backoff.fork_failed(clock::monotonic());
                ControlFlow::Continue(())
            }
        }
    }

    /// In the child it is the worker's outcome.
    fn fork_worker(&mut self, py: Python<'_>, which: Which) -> io::Result<Option<Outcome>> {
        let slot = self.free_slot(which)?;
        slot.reset();
        let most_requests = most_requests(&self.generation(which).config);
        let Some(worker) = self.before_fork(py, which, &slot, most_requests)? else {
            return Ok(Some(self.give_up(py, 1)));
        };
        let waker = Arc::new(Waker::new()?);
        let blocked = Blocked::all()?;
        match python::fork(py).map_err(io::Error::from)? {
            Fork::Parent(pid) => {
                drop(blocked);
                self.adopt(py, which, pid, (slot, waker), &worker)?;
                Ok(None)
            }
            Fork::Child => {
                let (heritage, age) = (self.heritage(which, waker), self.next_age);
                let seed = Seed { heritage, slot, age, most_requests, worker: Some(worker), blocked };
                Ok(Some(Outcome::Worker(Box::new(seed))))
            }
        }
    }

    /// For a process of the generation, which wakes the arbiter by this.
    fn heritage(&mut self, which: Which, arbiter: Arc<Waker>) -> Heritage {
        let lifeline = self.lifeline.clone();
        let (mailbox, notice) = (self.mailbox.clone(), self.notice.clone());
        let (interrupts, server) = (self.interrupts.clone(), self.server.clone());
        let identity = self.identity.clone();
        let launch = self.launch.clone();
        let generation = self.generation(which);
        let (config, tls) = (generation.config.clone(), generation.tls.clone());
        let (hooks, listeners) = (generation.hooks.clone(), generation.listeners.clone());
        let report = generation.report.clone();
        let imports = generation.watch.as_ref().map(|watch| watch.journal().clone());
        Heritage {
            generation: generation.number,
            config,
            tls,
            listeners,
            mailbox,
            notice,
            lifeline,
            arbiter,
            interrupts,
            launch,
            hooks,
            server,
            report,
            identity,
            access: None,
            imports,
        }
    }

    fn fork_mold(&mut self, py: Python<'_>, which: Which) -> io::Result<Option<Outcome>> {
        self.enter(py, which)?;
        let (ours, theirs) = mold::sockets()?;
        let waker = Arc::new(Waker::new()?);
        let blocked = Blocked::all()?;
        match python::fork(py).map_err(io::Error::from)? {
            Fork::Parent(pid) => {
                drop(blocked);
                self.wakers.add(&waker, "Mold", pid);
                self.generation(which).mold = Some(Mold::new(handle(pid), ours, waker));
                Ok(None)
            }
            Fork::Child => {
                let (heritage, board) = (self.heritage(which, waker), self.generation(which).board.clone());
                let seed = MoldSeed { heritage, board, socket: theirs, blocked };
                Ok(Some(Outcome::Mold(Box::new(seed))))
            }
        }
    }

    fn mold_worker(&mut self, py: Python<'_>, which: Which) -> io::Result<Option<Outcome>> {
        let slot = self.free_slot(which)?;
        slot.reset();
        let most_requests = most_requests(&self.generation(which).config);
        let Some(worker) = self.before_fork(py, which, &slot, most_requests)? else {
            return Ok(Some(self.give_up(py, 1)));
        };
        let waker = Arc::new(Waker::new()?);
        match self.ask_mold(which, &slot, most_requests, &waker) {
            Some(Answer::Worker(pid)) => self.adopt(py, which, pid, (slot, waker), &worker).map(|()| None),
            Some(Answer::Refusal(e)) => Err(e),
            None => Ok(None),
        }
    }

    /// None when there is no mold to ask, any more; then another will be made.
    fn ask_mold(&mut self, which: Which, slot: &Slot, most_requests: u64, waker: &Waker) -> Option<Answer> {
        let age = self.next_age;
        let mut mold = self.generation(which).mold.take()?;
        let asked = mold.fork_worker(slot.index(), age, most_requests, waker);
        let answer = match asked {
            // The application runs in the mold: a number of its choice must not make us signal any process.
            Ok(Answer::Worker(pid)) if !self.is_new_child(pid, &mold) => {
                Err(io::Error::other(format!("it says that {pid} is a worker, which is not so")))
            }
            asked => asked,
        };
        if let Err(e) = &answer {
            log::error!("Mold (pid:{}) is of no use any more and is replaced: {e} (--preload)", mold.pid);
            mold.give_up();
        }
        self.generation(which).mold = Some(mold);
        answer.ok()
    }

    /// Whether a mold can have forked it: the arbiter has other children, the new server of an upgrade and those of hooks.
    fn is_new_child(&self, pid: i32, asked: &Mold) -> bool {
        let molds =
            [self.current.mold.as_ref(), self.reload.as_ref().and_then(|r| r.generation.mold.as_ref())];
        let is_mold = molds.into_iter().flatten().chain([asked]).any(|mold| mold.pid == pid);
        let is_known =
            is_mold || self.is_successor(pid) || self.children.iter().any(|child| child.pid == pid);
        let is_theirs = self.identity.as_ref().is_none_or(|one| process::acts_as(pid, one.owner().uid));
        child::is_child(pid) && is_theirs && !is_known
    }

    fn free_slot(&mut self, which: Which) -> io::Result<Slot> {
        let board = self.generation(which).board.clone();
        let free = (0..board.slots()).find(|index| !self.children.uses_slot(*index));
        free.map(|index| board.slot(index)).ok_or_else(|| io::Error::other("every worker slot is in use"))
    }

    fn adopt(
        &mut self,
        py: Python<'_>,
        which: Which,
        pid: i32,
        (slot, waker): (Slot, Arc<Waker>),
        worker: &Py<PyAny>,
    ) -> io::Result<()> {
        let process = handle(pid);
        self.wakers.add(&waker, "Worker", pid);
        let (age, born) = (self.next_age, clock::monotonic());
        self.next_age += 1;
        let generation = self.generation(which).number;
        let stage = Stage::Booting;
        self.children.add(Child { pid, process, waker, age, generation, slot, stage, born, stopped: None });
        Ok(self.server.add(py, pid, age, worker)?)
    }
}

/// Of a child that has just been forked and cannot have been reaped.
pub(super) fn handle(pid: i32) -> Handle {
    static SAID: Once = Once::new();
    Handle::open(pid).unwrap_or_else(|e| {
        SAID.call_once(|| {
            log::warn!("Children are signalled by their numbers, as they cannot be by pidfd: {}", reason(&e));
        });
        Handle::by_number(pid)
    })
}

/// With this worker's share of the jitter, so that workers do not retire together.
fn most_requests(config: &Config) -> u64 {
    match config.max_requests {
        0 => 0,
        most => most + fastrand::u64(0..=config.max_requests_jitter),
    }
}
