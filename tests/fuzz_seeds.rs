//! The seeds of the fuzz targets, on every run of the tests: what holds for all octets holds for these, cut and changed.

use std::fs;
use std::path::Path;

// The files that `oracles` names by `crate::`, as the fuzz crate has them.
use _core::{http, proxy, proxy_protocol};

#[path = "../fuzz/src/oracles.rs"]
mod oracles;

/// Calls `oracle` with each seed of a target, each beginning of it, and each octet of it replaced in turn.
fn replay(target: &str, oracle: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let seed = fs::read(entry.unwrap().path()).unwrap();
        seeds += 1;
        for end in 0..=seed.len() {
            oracle(&seed[..end]);
        }
        for at in 0..seed.len() {
            for octet in *b"\r\n :\0\xff5" {
                let mut changed = seed.clone();
                changed[at] = octet;
                oracle(&changed);
            }
        }
    }
    assert!(seeds >= 5, "only {seeds} seeds of {target}");
}

#[test]
fn heads() {
    replay("head", oracles::head);
}

#[test]
fn chunked_bodies() {
    replay("chunked", oracles::chunked);
}

#[test]
fn proxy_headers() {
    replay("proxy", oracles::proxy);
}

#[test]
fn forwarded_fields() {
    replay("forwarded", oracles::forwarded);
}
