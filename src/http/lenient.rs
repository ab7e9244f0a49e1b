//! Owns: what an operator wants accepted although the rules refuse it: it is rewritten, in place, into what they accept.
//! Rule: a head keeps its length, and is rewritten only when `Scan` has found it whole. A field by which two servers could
//! come to differ about the length of a message, or the life of a connection, is left as it is, to be refused.
//! Never: looks behind the head.

use super::{octets, Reject};
use memchr::{memchr, memrchr};

const CRLF: &[u8] = b"\r\n";
/// White space before a colon that is put up with.
pub(super) const MOST_SPACES: usize = 64;

/// gunicorn's settings of these names; none is on unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leniency {
    /// `permit_obsolete_folding`
    pub folding: bool,
    /// `strip_header_spaces`
    pub name_spaces: bool,
    /// `permit_unconventional_http_version`
    pub versions: bool,
    /// `casefold_http_method`
    pub casefold: bool,
}

impl Leniency {
    pub fn is_none(self) -> bool {
        self == Leniency::default()
    }

    /// Rewrites a whole head that `Scan` has accepted under this leniency.
    pub fn rewrite(self, head: &mut [u8]) {
        // RFC 9112 §2.2: one empty line may come first.
        let start = if head.starts_with(CRLF) { CRLF.len() } else { 0 };
        let Some(end) = line_end(head, start) else {
            return;
        };
        self.rewrite_request_line(head.get_mut(start..end).unwrap_or_default());
        let mut at = end + CRLF.len();
        while let Some(next) = self.field(head, at) {
            at = next;
        }
    }

    /// A request line without its line end.
    pub(super) fn rewrite_request_line(self, line: &mut [u8]) {
        let method_end = memchr(b' ', line).unwrap_or(line.len());
        if self.casefold {
            line.get_mut(..method_end).unwrap_or_default().make_ascii_uppercase();
        }
        let version = memrchr(b' ', line).map_or(line.len(), |space| space + 1);
        if let (true, [.., major, b'.', minor]) = (self.versions, line.get_mut(version..).unwrap_or_default())
        {
            (*major, *minor) = match (*major, *minor) {
                (b'0', _) | (b'1', b'0') => (b'1', b'0'),
                _ => (b'1', b'1'),
            };
        }
    }

    /// The field at `at`, with all its lines; returns where the next one begins, None behind the last.
    fn field(self, head: &mut [u8], at: usize) -> Option<usize> {
        let line = head.get(at..)?;
        let name = line.iter().take_while(|&&byte| octets::is(byte, octets::TOKEN)).count();
        if name == 0 {
            return None;
        }
        let name_end = at + name;
        if self.name_spaces {
            let colon = name_end + memchr(b':', line.get(name..)?)?;
            head.swap(name_end, colon);
        }
        let mut end = line_end(head, at)?;
        let first = end;
        while matches!(head.get(end + CRLF.len()), Some(b' ' | b'\t')) {
            end = line_end(head, end + CRLF.len())?;
        }
        if end > first {
            unfold(head.get_mut(name_end + 1..end)?);
        }
        Some(end + CRLF.len())
    }
}

/// The first CR from `at` on; in a head that has been accepted, an LF is behind it.
fn line_end(bytes: &[u8], at: usize) -> Option<usize> {
    Some(at + memchr(b'\r', bytes.get(at..)?)?)
}

/// RFC 9112 §5.2: a server may "replace each received obs-fold with one or more SP octets prior to interpreting the field
/// value"; as in gunicorn it is one, and white space around it goes. What that leaves over goes to the end, where it is no
/// part of the value.
fn unfold(value: &mut [u8]) {
    let (mut read, mut written) = (0, 0);
    while read < value.len() {
        let end = line_end(value, read).unwrap_or(value.len());
        let line = value.get(read..end).unwrap_or_default();
        let indent = line.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let text = read + indent..read + indent + octets::trim(line).len();
        if read > 0 {
            put(value, written, b' ');
            written += 1;
        }
        let length = text.len();
        // A line takes more than it leaves, so `written` stays behind what is still to be read.
        value.copy_within(text, written);
        written += length;
        read = end + CRLF.len();
    }
    value.get_mut(written..).unwrap_or_default().fill(b' ');
}

fn put(value: &mut [u8], at: usize, byte: u8) {
    if let Some(place) = value.get_mut(at) {
        *place = byte;
    }
}

