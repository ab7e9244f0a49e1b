//! What must hold for all octets, a function for each fuzz target; they panic when it does not.
//!
//! The fuzzer calls them with octets of its own; `tests/fuzz_seeds.rs` with the seeds, on every `cargo test`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use crate::http::body::Decoder;
use crate::http::parse::{self, Status};
use crate::http::scan::Scan;
use crate::http::{
    response, Forwarders, Framing, Head, HeaderMap, Leniency, Limits, Methods, Policy, Reject,
};
use crate::proxy::{Identity, Peers, Scheme, Trust};
use crate::proxy_protocol::{header, Header, Malformed, Mode, Origin, MOST_OCTETS};

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
        forwarders: match more >> 4 & 1 {
            0 => Forwarders::new(
                vec!["SCRIPT_NAME".into(), "PATH_INFO".into()],
                vec!["X-FORWARDED-PROTO".into()],
            ),
            _ => Forwarders::new(vec!["*".into()], Vec::new()),
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

/// The refusal, the head with its octets as they were read, or nothing yet.
type Outcome = Result<Option<(Vec<u8>, String)>, Reject>;

fn try_head(
    held: &mut [u8],
    policy: &Policy,
    trusted: bool,
    scan: &mut Option<Box<Scan>>,
    head: &mut Head,
) -> Result<Option<usize>, Reject> {
    let status = match policy.leniency.is_none() {
        true => parse::more(held, policy, trusted, scan, head)?,
        false => parse::lenient(held, policy, trusted, scan, head)?,
    };
    Ok((status == Status::Complete).then_some(head.length))
}

/// As a connection does it; with the number of bytes that were there when it was decided.
fn grown(data: &[u8], ends: impl Iterator<Item = usize>, policy: &Policy, trusted: bool) -> (Outcome, usize) {
    let (mut held, mut head, mut scan) = (Vec::new(), Head::default(), None);
    for end in ends {
        held.extend_from_slice(&data[held.len()..end]);
        match try_head(&mut held, policy, trusted, &mut scan, &mut head) {
            Ok(None) => assert!(held.len() <= policy.limits.head, "an endless head is held"),
            Ok(Some(length)) => {
                assert!(length <= end && head.fields_at <= length && length <= policy.limits.head);
                assert!(head.fields.list.len() <= policy.limits.fields);
                held.truncate(length);
                return (Ok(Some((held, format!("{head:?}")))), end);
            }
            Err(reject) => return (Err(reject), end),
        }
    }
    (Ok(None), data.len())
}

/// A second request with the same fields, read by its start line alone, is what it would be if read in full.
fn repeated(whole: &[u8], policy: &Policy, trusted: bool) {
    let mut head = Head::default();
    if parse::head(whole, policy, trusted, &mut head) != Ok(Status::Complete) {
        return;
    }
    let fresh = format!("{head:?}");
    let block = whole[head.fields_at..head.length].to_vec();
    if let Some(length) = parse::repeats(whole, &block) {
        if parse::same_fields(&whole[..length], policy, &mut head) {
            assert_eq!(format!("{head:?}"), fresh);
        }
    }
}

/// A request head comes to the same however it is cut, as soon as that can be told; it is bounded; nothing panics.
pub fn head(data: &[u8]) {
    let Some((policy, trusted, data)) = policy(data) else {
        return;
    };
    let (once, _) = grown(data, [data.len()].into_iter(), &policy, trusted);
    let (pieces, end) = grown(data, cuts(data), &policy, trusted);
    assert_eq!(once, pieces, "cut anywhere");
    if data.len() <= 600 {
        let (single, first) = grown(data, 1..=data.len(), &policy, trusted);
        assert_eq!(once, single, "a byte at a time");
        assert_eq!(
            cuts(data).find(|&end| end >= first).unwrap_or(data.len()),
            end,
            "not when it could be told"
        );
    }
    if let Ok(Some((octets, _))) = once {
        repeated(&octets, &policy, trusted);
        let mut head = Head::default();
        let _ = parse::head(&octets, &policy, trusted, &mut head);
        let mut decoder = Decoder::new(head.fields.framing, &policy.limits);
        let _ = decoder.decode(&data[octets.len()..]);
        let _ = head.persistent();
    }
}

/// The content so far, the octets that were consumed, and the refusal or whether the body is over.
type Content = (Vec<u8>, usize, Result<bool, Reject>);

fn decoded(data: &[u8], ends: impl Iterator<Item = usize>, framing: Framing, limits: &Limits) -> Content {
    let (mut decoder, mut content, mut at) = (Decoder::new(framing, limits), Vec::new(), 0);
    for end in ends {
        while at < end && !decoder.is_done() {
            match decoder.decode(&data[at..end]) {
                Ok(step) => {
                    assert!(step.consumed > 0 && step.data.end <= step.consumed && step.consumed <= end - at);
                    content.extend_from_slice(&data[at + step.data.start..at + step.data.end]);
                    at += step.consumed;
                }
                // Said again, whatever comes.
                Err(reject) => {
                    assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(reject));
                    return (content, 0, Err(reject));
                }
            }
        }
    }
    assert!(content.len() <= at);
    (content, at, Ok(decoder.is_done()))
}

