//! Owns: how a response leaves a connection, and what follows it: the next request, or the close, in stages where octets
//! may be unread (RFC 9112 §9.6). Also the answers that the application has no part in.
//! Rule: the next request is not looked at before the response is out, and not at all after a refusal.
//! Never: makes a response of the application; `exchange` has left the rest of one in `out`.

use std::io;

use super::{is_transient, Conn, Fate, Next, State, Turn};
use crate::access_sink::Known;
use crate::buffer::{Flushed, Segment};
use crate::http::reject::without_body;
use crate::http::Reject;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::Interest;
use crate::timers::Pace;

/// How long a closing connection is read so that the peer can take our last octets, and how much (RFC 9112 §9.6).
const LINGER: Nanos = 2 * SECOND;
const LINGER_OCTETS: usize = 1 << 20;

impl Conn {
    /// Answers with an error page and closes in stages.
    pub(super) fn refuse(&mut self, reject: Reject, turn: &mut Turn<'_>) -> Next {
        log::warn!("Invalid request from ip={}: {}", self.client(), reject.text());
        let mut page = Vec::new();
        reject.page(turn.desk.date.at(clock::unix_seconds()), &mut page);
        if let Some(access) = turn.access {
            access.refused(reject, self.client(), page.len());
        }
        self.reply_with(page, turn)
    }

    fn reply_with(&mut self, page: Vec<u8>, turn: &mut Turn<'_>) -> Next {
        turn.desk.scratch.forget();
        self.out.push(Segment::Bytes { bytes: page, at: 0 });
        self.fate = Fate::Linger;
        self.reply(turn)
    }

    fn known<'a>(&self, octets: &'a [u8]) -> Known<'a> {
        let start = &self.head.start;
        Known { method: start.method.of(octets), target: start.target.of(octets), elapsed: 0 }
    }

    /// Answers a complete request in the application's place, in the state in which that would be called.
    pub fn turn_away(&mut self, reject: Reject, turn: &mut Turn<'_>) -> Next {
        let mut page = Vec::new();
        reject.page(turn.desk.date.at(clock::unix_seconds()), &mut page);
        let known = self.known(turn.desk.scratch.unread());
        if known.method == b"HEAD" {
            without_body(&mut page);
        }
        if let Some(access) = turn.access {
            access.answered(reject, self.client(), page.len(), &known);
        }
        self.reply_with(page, turn)
    }

    /// Ends a complete request whose client has gone: nobody would read the answer.
    pub fn abandon(&mut self, turn: &mut Turn<'_>) -> Next {
        let known = self.known(turn.desk.scratch.unread());
        if let Some(access) = turn.access {
            access.answered(Reject::ClientGone, self.client(), 0, &known);
        }
        turn.desk.scratch.forget();
        self.close()
    }

    pub(super) fn answered(&mut self, turn: &mut Turn<'_>) -> Next {
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

    pub(super) fn flush(&mut self, turn: &mut Turn<'_>) -> Next {
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

    pub(super) fn linger(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.transport.shutdown_write().is_err() {
            return self.close();
        }
        turn.desk.scratch.forget();
        self.pending = Vec::new();
        self.go(State::Linger);
        self.deadline = turn.now + LINGER;
        self.drain_input(turn)
    }

    pub(super) fn drain_input(&mut self, turn: &mut Turn<'_>) -> Next {
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
