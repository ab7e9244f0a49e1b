//! The fuzz targets without a fuzzer, on every run of the tests: what holds for all bytes holds for the seeds, for
//! beginnings of them, and for a fixed number of changes to them, the same ones in every run.

use std::fs;
use std::io::Write;
use std::path::Path;

// The files that the oracles name by `crate::`, as the fuzz crate has them.
use _core::{
    body_buffer, config, conn, control, exchange, handoff, http, proxy, proxy_protocol, scoreboard, sys, tls,
    transport,
};

#[path = "../fuzz/src/connections.rs"]
mod connections;
#[path = "../fuzz/src/driver.rs"]
mod driver;
#[path = "../fuzz/src/messages.rs"]
mod messages;
#[path = "../fuzz/src/oracles.rs"]
mod oracles;
#[path = "../fuzz/src/responses.rs"]
mod responses;
#[path = "../fuzz/src/sessions.rs"]
mod sessions;

/// The folder of the fuzz crate.
const FUZZ: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");
/// Bytes that mean something to one of the parsers.
const SHARP: [u8; 7] = *b"\r\n :\0\xff5";
/// A changed input is not longer: the fuzzer's limit.
const LONGEST: usize = 4096;

/// A target's seeds, in the order of their names.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(Path::new(FUZZ).join("seeds").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The words of the dictionary, as libFuzzer writes them: quoted, with `\xNN` and `\"`.
fn words() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(Path::new(FUZZ).join("http.dict")).unwrap();
    let quoted = text.lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix('"'));
    quoted.map(word).collect()
}

fn word(quoted: &str) -> Vec<u8> {
    let (mut word, mut rest) = (Vec::new(), quoted.as_bytes());
    while let [first, more @ ..] = rest {
        rest = match (first, more) {
            (b'\\', [b'x', digits @ ..]) => {
                let text = std::str::from_utf8(&digits[..2]).unwrap();
                word.push(u8::from_str_radix(text, 16).unwrap());
                &digits[2..]
            }
            (b'\\', [escaped, more @ ..]) => {
                word.push(*escaped);
                more
            }
            _ => {
                word.push(*first);
                more
            }
        };
    }
    word
}

/// Changes an input in one to four places, as a fuzzer does.
fn change(input: &mut Vec<u8>, rng: &mut fastrand::Rng, seeds: &[Vec<u8>], words: &[Vec<u8>]) {
    for _ in 0..=rng.usize(..4) {
        let at = rng.usize(..=input.len());
        let end = at + rng.usize(..=(input.len() - at).min(16));
        match rng.u8(..8) {
            0 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            1 if at < input.len() => input[at] = SHARP[rng.usize(..SHARP.len())],
            2 if at < input.len() => input[at] = rng.u8(..),
            3 => drop(input.drain(at..end)),
            4 => {
                let copy = input[at..end].to_vec();
                let to = rng.usize(..=input.len());
                input.splice(to..to, copy);
            }
            5 => drop(input.splice(at..at, words[rng.usize(..words.len())].clone())),
            6 => {
                let other = &seeds[rng.usize(..seeds.len())];
                let from = rng.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.insert(at, rng.u8(..)),
        }
        input.truncate(LONGEST);
    }
}

/// Puts each sharp byte into each place of a seed; returns how many inputs that were.
fn every_change(seed: &[u8], oracle: fn(&[u8])) -> usize {
    for at in 0..seed.len() {
        for byte in SHARP {
            let mut changed = seed.to_vec();
            changed[at] = byte;
            oracle(&changed);
        }
    }
    seed.len() * SHARP.len()
}

/// How much is tried of a target: so many changes of each seed, and each sharp byte in each place where that takes no time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effort {
    Every(usize),
    Some(usize),
}

/// Calls `oracle` with each seed of a target, beginnings of it, and changes of it.
fn replay(target: &str, effort: Effort, oracle: fn(&[u8])) {
    let (seeds, words) = (seeds(target), words());
    assert!(seeds.len() >= 5, "only {} seeds of {target}", seeds.len());
    let mut rng = fastrand::Rng::with_seed(11);
    let (Effort::Every(changes) | Effort::Some(changes)) = effort;
    let mut inputs = 0;
    for seed in &seeds {
        let step = if effort == Effort::Every(changes) { 1 } else { 1 + seed.len() / 32 };
        for end in (0..seed.len()).step_by(step) {
            oracle(&seed[..end]);
            inputs += 1;
        }
        oracle(seed);
        if effort == Effort::Every(changes) {
            inputs += every_change(seed, oracle);
        }
        for _ in 0..changes {
            let mut input = seed.clone();
            change(&mut input, &mut rng, &seeds, &words);
            oracle(&input);
        }
        inputs += 1 + changes;
    }
    // Past what a passing test says to nobody: the summary of a run.
    let line = format!("\nfuzz: {target}: {} seeds, {inputs} inputs, no fault\n", seeds.len());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

#[test]
fn heads() {
    replay("head", Effort::Every(800), oracles::head);
}

#[test]
fn chunked_bodies() {
    replay("chunked", Effort::Every(800), oracles::chunked);
}

#[test]
fn proxy_headers() {
    replay("proxy", Effort::Every(800), oracles::proxy);
}

#[test]
fn forwarded_fields() {
    replay("forwarded", Effort::Every(800), oracles::forwarded);
}

#[test]
fn connections_from_end_to_end() {
    replay("conn", Effort::Some(250), connections::conn);
}

#[test]
fn proxy_headers_and_what_follows() {
    replay("proxied", Effort::Some(250), connections::proxied);
}

#[test]
fn heads_of_responses() {
    replay("response", Effort::Every(2000), responses::response);
}

#[test]
fn messages_of_the_mailbox() {
    replay("handoff", Effort::Every(800), messages::handoff);
}

#[test]
fn frames_of_the_control_socket() {
    replay("control", Effort::Every(2000), messages::control);
}

#[test]
fn sessions_of_tls() {
    replay("tls", Effort::Some(60), sessions::tls);
}
