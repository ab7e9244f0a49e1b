//! Owns: what the arbiter and its workers know of each other, in one shared mapping made before the first fork.
//! Rule: atomics only, one writer a field (named beside it), cache lines of its own for each worker and thread; readers may see a request
//! change under them and must treat text as a hint.
//! Never: locks, pointers, Strings; nobody waits on it (a change that matters is announced by an eventfd).
//!
//! A slot is one worker: a header, and one record for each of its threads. A record carries the request that the
//! thread is running (since when, method, target): the black box that says what a stuck or dead worker was doing.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::Arc;

use crate::sys::clock::Nanos;
use crate::sys::shm::{shared_struct, Shared, SharedArray, Words};

/// Where a worker is in its life. The worker writes it; the arbiter resets it to `Booting` before the fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Booting,
    /// The application is loaded and the worker accepts connections.
    Ready,
    /// It still serves, but has reached `max_requests` and wants to be replaced.
    Retiring,
    /// It finishes what it has and leaves.
    Draining,
}

impl Phase {
    fn from_word(word: u64) -> Phase {
        match word {
            1 => Phase::Ready,
            2 => Phase::Retiring,
            3 => Phase::Draining,
            _ => Phase::Booting,
        }
    }
}

/// So many connections more or less are no imbalance.
const FEW: u64 = 2;
const STACK_OVERFLOW: u64 = 1 << 8;
const PANIC: u64 = 1 << 9;
const METHOD_WORDS: usize = 2;
/// Not a moment that comes.
const CLIENT: Nanos = Nanos::MAX;
/// With it a record fills four cache lines.
const TARGET_WORDS: usize = 27;

shared_struct! {
    /// What there is once for each worker. Writer of a field: the worker, where no other is named; and the arbiter, when
    /// it resets the slot before the fork.
    Header {
        phase: AtomicU64,
        requests: AtomicU64,
        connections: AtomicU64,
        /// It waits for something to do.
        idle: AtomicU64,
        /// Written in the handler of the signal that ends the worker: the signal; `STACK_OVERFLOW`; and `PANIC`, which is
        /// set before the abort that follows a panic.
        fault: AtomicU64,
        /// Its code has changed. Writer: the arbiter.
        outdated: AtomicU64,
        /// No descriptor is left for another connection.
        full: AtomicU64,
        /// It ends as it was told to.
        leaves: AtomicU64,
    }
}

shared_struct! {
    /// What there is once for each thread of a worker. Writer: the thread that owns the record; the arbiter, as above.
    Record {
        /// When the request began that it runs; 0 for none.
        since: AtomicU64,
        /// When the application last gave or took something, in this request or one before; `CLIENT` while it waits for the
        /// client.
        silent: AtomicU64,
        /// Of the method, and shifted by eight bits of the target.
        lengths: AtomicU64,
        method: [AtomicU64; METHOD_WORDS],
        target: [AtomicU64; TARGET_WORDS],
    }
}

shared_struct! {
    /// Writer: the arbiter, but for `Notice::speak_for_the_arbiter`.
    Announcement {
        ready: AtomicU64,
        stopping: AtomicU64,
        proving: AtomicU64,
        beside: AtomicU64,
    }
}

pub struct Scoreboard {
    headers: SharedArray<Header>,
    /// Those of the first slot, then those of the second.
    records: SharedArray<Record>,
    threads: usize,
}

/// A request that a worker is running, as its thread noted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    pub since: Nanos,
    pub method: String,
    /// Cut to what a record holds.
    pub target: String,
}

/// What a worker that crashed said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfFault {
    pub signal: i32,
    pub stack_overflow: bool,
    pub panic: bool,
}

impl Scoreboard {
    pub fn new(slots: usize, threads: usize) -> io::Result<Arc<Scoreboard>> {
        let (headers, records) = (SharedArray::new(slots)?, SharedArray::new(slots * threads)?);
        Ok(Arc::new(Scoreboard { headers, records, threads }))
    }

