//! Owns: one function for each rule of RFC 9110 and RFC 9112 about the start line and the fields of a request.
//! Rule: a rule is a function of what it judges and nothing else, so that `scan` and `parse` judge by the same ones.
//! Never: finds where a line ends (that is `parse`), keeps anything but the outcome, allocates.

use super::{octets, underscore, Fields, Framing, Methods, Policy, Reject, Span, StartLine, Version};
use memchr::{memchr, memchr2, memchr_iter};

/// Bounds that gunicorn sets on the length of a method.
const METHOD_OCTETS: std::ops::RangeInclusive<usize> = 3..=20;

pub(super) fn span(start: usize, end: usize) -> Span {
    // `parse` reads no further than `u32::MAX` octets.
    Span { start: start as u32, end: end as u32 }
}

/// Splits `octets` around the first `separator`.
fn cut(octets: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let (before, rest) = octets.split_at_checked(memchr(separator, octets)?)?;
    Some((before, rest.get(1..)?))
}

/// RFC 9112 §3: `request-line = method SP request-target SP HTTP-version`, single spaces, no CRLF here.
/// `at` is added to every offset.
pub fn start_line(line: &[u8], at: usize, methods: Methods) -> Result<StartLine, Reject> {
    let parts = Parts::of(line);
    parts.check(methods)?;
    let target = parts.target.ok_or(Reject::RequestLine)?;
    let version = match parts.version.ok_or(Reject::RequestLine)? {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        _ => return Err(Reject::Version),
    };
    let method_end = at + parts.method.len();
    let form = target_form(parts.method, target).ok_or(Reject::Target)?;
    let shifted = |(start, end)| span(method_end + 1 + start, method_end + 1 + end);
    Ok(StartLine {
        method: span(at, method_end),
        target: shifted((0, target.len())),
        path: shifted(form.path),
        query: shifted(form.query),
        authority: shifted(form.authority),
        version,
    })
}

/// The parts of a request line, as many as there are.
struct Parts<'b> {
    method: &'b [u8],
    target: Option<&'b [u8]>,
    version: Option<&'b [u8]>,
}

