//! Owns: where the parts of a request head are; httparse finds the tokens, `rules` judges them.
//! Rule: the outcome is the same however the bytes were cut. What refuses a head refuses it for the first byte that cannot
//! stand there, limits included: `Scan` decides on that, and reading a head that came whole may only be quicker.
//! Never: decides framing or field policy itself, looks beyond the head, allocates for a head of common size.

use super::rules::{self, Verdict, Walk};
use super::scan::Scan;
use super::{underscore, Field, Head, Limits, Policy, Reject, Span, StartLine};
use httparse::Header;
use memchr::memchr;
use std::mem::MaybeUninit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// More octets are needed; nothing in the head may be used.
    Partial,
    Complete,
}

const CRLF: &[u8] = b"\r\n";
/// ` HTTP/1.1`
const VERSION_PART: usize = 9;
/// Heads with more fields than this take their slots from the heap.
const STACK_SLOTS: usize = 128;

/// Parses the request head at the start of `bytes`, which may go on beyond it.
pub fn head(bytes: &[u8], policy: &Policy, trusted: bool, head: &mut Head) -> Result<Status, Reject> {
    more(bytes, policy, trusted, &mut None, head)
}

/// The same for a head that arrives in pieces: `bytes` begin where they did before, and `scan` is how far they were judged
/// then, which is not judged again.
pub fn more(
    bytes: &[u8],
    policy: &Policy,
    trusted: bool,
    scan: &mut Option<Box<Scan>>,
    head: &mut Head,
) -> Result<Status, Reject> {
    let reader = Reader { window: window(bytes, &policy.limits), policy, trusted };
    // Most heads arrive whole.
    let first = scan.is_none().then(|| reader.read(head));
    if first == Some(Ok(Status::Complete)) {
        return Ok(Status::Complete);
    }
    let scan = scan.get_or_insert_with(Box::default);
    match scan.judge(reader.window, policy, trusted)? {
        None if bytes.len() > reader.window.len() => Err(Reject::HeadTooLarge),
        None => Ok(Status::Partial),
        Some(_) => match first {
            // What follows from the whole head alone.
            Some(Err(reject)) => Err(reject),
            _ => reader.read_whole(head),
        },
    }
}

/// The same where something is accepted that the rules refuse: the head is rewritten once it is whole.
pub fn lenient(
    bytes: &mut [u8],
    policy: &Policy,
    trusted: bool,
    scan: &mut Option<Box<Scan>>,
    head: &mut Head,
) -> Result<Status, Reject> {
    let scan = scan.get_or_insert_with(Box::default);
    let judged = window(bytes, &policy.limits);
    match scan.judge(judged, policy, trusted)? {
        None if bytes.len() > judged.len() => Err(Reject::HeadTooLarge),
        None => Ok(Status::Partial),
        Some(length) => {
            let whole = bytes.get_mut(..length).unwrap_or_default();
            policy.leniency.rewrite(whole);
            Reader { window: whole, policy, trusted }.read_whole(head)
        }
    }
}

/// No head may reach beyond the limit, nor beyond what a `Span` can name.
fn window<'b>(bytes: &'b [u8], limits: &Limits) -> &'b [u8] {
    let most = limits.head.min(u32::MAX as usize);
    bytes.get(..most).unwrap_or(bytes)
}

/// RFC 9112 §2.2: "a server ... SHOULD ignore at least one empty line (CRLF) received prior to the request-line". That one
/// is skipped; httparse would skip any number, and bare LFs. Returns where the request line begins, and all from there.
fn skip_empty_line(bytes: &[u8]) -> Result<(usize, &[u8]), Reject> {
    match bytes {
        [b'\r'] => Ok((0, &[])),
        [b'\r', b'\n', b'\r' | b'\n', ..] => Err(Reject::RequestLine),
        [b'\r', b'\n', rest @ ..] => Ok((CRLF.len(), rest)),
        [b'\r' | b'\n', ..] => Err(Reject::RequestLine),
        _ => Ok((0, bytes)),
    }
}

/// The fast way: httparse finds the parts, then one loop over the fields.
struct Reader<'b> {
    window: &'b [u8],
    policy: &'b Policy,
    trusted: bool,
}

impl<'b> Reader<'b> {
    /// Of a head that `Scan` has found whole.
    fn read_whole(&self, head: &mut Head) -> Result<Status, Reject> {
        match self.read(head) {
            Ok(Status::Partial) => Err(Reject::RequestLine),
            answer => answer,
        }
    }

    fn read(&self, head: &mut Head) -> Result<Status, Reject> {
        let (at, _) = skip_empty_line(self.window)?;
        let mut slots = [const { MaybeUninit::uninit() }; STACK_SLOTS];
        let limit = self.policy.limits.fields;
        match slots.get_mut(..limit) {
            Some(slots) => self.tokenise(at, slots, head),
            None => match self.tokenise(at, &mut slots, head) {
                Err(Reject::TooManyFields) => {
                    self.tokenise(at, &mut vec![MaybeUninit::uninit(); limit], head)
                }
                outcome => outcome,
            },
        }
    }

