//! Owns: the mold (`preload_app`): a process that has loaded the application and does nothing but fork workers from it.
//! Rule: it serves no request and starts no thread. A worker is its grandchild: the process in between ends at once, so
//! the worker becomes a child of the arbiter, which is the subreaper, and outlives the mold.
//! Never: supervises; it answers the arbiter's requests until their socket ends.
//!
//! Messages (SOCK_SEQPACKET): to the mold, a request for a worker; from it, `READY` once, then a pid for each request. The
//! application is loaded in it and may write there too: the arbiter believes no number before it has checked it.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{recv, send, MsgFlags};
use pyo3::prelude::*;

use crate::crash_report;
use crate::defect;
use crate::fork_doctor::Doctor;
use crate::panic;
use crate::python::{self, Fork};
use crate::scoreboard::Scoreboard;
use crate::sys::child::{self, Handle};
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::{wait_one, Interest, Waker};
use crate::sys::signal::{self, Blocked, SIGKILL};
use crate::sys::socket::{receive_descriptor, send_descriptor};
use crate::sys::{crash, process};
use crate::worker::{self, Heritage, Seed};

/// How long the arbiter waits for a mold, which has nothing else to do, to fork.
const FORK_PATIENCE: u64 = 5 * SECOND;
const READY: i64 = 0;
/// A mold says that it is ready, and answers what it is asked: never so much at once.
const MOST_MESSAGES: usize = 16;

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

/// What the arbiter knows of a mold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Loading,
    Ready,
    /// It has ended, or is of no use any more; it is reaped soon.
    Lost {
        was_ready: bool,
    },
}

/// The arbiter's side.
pub struct Mold {
    pub pid: i32,
    process: Handle,
    pub born: Nanos,
    socket: OwnedFd,
    /// By which it wakes the arbiter.
    _waker: Arc<Waker>,
    state: State,
    /// What it has said that nobody had asked for.
    unasked: usize,
}

/// What a mold answers to a request for a worker.
#[derive(Debug)]
pub enum Answer {
    /// The number of a process, which may be wrong.
    Worker(i32),
    /// It could not fork now.
    Refusal(io::Error),
}

impl Mold {
    pub fn new(process: Handle, socket: OwnedFd, waker: Arc<Waker>) -> Mold {
        let (pid, born) = (process.pid(), clock::monotonic());
        Mold { pid, process, born, socket, _waker: waker, state: State::Loading, unasked: 0 }
    }

    pub fn process(&self) -> &Handle {
        &self.process
    }

    /// It has been reaped. What it said before its end stays true.
    pub fn set_reaped(&mut self) {
        self.process.set_reaped();
        self.listen();
    }

    /// Takes what is in the socket; what stayed there would keep the arbiter from waiting, and so would a mold that does not
    /// stop talking, at once or by and by.
    pub fn listen(&mut self) {
        while self.unasked < MOST_MESSAGES {
            match (self.state, receive(&self.socket)) {
                (_, Ok(None)) | (State::Lost { .. }, _) => return,
                (State::Loading, Ok(Some([READY, ..]))) => self.state = State::Ready,
                // The late answer of a question that was given up.
                (_, Ok(Some(_))) => self.unasked += 1,
                (_, Err(_)) => self.give_up(),
            }
        }
        self.give_up();
    }

    /// Whether the application is loaded and workers can be had.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether the application was ever loaded.
    pub fn was_ready(&self) -> bool {
        matches!(self.state, State::Ready | State::Lost { was_ready: true })
    }

    /// Whether it was ended here; it may have ended before.
    pub fn is_given_up(&self) -> bool {
        matches!(self.state, State::Lost { .. })
    }

    /// Ends it; its place is free when it has been reaped.
    pub fn give_up(&mut self) {
        // One that has ended needs no end.
        let _ = self.process.signal(SIGKILL);
        self.state = State::Lost { was_ready: self.was_ready() };
    }

