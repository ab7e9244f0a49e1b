//! Owns: the keys of session tickets: one that seals, the one before that still opens, for all workers of all generations.
//! Rule: they lie in memory that the arbiter shares with every worker, and only the arbiter changes them; a worker keeps no
//! copy. A ticket is for one policy: what a handshake was judged by (certificate, authorities) is part of its key.
//! Never: outlive a key, or be written to a dump of memory.
//!
//! A ticket: name of the key (16 octets), nonce (12), the sealed state, tag (16). The algorithm is that of rustls' own.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::Arc;

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, CHACHA20_POLY1305, NONCE_LEN};
use ring::hkdf::{Salt, HKDF_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

use crate::defect;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::shm::{shared_struct, Shared};

/// How long a key seals; it opens for as long again.
const PERIOD: Nanos = 6 * 3600 * SECOND;
/// The most octets of a session's state that are taken back; a client's certificates are in it.
const LONGEST_STATE: usize = 8 * 1024;
const NAME: usize = 16;
const TAG: usize = 16;
/// The current key, the one before, and the place of the next.
const PLACES: u64 = 3;
const WORDS: usize = 6;

shared_struct! {
    /// Writer: the arbiter.
    Places {
        /// The number of the key that seals; the one before opens. Each has its place by its number.
        current: AtomicU64,
        /// Of each key its name, two words, and the secret, four. Zeros: none.
        seeds: [[AtomicU64; WORDS]; PLACES as usize],
    }
}

struct Seed([u64; WORDS]);

impl Seed {
    fn octets<const N: usize>(words: &[u64]) -> [u8; N] {
        let mut octets = [0; N];
        octets.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        octets
    }

    fn name(&self) -> [u8; NAME] {
        Seed::octets(&self.0[..2])
    }

    /// For tickets of this policy.
    fn key(&self, policy: &[u8]) -> Option<LessSafeKey> {
        let mut secret: [u8; 32] = Seed::octets(&self.0[2..]);
        let derived = Salt::new(HKDF_SHA256, &[]).extract(&secret);
        secret.fill(0);
        let info = [policy];
        let key: UnboundKey = derived.expand(&info, &CHACHA20_POLY1305).ok()?.into();
        Some(LessSafeKey::new(key))
    }
}

/// The keys, and when they are to change. The arbiter has it from its start; workers inherit it.
pub struct TicketKeys {
    places: Shared<Places>,
}

impl TicketKeys {
    /// Errors: the kernel gives no memory, or no random numbers.
    pub fn new() -> io::Result<TicketKeys> {
        let places = Shared::<Places>::new()?;
        places.keep_out_of_dumps();
        let keys = TicketKeys { places };
        keys.rotate()?;
        Ok(keys)
    }

    /// By the arbiter: from now on a new key seals, the one that did opens, and the one before that is gone.
    pub fn rotate(&self) -> io::Result<()> {
        let mut octets = [0; WORDS * 8];
        let no_random = |_| io::Error::other("the system has no random numbers");
        SystemRandom::new().fill(&mut octets).map_err(no_random)?;
        // A worker could have written anything there.
        let next = self.places.current.load(Relaxed).wrapping_add(1);
        for (word, octets) in self.place(next).iter().zip(octets.chunks_exact(8)) {
            word.store(octets.iter().fold(0, |word, octet| word << 8 | u64::from(*octet)), Relaxed);
        }
        octets.fill(0);
        self.places.current.store(next, Release);
        // Its number will be two above.
        self.place(next.wrapping_add(1)).iter().for_each(|word| word.store(0, Relaxed));
        Ok(())
    }

    fn place(&self, number: u64) -> &[AtomicU64; WORDS] {
        &self.places.seeds[(number % PLACES) as usize]
    }

    /// The key of this age, 0 for the one that seals; read twice where it changes meanwhile.
    fn seed(&self, age: u64) -> Option<Seed> {
        for _ in 0..3 {
            let current = self.places.current.load(Acquire);
            let number = current.checked_sub(age).filter(|number| *number > 0)?;
            let seed = Seed(std::array::from_fn(|word| self.place(number)[word].load(Relaxed)));
            std::sync::atomic::fence(Acquire);
            if self.places.current.load(Relaxed) == current {
                return Some(seed).filter(|seed| seed.0 != [0; WORDS]);
            }
        }
        None
    }
}

/// When the arbiter changes the keys.
pub struct Rotation {
    keys: Arc<TicketKeys>,
    due: Nanos,
}

impl Rotation {
    pub fn new(keys: Arc<TicketKeys>) -> Rotation {
        let due = clock::monotonic() + PERIOD;
        Rotation { keys, due }
    }

    pub fn keys(&self) -> &Arc<TicketKeys> {
        &self.keys
    }

    pub fn due(&self) -> Nanos {
        self.due
    }

    pub fn turn(&mut self, now: Nanos) {
        if now < self.due && !defect::asked("rotate_tickets") {
            return;
        }
        self.due = now + PERIOD;
        if let Err(e) = self.keys.rotate() {
            log::error!("The keys of TLS session tickets stay as they are: {e}");
        }
    }
}

/// The tickets of one generation.
pub struct Ticketer {
    keys: Arc<TicketKeys>,
    policy: Vec<u8>,
}

impl Ticketer {
    /// `policy`: what sessions were judged by; one is resumed under the same only.
    pub fn new(keys: Arc<TicketKeys>, policy: Vec<u8>) -> Ticketer {
        Ticketer { keys, policy }
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").finish_non_exhaustive()
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// In seconds; for the client, which may forget a ticket then (RFC 8446 §4.6.1).
    fn lifetime(&self) -> u32 {
        (2 * PERIOD / SECOND) as u32
    }

    fn encrypt(&self, state: &[u8]) -> Option<Vec<u8>> {
        let seed = self.keys.seed(0)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let (name, behind) = (seed.name(), NAME + NONCE_LEN);
        let mut ticket = Vec::with_capacity(behind + state.len() + TAG);
        ticket.extend_from_slice(&name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(state);
        let key = seed.key(&self.policy)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(name), &mut ticket[behind..]).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        if sealed.len() > LONGEST_STATE + TAG {
            return None;
        }
        let named = |age| self.keys.seed(age).filter(|seed| seed.name() == *name);
        let key = named(0).or_else(|| named(1))?.key(&self.policy)?;
        let mut state = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.open_in_place(nonce, Aad::from(*name), &mut state).ok()?.len();
        state.truncate(length);
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticketer(keys: &Arc<TicketKeys>, policy: &[u8]) -> Ticketer {
        Ticketer::new(keys.clone(), policy.to_vec())
    }

    #[test]
    fn a_ticket_lives_through_one_rotation() {
        let keys = Arc::new(TicketKeys::new().unwrap());
        let tickets = ticketer(&keys, b"a");
        for _ in 0..4 {
            let ticket = tickets.encrypt(b"state").unwrap();
            assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
            keys.rotate().unwrap();
            assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
            assert_ne!(tickets.encrypt(b"state").unwrap()[..NAME], ticket[..NAME]);
            keys.rotate().unwrap();
            assert_eq!(tickets.decrypt(&ticket), None);
        }
    }

    #[test]
    fn a_key_that_is_gone_is_nowhere() {
        let keys = TicketKeys::new().unwrap();
        let all = || keys.places.seeds.iter().flatten().map(|word| word.load(Relaxed)).collect::<Vec<_>>();
        for _ in 0..8 {
            let seeds = [0, 1].map(|age| keys.seed(age).map_or([0; WORDS], |seed| seed.0));
            keys.rotate().unwrap();
            assert_eq!(keys.seed(1).unwrap().0, seeds[0]);
            let left = all();
            assert!(seeds[1].iter().all(|word| *word == 0 || !left.contains(word)));
            assert_eq!(left.iter().filter(|word| **word == 0).count(), WORDS);
        }
    }

    #[test]
    fn a_ticket_is_for_one_policy() {
        let keys = Arc::new(TicketKeys::new().unwrap());
        let ticket = ticketer(&keys, b"a").encrypt(b"state").unwrap();
        assert_eq!(ticketer(&keys, b"b").decrypt(&ticket), None);
        assert_eq!(ticketer(&keys, b"a").decrypt(&ticket).as_deref(), Some(&b"state"[..]));
    }

    #[test]
    fn what_is_no_ticket_is_refused() {
        let keys = Arc::new(TicketKeys::new().unwrap());
        let tickets = ticketer(&keys, b"a");
        let ticket = tickets.encrypt(b"state").unwrap();
        for length in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..length]), None, "{length}");
        }
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "{at}");
        }
        let mut long = ticket;
        long.resize(NAME + NONCE_LEN + LONGEST_STATE + TAG + 1, 0);
        assert_eq!(tickets.decrypt(&long), None);
    }

    /// One whose arbiter has made no key yet, or whose memory says nonsense.
    #[test]
    fn no_key_is_no_ticket() {
        let keys = Arc::new(TicketKeys::new().unwrap());
        keys.places.current.store(0, Relaxed);
        assert_eq!(ticketer(&keys, b"a").encrypt(b"state"), None);
        keys.places.current.store(u64::MAX, Relaxed);
        assert!(ticketer(&keys, b"a").decrypt(&[0; 100]).is_none());
        keys.rotate().unwrap();
        assert_eq!(ticketer(&keys, b"a").encrypt(b"state"), None);
        keys.rotate().unwrap();
        assert!(ticketer(&keys, b"a").encrypt(b"state").is_some());
    }
}