    pub fn slots(&self) -> usize {
        self.headers.len()
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    pub fn slot(self: &Arc<Self>, index: usize) -> Slot {
        assert!(index < self.slots(), "slot {index} of {}", self.slots());
        Slot { board: self.clone(), index }
    }
}

/// What the arbiter tells every worker of every generation. Its workers write it only to say that the arbiter is gone.
pub struct Notice(Shared<Announcement>);

impl Notice {
    pub fn new() -> io::Result<Arc<Notice>> {
        Ok(Arc::new(Notice(Shared::new()?)))
    }

    /// How many workers serve and have not been told to go.
    pub fn ready(&self) -> u64 {
        self.0.ready.load(Acquire)
    }

    pub fn set_ready(&self, workers: usize) {
        self.0.ready.store(workers as u64, Release);
    }

    /// How many of those are another server's, which is to replace this one or to be replaced by it.
    pub fn set_beside(&self, workers: usize) {
        self.0.beside.store(workers as u64, Release);
    }

    /// The arbiter is gone, and all its workers leave. What it would say if it could is the same for each of them.
    pub fn speak_for_the_arbiter(&self) {
        match self.0.beside.load(Acquire) {
            0 => self.set_stopping(),
            others => self.set_ready(others as usize),
        }
    }

    /// The generation that a reload has on trial, 0 for none.
    pub fn proving(&self) -> u64 {
        self.0.proving.load(Acquire)
    }

    pub fn set_proving(&self, generation: u64) {
        self.0.proving.store(generation, Release);
    }

    /// The whole server comes to its end: there is nobody to leave a connection to.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Acquire) != 0
    }

    pub fn set_stopping(&self) {
        self.0.stopping.store(1, Release);
    }
}

/// The clock by which `timeout` judges one thread's application. Writer: that thread.
#[derive(Clone, Copy)]
pub struct Silence<'a>(&'a AtomicU64);

impl Silence<'_> {
    /// The application has given a block or been given a part of the body, or the wait for the client is over.
    pub fn restart(self, now: Nanos) {
        self.0.store(now, Release);
    }

    /// The thread waits for the client, until `restart`.
    pub fn suspend(self) {
        self.0.store(CLIENT, Release);
    }
}

/// One worker's part of the scoreboard.
#[derive(Clone)]
pub struct Slot {
    board: Arc<Scoreboard>,
    index: usize,
}

impl Slot {
    pub fn index(&self) -> usize {
        self.index
    }

    fn header(&self) -> &Header {
        &self.board.headers[self.index]
    }

    fn records(&self) -> &[Record] {
        let threads = self.board.threads;
        &self.board.records[self.index * threads..][..threads]
    }

    fn record(&self, thread: usize) -> &Record {
        &self.records()[thread]
    }

    /// By the arbiter, before it forks the worker that will own the slot.
    pub fn reset(&self) {
        self.header().clear();
        self.records().iter().for_each(Words::clear);
    }

    pub fn phase(&self) -> Phase {
        Phase::from_word(self.header().phase.load(Acquire))
    }

    pub fn set_phase(&self, phase: Phase) {
        self.header().phase.store(phase as u64, Release);
    }

    /// By the worker as it crashes. Async-signal-safe.
    pub fn set_fault(&self, signal: i32, stack_overflow: bool) {
        let overflow = if stack_overflow { STACK_OVERFLOW } else { 0 };
        self.header().fault.fetch_or(signal as u64 & 0xff | overflow, Release);
    }

    /// By the worker, when the abort that follows is a panic of ours.
    pub fn set_panic(&self) {
        self.header().fault.fetch_or(PANIC, Release);
    }

