//! Owns: one connection from accept to close: which state it is in, what it waits for, until when.
//! Rule: `advance` is the only door and `go` the only function that changes the state; the legal moves are
//!
//! ```text
//! Idle ─▶ Head ─▶ Body ─▶ Call ─▶ Reply ─▶ Idle (persistent) │ Linger │ Closed
//! ```
//!
//! where any state but Call may be skipped forward, Head and Body reach Reply by a refusal, those before Call reach Linger
//! when the peer breaks TLS, and all reach Closed.
//! Never: polls, spawns, locks, knows Python. A complete request is handed up as `Next::Call`.
//!
//! Memory: an idle connection owns no buffers. While it is served, its octets are in the thread's scratch; what must
//! outlive the turn (half a head, part of a body, what the peer has not taken) is kept in `pending` and `out`.

mod preface;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::access_sink::{AccessLog, Known};
use crate::buffer::{Flushed, OutQueue, Scratch, Segment, READ_SIZE};
use crate::handoff::{Mailbox, Papers, MOST_OCTETS};
use crate::http::body::Decoder;
use crate::http::date::ServerDate;
use crate::http::parse::{self, Status};
use crate::http::reject::without_body;
use crate::http::{Field, Framing, Head, Policy, Reject};
use crate::proxy;
use crate::proxy_protocol::{Origin, Preface};
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::{wait_one, Interest};
use crate::timers::Pace;
use crate::tls::Failure;
use crate::transport::{Peer, Transport};

/// How long a closing connection is read so that the peer can take our last octets, and how much (RFC 9112 §9.6).
const LINGER: Nanos = 2 * SECOND;
const LINGER_OCTETS: usize = 1 << 20;
/// How long an idle connection may stay once its worker drains: the peer's next request may be on its way.
const DRAIN_IDLE: Nanos = 2 * SECOND;
/// The longest field block worth remembering for a connection.
const MEMO_OCTETS: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of the next request has come.
    Idle,
    /// Part of a head has come.
    Head,
    /// The head is complete, its body not yet.
    Body,
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
    /// Octets may be unread: close in stages.
    Linger,
    /// The response is broken off where the peer can see it.
    Cut,
}

/// What the operator decided, as connections need it. Times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Settings {
    pub policy: Policy,
    /// 0: no keep-alive.
    pub keepalive: Nanos,
    pub header_timeout: Nanos,
    pub body_timeout: Nanos,
    pub write_timeout: Nanos,
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
    pub(crate) trusted: bool,
    preface: Preface,
    /// What a PROXY header has said, for all its requests.
    pub(crate) origin: Option<Box<Origin>>,
    state: State,
    deadline: Nanos,
    pending: Vec<u8>,
    /// Octets of `pending` that the parser has seen in vain.
    seen: usize,
    pub(crate) head: Head,
    /// The last request's field block, when another request may repeat it.
    block: Vec<u8>,
    /// The head just read repeats that block.
    pub(crate) repeated: bool,
    /// What the application keeps with the block, such as an environ made from it.
    pub(crate) memo: Option<Box<dyn Any + Send>>,
    /// Follows a chunked body before the call: how far, and with what result.
    probe: Option<(Decoder, usize)>,
    pub(crate) out: OutQueue,
    pace: Pace,
    pub(crate) fate: Fate,
    lingered: usize,
    pub(crate) requests: u64,
}

impl Conn {
    pub fn new(
        transport: Transport,
        peer: Peer,
        listener: usize,
        trusted: bool,
        turn: &mut Turn<'_>,
    ) -> Conn {
        Conn {
            transport,
            peer,
            listener,
            trusted,
            preface: Preface::None,
            origin: None,
            state: State::Idle,
            deadline: turn.now + turn.settings.header_timeout,
            pending: Vec::new(),
            seen: 0,
            head: std::mem::take(&mut turn.desk.spare),
            block: Vec::new(),
            repeated: false,
            memo: None,
            probe: None,
            out: OutQueue::default(),
            pace: Pace::new(turn.now, turn.settings.body_timeout),
            fate: Fate::Keep,
            lingered: 0,
            requests: 0,
        }
    }

