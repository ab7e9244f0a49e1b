//! Owns: which peers are believed, and what their fields say about the scheme of the original request.
//! Rule: a field of a peer that is not trusted has no effect; a trusted one that contradicts itself is refused.
//! Never: touches the address of the client (no X-Forwarded-For), a socket, or any other field.
// No panic can be reached from the network: what could be one here says why it is none.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

use crate::http::{Fields, Reject};
use crate::proxy_protocol::{Mode, Preface};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// As it stands in wsgi.url_scheme.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// An entry that is neither an address, nor a network without host bits, nor `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadNetwork(pub String);

impl fmt::Display for BadNetwork {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "'{}' is no IP address, no network and not '*'", self.0)
    }
}

impl std::error::Error for BadNetwork {}

/// What is known of whoever speaks on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    Ip(IpAddr),
    /// The peer of a unix socket.
    UnixSocket,
    /// A peer by another family of addresses, or a client whom a PROXY header does not name.
    Unknown,
}

/// A set of peers: `127.0.0.1`, `10.0.0.0/8`, `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    Any,
    Of(Vec<IpNet>),
}

impl Peers {
    pub fn new<S: AsRef<str>>(entries: &[S]) -> Result<Peers, BadNetwork> {
        let entries = || entries.iter().map(|entry| entry.as_ref().trim());
        if entries().any(|entry| entry == "*") {
            return Ok(Peers::Any);
        }
        let named = entries().filter(|entry| !entry.is_empty());
        Ok(Peers::Of(named.map(network).collect::<Result<_, _>>()?))
    }

    pub fn contain(&self, peer: Identity) -> bool {
        let Peers::Of(networks) = self else {
            return true;
        };
        let peer = match peer {
            Identity::Ip(peer) => peer,
            // The mode of the socket's file has let it in.
            Identity::UnixSocket => return true,
            Identity::Unknown => return false,
        };
        // On a dual-stack listener an IPv4 peer looks like ::ffff:127.0.0.1.
        let canonical = peer.to_canonical();
        networks.iter().any(|network| network.contains(&canonical) || network.contains(&peer))
    }
}

fn network(entry: &str) -> Result<IpNet, BadNetwork> {
    let parsed = match entry.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => entry.parse::<IpNet>(),
    };
    match parsed {
        // Host bits are a slip of the pen that would trust a whole network.
        Ok(network) if network == network.trunc() => Ok(network),
        _ => Err(BadNetwork(entry.to_string())),
    }
}

/// The settings `proxy_protocol` and `proxy_allow_ips`.
#[derive(Clone, Debug)]
pub struct Introductions {
    mode: Mode,
    peers: Peers,
}

impl Introductions {
    pub fn new<S: AsRef<str>>(mode: Mode, proxy_allow_ips: &[S]) -> Result<Introductions, BadNetwork> {
        Ok(Introductions { mode, peers: Peers::new(proxy_allow_ips)? })
    }

    /// "The receiver MUST NOT try to guess" (The PROXY protocol, §2): from a proxy the header must come.
    pub fn preface(&self, peer: Identity) -> Preface {
        match self.peers.contain(peer) {
            true => Preface::Due(self.mode),
            false => Preface::Barred,
        }
    }
}

/// The settings `forwarded_allow_ips` and `secure_scheme_headers`.
#[derive(Clone, Debug)]
pub struct Trust {
    peers: Peers,
    /// Field name, and the value that means https.
    schemes: Vec<(String, String)>,
}

impl Trust {
    pub fn new<S: AsRef<str>>(
        forwarded_allow_ips: &[S],
        secure_scheme_headers: Vec<(String, String)>,
    ) -> Result<Trust, BadNetwork> {
        Ok(Trust { peers: Peers::new(forwarded_allow_ips)?, schemes: secure_scheme_headers })
    }

    /// Asked of the peer, and again of the client whom a PROXY header has named in its place.
    pub fn trusts(&self, speaker: Identity) -> bool {
        self.peers.contain(speaker)
    }