    fn tokenise(
        &self,
        at: usize,
        slots: &mut [MaybeUninit<Header<'b>>],
        head: &mut Head,
    ) -> Result<Status, Reject> {
        let mut request = httparse::Request::new(&mut []);
        let rest = self.window.get(at..).unwrap_or_default();
        let length = match request.parse_with_uninit_headers(rest, slots) {
            Ok(httparse::Status::Partial) => return Ok(Status::Partial),
            Ok(httparse::Status::Complete(length)) => at + length,
            Err(error) => return Err(reason(error)),
        };
        let target = request.path.unwrap_or_default().as_bytes();
        let line_end = offset(self.window, target) + target.len() + VERSION_PART;
        head.fields_at = line_end + CRLF.len();
        head.length = length;
        head.start = self.start_line(at, line_end)?;
        self.fields(request.headers, head)?;
        Ok(Status::Complete)
    }

    fn start_line(&self, at: usize, end: usize) -> Result<StartLine, Reject> {
        if end - at > self.policy.limits.request_line {
            return Err(Reject::UriTooLong);
        }
        self.ended_by_crlf(end + CRLF.len())?;
        let line = self.window.get(at..end).ok_or(Reject::RequestLine)?;
        rules::start_line(line, at, self.policy.methods)
    }

    /// RFC 9112 §2.2 lets a recipient take a lone LF for a line end, as httparse does; peers differ on it, so it is
    /// refused.
    #[inline]
    fn ended_by_crlf(&self, end: usize) -> Result<(), Reject> {
        let line_end = self.window.get(end.wrapping_sub(CRLF.len())..end);
        (line_end == Some(CRLF)).then_some(()).ok_or(Reject::BareLineFeed)
    }

    fn fields(&self, headers: &[Header], head: &mut Head) -> Result<(), Reject> {
        let mut walk = Walk::default();
        let mut line_at = head.fields_at;
        head.fields.list.clear();
        for (place, header) in headers.iter().enumerate() {
            // A line ends where the next begins, and the last where the empty line does.
            let next_line = match headers.get(place + 1) {
                Some(next) => offset(self.window, next.name.as_bytes()),
                None => head.length - CRLF.len(),
            };
            self.ended_by_crlf(next_line)?;
            if next_line - line_at > self.policy.limits.field_size {
                return Err(Reject::FieldTooLarge);
            }
            let (name, value) = (header.name.as_bytes(), header.value);
            if walk.field(name, value, self.policy, self.trusted)? == Verdict::Keep {
                head.fields.list.push(Field {
                    name: self.span(name, head.fields_at),
                    value: self.span(value, head.fields_at),
                });
            }
            line_at = next_line;
        }
        self.ended_by_crlf(head.length)?;
        if walk.has_underscores() {
            let block = self.window.get(head.fields_at..).unwrap_or_default();
            underscore::settle(&mut head.fields.list, block, self.policy, self.trusted)?;
        }
        walk.finish(head.start.version, &mut head.fields)
    }

    /// Where `part` is, relative to the field block.
    #[inline]
    fn span(&self, part: &[u8], fields_at: usize) -> Span {
        let start = offset(self.window, part) - fields_at;
        rules::span(start, start + part.len())
    }
}

/// `Scan` says the same, or something of an earlier byte.
fn reason(error: httparse::Error) -> Reject {
    match error {
        httparse::Error::TooManyHeaders => Reject::TooManyFields,
        httparse::Error::HeaderName => Reject::FieldName,
        httparse::Error::HeaderValue => Reject::FieldValue,
        _ => Reject::RequestLine,
    }
}

/// Where `part`, a slice of `whole`, begins in it.
#[inline]
fn offset(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize)
}

/// Whether `bytes` begins with a request line followed by exactly `block`, the field block of the previous head of this
/// connection; returns the length of that head.
#[inline]
pub fn repeats(bytes: &[u8], block: &[u8]) -> Option<usize> {
    let fields_at = memchr(b'\n', bytes)? + 1;
    let same = bytes.get(fields_at..)?.starts_with(block);
    same.then_some(fields_at + block.len())
}

/// Reads the start line alone. `bytes` is a whole head whose field block is octet for octet that of the head in `head`
/// (see `repeats`), under the same policy and trust. Returns false, and leaves `head` as it was, whenever the outcome
/// might be another than that of `head()`: then call that.
#[inline]
pub fn same_fields(bytes: &[u8], policy: &Policy, head: &mut Head) -> bool {
    match start_before_block(bytes, policy, head) {
        Some((start, fields_at)) => {
            head.start = start;
            head.fields_at = fields_at;
            head.length = bytes.len();
            true
        }
        None => false,
    }
}