    /// Goes on where another worker has left it: between requests, or at the beginning of one.
    pub fn resume(&mut self, papers: &Papers, octets: Vec<u8>) {
        self.preface = papers.preface;
        self.origin = papers.origin.map(Box::new);
        if !octets.is_empty() && !self.is_unintroduced() {
            self.go(State::Head);
        }
        (self.requests, self.deadline, self.pending) = (papers.requests, papers.deadline, octets);
    }

    /// Whether another worker could go on with it: nothing but the beginning of a head has been read, and that little
    /// enough to travel along. Half-read bodies and unsent responses stay.
    pub fn may_move(&self) -> bool {
        matches!(self.state, State::Idle | State::Head)
            && self.pending.len() <= MOST_OCTETS
            && self.transport.may_move()
    }

    /// Whether it ends with this worker, whoever goes on.
    pub fn is_bound(&self) -> bool {
        self.transport.is_secure()
    }

    /// Whether its descriptor tells all that another worker would have to know of it, were nothing read of its next request.
    pub fn is_bare(&self) -> bool {
        self.preface == Preface::None && self.origin.is_none() && !self.is_bound()
    }

    /// Leaves it to the other workers. After an `Ok` it is theirs, and is to be dropped here.
    pub fn leave_in(&self, mailbox: &Mailbox, listener: u64) -> io::Result<()> {
        let papers = Papers {
            peer: self.peer,
            listener,
            requests: self.requests,
            deadline: self.deadline,
            secure: self.transport.is_secure(),
            preface: self.preface,
            origin: self.origin.as_deref().copied(),
        };
        mailbox.send(self.as_fd(), papers, &self.pending)
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
    /// the desk's scratch, where the caller leaves it until `Event::Answered`.
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
            (State::Call, Event::Answered) => self.answered(turn),
            (State::Reply, Event::Writable | Event::Readable) => self.flush(turn),
            (State::Reply, Event::Expired) => {
                log::debug!("Response to {} was not taken in time (--write-timeout)", self.client());
                self.close_cut()
            }
            (State::Linger, Event::Readable) => self.drain_input(turn),
            (State::Linger, Event::Expired) => self.close(),
            (State::Closed, _) => Next::Close,
            _ => self.wait_on(),
        }
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

    /// Ends it between two requests.
    pub fn hang_up(&mut self) -> Next {
        self.close()
    }

    fn close(&mut self) -> Next {
        // A peer that does not hear it sees the end of the stream all the same.
        let _ = self.transport.finish();
        self.closed()
    }

    fn closed(&mut self) -> Next {
        self.go(State::Closed);
        Next::Close
    }

    fn close_cut(&mut self) -> Next {
        // A peer that is gone already needs no reset.
        let _ = self.transport.reset_on_close();
        self.closed()
    }

    /// A connection whose worker drains is given a moment for a request that may be on its way.
    fn hurry(&mut self, turn: &Turn<'_>) -> Next {
        self.deadline = self.deadline.min(turn.now + DRAIN_IDLE);
        self.wait_on()
    }

    fn read(&mut self, turn: &mut Turn<'_>) -> Next {
        if let Preface::Due(mode) = self.preface {
            if let Some(next) = self.read_preface(mode, turn) {
                return next;
            }
        }
        turn.desk.scratch.load(&mut self.pending);
        match turn.desk.scratch.receive(&self.transport) {
            Ok(0) => self.vanished(),
            Ok(octets) => {
                if self.state == State::Body {
                    self.pace.progress(turn.now, octets);
                }
                self.take_in(turn)
            }
            Err(e) if is_transient(&e) => self.park(turn),
            Err(e) => self.broken(&e, turn),
        }
    }

    fn broken(&mut self, e: &io::Error, turn: &mut Turn<'_>) -> Next {
        match self.transport.failure() {
            None => self.vanished(),
            Some(Failure::PlainHttp) => self.refuse(Reject::PlainOnTls, turn),
            Some(Failure::Protocol) => {
                log::debug!("TLS with {} failed: {e}", self.client());
                self.linger(turn)
            }
        }
    }

