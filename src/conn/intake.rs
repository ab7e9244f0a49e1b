//! Owns: what comes in for a connection until the application can be called: reads, the head, deadlines.
//! Rule: what has been parsed in vain is not parsed again, and a slow client stretches no deadline by more octets.
//! Never: answers; what is refused is refused by `reply`.

use std::io;

use super::{is_transient, Conn, Next, State, Turn};
use crate::http::parse::{self, Status};
use crate::http::{Field, Framing, Policy, Reject};
use crate::proxy;
use crate::proxy_protocol::Preface;
use crate::sys::clock::SECOND;
use crate::timers::{Pace, Seldom};
use crate::tls::Failure;

static MISNAMED: Seldom = Seldom::new(60 * SECOND);
/// The longest field block worth remembering for a connection.
const MEMO_OCTETS: usize = 4096;

impl Conn {
    pub(super) fn read(&mut self, turn: &mut Turn<'_>) -> Next {
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
                self.received = self.received.wrapping_add(octets);
                self.take_in(turn)
            }
            // What another worker has read along is not parsed yet, and may be all of a request.
            Err(e) if is_transient(&e) && self.scan.is_none() && self.state == State::Head => {
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
            Some(failure) => {
                log::debug!("TLS with {} failed: {e}", self.client());
                if failure == Failure::ServerName && MISNAMED.is_due(turn.now) {
                    log::warn!(
                        "TLS with ip={} failed: the server name that it asks for is no DNS name, such as one with a port \
                         (said at most once a minute)",
                        self.client()
                    );
                }
                self.linger(turn)
            }
        }
    }

    pub(super) fn vanished(&mut self) -> Next {
        if self.state != State::Idle {
            log::debug!("Client {} left in the middle of a request", self.client());
        }
        self.close()
    }

    /// Waits for more input, with the deadline of the state.
    pub(super) fn park(&mut self, turn: &mut Turn<'_>) -> Next {
        turn.desk.scratch.store(&mut self.pending);
        if self.state == State::Body {
            self.deadline = self.pace.deadline();
        }
        self.wait_on()
    }

    /// Makes what it can of the octets in the scratch.
    pub(super) fn take_in(&mut self, turn: &mut Turn<'_>) -> Next {
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
        match self.take_body(turn) {
            Ok(true) => {
                self.go(State::Call);
                Next::Call
            }
            Ok(false) => self.wait_for_body(turn),
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
        let bytes = turn.desk.scratch.unread();
        self.repeated = self.repeat(bytes, policy);
        if self.repeated {
            return Ok(Status::Complete);
        }
        let status = parse::more(bytes, policy, self.trusted, &mut self.scan, &mut self.head)?;
        self.acceptable(status, bytes)
    }

    /// Where something is to be accepted that the rules refuse.
    fn read_lenient_head(&mut self, turn: &mut Turn<'_>) -> Result<Status, Reject> {
        let policy = &turn.settings.policy;
        self.repeated = self.repeat(turn.desk.scratch.unread(), policy);
        if self.repeated {
            return Ok(Status::Complete);
        }
        let bytes = turn.desk.scratch.unread_mut();
        let status = parse::lenient(bytes, policy, self.trusted, &mut self.scan, &mut self.head)?;
        self.acceptable(status, bytes)
    }

    /// RFC 9110 §9.3.6: what follows CONNECT is no HTTP; a server that makes no tunnels must not read on.
    fn acceptable(&self, status: Status, bytes: &[u8]) -> Result<Status, Reject> {
        match status == Status::Complete && self.head.start.method.of(bytes) == b"CONNECT" {
            true => Err(Reject::UnsupportedMethod),
            false => Ok(status),
        }
    }

    /// Whether the head's field block is, octet for octet, that of the request before; then only its start line is read.
    fn repeat(&mut self, bytes: &[u8], policy: &Policy) -> bool {
        if self.block.is_empty() || self.scan.is_some() {
            return false;
        }
        match parse::repeats(bytes, &self.block) {
            Some(length) => parse::same_fields(&bytes[..length], policy, &mut self.head),
            None => false,
        }
    }

    fn head_complete(&mut self, turn: &Turn<'_>) {
        self.scan = None;
        (self.body, self.chunked_length, self.ready_since) = (None, None, None);
        self.requests = self.requests.saturating_add(1);
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

    /// When the request reached a proxy that may say so, in microseconds since the epoch.
    pub fn told_start(&self, octets: &[u8]) -> Option<u64> {
        let block = octets.get(self.head.fields_at..).filter(|_| self.trusted)?;
        let named = |field: &&Field| field.name.of(block).eq_ignore_ascii_case(b"x-request-start");
        proxy::request_start(self.head.fields.list.iter().find(named)?.value.of(block))
    }

    /// The deadline of a state that waits for the client's bytes has passed. They may have come while no thread was there to
    /// read them: a request is not ended by time in which the server has kept its client waiting.
    pub(super) fn expire(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.state == State::Idle {
            return self.last_look(turn);
        }
        let (state, before) = (self.state, self.received);
        let next = self.read(turn);
        match (next, self.state) {
            (Next::Wait(_), State::Body) if state != State::Body || self.received != before => {
                self.pace = Pace::new(turn.now, turn.settings.body_timeout);
                self.deadline = self.pace.deadline();
                next
            }
            (Next::Wait(_), State::Head | State::Body) => {
                turn.desk.scratch.load(&mut self.pending);
                self.refuse(Reject::RequestTimeout, turn)
            }
            _ => next,
        }
    }

    /// A request may have come in the very moment of the deadline; closing on it would cost the client an answer. Where the
    /// peer can be told that no more is read, the last look comes after that: a request is then served, or its client knows
    /// that it was not sent. In TCP the look and the close follow each other at once, and only what is on its way in the
    /// network at that moment meets the close (RFC 9112 §9.5).
    fn last_look(&mut self, turn: &mut Turn<'_>) -> Next {
        let next = self.read(turn);
        if !matches!(next, Next::Wait(_)) || self.state != State::Idle {
            return next;
        }
        if !self.transport.refuse_input(self.peer) {
            return self.close();
        }
        self.is_last = true;
        self.read(turn)
    }
}
