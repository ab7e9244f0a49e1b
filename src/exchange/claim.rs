//! Owns: who may answer a call of the application: the thread that makes it, or the helper once it has run too long.
//! Rule: the first octet of a response is sent by whoever wins the one compare-and-swap; nobody answers twice. While the
//! helper answers, the thread does not let go of the connection, so the descriptor's number stays the connection's.
//! Never: sends anything itself.
//!
//! ```text
//!   Idle ─open─▶ Open ─begin_reply─▶ Sent ─overrun, crash─▶ Late ─crash, all has left─▶ Parted
//!                Open ◀─pause_reply─ Sent
//!                  │                   └───────────crash, all has left────────────────────┘
//!                  └────overrun────▶ Answering ─answered─▶ Expired      every state ─close─▶ Idle, but for
//!                  └────crash──────▶ Doomed                              Answering, Doomed and Parted
//! ```
//!
//!   Open ─take_over─▶ Taken ─overrun─▶ Late                   (Taken ─hang_up─▶ Answering ─hung_up─▶ Taken, once)
//!
//! That all of the response has left is a mark beside the stage (`end_reply`): it neither ends a call nor its time.

use crate::sys::atomics::{
    yield_now, AtomicI32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is none.
    Idle,
    /// It runs, and nothing of its response has been sent.
    Open,
    /// The thread has begun the response.
    Sent,
    /// It ran too long, and the helper is answering in its place.
    Answering,
    /// It ran too long and was answered.
    Expired,
    /// It ran too long after the response had begun.
    Late,
    /// The process crashes under it, and answers in the handler.
    Doomed,
    /// The process crashes after all of its response has left, and the handler has the connection.
    Parted,
    /// The application speaks on the connection itself.
    Taken,
}

/// In the order of their numbers.
const STAGES: [Stage; 9] = [
    Stage::Idle,
    Stage::Open,
    Stage::Sent,
    Stage::Answering,
    Stage::Expired,
    Stage::Late,
    Stage::Doomed,
    Stage::Parted,
    Stage::Taken,
];
const STAGE: u64 = 0xf;
/// All of the response has left; the application may still run. Of a connection that it has taken over: it is closed.
const LEFT: u64 = 1 << 4;
/// With it the connection ends: it does not outlive the response, or octets of a next request have been read.
const LAST: u64 = 1 << 5;
const SERIAL: u32 = 6;

/// One thread's word: a serial number of the call, what has become of its response, and its stage.
#[repr(align(64))]
pub struct Claim {
    word: AtomicU64,
    fd: AtomicI32,
}

/// One moment of a claim: tells this call from the next in the same stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    pub fn stage(self) -> Stage {
        STAGES.get((self.0 & STAGE) as usize).copied().unwrap_or(Stage::Idle)
    }

    /// The application has it, and its time has not been noticed to be over.
    pub fn is_running(self) -> bool {
        matches!(self.stage(), Stage::Open | Stage::Sent)
    }

    pub fn is_taken(self) -> bool {
        self.stage() == Stage::Taken
    }

    /// Its time is over, and it still runs.
    pub fn is_overdue(self) -> bool {
        matches!(self.stage(), Stage::Answering | Stage::Expired | Stage::Late)
    }

    fn at(self, stage: Stage) -> u64 {
        self.0 & !STAGE | stage as u64
    }
}

/// What the helper is to do about a call that ran too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overrun {
    /// Answer on this descriptor, then call `answered`.
    Answer(i32),
    /// The response on this descriptor has begun; nothing can be said to the client.
    TooLate(i32),
    /// All of the response on this descriptor has left. Of a crash only.
    Replied { fd: i32, persists: bool },
    /// The call is over.
    Gone,
}

impl Default for Claim {
    fn default() -> Self {
        Claim { word: AtomicU64::new(Stage::Idle as u64), fd: AtomicI32::new(-1) }
    }
}

impl Claim {
    pub fn look(&self) -> Ticket {
        Ticket(self.word.load(Acquire))
    }

    /// By the thread: the application is called for the connection `fd`.
    pub fn open(&self, fd: i32) {
        self.fd.store(fd, Relaxed);
        let last = self.word.load(Relaxed) >> SERIAL;
        self.word.store((last + 1) << SERIAL | Stage::Open as u64, Release);
    }

