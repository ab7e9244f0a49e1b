//! Owns: the head of a response, and how its body is framed (RFC 9112 §6, PEP 3333 on hop-by-hop fields).
//! Rule: what the application says about its content goes out; what concerns the connection is the server's alone, so
//! Content-Length, Transfer-Encoding and Connection are written by `finish` and by nothing else.
//! Never: touches a body, remembers anything between two calls.

use super::rules::decimal;
use super::{octets, Version};

/// RFC 9110 §15.2.1, sent when the application first reads the body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// RFC 8297 §2: the status line of a 103.
pub const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\n";
/// RFC 9112 §7.1: `last-chunk`, and an empty trailer section.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What an application may not put into a head. The request then ends with a 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Status,
    InterimStatus,
    Name,
    Value,
    ContentLength,
}

impl Malformed {
    pub fn text(self) -> &'static str {
        match self {
            Malformed::Status => "Invalid response status: three digits, a space and a reason are expected",
            Malformed::InterimStatus => "Invalid response status: 1xx is no final answer",
            Malformed::Name => "Invalid response header name",
            Malformed::Value => "Invalid response header value",
            Malformed::ContentLength => "Invalid Content-Length in response",
        }
    }
}

/// Writes the status line and returns the code. The version is the server's own, also towards HTTP/1.0
/// (RFC 9110 §2.5: "A server ... SHOULD send a response version equal to the highest version to which the server is
/// conformant").
pub fn status_line(status: &[u8], out: &mut Vec<u8>) -> Result<u16, Malformed> {
    let (code, reason) = match status {
        [a, b, c] => ([*a, *b, *c], &b""[..]),
        [a, b, c, b' ', reason @ ..] => ([*a, *b, *c], reason),
        _ => return Err(Malformed::Status),
    };
    if !octets::all(&code, octets::DIGIT) || !octets::is_field_value(reason) {
        return Err(Malformed::Status);
    }
    let number = code.iter().fold(0, |sum, &digit| sum * 10 + u16::from(digit - b'0'));
    match number {
        0..=99 => return Err(Malformed::Status),
        100..=199 => return Err(Malformed::InterimStatus),
        _ => {}
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&code);
    // RFC 9112 §4: "A server MUST send the space that separates the status-code from the reason-phrase".
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
    Ok(number)
}

/// What became of one field of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Written.
    Plain,
    /// Not the application's to say; not written.
    Dropped,
    /// Not written: hand it to `delivery`. A second one is an error of the application.
    ContentLength(u64),
}

/// Writes one field of the application, octets in latin-1. The hot path of the response.
#[inline]
pub fn field(name: &[u8], value: &[u8], out: &mut Vec<u8>) -> Result<FieldKind, Malformed> {
    if !octets::is_token(name) {
        return Err(Malformed::Name);
    }
    if !octets::is_field_value(value) {
        return Err(Malformed::Value);
    }
    if is_of_the_connection(name) {
        return Ok(FieldKind::Dropped);
    }
    if name.len() == 14 && name.eq_ignore_ascii_case(b"content-length") {
        let length = decimal(octets::trim(value)).ok_or(Malformed::ContentLength)?;
        return Ok(FieldKind::ContentLength(length));
    }
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    Ok(FieldKind::Plain)
}

/// The fields that gunicorn keeps from the client: PEP 3333's hop-by-hop ones (RFC 2616 §13.5.1), and two that the
/// server writes itself. Most names are let through by their length.
#[inline]
fn is_of_the_connection(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 => is(b"te"),
        4 => is(b"date"),
        6 => is(b"server"),
        7 => is(b"upgrade"),
        8 => is(b"trailers"),
        10 => is(b"connection") || is(b"keep-alive"),
        17 => is(b"transfer-encoding"),
        18 => is(b"proxy-authenticate"),
        19 => is(b"proxy-authorization"),
        _ => false,
    }
}

/// How the client finds the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No octet of a body goes out; a length may still be told.
    NoBody(Option<u64>),
    Length(u64),
    Chunked,
    UntilClose,
}

impl Delivery {
    /// Whether another response may follow on the connection.
    pub fn is_framed(self) -> bool {
        self != Delivery::UntilClose
    }
}

