//! Owns: the binary upgrade (USR2): a second server, started by the command that started this one, that has the same
//! listeners and is to take this one's place. Both sides of it are here; what passes between them is `bequest` and `kin`.
//! Rule: the old server goes on as if nothing had happened until it is told to stop, whatever becomes of the new one. Of
//! the two, whichever leaves leaves its idle connections to the other, and the files of their sockets.
//! Never: touches a connection.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use pyo3::prelude::*;

use super::bequest::Given;
use super::generation::Generation;
use super::kin::{Kin, Word};
use super::spawn::{self, Which};
use super::Arbiter;
use crate::daemon::PidFile;
use crate::hooks::Hook;
use crate::listener::Listener;
use crate::python::{self, traceback, Fork};
use crate::sys::child::{Ending, Handle};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::process;
use crate::sys::signal::Blocked;

/// How often a new server that hears nothing of the old one looks whether that is still its parent; and when it has heard
/// the end.
const LOOK: Nanos = SECOND;
const LOOK_AGAIN: Nanos = SECOND / 50;
/// What shells use for a command that cannot be run.
const CANNOT_RUN: i32 = 127;

/// The server beside this one, if there is one.
pub(super) enum Beside {
    Nobody,
    /// USR2 has started it.
    New(Successor),
    /// It has started us, and is our parent for as long as it lives.
    Old(Predecessor),
}

pub(super) struct Successor {
    pid: i32,
    process: Handle,
    kin: Kin,
    was_ready: bool,
    /// We have been told to stop, and wait for it so long.
    stop: Option<Nanos>,
}

pub(super) struct Predecessor {
    pid: i32,
    /// gunicorn does not talk.
    kin: Option<Kin>,
    /// It has left the service manager to us.
    left: bool,
}

impl Predecessor {
    pub(super) fn new(pid: i32, kin: Option<Kin>) -> Predecessor {
        Predecessor { pid, kin, left: false }
    }
}

impl Beside {
    fn kin(&mut self) -> Option<&mut Kin> {
        match self {
            Beside::Nobody => None,
            Beside::New(new) => Some(&mut new.kin),
            Beside::Old(old) => old.kin.as_mut(),
        }
    }

    pub(super) fn is_old(&self) -> bool {
        matches!(self, Beside::Old(_))
    }

    pub(super) fn is_new_and_ready(&self) -> bool {
        matches!(self, Beside::New(new) if new.kin.peer.serving > 0)
    }

    /// The new server, which is a child of ours.
    pub(super) fn child(&self) -> Option<&Handle> {
        match self {
            Beside::New(new) => Some(&new.process),
            Beside::Nobody | Beside::Old(_) => None,
        }
    }

    /// How many workers of it serve.
    fn serving(&mut self) -> usize {
        self.kin().map_or(0, |kin| kin.peer.serving)
    }

    pub(super) fn waits(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Beside::Nobody => None,
            Beside::New(new) => new.kin.waits(),
            Beside::Old(old) => old.kin.as_ref().and_then(Kin::waits),
        }
    }

    /// When there is something to be looked at that announces itself to nobody.
    pub(super) fn deadline(&self, now: Nanos) -> Option<Nanos> {
        match self {
            Beside::Nobody => None,
            Beside::New(new) => new.stop,
            Beside::Old(old) => {
                let ended = old.kin.as_ref().is_some_and(Kin::has_ended);
                Some(now + if ended { LOOK_AGAIN } else { LOOK })
            }
        }
    }
}

impl Arbiter {
    pub(super) fn start_upgrade(&mut self, py: Python<'_>) {
        match &self.beside {
            Beside::Nobody => {}
            Beside::New(new) => {
                return log::warn!("USR2 is ignored: an upgrade is under way already (pid: {})", new.pid)
            }
            Beside::Old(old) => {
                return log::warn!("USR2 is ignored: {} has not ended, which this server replaces", old.pid)
            }
        }
        match self.fork_successor(py) {
            Ok(new) => {
                log::info!("Started a new server beside this one (pid: {})", new.pid);
                self.show_kin(py, 0, new.pid);
                self.beside = Beside::New(new);
            }
            Err(e) => log::error!("Cannot start a new server: {e} (USR2)"),
        }
    }

