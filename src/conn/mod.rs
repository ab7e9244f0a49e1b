//! Owns: one connection from accept to close: which state it is in, what it waits for, until when.
//! Rule: `advance` is the only door and `go` the only function that changes the state; the legal moves are
//!
//! ```text
//! Idle ─▶ Head ─▶ Body ─▶ Call ─▶ Reply ─▶ Idle (persistent) │ Linger │ Closed
//!                         │  ▲
//!                         ▼  │
//!                        Ready
//! ```
//!
//! where any state but Call may be skipped forward, Head and Body reach Reply by a refusal, those before Call reach Linger
//! when the peer breaks TLS, and all reach Closed. Ready is a complete request that waits for a thread.
//! Never: polls, spawns, locks, knows Python. A complete request is handed up as `Next::Call`.
//!
//! Memory: an idle connection owns no buffers. While it is served, its bytes are in the thread's scratch. What must outlive
//! the turn is kept in `pending` (the beginning of a head, a head whose body is coming, a complete request that waits for a
//! thread, pipelined requests), `body` (a body that has come in part, or whole) and `out` (what the peer has not taken).

mod body;
mod intake;
mod preface;
mod reply;
mod travel;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::Arc;

use crate::access_sink::AccessLog;
use crate::body_buffer::{BodyBuffer, BodyStore};
use crate::buffer::{OutQueue, Scratch, READ_SIZE};
use crate::config::Buffering;
use crate::http::date::ServerDate;
use crate::http::scan::Scan;
use crate::http::{Head, Policy};
use crate::proxy::Trust;
use crate::proxy_protocol::{Origin, Preface};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::poll::{wait_one, Interest};
use crate::sys::socket;
use crate::timers::Pace;
use crate::transport::{Peer, Transport};

/// How long an idle connection may stay once its worker drains: the peer's next request may be on its way.
const DRAIN_IDLE: Nanos = 2 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of the next request has come.
    Idle,
    /// Part of a head has come.
    Head,
    /// The head is complete, its body not yet.
    Body,
    /// The request is complete and waits for a thread, its input in `pending`. No deadline of the client's applies.
    Ready,
    /// The application has the request.
    Call,
    /// The rest of a response waits for the peer.
    Reply,
    /// All is sent; the peer is given time to read it.
    Linger,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Readable,
    Writable,
    /// The deadline has passed.
    Expired,
    /// A thread is there for the request that `postpone` has put off.
    Resumed,
    /// The application is done with the request of `Next::Call`.
    Answered,
    /// The worker stops, and no other takes the connection over.
    Drain,
}

/// What the connection wants now. With `Wait` goes `Conn::deadline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Wait(Interest),
    Call,
    Close,
}

/// What becomes of the connection once the response is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The next request may come.
    Keep,
    /// Every octet of the request was read: a plain close loses nothing.
    Close,
    /// Bytes of a body may be unread: close in stages.
    Linger,
    /// The same where nobody knows what the bytes would be.
    Refused,
    /// The response is broken off, and its framing shows that: the stream ends after what was sent.
    Broken,
    /// The response is broken off, and would look whole: the connection is reset.
    Cut,
}

/// What the operator decided, as connections need it. Times in nanoseconds.
#[derive(Clone)]
pub struct Settings {
    pub policy: Policy,
    pub trust: Trust,
    /// 0: no keep-alive.
    pub keepalive: Nanos,
    pub header_timeout: Nanos,
    pub body_timeout: Nanos,
    pub write_timeout: Nanos,
    /// Bytes of a request body, decoded; more are refused.
    pub body_limit: u64,
    pub buffering: Buffering,
    pub bodies: Arc<BodyStore>,
    /// Connections of the worker that are only read to their end.
    pub lingering: Arc<AtomicUsize>,
}

#[cfg(test)]
impl Settings {
    /// A minute for everything, and nobody trusted but the peers of unix sockets.
    pub(crate) fn for_tests(buffering: Buffering) -> Settings {
        let minute = 60 * SECOND;
        Settings {
            policy: crate::config::Config::default().http,
            trust: Trust::new(&[] as &[&str], Vec::new()).unwrap(),
            keepalive: minute,
            header_timeout: minute,
            body_timeout: minute,
            write_timeout: minute,
            body_limit: u64::MAX,
            buffering,
            bodies: Arc::new(BodyStore::new(std::env::temp_dir())),
            lingering: Arc::default(),
        }
    }
}