impl<'b> Parts<'b> {
    #[inline]
    #[allow(clippy::indexing_slicing, reason = "`end` is the place of an octet of the line")]
    fn of(line: &'b [u8]) -> Parts<'b> {
        // A method is too short for a search by `memchr` to pay.
        let (method, rest) = match line.iter().position(|&octet| octet == b' ') {
            Some(end) => (&line[..end], Some(&line[end + 1..])),
            None => (line, None),
        };
        match rest.map(|rest| (rest, cut(rest, b' '))) {
            None => Parts { method, target: None, version: None },
            Some((target, None)) => Parts { method, target: Some(target), version: None },
            Some((_, Some((target, version)))) => {
                Parts { method, target: Some(target), version: Some(version) }
            }
        }
    }

    /// In the order of the octets.
    #[inline]
    fn check(&self, methods: Methods) -> Result<(), Reject> {
        method_so_far(self.method, methods)?;
        let Some(target) = self.target else {
            return Ok(());
        };
        method_length(self.method.len(), methods)?;
        if !octets::is_target(target) {
            return Err(Reject::Target);
        }
        match self.version {
            Some(_) if target.is_empty() => Err(Reject::RequestLine),
            Some(b"HTTP/1.1") | None => Ok(()),
            Some(version) => version_so_far(version),
        }
    }
}

/// RFC 9110 §9.1: "The method token is case-sensitive"; narrowed as gunicorn narrows it.
fn method_so_far(method: &[u8], methods: Methods) -> Result<(), Reject> {
    let good = match methods {
        Methods::Conventional => method.len() <= *METHOD_OCTETS.end() && octets::all(method, octets::METHOD),
        Methods::Any => octets::all(method, octets::TOKEN),
    };
    good.then_some(()).ok_or(Reject::Method)
}

/// The same for one byte, so many bytes behind the first.
pub(super) fn method_byte(byte: u8, place: usize, methods: Methods) -> Result<(), Reject> {
    let good = match methods {
        Methods::Conventional => place < *METHOD_OCTETS.end() && octets::is(byte, octets::METHOD),
        Methods::Any => octets::is(byte, octets::TOKEN),
    };
    good.then_some(()).ok_or(Reject::Method)
}

/// Of a method that is whole.
pub(super) fn method_length(length: usize, methods: Methods) -> Result<(), Reject> {
    let shortest = match methods {
        Methods::Conventional => *METHOD_OCTETS.start(),
        Methods::Any => 1,
    };
    (length >= shortest).then_some(()).ok_or(Reject::Method)
}

/// RFC 9112 §2.3: `HTTP-version = HTTP-name "/" DIGIT "." DIGIT`, case-sensitive.
fn version_so_far(version: &[u8]) -> Result<(), Reject> {
    version.iter().enumerate().try_for_each(|(place, &byte)| version_byte(place, byte))
}

/// The same for one byte, so many bytes behind the first.
pub(super) fn version_byte(place: usize, byte: u8) -> Result<(), Reject> {
    const KNOWN: &[u8; 7] = b"HTTP/1.";
    match (place, KNOWN.get(place)) {
        (5, _) if byte.is_ascii_digit() && byte != b'1' => Err(Reject::UnsupportedVersion),
        (_, Some(&known)) if byte == known => Ok(()),
        (7, None) if matches!(byte, b'0' | b'1') => Ok(()),
        // A fourth part, or a space behind the version.
        (8.., None) => Err(Reject::RequestLine),
        _ => Err(Reject::Version),
    }
}

/// Offsets into a request target.
#[derive(Default)]
struct TargetForm {
    path: (usize, usize),
    query: (usize, usize),
    authority: (usize, usize),
}

/// RFC 9112 §3.2: which of the four forms is allowed depends on the method.
fn target_form(method: &[u8], target: &[u8]) -> Option<TargetForm> {
    match (method, target) {
        // §3.2.3: "When making a CONNECT request ... a client MUST send only the host and port".
        (b"CONNECT", _) => connect_authority(target).then(TargetForm::default),
        (_, [b'/', ..]) => Some(path_and_query(target, 0)),
        // §3.2.4: "The asterisk-form of request-target is only used for a server-wide OPTIONS request".
        (b"OPTIONS", b"*") => Some(path_and_query(target, 0)),
        _ => absolute_form(target),
    }
}

/// RFC 9112 §3.2.1: `origin-form = absolute-path [ "?" query ]`, beginning at `start`.
fn path_and_query(target: &[u8], start: usize) -> TargetForm {
    let end = target.len();
    let rest = target.get(start..).unwrap_or_default();
    let path_end = memchr(b'?', rest).map_or(end, |mark| start + mark);
    TargetForm { path: (start, path_end), query: (end.min(path_end + 1), end), authority: (0, 0) }
}

/// RFC 9112 §3.2.2: `absolute-form = absolute-URI`; RFC 9110 §4.2.4: userinfo is an error, and §4.2.1 so is an empty host.
fn absolute_form(target: &[u8]) -> Option<TargetForm> {
    let (scheme, rest) = cut(target, b':')?;
    let rest = rest.strip_prefix(b"//")?;
    if !scheme.first()?.is_ascii_alphabetic() || !octets::all(scheme, octets::SCHEME) {
        return None;
    }
    let start = target.len() - rest.len();
    let end = start + memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let authority = target.get(start..end)?;
    if matches!(authority.first(), None | Some(b':')) || !is_host(authority) {
        return None;
    }
    Some(TargetForm { authority: (start, end), ..path_and_query(target, end) })
}

/// RFC 9112 §3.2.3: `authority-form = uri-host ":" port`, neither of them empty (RFC 9110 §9.3.6).
fn connect_authority(target: &[u8]) -> bool {
    let host_and_port = target.first() != Some(&b':') && is_host(target);
    host_and_port && target.contains(&b':') && target.last().is_some_and(|&o| octets::is(o, octets::DIGIT))
}

/// RFC 9110 §7.2: `Host = uri-host [ ":" port ]`; empty is allowed.
pub fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => match cut(rest, b']') {
            Some((literal, port)) if is_ip_literal(literal) => (&b""[..], port),
            _ => return false,
        },
        _ => value.split_at(memchr(b':', value).unwrap_or(value.len())),
    };
    let port_is_good = match port {
        [] => true,
        [b':', digits @ ..] => octets::all(digits, octets::DIGIT),
        _ => false,
    };
    port_is_good && (octets::all(host, octets::HOST) || is_escaped_name(host))
}

