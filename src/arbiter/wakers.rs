//! Owns: the eventfds by which the arbiter's processes wake it, each with one of its own, and how often they do.
//! Rule: one that wakes the arbiter without an end is named in the log and not heard for a while, so that it takes a bounded
//! share of the arbiter's time. What it has to say stands on the scoreboard and is read in any turn.
//! Never: decides what becomes of it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::sys::clock::{Nanos, SECOND};
use crate::sys::poll::Waker;

/// In a second. A worker has something to say a few times in its life; with `reload`, for each module that it imports.
const MOST_WAKES: u32 = 1000;
const DEAF_TIME: Nanos = SECOND;
/// Between two lines about one process.
const LINE_TIME: Nanos = 60 * SECOND;

/// How often one process has woken the arbiter.
#[derive(Default)]
struct Pace {
    since: Nanos,
    count: u32,
    deaf_until: Nanos,
    told_until: Nanos,
}

impl Pace {
    fn is_heard(&self, now: Nanos) -> bool {
        self.deaf_until <= now
    }

    /// It has woken the arbiter; true when somebody is to be told that it does nothing else.
    fn wake(&mut self, now: Nanos) -> bool {
        if now.saturating_sub(self.since) >= SECOND {
            (self.since, self.count) = (now, 0);
        }
        self.count += 1;
        if self.count < MOST_WAKES {
            return false;
        }
        self.count = 0;
        self.deaf_until = now + DEAF_TIME;
        let is_news = self.told_until <= now;
        if is_news {
            self.told_until = now + LINE_TIME;
        }
        is_news
    }
}

struct Entry {
    waker: Arc<Waker>,
    role: &'static str,
    pid: i32,
    pace: Pace,
}

#[derive(Default)]
pub struct Wakers(Vec<Entry>);

impl Wakers {
    pub fn add(&mut self, waker: &Arc<Waker>, role: &'static str, pid: i32) {
        self.0.push(Entry { waker: waker.clone(), role, pid, pace: Pace::default() });
    }

    /// Those whose process is on nobody's books any more go.
    pub fn forget(&mut self) {
        self.0.retain(|entry| Arc::strong_count(&entry.waker) > 1);
    }

    /// What is to be waited for now.
    pub fn waits(&self, now: Nanos) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter(move |entry| entry.pace.is_heard(now)).map(|entry| entry.waker.as_fd())
    }

    /// When there is more to be waited for.
    pub fn deadline(&self, now: Nanos) -> Option<Nanos> {
        let deaf = self.0.iter().filter(|entry| !entry.pace.is_heard(now));
        deaf.map(|entry| entry.pace.deaf_until).min()
    }

    /// After a wait for `waits(before)`: which of them woke the arbiter. Returns who does so without an end.
    pub fn hear(&mut self, before: Nanos, woken: &[bool], now: Nanos) -> Vec<(&'static str, i32)> {
        let heard = self.0.iter_mut().filter(|entry| entry.pace.is_heard(before));
        let mut restless = Vec::new();
        for (entry, _) in heard.zip(woken).filter(|(_, is_woken)| **is_woken) {
            entry.waker.clear();
            if entry.pace.wake(now) {
                restless.push((entry.role, entry.pid));
            }
        }
        restless
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll::{wait_few, Interest};

    #[test]
    fn who_wakes_without_an_end_is_told_of_once_and_heard_now_and_then() {
        let mut pace = Pace::default();
        let (mut told, mut turns) = (0, 0);
        // Two minutes of a process that does nothing else.
        for now in (SECOND..121 * SECOND).step_by(100_000) {
            if pace.is_heard(now) {
                turns += 1;
                told += u32::from(pace.wake(now));
            }
        }
        assert_eq!(told, 2);
        assert!(turns < 120 * MOST_WAKES && turns > 60 * MOST_WAKES);
    }

    #[test]
    fn who_says_something_now_and_then_is_always_heard() {
        let mut pace = Pace::default();
        for now in (0..600 * SECOND).step_by(SECOND as usize / 500) {
            assert!(pace.is_heard(now) && !pace.wake(now));
        }
    }

    #[test]
    fn the_one_that_woke_is_the_one_that_is_named() {
        let wakers = [(); 3].map(|()| Arc::new(Waker::new().unwrap()));
        let mut all = Wakers::default();
        wakers.iter().zip(1..).for_each(|(waker, pid)| all.add(waker, "Worker", pid));
        let mut turn = |now: Nanos| {
            wakers[1].wake();
            let fds: Vec<_> = all.waits(now).collect();
            let woken = wait_few(&fds, Interest::Read, Some(0)).unwrap();
            (woken.len(), all.hear(now, &woken, now))
        };
        let named: Vec<_> = (0..MOST_WAKES).flat_map(|_| turn(SECOND).1).collect();
        assert_eq!(named, [("Worker", 2)]);
        assert_eq!(turn(SECOND), (2, vec![]));
        assert_eq!(turn(2 * SECOND).0, 3);
        assert_eq!(all.deadline(2 * SECOND), None);
        let on_the_books = wakers[0].clone();
        drop(wakers);
        all.forget();
        assert_eq!(all.0.len(), 1);
        drop(on_the_books);
    }
}
