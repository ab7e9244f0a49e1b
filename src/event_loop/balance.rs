//! Owns: an even spread of connections over the workers.
//! Rule: a worker with many more connections than another leaves some of those that wait to the others, a few times a
//! second at the most; and a new one, when another worker has nothing to do. The helper compares, the leader moves.
//! Never: moves a connection that has a request to be served here.

use std::sync::atomic::Ordering::Relaxed;

use super::{lock, EventLoop};
use crate::conn::{Conn, State};
use crate::scoreboard::Phase;

impl EventLoop {
    fn may_share(&self) -> bool {
        self.plan.workers > 1 && self.plan.slot.phase() != Phase::Draining && !self.is_last()
    }

    /// By the helper: notes what the leader is to give away.
    pub(super) fn compare(&self) {
        if self.may_share() {
            self.surplus.store(self.plan.slot.surplus() as usize, Relaxed);
        }
    }

    /// By the leader, between two waits.
    pub(super) fn share(&self) {
        if self.surplus.load(Relaxed) == 0 {
            return;
        }
        let surplus = self.surplus.swap(0, Relaxed);
        let mut table = lock(&self.table);
        let waiting =
            table.entries.iter().filter(|(_, entry)| entry.conn.as_ref().is_some_and(|c| is_surplus(c)));
        let keys: Vec<usize> = waiting.map(|(key, _)| key).take(surplus).collect();
        for key in keys {
            if !self.give_away(&mut table, key) {
                return;
            }
        }
    }

    /// Whether a new connection is better left to a worker that waits for one.
    pub(super) fn is_crowded(&self) -> bool {
        self.may_share() && self.plan.slot.surplus() > 0 && self.plan.slot.has_idle_sibling()
    }
}

fn is_surplus(conn: &Conn) -> bool {
    conn.may_move() && conn.state() != State::Ready
}