    /// Whether a peer is trusted for what it is. Where `*` trusts everybody, that says of nobody that it is a proxy.
    pub fn is_proxy(&self, speaker: Identity) -> bool {
        speaker == Identity::UnixSocket || self.peers != Peers::Any && self.trusts(speaker)
    }

    /// What a trusted peer says about the scheme; `block` is what the spans of `fields` are relative to. The exact value
    /// is https, any other is http, and two lines that disagree are refused.
    pub fn scheme(&self, fields: &Fields, block: &[u8]) -> Result<Option<Scheme>, Reject> {
        let mut said = None;
        for field in &fields.list {
            let length = (field.name.end - field.name.start) as usize;
            for (name, secure) in &self.schemes {
                if name.len() != length || !name.as_bytes().eq_ignore_ascii_case(field.name.of(block)) {
                    continue;
                }
                let scheme = match field.value.of(block) == secure.as_bytes() {
                    true => Scheme::Https,
                    false => Scheme::Http,
                };
                if said.replace(scheme).is_some_and(|other| other != scheme) {
                    return Err(Reject::ContradictorySchemes);
                }
            }
        }
        Ok(said)
    }
}

/// X-Request-Start: when a proxy took the request, in microseconds since the epoch. Nginx says it in seconds with a fraction
/// (`t=${msec}`), others in milliseconds or microseconds; which, its size tells.
pub fn request_start(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let number: f64 = text.strip_prefix("t=").unwrap_or(text).parse().ok()?;
    let seconds = [1e0, 1e3, 1e6].map(|unit| number / unit).into_iter().find(|seconds| *seconds < 1e11)?;
    (seconds > 1e9).then_some((seconds * 1e6) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Field, Span};

    fn peers(entries: &[&str]) -> Peers {
        Peers::new(entries).unwrap()
    }

    fn peer(text: &str) -> Identity {
        Identity::Ip(text.parse().unwrap())
    }

    #[test]
    fn peers_are_addresses_networks_or_all() {
        let some = peers(&["127.0.0.1", " 10.0.0.0/8", "::1", "fd00::/8", ""]);
        for inside in ["127.0.0.1", "10.255.0.1", "::1", "fd12::3"] {
            assert!(some.contain(peer(inside)), "{inside}");
        }
        for outside in ["127.0.0.2", "11.0.0.1", "::2", "fe80::1"] {
            assert!(!some.contain(peer(outside)), "{outside}");
        }
        assert!(peers(&["127.0.0.1", "*"]).contain(peer("8.8.8.8")));
        assert!(!peers(&[]).contain(peer("127.0.0.1")));
    }

    #[test]
    fn unix_peers_are_trusted_and_those_of_unknown_families_are_not() {
        assert!(peers(&[]).contain(Identity::UnixSocket));
        assert!(!peers(&["127.0.0.1", "0.0.0.0/0", "::/0"]).contain(Identity::Unknown));
        assert!(peers(&["*"]).contain(Identity::Unknown));
    }

    /// `*` says of nobody that it is a proxy; only what reaches the server over a unix socket is one in any case.
    #[test]
    fn whom_only_the_star_trusts_is_no_known_proxy() {
        let trust = |entries: &[&str]| Trust::new(entries, vec![]).unwrap();
        let speakers = [peer("10.0.0.1"), peer("::1"), Identity::UnixSocket, Identity::Unknown];
        let proxies = |trust: &Trust| speakers.map(|speaker| trust.is_proxy(speaker));
        assert_eq!(proxies(&trust(&["*"])), [false, false, true, false]);
        assert_eq!(proxies(&trust(&["10.0.0.0/8", "*"])), [false, false, true, false]);
        assert_eq!(proxies(&trust(&["10.0.0.0/8"])), [true, false, true, false]);
        assert!(speakers.iter().all(|speaker| trust(&["*"]).trusts(*speaker)));
    }

    #[test]
    fn mapped_addresses_match_ipv4_entries() {
        assert!(peers(&["127.0.0.1"]).contain(peer("::ffff:127.0.0.1")));
        assert!(peers(&["10.0.0.0/8"]).contain(peer("::ffff:10.1.2.3")));
        assert!(!peers(&["10.0.0.0/8"]).contain(peer("::ffff:11.1.2.3")));
        assert!(peers(&["::ffff:0:0/96"]).contain(peer("::ffff:11.1.2.3")));
    }

    #[test]
    fn host_bits_and_names_are_refused() {
        for entry in ["10.0.0.1/8", "fd00::1/8", "localhost", "10.0.0", "1.2.3.4/33", "1.2.3.4:80"] {
            assert_eq!(Peers::new(&[entry]), Err(BadNetwork(entry.to_string())));
        }
        assert!(Peers::new(&["10.0.0.1/32"]).is_ok());
    }

    #[test]
    fn a_proxy_must_introduce_its_clients_and_nobody_else_may() {
        let some = Introductions::new(Mode::V2, &["10.0.0.0/8"]).unwrap();
        assert_eq!(some.preface(peer("10.1.2.3")), Preface::Due(Mode::V2));
        assert_eq!(some.preface(peer("::ffff:10.1.2.3")), Preface::Due(Mode::V2));
        assert_eq!(some.preface(peer("11.1.2.3")), Preface::Barred);
        assert_eq!(some.preface(Identity::UnixSocket), Preface::Due(Mode::V2));
    }

    fn scheme(lines: &[(&str, &str)]) -> Result<Option<Scheme>, Reject> {
        let defaults =
            [("X-FORWARDED-PROTOCOL", "ssl"), ("X-FORWARDED-PROTO", "https"), ("X-FORWARDED-SSL", "on")];
        let defaults = defaults.map(|(name, value)| (name.to_string(), value.to_string()));
        let trust = Trust::new(&["*"], defaults.to_vec()).unwrap();
        let (mut block, mut fields) = (Vec::new(), Fields::default());
        for (name, value) in lines {
            let mut put = |text: &str| {
                let start = block.len() as u32;
                block.extend_from_slice(text.as_bytes());
                Span { start, end: block.len() as u32 }
            };
            fields.list.push(Field { name: put(name), value: put(value) });
        }
        trust.scheme(&fields, &block)
    }

    #[test]
    fn scheme_is_https_for_the_exact_value_only() {
        assert_eq!(scheme(&[("Host", "h"), ("X-Forwarded-For", "1.2.3.4")]), Ok(None));
        for (name, value, expected) in [
            ("X-Forwarded-Proto", "https", Scheme::Https),
            ("x-forwarded-protocol", "ssl", Scheme::Https),
            ("X-FORWARDED-SSL", "on", Scheme::Https),
            ("X-Forwarded-Proto", "HTTPS", Scheme::Http),
            ("X-Forwarded-Proto", "http", Scheme::Http),
            ("X-Forwarded-Proto", "https, http", Scheme::Http),
            ("X-Forwarded-Proto", "wss", Scheme::Http),
            ("X-Forwarded-Ssl", "", Scheme::Http),
        ] {
            assert_eq!(scheme(&[(name, value)]), Ok(Some(expected)), "{name}: {value}");
        }
    }

    #[test]
    fn schemes_that_contradict_are_refused() {
        let agree = scheme(&[("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "on")]);
        assert_eq!(agree, Ok(Some(Scheme::Https)));
        for lines in [
            [("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "off")],
            [("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")],
        ] {
            assert_eq!(scheme(&lines), Err(Reject::ContradictorySchemes));
        }
    }

    #[test]
    fn the_start_of_a_request_is_read_in_every_unit() {
        for text in ["t=1700000000.250", "1700000000.250", "t=1700000000250", " 1700000000250000 "] {
            assert_eq!(request_start(text.as_bytes()), Some(1_700_000_000_250_000), "{text}");
        }
        for text in ["", "t=", "now", "-5", "12", "inf", "nan", "1e300", "\u{e9}"] {
            assert_eq!(request_start(text.as_bytes()), None, "{text}");
        }
    }
}
