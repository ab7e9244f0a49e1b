//! Owns: complete requests that the application is not called for: those that waited too long (`--queue-timeout`), those that
//! wait still when the time of a drain is over, and those whose clients have gone.
//! Rule: whoever is turned away is told so at once, and may ask again: nothing was run. Without a limit nothing is measured.
//! Never: breaks off what the application has.

use std::os::fd::AsFd;
use std::time::Duration;

use super::table::Job;
use super::{lock, EventLoop, Lead};
use crate::conn::{Conn, Desk, Event, Next, State};
use crate::http::Reject;
use crate::listener::Local;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::socket;

/// How often the backlog is looked at while no thread takes anything out of it.
const LOOK: Nanos = SECOND / 50;
/// Connections turned away in one look.
const MOST: usize = 64;

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}

/// By what the kernel knows of the connection.
fn silence(conn: &Conn) -> Option<Nanos> {
    socket::silent_for(conn.as_fd()).map(nanos)
}

impl EventLoop {
    /// The request, if it may still be served.
    pub(super) fn admit_to_call(&self, mut job: Job, limit: Nanos, desk: &mut Desk) -> Option<Job> {
        let told = job.conn.told_start(desk.scratch.unread());
        let told = told.map(|start| clock::unix_micros().saturating_sub(start).saturating_mul(1000));
        let waited = job.conn.ready_since().map(|since| clock::monotonic().saturating_sub(since));
        let waited = waited.or_else(|| silence(&job.conn)).max(told).unwrap_or(0);
        if waited <= limit {
            return Some(job);
        }
        log::info!(
            "A request from ip={} has waited for {:.1} s; answered 503 (--queue-timeout)",
            job.conn.client(),
            waited as f64 / SECOND as f64
        );
        let next = job.conn.turn_away(Reject::Overloaded, &mut self.turn(desk, clock::monotonic()));
        self.settle(job, next)
    }

    /// Whether what a connection has sent has waited too long already, as seen without reading it.
    pub(super) fn is_overdue(&self, conn: &Conn) -> bool {
        let over = |limit| conn.may_move() && silence(conn).is_some_and(|silence| silence > limit);
        self.plan.queue_timeout.is_some_and(over)
    }

    /// By the helper: turns away what is overdue. What proves to be no whole request goes on waiting.
    pub(super) fn shed(&self, mut job: Job, desk: &mut Desk) {
        let mut next = job.conn.advance(Event::Readable, &mut self.turn(desk, clock::monotonic()));
        if next == Next::Call {
            next = self.answer_overload(&mut job, desk);
        }
        let call = self.settle(job, next);
        debug_assert!(call.is_none());
    }

    fn answer_overload(&self, job: &mut Job, desk: &mut Desk) -> Next {
        log::info!("A request from ip={} found no thread; answered 503 (--queue-timeout)", job.conn.client());
        job.conn.turn_away(Reject::Overloaded, &mut self.turn(desk, clock::monotonic()))
    }

    /// By the helper: turns away the requests of the ready queue that have waited too long in it.
    pub(super) fn shed_queued(&self, limit: Nanos, desk: &mut Desk) {
        let now = clock::monotonic();
        let since = |conn: &Conn| conn.ready_since().filter(|_| conn.state() == State::Ready);
        let late = |conn: &Conn| since(conn).is_some_and(|since| now.saturating_sub(since) > limit);
        self.end_queued(late, Self::answer_overload, desk);
    }

    /// By the helper, when the time of a drain is over: no thread will be there for what still waits for one.
    pub(super) fn refuse_queued(&self, desk: &mut Desk) {
        self.end_queued(|conn| conn.state() == State::Ready, Self::answer_end, desk);
    }

    fn answer_end(&self, job: &mut Job, desk: &mut Desk) -> Next {
        log::info!(
            "A request from ip={} found no thread before the worker's end; answered 503 (--graceful-timeout)",
            job.conn.client()
        );
        job.conn.turn_away(Reject::Unavailable, &mut self.turn(desk, clock::monotonic()))
    }

    /// Answers the requests of the ready queue that are `wanted` in the application's place.
    fn end_queued(
        &self,
        wanted: impl Fn(&Conn) -> bool,
        answer: fn(&Self, &mut Job, &mut Desk) -> Next,
        desk: &mut Desk,
    ) {
        loop {
            let mut table = lock(&self.table);
            let Some(key) = table.queued(&wanted).next() else {
                return;
            };
            let Some(conn) = self.pick(&mut table, key) else {
                return;
            };
            drop(table);
            let mut job = Job { key, conn };
            // With the request that it has, and no other.
            job.conn.advance(Event::Resumed, &mut self.turn(desk, clock::monotonic()));
            let next = answer(self, &mut job, desk);
            let call = self.settle(job, next);
            debug_assert!(call.is_none());
        }
    }

    /// How long the helper may sleep.
    pub(super) fn next_shedding(&self) -> Nanos {
        if self.plan.queue_timeout.is_some() {
            LOOK
        } else {
            Nanos::MAX
        }
    }

    /// By the helper, while nobody takes connections: the backlog is in the order in which they came. The first that is not
    /// overdue is kept here until it is, or until a thread or another worker is free.
    pub(super) fn shed_arrivals(&self, lead: &mut Lead, limit: Nanos, desk: &mut Desk) {
        let now = clock::monotonic();
        if now < lead.sheds_at {
            return;
        }
        for index in (0..self.plan.listeners.len()).filter(|index| self.tells_time(*index)) {
            for _ in 0..MOST {
                let Ok(Some(arrival)) = self.accept_from(index) else {
                    break;
                };
                let Some(job) = self.admit(arrival, desk) else {
                    continue;
                };
                if self.is_overdue(&job.conn) {
                    self.shed(job, desk);
                    continue;
                }
                lead.sheds_at = now + limit.saturating_sub(silence(&job.conn).unwrap_or(0)).max(LOOK);
                self.put_back(&mut lock(&self.table), job.key, job.conn);
                break;
            }
        }
    }

    /// Of a unix socket nobody knows how long something has been in it.
    fn tells_time(&self, listener: usize) -> bool {
        matches!(self.plan.listeners[listener].local(), Local::Tcp(..))
    }

    /// Notes a request whose client has left before the application was called.
    pub(super) fn abandon(&self, mut job: Job, desk: &mut Desk) -> Option<Job> {
        log::debug!("Client {} left before its request was served", job.conn.client());
        let next = job.conn.abandon(&mut self.turn(desk, clock::monotonic()));
        self.settle(job, next)
    }
}
