//! Owns: a worker's loop: who leads it, which connection is next, what happens when its deadline passes.
//! Rule: one thread leads (it holds the baton and waits). It serves the complete requests that it reads itself, inline, with
//! the baton lent meanwhile; those whose turn comes later wait in the ready queue for any thread. When a call takes long the
//! helper takes the baton over: it promotes a parked thread, or leaves ready connections to other workers. The table's lock
//! is never held over a wait or a call.
//! Never: parses or frames, names Python. What a signal means is told to it by the worker (`Directive`).

mod accept;
mod balance;
mod call;
mod crash;
mod deadline;
mod drain;
mod helper;
mod idle;
mod outlet;
mod ready;
mod rescue;
mod roll;
mod room;
mod shed;
mod table;
mod turns;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use slab::Slab;

use self::accept::Source;
use self::crash::Pages;
use self::idle::IdleOrder;
use self::ready::ReadyQueue;
use self::roll::Roll;
use self::room::Reserve;
use self::table::{Job, Table};
use crate::access_sink::AccessLog;
use crate::app::Caller;
use crate::conn::{Desk, Settings};
use crate::defect;
use crate::exchange::claim::Claim;
use crate::exchange::Budget;
use crate::handoff::Mailbox;
use crate::listener::Listener;
use crate::proxy::Introductions;
use crate::scoreboard::{Notice, Slot};
use crate::sys::baton::{Baton, Held};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::{Events, Interest, Poller, Waker};
use crate::timers::Timers;
use crate::tls::Context;

/// When a log whose reader has no room is tried again.
const LOG_RETRY: Nanos = clock::SECOND / 10;

/// Tokens of what is not a connection have the highest bit set.
const SPECIAL: u64 = 1 << 63;
const WAKE: u64 = SPECIAL;
const CONTROL: u64 = SPECIAL | 1 << 32;
const LISTENER: u64 = SPECIAL | 2 << 32;
const MAILBOX: u64 = SPECIAL | 3 << 32;

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

/// Called by whoever leads with the index of a control descriptor that became readable.
pub type Control = Box<dyn FnMut(usize) -> Directive + Send>;

/// What is done about a request that runs too long, beside answering its client. Threads are named by number.
pub trait Overrun: Send + Sync {
    /// By the helper, before a thread's request counts as one that ran too long.
    fn begins(&self, thread: usize);

    /// By the helper, once the client has been answered. `runs` tells whether the request still does. False when no other
    /// thread can call the application any more.
    fn deal(&self, thread: usize, runs: &dyn Fn() -> bool) -> bool;

    /// By the thread, when such a request has ended after all.
    fn ended(&self, thread: usize);
}

pub struct Plan {
    pub settings: Settings,
    /// None: the PROXY protocol is off.
    pub introductions: Option<Introductions>,
    pub access: Option<Arc<AccessLog>>,
    /// None: plain HTTP.
    pub tls: Option<Context>,
    pub listeners: Vec<Arc<Listener>>,
    /// Where workers leave connections for one another.
    pub mailbox: Arc<Mailbox>,
    pub notice: Arc<Notice>,
    pub slot: Slot,
    pub threads: usize,
    /// The application's threads run side by side: no interpreter lock makes them take turns.
    pub parallel: bool,
    /// How many workers share the listeners.
    pub workers: usize,
    /// Connections open at once; at so many the worker stops accepting.
    pub most_connections: usize,
    /// Requests after which the worker asks to be replaced; 0 is never.
    pub most_requests: u64,
    /// From the start, how long nothing is accepted.
    pub quiet: Nanos,
    /// How long a request may run.
    pub timeout: Nanos,
    /// How long a complete request may wait for a thread, if that is limited.
    pub queue_timeout: Option<Nanos>,
    pub graceful_timeout: Nanos,
    /// What is kept of a response while its application goes on, in bytes for each connection.
    pub response_buffer: usize,
    pub overrun: Box<dyn Overrun>,
}

pub struct EventLoop {
    plan: Plan,
    poller: Poller,
    waker: Waker,
    /// Wakes the helper, which sleeps on the poller too, but may find that the leader was faster.
    nudge: Waker,
    arbiter: Arc<Waker>,
    controls: Vec<OwnedFd>,
    table: Mutex<Table>,
    lead: Baton<Lead>,
    /// One for each thread.
    calls: Vec<Claim>,
    /// How each connection stands, and what it is told, should the process crash.
    roll: Roll,
    pages: Pages,
    /// For what clients are too slow to take.
    budget: Budget,
    /// How long calls have been lately (`call`).
    habit: AtomicU32,
    /// How many connections other workers should have instead of this one; by the helper.
    surplus: AtomicUsize,
    draining: AtomicBool,
    /// It drains, and no other worker goes on with its connections: each ends with its response.
    closing: AtomicBool,
    stopped: AtomicBool,
    /// Held by the helper from the moment in which a request is taken from its thread until the log knows of it.
    telling: Mutex<()>,
}

