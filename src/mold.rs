//! Owns: the mold (`preload_app`): a process that has loaded the application and does nothing but fork workers from it.
//! Rule: it serves no request and starts no thread. A worker is its grandchild: the process in between ends at once, so
//! the worker becomes a child of the arbiter, which is the subreaper, and outlives the mold.
//! Never: supervises; it answers the arbiter's requests until their socket ends.
//!
//! Messages (SOCK_SEQPACKET): to the mold, a request for a worker; from it, `READY` once, then a pid for each request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{recv, send, MsgFlags};
use pyo3::prelude::*;

use crate::python::{self, Fork};
use crate::scoreboard::Scoreboard;
use crate::sys::clock::SECOND;
use crate::sys::poll::{wait_one, Interest};
use crate::sys::signal::Blocked;
use crate::sys::{crash, process};
use crate::worker::{self, Heritage, Seed};

/// How long the arbiter waits for a mold, which has nothing else to do, to fork.
const FORK_PATIENCE: u64 = 5 * SECOND;
const READY: i64 = 0;

/// What a mold inherits.
pub struct MoldSeed {
    pub heritage: Heritage,
    pub board: Arc<Scoreboard>,
    pub socket: OwnedFd,
    pub blocked: Blocked,
}

/// How a mold ends: as itself, or as the worker that it forked.
pub enum MoldOutcome {
    Exit(i32),
    Worker(Box<Seed>, Py<PyAny>),
}

/// The arbiter's side.
pub struct Mold {
    pub pid: i32,
    socket: OwnedFd,
    ready: bool,
}

impl Mold {
    pub fn new(pid: i32, socket: OwnedFd) -> Mold {
        Mold { pid, socket, ready: false }
    }

    /// Whether the application is loaded.
    pub fn is_ready(&mut self) -> bool {
        if !self.ready && matches!(receive(&self.socket), Ok(Some([READY, ..]))) {
            self.ready = true;
        }
        self.ready
    }

    /// Has a worker forked for the slot; returns its pid.
    ///
    /// Errors: the mold is gone, could not fork, or does not answer.
    pub fn fork_worker(&self, slot: usize, age: u64, most_requests: u64) -> io::Result<i32> {
        transmit(&self.socket, [slot as i64, age as i64, most_requests as i64])?;
        let deadline = crate::sys::clock::monotonic() + FORK_PATIENCE;
        while let Some(left) = deadline.checked_sub(crate::sys::clock::monotonic()) {
            wait_one(self.socket.as_fd(), Interest::Read, Some(left))?;
            match receive(&self.socket)? {
                Some([pid, ..]) if pid > 0 => return Ok(pid as i32),
                Some([errno, ..]) => return Err(io::Error::from_raw_os_error(-errno as i32)),
                None => continue,
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl AsFd for Mold {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message of three numbers; None when none is there.
fn receive(fd: &OwnedFd) -> io::Result<Option<[i64; 3]>> {
    let mut bytes = [0; 24];
    match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from) {
        Ok(24) => {
            let number = |at: usize| i64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
            Ok(Some([number(0), number(8), number(16)]))
        }
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

fn transmit(fd: &OwnedFd, numbers: [i64; 3]) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    send(fd.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// The mold's life.
pub fn run(py: Python<'_>, seed: MoldSeed) -> MoldOutcome {
    let MoldSeed { mut heritage, board, socket, blocked } = seed;
    drop(blocked);
    python::set_title(py, "mold", &heritage.config.proc_name);
    if let Err(code) = heritage.settle() {
        return MoldOutcome::Exit(code);
    }
    if let Err(e) = crash::install() {
        log::error!("Cannot prepare for a crash: {e}");
    }
    let app = match worker::load_app(py, &heritage.config) {
        Ok(app) => app.unbind(),
        Err(code) => return MoldOutcome::Exit(code),
    };
    warn_about_threads(py);
    if let Err(e) = python::freeze_heap(py) {
        log::warn!("Cannot freeze the heap of the preloaded application: {e}");
    }
    if transmit(&socket, [READY, 0, 0]).is_err() {
        return MoldOutcome::Exit(0);
    }
    heritage.arbiter.wake();
    loop {
        let waited = py.detach(|| wait_one(socket.as_fd(), Interest::Read, None));
        let request = waited.and_then(|_| receive(&socket));
        let [slot, age, most_requests] = match request {
            Ok(Some(request)) => request,
            Ok(None) => continue,
            // The arbiter has closed its end: this generation is over.
            Err(_) => return MoldOutcome::Exit(0),
        };
        match fork_grandchild(py) {
            Ok(Grand::Mold(pid)) => {
                if transmit(&socket, [i64::from(pid), 0, 0]).is_err() {
                    return MoldOutcome::Exit(0);
                }
            }
            Ok(Grand::Worker(blocked)) => {
                let slot = board.slot(slot as usize);
                let (age, most_requests) = (age as u64, most_requests as u64);
                let seed = Seed { heritage, slot, age, most_requests, worker: None, blocked };
                return MoldOutcome::Worker(Box::new(seed), app);
            }
            Err(e) => {
                let errno = i64::from(e.raw_os_error().unwrap_or(libc::EIO));
                if transmit(&socket, [-errno, 0, 0]).is_err() {
                    return MoldOutcome::Exit(0);
                }
            }
        }
    }
}

fn warn_about_threads(py: Python<'_>) {
    match python::thread_names(py) {
        Ok(names) if names.len() > 1 => log::warn!(
            "The application started threads while it was loaded ({}); they do not exist in workers (--preload)",
            names[1..].join(", ")
        ),
        _ => {}
    }
}

enum Grand {
    Mold(i32),
    Worker(Blocked),
}

/// Forks twice; the one in between tells the grandchild's pid and is gone.
fn fork_grandchild(py: Python<'_>) -> io::Result<Grand> {
    let (read, write) = process::pipe()?;
    let blocked = Blocked::all()?;
    match python::fork(py).map_err(io::Error::from)? {
        Fork::Parent(middle) => {
            drop(write);
            let mut pid = [0; 4];
            let told = nix::unistd::read(&read, &mut pid);
            process::await_child(middle)?;
            match told {
                Ok(4) => Ok(Grand::Mold(i32::from_ne_bytes(pid))),
                _ => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            }
        }
        Fork::Child => match python::fork(py) {
            Ok(Fork::Child) => Ok(Grand::Worker(blocked)),
            Ok(Fork::Parent(pid)) => {
                // A mold that does not hear it reports that it could not fork.
                let _ = nix::unistd::write(&write, &pid.to_ne_bytes());
                process::exit_now(0)
            }
            Err(_) => process::exit_now(1),
        },
    }
}

/// What a mold needs from the arbiter to be made: the arbiter's end, and the mold's.
pub fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    process::message_pair()
}
