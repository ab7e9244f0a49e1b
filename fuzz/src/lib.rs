//! The server's pure rules, without the server: what its fuzz targets call, and what they share.
#![allow(dead_code)]

#[path = "../../src/http/mod.rs"]
pub mod http;
#[path = "../../src/proxy.rs"]
pub mod proxy;
#[path = "../../src/proxy_protocol.rs"]
pub mod proxy_protocol;

use http::{HeaderMap, Leniency, Limits, Methods, Policy};

/// Takes the first octets of an input for what the operator decided, and gives back the rest.
pub fn policy(data: &[u8]) -> Option<(Policy, bool, &[u8])> {
    let [bits, more, data @ ..] = data else {
        return None;
    };
    let bit = |place: u8| bits >> place & 1 == 1;
    // Small ones are met by small inputs.
    let limits = match more & 3 {
        0 => Limits { request_line: 30, fields: 4, field_size: 40, head: 110 },
        1 => Limits { request_line: 60, fields: 130, field_size: 20, head: 400 },
        _ => Limits { request_line: 4094, fields: 100, field_size: 8190, head: 65_536 },
    };
    let policy = Policy {
        limits,
        header_map: match more >> 2 & 3 {
            0 => HeaderMap::Refuse,
            1 => HeaderMap::Dangerous,
            _ => HeaderMap::Drop,
        },
        forwarder_headers: match more >> 4 & 1 {
            0 => vec!["SCRIPT_NAME".into(), "PATH_INFO".into()],
            _ => vec!["*".into()],
        },
        methods: if bit(0) { Methods::Any } else { Methods::Conventional },
        leniency: Leniency { folding: bit(1), name_spaces: bit(2), versions: bit(3), casefold: bit(4) },
    };
    Some((policy, bit(5), data))
}

/// Where a client that follows no plan would have cut its octets: lengths from 1 on, by the input's own octets.
pub fn cuts(data: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut state = data.iter().fold(0x9e37_79b9_u32, |sum, octet| sum.rotate_left(5) ^ u32::from(*octet));
    let mut at = 0;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let most = if data.len() > 4096 { 1024 } else { 12 };
        let step = 1 + (state >> 16) as usize % most;
        (at < data.len()).then(|| {
            at = data.len().min(at + step);
            at
        })
    })
}