    fn fork_successor(&mut self, py: Python<'_>) -> io::Result<Successor> {
        let (ours, theirs) = process::message_pair()?;
        let parent = process::id();
        let blocked = Blocked::all()?;
        match python::fork(py).map_err(io::Error::from)? {
            Fork::Parent(pid) => {
                drop(blocked);
                let process = spawn::handle(pid);
                Ok(Successor { pid, process, kin: Kin::new(ours), was_ready: false, stop: None })
            }
            Fork::Child => {
                let Err(why) = self.become_successor(py, parent, &theirs);
                log::error!("{why} (USR2)");
                python::flush(py);
                process::exit_now(CANNOT_RUN)
            }
        }
    }

    /// In the child, whose signals are blocked: the program that follows unblocks them when it has its own handlers.
    fn become_successor(&mut self, py: Python<'_>, parent: i32, kin: &OwnedFd) -> Result<Infallible, String> {
        let entered = self.enter(py, Which::Current);
        let called = entered.and_then(|()| self.server.call(py, &self.current.hooks, Hook::PreExec));
        called.map_err(|e| format!("Exception in pre_exec hook\n{}", traceback(py, &e)))?;
        python::flush(py);
        let given = Given {
            parent,
            listeners: &self.current.listeners,
            passed: self.passed.len(),
            kin: kin.as_fd(),
            mailbox: self.mailbox.ends(),
        };
        let program = self.origin.program.as_deref().ok_or("How this server was started cannot be told")?;
        let failed = |e: io::Error| format!("Cannot run {}: {e}", program.display());
        given.let_inherit().map_err(failed)?;
        std::env::set_current_dir(&self.start_folder).map_err(failed)?;
        let args = self.origin.args.iter().map(|word| CString::new(word.as_bytes()));
        let args = args.collect::<Result<Vec<_>, _>>().map_err(|e| failed(e.into()))?;
        process::replace(program, &args, &self.origin.env(&given)).map_err(failed)
    }

    /// Whether this is the new server's pid.
    pub(super) fn is_successor(&self, pid: i32) -> bool {
        matches!(&self.beside, Beside::New(new) if new.pid == pid)
    }

    /// The new server has ended. True when this one was only waiting for it to be ready, and is to stop.
    pub(super) fn successor_died(&mut self, py: Python<'_>, pid: i32, ending: Ending) -> bool {
        let before = std::mem::replace(&mut self.beside, Beside::Nobody);
        let stops = matches!(before, Beside::New(new) if new.stop.is_some());
        match ending {
            Ending::Exited(0) => log::info!("The new server (pid:{pid}) has stopped"),
            _ => log::error!("Upgrade failed: the new server (pid:{pid}) {ending}"),
        }
        if !stops {
            log::info!("This server goes on; USR2 starts another one");
        }
        self.show_kin(py, 0, 0);
        stops
    }

    /// TERM is obeyed when the new server can serve, but waited for no longer than requests are; a second one is not put off.
    pub(super) fn puts_off_stop(&mut self, now: Nanos) -> bool {
        let until = now.saturating_add(self.graceful_timeout());
        match &mut self.beside {
            Beside::New(new) if new.kin.peer.serving == 0 && new.stop.is_none() => {
                log::info!("Waiting for the new server (pid: {}) to be ready", new.pid);
                new.stop = Some(until);
                true
            }
            _ => false,
        }
    }

    fn stop_is_due(&self, now: Nanos) -> bool {
        match &self.beside {
            Beside::New(new) => new.stop.is_some_and(|until| new.kin.peer.serving > 0 || now >= until),
            _ => false,
        }
    }
}