/// Fields that say where the message ends, whom it is for, and what becomes of the connection.
pub(super) fn is_of_the_message(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 10] = [
        b"content-length",
        b"transfer-encoding",
        b"host",
        b"connection",
        b"expect",
        b"te",
        b"trailer",
        b"upgrade",
        b"keep-alive",
        b"proxy-connection",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// RFC 9112 §2.3, whatever the digits: "HTTP/1.1" for what claims to be that or later, "HTTP/1.0" for what is older.
pub(super) fn version_byte(place: usize, byte: u8) -> Result<(), Reject> {
    const KNOWN: &[u8; 5] = b"HTTP/";
    let fits = match place {
        0..=4 => KNOWN.get(place) == Some(&byte),
        6 => byte == b'.',
        5 | 7 => byte.is_ascii_digit(),
        _ => return Err(Reject::RequestLine),
    };
    fits.then_some(()).ok_or(Reject::Version)
}

#[cfg(test)]
mod tests {
    use super::super::{parse, Forwarders, Head, HeaderMap, Limits, Methods, Policy};
    use super::*;

    const ALL: Leniency = Leniency { folding: true, name_spaces: true, versions: true, casefold: true };

    fn policy() -> Policy {
        Policy {
            limits: Limits { request_line: 4094, fields: 100, field_size: 8190, head: 65536 },
            header_map: HeaderMap::Drop,
            forwarders: Forwarders::default(),
            methods: Methods::Conventional,
            leniency: ALL,
        }
    }

    /// As a connection does it, more and more octets; the head's octets and what was made of them.
    fn grown(bytes: &[u8], leniency: Leniency, step: usize) -> Result<Option<(Vec<u8>, String)>, Reject> {
        let (mut held, policy) = (Vec::new(), Policy { leniency, ..policy() });
        let mut scan = None;
        for piece in bytes.chunks(step) {
            held.extend_from_slice(piece);
            let mut head = Head::default();
            if parse::lenient(&mut held, &policy, true, &mut scan, &mut head)? == parse::Status::Complete {
                held.truncate(head.length);
                return Ok(Some((held, format!("{head:?}"))));
            }
        }
        Ok(None)
    }

    fn read(bytes: &[u8], leniency: Leniency) -> Result<Option<Vec<u8>>, Reject> {
        let whole = grown(bytes, leniency, bytes.len().max(1));
        for step in [1, 2, 3, 7] {
            assert_eq!(grown(bytes, leniency, step), whole, "{step} {:?}", String::from_utf8_lossy(bytes));
        }
        Ok(whole?.map(|(octets, _)| octets))
    }

    fn becomes(from: &str, leniency: Leniency) -> Result<String, Reject> {
        let octets = read(from.as_bytes(), leniency)?.expect("a whole head");
        Ok(String::from_utf8(octets).unwrap())
    }

    fn ok(text: &str) -> Result<String, Reject> {
        Ok(text.to_string())
    }

    #[test]
    fn folded_lines_become_one() {
        let only = Leniency { folding: true, ..Leniency::default() };
        let head = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n");
        for (from, to) in [
            ("X: a\r\n b\r\n", "X:a b   \r\n"),
            ("X: a \t\r\n\t \tb\r\n c\r\nY: d\r\n", "X:a b c         \r\nY: d\r\n"),
            ("X: a\r\n\tb\r\n c\r\nY: d\r\n", "X:a b c     \r\nY: d\r\n"),
            // gunicorn joins lines, empty ones too.
            ("X: a\r\n \r\n b\r\n", "X:a  b     \r\n"),
            ("X:\r\n a\r\n \r\n", "X: a     \r\n"),
        ] {
            assert_eq!(becomes(&head(from), only), Ok(head(to)), "{from:?}");
            assert_eq!(becomes(&head(from), Leniency::default()), Err(Reject::ObsoleteFolding));
        }
        for from in [" X: a\r\n", "X\r\n : a\r\n", "X\r\n y: a\r\n"] {
            assert!(becomes(&head(from), only).is_err(), "{from:?}");
        }
    }

    #[test]
    fn spaces_before_a_colon_go_behind_it() {
        let only = Leniency { name_spaces: true, ..Leniency::default() };
        let head = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(
            becomes(&head("X : a\r\nY \t :b\r\n"), only),
            Ok(head("X: a\r\nY:\t  b\r\n").replace("X: a", "X:  a"))
        );
        assert_eq!(becomes(&head("X : a\r\n"), Leniency::default()), Err(Reject::FieldName));
        for from in ["X Y: a\r\n", " : a\r\n", "X \r\n", &format!("X{}: a\r\n", " ".repeat(65))] {
            assert!(becomes(&head(from), only).is_err(), "{from:?}");
        }
        assert!(becomes(&head(&format!("X{}: a\r\n", " ".repeat(64))), only).is_ok());
    }

    #[test]
    fn leniency_never_touches_what_frames_a_message() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "HOST",
            "Connection",
            "Expect",
            "TE",
            "Trailer",
            "Upgrade",
        ] {
            let value = if name == "Content-Length" { "0" } else { "chunked" };
            for line in
                [format!("{name} : {value}"), format!("{name}\t: {value}"), format!("{name}:\r\n {value}")]
            {
                let head = format!("POST / HTTP/1.1\r\nA : b\r\n{line}\r\n\r\n");
                let answer = becomes(&head, ALL);
                assert!(
                    matches!(
                        answer,
                        // Without the line that was to follow, some are wrong already.
                        Err(Reject::FieldName
                            | Reject::ObsoleteFolding
                            | Reject::ContentLength
                            | Reject::TransferEncoding)
                    ),
                    "{line:?} {answer:?}"
                );
            }
        }
        // What they look like behind a fold, or in a value, is no field of theirs.
        let folded = "GET / HTTP/1.1\r\nA: b\r\n Content-Length: 5\r\n\r\n";
        assert_eq!(becomes(folded, ALL), ok("GET / HTTP/1.1\r\nA:b Content-Length: 5   \r\n\r\n"));
    }

    #[test]
    fn other_versions_are_served_as_the_nearest_known_one() {
        let only = Leniency { versions: true, ..Leniency::default() };
        for (from, to) in [
            ("HTTP/1.0", "HTTP/1.0"),
            ("HTTP/1.1", "HTTP/1.1"),
            ("HTTP/1.2", "HTTP/1.1"),
            ("HTTP/2.0", "HTTP/1.1"),
            ("HTTP/9.9", "HTTP/1.1"),
            ("HTTP/0.9", "HTTP/1.0"),
        ] {
            let line = |version: &str| format!("\r\nGET / {version}\r\nA: b\r\n\r\n");
            assert_eq!(becomes(&line(from), only), Ok(line(to)));
        }
        for bad in ["HTTP/2", "HTTP/1.10", "HTTP/x.1", "http/2.0", "HTTP/2.0 ", "HTTP/", "HTTP"] {
            assert!(becomes(&format!("GET / {bad}\r\n\r\n"), only).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn methods_are_put_in_upper_case() {
        let only = Leniency { casefold: true, ..Leniency::default() };
        let line = |method: &str| format!("{method} /path HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(becomes(&line("get"), only), Ok(line("GET")));
        assert_eq!(becomes(&line("m-Search"), only), Ok(line("M-SEARCH")));
        assert_eq!(becomes(&line("get"), Leniency::default()), Err(Reject::Method));
        assert_eq!(becomes(&line("ge#"), only), Err(Reject::Method));
        assert_eq!(becomes("options * http/1.1\r\n\r\n", only), Err(Reject::Version));
    }

    #[test]
    fn nothing_behind_the_head_is_touched() {
        let bytes = b"post / HTTP/2.0\r\nA : b\r\n c\r\n\r\nget / HTTP/2.0\r\nA : b\r\n c\r\n\r\n";
        let mut held = bytes.to_vec();
        let (mut head, policy) = (Head::default(), policy());
        let answer = parse::lenient(&mut held, &policy, true, &mut None, &mut head);
        assert_eq!(answer, Ok(parse::Status::Complete));
        let behind = bytes.len() / 2 + 1;
        let body = memchr::memmem::find(bytes, b"\r\n\r\n").unwrap() + 4;
        assert!(body <= behind && held[body..] == bytes[body..]);
    }

    #[test]
    fn no_mutation_makes_leniency_depend_on_segmentation() {
        let seeds: [&[u8]; 3] = [
            b"get /a HTTP/2.0\r\nHost: h\r\nA : b\r\n c\r\nB: c\r\n\r\nrest",
            b"\r\nPOST / HTTP/0.9\r\nContent-Length : 5\r\nX\t:\r\n\t\r\n\r\n",
            b"PUT / HTTP/1.9\r\nTransfer-Encoding:\r\n chunked\r\nX: y\r\n\r\n",
        ];
        let splices: [&[u8]; 12] =
            [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b"a", b"\r\n ", b" :", b"Host", b""];
        let mut state = 88_172_645_463_325_252_u64;
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % bound as u64) as usize
        };
        for _ in 0..10_000 {
            let mut bytes = seeds[below(seeds.len())].to_vec();
            for _ in 0..=below(3) {
                let at = below(bytes.len() + 1);
                let end = bytes.len().min(at + below(4));
                bytes.splice(at..end, splices[below(splices.len())].iter().copied());
            }
            let _ = read(&bytes, ALL);
        }
    }
}