    /// Has a worker forked for the slot.
    ///
    /// Errors: the mold is gone or does not answer; it is of no more use.
    pub fn fork_worker(
        &mut self,
        slot: usize,
        age: u64,
        most_requests: u64,
        waker: &Waker,
    ) -> io::Result<Answer> {
        self.listen();
        let question = [slot as i64, age as i64, most_requests as i64];
        send_descriptor(self.socket.as_fd(), &message(question), waker.as_fd())?;
        let deadline = clock::monotonic() + FORK_PATIENCE;
        while let Some(left) = deadline.checked_sub(clock::monotonic()) {
            wait_one(self.socket.as_fd(), Interest::Read, Some(left))?;
            if let Some([number, ..]) = receive(&self.socket)? {
                return answer(number);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// A pid, or an errno below zero.
fn answer(number: i64) -> io::Result<Answer> {
    match i32::try_from(number) {
        Ok(pid) if pid > 0 => Ok(Answer::Worker(pid)),
        Ok(errno) if errno < 0 && errno > -4096 => Ok(Answer::Refusal(io::Error::from_raw_os_error(-errno))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl AsFd for Mold {
    /// Readable when it has something to say, or has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message of three numbers; None when none is there.
fn receive(fd: &OwnedFd) -> io::Result<Option<[i64; 3]>> {
    let mut bytes = [0; 24];
    let received = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
    understood(&bytes, received.map_err(io::Error::from))
}

/// A request for a worker, with the eventfd by which that one is to wake the arbiter.
fn receive_request(fd: &OwnedFd) -> io::Result<Option<([i64; 3], OwnedFd)>> {
    let mut bytes = [0; 24];
    let received = receive_descriptor(fd.as_fd(), &mut bytes);
    let (length, waker) = received.map_or_else(|e| (Err(e), None), |(length, waker)| (Ok(length), waker));
    let request = understood(&bytes, length)?;
    request.map(|numbers| Ok((numbers, waker.ok_or(io::ErrorKind::UnexpectedEof)?))).transpose()
}

fn understood(bytes: &[u8; 24], received: io::Result<usize>) -> io::Result<Option<[i64; 3]>> {
    match received {
        Ok(24) => {
            let number = |at: usize| i64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
            Ok(Some([number(0), number(8), number(16)]))
        }
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

fn message(numbers: [i64; 3]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn transmit(fd: &OwnedFd, numbers: [i64; 3]) -> io::Result<()> {
    // The peer may not read; a few dozen bytes fit unless it never has.
    send(fd.as_raw_fd(), &message(numbers), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// The mold's life.
pub fn run(py: Python<'_>, seed: MoldSeed) -> MoldOutcome {
    let MoldSeed { mut heritage, board, socket, blocked } = seed;
    // Its end says that the mold is gone: it stays open until the process has run its exit handlers and is.
    let socket = ManuallyDrop::new(socket);
    drop(blocked);
    python::set_title(py, "mold", &heritage.config.proc_name);
    panic::ends("mold", || ());
    if let Err(code) = heritage.settle() {
        return MoldOutcome::Exit(code);
    }
    if let Err(e) = prepare_for_crash(py) {
        log::error!("Cannot prepare for a crash: {e}");
    }
    let app = match load(py, &heritage) {
        Ok(app) => app,
        Err(failure) => return MoldOutcome::Exit(heritage.failed(&failure)),
    };
    if transmit(&socket, [READY, 0, 0]).is_err() {
        return MoldOutcome::Exit(0);
    }
    heritage.arbiter.wake();
    loop {
        defect::planted("mold");
        python::returned(py, None, || "loading the application".into());
        let waited = py.detach(|| wait_one(socket.as_fd(), Interest::Read, None));
        let request = waited.and_then(|_| receive_request(&socket));
        let ([slot, age, most_requests], waker) = match request {
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
                drop(ManuallyDrop::into_inner(socket));
                heritage.arbiter = Arc::new(Waker::from(waker));
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

/// Of the application that is loaded here. Handlers that it has of its own come before ours.
fn prepare_for_crash(py: Python<'_>) -> PyResult<()> {
    crash_report::this_is_a_mold();
    crash::install()?;
    crash::install_abort()?;
    python::dump_stacks_on(py, signal::stack_dump())?;
    python::guard_stack();
    Ok(())
}

/// Loads the application so that its pages can be shared, and says what of it cannot.
fn load(py: Python<'_>, heritage: &Heritage) -> Result<Py<PyAny>, worker::Failure> {
    let doctor = Doctor::before_load();
    let collector = python::pause_collector(py);
    let app = worker::load(py, heritage)?.unbind();
    doctor.examine(py);
    if let Err(e) = collector.and_then(|before| python::freeze_heap(py, before)) {
        log::warn!("Cannot freeze the heap of the preloaded application: {e}");
    }
    process::trim_heap();
    Ok(app)
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
            child::await_child(middle)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A mold without a process: the arbiter's side, and the socket of the other.
    fn mold() -> (Mold, OwnedFd) {
        let (ours, theirs) = sockets().unwrap();
        let waker = Arc::new(Waker::new().unwrap());
        (Mold::new(Handle::by_number(i32::MAX), ours, waker), theirs)
    }

    #[test]
    fn it_is_ready_once_it_has_said_so() {
        let (mut mold, theirs) = mold();
        mold.listen();
        assert!(!mold.is_ready());
        transmit(&theirs, [READY, 0, 0]).unwrap();
        mold.listen();
        assert!(mold.is_ready() && mold.was_ready());
        drop(theirs);
        mold.listen();
        assert!(!mold.is_ready() && mold.was_ready());
    }

    #[test]
    fn one_that_ends_before_it_is_ready_never_was() {
        let (mut mold, theirs) = mold();
        drop(theirs);
        mold.listen();
        assert!(!mold.is_ready() && !mold.was_ready());
    }

    #[test]
    fn nothing_that_is_said_unasked_stays_in_the_socket() {
        let (mut mold, theirs) = mold();
        for number in [i64::MIN, -1, 1, READY, i64::MAX] {
            transmit(&theirs, [number; 3]).unwrap();
        }
        mold.listen();
        assert!(mold.is_ready());
        assert!(!wait_one(mold.as_fd(), Interest::Read, Some(0)).unwrap());
        assert!(nix::unistd::write(&theirs, b"short").is_ok());
        mold.listen();
        assert!(!mold.is_ready(), "it does not speak this language");
    }

    #[test]
    fn one_that_does_not_stop_talking_is_given_up() {
        let (mut mold, theirs) = mold();
        for _ in 0..MOST_MESSAGES {
            transmit(&theirs, [READY; 3]).unwrap();
            mold.listen();
            assert!(mold.is_ready());
        }
        transmit(&theirs, [READY; 3]).unwrap();
        mold.listen();
        assert!(!mold.is_ready() && mold.was_ready());
    }

    #[test]
    fn only_numbers_that_can_be_pids_or_errors_are_answers() {
        assert!(matches!(answer(7), Ok(Answer::Worker(7))));
        assert!(matches!(answer(-11), Ok(Answer::Refusal(e)) if e.raw_os_error() == Some(libc::EAGAIN)));
        for number in [i64::MIN, i64::from(i32::MIN), -4096, 0, 1 << 32, i64::MAX] {
            assert_eq!(answer(number).unwrap_err().kind(), io::ErrorKind::InvalidData, "{number}");
        }
    }
}