/// A chunked body has the same content, end and refusal whatever the segmentation, and what is written here is read here.
pub fn chunked(data: &[u8]) {
    let Some((policy, _, data)) = policy(data) else {
        return;
    };
    let limits = &policy.limits;
    for framing in [Framing::Chunked, Framing::Length(data.len() as u64 / 2)] {
        let once = decoded(data, [data.len()].into_iter(), framing, limits);
        assert_eq!(once, decoded(data, cuts(data), framing, limits));
        if data.len() <= 2000 {
            assert_eq!(once, decoded(data, 1..=data.len(), framing, limits));
        }
    }
    // What this server sends as a chunked body is one.
    let mut body = Vec::new();
    for piece in data.chunks(1 + data.len() / 3) {
        response::chunk_size(piece.len(), &mut body);
        body.extend_from_slice(piece);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    let length = body.len();
    assert_eq!(
        decoded(&body, [length].into_iter(), Framing::Chunked, limits),
        (data.to_vec(), length, Ok(true))
    );
}

fn read_header(data: &[u8], ends: impl Iterator<Item = usize>, mode: Mode) -> Result<Header, Malformed> {
    for end in ends {
        match header(&data[..end], mode)? {
            Header::Partial => assert!(end < MOST_OCTETS, "an endless header is held"),
            complete => return Ok(complete),
        }
    }
    Ok(Header::Partial)
}

/// A PROXY header ends at the same octet and names the same client whatever the segmentation, and is bounded.
pub fn proxy(data: &[u8]) {
    let [first, data @ ..] = data else {
        return;
    };
    let mode = [Mode::V1, Mode::V2, Mode::Auto][usize::from(first % 3)];
    let once = read_header(data, [data.len()].into_iter(), mode);
    assert_eq!(once, read_header(data, cuts(data), mode));
    if data.len() <= 1000 {
        assert_eq!(once, read_header(data, 1..=data.len(), mode));
    }
    if let Ok(Header::Complete { length, origin }) = once {
        assert!(length <= data.len() && length <= MOST_OCTETS);
        // What is behind it has no say.
        assert_eq!(header(&data[..length], mode), once);
        if let Some(origin) = origin {
            assert_eq!(origin.client.is_ipv4(), origin.proxy.is_ipv4());
            assert_eq!(origin.to_string().parse::<Origin>(), Ok(origin));
        }
    }
}

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
        let last =
            value.iter().rposition(|octet| !matches!(octet, b' ' | b'\t')).map_or(first, |last| last + 1);
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

/// Each is compared with all of them: more would cost the square of it, and show nothing else.
const MOST_PEERS: usize = 16;

fn peers(text: &str) {
    let entries: Vec<&str> = text.split(',').take(MOST_PEERS).collect();
    let Ok(peers) = Peers::new(&entries) else {
        return;
    };
    assert!(peers.contain(Identity::UnixSocket));
    assert_eq!(peers.contain(Identity::Unknown), peers == Peers::Any);
    for entry in entries.iter().map(|entry| entry.trim()) {
        let Ok(address) = entry.parse::<IpAddr>() else {
            continue;
        };
        assert!(peers.contain(Identity::Ip(address)), "{entry}");
        if let IpAddr::V4(address) = address {
            assert!(peers.contain(Identity::Ip(IpAddr::V6(address.to_ipv6_mapped()))), "{entry}");
        }
    }
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let mapped = match address {
            IpAddr::V4(address) => IpAddr::V6(address.to_ipv6_mapped()),
            other => other,
        };
        assert!(!peers.contain(Identity::Ip(address)) || peers.contain(Identity::Ip(mapped)));
    }
}

/// What trusted peers say about the scheme is read as a reader of plain lines would; lists of peers mean what they say.
pub fn forwarded(data: &[u8]) {
    let Some((policy, _, data)) = policy(data) else {
        return;
    };
    let list = data.split(|octet| *octet == b'\n').next().unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(list) {
        peers(text);
    }
    static TRUST: OnceLock<Trust> = OnceLock::new();
    let trust = TRUST.get_or_init(|| {
        let schemes = SCHEMES.map(|(name, value)| (name.to_string(), value.to_string()));
        Trust::new(&["*"], schemes.to_vec()).expect("every peer")
    });
    let mut head = Head::default();
    if parse::head(data, &policy, true, &mut head) == Ok(Status::Complete) {
        let block = &data[head.fields_at..head.length];
        assert_eq!(trust.scheme(&head.fields, block), plainly(block));
    }
}
