//! Owns: a worker's loop: who waits, which connection is next, what happens when its deadline passes.
//! Rule: one thread leads (it holds `leader` and waits); a complete request is served by the thread that read it, inline.
//! With one thread nobody else ever wants the lead. With more, the leader gives it up before it calls the application,
//! so a parked thread goes on with the loop. The table's lock is held for a few instructions, never over a wait or a call.
//! Never: parses or frames, names Python. What a signal means is told to it by the worker (`Directive`).

mod accept;
mod table;

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use slab::Slab;

use self::table::{is_idle, Job, Table};
use crate::access_sink::AccessLog;
use crate::app::{Caller, Verdict};
use crate::conn::{Conn, Desk, Event, Settings};
use crate::exchange::{Exchange, Site};
use crate::http::Reject;
use crate::listener::Listener;
use crate::proxy::Trust;
use crate::scoreboard::{Phase, Slot};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::{Events, Interest, Poller, Waker};
use crate::timers::Timers;

/// Tokens of what is not a connection have the highest bit set.
const SPECIAL: u64 = 1 << 63;
const WAKE: u64 = SPECIAL;
const CONTROL: u64 = SPECIAL | 1 << 32;
const LISTENER: u64 = SPECIAL | 2 << 32;

/// What the worker wants after it looked at one of its control descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Directive {
    Continue,
    /// Take no new connections, finish what there is, return.
    Drain,
    /// The same, and this descriptor has told its last.
    Orphaned,
    /// Return now.
    Stop,
}

/// Called by the leading thread with the index of a control descriptor that became readable.
pub type Control = Box<dyn FnMut(usize) -> Directive + Send>;

pub struct Plan {
    pub settings: Settings,
    pub trust: Trust,
    pub access: Option<Arc<AccessLog>>,
    pub listeners: Vec<Arc<Listener>>,
    pub slot: Slot,
    pub threads: usize,
    /// How many workers share the listeners.
    pub workers: usize,
    /// Connections open at once; at so many the worker stops accepting.
    pub most_connections: usize,
    /// Requests after which the worker asks to be replaced; 0 is never.
    pub most_requests: u64,
    pub graceful_timeout: Nanos,
}

pub struct EventLoop {
    plan: Plan,
    poller: Poller,
    waker: Waker,
    arbiter: Arc<Waker>,
    controls: Vec<OwnedFd>,
    table: Mutex<Table>,
    leader: Mutex<Lead>,
    draining: AtomicBool,
    stopped: AtomicBool,
}

/// What only the leading thread uses.
struct Lead {
    events: Events,
    /// Listeners with connections to accept, and how many may be taken in this turn.
    accepts: Vec<(usize, usize)>,
    control: Control,
    /// Several events came at once: more may be there already.
    eager: bool,
}