/// What one thread works with, whichever connection it serves.
pub struct Desk {
    pub scratch: Scratch,
    /// The unsent beginning of the response being made.
    pub out: Vec<u8>,
    pub date: ServerDate,
    /// The memory of a closed connection's head, for the next connection.
    spare: Head,
}

impl Desk {
    pub fn new(settings: &Settings) -> Desk {
        let scratch = Scratch::new(settings.policy.limits.head);
        Desk { scratch, out: Vec::with_capacity(READ_SIZE), date: ServerDate::new(), spare: Head::default() }
    }
}

/// The circumstances of one `advance`.
pub struct Turn<'a> {
    pub desk: &'a mut Desk,
    pub settings: &'a Settings,
    pub access: Option<&'a AccessLog>,
    pub now: Nanos,
    /// The worker stops, and no other goes on with its connections.
    pub closing: bool,
    /// The worker stops; what cannot be left to another ends.
    pub draining: bool,
}

pub struct Conn {
    pub(crate) transport: Transport,
    pub(crate) peer: Peer,
    /// Which of the worker's listeners accepted it.
    pub(crate) listener: usize,
    /// Whether its client's forwarded fields are believed.
    pub(crate) trusted: bool,
    preface: Preface,
    /// What a PROXY header has said, for all its requests.
    pub(crate) origin: Option<Box<Origin>>,
    state: State,
    deadline: Nanos,
    /// Since when it is, or last was, in the state Ready.
    ready_since: Option<Nanos>,
    pending: Vec<u8>,
    /// How far the head in `pending` has been judged.
    scan: Option<Box<Scan>>,
    pub(crate) head: Head,
    /// The last request's field block, when another request may repeat it.
    block: Vec<u8>,
    /// The head just read repeats that block.
    pub(crate) repeated: bool,
    /// What the application keeps with the block, such as an environ made from it.
    pub(crate) memo: Option<Box<dyn Any + Send>>,
    /// What has come of a body that was not here whole when its head was read.
    pub(crate) body: Option<Box<BodyBuffer>>,
    /// The decoded length of a chunked body that was.
    chunked_length: Option<u64>,
    /// Bytes read since it was made, modulo what a word holds.
    received: usize,
    pub(crate) out: OutQueue,
    pace: Pace,
    pub(crate) fate: Fate,
    linger: Option<reply::Linger>,
    pub(crate) requests: u64,
    /// The application has it for itself, until the end of its call; no other request follows.
    pub(crate) taken: bool,
    /// A response that ends with the connection has begun, and has not left whole.
    until_close: bool,
    /// No request can follow the one that is being served.
    pub(crate) is_last: bool,
}

impl Conn {
    pub fn new(transport: Transport, peer: Peer, listener: usize, turn: &mut Turn<'_>) -> Conn {
        Conn {
            transport,
            peer,
            listener,
            trusted: turn.settings.trust.trusts(peer.identity()),
            preface: Preface::None,
            origin: None,
            state: State::Idle,
            deadline: turn.now + turn.settings.header_timeout,
            ready_since: None,
            pending: Vec::new(),
            scan: None,
            head: std::mem::take(&mut turn.desk.spare),
            block: Vec::new(),
            repeated: false,
            memo: None,
            body: None,
            chunked_length: None,
            received: 0,
            out: OutQueue::default(),
            pace: Pace::new(turn.now, turn.settings.body_timeout),
            fate: Fate::Keep,
            linger: None,
            requests: 0,
            taken: false,
            until_close: false,
            is_last: false,
        }
    }

    /// Whether something has come that has not been read.
    pub fn has_input(&self) -> bool {
        // When that cannot be told, reading it will tell.
        !matches!(wait_one(self.as_fd(), Interest::Read, Some(0)), Ok(false))
    }