    fn vanished(&mut self) -> Next {
        if self.state != State::Idle {
            log::debug!("Client {} left in the middle of a request", self.client());
        }
        self.close()
    }

    /// Waits for more input, with the deadline of the state.
    fn park(&mut self, turn: &mut Turn<'_>) -> Next {
        turn.desk.scratch.store(&mut self.pending);
        if self.state == State::Body {
            self.deadline = self.pace.deadline();
        }
        self.wait_on()
    }

    /// Makes what it can of the octets in the scratch.
    fn take_in(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.state != State::Body {
            match self.read_head(turn) {
                Ok(Status::Partial) => return self.wait_for_head(turn),
                Ok(Status::Complete) => self.head_complete(turn),
                Err(reject) => {
                    let reject = self.offence(reject, turn.desk.scratch.unread());
                    return self.refuse(reject, turn);
                }
            }
        }
        match self.body_is_buffered(&turn.desk.scratch, &turn.settings.policy) {
            Ok(true) => {
                self.go(State::Call);
                Next::Call
            }
            Ok(false) => {
                if self.state != State::Body {
                    self.go(State::Body);
                    self.pace = Pace::new(turn.now, turn.settings.body_timeout);
                }
                self.park(turn)
            }
            Err(reject) => self.refuse(reject, turn),
        }
    }

    fn wait_for_head(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.state == State::Idle && !turn.desk.scratch.is_empty() {
            self.go(State::Head);
            // From the first octet, and never moved by more of them: a slow client cannot stretch it.
            let limit = turn.now + turn.settings.header_timeout;
            self.deadline = if self.requests == 0 { self.deadline.min(limit) } else { limit };
        }
        self.park(turn)
    }

    fn read_head(&mut self, turn: &mut Turn<'_>) -> Result<Status, Reject> {
        let policy = &turn.settings.policy;
        if !policy.leniency.is_none() {
            return self.read_lenient_head(turn);
        }
        self.parse_head(turn.desk.scratch.unread(), policy)
    }

    /// Where something is to be accepted that the rules refuse.
    fn read_lenient_head(&mut self, turn: &mut Turn<'_>) -> Result<Status, Reject> {
        let policy = &turn.settings.policy;
        if !parse::worth_parsing(turn.desk.scratch.unread(), self.seen) {
            return Ok(Status::Partial);
        }
        let judged = policy.leniency.rewrite(turn.desk.scratch.unread_mut());
        self.parse_head(&turn.desk.scratch.unread()[..judged], policy)
    }

    fn parse_head(&mut self, bytes: &[u8], policy: &Policy) -> Result<Status, Reject> {
        self.repeated = self.repeat(bytes, policy);
        if self.repeated {
            return Ok(Status::Complete);
        }
        if !parse::worth_parsing(bytes, self.seen) {
            return Ok(Status::Partial);
        }
        let status = parse::head(bytes, policy, self.trusted, &mut self.head)?;
        match status {
            Status::Partial => self.seen = bytes.len(),
            // RFC 9110 §9.3.6: what follows CONNECT is no HTTP; a server that makes no tunnels must not read on.
            Status::Complete if self.head.start.method.of(bytes) == b"CONNECT" => {
                return Err(Reject::UnsupportedMethod);
            }
            Status::Complete => {}
        }
        Ok(status)
    }

    /// Whether the head's field block is, octet for octet, that of the request before; then only its start line is read.
    fn repeat(&mut self, bytes: &[u8], policy: &Policy) -> bool {
        if self.block.is_empty() || self.seen > 0 {
            return false;
        }
        match parse::repeats(bytes, &self.block) {
            Some(length) => parse::same_fields(&bytes[..length], policy, &mut self.head),
            None => false,
        }
    }

