//! Owns: the roll: for each connection of the worker a word that says how it stands, for whoever handles a crash.
//! Rule: a connection has one owner. Until a crash takes it, that is the thread that moved its word to `Held`; a crash marks
//! the word, and from then on no thread moves it to `Held` or `Parting`. `tests/interleavings.rs` tries every order.
//! Never: waits, reads a connection, knows what is said in a crash.
//!
//! The roll costs a request two compare-and-swaps of a word that nobody else uses. `try_move` is the first: after it the
//! connection is its thread's, and without it the thread goes no further.

use crate::sys::atomics::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

/// Connections beyond the worker's most, which it may take when it leaves.
const SPARE: usize = 256;

/// How a connection stands, as far as a crash is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Standing {
    Absent,
    /// A thread has it.
    Held,
    /// Nothing of its next request has been read.
    Idle,
    /// A request has been read, in part or whole.
    Begun,
    /// Part of a response has left.
    Replying,
    /// All is said.
    Ended,
    /// A thread is leaving it to another worker, which may have it already.
    Parting,
}

const STANDINGS: [Standing; 7] = [
    Standing::Absent,
    Standing::Held,
    Standing::Idle,
    Standing::Begun,
    Standing::Replying,
    Standing::Ended,
    Standing::Parting,
];

/// One connection: its descriptor (32 bits), listener (23), whether the descriptor is all there is to it, whether it has
/// TLS, whether a crash has taken it, standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u64);

const LISTENER: u64 = 0x7f_ffff;
const BARE: u64 = 1 << 8;
const SECURE: u64 = 1 << 7;
const TAKEN: u64 = 1 << 6;
const STANDING: u64 = 0x3f;

impl Place {
    /// Of a connection that a thread has.
    pub fn new(fd: i32, listener: usize, secure: bool, bare: bool) -> Place {
        let secure = if secure { SECURE } else { 0 };
        let bare = if bare { BARE } else { 0 };
        let place = Place(u64::from(fd as u32) << 32 | (listener as u64 & LISTENER) << 9 | bare | secure);
        place.at(Standing::Held)
    }

    fn at(self, standing: Standing) -> Place {
        Place(self.0 & !STANDING | standing as u64)
    }

    pub fn standing(self) -> Standing {
        STANDINGS[(self.0 & STANDING) as usize % STANDINGS.len()]
    }

    fn is_taken(self) -> bool {
        self.0 & TAKEN != 0
    }

    pub fn fd(self) -> i32 {
        (self.0 >> 32) as i32
    }

    pub fn listener(self) -> usize {
        (self.0 >> 9 & LISTENER) as usize
    }

    pub fn is_bare(self) -> bool {
        self.0 & BARE != 0
    }

    pub fn is_secure(self) -> bool {
        self.0 & SECURE != 0
    }
}

/// Every connection of the worker by its key in the table. Connections beyond its length end unanswered.
pub struct Roll {
    places: Box<[AtomicU64]>,
    /// Threads that may have a connection in their hands that is not on it yet.
    arriving: AtomicU32,
}

/// Until it is dropped, a crash waits for a connection to be entered.
pub struct Expected<'a>(&'a AtomicU32);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Roll {
    pub fn new(most_connections: usize) -> Roll {
        Roll::of(most_connections + SPARE)
    }

    /// With so many places.
    pub fn of(places: usize) -> Roll {
        Roll { places: (0..places).map(|_| AtomicU64::new(0)).collect(), arriving: AtomicU32::new(0) }
    }

    /// By a thread that is about to take a connection from where it waits.
    pub fn expect(&self) -> Expected<'_> {
        self.arriving.fetch_add(1, SeqCst);
        Expected(&self.arriving)
    }

    /// Whether a connection may be in somebody's hands that is not entered yet.
    pub fn is_expecting(&self) -> bool {
        self.arriving.load(SeqCst) > 0
    }

    /// A new connection.
    pub fn write(&self, key: usize, place: Place) {
        if let Some(word) = self.places.get(key) {
            word.store(place.0, SeqCst);
        }
    }

    /// By a thread, to `Held` or `Parting`; false when a crash has taken the connection.
    #[must_use]
    pub fn try_move(&self, key: usize, to: Standing) -> bool {
        let Some(word) = self.places.get(key) else { return true };
        let seen = Place(word.load(Relaxed));
        !seen.is_taken() && word.compare_exchange(seen.0, seen.at(to).0, AcqRel, Relaxed).is_ok()
    }

    /// By the thread that has it. A crash may mark it meanwhile, and wants to know too.
    pub fn put(&self, key: usize, standing: Standing) {
        let Some(word) = self.places.get(key) else { return };
        let _ = word.fetch_update(Release, Relaxed, |word| Some(Place(word).at(standing).0));
    }

    /// Its descriptor is closed, or another worker's.
    pub fn leave(&self, key: usize) {
        if let Some(word) = self.places.get(key) {
            word.store(Standing::Absent as u64, Release);
        }
    }

    /// By a crash: from now on no thread gets hold of a connection that it does not have.
    pub fn take_all(&self) {
        for word in &self.places {
            if word.load(Acquire) != Standing::Absent as u64 {
                word.fetch_or(TAKEN, AcqRel);
            }
        }
    }

    /// The keys of all that may be there.
    pub fn keys(&self) -> std::ops::Range<usize> {
        0..self.places.len()
    }

    /// By a crash: how it stands now; it is taken.
    pub fn look(&self, key: usize) -> Option<Place> {
        let word = &self.places[key];
        let place = Place(word.load(Acquire));
        match place.standing() {
            Standing::Absent => None,
            // It has been accepted since.
            _ if !place.is_taken() => Some(Place(word.fetch_or(TAKEN, AcqRel) | TAKEN)),
            _ => Some(place),
        }
    }
}
