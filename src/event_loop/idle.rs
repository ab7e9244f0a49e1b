//! Owns: the order in which connections have become idle, and the end of those that have been so longest.
//! Rule: an idle connection never keeps a new one out. It ends in order, after a last look for a request; what it costs does
//! not depend on how many are idle. Where all connections are busy, nothing ends, and the worker stops accepting.
//! Never: ends a connection on which a request has begun, or that has not had one yet.

use std::sync::atomic::Ordering::Relaxed;

use super::table::{Job, Table};
use super::{lock, EventLoop};
use crate::conn::{Conn, Desk, Event, State};
use crate::sys::clock;

/// Connections looked at for one that can be ended; the others have just been asked something.
const MOST_LOOKS: usize = 16;

/// Keys of the table in order, by links between them.
#[derive(Default)]
pub(super) struct IdleOrder {
    links: Vec<Option<Link>>,
    /// The longest idle, and the last to become it.
    ends: Option<(usize, usize)>,
}

#[derive(Clone, Copy)]
struct Link {
    before: Option<usize>,
    after: Option<usize>,
}

impl IdleOrder {
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    pub(super) fn longest(&self) -> Option<usize> {
        self.ends.map(|(first, _)| first)
    }

    /// At the end, wherever it was.
    pub(super) fn append(&mut self, key: usize) {
        self.remove(key);
        if self.links.len() <= key {
            self.links.resize(key + 1, None);
        }
        let before = self.ends.map(|(_, last)| last);
        self.links[key] = Some(Link { before, after: None });
        if let Some(link) = before.and_then(|before| self.links[before].as_mut()) {
            link.after = Some(key);
        }
        self.ends = Some((self.longest().unwrap_or(key), key));
    }

    pub(super) fn remove(&mut self, key: usize) {
        let Some(Link { before, after }) = self.links.get_mut(key).and_then(Option::take) else {
            return;
        };
        if let Some(link) = before.and_then(|before| self.links[before].as_mut()) {
            link.after = after;
        }
        if let Some(link) = after.and_then(|after| self.links[after].as_mut()) {
            link.before = before;
        }
        let Some((first, last)) = self.ends else { return };
        let first = if first == key { after } else { Some(first) };
        let last = if last == key { before } else { Some(last) };
        self.ends = first.zip(last);
    }
}

impl Table {
    /// Whether a new connection finds a place, its own or that of one that is idle.
    pub(super) fn has_place(&self, most: usize) -> bool {
        self.entries.len() < most || !self.idle.is_empty()
    }

    /// Notes what a connection that comes back waits for.
    pub(super) fn note_idle(&mut self, key: usize, conn: &Conn) {
        match conn.state() == State::Idle && conn.requests > 0 {
            true => self.idle.append(key),
            false => self.idle.remove(key),
        }
    }
}

impl EventLoop {
    /// Before a connection that has been accepted is entered: the place of one that is idle becomes free, if none is.
    pub(super) fn make_place(&self, desk: &mut Desk) {
        let is_full = self.plan.slot.connections() as usize >= self.plan.most_connections;
        // One that drains takes what is queued, and its idle connections end as the drain wants it.
        if is_full && !self.draining.load(Relaxed) {
            self.end_longest_idle(desk);
        }
    }

    /// False when none could be ended. One that has just been asked something waits for a thread instead.
    pub(super) fn end_longest_idle(&self, desk: &mut Desk) -> bool {
        for _ in 0..MOST_LOOKS {
            let mut table = lock(&self.table);
            let open = table.entries.len();
            let Some(key) = table.idle.longest() else {
                return false;
            };
            let Some(mut conn) = self.pick(&mut table, key) else {
                table.idle.remove(key);
                continue;
            };
            drop(table);
            let next = conn.advance(Event::Expired, &mut self.turn(desk, clock::monotonic()));
            if let Some(job) = self.settle(Job { key, conn }, next) {
                self.postpone(job, desk);
            }
            if lock(&self.table).entries.len() < open {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_order_in_which_they_were_appended(
            steps in prop::collection::vec((0..12usize, any::<bool>()), 0..300),
        ) {
            let (mut order, mut expected) = (IdleOrder::default(), Vec::new());
            for (key, appends) in steps {
                expected.retain(|known| *known != key);
                if appends {
                    expected.push(key);
                    order.append(key);
                } else {
                    order.remove(key);
                }
                prop_assert_eq!(order.longest(), expected.first().copied());
                prop_assert_eq!(order.is_empty(), expected.is_empty());
            }
            for key in expected {
                prop_assert_eq!(order.longest(), Some(key));
                order.remove(key);
            }
            prop_assert!(order.is_empty());
        }
    }
}
