//! Owns: deadlines: which connection is due next, and how a slow peer's deadline may move.
//! Rule: setting a later deadline costs nothing (it is noticed when the earlier one fires); none is ever missed.
//! Never: reads the clock; `now` is an argument.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::sys::clock::{Nanos, SECOND};

/// The least average speed, octets a second, at which a peer may send a body or take a response (see `Pace`).
const LEAST_RATE: u64 = 500;

/// Entries beyond two for each owner that are put up with.
const SLACK: usize = 64;

/// A queue of (moment, token). An owner keeps the moment it is queued for and calls `set` only when it wants an earlier one.
#[derive(Default)]
pub struct Timers(BinaryHeap<Reverse<(Nanos, u64)>>);

impl Timers {
    /// Queues `token` for `deadline` unless it is queued for an earlier moment already; `queued` is the owner's note.
    pub fn set(&mut self, token: u64, deadline: Nanos, queued: &mut Nanos) {
        if deadline < *queued {
            self.0.push(Reverse((deadline, token)));
            *queued = deadline;
        }
    }

    pub fn next(&self) -> Option<Nanos> {
        self.0.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// A token whose queued moment has come; the owner compares it with the deadline it really has.
    pub fn pop(&mut self, now: Nanos) -> Option<(u64, Nanos)> {
        match self.0.peek() {
            Some(Reverse((deadline, _))) if *deadline <= now => {
                self.0.pop().map(|Reverse((at, token))| (token, at))
            }
            _ => None,
        }
    }
}

impl Timers {
    /// Whether most entries are of owners that are gone. One stays until its moment, which may be a century away.
    pub fn is_bloated(&self, owners: usize) -> bool {
        self.0.len() > 2 * owners + SLACK
    }

    /// Keeps the entries for which `wanted`, given token and moment, says so.
    pub fn retain(&mut self, mut wanted: impl FnMut(u64, Nanos) -> bool) {
        self.0.retain(|Reverse((at, token))| wanted(*token, *at));
    }
}

/// The deadline of a transfer that must make progress: no pause longer than `patience`, and on average at least
/// `LEAST_RATE`, so that a peer dripping an octet at a time gains next to nothing.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    patience: Nanos,
    deadline: Nanos,
}

impl Pace {
    pub fn new(now: Nanos, patience: Nanos) -> Pace {
        Pace { patience, deadline: now.saturating_add(patience) }
    }

    pub fn progress(&mut self, now: Nanos, octets: usize) {
        let earned = octets as u64 * (SECOND / LEAST_RATE);
        self.deadline = self.deadline.saturating_add(earned).min(now.saturating_add(self.patience));
    }

    pub fn deadline(&self) -> Nanos {
        self.deadline
    }

    pub fn left(&self, now: Nanos) -> Option<Nanos> {
        self.deadline.checked_sub(now).filter(|left| *left > 0)
    }
}

/// What is not to be done oftener than so.
pub struct Seldom {
    period: Nanos,
    /// 0: not yet.
    last: AtomicU64,
}

impl Seldom {
    pub const fn new(period: Nanos) -> Seldom {
        Seldom { period, last: AtomicU64::new(0) }
    }

    /// Whether it is to be done now; to one of those who ask.
    pub fn is_due(&self, now: Nanos) -> bool {
        let last = self.last.load(Relaxed);
        let due = last == 0 || last.saturating_add(self.period) <= now;
        due && self.last.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seldom_done_is_done_at_once_and_once_a_period() {
        let seldom = Seldom::new(60);
        let due = |moments: &[Nanos]| moments.iter().map(|now| seldom.is_due(*now)).collect::<Vec<_>>();
        assert_eq!(due(&[0, 10, 59, 61, 62, 120, 121]), [true, false, false, true, false, false, true]);
    }

    #[test]
    fn tokens_come_out_in_order_of_their_moments() {
        let mut timers = Timers::default();
        let (mut a, mut b) = (Nanos::MAX, Nanos::MAX);
        timers.set(1, 300, &mut a);
        timers.set(2, 200, &mut b);
        assert_eq!(timers.next(), Some(200));
        assert_eq!(timers.pop(199), None);
        assert_eq!(timers.pop(250), Some((2, 200)));
        assert_eq!(timers.pop(250), None);
        assert_eq!(timers.pop(300), Some((1, 300)));
    }

    #[test]
    fn a_later_deadline_is_not_queued_and_an_earlier_one_is() {
        let mut timers = Timers::default();
        let mut queued = Nanos::MAX;
        timers.set(1, 300, &mut queued);
        timers.set(1, 900, &mut queued);
        assert_eq!(queued, 300);
        timers.set(1, 100, &mut queued);
        assert_eq!((timers.pop(100), timers.pop(300)), (Some((1, 100)), Some((1, 300))));
    }

    #[test]
    fn what_owners_leave_behind_is_bounded() {
        let mut timers = Timers::default();
        let mut most = 0;
        for owner in 0..10_000 {
            timers.set(owner, Nanos::MAX / 2 + owner, &mut Nanos::MAX.clone());
            if timers.is_bloated(3) {
                timers.retain(|token, _| token + 3 > owner);
            }
            most = most.max(timers.0.len());
        }
        assert!(most <= 2 * 3 + SLACK + 1, "{most}");
        assert_eq!(timers.next(), Some(timers.0.iter().map(|Reverse((at, _))| *at).min().unwrap()));
    }

    #[test]
    fn a_dripping_peer_cannot_stretch_its_deadline() {
        let patience = 30 * SECOND;
        let mut pace = Pace::new(0, patience);
        let mut now = 0;
        while pace.left(now).is_some() {
            now += SECOND;
            pace.progress(now, 1);
        }
        assert!(now <= 31 * SECOND, "held for {} s", now / SECOND);
    }

    #[test]
    fn a_peer_at_a_fair_rate_is_never_cut() {
        let mut pace = Pace::new(0, 30 * SECOND);
        for second in 1..10_000 {
            assert!(pace.left(second * SECOND).is_some());
            pace.progress(second * SECOND, 1000);
        }
    }
}
