//! Owns: the table of the arbiter's workers, and every question about it that has an answer without a system call.
//! Rule: pure; `now` and what was observed are arguments, so that the policy is tested without forking.
//! Never: forks, kills, logs.

use std::sync::Arc;

use crate::scoreboard::{Phase, Slot};
use crate::sys::child::Handle;
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::poll::Waker;

/// A worker that lived so long, or served so much, does not make its successor wait when it dies.
const STABLE_AGE: Nanos = 30 * SECOND;
const STABLE_REQUESTS: u64 = 100;
/// Pauses before the next fork after so many unstable deaths in a row.
const PAUSES: [Nanos; 8] =
    [0, SECOND / 5, SECOND / 2, SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND, 30 * SECOND];
/// The longest of them where workers had been ready: what ended them is a request now and then, and the next one serves.
const CRASH_PAUSE: Nanos = SECOND;
/// Workers end what runs too long themselves; one that has not so much later is frozen, and is killed.
pub const BACKSTOP: Nanos = 2 * SECOND;

/// Whether the death of a process that was born then is no sign of a loop of deaths.
pub fn is_old(born: Nanos, now: Nanos) -> bool {
    now.saturating_sub(born) >= STABLE_AGE
}

/// What the arbiter has made of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Booting,
    Ready,
    /// It serves, and goes when its replacement is ready.
    Retiring,
    /// Told to finish and go.
    Draining {
        since: Nanos,
    },
    Killed,
}

pub struct Child {
    pub pid: i32,
    pub process: Handle,
    /// By which it wakes the arbiter.
    pub waker: Arc<Waker>,
    /// Serial number: the lower, the older.
    pub age: u64,
    pub generation: u64,
    pub slot: Slot,
    pub stage: Stage,
    pub born: Nanos,
    /// Since when somebody has had it stopped (SIGSTOP).
    pub stopped: Option<Nanos>,
}

impl Child {
    fn life(&self, now: Nanos) -> Life {
        let stable = is_old(self.born, now) || self.slot.requests() >= STABLE_REQUESTS;
        Life::of(stable, self.has_been_ready())
    }

    /// Counts towards the workers wanted: it serves, or will.
    fn is_active(&self) -> bool {
        matches!(self.stage, Stage::Booting | Stage::Ready)
    }

    pub fn has_been_ready(&self) -> bool {
        self.slot.phase() != Phase::Booting
    }
}

/// So many boots in a row that failed without a reason are no accident.
const HOPELESS: usize = 6;

/// How far a worker came that nobody had told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    NeverReady,
    Unstable,
    Stable,
}

impl Life {
    pub fn of(stable: bool, was_ready: bool) -> Life {
        match (stable, was_ready) {
            (true, _) => Life::Stable,
            (false, true) => Life::Unstable,
            (false, false) => Life::NeverReady,
        }
    }
}

/// When the next worker may be forked, after workers died young.
#[derive(Default)]
pub struct Backoff {
    failures: usize,
    until: Nanos,
}

impl Backoff {
    pub fn died(&mut self, life: Life, now: Nanos) {
        self.failures = if life == Life::Stable { 0 } else { self.failures + 1 };
        let pause = PAUSES[self.failures.saturating_sub(1).min(PAUSES.len() - 1)];
        let most = if life == Life::NeverReady { Nanos::MAX } else { CRASH_PAUSE };
        self.until = now + pause.min(most);
    }

    /// Whether a server none of whose workers has ever been ready should stop trying.
    pub fn is_hopeless(&self) -> bool {
        self.failures >= HOPELESS
    }

    /// A fork that failed is not the application's fault, but trying at once would not help.
    pub fn fork_failed(&mut self, now: Nanos) {
        self.until = now + SECOND;
    }

    /// When there is to be another look, after one at that moment; a pause that has ended since is to be noticed too.
    pub fn ends_after(&self, look: Nanos) -> Option<Nanos> {
        Some(self.until).filter(|until| *until > look)
    }

