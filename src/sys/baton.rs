//! Owns: the baton: a lock whose holder can lend it while it is busy elsewhere, so that somebody may take it over.
//! Rule: at any moment at most one thread holds it, and only the holder touches the value. Lending and recalling is one
//! store and one compare-and-swap; nobody is woken and nothing is locked unless a thread is parked.
//! Never: knows what the value is, or why somebody takes it over.
//!
//! ```text
//!            take            lend(turn)
//!   Free ──────────▶ Held ──────────────▶ Lent(turn)
//!     ◀──────────────  ◀─────────────────────
//!      pass (drop)       recall (the lender), seize (anybody)
//! ```
//!
//! `restore` gives a seized baton back to its lender, unless somebody is parked: then it is passed on, so that a lender
//! that came back meanwhile is not left waiting.

use std::ops::{Deref, DerefMut};

use super::atomics::{
    AtomicU64, AtomicUsize, Cell, Condvar, Mutex, MutexGuard,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const FREE: u64 = 0;
const HELD: u64 = 1;
/// Or-ed with the turn, shifted.
const LENT: u64 = 2;
const TURN: u32 = 2;

/// Where a baton is, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Free,
    Held,
    /// Its holder is busy elsewhere since turn number so many.
    Lent(u64),
}

pub struct Baton<T> {
    word: AtomicU64,
    /// Threads that wait for it to be free; changed behind the gate.
    parked: AtomicUsize,
    /// Whoever frees the baton and whoever parks for it do so behind it.
    gate: Mutex<()>,
    bell: Condvar,
    value: Cell<T>,
}

// SAFETY: the value is only reached through `Held`, of which there is one at a time; the word hands it from thread to
// thread in Acquire/Release order.
unsafe impl<T: Send> Sync for Baton<T> {}

impl<T> Baton<T> {
    pub fn new(value: T) -> Baton<T> {
        Baton {
            word: AtomicU64::new(FREE),
            parked: AtomicUsize::new(0),
            gate: Mutex::new(()),
            bell: Condvar::new(),
            value: Cell::new(value),
        }
    }

    pub fn standing(&self) -> Standing {
        match self.word.load(Acquire) {
            FREE => Standing::Free,
            HELD => Standing::Held,
            lent => Standing::Lent(lent >> TURN),
        }
    }

    pub fn parked(&self) -> usize {
        self.parked.load(Relaxed)
    }

    fn swap(&self, from: u64, to: u64) -> bool {
        self.word.compare_exchange(from, to, AcqRel, Relaxed).is_ok()
    }

    fn held(&self) -> Held<'_, T> {
        Held { baton: self }
    }

    pub fn try_take(&self) -> Option<Held<'_, T>> {
        self.swap(FREE, HELD).then(|| self.held())
    }

    /// Waits, parked, until the baton is free.
    pub fn take(&self) -> Held<'_, T> {
        self.wait_for(&[FREE])
    }

    fn wait_for(&self, words: &[u64]) -> Held<'_, T> {
        let taken = || words.iter().any(|word| self.swap(*word, HELD));
        if taken() {
            return self.held();
        }
        let mut gate = self.gate();
        self.parked.fetch_add(1, Relaxed);
        while !taken() {
            gate = self.bell.wait(gate).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.parked.fetch_sub(1, Relaxed);
        self.held()
    }

    /// Takes the baton that was lent in this turn away from its lender.
    pub fn seize(&self, turn: u64) -> Option<Held<'_, T>> {
        self.swap(turn << TURN | LENT, HELD).then(|| self.held())
    }

    fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The right to use the value. Dropped, the baton is free and a parked thread is woken.
pub struct Held<'a, T> {
    baton: &'a Baton<T>,
}

impl<'a, T> Held<'a, T> {
    /// Leaves the baton where others can seize it. A `turn` is never lent by two holders.
    pub fn lend(self, turn: u64) -> Lent<'a, T> {
        let baton = self.baton;
        std::mem::forget(self);
        baton.word.store(turn << TURN | LENT, Release);
        Lent { baton, turn }
    }

    /// Gives a seized baton back to whoever lent it in this turn, or on, if somebody is parked.
    pub fn restore(self, turn: u64) {
        let baton = self.baton;
        std::mem::forget(self);
        let _gate = baton.gate();
        if baton.parked() == 0 {
            baton.word.store(turn << TURN | LENT, Release);
        } else {
            baton.word.store(FREE, Release);
            baton.bell.notify_one();
        }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is one `Held` at a time, and it is borrowed.
        unsafe { &*self.baton.value.pointer() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: there is one `Held` at a time, and it is borrowed exclusively.
        unsafe { &mut *self.baton.value.pointer() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        let _gate = self.baton.gate();
        self.baton.word.store(FREE, Release);
        self.baton.bell.notify_one();
    }
}

/// The lender's claim. Dropped without `recall`, the baton stays lent.
pub struct Lent<'a, T> {
    baton: &'a Baton<T>,
    turn: u64,
}

impl<'a, T> Lent<'a, T> {
    /// The baton; itself, if somebody has seized that.
    pub fn recall(self) -> Result<Held<'a, T>, Self> {
        self.baton.seize(self.turn).ok_or(self)
    }

    /// Waits, parked, until the baton is free or given back.
    pub fn wait(self) -> Held<'a, T> {
        self.baton.wait_for(&[FREE, self.turn << TURN | LENT])
    }
}
