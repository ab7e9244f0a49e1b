//! Owns: a worker's loop: who waits, which connection is next, what happens when its deadline passes.
//! Rule: one thread leads (it holds `leader` and waits); a complete request is served by the thread that read it, inline.
//! With one thread nobody else ever wants the lead. With more, the leader gives it up before it calls the application,
//! so a parked thread goes on with the loop. The table's lock is held for a few instructions, never over a wait or a call.
//! Never: parses or frames, names Python. What a signal means is told to it by the worker (`Directive`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use slab::Slab;

use crate::access_sink::AccessLog;
use crate::app::Caller;
use crate::conn::{Conn, Desk, Event, Next, Settings, Turn};
use crate::exchange::{Exchange, Site};
use crate::http::Reject;
use crate::listener::Listener;
use crate::proxy::Trust;
use crate::scoreboard::{Phase, Slot};
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::{Events, Interest, Poller, Waker};
use crate::sys::socket;
use crate::timers::Timers;
use crate::transport::{Peer, Transport};

/// Tokens of what is not a connection have the highest bit set.
const SPECIAL: u64 = 1 << 63;
const WAKE: u64 = SPECIAL;
const CONTROL: u64 = SPECIAL | 1 << 32;
const LISTENER: u64 = SPECIAL | 2 << 32;

/// Connections accepted in a row before those that wait have their turn.
const ACCEPT_TURN: usize = 16;
/// How long nothing is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Nanos = SECOND / 10;

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
}

/// What every thread of the worker uses.
struct Table {
    entries: Slab<Entry>,
    /// Told apart by this from an earlier connection under the same key.
    generation: u32,
    timers: Timers,
    listening: bool,
    /// Until when nothing is accepted, for want of descriptors.
    pause: Option<Nanos>,
    drain_until: Option<Nanos>,
    /// Until when the leader waits.
    waits_until: Nanos,
}

struct Entry {
    /// None while a thread serves it.
    conn: Option<Box<Conn>>,
    fd: RawFd,
    generation: u32,
    /// What the poller watches it for; None when it is not in the poller.
    watched: Option<Interest>,
    /// For when it is in `timers`.
    queued: Nanos,
}

/// A connection with a complete request, in the hands of one thread; its input is in that thread's desk.
struct Job {
    key: usize,
    conn: Box<Conn>,
}