    /// Whether it can be moved on, after a response that is still being sent, without a thread to call the application.
    pub fn is_only_sending(&self) -> bool {
        matches!(self.state, State::Reply | State::Linger)
            && self.pending.is_empty()
            && !self.transport.holds_octets()
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn deadline(&self) -> Nanos {
        self.deadline
    }

    fn go(&mut self, to: State) {
        debug_assert!(is_legal(self.state, to), "{:?} -> {to:?}", self.state);
        self.state = to;
    }

    /// Moves the connection on after `event`. After `Next::Wait` its input is in `pending`; after `Next::Call` it is in
    /// the desk's scratch, where the caller leaves it until `Event::Answered`; a body may be in `body`.
    pub fn advance(&mut self, event: Event, turn: &mut Turn<'_>) -> Next {
        let mut next = self.step(event, turn);
        // What TLS has decrypted already, the poller knows nothing of.
        while matches!(next, Next::Wait(_)) && self.state != State::Reply && self.transport.holds_input() {
            next = self.step(Event::Readable, turn);
        }
        next
    }

    fn step(&mut self, event: Event, turn: &mut Turn<'_>) -> Next {
        match (self.state, event) {
            (State::Idle | State::Head | State::Body, Event::Readable) => self.read(turn),
            (State::Idle | State::Head | State::Body, Event::Expired) => self.expire(turn),
            (State::Idle, Event::Drain) => self.hurry(turn),
            (State::Ready, Event::Resumed) => self.resumed(turn),
            (State::Call, Event::Answered) => self.answered(turn),
            (State::Reply, Event::Writable | Event::Readable) => self.flush(turn),
            (State::Reply, Event::Expired) => {
                log::debug!("Response to {} was not taken in time (--write-timeout)", self.client());
                self.give_up(turn)
            }
            (State::Linger, Event::Drain) => self.linger_less(turn),
            (State::Linger, Event::Readable) => self.drain_input(turn),
            (State::Linger, Event::Expired) => self.close(),
            (State::Closed, _) => Next::Close,
            _ => self.wait_on(),
        }
    }

    /// Puts off the request of `Next::Call`: it takes its input along, and goes on by `Event::Resumed`.
    pub fn postpone(&mut self, turn: &mut Turn<'_>) {
        turn.desk.scratch.store(&mut self.pending);
        self.go(State::Ready);
        self.deadline = Nanos::MAX;
        self.ready_since = Some(turn.now);
    }

    fn resumed(&mut self, turn: &mut Turn<'_>) -> Next {
        turn.desk.scratch.load(&mut self.pending);
        self.go(State::Call);
        Next::Call
    }

    /// Since when its complete request has waited for a thread, if it had to.
    pub fn ready_since(&self) -> Option<Nanos> {
        self.ready_since
    }

    fn wait_on(&self) -> Next {
        Next::Wait(self.interest())
    }

    /// What a connection in this state waits for.
    pub fn interest(&self) -> Interest {
        match self.state {
            State::Reply => Interest::Write,
            // Part of a TLS handshake.
            State::Idle | State::Head | State::Body if self.transport.owes() => Interest::Write,
            _ => Interest::Read,
        }
    }

    fn close(&mut self) -> Next {
        // A peer that does not hear it sees the end of the stream all the same.
        let _ = self.transport.finish();
        self.closed()
    }

    fn closed(&mut self) -> Next {
        if self.taken {
            // The application may have left a duplicate of its descriptor somewhere.
            let _ = socket::end(self.as_fd());
        }
        self.go(State::Closed);
        Next::Close
    }

    /// A response begins that ends with the connection (RFC 9112 §6.3), or the whole of one has left. In between the connection
    /// ends by a reset, whatever ends it, a crash or SIGKILL too: its peer would take any other end for that of the response.
    pub(crate) fn set_until_close(&mut self, begins: bool) {
        if self.until_close != begins {
            self.until_close = begins;
            // A peer that is gone already needs no reset.
            let _ = self.transport.set_reset_on_close(begins);
        }
    }

    /// A connection whose worker drains is given a moment for a request that may be on its way.
    fn hurry(&mut self, turn: &Turn<'_>) -> Next {
        self.deadline = self.deadline.min(turn.now + DRAIN_IDLE);
        self.wait_on()
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

fn is_legal(from: State, to: State) -> bool {
    use State::*;
    match from {
        Idle => matches!(to, Head | Body | Call | Reply | Linger | Closed),
        Head => matches!(to, Body | Call | Reply | Linger | Closed),
        Body => matches!(to, Call | Reply | Linger | Closed),
        Ready => matches!(to, Call | Closed),
        Call => matches!(to, Ready | Idle | Reply | Linger | Closed),
        Reply => matches!(to, Idle | Linger | Closed),
        Linger => to == Closed,
        Closed => false,
    }
}

pub(crate) fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