    fn head_complete(&mut self, turn: &Turn<'_>) {
        self.seen = 0;
        self.probe = None;
        self.requests += 1;
        if self.repeated {
            return;
        }
        self.memo = None;
        self.block.clear();
        if !self.head.persistent() {
            return;
        }
        let block = &turn.desk.scratch.unread()[self.head.fields_at..self.head.length];
        if self.head.fields.framing == Framing::Empty && block.len() <= MEMO_OCTETS {
            self.block.extend_from_slice(block);
        }
    }

    /// Whether the application can be called: the body is here whole, or as much of it as is buffered.
    fn body_is_buffered(&mut self, scratch: &Scratch, policy: &Policy) -> Result<bool, Reject> {
        let framing = self.head.fields.framing;
        if framing == Framing::Empty || self.head.fields.expect_continue {
            return Ok(true);
        }
        let body = &scratch.unread()[self.head.length..];
        let full = body.len() >= READ_SIZE || scratch.is_full();
        match framing {
            Framing::Empty => Ok(true),
            Framing::Length(length) => Ok(full || body.len() as u64 >= length),
            Framing::Chunked => {
                let (decoder, followed) =
                    self.probe.get_or_insert_with(|| (Decoder::new(framing, &policy.limits), 0));
                while *followed < body.len() && !decoder.is_done() {
                    *followed += decoder.decode(&body[*followed..])?.consumed;
                }
                Ok(full || decoder.is_done())
            }
        }
    }

    /// Whether `octets` behind the head hold the whole body.
    pub(crate) fn body_is_whole(&self, octets: usize) -> bool {
        match self.head.fields.framing {
            Framing::Empty => true,
            Framing::Length(length) => octets as u64 >= length,
            Framing::Chunked => self.probe.as_ref().is_some_and(|(decoder, _)| decoder.is_done()),
        }
    }

    /// Answers with an error page and closes in stages.
    fn refuse(&mut self, reject: Reject, turn: &mut Turn<'_>) -> Next {
        log::warn!("Invalid request from ip={}: {}", self.client(), reject.text());
        let mut page = Vec::new();
        reject.page(turn.desk.date.at(clock::unix_seconds()), &mut page);
        if let Some(access) = turn.access {
            access.refused(reject, self.client(), page.len());
        }
        turn.desk.scratch.start = turn.desk.scratch.end;
        self.out.push(Segment::Bytes { bytes: page, at: 0 });
        self.fate = Fate::Linger;
        self.reply(turn)
    }

    /// When the request reached a proxy that may say so, in microseconds since the epoch.
    pub fn told_start(&self, octets: &[u8]) -> Option<u64> {
        let block = octets.get(self.head.fields_at..).filter(|_| self.trusted)?;
        let named = |field: &&Field| field.name.of(block).eq_ignore_ascii_case(b"x-request-start");
        proxy::request_start(self.head.fields.list.iter().find(named)?.value.of(block))
    }

    /// Answers a complete request in the application's place, in the state in which that would be called.
    pub fn turn_away(&mut self, reject: Reject, turn: &mut Turn<'_>) -> Next {
        let mut page = Vec::new();
        reject.page(turn.desk.date.at(clock::unix_seconds()), &mut page);
        let octets = turn.desk.scratch.unread();
        let (method, target) = (self.head.start.method.of(octets), self.head.start.target.of(octets));
        if method == b"HEAD" {
            without_body(&mut page);
        }
        if let Some(access) = turn.access {
            access.answered(reject, self.client(), page.len(), &Known { method, target, elapsed: 0 });
        }
        turn.desk.scratch.start = turn.desk.scratch.end;
        self.out.push(Segment::Bytes { bytes: page, at: 0 });
        self.fate = Fate::Linger;
        self.reply(turn)
    }

    /// Ends a complete request whose client has gone: nobody would read the answer.
    pub fn abandon(&mut self, turn: &mut Turn<'_>) -> Next {
        let octets = turn.desk.scratch.unread();
        let (method, target) = (self.head.start.method.of(octets), self.head.start.target.of(octets));
        if let Some(access) = turn.access {
            access.answered(Reject::ClientGone, self.client(), 0, &Known { method, target, elapsed: 0 });
        }
        turn.desk.scratch.start = turn.desk.scratch.end;
        self.close()
    }