    /// The crash of the worker, if it had time to say so.
    pub fn fault(&self) -> Option<SelfFault> {
        let word = self.header().fault.load(Acquire);
        let signal = (word & 0xff) as i32;
        (word != 0).then_some(SelfFault {
            signal,
            stack_overflow: word & STACK_OVERFLOW != 0,
            panic: word & PANIC != 0,
        })
    }

    /// By the worker: it ends as it was told to, by whoever it was.
    pub fn set_leaves(&self) {
        self.header().leaves.store(1, Release);
    }

    pub fn leaves(&self) -> bool {
        self.header().leaves.load(Acquire) != 0
    }

    /// By the arbiter: the worker is about to be told to go because its code has changed.
    pub fn set_outdated(&self) {
        self.header().outdated.store(1, Release);
    }

    pub fn is_outdated(&self) -> bool {
        self.header().outdated.load(Acquire) != 0
    }

    /// Counts a request; returns how many there were with it.
    pub fn count_request(&self) -> u64 {
        self.header().requests.fetch_add(1, Relaxed) + 1
    }

    pub fn requests(&self) -> u64 {
        self.header().requests.load(Relaxed)
    }

    /// How many connections are open.
    pub fn connections(&self) -> u64 {
        self.header().connections.load(Relaxed)
    }

    pub fn set_connections(&self, count: usize) {
        self.header().connections.store(count as u64, Relaxed);
    }

    /// By the leading thread, around its wait: it would serve a request at once.
    pub fn set_idle(&self, idle: bool) {
        self.header().idle.store(u64::from(idle), Relaxed);
    }

    /// The workers on this board that serve.
    fn serving(&self) -> impl Iterator<Item = (usize, &Header)> {
        let serves = |header: &Header| {
            matches!(Phase::from_word(header.phase.load(Acquire)), Phase::Ready | Phase::Retiring)
        };
        self.board.headers.iter().enumerate().filter(move |(_, header)| serves(header))
    }

    /// Whether another worker on this board waits for something to do.
    pub fn has_idle_sibling(&self) -> bool {
        self.serving().any(|(index, header)| index != self.index && header.idle.load(Relaxed) != 0)
    }

    /// By the leading thread: whether connections are for others, as there is no descriptor for another one.
    pub fn set_full(&self, full: bool) {
        self.header().full.store(u64::from(full), Relaxed);
    }

    pub fn is_full(&self) -> bool {
        self.header().full.load(Relaxed) != 0
    }

    /// Whether another worker on this board can take a connection, now or when it has time.
    pub fn has_sibling_with_room(&self) -> bool {
        self.serving().any(|(index, header)| index != self.index && header.full.load(Relaxed) == 0)
    }

    /// How many connections this worker has above the one with the fewest.
    pub fn lead_in_connections(&self) -> u64 {
        let counts = self.serving().map(|(_, header)| header.connections.load(Relaxed));
        self.connections().saturating_sub(counts.min().unwrap_or(u64::MAX))
    }

    /// How many connections this worker has above the mean, if it has many more than the worker with the fewest; of those
    /// that can take one.
    pub fn surplus(&self) -> u64 {
        let own = self.connections();
        if own <= FEW {
            return 0;
        }
        let takers = self.serving().filter(|(i, header)| *i == self.index || header.full.load(Relaxed) == 0);
        let counts = takers.map(|(_, header)| header.connections.load(Relaxed));
        let (workers, sum, least) = counts.fold((0, 0, own), |(n, sum, least), count| {
            (n + 1, u64::saturating_add(sum, count), least.min(count))
        });
        let mean = sum.div_ceil(u64::max(workers, 1));
        match own > least.saturating_add(FEW + least / 2) {
            true => own.saturating_sub(mean),
            false => 0,
        }
    }

    /// By a thread of the worker: it calls the application now.
    pub fn begin(&self, thread: usize, now: Nanos, method: &[u8], target: &[u8]) {
        let record = self.record(thread);
        let method_length = store_text(&record.method, method);
        let target_length = store_text(&record.target, target);
        record.lengths.store((method_length | target_length << 8) as u64, Relaxed);
        record.since.store(now, Release);
    }