/// RFC 3986 §3.2.2: what stands between the brackets, an IPv6 or a future address.
fn is_ip_literal(literal: &[u8]) -> bool {
    !literal.is_empty() && literal.iter().all(|&o| octets::is(o, octets::HOST) || o == b':')
}

/// RFC 3986 §3.2.2: `reg-name = *( unreserved / pct-encoded / sub-delims )`.
fn is_escaped_name(mut host: &[u8]) -> bool {
    loop {
        host = match host {
            [] => return true,
            [b'%', high, low, rest @ ..] if octets::all(&[*high, *low], octets::HEXDIG) => rest,
            [octet, rest @ ..] if octets::is(*octet, octets::HOST) => rest,
            _ => return false,
        }
    }
}

/// What to do with one field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Drop,
}

impl Verdict {
    fn of(kept: bool) -> Verdict {
        if kept {
            Verdict::Keep
        } else {
            Verdict::Drop
        }
    }
}

/// What has been seen while walking over the fields of one head, in order.
#[derive(Debug, Default)]
pub struct Walk {
    host: bool,
    content_type: bool,
    content_length: Option<u64>,
    codings: Codings,
    close: bool,
    keep_alive: bool,
    expect_continue: bool,
    underscored: bool,
}

impl Walk {
    /// Whether names that share an environ key may have been kept.
    pub fn has_underscores(&self) -> bool {
        self.underscored
    }

