//! Owns: the binary upgrade (USR2): a second server, started by the command that started this one, that has the same
//! listeners and is to take this one's place. Both sides of it are here.
//! Rule: the old server goes on as if nothing had happened until it is told to stop, whatever becomes of the new one. Of
//! the two, whichever leaves leaves its idle connections to the other, and the files of their sockets.
//! Never: touches a connection.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;

use super::generation::Generation;
use super::kin::{Kin, Word, VERSION};
use super::spawn::Which;
use super::Arbiter;
use crate::config::{Address, Config};
use crate::daemon::PidFile;
use crate::error::Error;
use crate::handoff::Mailbox;
use crate::hooks::Hook;
use crate::listener::{self, Listener, Manner};
use crate::python::{self, traceback, Fork};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::process::{self, Ending};
use crate::sys::signal::Blocked;
use crate::sys::{file, socket};

/// gunicorn's variables for the new server, and one of ours: the version, the channel between the two, the mailbox.
const PID: &str = "GUNICORN_PID";
const FDS: &str = "GUNICORN_FD";
const KIN: &str = "RGUNICORN_KIN";
pub const VARIABLES: [&str; 3] = [PID, FDS, KIN];

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

// ---- how this process was started

/// What has to be run to have this server again.
pub(super) struct Origin {
    program: Option<PathBuf>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Origin {
    /// Before anything has changed the process's title or environment.
    pub(super) fn of_this_process(py: Python<'_>) -> Origin {
        let line = process::command_line(process::id()).unwrap_or_default();
        let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
        let mut args: Vec<OsString> = words.map(|word| OsStr::from_bytes(word).to_os_string()).collect();
        let python = python::executable(py).filter(|path| is_this_program(path));
        let program = match python {
            Some(python) => {
                args[0] = python.clone().into();
                Some(python)
            }
            // The interpreter is part of the program.
            None => args.first().and_then(|name| find_program(name)),
        };
        Origin { program, args, env: std::env::vars_os().collect() }
    }

    /// The variables as they were, for a new server with these descriptors.
    fn env(&self, given: &Given<'_>) -> Vec<(OsString, OsString)> {
        let ours = VARIABLES.iter().chain(&["LISTEN_PID", "LISTEN_FDS"]);
        let gone: Vec<&OsStr> = ours.map(OsStr::new).collect();
        let mut env: Vec<_> =
            self.env.iter().filter(|(name, _)| !gone.contains(&name.as_os_str())).cloned().collect();
        // It is the process that it names, and now another one.
        for (_, value) in env.iter_mut().filter(|(name, _)| name == "WATCHDOG_PID") {
            *value = process::id().to_string().into();
        }
        env.extend(given.variables().into_iter().map(|(name, value)| (name.into(), value.into())));
        env
    }
}

fn is_this_program(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((identity(path), identity(Path::new("/proc/self/exe"))), (Ok(a), Ok(b)) if a == b)
}

/// As a shell finds it, with links as they are: a new release may be where they lead then.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| is_this_program(path))
}

/// What the new server is given.
struct Given<'a> {
    parent: i32,
    listeners: &'a [Arc<Listener>],
    /// How many a service manager has opened.
    passed: usize,
    kin: BorrowedFd<'a>,
    mailbox: [BorrowedFd<'a>; 2],
}

impl Given<'_> {
    fn variables(&self) -> Vec<(&'static str, String)> {
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().to_string();
        let [receiver, sender] = self.mailbox.map(number);
        let mut variables = vec![
            (PID, self.parent.to_string()),
            (KIN, format!("{VERSION}:{},{receiver},{sender}", number(self.kin))),
        ];
        if self.passed > 0 {
            variables.push(("LISTEN_PID", process::id().to_string()));
            variables.push(("LISTEN_FDS", self.passed.to_string()));
        } else {
            let numbers: Vec<String> = self.listeners.iter().map(|one| number(one.as_fd())).collect();
            variables.push((FDS, numbers.join(",")));
        }
        variables
    }

    fn let_inherit(&self) -> io::Result<()> {
        let listeners = self.listeners.iter().map(|listener| listener.as_fd());
        listeners.chain(self.mailbox).chain([self.kin]).try_for_each(file::let_inherit)
    }
}