    /// By the same thread: the application has returned and the response is made.
    pub fn end(&self, thread: usize) {
        self.record(thread).since.store(0, Release);
    }

    /// The request that a thread is running.
    pub fn request(&self, thread: usize) -> Option<InFlight> {
        read_record(self.record(thread))
    }

    /// Whether a thread's request is for the head of a response only. Async-signal-safe.
    pub fn is_head(&self, thread: usize) -> bool {
        let record = self.record(thread);
        record.lengths.load(Relaxed) & 0xff == 4
            && record.method[0].load(Relaxed) == u64::from_le_bytes(*b"HEAD\0\0\0\0")
    }

    /// Since when a thread runs its request, if it does.
    pub fn since(&self, thread: usize) -> Option<Nanos> {
        Some(self.record(thread).since.load(Acquire)).filter(|since| *since != 0)
    }

    /// For the request that a thread is about to run.
    pub fn silence(&self, thread: usize) -> Silence<'_> {
        Silence(&self.record(thread).silent)
    }

    /// Since when the application has been silent in the request that a thread runs, if it runs one; a moment that does not
    /// come while it waits for the client.
    pub fn silent_since(&self, thread: usize) -> Option<Nanos> {
        let since = self.since(thread)?;
        // What a request before has left there is earlier.
        Some(since.max(self.record(thread).silent.load(Acquire)))
    }

    /// Every request that the worker is running, oldest first.
    pub fn in_flight(&self) -> Vec<InFlight> {
        let mut list: Vec<_> = (0..self.board.threads).filter_map(|thread| self.request(thread)).collect();
        list.sort_by_key(|request| request.since);
        list
    }

    /// Since when the application has been silent in the request in which it has been for longest.
    pub fn longest_silence(&self) -> Option<Nanos> {
        (0..self.board.threads).filter_map(|thread| self.silent_since(thread)).min()
    }
}

fn store_text(words: &[AtomicU64], text: &[u8]) -> usize {
    let text = &text[..text.len().min(words.len() * 8)];
    for (word, octets) in words.iter().zip(text.chunks(8)) {
        let mut padded = [0; 8];
        padded[..octets.len()].copy_from_slice(octets);
        word.store(u64::from_le_bytes(padded), Relaxed);
    }
    text.len()
}

fn load_text(words: &[AtomicU64], length: usize) -> String {
    let octets: Vec<u8> =
        words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).take(length).collect();
    printable(&String::from_utf8_lossy(&octets))
}

/// Without what would break a line of the log or disguise it: a worker may have written anything there.
fn printable(text: &str) -> String {
    let hides = |c: char| {
        c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match hides(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
        shown
    })
}

