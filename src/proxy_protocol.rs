//! Owns: the PROXY header (HAProxy's "The PROXY protocol, versions 1 & 2"): where it ends and which client it names.
//! Rule: an octet is judged as soon as it is there, so the outcome is the same whatever the segmentation; what is not
//! exactly as specified is refused. The header is bounded, whatever length it claims.
//! Never: decides who may send one, reads a socket, believes what is attached (TLVs are skipped).
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

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// §2.1: "107 chars for the worst case", CRLF included.
const V1_MOST: usize = 107;
const V1_BEGIN: &[u8] = b"PROXY ";
/// §2.2
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
/// Of a header with all that is attached to it: certificates fit, a flood does not.
pub const MOST_OCTETS: usize = 16 * 1024;

/// Which versions are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    V1,
    V2,
    /// Whichever comes.
    Auto,
}

impl Mode {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::V1 => "v1",
            Mode::V2 => "v2",
            Mode::Auto => "auto",
        }
    }

    /// None: the protocol is off.
    pub fn of(word: &str) -> Option<Mode> {
        [Mode::V1, Mode::V2, Mode::Auto].into_iter().find(|mode| mode.as_str() == word)
    }
}

/// What is to come first on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preface {
    /// The request. A header would be a bad one.
    #[default]
    None,
    /// A header, without which nothing is served.
    Due(Mode),
    /// The request; a header from this peer is forbidden.
    Barred,
    /// The request. A header has come, from a proxy that speaks for a client without an address.
    Unnamed,
}

/// The connection that a proxy has with its client: who made it, and to which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub client: SocketAddr,
    /// Where the proxy was reached.
    pub proxy: SocketAddr,
}

impl Origin {
    /// By the names of version 1.
    pub fn protocol(&self) -> &'static str {
        match self.client {
            SocketAddr::V4(_) => "TCP4",
            SocketAddr::V6(_) => "TCP6",
        }
    }
}

/// `CLIENT,PROXY`, as `parse` reads it.
impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{},{}", self.client, self.proxy)
    }
}

impl std::str::FromStr for Origin {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Origin, Malformed> {
        let (client, proxy) = text.split_once(',').ok_or(Malformed)?;
        let address = |text: &str| text.parse().map_err(|_| Malformed);
        Ok(Origin { client: address(client)?, proxy: address(proxy)? })
    }
}

/// It is no header, or one that breaks the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// More octets are needed.
    Partial,
    /// It is so long. Without an origin the connection speaks for itself: a health check of the proxy's own, or a client
    /// whose address cannot be told.
    Complete { length: usize, origin: Option<Origin> },
}

/// Reads the header at the start of `bytes`, which may go on beyond it.
pub fn header(bytes: &[u8], mode: Mode) -> Result<Header, Malformed> {
    match (bytes.first(), mode) {
        (None, _) => Ok(Header::Partial),
        (Some(b'P'), Mode::V1 | Mode::Auto) => version_1(bytes),
        (Some(b'\r'), Mode::V2 | Mode::Auto) => version_2(bytes),
        _ => Err(Malformed),
    }
}

/// Whether a whole header says that the proxy speaks for itself (§2.2, LOCAL). UNKNOWN of version 1 does not tell.
pub fn is_local(header: &[u8]) -> bool {
    header.starts_with(V2_SIGNATURE) && header.get(V2_SIGNATURE.len()) == Some(&0x20)
}

/// Whether octets that are no request are, or begin like, a header: for a peer that may not send one.
pub fn looks_like_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_BEGIN) || bytes.starts_with(&V2_SIGNATURE[..3])
}

/// Errors: the octets that are there differ from `expected`.
fn begins(bytes: &[u8], expected: &[u8]) -> Result<bool, Malformed> {
    let there = bytes.len().min(expected.len());
    match bytes.get(..there) == expected.get(..there) {
        true => Ok(there == expected.len()),
        false => Err(Malformed),
    }
}