/// What only the leader uses.
struct Lead {
    events: Events,
    /// Where connections wait to be taken, and how many may be taken in this turn.
    accepts: Vec<(Source, usize)>,
    control: Control,
    /// How many of the ready queue have their turn before the poller is looked at again.
    round: usize,
    /// Several events came at once: more may be there already.
    eager: bool,
    /// Counts the waits.
    turn: u64,
    /// The helper has stopped the accepting, for want of a free thread.
    rescued: bool,
    /// For what comes out of the mailbox.
    letter: Vec<u8>,
    /// For those who come when no other descriptor is left.
    reserve: Reserve,
    /// Nothing that waits in the backlog is overdue before.
    sheds_at: Nanos,
}

/// It is never poisoned: a thread that panics ends the process.
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
        let (waker, nudge) = (Waker::new()?, Waker::new()?);
        poller.add(&waker, WAKE, Interest::Read)?;
        for (index, fd) in controls.iter().enumerate() {
            poller.add(fd, CONTROL | index as u64, Interest::Read)?;
        }
        let table = Table {
            entries: Slab::new(),
            generation: 0,
            ready: ReadyQueue::default(),
            idle: IdleOrder::default(),
            timers: Timers::default(),
            listening: false,
            rescued: false,
            frozen: false,
            retry: None,
            pause: None,
            drain_until: None,
            waits_until: Nanos::MAX,
            sleeps_until: 0,
        };
        let lead = Lead {
            events: Events::default(),
            accepts: Vec::new(),
            control,
            round: 0,
            eager: false,
            turn: 0,
            rescued: false,
            letter: Vec::new(),
            reserve: Reserve::new(waker.as_fd())?,
            sheds_at: 0,
        };
        let calls = (0..plan.threads).map(|_| Claim::default()).collect();
        let roll = Roll::new(plan.most_connections);
        let budget = Budget::new(plan.response_buffer);
        let looped = EventLoop {
            plan,
            poller,
            waker,
            nudge,
            arbiter,
            controls,
            table: Mutex::new(table),
            lead: Baton::new(lead),
            calls,
            roll,
            pages: Pages::new(),
            budget,
            habit: AtomicU32::new(0),
            surplus: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            telling: Mutex::new(()),
        };
        match looped.plan.quiet {
            0 => looped.listen(&mut lock(&looped.table))?,
            quiet => lock(&looped.table).pause = Some(clock::monotonic() + quiet),
        }
        Ok(looped)
    }

    pub fn threads(&self) -> usize {
        self.plan.threads
    }

    /// Until when the worker may drain, once it does.
    pub fn drains_until(&self) -> Option<Nanos> {
        lock(&self.table).drain_until
    }

    /// Whether a thread is in a request that ran too long, and perhaps stays there.
    pub fn has_stuck_thread(&self) -> bool {
        self.overdue_calls() > 0
    }

    /// One thread's life until the loop stops. Every thread of the worker runs it.
    pub fn run(&self, thread: usize, caller: &mut dyn Caller) {
        self.lead_and_serve(thread, caller);
        // What the helper says of a request comes after that has its answer, and may be all that is left to do.
        drop(lock(&self.telling));
        // Another thread's last request has its line before its connection is gone, which is what ends the loop.
        self.write_access_log();
    }

    /// Leads, serves, leads again.
    fn lead_and_serve(&self, thread: usize, caller: &mut dyn Caller) {
        let mut desk = Desk::new(&self.plan.settings);
        let mut lead = self.follow(caller);
        while let Some(job) = self.next_job(&mut lead, &mut desk, caller) {
            if self.hands_lead_on(&lead) {
                drop(lead);
                self.serve(job, thread, &mut desk, caller);
                lead = self.follow(caller);
            } else {
                let turn = lead.turn;
                let lent = lead.lend(turn);
                self.serve(job, thread, &mut desk, caller);
                lead = match lent.recall() {
                    Ok(lead) => lead,
                    Err(lent) => self.parked(caller, || lent.wait()),
                };
            }
            self.come_back(&mut lead);
        }
    }

    /// Waits until the lead is free.
    fn follow(&self, caller: &mut dyn Caller) -> Held<'_, Lead> {
        match self.lead.try_take() {
            Some(lead) => self.take_up(lead, caller),
            None => self.parked(caller, || self.lead.take()),
        }
    }

    /// By the thread that leads from now on. A turn is lent by one thread only.
    fn take_up<'a>(&'a self, mut lead: Held<'a, Lead>, caller: &mut dyn Caller) -> Held<'a, Lead> {
        lead.turn += 1;
        if self.plan.threads > 1 && !self.plan.parallel {
            // Before it takes a request that it might not be able to serve; the helper leads meanwhile.
            let turn = lead.turn;
            let lent = lead.lend(turn);
            caller.make_sure();
            lead = lent.recall().unwrap_or_else(|lent| lent.wait());
            lead.turn += 1;
        }
        self.come_back(&mut lead);
        lead
    }

    /// Waits for the lead without the interpreter. Whoever leads may wait for long before it writes the access log.
    fn parked<'a>(
        &'a self,
        caller: &mut dyn Caller,
        wait: impl FnOnce() -> Held<'a, Lead> + Send,
    ) -> Held<'a, Lead> {
        self.write_access_log();
        let (mut wait, mut lead) = (Some(wait), None);
        caller.unlocked(&mut || lead = wait.take().map(|wait| wait()));
        // `unlocked` runs what it is given, once.
        self.take_up(lead.unwrap_or_else(|| unreachable!()), caller)
    }

    /// Leads until a request is complete; None when the loop has stopped.
    fn next_job(&self, lead: &mut Lead, desk: &mut Desk, caller: &mut dyn Caller) -> Option<Job> {
        while !self.stopped.load(Relaxed) {
            while let Some((source, left)) = lead.accepts.pop() {
                if let Some(job) = self.accept_turn(source, left, lead, desk) {
                    return Some(job);
                }
            }
            let job = if lead.round > 0 {
                self.next_queued(lead, desk)
            } else if let Some(token) = lead.events.next() {
                self.dispatch(token, lead, desk)
            } else {
                self.wait(lead, desk, caller);
                None
            };
            if job.is_some() {
                return job;
            }
        }
        None
    }

    /// The end of a turn: deadlines, the access log, then the wait for the next events.
    fn wait(&self, lead: &mut Lead, desk: &mut Desk, caller: &mut dyn Caller) {
        let now = clock::monotonic();
        self.end_waits_in_turn(now, lead, desk);
        self.write_access_log();
        defect::planted("loop");
        lead.turn += 1;
        self.share();
        let Some(until) = self.next_deadline(now, lead, desk) else {
            return;
        };
        if until == 0 {
            return self.begin_round(lead);
        }
        // Under load there is always something ready: look before the interpreter is given up.
        if std::mem::take(&mut lead.eager) && !matches!(self.poller.wait(&mut lead.events, Some(0)), Ok(0)) {
            lead.eager = true;
            self.plan.slot.set_idle(false);
            return;
        }
        let patience = (until != Nanos::MAX).then(|| until.saturating_sub(now));
        let events = &mut lead.events;
        let mut result = Ok(0);
        caller.unlocked(&mut || {
            result = self.poller.wait(events, patience);
            self.plan.slot.set_idle(false);
        });
        match result {
            Ok(found) => lead.eager = found > 1 && self.plan.threads == 1,
            Err(e) => {
                log::error!("Cannot wait for connections: {e}");
                self.stop();
            }
        }
    }

    fn write_access_log(&self) {
        if let Some(access) = &self.plan.access {
            access.flush();
        }
    }

    /// Whether lines wait for the reader of a log.
    fn has_unread_logs(&self) -> bool {
        crate::log::retry() || self.plan.access.as_ref().is_some_and(|access| access.is_waiting())
    }

    /// Until when the leader may wait, `Nanos::MAX` for ever, 0 not at all, as the ready queue waits for it; None when the
    /// loop has ended instead. From here to the end of the wait the worker counts as idle.
    fn next_deadline(&self, now: Nanos, lead: &mut Lead, desk: &mut Desk) -> Option<Nanos> {
        self.retry_to_part(now, desk);
        let mut table = lock(&self.table);
        if table.pause.is_some_and(|until| until <= now) {
            drop(table);
            self.end_pause(lead, now, desk);
            table = lock(&self.table);
        }
        // That the time for it is over is seen by the helper, which answers what is left.
        if self.is_drained(&table) {
            drop(table);
            self.stop();
            return None;
        }
        if table.has_turns() {
            table.waits_until = 0;
            return Some(0);
        }
        let log_retry = Some(now + LOG_RETRY).filter(|_| self.has_unread_logs());
        let moments = [table.timers.next(), table.pause, table.retry, log_retry];
        let until = moments.into_iter().flatten().min();
        table.waits_until = until.unwrap_or(Nanos::MAX);
        self.plan.slot.set_idle(table.listening);
        Some(table.waits_until)
    }

    /// Ends the loop for every thread.
    fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.waker.wake();
        self.nudge.wake();
    }

    fn dispatch(&self, token: u64, lead: &mut Lead, desk: &mut Desk) -> Option<Job> {
        if token & SPECIAL == 0 {
            let gone = lead.events.found_gone();
            let job = self.connection_ready(token, desk)?;
            return if gone { self.abandon(job, desk) } else { Some(job) };
        }
        let index = (token & 0xffff_ffff) as usize;
        match token & !0xffff_ffff {
            LISTENER => lead.accepts.push((Source::Listener(index), self.accept_turns())),
            MAILBOX => lead.accepts.push((Source::Mailbox, self.accept_turns())),
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
                self.plan.notice.speak_for_the_arbiter();
                self.drain(lead, desk);
            }
            Directive::Stop => self.stop(),
        }
    }
}