/// RFC 9112 §6.3 from the sender's side. `content_length` is what the application said, `known_body` the length of a body
/// that is there as a whole.
pub fn delivery(
    version: Version,
    head_request: bool,
    status: u16,
    content_length: Option<u64>,
    known_body: Option<u64>,
) -> Delivery {
    match (status, content_length.or(known_body), version) {
        // RFC 9110 §8.6: "MUST NOT send a Content-Length header field in any response with a status code of 1xx or 204".
        (..=199 | 204, _, _) => Delivery::NoBody(None),
        // §8.6: in these it is the length that a GET would have had; only the application knows that.
        (304, _, _) => Delivery::NoBody(content_length),
        _ if head_request => Delivery::NoBody(content_length),
        (_, Some(length), _) => Delivery::Length(length),
        (_, None, Version::Http11) => Delivery::Chunked,
        // RFC 9112 §6.1: no Transfer-Encoding unless the request "indicates HTTP/1.1 (or later minor revisions)".
        (_, None, Version::Http10) => Delivery::UntilClose,
    }
}

/// Ends the head. A response that is not framed is never persistent.
pub fn finish(delivery: Delivery, persistent: bool, version: Version, out: &mut Vec<u8>) {
    match delivery {
        Delivery::Length(length) | Delivery::NoBody(Some(length)) => {
            out.extend_from_slice(b"Content-Length: ");
            write_decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Delivery::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Delivery::NoBody(None) | Delivery::UntilClose => {}
    }
    // RFC 9112 §9.3: 1.1 persists unless told otherwise, 1.0 only if told so.
    out.extend_from_slice(match (persistent && delivery.is_framed(), version) {
        (true, Version::Http11) => b"\r\n",
        (true, Version::Http10) => b"Connection: keep-alive\r\n\r\n",
        (false, _) => b"Connection: close\r\n\r\n",
    });
}

/// Writes what precedes the octets of a chunk; `length` is not 0, as that would end the body.
pub fn chunk_size(length: usize, out: &mut Vec<u8>) {
    debug_assert!(length > 0);
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4);
    for place in (0..digits).rev() {
        let digit = (length >> (place * 4)) as u8 & 15;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
    out.extend_from_slice(b"\r\n");
}

fn write_decimal(mut number: u64, out: &mut Vec<u8>) {
    // A u64 has at most twenty digits.
    let mut digits = [b'0'; 20];
    let mut first = digits.len();
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        first -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(status: &str) -> Result<(u16, String), Malformed> {
        let mut out = Vec::new();
        let code = status_line(status.as_bytes(), &mut out)?;
        Ok((code, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn status_is_three_digits_and_a_reason() {
        for (status, code, line) in [
            ("200 OK", 200, "HTTP/1.1 200 OK\r\n"),
            ("200", 200, "HTTP/1.1 200 \r\n"),
            ("200 ", 200, "HTTP/1.1 200 \r\n"),
            ("999 A\tb é", 999, "HTTP/1.1 999 A\tb é\r\n"),
            ("600 x", 600, "HTTP/1.1 600 x\r\n"),
        ] {
            assert_eq!(written(status), Ok((code, line.to_string())));
        }
        for status in [
            "",
            "OK",
            "20 OK",
            "2000 OK",
            "200OK",
            "20x OK",
            " 200 OK",
            "+20 OK",
            "099 x",
            "000",
            "200 a\rb",
            "200 a\nb",
            "200 \0",
            "200 \u{7f}",
            "200\tOK",
            "²00 OK",
        ] {
            assert_eq!(written(status), Err(Malformed::Status), "{status:?}");
        }
        assert_eq!(written("100 Continue"), Err(Malformed::InterimStatus));
        assert_eq!(written("101 Switching Protocols"), Err(Malformed::InterimStatus));
        assert_eq!(written("199"), Err(Malformed::InterimStatus));
    }

    #[test]
    fn nothing_is_written_of_what_is_malformed() {
        let mut out = Vec::new();
        assert!(status_line(b"200 \n", &mut out).is_err());
        assert!(field(b"A b", b"c", &mut out).is_err());
        assert!(field(b"A", b"c\n", &mut out).is_err());
        assert!(out.is_empty());
    }

    fn kind(name: &str, value: &str) -> Result<(FieldKind, String), Malformed> {
        let mut out = Vec::new();
        let kind = field(name.as_bytes(), value.as_bytes(), &mut out)?;
        Ok((kind, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn fields_are_written_as_given() {
        for (name, value) in
            [("X-A", "b"), ("set-cookie", "a=b; c"), ("Trailer", "x"), ("Empty", ""), ("T", "\té")]
        {
            let line = format!("{name}: {value}\r\n");
            assert_eq!(kind(name, value), Ok((FieldKind::Plain, line)));
        }
    }

    #[test]
    fn field_names_are_tokens_and_values_have_no_controls() {
        for name in ["", "A:", "A b", " A", "A\r\n", "A\0", "é", "A\n"] {
            assert_eq!(kind(name, "v"), Err(Malformed::Name), "{name:?}");
        }
        for value in ["a\r\nb", "a\nb", "a\rb", "\0", "\u{7f}", "\u{b}"] {
            assert_eq!(kind("A", value), Err(Malformed::Value), "{value:?}");
            assert_eq!(kind("Connection", value), Err(Malformed::Value), "{value:?}");
        }
    }

    #[test]
    fn fields_of_the_connection_are_dropped() {
        for name in [
            "Connection",
            "KEEP-ALIVE",
            "Proxy-Authenticate",
            "Proxy-Authorization",
            "te",
            "Trailers",
            "Transfer-Encoding",
            "Upgrade",
            "server",
            "Date",
        ] {
            assert_eq!(kind(name, "x"), Ok((FieldKind::Dropped, String::new())), "{name}");
        }
    }

    #[test]
    fn content_length_is_digits_and_left_to_finish() {
        let length = kind("content-Length", " 12 ");
        assert_eq!(length, Ok((FieldKind::ContentLength(12), String::new())));
        for value in ["", "-1", "+1", "1, 1", "a", "9223372036854775808", "1 1"] {
            assert_eq!(kind("Content-Length", value), Err(Malformed::ContentLength), "{value:?}");
        }
    }

    #[test]
    fn delivery_follows_rfc_9112_6_3() {
        use Delivery::*;
        let (old, new) = (Version::Http10, Version::Http11);
        for (version, head, status, said, known, expected) in [
            (new, false, 200, Some(5), None, Length(5)),
            (new, false, 200, Some(5), Some(6), Length(5)),
            (new, false, 200, None, Some(6), Length(6)),
            (new, false, 200, None, Some(0), Length(0)),
            (new, false, 200, None, None, Chunked),
            (old, false, 200, None, None, UntilClose),
            (old, false, 200, None, Some(6), Length(6)),
            (old, false, 404, Some(5), None, Length(5)),
            (new, true, 200, Some(5), None, NoBody(Some(5))),
            (new, true, 200, None, Some(0), NoBody(None)),
            (new, true, 200, None, None, NoBody(None)),
            (old, true, 200, None, None, NoBody(None)),
            (new, false, 204, Some(5), Some(5), NoBody(None)),
            (new, true, 204, Some(5), None, NoBody(None)),
            (new, false, 304, Some(5), None, NoBody(Some(5))),
            (new, false, 304, None, Some(5), NoBody(None)),
            (new, true, 304, Some(5), None, NoBody(Some(5))),
            (new, false, 205, None, Some(0), Length(0)),
        ] {
            let answer = delivery(version, head, status, said, known);
            assert_eq!(answer, expected, "{version:?} {head} {status} {said:?} {known:?}");
        }
    }

    #[test]
    fn finish_tells_framing_and_persistence() {
        use Delivery::*;
        let (old, new) = (Version::Http10, Version::Http11);
        for (delivery, version, persistent, expected) in [
            (Length(120), new, true, "Content-Length: 120\r\n\r\n"),
            (Length(0), new, false, "Content-Length: 0\r\nConnection: close\r\n\r\n"),
            (Length(7), old, true, "Content-Length: 7\r\nConnection: keep-alive\r\n\r\n"),
            (Length(7), old, false, "Content-Length: 7\r\nConnection: close\r\n\r\n"),
            (Chunked, new, true, "Transfer-Encoding: chunked\r\n\r\n"),
            (UntilClose, old, true, "Connection: close\r\n\r\n"),
            (UntilClose, new, true, "Connection: close\r\n\r\n"),
            (NoBody(None), new, true, "\r\n"),
            (NoBody(None), old, true, "Connection: keep-alive\r\n\r\n"),
            (NoBody(Some(u64::MAX)), new, true, "Content-Length: 18446744073709551615\r\n\r\n"),
        ] {
            let mut out = Vec::new();
            finish(delivery, persistent, version, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn chunks_begin_with_their_size_in_hex() {
        for length in [1, 9, 10, 15, 16, 255, 256, 4096, 0xabcdef, usize::MAX] {
            let mut out = Vec::new();
            chunk_size(length, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{length:x}\r\n"));
        }
    }
}