/// §2.1: `"PROXY" SP ( "UNKNOWN" anything / ("TCP4" / "TCP6") SP source SP destination SP port SP port ) CRLF`.
fn version_1(bytes: &[u8]) -> Result<Header, Malformed> {
    if !begins(bytes, V1_BEGIN)? {
        return Ok(Header::Partial);
    }
    let within = bytes.get(..V1_MOST).unwrap_or(bytes);
    let Some(end) = memchr::memchr2(b'\r', b'\n', within) else {
        return if within.len() == V1_MOST { Err(Malformed) } else { Ok(Header::Partial) };
    };
    let line = within.get(V1_BEGIN.len()..end).ok_or(Malformed)?;
    match within.get(end..) {
        Some([b'\r', b'\n', ..]) => Ok(Header::Complete { length: end + 2, origin: addresses(line)? }),
        Some([b'\r']) if within.len() < V1_MOST => Ok(Header::Partial),
        _ => Err(Malformed),
    }
}

/// The line behind `PROXY `.
fn addresses(line: &[u8]) -> Result<Option<Origin>, Malformed> {
    // "the receiver must ignore anything presented before the CRLF".
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(None);
    }
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let words: Vec<_> = line.splitn(6, ' ').collect();
    let [family, source, destination, source_port, destination_port] = words[..] else {
        return Err(Malformed);
    };
    let ip = |text: &str| -> Result<IpAddr, Malformed> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6),
            _ => return Err(Malformed),
        }
        .map_err(|_| Malformed)
    };
    Ok(Some(Origin {
        client: SocketAddr::new(ip(source)?, port(source_port)?),
        proxy: SocketAddr::new(ip(destination)?, port(destination_port)?),
    }))
}

/// §2.1: "a decimal integer in the range [0..65535] inclusive. Heading zeroes are not permitted".
fn port(text: &str) -> Result<u16, Malformed> {
    let canonical = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    // The parser takes a sign, which `canonical` does not.
    canonical.then(|| text.parse().ok()).flatten().ok_or(Malformed)
}

/// §2.2: signature, version and command, family and protocol, length of the rest.
fn version_2(bytes: &[u8]) -> Result<Header, Malformed> {
    if !begins(bytes, V2_SIGNATURE)? {
        return Ok(Header::Partial);
    }
    let local = match bytes.get(12) {
        None => return Ok(Header::Partial),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Malformed),
    };
    let Some(family) = bytes.get(13).copied() else {
        return Ok(Header::Partial);
    };
    // "discard the protocol block including the family which is ignored".
    let needed = if local { 0 } else { addresses_length(family)? };
    let Some(&[high, low]) = bytes.get(14..V2_FIXED) else {
        return Ok(Header::Partial);
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length < V2_FIXED + needed || length > MOST_OCTETS {
        return Err(Malformed);
    }
    let Some(block) = bytes.get(V2_FIXED..length) else {
        return Ok(Header::Partial);
    };
    Ok(Header::Complete { length, origin: if local { None } else { block_addresses(family, block) } })
}

/// How long the address block of a family and protocol is. Those that are not assigned, and datagrams, which cannot have
/// come this way, are refused.
fn addresses_length(family: u8) -> Result<usize, Malformed> {
    match family {
        0x11 => Ok(12),
        0x21 => Ok(36),
        0x31 => Ok(216),
        // Unspecified, both or either of them: "use the real connection endpoints".
        0x00 | 0x01 | 0x10 | 0x20 | 0x30 => Ok(0),
        _ => Err(Malformed),
    }
}