    /// By the thread, before the first octet of the response: false when the helper has answered.
    pub fn begin_reply(&self) -> bool {
        let seen = self.look();
        seen.stage() == Stage::Open && self.swap(seen, Stage::Sent)
    }

    /// By the thread, after an interim response that has left whole: the final one is still to come. False when its time
    /// was noticed to be over meanwhile.
    pub fn pause_reply(&self) -> bool {
        let seen = self.look();
        seen.stage() == Stage::Sent && self.swap(seen, Stage::Open)
    }

    /// By the thread, before the first octet of a response: there will be none of the server's. False when the helper has
    /// answered.
    pub fn take_over(&self) -> bool {
        let seen = self.look();
        seen.stage() == Stage::Open && self.swap(seen, Stage::Taken)
    }

    /// By the helper: the connection that is to be closed under the application, which has taken it over; once. Then call
    /// `hung_up`.
    pub fn hang_up(&self, seen: Ticket) -> Option<i32> {
        let first = seen.is_taken() && seen.0 & LEFT == 0;
        (first && self.swap(seen, Stage::Answering)).then(|| self.fd())
    }

    /// By the helper, after `hang_up`: the application has a moment to notice.
    pub fn hung_up(&self) {
        let seen = self.look();
        self.word.store(seen.at(Stage::Taken) | LEFT, Release);
    }

    /// By the thread that has begun the response, when all of it has left. Whether the connection outlives it, and nothing
    /// of a next request has been read.
    pub fn end_reply(&self, persists: bool) {
        self.word.fetch_or(if persists { LEFT } else { LEFT | LAST }, AcqRel);
    }

    /// By the thread: the call is over. Returns the stage in which it ended, which is not `Answering`.
    pub fn close(&self) -> Stage {
        loop {
            let seen = self.look();
            if matches!(seen.stage(), Stage::Answering | Stage::Doomed | Stage::Parted) {
                // One send and one shutdown away, neither of which blocks; or the end of the process is.
                yield_now();
            } else if self.swap(seen, Stage::Idle) {
                return seen.stage();
            }
        }
    }

    /// By the helper: the call seen in `seen` has run too long.
    pub fn overrun(&self, seen: Ticket) -> Overrun {
        match seen.stage() {
            Stage::Open if self.swap(seen, Stage::Answering) => Overrun::Answer(self.fd.load(Relaxed)),
            Stage::Sent | Stage::Taken if self.swap(seen, Stage::Late) => {
                Overrun::TooLate(self.fd.load(Relaxed))
            }
            _ => Overrun::Gone,
        }
    }

    /// By the helper, after `Overrun::Answer`.
    pub fn answered(&self) {
        let seen = self.look();
        self.word.store(seen.at(Stage::Expired), Release);
    }

    /// By a process that crashes: from now on the thread says nothing more, but for the rest of a response that has begun.
    /// What is to be done for the call is the same however often it is asked, until that has left. Async-signal-safe.
    pub fn crash(&self) -> Overrun {
        loop {
            let seen = self.look();
            let (to, outcome) = match seen.stage() {
                Stage::Open | Stage::Doomed => (Stage::Doomed, Overrun::Answer(self.fd())),
                Stage::Sent | Stage::Late | Stage::Parted if seen.0 & LEFT != 0 => {
                    let persists = seen.0 & LAST == 0;
                    (Stage::Parted, Overrun::Replied { fd: self.fd(), persists })
                }
                Stage::Sent | Stage::Late | Stage::Parted => (Stage::Late, Overrun::TooLate(self.fd())),
                Stage::Idle | Stage::Answering | Stage::Expired | Stage::Taken => return Overrun::Gone,
            };
            if self.swap(seen, to) {
                return outcome;
            }
        }
    }

    /// The connection of the call, or of the one before.
    pub fn fd(&self) -> i32 {
        self.fd.load(Relaxed)
    }

    fn swap(&self, seen: Ticket, to: Stage) -> bool {
        self.word.compare_exchange(seen.0, seen.at(to), AcqRel, Relaxed).is_ok()
    }
}