impl Arbiter {
    /// Hears what the other server says; true when this one is to stop because of it.
    pub(super) fn hear_other(&mut self, py: Python<'_>, now: Nanos) -> bool {
        if let Some(kin) = self.beside.kin() {
            kin.hear();
        }
        match &mut self.beside {
            Beside::Nobody => {}
            Beside::New(new) => {
                let ready = new.kin.peer.serving;
                if ready > 0 && !std::mem::replace(&mut new.was_ready, true) {
                    log::info!("The new server is ready (pid: {}): TERM to one of the two ends it", new.pid);
                }
            }
            Beside::Old(old) => {
                let left = old.kin.as_ref().is_some_and(|kin| kin.peer.leaving);
                let speak = left && !std::mem::replace(&mut old.left, true);
                if process::parent() != old.pid {
                    self.promote(py);
                } else if speak {
                    self.service.speak(process::id());
                }
            }
        }
        self.stop_is_due(now)
    }

    /// Tells workers and the other server to whom connections can be left.
    pub(super) fn tell_of_serving(&mut self) {
        let serving = match self.children.staying(self.current.number, self.wanted) {
            // Better those on trial than none, when HUP brings back what WINCH has ended.
            0 => self.reload.as_ref().map_or(0, |next| self.children.ready(next.generation.number)),
            serving => serving,
        };
        self.notice.set_ready(serving + self.beside.serving());
        self.notice.set_beside(self.beside.serving());
        if let Some(kin) = self.beside.kin() {
            kin.tell(Word { serving, leaving: false });
        }
    }

    /// This server ends; there may be another one that goes on.
    pub(super) fn tell_of_leaving(&mut self) {
        let others = self.beside.serving();
        match &self.beside {
            Beside::New(new) => self.service.hand_over(new.pid),
            Beside::Nobody | Beside::Old(_) => self.service.stops(),
        }
        // After the manager: from here on the other one speaks to it.
        if let Some(kin) = self.beside.kin() {
            kin.tell(Word { serving: 0, leaving: true });
        }
        match others {
            0 => self.notice.set_stopping(),
            others => self.notice.set_ready(others),
        }
    }

    /// Removes the files of listeners that `used` does not have, and that no other server uses.
    pub(super) fn unlink(&self, generation: &Generation, used: &[Arc<Listener>]) {
        let others = |listener: &Listener| match &self.beside {
            Beside::Nobody => false,
            Beside::New(_) => true,
            Beside::Old(_) => listener.is_shared(),
        };
        generation.unlink(|listener| others(listener) || used.iter().any(|one| Arc::ptr_eq(one, listener)));
    }

    fn show_kin(&self, py: Python<'_>, old: i32, new: i32) {
        if let Err(e) = self.server.set_kin(py, old, new) {
            log::error!("Hooks cannot be told of the upgrade: {e}");
        }
    }
}

impl Arbiter {
    /// The server that came before is still there.
    pub(super) fn attend(&mut self, py: Python<'_>) {
        if let Beside::Old(old) = &self.beside {
            let pid = old.pid;
            log::info!("Started beside the server with pid {pid}, to take its place");
            self.show_kin(py, pid, 0);
        }
    }

    fn promote(&mut self, py: Python<'_>) {
        log::info!("Master has been promoted.");
        self.beside = Beside::Nobody;
        self.show_kin(py, 0, 0);
        self.show_name(py);
        if let Some(Err(why)) = self.pidfile.as_mut().map(PidFile::promote) {
            log::error!("{why} (--pid)");
        }
        if let (Some(file), Some(askers)) = (&self.pidfile, &mut self.askers) {
            if let Err(e) = askers.follow(file.path()) {
                log::error!("Nobody can wait for a reload: {}.reload: {e}", file.path().display());
            }
        }
        self.service.speak(process::id());
        self.open_control();
    }
}