/// What follows the addresses are TLVs, which nothing here asks for. A unix socket's path is no client's address.
fn block_addresses(family: u8, block: &[u8]) -> Option<Origin> {
    let port = |at: usize| Some(u16::from_be_bytes(block.get(at..at + 2)?.try_into().ok()?));
    match family {
        0x11 => {
            let ip = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(block.get(at..at + 4)?).ok()?));
            Some(Origin {
                client: SocketAddr::new(ip(0)?, port(8)?),
                proxy: SocketAddr::new(ip(4)?, port(10)?),
            })
        }
        0x21 => {
            let ip = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(block.get(at..at + 16)?).ok()?));
            Some(Origin {
                client: SocketAddr::new(ip(0)?, port(32)?),
                proxy: SocketAddr::new(ip(16)?, port(34)?),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the whole is, once every prefix has been seen to be incomplete and every refusal to stay one.
    fn read(bytes: &[u8], mode: Mode) -> Result<Header, Malformed> {
        let whole = header(bytes, mode);
        let mut early = None;
        for end in 0..bytes.len() {
            let so_far = header(&bytes[..end], mode);
            assert!(early.is_none_or(|before| before == so_far), "{end} of {bytes:?}");
            match so_far {
                Ok(Header::Partial) => {}
                settled => early = Some(settled),
            }
        }
        assert!(early.is_none_or(|early| early == whole), "{bytes:?}");
        whole
    }

    fn origin(client: &str, proxy: &str) -> Option<Origin> {
        Some(Origin { client: client.parse().unwrap(), proxy: proxy.parse().unwrap() })
    }

    fn complete(bytes: &[u8]) -> (usize, Option<Origin>) {
        let mut followed = bytes.to_vec();
        followed.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        match read(&followed, Mode::Auto) {
            Ok(Header::Complete { length, origin }) => (length, origin),
            other => panic!("{other:?} of {bytes:?}"),
        }
    }

    fn whole(bytes: &[u8]) -> Option<Origin> {
        let (length, origin) = complete(bytes);
        assert_eq!(length, bytes.len());
        origin
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((block.len() as u16).to_be_bytes());
        bytes.extend_from_slice(block);
        bytes
    }

    const V4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 2, 0xc0, 0, 0, 80];

    #[test]
    fn proxy_v1_names_the_client() {
        let four = whole(b"PROXY TCP4 192.0.2.1 198.51.100.2 49152 80\r\n");
        assert_eq!(four, origin("192.0.2.1:49152", "198.51.100.2:80"));
        assert_eq!(four.unwrap().protocol(), "TCP4");
        let six = whole(b"PROXY TCP6 2001:DB8::1 ::ffff:192.0.2.1 0 65535\r\n");
        assert_eq!(six, origin("[2001:db8::1]:0", "[::ffff:192.0.2.1]:65535"));
        assert_eq!(six.unwrap().protocol(), "TCP6");
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let line = format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n");
        assert!(line.len() < V1_MOST && whole(line.as_bytes()).is_some());
    }

    #[test]
    fn proxy_v1_unknown_is_the_peer_itself() {
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN \r\n", "PROXY UNKNOWN ::1 x\0 \u{e9}\r\n"] {
            assert_eq!(whole(line.as_bytes()), None);
        }
        let most = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MOST - 16));
        assert_eq!(most.len(), V1_MOST);
        assert_eq!(whole(most.as_bytes()), None);
    }

    #[test]
    fn proxy_v1_is_refused_unless_canonical() {
        let good = "PROXY TCP4 192.0.2.1 198.51.100.2 49152 80\r\n";
        for (what, instead) in [
            ("PROXY", "proxy"),
            ("PROXY ", "PROXY  "),
            ("PROXY ", "PROXY\t"),
            ("TCP4", "TCP6"),
            ("TCP4", "TCP5"),
            ("TCP4", "tcp4"),
            ("TCP4", "UNKNOWNX"),
            ("TCP4", "UDP4"),
            ("192.0.2.1", "192.0.2.01"),
            ("192.0.2.1", "192.0.2"),
            ("192.0.2.1", "192.0.2.256"),
            ("192.0.2.1", "host"),
            ("192.0.2.1", "::1"),
            ("192.0.2.1 ", ""),
            ("192.0.2.1 ", "192.0.2.1  "),
            ("49152", "+4915"),
            ("49152", "-1"),
            ("49152", "049152"),
            ("49152", "65536"),
            ("49152", "4_9"),
            ("49152", ""),
            (" 80", ""),
            ("80", "80 "),
            ("80", "80 81"),
            ("80", "00"),
            ("80", "8\u{e9}"),
            ("\r\n", "\n"),
            ("\r\n", "\r\r\n"),
            ("\r\n", "\rGET"),
        ] {
            let line = good.replacen(what, instead, 1);
            assert_eq!(read(line.as_bytes(), Mode::Auto), Err(Malformed), "{line:?}");
        }
        assert_eq!(read(b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r", Mode::V1), Ok(Header::Partial));
    }

    #[test]
    fn proxy_v1_ends_within_107_octets() {
        for end in ["\r\n", "\r", "", "\n"] {
            let line = format!("PROXY UNKNOWN {}{end}", "x".repeat(V1_MOST - 14 - 1));
            assert_eq!(
                read(line.as_bytes(), Mode::V1),
                if end.is_empty() { Ok(Header::Partial) } else { Err(Malformed) }
            );
        }
        let endless = format!("PROXY {}", "x".repeat(V1_MOST));
        assert_eq!(read(endless.as_bytes(), Mode::V1), Err(Malformed));
    }

    #[test]
    fn proxy_v2_names_the_client() {
        let four = whole(&v2(0x21, 0x11, V4));
        assert_eq!(four, origin("192.0.2.1:49152", "198.51.100.2:80"));
        let mut block = [0; 36];
        (block[15], block[31], block[33], block[34]) = (1, 2, 9, 1);
        assert_eq!(whole(&v2(0x21, 0x21, &block)), origin("[::1]:9", "[::2]:256"));
    }

    #[test]
    fn proxy_v2_attachments_are_skipped() {
        let mut block = V4.to_vec();
        block.extend([0x03, 0, 4, 1, 2, 3, 4, 0xff, 0xff]);
        assert_eq!(whole(&v2(0x21, 0x11, &block)), origin("192.0.2.1:49152", "198.51.100.2:80"));
        block.resize(MOST_OCTETS - V2_FIXED, 7);
        assert!(whole(&v2(0x21, 0x11, &block)).is_some());
        block.push(7);
        assert_eq!(read(&v2(0x21, 0x11, &block), Mode::V2), Err(Malformed));
    }

    #[test]
    fn proxy_v2_local_unspecified_and_unix_are_the_peer_itself() {
        for family in [0x00, 0x11, 0x21, 0x31, 0xff] {
            assert_eq!(whole(&v2(0x20, family, b"")), None, "LOCAL {family:#x}");
            assert_eq!(whole(&v2(0x20, family, V4)), None, "LOCAL {family:#x}");
        }
        for (family, length) in [(0x00, 0), (0x00, 50), (0x01, 0), (0x10, 12), (0x31, 216)] {
            assert_eq!(whole(&v2(0x21, family, &vec![1; length])), None, "{family:#x}");
        }
    }

    #[test]
    fn proxy_v2_is_refused_unless_as_specified() {
        for (command, family, length) in [
            (0x22, 0x11, 12),
            (0x11, 0x11, 12),
            (0x31, 0x11, 12),
            (0x21, 0x12, 12),
            (0x21, 0x22, 36),
            (0x21, 0x32, 216),
            (0x21, 0x41, 36),
            (0x21, 0x13, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
        ] {
            let bytes = v2(command, family, &vec![0; length]);
            assert_eq!(read(&bytes, Mode::V2), Err(Malformed), "{command:#x} {family:#x} {length}");
        }
        for at in 0..V2_SIGNATURE.len() {
            let mut bytes = v2(0x21, 0x11, V4);
            bytes[at] ^= 1;
            assert_eq!(read(&bytes, Mode::V2), Err(Malformed), "{at}");
        }
    }

    #[test]
    fn proxy_mode_decides_the_version() {
        let (one, two) = (b"PROXY UNKNOWN\r\n".to_vec(), v2(0x21, 0x11, V4));
        for (mode, first, second) in
            [(Mode::V1, true, false), (Mode::V2, false, true), (Mode::Auto, true, true)]
        {
            assert_eq!((header(&one, mode).is_ok(), header(&two, mode).is_ok()), (first, second));
            assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n", mode), Err(Malformed));
            assert_eq!(read(b"", mode), Ok(Header::Partial));
            assert_eq!(Mode::of(mode.as_str()), Some(mode));
        }
        assert_eq!(Mode::of("off"), None);
    }

    #[test]
    fn what_looks_like_a_header() {
        assert!(looks_like_header(b"PROXY TCP4 1") && looks_like_header(&v2(0x21, 0x11, V4)));
        for other in [&b"PROXYX / "[..], b"PROX", b"\r\nGET", b"\r\n", b"GET"] {
            assert!(!looks_like_header(other));
        }
    }

    #[test]
    fn origins_as_text() {
        for known in [origin("192.0.2.1:1", "198.51.100.2:65535"), origin("[2001:db8::1]:0", "[::]:80")] {
            let known = known.unwrap();
            assert_eq!(known.to_string().parse(), Ok(known));
        }
        for bad in ["", "1.2.3.4:5", "a,b", "1.2.3.4:5,", "1.2.3.4,1.2.3.4:5"] {
            assert_eq!(bad.parse::<Origin>(), Err(Malformed));
        }
    }
}
