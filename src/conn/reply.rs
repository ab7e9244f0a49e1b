//! Owns: how a response leaves a connection, and what follows it: the next request, or the close, in stages where octets
//! may be unread (RFC 9112 §9.6). Also the answers that the application has no part in.
//! Rule: the next request is not looked at before the response is out, and not at all after a refusal.
//! Never: makes a response of the application; `exchange` has left the rest of one in `out`.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::{is_transient, Conn, Fate, Next, State, Turn};
use crate::access_sink::Known;
use crate::buffer::{Flushed, Segment};
use crate::http::reject::without_body;
use crate::http::Reject;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::Interest;
use crate::sys::socket;
use crate::timers::Pace;

/// How long a closing connection is read so that the client can take our last bytes (RFC 9112 §9.6): in all, and without a
/// byte from it (nginx, lingering_time and lingering_timeout). A close before would reset the connection of a client that is
/// still sending, and destroy the answer that it has not read.
const LINGER: Nanos = 30 * SECOND;
const LINGER_PAUSE: Nanos = 5 * SECOND;
/// The same while the worker drains, or when `MOST_LINGERING` others of it are being read already.
const SHORT_LINGER: Nanos = 2 * SECOND;
const MOST_LINGERING: usize = 256;
/// Bytes behind what is no request.
const LINGER_BYTES: u64 = 64 << 20;
/// Reads in a row before other connections have their turn.
const READS_IN_TURN: usize = 16;

/// A connection that is read to its end.
pub(super) struct Linger {
    until: Nanos,
    bytes_left: u64,
    count: Arc<AtomicUsize>,
}

impl Linger {
    fn new(now: Nanos, bytes_left: u64, count: &Arc<AtomicUsize>, is_draining: bool) -> Linger {
        let others = count.fetch_add(1, Relaxed);
        let most = if is_draining || others >= MOST_LINGERING { SHORT_LINGER } else { LINGER };
        Linger { until: now + most, bytes_left, count: count.clone() }
    }
}

impl Drop for Linger {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

impl Conn {
    /// Answers with an error page and closes in stages.
    pub(super) fn refuse(&mut self, reject: Reject, turn: &mut Turn<'_>) -> Next {
        log::warn!("Invalid request from ip={}: {}", self.client(), reject.text());
        let mut page = Vec::new();
        reject.page(turn.desk.date.at(clock::unix_seconds()), &mut page);
        if let Some(access) = turn.access {
            access.refused(reject, self.client(), page.len());
        }
        let fate = if reject == Reject::BodyTooLarge { Fate::Linger } else { Fate::Refused };
        self.reply_with(page, fate, turn)
    }

    fn reply_with(&mut self, page: Vec<u8>, fate: Fate, turn: &mut Turn<'_>) -> Next {
        self.body = None;
        turn.desk.scratch.forget();
        self.out.push(Segment::Bytes { bytes: page, at: 0 });
        self.fate = fate;
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
        self.reply_with(page, Fate::Linger, turn)
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
            return self.closed();
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
            // What is broken off has no close_notify behind it: that would say that nothing is missing.
            Flushed::All if matches!(self.fate, Fate::Keep | Fate::Broken) => Ok(Flushed::All),
            Flushed::All if !self.transport.finish()? => Ok(Flushed::Some(0)),
            flushed => Ok(flushed),
        }
    }

    /// The response is out; what follows it?
    fn replied(&mut self, turn: &mut Turn<'_>) -> Next {
        self.set_until_close(false);
        match self.fate {
            Fate::Keep => self.next_request(turn),
            Fate::Close if turn.desk.scratch.is_empty() => {
                turn.desk.spare = std::mem::take(&mut self.head);
                self.close()
            }
            Fate::Close | Fate::Linger | Fate::Refused => self.linger(turn),
            Fate::Broken => self.break_off(turn),
            Fate::Cut => self.closed(),
        }
    }

    /// The client has taken nothing of the rest of its response for too long.
    pub(super) fn give_up(&mut self, turn: &mut Turn<'_>) -> Next {
        match self.until_close {
            true => self.closed(),
            false => self.break_off(turn),
        }
    }

    /// Ends the stream after what was sent, so that the client gets all of it and sees that its framing promised more.
    fn break_off(&mut self, turn: &mut Turn<'_>) -> Next {
        self.out.clear();
        // Not `Transport::shutdown_write`, which says in TLS that nothing is missing.
        if socket::shutdown_write(self.as_fd()).is_err() {
            return self.closed();
        }
        self.read_to_end(turn)
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
        self.read_to_end(turn)
    }

    /// Our side has ended.
    fn read_to_end(&mut self, turn: &mut Turn<'_>) -> Next {
        turn.desk.scratch.forget();
        self.pending = Vec::new();
        self.go(State::Linger);
        let bytes = if self.fate == Fate::Linger { u64::MAX } else { LINGER_BYTES };
        let linger = Linger::new(turn.now, bytes, &turn.settings.lingering, turn.draining || turn.closing);
        self.deadline = linger.until.min(turn.now + LINGER_PAUSE);
        self.linger = Some(linger);
        self.drain_input(turn)
    }

    /// The worker drains.
    pub(super) fn linger_less(&mut self, turn: &Turn<'_>) -> Next {
        if let Some(linger) = &mut self.linger {
            linger.until = linger.until.min(turn.now + SHORT_LINGER);
            self.deadline = self.deadline.min(linger.until);
        }
        self.wait_on()
    }

    pub(super) fn drain_input(&mut self, turn: &mut Turn<'_>) -> Next {
        let Some(linger) = self.linger.as_mut().filter(|linger| linger.until > turn.now) else {
            return self.close();
        };
        for _ in 0..READS_IN_TURN {
            match turn.desk.scratch.discard(&self.transport) {
                Ok(0) => return self.close(),
                Ok(bytes) if linger.bytes_left < bytes as u64 => return self.close(),
                Ok(bytes) => {
                    linger.bytes_left -= bytes as u64;
                    self.deadline = linger.until.min(turn.now + LINGER_PAUSE);
                }
                Err(e) if is_transient(&e) => break,
                Err(_) => return self.close(),
            }
        }
        Next::Wait(Interest::Read)
    }
}
