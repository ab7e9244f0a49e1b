//! Owns: what becomes of ready connections while every thread of the worker is in the application.
//! Rule: the helper holds the lead for one look at a time and gives it back between two, so a thread that returns from
//! the application waits for that much at most. What cannot be moved is left as it was found.
//! Never: calls the application, waits.

use std::sync::atomic::Ordering::Relaxed;

use super::table::Job;
use super::{lock, EventLoop, Lead, CONTROL, SPECIAL, WAKE};
use crate::conn::{Conn, Desk, Event, State};
use crate::scoreboard::Phase;
use crate::sys::clock;
use crate::sys::poll::Events;

/// What a look is for.
#[derive(Clone, Copy)]
pub(super) struct Errand {
    /// Connections moved at most.
    pub(super) most: usize,
    /// The call that keeps the leader is long: what stays joins the ready queue, in the order in which it became ready.
    pub(super) is_long: bool,
}

/// Connections moved in one look.
pub(super) const MOST_MOVES: usize = 64;

/// How a look ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing is left that is ready.
    Clean,
    /// Something is ready that has to wait.
    Stuck,
}

impl EventLoop {
    /// Looks once at what is ready: moves some connections to an idle worker, sends what is only to be sent, reads
    /// bodies, hears controls.
    pub(super) fn look(&self, lead: &mut Lead, errand: Errand, events: &mut Events, desk: &mut Desk) -> Look {
        self.stop_accepting(lead);
        if errand.is_long {
            self.queue_events(lead);
        }
        if let Err(e) = self.poller.wait(events, Some(0)) {
            log::error!("Cannot look for connections: {e}");
            return Look::Stuck;
        }
        let mut room = if self.has_taker() { errand.most } else { 0 };
        let mut look = self.move_queued(&mut room);
        for token in events {
            let done = match token & SPECIAL {
                0 => self.move_on(token, &mut room, desk),
                _ => self.special(token, lead, desk),
            };
            if !done {
                look = Look::Stuck;
                if errand.is_long {
                    lock(&self.table).ready.push(token);
                }
            }
        }
        if self.pass_arrivals(lead, &mut room, desk) == Look::Stuck {
            look = Look::Stuck;
        }
        if let Some(limit) = self.plan.queue_timeout.filter(|_| room == 0) {
            self.shed_queued(limit, desk);
            self.shed_arrivals(lead, limit, desk);
        }
        self.end_waits(desk);
        look
    }

    /// Leaves requests that are complete and have found no thread to the other workers, the first first.
    fn move_queued(&self, room: &mut usize) -> Look {
        let mut table = lock(&self.table);
        let is_ready = |conn: &Conn| conn.state() == State::Ready && conn.may_move();
        let keys: Vec<usize> = table.queued(is_ready).take((*room).max(1)).collect();
        for key in keys {
            if *room == 0 || !self.give_away(&mut table, key) {
                return Look::Stuck;
            }
            *room -= 1;
        }
        Look::Clean
    }

    /// Ends what has waited long enough, but for what has just come.
    fn end_waits(&self, desk: &mut Desk) {
        let now = clock::monotonic();
        let mut kept = Vec::new();
        while let Some(key) = self.next_expired(now) {
            if self.is_in_queue(key) {
                continue;
            }
            let Some(mut conn) = self.pick(&mut lock(&self.table), key) else {
                continue;
            };
            // What has come of a body is read by `expire`.
            let begun = !matches!(conn.state(), State::Idle | State::Body);
            if begun && (conn.may_move() || conn.is_bound()) && conn.has_input() {
                kept.push(Job { key, conn });
                continue;
            }
            let next = conn.advance(Event::Expired, &mut self.turn(desk, now));
            // A request that has just come waits for a thread.
            if let Some(job) = self.settle(Job { key, conn }, next) {
                self.postpone(job, desk);
            }
        }
        let mut table = lock(&self.table);
        kept.into_iter().for_each(|Job { key, conn }| self.put_back(&mut table, key, conn));
    }