    /// The hot path: most names are told apart by their length alone.
    #[inline]
    pub fn field(
        &mut self,
        name: &[u8],
        value: &[u8],
        policy: &Policy,
        trusted: bool,
    ) -> Result<Verdict, Reject> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value)?,
            6 if name.eq_ignore_ascii_case(b"expect") => self.expect(value)?,
            // Trailer fields are dropped, so what announces them is too.
            7 if name.eq_ignore_ascii_case(b"trailer") => return Ok(Verdict::Drop),
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection(value),
            12 if name.eq_ignore_ascii_case(b"content-type") => self.content_type()?,
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value)?,
            // The coding is gone once the body is decoded.
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.codings.add(value)?;
                return Ok(Verdict::Drop);
            }
            _ if name.contains(&b'_') => {
                self.underscored = true;
                return Ok(Verdict::of(underscore::is_kept(name, policy, trusted)?));
            }
            _ if underscore::is_shadowed(name, policy, trusted) => {
                return Ok(Verdict::of(underscore::refused(policy)?));
            }
            _ => {}
        }
        Ok(Verdict::Keep)
    }

    /// RFC 9112 §3.2: 400 "to any request message that contains more than one Host header field line or a Host header
    /// field with an invalid field value". One that lacks it is served, as gunicorn does.
    fn host(&mut self, value: &[u8]) -> Result<(), Reject> {
        if std::mem::replace(&mut self.host, true) {
            return Err(Reject::DuplicateHost);
        }
        is_host(value).then_some(()).ok_or(Reject::Host)
    }

    /// RFC 9110 §5.3: a field that is no list must not be repeated.
    fn content_type(&mut self) -> Result<(), Reject> {
        if std::mem::replace(&mut self.content_type, true) {
            return Err(Reject::DuplicateContentType);
        }
        Ok(())
    }

    /// RFC 9112 §6.3: an invalid Content-Length is unrecoverable; several, even equal ones, are refused too.
    fn content_length(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.content_length.is_some() {
            return Err(Reject::DuplicateContentLength);
        }
        self.content_length = Some(decimal(value).ok_or(Reject::ContentLength)?);
        Ok(())
    }

    /// RFC 9110 §7.6.1: `Connection = #connection-option`, case-insensitive, over all its lines.
    fn connection(&mut self, value: &[u8]) {
        for option in list(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9110 §10.1.1: "A server that receives an Expect field value containing a member other than 100-continue MAY
    /// respond with a 417".
    fn expect(&mut self, value: &[u8]) -> Result<(), Reject> {
        for expectation in list(value).filter(|member| !member.is_empty()) {
            if !expectation.eq_ignore_ascii_case(b"100-continue") {
                return Err(Reject::UnknownExpectation);
            }
            self.expect_continue = true;
        }
        Ok(())
    }

    /// Decides framing from the whole head (RFC 9112 §6.3) and writes down what follows from the fields.
    pub fn finish(self, version: Version, fields: &mut Fields) -> Result<(), Reject> {
        fields.framing = self.framing(version)?;
        fields.close = self.close;
        fields.keep_alive = self.keep_alive;
        // RFC 9110 §10.1.1: a 100-continue in a request of HTTP/1.0, or without content, is ignored.
        let body = !matches!(fields.framing, Framing::Empty | Framing::Length(0));
        fields.expect_continue = self.expect_continue && body && version == Version::Http11;
        Ok(())
    }

    fn framing(&self, version: Version) -> Result<Framing, Reject> {
        self.is_possible(version)?;
        match self.codings.present {
            true => self.codings.framing(),
            false => Ok(self.content_length.map_or(Framing::Empty, Framing::Length)),
        }
    }

    /// Whether fields that follow can still make an acceptable head of it.
    pub fn is_possible(&self, version: Version) -> Result<(), Reject> {
        if !self.codings.present {
            return Ok(());
        }
        // §6.1: a Transfer-Encoding in HTTP/1.0 "MUST" be treated "as if the framing is faulty".
        if version == Version::Http10 {
            return Err(Reject::TransferEncodingInHttp10);
        }
        // §6.3: "Such a message might indicate an attempt to perform request smuggling ... and ought to be handled as
        // an error".
        if self.content_length.is_some() {
            return Err(Reject::TransferEncodingAndLength);
        }
        Ok(())
    }
}

/// RFC 9112 §6.1: the transfer codings of all lines, in order.
#[derive(Debug, Default)]
struct Codings {
    present: bool,
    chunked: bool,
    /// One that is registered (§7), but not implemented here.
    registered: bool,
    unknown: bool,
}

impl Codings {
    /// Only SP and HTAB are trimmed, and an empty member is no coding (RFC 9110 §5.6.1.2 would allow to skip it).
    fn add(&mut self, value: &[u8]) -> Result<(), Reject> {
        self.present = true;
        for coding in list(value) {
            // §6.1: chunked is applied once and last; parameters and quotes are no part of it (§7.1).
            if self.chunked || !octets::is_token(coding) {
                return Err(Reject::TransferEncoding);
            }
            let is = |name: &[u8]| coding.eq_ignore_ascii_case(name);
            if is(b"chunked") {
                self.chunked = true;
            } else if is(b"gzip") || is(b"deflate") || is(b"compress") || is(b"identity") {
                self.registered = true;
            } else {
                self.unknown = true;
            }
        }
        Ok(())
    }

    /// §6.1: "A server that receives a request message with a transfer coding it does not understand SHOULD respond with
    /// 501"; §6.3: if chunked is not the final coding, "the server MUST respond with the 400".
    fn framing(&self) -> Result<Framing, Reject> {
        match (self.unknown, self.chunked, self.registered) {
            (false, true, false) => Ok(Framing::Chunked),
            (false, false, _) => Err(Reject::TransferEncoding),
            _ => Err(Reject::UnknownTransferCoding),
        }
    }
}

/// RFC 9110 §5.6.1: `#element`, empty ones included.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&octet| octet == b',').map(octets::trim)
}