fn token(key: usize, generation: u32) -> u64 {
    u64::from(generation & 0x7fff_ffff) << 32 | key as u64
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
        let lead = Lead { events: Events::default(), accepts: Vec::new(), control };
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
        if let Some(access) = &self.plan.access {
            access.flush();
        }
        let until = self.next_deadline(now)?;
        // Without giving up the interpreter first: under load there is always something ready.
        if self.plan.threads == 1 && !matches!(self.poller.wait(&mut lead.events, Some(0)), Ok(0)) {
            return None;
        }
        let patience = (until != Nanos::MAX).then(|| until.saturating_sub(now));
        let events = &mut lead.events;
        let mut result = Ok(0);
        caller.unlocked(&mut || result = self.poller.wait(events, patience));
        if let Err(e) = result {
            log::error!("Cannot wait for connections: {e}");
            self.stop();
        }
        None
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

    // ---- listeners

    fn listen(&self, table: &mut Table) -> io::Result<()> {
        for (index, listener) in self.plan.listeners.iter().enumerate() {
            self.poller.add(&**listener, LISTENER | index as u64, Interest::Accept)?;
        }
        table.listening = true;
        Ok(())
    }

    /// Listens, or stops, as the number of connections, the drain and a pause want it.
    fn adjust_listening(&self, table: &mut Table) {
        let room = table.entries.len() < self.plan.most_connections;
        let wanted = room && table.pause.is_none() && !self.draining.load(Relaxed);
        if wanted == table.listening {
            return;
        }
        if wanted {
            if let Err(e) = self.listen(table) {
                log::error!("Cannot watch the listeners: {e}");
            }
            return;
        }
        table.listening = false;
        for listener in &self.plan.listeners {
            // It was added by `listen`; an error could only mean that it is out already.
            let _ = self.poller.remove(&**listener);
        }
    }

    /// Accepts one connection and reads it at once: its request is usually there already, and a connection that closes
    /// after its response never enters the poller.
    fn accept_turn(&self, listener: usize, left: usize, lead: &mut Lead, desk: &mut Desk) -> Option<Job> {
        if !self.may_accept() {
            return None;
        }
        match socket::accept(self.plan.listeners[listener].as_fd()) {
            Ok((fd, address)) => {
                if left > 1 {
                    lead.accepts.push((listener, left - 1));
                }
                self.accepted(fd, address, listener, desk)
            }
            Err(e) => {
                self.accept_failed(&e, listener);
                None
            }
        }
    }

    /// Alone, a worker takes what there is; beside others it takes one connection, for which it is then the one to serve.
    fn accept_turns(&self) -> usize {
        match self.plan.workers {
            1 => ACCEPT_TURN,
            _ => 1,
        }
    }

    /// The kernel wakes the worker that was first to wait; whoever has accepted goes to the end of that queue.
    fn requeue(&self, listener: usize) {
        if self.plan.workers == 1 || !lock(&self.table).listening {
            return;
        }
        let socket = &*self.plan.listeners[listener];
        let requeued = self.poller.remove(socket).and_then(|()| {
            let token = LISTENER | listener as u64;
            self.poller.add(socket, token, Interest::Accept)
        });
        if let Err(e) = requeued {
            log::error!("Cannot watch {}: {e}", socket.local());
        }
    }

    fn may_accept(&self) -> bool {
        let table = lock(&self.table);
        table.listening || self.draining.load(Relaxed)
    }

    fn accept_failed(&self, e: &io::Error, listener: usize) {
        match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
            _ => {
                let local = self.plan.listeners[listener].local();
                log::error!("Cannot accept on {local}: {e}");
                let mut table = lock(&self.table);
                table.pause = Some(clock::monotonic() + ACCEPT_PAUSE);
                self.adjust_listening(&mut table);
            }
        }
    }

    fn accepted(
        &self,
        fd: OwnedFd,
        address: Option<std::net::SocketAddr>,
        listener: usize,
        desk: &mut Desk,
    ) -> Option<Job> {
        let peer = address.map_or(Peer::Unix, Peer::Tcp);
        let trusted = self.plan.trust.trusts(address.map(|address| address.ip()));
        let now = clock::monotonic();
        let number = fd.as_raw_fd();
        let mut turn = self.turn(desk, now);
        let mut conn = Box::new(Conn::new(Transport::Plain(fd), peer, listener, trusted, &turn));
        let next = conn.advance(Event::Readable, &mut turn);
        self.requeue(listener);
        if next == Next::Close {
            return None;
        }
        let key = self.enter(number);
        self.settle(Job { key, conn }, next)
    }

    fn enter(&self, fd: RawFd) -> usize {
        let mut table = lock(&self.table);
        table.generation = table.generation.wrapping_add(1);
        let entry = Entry { conn: None, fd, generation: table.generation, watched: None, queued: Nanos::MAX };
        let key = table.entries.insert(entry);
        if table.entries.len() >= self.plan.most_connections {
            self.adjust_listening(&mut table);
        }
        key
    }

    // ---- connections

    fn turn<'a>(&'a self, desk: &'a mut Desk, now: Nanos) -> Turn<'a> {
        let draining = self.draining.load(Relaxed);
        Turn { desk, settings: &self.plan.settings, access: self.plan.access.as_deref(), now, draining }
    }

    fn connection_ready(&self, token: u64, desk: &mut Desk) -> Option<Job> {
        let key = (token & 0xffff_ffff) as usize;
        let conn = self.take(key, token)?;
        self.advance(Job { key, conn }, desk)
    }

    /// Takes a connection out of the table; an event for one that a thread serves is put off until it is back.
    fn take(&self, key: usize, wanted: u64) -> Option<Box<Conn>> {
        let mut table = lock(&self.table);
        let entry = table.entries.get_mut(key).filter(|entry| token(key, entry.generation) == wanted)?;
        let conn = entry.conn.take();
        if conn.is_none() && entry.watched.take().is_some() {
            // Out of the poller, as a hang-up is reported however little is asked for. Serving threads close a
            // descriptor only under this lock, so it is still the connection's.
            if let Err(e) = self.poller.forget(entry.fd) {
                log::error!("Cannot put off a busy connection: {e}");
            }
        }
        conn
    }

    fn advance(&self, mut job: Job, desk: &mut Desk) -> Option<Job> {
        use crate::conn::State;
        let event = if job.conn.state() == State::Reply { Event::Writable } else { Event::Readable };
        let next = job.conn.advance(event, &mut self.turn(desk, clock::monotonic()));
        self.settle(job, next)
    }

    /// For what comes to a connection that waits, other than from its peer.
    fn advance_waiting(&self, key: usize, event: Event, now: Nanos, desk: &mut Desk) -> Option<Job> {
        let mut conn = lock(&self.table).entries.get_mut(key)?.conn.take()?;
        let next = conn.advance(event, &mut self.turn(desk, now));
        self.settle(Job { key, conn }, next)
    }

    /// Does what a connection wants next; gives it back when that is a call.
    fn settle(&self, job: Job, next: Next) -> Option<Job> {
        match next {
            Next::Call => return Some(job),
            Next::Close => self.leave(job),
            Next::Wait(interest) => self.park(job, interest),
        }
        None
    }

    fn leave(&self, job: Job) {
        let mut table = lock(&self.table);
        table.entries.remove(job.key);
        // Closed under the lock: see `take`.
        drop(job.conn);
        if !table.listening {
            self.adjust_listening(&mut table);
        }
        if table.entries.is_empty() && self.draining.load(Relaxed) {
            self.waker.wake();
        }
    }

    fn park(&self, Job { key, conn }: Job, interest: Interest) {
        let mut table = lock(&self.table);
        let table = &mut *table;
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
            table.entries.remove(key);
            return;
        }
        entry.watched = Some(interest);
        entry.conn = Some(conn);
        table.timers.set(token, deadline, &mut entry.queued);
        if deadline < table.waits_until {
            table.waits_until = deadline;
            if self.plan.threads > 1 {
                self.waker.wake();
            }
        }
    }

    /// A connection whose deadline has passed.
    fn next_expired(&self, now: Nanos) -> Option<usize> {
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

    // ---- requests

    /// Serves a request and those that were sent right behind it, then gives the connection back to the loop.
    fn serve(&self, mut job: Job, thread: usize, desk: &mut Desk, caller: &mut dyn Caller) {
        loop {
            self.call(&mut job.conn, thread, desk, caller);
            let next = job.conn.advance(Event::Answered, &mut self.turn(desk, clock::monotonic()));
            match self.settle(job, next) {
                Some(again) => job = again,
                None => return,
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
        if called.is_err() {
            log::error!("Panic while serving {}", exchange.request_line());
            exchange.fail_with(Reject::InternalError);
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

fn is_idle(entry: &Entry) -> bool {
    entry.conn.as_ref().is_some_and(|conn| conn.is_idle())
}
