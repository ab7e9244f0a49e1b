//! Owns: what waits for the logger in Python: lines, and requests that the server has answered itself.
//! Rule: bounded; what finds no room is counted. The lock is held for a few instructions, never while anybody waits for
//! the interpreter, so that threads with and without it may put things in.
//! Never: knows Python, writes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::access_sink::Answered;
use crate::log::Severity;
use crate::sys::clock::{self, Nanos};

/// A burst of many requests that are refused, and then some.
const ROOM: usize = 4096;

pub enum Entry {
    Line(Severity, String),
    Request(Answered),
}

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    entries: VecDeque<(Nanos, Entry)>,
    lost: u64,
    closed: bool,
    /// Nobody takes from it any more.
    left: bool,
}

impl Queue {
    pub fn put(&self, entry: Entry) {
        let mut state = self.state();
        match state.entries.len() < ROOM {
            true => state.entries.push_back((clock::monotonic(), entry)),
            false => state.lost += 1,
        }
        drop(state);
        self.came.notify_all();
    }

    pub fn take(&self) -> Option<Entry> {
        self.state().entries.pop_front().map(|(_, entry)| entry)
    }

    /// What has waited for so long.
    pub fn take_older(&self, than: Nanos) -> Vec<Entry> {
        let mut state = self.state();
        let until = clock::monotonic().saturating_sub(than);
        let old = state.entries.iter().take_while(|(since, _)| *since <= until).count();
        state.entries.drain(..old).map(|(_, entry)| entry).collect()
    }

    /// How many were lost since the last time that anybody asked.
    pub fn take_lost(&self) -> u64 {
        std::mem::take(&mut self.state().lost)
    }

    /// Returns when something waits.
    pub fn wait(&self) {
        let mut state = self.state();
        while state.entries.is_empty() {
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same for the one who takes what waits; false when there is nothing left to do.
    pub fn wait_or_end(&self) -> bool {
        let mut state = self.state();
        while state.entries.is_empty() && !state.closed {
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.left = state.closed;
        self.came.notify_all();
        !state.left
    }

    /// Ends that; whether it has ended within the time.
    pub fn close(&self, patience: Duration) -> bool {
        let mut state = self.state();
        state.closed = true;
        self.came.notify_all();
        let ended = self.came.wait_timeout_while(state, patience, |state| !state.left);
        !ended.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How long the oldest has waited; returns when something does.
    pub fn wait_for_age(&self) -> Duration {
        self.wait();
        let since = self.state().entries.front().map(|(since, _)| *since);
        let now = clock::monotonic();
        Duration::from_nanos(now.saturating_sub(since.unwrap_or(now)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Entry {
        Entry::Line(Severity::Info, text.to_string())
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let queue = Queue::default();
        (0..ROOM + 3).for_each(|_| queue.put(line("x")));
        assert_eq!((queue.take_lost(), queue.take_lost()), (3, 0));
        assert_eq!(queue.take_older(0).len(), ROOM);
        assert!(queue.take().is_none());
    }

    #[test]
    fn order_is_kept_and_the_old_are_told_from_the_new() {
        let queue = Queue::default();
        queue.put(line("first"));
        queue.put(line("second"));
        assert!(queue.take_older(clock::SECOND * 3600).is_empty());
        assert!(queue.wait_for_age() < Duration::from_secs(3600));
        assert!(matches!(queue.take(), Some(Entry::Line(_, text)) if text == "first"));
    }
}