/// A poisoned lock means that a thread panicked inside a few plain assignments; the data is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl EventLoop {
    /// `controls` are watched for reading; `control` is told which became readable. `arbiter` is woken when the worker's
    /// phase changes.
    pub fn new(
        plan: Plan,
        arbiter: Arc<Waker>,
        controls: Vec<OwnedFd>,
        control: Control,
    ) -> io::Result<EventLoop> {
        let poller = Poller::new()?;
        let waker = Waker::new()?;
        poller.add(&waker, WAKE, Interest::Read)?;
        for (index, fd) in controls.iter().enumerate() {
            poller.add(fd, CONTROL | index as u64, Interest::Read)?;
        }
        let table = Table {
            entries: Slab::new(),
            generation: 0,
            timers: Timers::default(),
            listening: false,
            pause: None,
            drain_until: None,
            waits_until: Nanos::MAX,
        };
        let lead = Lead { events: Events::default(), accepts: Vec::new(), control, eager: false };
        let looped = EventLoop {
            plan,
            poller,
            waker,
            arbiter,
            controls,
            table: Mutex::new(table),
            leader: Mutex::new(lead),
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        };
        looped.listen(&mut lock(&looped.table))?;
        Ok(looped)
    }

    pub fn threads(&self) -> usize {
        self.plan.threads
    }

    /// One thread's life: leads, serves, leads again, until the loop stops. Every thread of the worker runs it.
    pub fn run(&self, thread: usize, caller: &mut dyn Caller) {
        let mut desk = Desk::new(&self.plan.settings);
        let mut lead = lock(&self.leader);
        while let Some(job) = self.next_job(&mut lead, &mut desk, caller) {
            if self.plan.threads == 1 {
                self.serve(job, thread, &mut desk, caller);
            } else {
                drop(lead);
                self.serve(job, thread, &mut desk, caller);
                // Whoever leads may wait for long.
                self.write_access_log();
                lead = lock(&self.leader);
            }
        }
    }

    /// Leads until a request is complete; None when the loop has stopped.
    fn next_job(&self, lead: &mut Lead, desk: &mut Desk, caller: &mut dyn Caller) -> Option<Job> {
        while !self.stopped.load(Relaxed) {
            while let Some((listener, left)) = lead.accepts.pop() {
                if let Some(job) = self.accept_turn(listener, left, lead, desk) {
                    return Some(job);
                }
            }
            match lead.events.next() {
                Some(token) => {
                    if let Some(job) = self.dispatch(token, lead, desk) {
                        return Some(job);
                    }
                }
                None => {
                    if let Some(job) = self.wait(lead, desk, caller) {
                        return Some(job);
                    }
                }
            }
        }
        None
    }

    /// The end of a turn: deadlines, the access log, then the wait for the next events.
    fn wait(&self, lead: &mut Lead, desk: &mut Desk, caller: &mut dyn Caller) -> Option<Job> {
        let now = clock::monotonic();
        while let Some(key) = self.next_expired(now) {
            if let Some(job) = self.advance_waiting(key, Event::Expired, now, desk) {
                return Some(job);
            }
        }
        self.write_access_log();
        let until = self.next_deadline(now)?;
        // Under load there is always something ready: look before the interpreter is given up.
        if std::mem::take(&mut lead.eager) && !matches!(self.poller.wait(&mut lead.events, Some(0)), Ok(0)) {
            lead.eager = true;
            return None;
        }
        let patience = (until != Nanos::MAX).then(|| until.saturating_sub(now));
        let events = &mut lead.events;
        let mut result = Ok(0);
        caller.unlocked(&mut || result = self.poller.wait(events, patience));
        match result {
            Ok(found) => lead.eager = found > 1 && self.plan.threads == 1,
            Err(e) => {
                log::error!("Cannot wait for connections: {e}");
                self.stop();
            }
        }
        None
    }

    fn write_access_log(&self) {
        if let Some(access) = &self.plan.access {
            access.flush();
        }
    }

    /// Until when the leader may wait, `Nanos::MAX` for ever; None when the loop has ended instead.
    fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let mut table = lock(&self.table);
        if table.pause.is_some_and(|until| until <= now) {
            table.pause = None;
            self.adjust_listening(&mut table);
        }
        let drained = self.draining.load(Relaxed) && table.entries.is_empty();
        if drained || table.drain_until.is_some_and(|until| until <= now) {
            drop(table);
            self.stop();
            return None;
        }
        let until = [table.timers.next(), table.pause, table.drain_until].into_iter().flatten().min();
        table.waits_until = until.unwrap_or(Nanos::MAX);
        Some(table.waits_until)
    }

    /// Ends the loop for every thread.
    fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.waker.wake();
    }

    fn dispatch(&self, token: u64, lead: &mut Lead, desk: &mut Desk) -> Option<Job> {
        if token & SPECIAL == 0 {
            return self.connection_ready(token, desk);
        }
        let index = (token & 0xffff_ffff) as usize;
        match token & !0xffff_ffff {
            LISTENER => lead.accepts.push((index, self.accept_turns())),
            CONTROL => self.obey((lead.control)(index), index, lead, desk),
            _ => self.waker.clear(),
        }
        None
    }

    fn obey(&self, directive: Directive, index: usize, lead: &mut Lead, desk: &mut Desk) {
        match directive {
            Directive::Continue => {}
            Directive::Drain => self.drain(lead, desk),
            Directive::Orphaned => {
                // It was added by `new` and is removed once; it would be readable for ever.
                let _ = self.poller.remove(&self.controls[index]);
                self.drain(lead, desk);
            }
            Directive::Stop => self.stop(),
        }
    }

    /// Takes what the kernel has queued already, then no more; idle connections are given a moment.
    fn drain(&self, lead: &mut Lead, desk: &mut Desk) {
        if self.draining.swap(true, Relaxed) {
            return;
        }
        self.plan.slot.set_phase(Phase::Draining);
        self.arbiter.wake();
        let now = clock::monotonic();
        let mut table = lock(&self.table);
        table.drain_until = Some(now.saturating_add(self.plan.graceful_timeout));
        self.adjust_listening(&mut table);
        lead.accepts = (0..self.plan.listeners.len()).map(|listener| (listener, usize::MAX)).collect();
        let idle: Vec<usize> = table.entries.iter().filter(|(_, e)| is_idle(e)).map(|(key, _)| key).collect();
        drop(table);
        for key in idle {
            self.advance_waiting(key, Event::Drain, now, desk);
        }
    }

    /// Serves a request and those that were sent right behind it, then gives the connection back to the loop.
    fn serve(&self, mut job: Job, thread: usize, desk: &mut Desk, caller: &mut dyn Caller) {
        loop {
            self.call(&mut job.conn, thread, desk, caller);
            let next = job.conn.advance(Event::Answered, &mut self.turn(desk, clock::monotonic()));
            match self.settle(job, next) {
                Some(again) if !self.stopped.load(Relaxed) => job = again,
                _ => return,
            }
        }
    }

    fn call(&self, conn: &mut Conn, thread: usize, desk: &mut Desk, caller: &mut dyn Caller) {
        let started = clock::monotonic();
        let octets = desk.scratch.unread();
        let start = &conn.head.start;
        self.plan.slot.begin(thread, started, start.method.of(octets), start.target.of(octets));
        self.count();
        let site = Site {
            settings: &self.plan.settings,
            access: self.plan.access.as_deref(),
            draining: &self.draining,
        };
        let mut exchange = Exchange::new(conn, desk, site, started);
        // A defect of ours must not end the worker, nor reach Python as anything but an exception.
        let called = catch_unwind(AssertUnwindSafe(|| caller.call(&mut exchange)));
        match called {
            Ok(Verdict::GoOn) => {}
            Ok(Verdict::Stop) => self.stop(),
            Err(_) => {
                log::error!("Panic while serving {}", exchange.request_line());
                exchange.fail_with(Reject::InternalError);
            }
        }
        exchange.settle();
        self.plan.slot.end(thread);
    }

    /// At `most_requests` the worker asks for a replacement, and serves on until it has one.
    fn count(&self) {
        let served = self.plan.slot.count_request();
        if served == self.plan.most_requests {
            log::info!("Autorestarting worker after {served} requests (--max-requests)");
            if self.plan.slot.phase() == Phase::Ready {
                self.plan.slot.set_phase(Phase::Retiring);
                self.arbiter.wake();
            }
        }
    }
}
