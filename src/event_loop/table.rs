//! Owns: the worker's connections between events: who has each, what it waits for, until when.
//! Rule: a connection is in the table or in one thread's hands, never both; its descriptor is closed under the table's
//! lock, so that a number found there is still the connection's.
//! Never: calls the application, blocks.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use slab::Slab;

use super::idle::IdleOrder;
use super::ready::ReadyQueue;
use super::{lock, EventLoop};
use crate::conn::{Conn, Desk, Event, Next, State, Turn};
use crate::exchange::Outbox;
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::Interest;
use crate::timers::Timers;
use crate::transport::{Peer, Tls};

/// What every thread of the worker uses.
pub(super) struct Table {
    pub(super) entries: Slab<Entry>,
    /// Told apart by this from an earlier connection under the same key.
    pub(super) generation: u32,
    /// What is ready and could not be served as it was found, by token.
    pub(super) ready: ReadyQueue,
    /// Connections between two requests.
    pub(super) idle: IdleOrder,
    pub(super) timers: Timers,
    pub(super) listening: bool,
    /// No thread is free to serve a new connection.
    pub(super) rescued: bool,
    /// No thread may be able to serve one: a request that ran too long keeps them from it.
    pub(super) frozen: bool,
    /// When connections that the mailbox had no room for are tried again.
    pub(super) retry: Option<Nanos>,
    /// Until when nothing is accepted, for want of descriptors.
    pub(super) pause: Option<Nanos>,
    pub(super) drain_until: Option<Nanos>,
    /// Until when the leader waits.
    pub(super) waits_until: Nanos,
    /// Until when the helper sleeps, should nothing become ready; 0 while it is awake.
    pub(super) sleeps_until: Nanos,
}

pub(super) struct Entry {
    /// None while a thread serves it.
    pub(super) conn: Option<Box<Conn>>,
    pub(super) fd: RawFd,
    /// Its client: another than the peer where a PROXY header has named it.
    pub(super) peer: Peer,
    /// By which it is answered while a thread serves it for too long.
    pub(super) tls: Option<Arc<Tls>>,
    /// What is to be sent while a thread serves it.
    pub(super) outbox: Option<Arc<Outbox>>,
    pub(super) generation: u32,
    /// What the poller watches it for; None when it is not in the poller.
    pub(super) watched: Option<Interest>,
    /// For when it is in `timers`.
    pub(super) queued: Nanos,
}

/// A connection with a complete request, in the hands of one thread; its input is in that thread's desk.
pub(super) struct Job {
    pub(super) key: usize,
    pub(super) conn: Box<Conn>,
}

impl Table {
    /// Forgets deadlines of connections that are gone, once there are too many of them.
    fn sweep(&mut self) {
        if !self.timers.is_bloated(self.entries.len()) {
            return;
        }
        let entries = &self.entries;
        self.timers.retain(|due, at| {
            let key = (due & 0xffff_ffff) as usize;
            entries.get(key).is_some_and(|entry| token(key, entry.generation) == due && entry.queued == at)
        });
    }
}

pub(super) fn token(key: usize, generation: u32) -> u64 {
    u64::from(generation & 0x7fff_ffff) << 32 | key as u64
}

impl EventLoop {
    pub(super) fn turn<'a>(&'a self, desk: &'a mut Desk, now: Nanos) -> Turn<'a> {
        let closing = self.closing.load(Relaxed);
        let draining = self.draining.load(Relaxed);
        Turn {
            desk,
            settings: &self.plan.settings,
            access: self.plan.access.as_deref(),
            now,
            closing,
            draining,
        }
    }

    pub(super) fn connection_ready(&self, token: u64, desk: &mut Desk) -> Option<Job> {
        let key = (token & 0xffff_ffff) as usize;
        let conn = self.take(key, token)?;
        self.advance(Job { key, conn }, desk)
    }

    /// Takes a connection out of the table; an event for one that a thread serves, or will, is put off until it is back.
    pub(super) fn take(&self, key: usize, wanted: u64) -> Option<Box<Conn>> {
        let mut table = lock(&self.table);
        let frozen = table.frozen;
        let entry = table.entries.get_mut(key).filter(|entry| token(key, entry.generation) == wanted)?;
        // One that waits for a thread stays where it is, too.
        let waits = entry.conn.as_ref().is_some_and(|conn| conn.state() == State::Ready);
        let conn = entry.conn.take_if(|_| !waits);
        if frozen && conn.as_ref().is_some_and(|conn| conn.may_move()) {
            // It waits until the worker thaws, or is left to another.
            let conn = conn?;
            self.unwatch(&mut table, key, &conn);
            table.entries[key].conn = Some(conn);
            return None;
        }
        if conn.is_some() {
            table.idle.remove(key);
            self.roll.hold(key);
        } else if let Some(outbox) = table.entries[key].outbox.clone() {
            drop(table);
            self.send_outbox(key, wanted, &outbox);
        } else {
            self.put_off(&mut table, key);
        }
        conn
    }

    /// Watches a connection that a thread serves for nothing: it is out of the poller, as a hang-up is reported however
    /// little is asked for. Serving threads close a descriptor only under this lock, so it is still the connection's.
    pub(super) fn put_off(&self, table: &mut Table, key: usize) {
        let entry = &mut table.entries[key];
        if entry.watched.take().is_none() {
            return;
        }
        if let Err(e) = self.poller.forget(entry.fd) {
            log::error!("Cannot put off a busy connection: {e}");
        }
    }

