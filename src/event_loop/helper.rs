//! Owns: the helper: a thread beside those that call the application, which sees from outside what they cannot see
//! themselves: that a call takes long, or too long.
//! Rule: it never takes the interpreter, and costs a fast request nothing: it looks at words that are written anyway, once
//! a millisecond while the worker is active. While the worker is idle it sleeps on the poller, which wakes it with the
//! first thing that happens; unless the leader has taken it before the helper could see it. So deadlines wake it too.
//! Never: calls the application.
//!
//! ```text
//!             something is ready                 a call lasts
//!   Asleep ──────────────────────▶ Ticking ──────────────────────▶ Rescuing
//!          ◀──────────────────────         ◀──────────────────────
//!             nothing happens                   it is over, or a parked thread leads
//! ```

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::rescue::{Errand, Look, MOST_MOVES};
use super::{lock, EventLoop};
use crate::conn::Desk;
use crate::defect;
use crate::sys::baton::Standing;
use crate::sys::clock::{self, Nanos, Vigil, SECOND};
use crate::sys::poll::{wait_few, Events, Interest};
use crate::sys::process;

/// How often the words are looked at. A call that is seen in the same turn twice has lasted one to two of these.
const TICK: Nanos = SECOND / 1000;
/// How long after a connection's deadline the helper wakes, so that a leader that waits has seen to it.
const LENIENCE: Nanos = 16 * TICK;
/// Ticks without a request after which the helper sleeps.
const QUIET: u32 = 1;
/// Ticks that a turn of many short calls may last before another worker takes some of them.
const LONG_TURN: u32 = 4;
/// How long the main thread may take to leave a request that was broken off, and then the process to end beside a thread that
/// is stuck.
const LAST_WORDS: Nanos = SECOND;
/// How long an application may take to notice that its connection was closed.
const FAREWELL: Nanos = SECOND / 2;
/// What a request is given at most to finish after a time in which this process did not run.
const MERCY: Nanos = SECOND;
/// Ticks between two comparisons with the other workers.
const COMPARE: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Asleep,
    Ticking,
    /// The lead is looked after between the looks of its owner, who is in the application.
    Rescuing(Standing),
}

/// What the helper remembers from one look to the next.
struct Watch {
    mode: Mode,
    seen: Seen,
    /// For how many ticks it has been so.
    ticks: u32,
    /// Ticks until the workers are compared.
    compare: u32,
    events: Events,
    desk: Desk,
    vigil: Vigil,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    standing: Standing,
    requests: u64,
}

impl EventLoop {
    /// The helper's life; ends with the loop.
    pub fn help(&self) {
        let mut watch = Watch {
            mode: Mode::Ticking,
            seen: self.see(),
            ticks: 0,
            compare: COMPARE,
            events: Events::default(),
            desk: Desk::new(&self.plan.settings),
            vigil: Vigil::default(),
        };
        while !self.stopped.load(Relaxed) {
            defect::planted("helper");
            let now = clock::monotonic();
            // In proportion: a busy machine makes it late often, and the patience of the arbiter ends.
            let overslept = watch.vigil.wake(now);
            watch.vigil.hold(now, overslept.min(MERCY));
            let due = match watch.vigil.held(now) {
                Some(until) => until,
                None => self.enforce_timeout(now, &mut watch.desk).min(self.end_drain(now, &mut watch.desk)),
            };
            watch.vigil.plan(due);
            let patience = due.saturating_sub(now);
            watch.mode = match watch.mode {
                Mode::Asleep => self.sleep(&mut watch, patience),
                Mode::Ticking => self.tick(&mut watch, patience),
                Mode::Rescuing(standing) => self.rescue(standing, &mut watch, patience),
            };
        }
        self.leave_stuck();
    }

    /// Until something becomes ready, for whomever, or a connection's deadline has passed and nobody has seen to it.
    fn sleep(&self, watch: &mut Watch, patience: Nanos) -> Mode {
        let patience = self.fall_asleep(patience);
        let is_ready = self.nap(patience);
        let is_late = self.wake_up();
        if !is_ready && !is_late {
            return Mode::Asleep;
        }
        watch.ticks = 0;
        Mode::Ticking
    }

    /// How long to sleep for: until after the first deadline. One that comes before it wakes the helper.
    fn fall_asleep(&self, patience: Nanos) -> Nanos {
        let now = clock::monotonic();
        let mut table = lock(&self.table);
        let next = table.timers.next().unwrap_or(Nanos::MAX);
        table.sleeps_until = next.min(now.saturating_add(patience));
        next.saturating_add(LENIENCE).saturating_sub(now).min(patience)
    }

    /// Whether a deadline has passed to which nobody has seen.
    fn wake_up(&self) -> bool {
        let mut table = lock(&self.table);
        table.sleeps_until = 0;
        table.timers.next().is_some_and(|next| next.saturating_add(LENIENCE) <= clock::monotonic())
    }

    /// Sleeps until something becomes ready; false when there is only a deadline to be looked at.
    fn nap(&self, patience: Nanos) -> bool {
        let fds = [self.poller.as_fd(), self.nudge.as_fd()];
        match wait_few(&fds, Interest::Read, Some(patience)) {
            Ok(ready) => {
                if ready[1] {
                    self.nudge.clear();
                }
                ready[0]
            }
            Err(e) => {
                log::error!("Cannot watch the worker: {e}");
                pause(patience);
                false
            }
        }
    }

    fn see(&self) -> Seen {
        Seen { standing: self.lead.standing(), requests: self.plan.slot.requests() }
    }