    /// Whether a connection left in the mailbox would be served at once; one that drains leaves it to whoever is there.
    pub(super) fn has_taker(&self) -> bool {
        match self.plan.slot.phase() {
            Phase::Draining => self.has_successor(),
            _ => !self.is_last() && self.plan.slot.has_idle_sibling(),
        }
    }

    /// The kernel has given us some connections already; those that come from now on are for the others.
    fn stop_accepting(&self, lead: &mut Lead) {
        if self.plan.notice.ready() < 2 || std::mem::replace(&mut lead.rescued, true) {
            return;
        }
        let mut table = lock(&self.table);
        table.rescued = true;
        if table.listening {
            self.adjust_listening(&mut table);
            lead.accepts = self.sources().map(|source| (source, 1)).collect();
        }
    }

    /// True when nothing more is to be done about it.
    fn special(&self, token: u64, lead: &mut Lead, desk: &mut Desk) -> bool {
        let index = (token & 0xffff_ffff) as usize;
        match token & !0xffff_ffff {
            CONTROL => {
                let directive = (lead.control)(index);
                self.obey(directive, index, lead, desk);
            }
            WAKE => self.waker.clear(),
            // A listener or the mailbox; without other workers, those who come wait here.
            _ => return false,
        }
        true
    }

    /// True when nothing more is to be done about a connection that is ready.
    fn move_on(&self, token: u64, room: &mut usize, desk: &mut Desk) -> bool {
        let key = (token & 0xffff_ffff) as usize;
        let Some(mut conn) = self.take(key, token) else {
            return true;
        };
        if conn.is_only_sending() {
            let event = if conn.state() == State::Reply { Event::Writable } else { Event::Readable };
            let next = conn.advance(event, &mut self.turn(desk, clock::monotonic()));
            // With no input left there is nothing to call the application for.
            let call = self.settle(Job { key, conn }, next);
            debug_assert!(call.is_none());
            return true;
        }
        if conn.state() == State::Body {
            return self.read_body(Job { key, conn }, desk);
        }
        if *room == 0 && self.is_overdue(&conn) {
            self.shed(Job { key, conn }, desk);
            return true;
        }
        self.move_or_keep(Job { key, conn }, room)
    }

    /// Goes on reading a body, for which no thread is needed; false when the request is complete and waits for one.
    fn read_body(&self, Job { key, mut conn }: Job, desk: &mut Desk) -> bool {
        let next = conn.advance(Event::Readable, &mut self.turn(desk, clock::monotonic()));
        match self.settle(Job { key, conn }, next) {
            Some(job) => {
                self.postpone(job, desk);
                false
            }
            None => true,
        }
    }

    /// Leaves a connection to the other workers; false when it stays.
    pub(super) fn move_or_keep(&self, Job { key, conn }: Job, room: &mut usize) -> bool {
        let mut table = lock(&self.table);
        if *room > 0 && conn.may_move() && self.post(&mut table, key, &conn) {
            *room -= 1;
            self.forget(&mut table, key);
            return true;
        }
        self.put_back(&mut table, key, conn);
        false
    }

    /// Connections that came to this worker, and that it has not taken: the others have not been told of them. Where there
    /// will be no others, all wait here.
    fn pass_arrivals(&self, lead: &mut Lead, room: &mut usize, desk: &mut Desk) -> Look {
        let closing = self.closing.load(Relaxed);
        while let Some((source, _)) = lead.accepts.last().copied() {
            if *room == 0 && !closing {
                return Look::Stuck;
            }
            match self.arrival(source, lead) {
                Ok(Some(arrival)) => {
                    let job = self.admit(arrival, desk);
                    let moved = job.is_none_or(|job| self.move_or_keep(job, room));
                    if !moved && !closing {
                        return Look::Stuck;
                    }
                }
                Ok(None) => {
                    self.exhausted(source);
                    lead.accepts.pop();
                }
                Err(e) => {
                    self.accept_failed(&e, source, lead);
                    lead.accepts.pop();
                }
            }
        }
        Look::Clean
    }
}