    /// The deadline of a state that waits for the peer's octets has passed.
    fn expire(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.state == State::Idle {
            return self.last_look(turn);
        }
        turn.desk.scratch.load(&mut self.pending);
        self.refuse(Reject::RequestTimeout, turn)
    }

    /// A request may have come in the very moment of the deadline; closing on it would cost the client an answer.
    fn last_look(&mut self, turn: &mut Turn<'_>) -> Next {
        match self.read(turn) {
            Next::Wait(_) if self.state == State::Idle => self.close(),
            next => next,
        }
    }

    fn answered(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.fate == Fate::Cut {
            return self.close_cut();
        }
        if self.out.is_empty() && !self.transport.is_secure() {
            return self.replied(turn);
        }
        self.reply(turn)
    }

    /// The rest of the response is in `out`; input that came ahead of its turn is kept.
    fn reply(&mut self, turn: &mut Turn<'_>) -> Next {
        self.go(State::Reply);
        turn.desk.scratch.store(&mut self.pending);
        self.pace = Pace::new(turn.now, turn.settings.write_timeout);
        self.deadline = self.pace.deadline();
        self.flush(turn)
    }

    fn flush(&mut self, turn: &mut Turn<'_>) -> Next {
        match self.send_rest() {
            Ok(Flushed::All) => {
                turn.desk.scratch.load(&mut self.pending);
                self.replied(turn)
            }
            Ok(Flushed::Some(octets)) => {
                self.pace.progress(turn.now, octets);
                self.deadline = self.pace.deadline();
                Next::Wait(Interest::Write)
            }
            Err(e) => {
                log::debug!("Response to {} broke off: {e}", self.client());
                self.out.clear();
                // Not as if it were whole: in TLS that would be said by a close_notify.
                self.closed()
            }
        }
    }

    fn send_rest(&mut self) -> io::Result<Flushed> {
        match self.out.flush(&self.transport)? {
            Flushed::All if self.fate != Fate::Keep && !self.transport.finish()? => Ok(Flushed::Some(0)),
            flushed => Ok(flushed),
        }
    }

    /// The response is out; what follows it?
    fn replied(&mut self, turn: &mut Turn<'_>) -> Next {
        match self.fate {
            Fate::Keep => self.next_request(turn),
            Fate::Close if turn.desk.scratch.is_empty() => {
                turn.desk.spare = std::mem::take(&mut self.head);
                self.close()
            }
            Fate::Close | Fate::Linger => self.linger(turn),
            Fate::Cut => self.close_cut(),
        }
    }

    fn next_request(&mut self, turn: &mut Turn<'_>) -> Next {
        self.go(State::Idle);
        self.deadline = turn.now + turn.settings.keepalive;
        if turn.closing || turn.draining && self.is_bound() {
            self.hurry(turn);
        }
        if turn.desk.scratch.is_empty() {
            return self.park(turn);
        }
        self.take_in(turn)
    }

    fn linger(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.transport.shutdown_write().is_err() {
            return self.close();
        }
        turn.desk.scratch.start = turn.desk.scratch.end;
        self.pending = Vec::new();
        self.go(State::Linger);
        self.deadline = turn.now + LINGER;
        self.drain_input(turn)
    }

    fn drain_input(&mut self, turn: &mut Turn<'_>) -> Next {
        while self.lingered < LINGER_OCTETS {
            match turn.desk.scratch.discard(&self.transport) {
                Ok(0) => return self.close(),
                Ok(octets) => self.lingered += octets,
                Err(e) if is_transient(&e) => return Next::Wait(Interest::Read),
                Err(_) => return self.close(),
            }
        }
        self.close()
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
        Call => matches!(to, Idle | Reply | Linger | Closed),
        Reply => matches!(to, Idle | Linger | Closed),
        Linger => to == Closed,
        Closed => false,
    }
}

pub(crate) fn is_transient(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
