//! Owns: the time for which an application may be silent: noticing that it is over, from outside the thread that runs it.
//! Rule: whoever can get an answer gets one: 504 when nothing has been sent. The log names the request, its connection,
//! its age and the silence, and shows what every thread is doing; the worker is replaced, as nobody knows what state it is in.
//! Never: takes the interpreter: a thread that is stuck may have it.

use std::sync::Arc;

use super::table::Entry;
use super::{lock, EventLoop};
use crate::access_sink::Known;
use crate::conn::Desk;
use crate::exchange::claim::{Overrun, Ticket};
use crate::http::reject::without_body;
use crate::http::Reject;
use crate::log::critical;
use crate::scoreboard::InFlight;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::{process, socket};
use crate::transport::{Peer, Tls};

/// Whose patience has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Timeout,
    /// The worker drains, and no request may run on.
    Graceful,
}

impl Limit {
    fn option(self) -> &'static str {
        match self {
            Limit::Timeout => "--timeout",
            Limit::Graceful => "--graceful-timeout",
        }
    }
}

impl EventLoop {
    /// Ends the requests in which the application has been silent longer than it may; returns when the next of them will
    /// have. One whose client is waited for cannot have before it has the time from now on.
    pub(super) fn enforce_timeout(&self, now: Nanos, desk: &mut Desk) -> Nanos {
        let mut next = now.saturating_add(self.plan.timeout);
        for thread in 0..self.calls.len() {
            let seen = self.calls[thread].look();
            // Read after the claim: it is of the call that was seen, or of a later one.
            let Some(silent) = self.plan.slot.silent_since(thread).filter(|_| seen.is_running()) else {
                continue;
            };
            let due = silent.saturating_add(self.plan.timeout);
            if due <= now {
                self.expire(thread, seen, Limit::Timeout, now, desk);
            } else {
                next = next.min(due);
            }
        }
        next
    }

    /// Ends every request. True when some may have a moment more: the connection that the application had taken over was
    /// closed under it just now.
    pub(super) fn expire_all(&self, now: Nanos, desk: &mut Desk) -> bool {
        let mut waits = false;
        for thread in 0..self.calls.len() {
            let seen = self.calls[thread].look();
            if self.hang_up(thread, seen) {
                waits = true;
            } else if seen.is_running() || seen.is_taken() {
                self.expire(thread, seen, Limit::Graceful, now, desk);
            }
        }
        waits
    }

    fn hang_up(&self, thread: usize, seen: Ticket) -> bool {
        let request = self.plan.slot.request(thread);
        let Some(fd) = self.calls[thread].hang_up(seen) else {
            return false;
        };
        // A client that has gone has ended it already.
        let _ = socket::end_number(fd);
        self.calls[thread].hung_up();
        if let Some(InFlight { method, target, .. }) = request {
            let option = Limit::Graceful.option();
            log::info!("Closed the connection that {method} {target} has taken over ({option})");
        }
        true
    }

    fn expire(&self, thread: usize, seen: Ticket, limit: Limit, now: Nanos, desk: &mut Desk) {
        let request = self.plan.slot.request(thread);
        let silent = self.plan.slot.silent_since(thread).unwrap_or(now);
        let claim = &self.calls[thread];
        self.freeze(true);
        self.plan.overrun.begins(thread);
        let telling = lock(&self.telling);
        let (fd, outcome) = match claim.overrun(seen) {
            Overrun::Gone | Overrun::Replied { .. } => {
                drop(telling);
                return self.thaw(thread);
            }
            Overrun::TooLate(fd) => (fd, "its response had begun"),
            Overrun::Answer(fd) => {
                let outcome = self.answer(fd, request.as_ref(), desk);
                claim.answered();
                (fd, outcome)
            }
        };
        if let Some(request) = request {
            self.report(thread, fd, (&request, silent), (limit, outcome), now);
        }
        drop(telling);
        let runs = || claim.look().is_overdue();
        let free = self.plan.overrun.deal(thread, &runs);
        // A call that is over by now has thawed the worker itself, perhaps too early.
        if free || !runs() {
            self.freeze(false);
        }
        self.retire();
    }

    /// A request that ran too long, or nearly so, has ended: if it kept the interpreter to itself, it does so no longer.
    pub(super) fn thaw(&self, thread: usize) {
        self.plan.overrun.ended(thread);
        self.freeze(false);
    }

    /// No new request is taken until it is known that some thread here can still serve it: those that come wait, and go
    /// to the worker that replaces this one.
    fn freeze(&self, frozen: bool) {
        let mut table = lock(&self.table);
        table.frozen = frozen;
        self.adjust_listening(&mut table);
        let waits = |entry: &Entry| entry.conn.as_ref().is_some_and(|conn| conn.may_move());
        let waiting =
            table.entries.iter().filter(|(_, entry)| waits(entry) && entry.watched.is_some() == frozen);
        for key in waiting.map(|(key, _)| key).collect::<Vec<_>>() {
            let Some(conn) = self.pick(&mut table, key) else {
                continue;
            };
            if frozen {
                self.unwatch(&mut table, key, &conn);
                self.roll.wait(key, conn.state());
                table.entries[key].conn = Some(conn);
            } else {
                self.put_back(&mut table, key, conn);
            }
        }
        if table.has_turns() {
            self.waker.wake();
        }
    }

    fn report(
        &self,
        thread: usize,
        fd: i32,
        (request, silent): (&InFlight, Nanos),
        (limit, outcome): (Limit, &'static str),
        now: Nanos,
    ) {
        let (peer, _) = self.served(fd);
        let seconds = now.saturating_sub(request.since) / SECOND;
        let silence = match silent > now {
            true => "waiting for its client".to_string(),
            false => format!("silent for {} s", (now - silent) / SECOND),
        };
        let InFlight { method, target, .. } = request;
        critical(format_args!("WORKER TIMEOUT (pid:{})", process::id()));
        critical(format_args!(
            "{method} {target} from ip={peer} has been running for {seconds} s in thread {thread}, {silence}; {outcome} ({})",
            limit.option()
        ));
        if let Some(access) = self.plan.access.as_deref().filter(|_| outcome == ANSWERED) {
            let (method, target) = (method.as_bytes(), target.as_bytes());
            let elapsed = now.saturating_sub(request.since);
            access.answered(Reject::AppTimeout, peer, 0, &Known { method, target, elapsed });
            access.flush();
        }
    }

    /// The peer of a connection that a thread serves, and its TLS if it has that.
    fn served(&self, fd: i32) -> (Peer, Option<Arc<Tls>>) {
        let table = lock(&self.table);
        let served = table.entries.iter().find(|(_, entry)| entry.fd == fd && entry.conn.is_none());
        served.map_or((Peer::Unix, None), |(_, entry)| (entry.peer, entry.tls.clone()))
    }

    fn answer(&self, fd: i32, request: Option<&InFlight>, desk: &mut Desk) -> &'static str {
        let mut page = Vec::new();
        Reject::AppTimeout.page(desk.date.at(clock::unix_seconds()), &mut page);
        if request.is_some_and(|request| request.method == "HEAD") {
            without_body(&mut page);
        }
        let said = match self.served(fd) {
            (_, Some(tls)) => tls.last_words(&page),
            _ => socket::last_words(fd, &page),
        };
        match said {
            Ok(()) => ANSWERED,
            Err(_) => "its client was gone",
        }
    }
}

const ANSWERED: &str = "answered 504";