    /// Takes a connection that waits out of the table.
    pub(super) fn pick(&self, table: &mut Table, key: usize) -> Option<Box<Conn>> {
        let conn = table.entries.get_mut(key)?.conn.take()?;
        table.idle.remove(key);
        self.roll.hold(key);
        Some(conn)
    }

    fn advance(&self, mut job: Job, desk: &mut Desk) -> Option<Job> {
        let event = if job.conn.state() == State::Reply { Event::Writable } else { Event::Readable };
        let next = job.conn.advance(event, &mut self.turn(desk, clock::monotonic()));
        self.settle(job, next)
    }

    /// For what comes to a connection that waits, other than from its peer.
    pub(super) fn advance_waiting(
        &self,
        key: usize,
        event: Event,
        now: Nanos,
        desk: &mut Desk,
    ) -> Option<Job> {
        let mut conn = self.pick(&mut lock(&self.table), key)?;
        let next = conn.advance(event, &mut self.turn(desk, now));
        self.settle(Job { key, conn }, next)
    }

    /// Does what a connection wants next; gives it back when that is a call.
    pub(super) fn settle(&self, job: Job, next: Next) -> Option<Job> {
        match next {
            Next::Call => {
                if job.conn.is_newly_introduced() {
                    lock(&self.table).entries[job.key].peer = job.conn.client();
                }
                return Some(job);
            }
            Next::Close => self.leave(job),
            Next::Wait(interest) => self.park(job, interest),
        }
        None
    }

    fn leave(&self, job: Job) {
        let mut table = lock(&self.table);
        // The kernel holds what is in the poller while the helper looks there; were it closed at that moment, its end
        // would reach the peer only when the helper wakes again.
        self.unwatch(&mut table, job.key, &job.conn);
        self.forget(&mut table, job.key);
        // Closed under the lock: see `take`.
        drop(job.conn);
    }

    /// Takes out what is closed or left to another worker.
    pub(super) fn forget(&self, table: &mut Table, key: usize) {
        table.entries.remove(key);
        table.idle.remove(key);
        self.roll.leave(key);
        self.plan.slot.set_connections(table.entries.len());
        if !table.listening {
            self.adjust_listening(table);
        }
        if self.is_drained(table) {
            self.waker.wake();
        }
    }

    fn park(&self, Job { key, conn }: Job, interest: Interest) {
        let mut table = lock(&self.table);
        if self.draining.load(Relaxed) && !self.closing.load(Relaxed) && conn.may_move() {
            if self.post(&mut table, key, &conn) {
                return self.forget(&mut table, key);
            }
            table.retry = Some(clock::monotonic());
        }
        self.watch(&mut table, Job { key, conn }, interest);
    }

    /// Puts a connection back that waits for what it waited for before.
    pub(super) fn put_back(&self, table: &mut Table, key: usize, conn: Box<Conn>) {
        if conn.state() == State::Ready {
            return self.keep_ready(table, Job { key, conn });
        }
        let (interest, unparsed) = (conn.interest(), conn.holds_unparsed());
        self.watch(table, Job { key, conn }, interest);
        if unparsed {
            self.enqueue(table, key);
        }
    }

    pub(super) fn unwatch(&self, table: &mut Table, key: usize, conn: &Conn) {
        if table.entries[key].watched.take().is_none() {
            return;
        }
        if let Err(e) = self.poller.remove(conn) {
            log::error!("Cannot stop watching a connection: {e}");
        }
    }

    fn watch(&self, table: &mut Table, Job { key, conn }: Job, interest: Interest) {
        let deadline = conn.deadline();
        let entry = &mut table.entries[key];
        let token = token(key, entry.generation);
        let watched = match entry.watched {
            Some(watched) if watched == interest => Ok(()),
            Some(_) => self.poller.modify(&*conn, token, interest),
            None => self.poller.add(&*conn, token, interest),
        };
        if let Err(e) = watched {
            log::error!("Cannot watch a connection: {e}");
            return self.forget(table, key);
        }
        entry.watched = Some(interest);
        self.roll.wait(key, conn.state());
        table.timers.set(token, deadline, &mut entry.queued);
        table.note_idle(key, &conn);
        table.entries[key].conn = Some(conn);
        table.sweep();
        if !table.listening {
            // A new connection may have its place.
            self.adjust_listening(table);
        }
        if deadline < table.sleeps_until {
            table.sleeps_until = deadline;
            self.nudge.wake();
        }
        if deadline < table.waits_until {
            table.waits_until = deadline;
            if self.plan.threads > 1 {
                self.waker.wake();
            }
        }
    }

    /// A connection whose deadline has passed.
    pub(super) fn next_expired(&self, now: Nanos) -> Option<usize> {
        let mut table = lock(&self.table);
        let table = &mut *table;
        while let Some((due, at)) = table.timers.pop(now) {
            let key = (due & 0xffff_ffff) as usize;
            let Some(entry) = table.entries.get_mut(key) else {
                continue;
            };
            if token(key, entry.generation) != due || entry.queued != at {
                continue;
            }
            entry.queued = Nanos::MAX;
            match &entry.conn {
                Some(conn) if conn.deadline() <= now => return Some(key),
                Some(conn) => table.timers.set(due, conn.deadline(), &mut entry.queued),
                // Its thread queues it again when it is back.
                None => {}
            }
        }
        None
    }
}
