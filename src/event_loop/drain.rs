//! Owns: the end of a worker's loop: no new connections, idle ones left to the other workers, the rest finished.
//! Rule: a connection between requests is closed only when no worker is left that could go on with it.
//! Never: breaks off a request; that is done where its time is measured (`deadline`).

use std::sync::atomic::Ordering::Relaxed;

use super::accept::Source;
use super::table::Table;
use super::{lock, EventLoop, Lead};
use crate::conn::{Conn, Desk, Event, State};
use crate::scoreboard::Phase;
use crate::sys::clock::{self, Nanos, SECOND};

/// When a full mailbox is tried again.
const RETRY: Nanos = SECOND / 200;

impl EventLoop {
    /// Takes what the kernel has queued already, for whoever goes on; then no more. Told again, it looks again who that is.
    pub(super) fn drain(&self, lead: &mut Lead, desk: &mut Desk) {
        let now = clock::monotonic();
        if !self.draining.swap(true, Relaxed) {
            self.plan.slot.set_phase(Phase::Draining);
            self.arbiter.wake();
            let mut table = lock(&self.table);
            table.drain_until = Some(now.saturating_add(self.plan.graceful_timeout));
            self.adjust_listening(&mut table);
            lead.accepts = self.queued();
            // There is a new deadline.
            self.nudge.wake();
        }
        if !self.has_successor() {
            if !self.closing.load(Relaxed) {
                lead.accepts = self.queued();
            }
            lead.accepts.push((Source::Mailbox, usize::MAX));
        }
        self.part_with_idle(now, desk);
    }

    /// What waits at the listeners, all of it.
    fn queued(&self) -> Vec<(Source, usize)> {
        let listeners = 0..self.plan.listeners.len();
        listeners.map(|listener| (Source::Listener(listener), usize::MAX)).collect()
    }

    /// Whether there is a worker that connections can be left to.
    pub(super) fn has_successor(&self) -> bool {
        !self.is_last() && self.plan.notice.ready() > 0
    }

    /// The whole server comes to its end: what is left for another worker is left to nobody.
    pub(super) fn is_last(&self) -> bool {
        self.plan.notice.is_stopping()
    }

    /// Leaves idle connections to the other workers. Those that cannot be left, and all when there is no other, are given
    /// a moment.
    fn part_with_idle(&self, now: Nanos, desk: &mut Desk) {
        let closing = !self.has_successor();
        self.closing.store(closing, Relaxed);
        let mut table = lock(&self.table);
        table.retry = None;
        let idle = |conn: &Conn| conn.state() == State::Idle;
        let stays = |conn: &Conn| closing || conn.is_bound() && !conn.may_move();
        let ending = waiting(&table, |conn| idle(conn) && stays(conn) || conn.state() == State::Linger);
        let moving = waiting(&table, |conn| !closing && conn.may_move());
        for key in moving {
            if !self.give_away(&mut table, key) {
                table.retry = Some(now + RETRY);
                break;
            }
        }
        drop(table);
        for key in ending {
            self.advance_waiting(key, Event::Drain, now, desk);
        }
    }

    pub(super) fn retry_to_part(&self, now: Nanos, desk: &mut Desk) {
        if lock(&self.table).retry.is_some_and(|at| at <= now) {
            self.part_with_idle(now, desk);
        }
    }

    /// Leaves a connection that waits in the table to the other workers; false when the mailbox is full.
    pub(super) fn give_away(&self, table: &mut Table, key: usize) -> bool {
        let Some(conn) = self.pick(table, key) else {
            return true;
        };
        if self.post(table, key, &conn) {
            self.forget(table, key);
            return true;
        }
        self.put_back(table, key, conn);
        false
    }

    /// Puts a connection in the mailbox. Afterwards its entry is to be forgotten; false when it has to stay.
    pub(super) fn post(&self, table: &mut Table, key: usize, conn: &Conn) -> bool {
        // Before it is sent: the duplicate in the mailbox would keep the registration alive.
        self.unwatch(table, key, conn);
        let listener = self.plan.listeners[conn.listener].id();
        // Before another worker can have it: a crash may come between here and the entry's end.
        self.roll.part(key);
        match conn.leave_in(&self.plan.mailbox, listener) {
            Ok(()) => true,
            Err(e) => {
                self.roll.stay(key);
                log::debug!("A connection from {} cannot be left to other workers: {e}", conn.peer);
                false
            }
        }
    }

    /// What is left when draining: nothing, or only what ran too long.
    pub(super) fn is_drained(&self, table: &Table) -> bool {
        self.draining.load(Relaxed) && table.entries.len() <= self.overdue_calls()
    }

    pub(super) fn overdue_calls(&self) -> usize {
        self.calls.iter().filter(|claim| claim.look().is_overdue()).count()
    }
}

/// The connections that wait in the table, as far as they are wanted.
fn waiting(table: &Table, wanted: impl Fn(&Conn) -> bool) -> Vec<usize> {
    let entries = table.entries.iter();
    entries.filter(|(_, entry)| entry.conn.as_deref().is_some_and(&wanted)).map(|(key, _)| key).collect()
}
