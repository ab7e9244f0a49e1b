//! Owns: the turns of what is ready and cannot be served as it is found: who joins the ready queue, how it is worked off.
//! Rule: between two looks at the poller each member has one turn; what a look finds joins at the end. While the queue is
//! empty, which is so as long as calls are short, events are served straight from the poller.
//! Never: waits.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

use super::table::{token, Job, Table};
use super::{lock, EventLoop, Lead, SPECIAL};
use crate::conn::{Conn, Desk, Event, Next, State};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::is_gone;

impl Table {
    /// Whether the queue waits for the leader. While no thread may be able to serve, it stays as it is.
    pub(super) fn has_turns(&self) -> bool {
        !self.frozen && !self.ready.is_empty()
    }

    /// The connections in the queue that are `wanted`, in its order.
    pub(super) fn queued<'a>(
        &'a self,
        wanted: impl Fn(&Conn) -> bool + 'a,
    ) -> impl Iterator<Item = usize> + 'a {
        let connection = |found: u64| {
            let key = (found & 0xffff_ffff) as usize;
            let entry = self.entries.get(key)?;
            (token(key, entry.generation) == found).then_some((key, entry.conn.as_deref()?))
        };
        let found = self.ready.iter().filter_map(connection);
        found.filter(move |(_, conn)| wanted(conn)).map(|(key, _)| key)
    }

    /// Whether a connection has a place in the queue.
    fn is_queued(&self, key: usize) -> bool {
        self.entries.get(key).is_some_and(|entry| self.ready.contains(token(key, entry.generation)))
    }
}

impl EventLoop {
    /// Puts a connection with a complete request, of `Next::Call`, at the end of the queue. By any thread, the helper too.
    pub(super) fn postpone(&self, mut job: Job, desk: &mut Desk) {
        job.conn.postpone(&mut self.turn(desk, clock::monotonic()));
        let mut table = lock(&self.table);
        if let Some(job) = self.keep_unless_leaving(&mut table, job) {
            let key = job.key;
            self.keep_ready(&mut table, job);
            self.enqueue(&mut table, key);
        }
    }

    /// The same, behind all that is ready now: it has had its share of a thread.
    pub(super) fn give_way(&self, mut job: Job, desk: &mut Desk) {
        job.conn.postpone(&mut self.turn(desk, clock::monotonic()));
        let mut table = lock(&self.table);
        if let Some(job) = self.keep_unless_leaving(&mut table, job) {
            let token = token(job.key, table.entries[job.key].generation);
            self.keep_ready(&mut table, job);
            table.ready.give_way(token);
            self.wake_for_turns(&mut table);
        }
    }

    /// It goes to another worker where this one drains; else it is given back.
    fn keep_unless_leaving(&self, table: &mut Table, Job { key, conn }: Job) -> Option<Job> {
        let leaves = self.draining.load(Relaxed) && !self.closing.load(Relaxed) && conn.may_move();
        if leaves && self.post(table, key, &conn) {
            self.forget(table, key);
            return None;
        }
        Some(Job { key, conn })
    }

    /// Back in the table, with its request. What it is watched for stays as it is: an event is put off (`take`).
    pub(super) fn keep_ready(&self, table: &mut Table, Job { key, conn }: Job) {
        self.roll.wait(key, State::Ready);
        table.entries[key].conn = Some(conn);
    }

    /// Gives a connection that is in the table its place in the queue.
    pub(super) fn enqueue(&self, table: &mut Table, key: usize) {
        let token = token(key, table.entries[key].generation);
        table.ready.push(token);
        self.wake_for_turns(table);
    }

    /// Another thread may lead, and wait. With one thread nobody waits while something is put off.
    fn wake_for_turns(&self, table: &mut Table) {
        if self.plan.threads > 1 && std::mem::take(&mut table.waits_until) > 0 {
            self.waker.wake();
        }
    }

    /// By whoever holds the lead: what the leader has found and not served joins the queue, in its order, so that what is
    /// found from now on comes behind it.
    pub(super) fn queue_events(&self, lead: &mut Lead) {
        if lead.events.is_empty() {
            return;
        }
        let ready = &mut lock(&self.table).ready;
        lead.events.by_ref().for_each(|token| ready.push(token));
    }

    /// Looks at the poller without waiting; what is ready joins the queue.
    fn collect(&self, lead: &mut Lead) {
        match self.poller.wait(&mut lead.events, Some(0)) {
            Ok(_) => self.queue_events(lead),
            Err(e) => {
                log::error!("Cannot look for connections: {e}");
                self.stop();
            }
        }
    }

    /// All that is ready by now has one turn before the next look.
    pub(super) fn begin_round(&self, lead: &mut Lead) {
        self.plan.slot.set_idle(false);
        self.collect(lead);
        lead.round = lock(&self.table).ready.begin_round();
    }

    /// The turn of the first in the queue; a request whose client has left meanwhile is not served.
    pub(super) fn next_queued(&self, lead: &mut Lead, desk: &mut Desk) -> Option<Job> {
        let mut table = lock(&self.table);
        let next = if table.frozen { None } else { table.ready.pop() };
        let Some(token) = next else {
            lead.round = 0;
            return None;
        };
        lead.round -= 1;
        if token & SPECIAL != 0 {
            drop(table);
            return self.dispatch(token, lead, desk);
        }
        let key = (token & 0xffff_ffff) as usize;
        let job = match self.take_ready(&mut table, key, token) {
            Some(mut job) => {
                drop(table);
                let next = job.conn.advance(Event::Resumed, &mut self.turn(desk, clock::monotonic()));
                debug_assert_eq!(next, Next::Call);
                self.settle(job, next)?
            }
            None => {
                drop(table);
                self.connection_ready(token, desk)?
            }
        };
        match is_gone(job.conn.as_fd()) {
            true => self.abandon(job, desk),
            false => Some(job),
        }
    }

    /// A connection with a complete request.
    pub(super) fn take_ready(&self, table: &mut Table, key: usize, wanted: u64) -> Option<Job> {
        let entry = table.entries.get(key).filter(|entry| token(key, entry.generation) == wanted)?;
        entry.conn.as_ref().filter(|conn| conn.state() == State::Ready)?;
        let conn = self.pick(table, key)?;
        Some(Job { key, conn })
    }

    /// By the leader: ends what has waited long enough. What is ready meanwhile is not over: it has its turn, in its order.
    /// Served at once it would be served before all others, and where that takes longer than a keep-alive lasts, for ever.
    pub(super) fn end_waits_in_turn(&self, now: Nanos, lead: &mut Lead, desk: &mut Desk) {
        let Some(first) = self.next_expired(now) else {
            return;
        };
        self.collect(lead);
        let mut due = Some(first);
        while let Some(key) = due {
            if !self.is_in_queue(key) {
                if let Some(job) = self.advance_waiting(key, Event::Expired, now, desk) {
                    self.postpone(job, desk);
                }
            }
            due = self.next_expired(now);
        }
    }

    pub(super) fn is_in_queue(&self, key: usize) -> bool {
        lock(&self.table).is_queued(key)
    }
}
