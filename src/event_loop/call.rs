//! Owns: serving a complete request: the call, what it does to the scoreboard, who leads the loop meanwhile.
//! Rule: the thread that read a request serves it, unless others that are ready have their turn before it; it is then
//! served by whichever thread is free when its turn has come. The lead is lent for the time of a call, as most calls are
//! over before anybody could take it; where calls have been long lately, or run side by side, it is handed on at once.
//! A connection whose requests come without a pause has a bounded share of the thread; then others that are ready are next.
//! Never: waits.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering::Relaxed;

use super::outlet::Outlet;
use super::table::Job;
use super::{EventLoop, Lead};
use crate::app::{Caller, Verdict};
use crate::conn::{Desk, Event};
use crate::defect;
use crate::exchange::{Exchange, Site};
use crate::scoreboard::Phase;
use crate::sys::clock::{self, Nanos, SECOND};

/// A call that takes so long, from when it has the interpreter (threads that wait for each other's are no reason to have
/// more of them), is one that another thread should not wait for.
const LONG_CALL: Nanos = SECOND / 1000;
/// A long call counts as so many short ones: more than one in `LONG_WEIGHT` and the lead is handed on before each.
const LONG_WEIGHT: u32 = 4;
const BLOCKING: u32 = 8;
const MOST_HABIT: u32 = 32;

/// Requests of one connection, sent ahead of their answers, that are served before others have their turn; and the time.
const MOST_IN_A_ROW: u32 = 10;
const SLICE: Nanos = SECOND / 100;

/// What a connection has had of a thread since its turn began.
#[derive(Default)]
struct Share {
    requests: u32,
    time: Nanos,
}

impl Share {
    fn add(&mut self, elapsed: Nanos) {
        self.requests += 1;
        self.time = self.time.saturating_add(elapsed);
    }

    fn is_used_up(&self) -> bool {
        self.requests >= MOST_IN_A_ROW || self.time >= SLICE
    }
}

/// What a call of `elapsed` makes of the habit.
fn learnt(habit: u32, elapsed: Nanos) -> u32 {
    match elapsed >= LONG_CALL {
        true => (habit + LONG_WEIGHT).min(MOST_HABIT),
        false => habit.saturating_sub(1),
    }
}

impl EventLoop {
    /// Whether a parked thread is to lead during the coming call, rather than the helper's finding out about it.
    pub(super) fn hands_lead_on(&self, lead: &Lead) -> bool {
        match self.plan.threads {
            1 => false,
            _ if self.plan.parallel => lead.round > 0 || !lead.events.is_empty() || !lead.accepts.is_empty(),
            _ => self.habit.load(Relaxed) >= BLOCKING,
        }
    }

    /// Serves a request and some of those that were sent right behind it, then gives the connection back to the loop.
    pub(super) fn serve(&self, mut job: Job, thread: usize, desk: &mut Desk, caller: &mut dyn Caller) {
        if let Some(limit) = self.plan.queue_timeout {
            match self.admit_to_call(job, limit, desk) {
                Some(admitted) => job = admitted,
                None => return,
            }
        }
        let mut share = Share::default();
        loop {
            let entered = self.call(&mut job, thread, desk, caller);
            let now = clock::monotonic();
            self.learn(now - entered);
            share.add(now - entered);
            let next = job.conn.advance(Event::Answered, &mut self.turn(desk, now));
            match self.settle(job, next) {
                Some(_) if self.stopped.load(Relaxed) => return,
                Some(again) if share.is_used_up() => return self.give_way(again, desk),
                Some(again) => job = again,
                None => return,
            }
        }
    }

    fn learn(&self, elapsed: Nanos) {
        let habit = self.habit.load(Relaxed);
        if elapsed >= LONG_CALL || habit > 0 {
            self.habit.store(learnt(habit, elapsed), Relaxed);
        }
    }

    /// Returns when the application was entered.
    fn call(&self, job: &mut Job, thread: usize, desk: &mut Desk, caller: &mut dyn Caller) -> Nanos {
        let Job { key, conn } = job;
        let started = clock::monotonic();
        let octets = desk.scratch.unread();
        let start = &conn.head.start;
        self.plan.slot.begin(thread, started, start.method.of(octets), start.target.of(octets));
        self.count();
        let claim = &self.calls[thread];
        claim.open(conn.as_fd().as_raw_fd());
        let site = Site {
            settings: &self.plan.settings,
            access: self.plan.access.as_deref(),
            closing: if conn.is_bound() { &self.draining } else { &self.closing },
            claim,
            silence: self.plan.slot.silence(thread),
            outlet: &Outlet { event_loop: self, key: *key },
            budget: &self.budget,
        };
        let mut exchange = Exchange::new(conn, desk, site, started);
        defect::planted("call");
        if caller.call(&mut exchange) == Verdict::Stop {
            self.stop();
        }
        let entered = exchange.entered();
        let overdue = exchange.settle();
        self.plan.slot.end(thread);
        if overdue {
            self.thaw(thread);
        }
        entered
    }

    /// At `most_requests` the worker asks for a replacement, and serves on until it has one.
    fn count(&self) {
        let served = self.plan.slot.count_request();
        if served == self.plan.most_requests {
            log::info!("Autorestarting worker after {served} requests (--max-requests)");
            self.retire();
        }
    }

    /// Asks the arbiter for a replacement.
    pub(super) fn retire(&self) {
        if self.plan.slot.phase() == Phase::Ready {
            self.plan.slot.set_phase(Phase::Retiring);
            self.arbiter.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(calls: impl Iterator<Item = bool>) -> u32 {
        calls.fold(0, |habit, long| learnt(habit, if long { LONG_CALL } else { 1000 }))
    }

    #[test]
    fn the_lead_is_handed_on_where_calls_are_long() {
        assert!(after((0..3).map(|_| true)) >= BLOCKING);
        assert!(after((0..100).map(|i| i % 2 == 0)) >= BLOCKING);
    }

    #[test]
    fn a_rare_long_call_changes_nothing_and_an_old_one_is_forgotten() {
        assert!(after((0..1000).map(|i| i % 20 == 0)) < BLOCKING);
        assert_eq!(after((0..2000).map(|i| i < 1000)), 0);
    }
}