fn read_record(record: &Record) -> Option<InFlight> {
    let since = record.since.load(Acquire);
    if since == 0 {
        return None;
    }
    let lengths = record.lengths.load(Relaxed) as usize;
    Some(InFlight {
        since,
        method: load_text(&record.method, lengths & 0xff),
        target: load_text(&record.target, lengths >> 8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_starts_booting_and_is_reset_to_it() {
        let slot = Scoreboard::new(3, 2).unwrap().slot(2);
        assert_eq!(slot.phase(), Phase::Booting);
        for phase in [Phase::Ready, Phase::Retiring, Phase::Draining] {
            slot.set_phase(phase);
            assert_eq!(slot.phase(), phase);
        }
        assert_eq!((slot.count_request(), slot.count_request()), (1, 2));
        slot.reset();
        assert_eq!((slot.phase(), slot.requests()), (Phase::Booting, 0));
    }

    #[test]
    fn an_idle_sibling_is_one_that_serves_and_waits() {
        let board = Scoreboard::new(3, 1).unwrap();
        let (own, other) = (board.slot(0), board.slot(2));
        own.set_phase(Phase::Ready);
        own.set_idle(true);
        other.set_idle(true);
        assert!(!own.has_idle_sibling());
        other.set_phase(Phase::Ready);
        assert!(own.has_idle_sibling());
        other.set_idle(false);
        assert!(!own.has_idle_sibling());
    }

    #[test]
    fn a_worker_with_many_more_connections_than_another_has_a_surplus() {
        let board = Scoreboard::new(4, 1).unwrap();
        let slots: Vec<Slot> = (0..3).map(|index| board.slot(index)).collect();
        let surplus = |counts: [usize; 3]| {
            for (slot, count) in slots.iter().zip(counts) {
                slot.set_phase(Phase::Ready);
                slot.set_connections(count);
            }
            [slots[0].surplus(), slots[1].surplus(), slots[2].surplus()]
        };
        assert_eq!(surplus([20, 20, 20]), [0, 0, 0]);
        assert_eq!(surplus([60, 0, 0]), [40, 0, 0]);
        assert_eq!(surplus([30, 25, 5]), [10, 5, 0]);
        assert_eq!(surplus([24, 20, 16]), [0, 0, 0]);
        assert_eq!(surplus([2, 0, 0]), [0, 0, 0]);
    }

    #[test]
    fn a_full_worker_takes_nothing() {
        let board = Scoreboard::new(2, 1).unwrap();
        let (own, other) = (board.slot(0), board.slot(1));
        own.set_phase(Phase::Ready);
        assert!(!own.has_sibling_with_room());
        other.set_phase(Phase::Ready);
        own.set_connections(60);
        assert_eq!((own.has_sibling_with_room(), own.surplus()), (true, 30));
        other.set_full(true);
        assert_eq!((own.has_sibling_with_room(), own.surplus()), (false, 0));
        assert!(other.has_sibling_with_room());
        own.set_full(true);
        assert!(own.is_full() && !other.has_sibling_with_room());
        own.reset();
        assert!(!own.is_full());
    }

    /// Two of them were once the same word: a worker without descriptors that died counted as told to go.
    #[test]
    fn what_is_said_of_a_worker_says_nothing_else() {
        let slot = Scoreboard::new(2, 1).unwrap().slot(1);
        type Say = fn(&Slot);
        let says: [(&str, Say); 9] = [
            ("phase", |slot| slot.set_phase(Phase::Ready)),
            ("requests", |slot| _ = slot.count_request()),
            ("connections", |slot| slot.set_connections(1)),
            ("idle", |slot| slot.set_idle(true)),
            ("fault", |slot| slot.set_fault(11, true)),
            ("outdated", |slot| slot.set_outdated()),
            ("full", |slot| slot.set_full(true)),
            ("leaves", |slot| slot.set_leaves()),
            ("busy", |slot| slot.begin(0, 1, b"GET", b"/")),
        ];
        let heard = |slot: &Slot| {
            let is_idle = slot.header().idle.load(Relaxed) != 0;
            [
                ("phase", slot.phase() != Phase::Booting),
                ("requests", slot.requests() != 0),
                ("connections", slot.connections() != 0),
                ("idle", is_idle),
                ("fault", slot.fault().is_some()),
                ("outdated", slot.is_outdated()),
                ("full", slot.is_full()),
                ("leaves", slot.leaves()),
                ("busy", slot.longest_silence().is_some()),
            ]
        };
        for (said, say) in says {
            slot.reset();
            say(&slot);
            for (what, is_heard) in heard(&slot) {
                assert_eq!(is_heard, what == said, "{said} said, {what} heard");
            }
        }
    }

    #[test]
    fn each_worker_and_each_thread_has_cache_lines_of_its_own() {
        assert_eq!((size_of::<Header>(), align_of::<Header>()), (64, 64));
        assert_eq!((size_of::<Record>(), align_of::<Record>()), (256, 64));
    }

    #[test]
    fn requests_in_flight_are_named_oldest_first() {
        let board = Scoreboard::new(2, 3).unwrap();
        let slot = board.slot(1);
        slot.begin(2, 50, b"GET", b"/new");
        slot.begin(0, 40, b"POST", b"/old?a=1");
        assert_eq!(slot.longest_silence(), Some(40));
        let targets: Vec<_> = slot.in_flight().into_iter().map(|r| (r.method, r.target)).collect();
        assert_eq!(targets, [("POST".into(), "/old?a=1".into()), ("GET".into(), "/new".into())]);
        assert_eq!(board.slot(0).longest_silence(), None);
        slot.end(0);
        slot.end(2);
        assert!(slot.in_flight().is_empty());
    }

    #[test]
    fn an_application_is_silent_from_its_last_block_on_and_not_while_its_client_is() {
        let slot = Scoreboard::new(1, 2).unwrap().slot(0);
        slot.begin(0, 50, b"GET", b"/");
        assert_eq!((slot.silent_since(0), slot.silent_since(1)), (Some(50), None));
        slot.silence(0).restart(60);
        assert_eq!((slot.silent_since(0), slot.since(0)), (Some(60), Some(50)));
        slot.silence(0).suspend();
        slot.begin(1, 70, b"GET", b"/");
        assert_eq!(slot.longest_silence(), Some(70));
        slot.silence(0).restart(65);
        assert_eq!(slot.longest_silence(), Some(65));
        slot.end(0);
        slot.begin(0, 80, b"GET", b"/");
        assert_eq!(slot.silent_since(0), Some(80));
    }

    /// An application can write to all of it: whatever stands there, reading it is harmless.
    #[test]
    fn a_scribbled_board_is_read_without_harm() {
        let board = Scoreboard::new(3, 2).unwrap();
        let patterns = [
            u64::MAX,
            1,
            1 << 63,
            0x0a5d_4552_4f52_5b0a,
            0x8000_0000_0000_0003,
            u64::from_le_bytes(*b"\n\x1b[2J\r\x00x"),
        ];
        for round in 0..2000u64 {
            let mut at = 0;
            let mut scribble = |word: &AtomicU64| {
                at += 1;
                let pick = (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).wrapping_add(at as u64);
                let noise = pick.wrapping_mul(0xbf58_476d_1ce4_e5b9);
                word.store(patterns.get(pick as usize % 8).copied().unwrap_or(noise), Relaxed);
            };
            board.headers.iter().for_each(|header| header.each_word(&mut scribble));
            board.records.iter().for_each(|record| record.each_word(&mut scribble));
            for slot in (0..3).map(|index| board.slot(index)) {
                let (_, _, _) = (slot.phase(), slot.requests(), slot.longest_silence());
                let (_, _, _) = (slot.has_idle_sibling(), slot.lead_in_connections(), slot.surplus());
                for request in slot.in_flight() {
                    let text = request.method + &request.target;
                    assert!(!text.contains(char::is_control), "{text:?}");
                    assert!(text.len() <= 10 * size_of::<Record>());
                }
            }
        }
    }

    #[test]
    fn text_that_would_forge_a_line_is_shown_escaped() {
        let slot = Scoreboard::new(1, 1).unwrap().slot(0);
        slot.begin(0, 1, b"GET", "/a\n[1] [ERROR] b\u{202e}\u{1b}é".as_bytes());
        assert_eq!(slot.in_flight()[0].target, "/a\\n[1] [ERROR] b\\u{202e}\\u{1b}é");
    }

    #[test]
    fn long_text_is_cut_to_the_record() {
        let slot = Scoreboard::new(1, 1).unwrap().slot(0);
        slot.begin(0, 1, &[b'M'; 100], &[b'/'; 5000]);
        let request = &slot.in_flight()[0];
        assert_eq!((request.method.len(), request.target.len()), (16, TARGET_WORDS * 8));
    }
}
