//! What trusted peers say about the scheme is read as a reader of plain lines would; lists of peers mean what they say.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use rules::http::parse::{self, Status};
use rules::http::{Head, Reject};
use rules::proxy::{Peers, Scheme, Trust};

const SCHEMES: [(&str, &str); 3] =
    [("X-FORWARDED-PROTOCOL", "ssl"), ("X-FORWARDED-PROTO", "https"), ("X-FORWARDED-SSL", "on")];

/// From the lines as they are.
fn plainly(block: &[u8]) -> Result<Option<Scheme>, Reject> {
    let mut said = Vec::new();
    for line in block.split(|octet| *octet == b'\n') {
        let Some(colon) = line.iter().position(|octet| *octet == b':') else {
            continue;
        };
        let value = line[colon + 1..].strip_suffix(b"\r").unwrap_or(&line[colon + 1..]);
        let first = value.iter().position(|octet| !matches!(octet, b' ' | b'\t')).unwrap_or(value.len());
        let last = value.iter().rposition(|octet| !matches!(octet, b' ' | b'\t')).map_or(first, |last| last + 1);
        for (name, secure) in SCHEMES {
            if line[..colon].eq_ignore_ascii_case(name.as_bytes()) {
                said.push(value[first..last] == *secure.as_bytes());
            }
        }
    }
    match (said.contains(&true), said.contains(&false)) {
        (true, true) => Err(Reject::ContradictorySchemes),
        (true, false) => Ok(Some(Scheme::Https)),
        (false, true) => Ok(Some(Scheme::Http)),
        (false, false) => Ok(None),
    }
}

fn peers(text: &str) {
    let entries: Vec<&str> = text.split(',').collect();
    let Ok(peers) = Peers::new(&entries) else {
        return;
    };
    assert!(peers.contain(None), "a unix socket's peer");
    for entry in entries.iter().map(|entry| entry.trim()) {
        let Ok(address) = entry.parse::<IpAddr>() else {
            continue;
        };
        assert!(peers.contain(Some(address)), "{entry}");
        if let IpAddr::V4(address) = address {
            assert!(peers.contain(Some(IpAddr::V6(address.to_ipv6_mapped()))), "{entry}");
        }
    }
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let mapped = match address {
            IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
            other => other,
        };
        assert!(!peers.contain(Some(address)) || peers.contain(Some(mapped)));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((policy, _, data)) = rules::policy(data) else {
        return;
    };
    let list = data.split(|octet| *octet == b'\n').next().unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(list) {
        peers(text);
    }
    let schemes = SCHEMES.map(|(name, value)| (name.to_string(), value.to_string()));
    let trust = Trust::new(&["*"], schemes.to_vec()).expect("every peer");
    let mut head = Head::default();
    if parse::head(data, &policy, true, &mut head) == Ok(Status::Complete) {
        let block = &data[head.fields_at..head.length];
        assert_eq!(trust.scheme(&head.fields, block), plainly(block));
    }
});