    pub fn pause(&self, now: Nanos) -> Nanos {
        self.until.saturating_sub(now)
    }
}

#[derive(Default)]
pub struct Children {
    list: Vec<Child>,
    pub backoff: Backoff,
}

impl Children {
    pub fn add(&mut self, child: Child) {
        self.list.push(child);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Child> {
        self.list.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn uses_slot(&self, index: usize) -> bool {
        self.list.iter().any(|child| child.slot.index() == index)
    }

    /// Takes a dead worker out of the table and notes how it bears on the next fork of that generation, which is not to
    /// suffer from what another one does.
    pub fn remove(&mut self, pid: i32, generation: u64, now: Nanos) -> Option<Child> {
        let at = self.list.iter().position(|child| child.pid == pid)?;
        let child = self.list.remove(at);
        if child.is_active() && child.generation == generation {
            self.backoff.died(child.life(now), now);
        }
        Some(child)
    }

    pub fn set_stage(&mut self, pid: i32, stage: Stage) {
        if let Some(child) = self.list.iter_mut().find(|child| child.pid == pid) {
            child.stage = stage;
        }
    }

    /// Takes over what the workers say of themselves on the scoreboard; returns those that have become ready.
    pub fn observe(&mut self, now: Nanos) -> Vec<i32> {
        let mut ready = Vec::new();
        for child in &mut self.list {
            let before = child.stage;
            child.stage = observed(child.stage, child.slot.phase(), now);
            if before == Stage::Booting && child.stage == Stage::Ready {
                ready.push(child.pid);
            }
        }
        ready
    }

    fn of(&self, generation: u64) -> impl Iterator<Item = &Child> {
        self.list.iter().filter(move |child| child.generation == generation)
    }

    pub fn ready(&self, generation: u64) -> usize {
        self.of(generation).filter(|child| child.stage == Stage::Ready).count()
    }

    /// How many of a generation serve. One that has reached `max_requests` does, until it is replaced.
    pub fn serving(&self, generation: u64) -> usize {
        self.of(generation).filter(|child| matches!(child.stage, Stage::Ready | Stage::Retiring)).count()
    }

    /// How many of a generation serve and will not be told to go before others are there: connections can be left to them.
    pub fn staying(&self, generation: u64, wanted: usize) -> usize {
        self.ready(generation).min(wanted)
    }

    /// How many to fork so that `wanted` serve or will.
    pub fn missing(&self, generation: u64, wanted: usize) -> usize {
        wanted.saturating_sub(self.of(generation).filter(|child| child.is_active()).count())
    }

    /// Who can go: more than `wanted`, the oldest first; those that retire, when enough others are ready; and every other
    /// generation when this one is complete.
    pub fn dispensable(&self, generation: u64, wanted: usize) -> Vec<i32> {
        let mut active: Vec<&Child> = self.of(generation).filter(|child| child.is_active()).collect();
        active.sort_by_key(|child| child.age);
        let surplus = active.len().saturating_sub(wanted);
        let mut going: Vec<i32> = active.iter().take(surplus).map(|child| child.pid).collect();
        if self.ready(generation) >= wanted {
            let retiring = |child: &&Child| child.stage == Stage::Retiring && child.generation == generation;
            going.extend(self.list.iter().filter(retiring).map(|child| child.pid));
        }
        going
    }

    /// Those of other generations that still serve.
    pub fn outdated(&self, generation: u64) -> Vec<i32> {
        let serves = |child: &&Child| {
            child.generation != generation
                && matches!(child.stage, Stage::Booting | Stage::Ready | Stage::Retiring)
        };
        self.list.iter().filter(serves).map(|child| child.pid).collect()
    }

    /// Workers whose application has been silent in a request for longer than `timeout` and that have done nothing about it. One that has asks
    /// for its replacement.
    pub fn overdue(&self, timeout: Nanos, now: Nanos) -> Vec<i32> {
        let serves = |c: &&Child| matches!(c.stage, Stage::Booting | Stage::Ready);
        let over = |c: &&Child| is_silent_for(c, timeout + BACKSTOP, now);
        self.list.iter().filter(serves).filter(over).map(|c| c.pid).collect()
    }

    /// Somebody has stopped the worker, or let it go on.
    pub fn set_stopped(&mut self, pid: i32, stopped: Option<Nanos>) {
        if let Some(child) = self.list.iter_mut().find(|child| child.pid == pid) {
            child.stopped = stopped;
        }
    }

    /// Workers that have been stopped for so long that a request would be over by now: they have connections, and nobody
    /// else can read those.
    pub fn halted(&self, timeout: Nanos, now: Nanos) -> Vec<i32> {
        let over = |c: &&Child| halted_until(c, timeout).is_some_and(|until| until <= now);
        self.list
            .iter()
            .filter(|c| matches!(c.stage, Stage::Booting | Stage::Ready))
            .filter(over)
            .map(|c| c.pid)
            .collect()
    }

    /// Draining workers that did not finish in time.
    pub fn undrained(&self, graceful: Nanos, now: Nanos) -> Vec<i32> {
        let late = |c: &&Child| matches!(c.stage, Stage::Draining { since } if since.saturating_add(graceful + BACKSTOP) <= now);
        self.list.iter().filter(late).map(|child| child.pid).collect()
    }

    /// When the next of these questions may have a new answer; None while nothing runs and nothing waits.
    pub fn next_deadline(&self, timeout: Option<Nanos>, graceful: Nanos, now: Nanos) -> Option<Nanos> {
        self.list.iter().filter_map(|child| child_deadline(child, timeout, graceful, now)).min()
    }
}

fn observed(stage: Stage, phase: Phase, now: Nanos) -> Stage {
    match (stage, phase) {
        (Stage::Booting, Phase::Ready) => Stage::Ready,
        (Stage::Booting | Stage::Ready, Phase::Retiring) => Stage::Retiring,
        (Stage::Booting | Stage::Ready | Stage::Retiring, Phase::Draining) => Stage::Draining { since: now },
        (stage, _) => stage,
    }
}

fn is_silent_for(child: &Child, timeout: Nanos, now: Nanos) -> bool {
    child.slot.longest_silence().is_some_and(|since| since.saturating_add(timeout) <= now)
}

fn halted_until(child: &Child, timeout: Nanos) -> Option<Nanos> {
    child.stopped.map(|since| since.saturating_add(timeout + BACKSTOP))
}

/// A request that starts after `now`, or whose wait for its client ends after it, cannot be overdue before `now + timeout`:
/// so often, and no oftener, such a worker has to be looked at.
fn child_deadline(child: &Child, timeout: Option<Nanos>, graceful: Nanos, now: Nanos) -> Option<Nanos> {
    match child.stage {
        Stage::Booting | Stage::Ready => timeout.map(|timeout| {
            let silent = child.slot.longest_silence().map_or(now, |since| since.min(now));
            let busy = silent.max(1).saturating_add(timeout + BACKSTOP);
            halted_until(child, timeout).map_or(busy, |until| busy.min(until))
        }),
        Stage::Draining { since } => Some(since + graceful + BACKSTOP),
        Stage::Retiring | Stage::Killed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::Scoreboard;

    const T: Nanos = 30 * SECOND;

    /// Workers of generation 1, pids from 100, born at 0.
    fn table(stages: &[Stage]) -> Children {
        let board = Scoreboard::new(stages.len(), 1).unwrap();
        let mut children = Children::default();
        for (i, stage) in stages.iter().enumerate() {
            let slot = board.slot(i);
            if *stage != Stage::Booting {
                slot.set_phase(Phase::Ready);
            }
            let (pid, age) = (100 + i as i32, i as u64);
            let process = Handle::by_number(0);
            let waker = Arc::new(Waker::new().unwrap());
            children.add(Child {
                pid,
                process,
                waker,
                age,
                generation: 1,
                slot,
                stage: *stage,
                born: 0,
                stopped: None,
            });
        }
        children
    }

    #[test]
    fn booting_and_ready_workers_count_and_others_do_not() {
        let children = table(&[Stage::Booting, Stage::Ready, Stage::Retiring, Stage::Draining { since: 0 }]);
        assert_eq!(children.missing(1, 4), 2);
        assert_eq!(children.missing(1, 1), 0);
        assert_eq!(children.missing(2, 4), 4);
    }

    #[test]
    fn a_retiring_worker_goes_only_when_its_replacement_is_ready() {
        let mut children = table(&[Stage::Retiring, Stage::Ready, Stage::Booting]);
        assert!(children.dispensable(1, 2).is_empty());
        children.set_stage(102, Stage::Ready);
        assert_eq!(children.dispensable(1, 2), [100]);
    }

    #[test]
    fn the_oldest_go_when_fewer_are_wanted() {
        let children = table(&[Stage::Ready, Stage::Ready, Stage::Ready]);
        assert_eq!(children.dispensable(1, 1), [100, 101]);
        assert_eq!(children.outdated(2), [100, 101, 102]);
        assert!(children.outdated(1).is_empty());
    }

    #[test]
    fn what_workers_say_is_taken_over_but_never_backwards() {
        let mut children = table(&[Stage::Booting, Stage::Ready, Stage::Killed]);
        for child in children.list.iter() {
            child.slot.set_phase(Phase::Ready);
        }
        children.observe(5);
        assert_eq!(children.list[0].stage, Stage::Ready);
        children.list[1].slot.set_phase(Phase::Retiring);
        children.list[2].slot.set_phase(Phase::Draining);
        children.observe(6);
        assert_eq!((children.list[1].stage, children.list[2].stage), (Stage::Retiring, Stage::Killed));
        children.list[1].slot.set_phase(Phase::Draining);
        children.observe(7);
        assert_eq!(children.list[1].stage, Stage::Draining { since: 7 });
    }

    #[test]
    fn a_request_is_overdue_by_the_silence_of_its_application() {
        let mut children = table(&[Stage::Ready, Stage::Ready]);
        children.list[1].slot.begin(0, 10 * SECOND, b"GET", b"/slow");
        assert!(children.overdue(T, 39 * SECOND + BACKSTOP).is_empty());
        assert_eq!(children.next_deadline(Some(T), T, 20 * SECOND), Some(40 * SECOND + BACKSTOP));
        assert_eq!(children.overdue(T, 40 * SECOND + BACKSTOP), [101]);
        children.list[1].slot.silence(0).suspend();
        assert!(children.overdue(T, 90 * SECOND).is_empty(), "it waits for its client");
        let looked_at = children.next_deadline(Some(T), T, 20 * SECOND);
        assert_eq!(looked_at, Some(50 * SECOND + BACKSTOP), "which may end at once");
        children.list[1].slot.silence(0).restart(20 * SECOND);
        assert!(children.overdue(T, 49 * SECOND + BACKSTOP).is_empty());
        assert_eq!(children.overdue(T, 50 * SECOND + BACKSTOP), [101]);
        children.set_stage(101, Stage::Retiring);
        assert!(children.overdue(T, 90 * SECOND).is_empty(), "it has noticed, and waits for its replacement");
    }

    #[test]
    fn a_worker_that_writes_nonsense_of_itself_harms_only_itself() {
        let mut children = table(&[Stage::Ready, Stage::Ready]);
        for since in [u64::MAX, u64::MAX - 1, 1 << 63, 1] {
            children.list[1].slot.begin(0, since, b"", b"");
            children.observe(9 * SECOND);
            assert!(children.overdue(T, 9 * SECOND).iter().all(|pid| *pid == 101));
            assert!(children.next_deadline(Some(T), T, 9 * SECOND).is_some());
        }
        assert_eq!(children.iter().map(|child| child.pid).collect::<Vec<_>>(), [100, 101]);
    }

    #[test]
    fn a_worker_that_is_stopped_may_stay_so_for_a_timeout() {
        let mut children = table(&[Stage::Ready, Stage::Ready]);
        children.set_stopped(101, Some(5 * SECOND));
        assert_eq!(children.next_deadline(Some(T), T, 10 * SECOND), Some(5 * SECOND + T + BACKSTOP));
        assert!(children.halted(T, 4 * SECOND + T + BACKSTOP).is_empty());
        assert_eq!(children.halted(T, 5 * SECOND + T + BACKSTOP), [101]);
        children.set_stopped(101, None);
        assert!(children.halted(T, 90 * SECOND).is_empty());
    }

    #[test]
    fn who_has_reached_max_requests_serves_until_it_is_told_to_go() {
        let children = table(&[Stage::Ready, Stage::Retiring, Stage::Draining { since: 0 }, Stage::Booting]);
        assert_eq!((children.ready(1), children.serving(1), children.serving(2)), (1, 2, 0));
    }

    #[test]
    fn connections_are_left_to_those_who_stay() {
        let children = table(&[Stage::Ready, Stage::Ready, Stage::Retiring, Stage::Booting]);
        assert_eq!((children.staying(1, 4), children.staying(1, 1), children.staying(2, 4)), (2, 1, 0));
    }

    #[test]
    fn idle_workers_are_looked_at_once_a_timeout_and_without_one_never() {
        let children = table(&[Stage::Ready, Stage::Ready]);
        assert_eq!(children.next_deadline(Some(T), T, 5 * SECOND), Some(5 * SECOND + T + BACKSTOP));
        assert_eq!(children.next_deadline(None, T, 5 * SECOND), None);
    }

    #[test]
    fn workers_that_die_young_make_the_next_wait_longer_and_old_ones_do_not() {
        let mut children = table(&[Stage::Booting; 12]);
        let mut pauses = Vec::new();
        for pid in 100..109 {
            children.remove(pid, 1, SECOND);
            pauses.push(children.backoff.pause(SECOND));
        }
        assert_eq!(pauses[..8], PAUSES);
        assert_eq!(pauses[8], PAUSES[7]);
        children.remove(109, 1, STABLE_AGE);
        assert_eq!(children.backoff.pause(STABLE_AGE), 0);
    }

    #[test]
    fn crashes_of_workers_that_served_cost_a_second_at_the_most() {
        let mut children = table(&[Stage::Ready; 12]);
        for pid in 100..110 {
            children.remove(pid, 1, SECOND);
        }
        assert_eq!(children.backoff.pause(SECOND), CRASH_PAUSE);
    }

    #[test]
    fn a_worker_that_was_told_to_go_does_not_count_as_a_failure() {
        let mut children = table(&[Stage::Draining { since: 0 }, Stage::Killed]);
        for pid in [100, 101, 100] {
            children.remove(pid, 1, SECOND);
        }
        assert_eq!(children.backoff.pause(SECOND), 0);
        assert!(children.is_empty());
    }

    #[test]
    fn a_release_that_does_not_boot_makes_those_that_serve_wait_for_nothing() {
        let mut children = table(&[Stage::Booting; 12]);
        for pid in 100..112 {
            assert_eq!(children.remove(pid, 2, SECOND).map(|child| child.generation), Some(1));
        }
        assert_eq!(children.backoff.pause(SECOND), 0);
    }

    #[test]
    fn a_pause_that_ends_between_a_look_and_the_next_wait_is_noticed() {
        let mut backoff = Backoff::default();
        backoff.fork_failed(0);
        assert_eq!(backoff.ends_after(SECOND - 1), Some(SECOND));
        // That look has seen it.
        assert_eq!((backoff.pause(SECOND), backoff.ends_after(SECOND)), (0, None));
    }

    #[test]
    fn a_drain_has_an_end() {
        let children = table(&[Stage::Draining { since: 5 }]);
        assert!(children.undrained(T, 4 + T + BACKSTOP).is_empty());
        assert_eq!(children.undrained(T, 5 + T + BACKSTOP), [100]);
    }
}