fn words(env: Vec<(OsString, OsString)>) -> Vec<CString> {
    let word = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    // Neither had a NUL in it where it comes from.
    env.into_iter().filter_map(|pair| CString::new(word(pair)).ok()).collect()
}

// ---- the old server

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
                Ok(Successor { pid, kin: Kin::new(ours), was_ready: false, stop: None })
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
        process::replace(program, &args, &words(self.origin.env(&given))).map_err(failed)
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

// ---- both

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

// ---- the new server

/// What the server before this one has given us.
pub(super) struct Inheritance {
    pub(super) old: Predecessor,
    sockets: Vec<OwnedFd>,
    pub(super) mailbox: Option<Mailbox>,
}

impl Inheritance {
    /// From the environment; the caller takes the variables out of it.
    ///
    /// Errors: a descriptor that is named there is not open.
    pub(super) fn take(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Inheritance>, Error> {
        let Some(pid) = env(PID).and_then(|pid| pid.trim().parse::<i32>().ok()) else {
            return Ok(None);
        };
        let kin = env(KIN);
        // gunicorn leaves its variables to what an application starts.
        if kin.is_none() && process::parent() != pid {
            log::warn!("{pid} is not the parent of this process, and nothing of it is taken over ({PID})");
            return Ok(None);
        }
        let (kin, mailbox) = kin.and_then(|text| talk(&text)).transpose()?.unzip();
        let sockets = numbers(&env(FDS).unwrap_or_default(), FDS)?;
        let old = Predecessor { pid, kin: kin.map(Kin::new), left: false };
        Ok(Some(Inheritance { old, sockets, mailbox }))
    }

    /// The listeners among the sockets that the configuration asks for; the others are closed.
    pub(super) fn listeners(
        &mut self,
        config: &Config,
        manner: &Manner,
    ) -> Result<Vec<Arc<Listener>>, Error> {
        let mut wanted: Vec<_> = config.bind.iter().collect();
        let mut listeners = Vec::new();
        for socket in self.sockets.drain(..) {
            let number = socket.as_raw_fd();
            let failed = |e: io::Error| Error::system(&format!("descriptor {number}"), &e, FDS);
            let local = listener::locate(socket.as_fd()).map_err(failed)?;
            let asked =
                |address: &&Address| **address == Address::Fd(number) || listener::serves(&local, address);
            match wanted.iter().position(asked) {
                Some(at) => {
                    let address = wanted.remove(at);
                    listeners.push(Arc::new(Listener::adopt(socket, address, manner).map_err(failed)?));
                }
                None => log::warn!("{local} is not served any more (--bind)"),
            }
        }
        Ok(listeners)
    }
}

type Talk = (OwnedFd, Mailbox);

/// The channel and the mailbox, if they are of our version.
fn talk(text: &str) -> Option<Result<Talk, Error>> {
    let (version, numbers) = text.split_once(':')?;
    if version != VERSION.to_string() {
        log::info!("The old server speaks another language; its idle connections end with it");
        return None;
    }
    let taken = self::numbers(numbers, KIN);
    let three = taken.map(<[OwnedFd; 3]>::try_from);
    Some(match three {
        Ok(Ok([kin, receiver, sender])) => Ok((kin, Mailbox::inherited(receiver, sender))),
        Ok(Err(_)) => Err(Error::Other(format!("three descriptors are wanted ({KIN})"))),
        Err(e) => Err(e),
    })
}

/// Takes descriptors over by their numbers.
fn numbers(text: &str, variable: &str) -> Result<Vec<OwnedFd>, Error> {
    let taken = |word: &str| {
        let number = word.trim().parse::<RawFd>().ok().filter(|number| *number > 2);
        let number = number.ok_or_else(|| Error::Other(format!("'{word}' is no descriptor ({variable})")))?;
        socket::inherited(number).map_err(|e| Error::system(&format!("descriptor {number}"), &e, variable))
    };
    text.split(',').filter(|word| !word.is_empty()).map(taken).collect()
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