    fn tick(&self, watch: &mut Watch, patience: Nanos) -> Mode {
        pause(patience);
        watch.compare -= 1;
        if watch.compare == 0 {
            watch.compare = COMPARE;
            self.compare();
        }
        let before = std::mem::replace(&mut watch.seen, self.see());
        let Seen { standing, requests } = watch.seen;
        let same_call = requests == before.requests;
        match standing {
            _ if standing != before.standing => watch.ticks = 0,
            Standing::Held if !same_call => watch.ticks = 0,
            Standing::Held if watch.ticks >= QUIET => return Mode::Asleep,
            Standing::Held => watch.ticks += 1,
            _ if self.promotes(standing) => {}
            _ if same_call => {
                watch.ticks = 0;
                return Mode::Rescuing(standing);
            }
            _ => {
                watch.ticks += 1;
                if watch.ticks >= LONG_TURN && self.has_taker() {
                    watch.ticks = 0;
                    // This worker goes on with its share.
                    let most = self.plan.slot.lead_in_connections().div_ceil(2) as usize;
                    self.look_in(standing, Errand { most, is_long: false }, watch);
                }
            }
        }
        Mode::Ticking
    }

    /// Gives the lead to a parked thread, if there is one.
    fn promotes(&self, standing: Standing) -> bool {
        if self.lead.parked() == 0 {
            return false;
        }
        if let Standing::Lent(turn) = standing {
            // Dropped, it is free, and one of the parked is woken.
            drop(self.lead.seize(turn));
        }
        true
    }

    fn rescue(&self, standing: Standing, watch: &mut Watch, patience: Nanos) -> Mode {
        if self.lead.standing() != standing || self.promotes(standing) {
            watch.ticks = 0;
            return Mode::Ticking;
        }
        // At first only half of them: the thread may just have had to wait for a processor.
        let most = match watch.ticks {
            0 => self.plan.slot.connections().div_ceil(2) as usize,
            _ => MOST_MOVES,
        };
        watch.ticks += 1;
        let look = self.look_in(standing, Errand { most, is_long: true }, watch);
        let patience = patience.min(self.next_timer()).min(self.next_shedding());
        match look {
            // Woken by the next thing that becomes ready.
            Some(Look::Clean) => {
                self.nap(patience);
            }
            Some(Look::Stuck) => pause(patience),
            None => {}
        }
        Mode::Rescuing(standing)
    }

    /// How long until a connection's deadline has passed.
    fn next_timer(&self) -> Nanos {
        let next = lock(&self.table).timers.next();
        next.map_or(Nanos::MAX, |next| next.saturating_sub(clock::monotonic()).max(TICK))
    }

    /// Holds the lead for one look.
    fn look_in(&self, standing: Standing, errand: Errand, watch: &mut Watch) -> Option<Look> {
        match standing {
            Standing::Lent(turn) => self.lead.seize(turn).map(|mut lead| {
                let look = self.look(&mut lead, errand, &mut watch.events, &mut watch.desk);
                lead.restore(turn);
                look
            }),
            _ => self
                .lead
                .try_take()
                .map(|mut lead| self.look(&mut lead, errand, &mut watch.events, &mut watch.desk)),
        }
    }

    /// The end of the time that a drain has, and the end of a worker in which only what ran too long is left; returns when
    /// to look again.
    fn end_drain(&self, now: Nanos, desk: &mut Desk) -> Nanos {
        if !self.draining.load(Relaxed) {
            return Nanos::MAX;
        }
        let table = lock(&self.table);
        let until = table.drain_until.unwrap_or(Nanos::MAX);
        let drained = self.is_drained(&table);
        drop(table);
        if until <= now {
            self.refuse_queued(desk);
        }
        if until <= now && self.expire_all(now, desk) {
            let until = now + FAREWELL;
            lock(&self.table).drain_until = Some(until);
            return until;
        }
        if drained || until <= now {
            self.stop();
        }
        until
    }

    /// The loop has ended, but a thread that is in the application may have the lead lent, and nobody takes it over any more:
    /// the main thread would wait for that call. Until the process ends.
    fn free_lead(&self) {
        loop {
            if let Standing::Lent(turn) = self.lead.standing() {
                drop(self.lead.seize(turn));
            }
            pause(TICK);
        }
    }

    /// The loop has ended, and the main thread ends the process; unless it is stuck in a request that ran too long, or
    /// cannot have the interpreter because of one.
    fn leave_stuck(&self) {
        if !lock(&self.table).frozen && self.main_leaves_its_call() {
            if self.overdue_calls() == 0 {
                return self.free_lead();
            }
            // Exit handlers run beside a thread that is stuck, and may wait for it in vain.
            std::thread::sleep(Duration::from_nanos(LAST_WORDS));
        }
        self.write_access_log();
        self.plan.slot.set_leaves();
        log::info!("Worker exiting (pid: {})", process::id());
        crate::log::give_up();
        process::exit_now(0);
    }

    /// False when the main thread is stuck. A request that has just been broken off ends once that thread has the interpreter,
    /// which takes a moment; `worker_abort` is called on the way.
    fn main_leaves_its_call(&self) -> bool {
        let until = clock::monotonic() + LAST_WORDS;
        while self.calls[0].look().is_overdue() {
            if clock::monotonic() >= until {
                return false;
            }
            pause(TICK);
        }
        true
    }
}

fn pause(patience: Nanos) {
    std::thread::sleep(Duration::from_nanos(TICK.min(patience)));
}