/// RFC 9110 §8.6: `Content-Length = 1*DIGIT`; more than an i64 holds is refused.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut sum: u64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        sum = sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    (sum <= i64::MAX as u64).then_some(sum)
}

/// The part of a path behind `mount`, or all of it when it is not below that: `/shop` is no mount point of `/shopping`.
pub fn path_below<'p>(path: &'p [u8], mount: &[u8]) -> &'p [u8] {
    match path.strip_prefix(mount) {
        Some(rest) if matches!(rest.first(), None | Some(b'/')) => rest,
        _ => path,
    }
}

/// RFC 3875 §4.1.5: PATH_INFO is the path, decoded once; bad escapes stay as they are and nothing is normalised.
/// Appends to `out`.
pub fn decode_path(path: &[u8], out: &mut Vec<u8>) {
    let mut from = 0;
    for mark in memchr_iter(b'%', path) {
        let Some(octet) = escape_at(path, mark) else {
            continue;
        };
        // A mark lies behind the escape before it, as no hex digit is a `%`.
        out.extend_from_slice(path.get(from..mark).unwrap_or_default());
        out.push(octet);
        from = mark + 3;
    }
    out.extend_from_slice(path.get(from..).unwrap_or_default());
}

fn escape_at(path: &[u8], mark: usize) -> Option<u8> {
    let digit = |at: usize| char::from(*path.get(at)?).to_digit(16);
    Some((digit(mark + 1)? * 16 + digit(mark + 2)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(path: &str) -> Vec<u8> {
        let mut out = b"kept:".to_vec();
        decode_path(path.as_bytes(), &mut out);
        out.strip_prefix(b"kept:").unwrap().to_vec()
    }

    #[test]
    fn path_is_decoded_once_and_never_normalised() {
        for (path, expected) in [
            ("", &b""[..]),
            ("/plain", b"/plain"),
            ("/a%20b", b"/a b"),
            ("%41%42%43", b"ABC"),
            ("/%C3%A9", b"/\xc3\xa9"),
            ("/%e9%FF", b"/\xe9\xff"),
            ("/%00", b"/\0"),
            ("/%2F%2f", b"///"),
            ("/%2541", b"/%41"),
            ("/%%41", b"/%A"),
            ("/%4%41", b"/%4A"),
            ("//a/../b/./", b"//a/../b/./"),
            ("/%zz%4", b"/%zz%4"),
            ("/%", b"/%"),
            ("/%+1", b"/%+1"),
            ("/a+b", b"/a+b"),
        ] {
            assert_eq!(decoded(path), expected, "{path}");
        }
    }

    #[test]
    fn path_below_ends_at_a_segment() {
        for (path, mount, rest) in [
            ("/shop/a", "/shop", "/a"),
            ("/shop", "/shop", ""),
            ("/shop/", "/shop", "/"),
            ("/shopping", "/shop", "/shopping"),
            ("/other", "/shop", "/other"),
            ("/a", "", "/a"),
            ("", "", ""),
            ("*", "/shop", "*"),
        ] {
            assert_eq!(path_below(path.as_bytes(), mount.as_bytes()), rest.as_bytes(), "{path} {mount}");
        }
    }

    #[test]
    fn decimal_is_digits_within_63_bits() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"0000000000000000000000012"), Some(12));
        assert_eq!(decimal(b"9223372036854775807"), Some(i64::MAX as u64));
        for bad in ["", "+1", " 1", "1 ", "9223372036854775808", "99999999999999999999"] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