/// The start line of `bytes`, and where the field block begins, if that has the same meaning again.
fn start_before_block(bytes: &[u8], policy: &Policy, head: &Head) -> Option<(StartLine, usize)> {
    let block = head.length.checked_sub(head.fields_at)?;
    let fields_at = bytes.len().checked_sub(block)?;
    let line = bytes.get(..fields_at)?.strip_suffix(CRLF)?;
    let limits = &policy.limits;
    if line.len() > limits.request_line || bytes.len() > window(bytes, limits).len() {
        return None;
    }
    let start = rules::start_line(line, 0, policy.methods).ok()?;
    // Framing and persistence depend on the version; only the origin-form begins with its path.
    let origin_form = line.get(start.target.start as usize) == Some(&b'/');
    (origin_form && start.version == head.start.version).then_some((start, fields_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Forwarders, Framing, HeaderMap, Leniency, Methods, Version};

    fn policy() -> Policy {
        Policy {
            limits: Limits { request_line: 4094, fields: 100, field_size: 8190, head: 65536 },
            header_map: HeaderMap::Drop,
            forwarders: Forwarders::new(vec!["SCRIPT_NAME".into(), "PATH_INFO".into()], Vec::new()),
            methods: Methods::Conventional,
            leniency: Leniency::default(),
        }
    }

    /// The reason, or the whole head as text, or nothing while it is incomplete.
    type Outcome = Result<Option<String>, Reject>;

    fn once(bytes: &[u8], policy: &Policy, trusted: bool) -> Outcome {
        let mut parsed = Head::default();
        Ok(match head(bytes, policy, trusted, &mut parsed)? {
            Status::Complete => Some(format!("{parsed:?}")),
            Status::Partial => None,
        })
    }

    /// As a connection does it: more and more octets, until there is an answer.
    fn grown(bytes: &[u8], policy: &Policy, mut step: impl FnMut() -> usize) -> Outcome {
        let mut seen = 0;
        while seen < bytes.len() {
            seen = bytes.len().min(seen + step().max(1));
            match once(&bytes[..seen], policy, false) {
                Ok(None) => {}
                answer => return answer,
            }
        }
        Ok(None)
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    fn outcome_of(bytes: &[u8], policy: &Policy) -> Outcome {
        let answer = once(bytes, policy, false);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
        assert_eq!(answer, grown(bytes, policy, || 1), "{shown:?}");
        let mut random = Random(bytes.len() as u64 + 1);
        for _ in 0..4 {
            let split = grown(bytes, policy, || random.below(30));
            assert_eq!(answer, split, "{shown:?}");
        }
        answer
    }

    fn refused(bytes: impl AsRef<[u8]>) -> Option<Reject> {
        let answer = outcome_of(bytes.as_ref(), &policy());
        assert_ne!(answer, Ok(None), "{:?}", String::from_utf8_lossy(bytes.as_ref()));
        answer.err()
    }

    fn with_line(line: &str) -> Option<Reject> {
        refused(format!("{line}\r\nHost: h\r\n\r\n"))
    }

    fn with_field(field: &str) -> Option<Reject> {
        with_field_octets(field.as_bytes())
    }

    fn with_field_octets(field: &[u8]) -> Option<Reject> {
        refused([b"POST / HTTP/1.1\r\nHost: h\r\n", field, b"\r\n\r\n"].concat())
    }

    fn parsed(bytes: &[u8]) -> Head {
        parsed_by(bytes, &policy(), false)
    }

    fn parsed_by(bytes: &[u8], policy: &Policy, trusted: bool) -> Head {
        let mut parsed = Head::default();
        let status = head(bytes, policy, trusted, &mut parsed);
        assert_eq!(status, Ok(Status::Complete), "{:?}", String::from_utf8_lossy(bytes));
        parsed
    }

    fn text(bytes: &[u8], base: usize, span: Span) -> String {
        String::from_utf8_lossy(span.of(&bytes[base..])).into_owned()
    }

    fn names(bytes: &[u8], head: &Head) -> Vec<String> {
        let fields = head.fields.list.iter();
        fields.map(|field| text(bytes, head.fields_at, field.name)).collect()
    }

    #[test]
    fn offsets_name_the_parts() {
        let bytes =
            b"\r\nGET /a/b?c=d?e HTTP/1.1\r\nHost: h\r\nX-A:\t v w \t\r\nEmpty:\r\nLast: \r\n\r\nBODY";
        let head = parsed(bytes);
        assert_eq!(outcome_of(bytes, &policy()), Ok(Some(format!("{head:?}"))));
        let start = head.start;
        assert_eq!(text(bytes, 0, start.method), "GET");
        assert_eq!(text(bytes, 0, start.target), "/a/b?c=d?e");
        assert_eq!(text(bytes, 0, start.path), "/a/b");
        assert_eq!(text(bytes, 0, start.query), "c=d?e");
        assert!(start.authority.is_empty());
        assert_eq!(start.version, Version::Http11);
        assert_eq!(&bytes[head.length..], b"BODY");
        let shown: Vec<(String, String)> = (head.fields.list.iter())
            .map(|f| (text(bytes, head.fields_at, f.name), text(bytes, head.fields_at, f.value)))
            .collect();
        let expected = [("Host", "h"), ("X-A", "v w"), ("Empty", ""), ("Last", "")];
        assert_eq!(shown, expected.map(|(n, v)| (n.to_string(), v.to_string())));
    }

    #[test]
    fn one_empty_line_is_skipped_and_no_more() {
        assert_eq!(refused("\r\nGET / HTTP/1.1\r\n\r\n"), None);
        for bytes in [
            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "\nGET / HTTP/1.1\r\n\r\n",
            "\r\n\nGET / HTTP/1.1\r\n\r\n",
            "\rGET / HTTP/1.1\r\n\r\n",
            "\r\r\nGET / HTTP/1.1\r\n\r\n",
            "\r\n\r\n\r\n",
        ] {
            let status = refused(bytes).map(Reject::status);
            assert_eq!(status, Some(400), "{bytes:?}");
        }
    }

    #[test]
    fn request_line_has_three_parts_and_single_spaces() {
        for line in [
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET /\tHTTP/1.1",
            "GET / HTTP/1.1 x",
            "GET /",
            "GET / ",
            "GET",
            "GET ",
            "GET /a b HTTP/1.1",
            "GET / HTTP/1.1\r",
            "GET\r / HTTP/1.1",
            "GET /\r HTTP/1.1",
            "GET / HTTP/1.\r1",
        ] {
            assert_eq!(with_line(line).map(Reject::status), Some(400), "{line:?}");
        }
    }

    #[test]
    fn method_is_an_upper_case_token_of_3_to_20() {
        for line in ["GET", "PROPFIND", "M-SEARCH", "A.B", "X1_", "ABCDEFGHIJKLMNOPQRST"] {
            assert_eq!(with_line(&format!("{line} / HTTP/1.1")), None, "{line}");
        }
        for line in ["get", "Get", "GE", "G#T", "G(T", "GÉT", "ABCDEFGHIJKLMNOPQRSTU", "G\0T"] {
            let answer = with_line(&format!("{line} / HTTP/1.1"));
            assert_eq!(answer, Some(Reject::Method), "{line:?}");
        }
    }

    #[test]
    fn target_form_depends_on_the_method() {
        for line in [
            "OPTIONS *",
            "CONNECT host:80",
            "CONNECT [::1]:80",
            "GET //double//slash/../.",
            "GET /%00%zz%2F?\"<>\\^`{|}",
            "GET http://h",
            "GET http://h?q",
            "GET HTTP://h:80/p?q",
            "OPTIONS http://[::1]:80/",
            "GET /a:b",
        ] {
            assert_eq!(with_line(&format!("{line} HTTP/1.1")), None, "{line}");
        }
        for line in [
            "GET *",
            "GET host:80",
            "GET foo",
            "GET ?q",
            "OPTIONS **",
            "CONNECT /",
            "CONNECT host",
            "CONNECT host:",
            "CONNECT :80",
            "CONNECT http://h/",
            "CONNECT u@h:80",
            "GET http://user@h/",
            "GET http://u:p@h/",
            "GET http:///p",
            "GET http://:80/",
            "GET http:/p",
            "GET 1http://h/",
            "GET ://h/",
            "GET http://h:8o/",
            "GET http://h\\x/",
            "GET /p#f",
            "GET http://h#f",
            "GET /\u{7f}",
            "GET /\0",
            "GET /\u{1}",
            "GET /é",
        ] {
            let answer = with_line(&format!("{line} HTTP/1.1"));
            assert_eq!(answer, Some(Reject::Target), "{line:?}");
        }
        let raw = refused(b"GET /\xff\xfe HTTP/1.1\r\n\r\n");
        assert_eq!(raw, Some(Reject::Target));
    }

    #[test]
    fn absolute_form_has_authority_path_and_query() {
        for (target, authority, path, query) in [
            ("http://h:80/p?q", "h:80", "/p", "q"),
            ("http://h", "h", "", ""),
            ("http://h?q=/", "h", "", "q=/"),
            ("https://[::1]/?", "[::1]", "/", ""),
        ] {
            let bytes = format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n");
            let start = parsed(bytes.as_bytes()).start;
            let shown = |span| text(bytes.as_bytes(), 0, span);
            assert_eq!(
                [shown(start.authority), shown(start.path), shown(start.query)],
                [authority, path, query]
            );
        }
        let bytes = b"OPTIONS * HTTP/1.1\r\n\r\n";
        assert_eq!(text(bytes, 0, parsed(bytes).start.path), "*");
    }

    #[test]
    fn version_is_1_0_or_1_1() {
        assert_eq!(with_line("GET / HTTP/1.0"), None);
        for line in [
            "HTTP/1.2", "HTTP/1.9", "HTTP/1.", "HTTP/1", "HTTP", "http/1.1", "HTTP/1,1", "HTTP/11",
            "HTTP/x.1", "XTTP/1.1", "HTTP 1.1", "\u{1}",
        ] {
            let answer = with_line(&format!("GET / {line}"));
            assert_eq!(answer.map(Reject::status), Some(400), "{line}");
        }
        for line in ["HTTP/2.0", "HTTP/0.9", "HTTP/9.9", "HTTP/2"] {
            let answer = with_line(&format!("GET / {line}"));
            assert_eq!(answer, Some(Reject::UnsupportedVersion), "{line}");
        }
    }

    #[test]
    fn request_line_limit_acts_on_octets_received() {
        let limit = policy().limits.request_line;
        let target = "a".repeat(limit - "GET / HTTP/1.1".len());
        assert_eq!(with_line(&format!("GET /{target} HTTP/1.1")), None);
        let longer = with_line(&format!("GET /{target}a HTTP/1.1"));
        assert_eq!(longer, Some(Reject::UriTooLong));
        let endless = format!("GET /{target}{target}");
        assert_eq!(refused(endless), Some(Reject::UriTooLong));
        let mut tight = policy();
        tight.limits.head = 100;
        let endless = outcome_of(&[b'A'; 4096], &tight);
        assert_eq!(endless, Err(Reject::Method));
    }

    #[test]
    fn garbage_is_refused_at_the_first_impossible_octet() {
        for (bytes, needed) in [
            (&b"\x16\x03\x01\x02\x00"[..], 1),
            (b"\r\n\r\n\0\r\nQUIT\n", 3),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 12),
            (b"EHLO mail\r\n", 10),
            (b"get / HTTP/1.1", 1),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", 12),
            (b"\x80\0", 1),
            (b"GET / HTTP/1.1\nHost", 15),
            (b"GET / HTTP/1.1\r\nHost: a\nX", 24),
            (b"GET / HTTP/1.1\r\nHost : a", 21),
            (b"GET / HTTP/1.1\r\nHost: a\r\n ", 26),
            (b"GET / HTTP/1.1\r\nHost: a\r\r", 25),
        ] {
            let shown = String::from_utf8_lossy(bytes);
            assert!(refused(bytes).is_some(), "{shown:?}");
            let before = once(&bytes[..needed - 1], &policy(), false);
            assert_eq!(before, Ok(None), "{shown:?}");
            assert!(once(&bytes[..needed], &policy(), false).is_err(), "{shown:?}");
        }
    }

    #[test]
    fn bare_lf_is_no_line_end() {
        for bytes in [
            "GET / HTTP/1.1\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\n\n",
            "GET / HTTP/1.1\r\nHost: h\r\n\n",
            "GET / HTTP/1.1\r\nHost:\nA: b\r\n\r\n",
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.1\r\n\n",
        ] {
            assert_eq!(refused(bytes), Some(Reject::BareLineFeed), "{bytes:?}");
        }
    }

    #[test]
    fn field_name_is_a_token_up_to_the_colon() {
        for field in ["A : b", ": b", "A", "A b: c", "A(: b", "Ä: b", "A\0: b", "A\t: b", "\u{b}A: b"] {
            assert_eq!(with_field(field), Some(Reject::FieldName), "{field:?}");
        }
        assert_eq!(with_field("a!#$%&'*+-.^`|~9: b"), None);
    }

    #[test]
    fn folding_is_refused() {
        for field in [" A: b", "A: b\r\n c", "A: b\r\n\tc", "A:\r\n b"] {
            assert_eq!(with_field(field), Some(Reject::ObsoleteFolding), "{field:?}");
        }
        let first = refused("GET / HTTP/1.1\r\n Host: h\r\n\r\n");
        assert_eq!(first, Some(Reject::ObsoleteFolding));
    }

    #[test]
    fn field_value_has_no_controls() {
        for octet in (0..0x20).chain([0x7f]).filter(|o| ![b'\t', b'\n'].contains(o)) {
            let field = [b"A: b", &[octet][..], b"c"].concat();
            let answer = with_field_octets(&field);
            assert_eq!(answer, Some(Reject::FieldValue), "{octet:#x}");
        }
        assert_eq!(with_field_octets(b"A: \xe9\xff\x80\tb"), None);
    }

    #[test]
    fn only_sp_and_htab_are_trimmed() {
        let bytes = b"GET / HTTP/1.1\r\nA: \t\xa0b\x85 \t\r\n\r\n";
        let head = parsed(bytes);
        let value = head.fields.list[0].value.of(&bytes[head.fields_at..]);
        assert_eq!(value, b"\xa0b\x85");
    }

    #[test]
    fn host_is_optional_and_single_and_well_formed() {
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), None);
        for host in
            ["", "h", "h:80", "h:", "1.2.3.4:1", "[::1]", "[::1]:80", "a_b-c.~!$&'()*+,;=", "a%20b", "[v1.x]"]
        {
            let answer = refused(format!("GET / HTTP/1.1\r\nhOsT: {host}\r\n\r\n"));
            assert_eq!(answer, None, "{host:?}");
        }
        for host in [
            "u@h", "h:x", "h:80:80", "h/", "h\\", "<h>", "a b", "a%2", "a%zz", "[::1", "[::1]x", "[]", "é",
            "h?", "h#", "::1", "a\tb", "[a/b]", "[u@h]", "h:+1", "\"h\"",
        ] {
            let answer = refused(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(answer, Some(Reject::Host), "{host:?}");
        }
        assert_eq!(with_field("Host: h"), Some(Reject::DuplicateHost));
    }

    #[test]
    fn content_type_is_single() {
        let twice = with_field("Content-Type: a/b\r\ncontent-type: a/b");
        assert_eq!(twice, Some(Reject::DuplicateContentType));
    }

    #[test]
    fn content_length_is_digits_and_single() {
        for value in [
            "+1",
            "-1",
            "0x1",
            "1_0",
            "1.0",
            "1e2",
            "1 0",
            "1;a",
            "\"1\"",
            "'1'",
            "",
            "1,1",
            "1, 1",
            "١",
            "9223372036854775808",
            "18446744073709551616",
            "99999999999999999999999999",
            "1a",
            "a1",
        ] {
            let answer = with_field(&format!("Content-Length: {value}"));
            assert_eq!(answer, Some(Reject::ContentLength), "{value:?}");
        }
        for octets in [&b"\xa01"[..], b"1\xa0", b"1\xb2", b"\x851"] {
            let answer = with_field_octets(&[b"Content-Length: ", octets].concat());
            assert_eq!(answer, Some(Reject::ContentLength), "{octets:?}");
        }
        for again in ["1", "2"] {
            let answer = with_field(&format!("Content-Length: 1\r\nContent-Length: {again}"));
            assert_eq!(answer, Some(Reject::DuplicateContentLength));
        }
        for (value, length) in [("0", 0), ("007", 7), (" 5\t", 5), ("9223372036854775807", i64::MAX as u64)] {
            let bytes = format!("POST / HTTP/1.1\r\ncontent-LENGTH:{value}\r\n\r\n");
            let head = parsed(bytes.as_bytes());
            assert_eq!(head.fields.framing, Framing::Length(length));
            assert_eq!(names(bytes.as_bytes(), &head), ["content-LENGTH"]);
        }
    }

    #[test]
    fn transfer_encoding_is_chunked_once_and_alone() {
        for value in ["chunked", "CHUNKED", "\t chunked \t"] {
            let bytes =
                format!("POST / HTTP/1.1\r\nTransfer-Encoding: {value}\r\nTrailer: a\r\nTE: b\r\n\r\n");
            let head = parsed(bytes.as_bytes());
            assert_eq!(head.fields.framing, Framing::Chunked);
            assert_eq!(names(bytes.as_bytes(), &head), ["TE"]);
        }
        for value in [
            "",
            ",chunked",
            "chunked,",
            "chunked, chunked",
            "chunked, gzip",
            "gzip",
            "identity",
            "chunked;a=b",
            "\"chunked\"",
            "chunked x",
            "chunked\u{a0}",
            "gzip, deflate",
        ] {
            let answer = with_field(&format!("Transfer-Encoding: {value}"));
            assert_eq!(answer, Some(Reject::TransferEncoding), "{value:?}");
        }
        for octets in [&b"chunked\xa0"[..], b"\x85chunked"] {
            let answer = with_field_octets(&[b"Transfer-Encoding: ", octets].concat());
            assert_eq!(answer, Some(Reject::TransferEncoding), "{octets:?}");
        }
        let with_vt = with_field("Transfer-Encoding: \u{b}chunked");
        assert_eq!(with_vt, Some(Reject::FieldValue));
        let two_lines = with_field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked");
        assert_eq!(two_lines, Some(Reject::TransferEncoding));
    }

    #[test]
    fn unknown_transfer_coding_is_501() {
        for value in [
            "chunk",
            "'chunked",
            "gzip, chunked",
            "identity, chunked",
            "x, chunked",
            "gzip\r\nTransfer-Encoding: chunked",
        ] {
            let answer = with_field(&format!("Transfer-Encoding: {value}"));
            assert_eq!(answer, Some(Reject::UnknownTransferCoding), "{value:?}");
        }
    }

    #[test]
    fn transfer_encoding_excludes_content_length_and_http_1_0() {
        let both = "Content-Length: 1\r\nTransfer-Encoding: chunked";
        assert_eq!(with_field(both), Some(Reject::TransferEncodingAndLength));
        let both = "Transfer-Encoding: chunked\r\nContent-Length: 1";
        assert_eq!(with_field(both), Some(Reject::TransferEncodingAndLength));
        let old = refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(old, Some(Reject::TransferEncodingInHttp10));
    }

    #[test]
    fn connection_is_a_list_over_all_lines() {
        for (fields, version, persistent) in [
            ("", "1.1", true),
            ("", "1.0", false),
            ("Connection: close\r\n", "1.1", false),
            ("Connection: CLOSE\r\n", "1.1", false),
            ("Connection: foo, close\r\n", "1.1", false),
            ("Connection: foo\r\nconnection: close\r\n", "1.1", false),
            ("Connection: close,,\r\n", "1.1", false),
            ("Connection: closed\r\n", "1.1", true),
            ("Connection: Keep-Alive\r\n", "1.0", true),
            ("Connection: TE, keep-alive\r\n", "1.0", true),
            ("Connection: keep-alive, close\r\n", "1.0", false),
            ("Connection: keep-alive, close\r\n", "1.1", false),
        ] {
            let bytes = format!("GET / HTTP/{version}\r\n{fields}\r\n");
            let head = parsed(bytes.as_bytes());
            assert_eq!(head.persistent(), persistent, "{bytes:?}");
        }
    }

    #[test]
    fn expect_is_100_continue_or_417() {
        for (version, fields, expected) in [
            ("1.1", "Expect: 100-continue\r\nContent-Length: 1\r\n", true),
            ("1.1", "Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n", true),
            ("1.1", "Expect: , 100-continue,\r\nContent-Length: 1\r\n", true),
            ("1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n", false),
            ("1.1", "Expect: 100-continue\r\n", false),
            ("1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n", false),
            ("1.1", "Content-Length: 1\r\n", false),
        ] {
            let bytes = format!("PUT / HTTP/{version}\r\n{fields}\r\n");
            let head = parsed(bytes.as_bytes());
            assert_eq!(head.fields.expect_continue, expected, "{bytes:?}");
        }
        for value in ["200-ok", "100-continue, x", "100-continue\r\nExpect: x", "100-continue;a"] {
            let answer = with_field(&format!("Expect: {value}"));
            assert_eq!(answer, Some(Reject::UnknownExpectation), "{value:?}");
        }
    }

    #[test]
    fn underscore_in_a_name_is_dropped_refused_or_kept() {
        let bytes = b"GET / HTTP/1.1\r\nX_Real_Ip: a\r\nScript_Name: /x\r\nContent_Length: 5\r\n\
                      Transfer_Encoding: chunked\r\nX-Real-Ip: b\r\n\r\n";
        let kept = |map, trusted| {
            let policy = Policy { header_map: map, ..policy() };
            names(bytes, &parsed_by(bytes, &policy, trusted))
        };
        assert_eq!(kept(HeaderMap::Drop, false), ["X-Real-Ip"]);
        assert_eq!(kept(HeaderMap::Drop, true), ["Script_Name", "X-Real-Ip"]);
        let all = ["Script_Name", "X-Real-Ip", "X_Real_Ip"];
        assert_eq!(kept(HeaderMap::Dangerous, false), all);
        let mut strict = Policy { header_map: HeaderMap::Refuse, ..policy() };
        assert_eq!(outcome_of(bytes, &strict), Err(Reject::UnderscoreInName));
        let script = b"GET / HTTP/1.1\r\nSCRIPT_NAME: /x\r\n\r\n";
        assert_eq!(once(script, &strict, false), Err(Reject::UnderscoreInName));
        assert!(once(script, &strict, true).is_ok());
        strict.forwarders = Forwarders::new(vec!["*".into()], Vec::new());
        assert!(once(b"GET / HTTP/1.1\r\nANY_NAME: /x\r\n\r\n", &strict, true).is_ok());
        let framing = b"GET / HTTP/1.1\r\nContent_Length: 1\r\n\r\n";
        assert_eq!(once(framing, &strict, true), Err(Reject::UnderscoreInName));
    }

    #[test]
    fn field_count_is_limited() {
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(refused(fields(100)), None);
        assert_eq!(refused(fields(101)), Some(Reject::TooManyFields));
        let mut many = policy();
        many.limits.fields = 300;
        assert!(once(fields(300).as_bytes(), &many, false).is_ok());
        assert_eq!(outcome_of(fields(301).as_bytes(), &many), Err(Reject::TooManyFields));
    }

    #[test]
    fn field_size_is_limited_as_gunicorn_counts() {
        let line = |octets: usize| format!("A: {}", "b".repeat(octets - "A: \r\n".len()));
        let mut policy = policy();
        policy.limits.field_size = 50;
        for tail in ["", "C: d\r\n"] {
            let fits = format!("GET / HTTP/1.1\r\n{}\r\n{tail}\r\n", line(50));
            assert!(matches!(outcome_of(fits.as_bytes(), &policy), Ok(Some(_))));
            let over = format!("GET / HTTP/1.1\r\n{}\r\n{tail}\r\n", line(51));
            assert_eq!(outcome_of(over.as_bytes(), &policy), Err(Reject::FieldTooLarge));
        }
        let endless = format!("GET / HTTP/1.1\r\n{}", line(60));
        assert_eq!(outcome_of(endless.as_bytes(), &policy), Err(Reject::FieldTooLarge));
        let spaces = format!("GET / HTTP/1.1\r\nA:{}b\r\n\r\n", " ".repeat(60));
        assert_eq!(outcome_of(spaces.as_bytes(), &policy), Err(Reject::FieldTooLarge));
    }

    #[test]
    fn head_size_is_limited() {
        let mut policy = policy();
        policy.limits.head = 60;
        let head = |octets: usize| {
            let empty = "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(octets - empty))
        };
        let with_body = head(60) + &"x".repeat(100);
        assert!(matches!(outcome_of(with_body.as_bytes(), &policy), Ok(Some(_))));
        assert_eq!(outcome_of(head(61).as_bytes(), &policy), Err(Reject::HeadTooLarge));
        let endless = "GET / HTTP/1.1\r\n".to_string() + &"A: b\r\n".repeat(20);
        assert_eq!(outcome_of(endless.as_bytes(), &policy), Err(Reject::HeadTooLarge));
    }

    #[test]
    fn any_token_may_be_a_method_where_that_is_permitted() {
        let policy = Policy { methods: Methods::Any, ..policy() };
        let line = |method: &str| format!("{method} / HTTP/1.1\r\n\r\n");
        for method in ["get", "#x", "a", &"M".repeat(60), "m!$%&'*+-.^_`|~9"] {
            assert!(matches!(outcome_of(line(method).as_bytes(), &policy), Ok(Some(_))), "{method}");
            let strict = Policy { methods: Methods::Conventional, ..policy.clone() };
            let usual = !method.contains(|c: char| c.is_ascii_lowercase() || c == '#');
            let refused = outcome_of(line(method).as_bytes(), &strict);
            assert!(refused == Err(Reject::Method) || usual && method.len() <= 20, "{method}");
        }
        for method in ["", "G(T", "G,T", "G\0T", "\u{e9}"] {
            assert_eq!(outcome_of(line(method).as_bytes(), &policy), Err(Reject::Method), "{method}");
        }
    }

    #[test]
    fn the_vector_is_reused() {
        let bytes = b"GET / HTTP/1.1\r\nA: b\r\nC: d\r\n\r\n";
        let mut kept = Head::default();
        head(bytes, &policy(), false, &mut kept).unwrap();
        let at = kept.fields.list.as_ptr();
        head(bytes, &policy(), false, &mut kept).unwrap();
        assert_eq!(kept.fields.list.as_ptr(), at);
        assert_eq!(kept.fields.list.len(), 2);
        let fresh = once(b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n", &policy(), false);
        let status = head(b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n", &policy(), false, &mut kept);
        assert_eq!(status, Ok(Status::Complete));
        assert_eq!(Ok(Some(format!("{kept:?}"))), fresh);
    }

    const BLOCK: &str = "Host: h\r\nConnection: foo\r\n\r\n";

    /// The head that the short way comes to, if it is taken.
    fn shortened(first: &str, second: &str) -> Option<String> {
        let first = format!("{first}\r\n{BLOCK}");
        let mut kept = parsed(first.as_bytes());
        let before = format!("{kept:?}");
        let length = repeats(second.as_bytes(), BLOCK.as_bytes());
        let taken =
            length.is_some_and(|length| same_fields(&second.as_bytes()[..length], &policy(), &mut kept));
        if !taken {
            assert_eq!(format!("{kept:?}"), before);
        }
        taken.then(|| format!("{kept:?}"))
    }

    #[test]
    fn same_fields_comes_to_what_head_comes_to() {
        for (line, rest) in
            [("GET /", ""), ("POST /a?b", "GET / HTTP/1.1\r\n"), ("OPTIONS /longer/path", "\n")]
        {
            let second = format!("{line} HTTP/1.1\r\n{BLOCK}{rest}");
            let short = shortened("GET /first HTTP/1.1", &second);
            assert!(short.is_some(), "{line}");
            assert_eq!(Ok(short), once(second.as_bytes(), &policy(), false));
        }
    }

    #[test]
    fn same_fields_declines_whatever_might_differ() {
        let long = format!("GET /{} HTTP/1.1", "a".repeat(4094));
        for line in [
            "GET / HTTP/1.0",
            "GET http://h/ HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "CONNECT h:1 HTTP/1.1",
            "get / HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET /\u{1} HTTP/1.1",
            "GET / HTTP/1.1\n",
            "\r\nGET / HTTP/1.1",
            "GET / HTTP/1.1\r",
            "",
            &long,
        ] {
            let second = format!("{line}\r\n{BLOCK}");
            assert_eq!(shortened("GET / HTTP/1.1", &second), None, "{line:?}");
        }
        for second in [
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: foo\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: foo\r\n\r",
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: foo\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.1",
        ] {
            assert_eq!(shortened("GET / HTTP/1.1", second), None, "{second:?}");
        }
        let mut none = Head::default();
        assert!(!same_fields(b"GET / HTTP/1.1\r\n\r\n", &policy(), &mut none));
        assert!(!same_fields(b"", &policy(), &mut none));
    }

    #[test]
    fn no_mutation_makes_the_answer_depend_on_segmentation() {
        let seeds: [&[u8]; 4] = [
            b"GET /a?b HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\nrest",
            b"\r\nPOST http://h/p HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: [::1]:80\r\nX_y:\r\n\r\n",
            b"CONNECT h:80 HTTP/1.1\r\nContent-Type: a\r\nConnection: a, close\r\nVia:  \r\n\r\n",
        ];
        let splices: [&[u8]; 14] = [
            b"\r",
            b"\n",
            b"\r\n",
            b" ",
            b"\t",
            b":",
            b"\0",
            b"\xff",
            b"#",
            b"Host: x\r\n",
            b"A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
            b"HTTP/1.1",
            b"2",
            b"",
        ];
        let mut policy = policy();
        policy.limits = Limits { request_line: 30, fields: 4, field_size: 40, head: 110 };
        let mut random = Random(88172645463325252);
        for _ in 0..20_000 {
            let mut bytes = seeds[random.below(seeds.len())].to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() + 1);
                let end = bytes.len().min(at + random.below(4));
                bytes.splice(at..end, splices[random.below(splices.len())].iter().copied());
            }
            let _ = outcome_of(&bytes, &policy);
        }
    }
}
