//! Owns: judging a request head while it arrives.
//! Rule: a head is refused for the first byte that no acceptable head has there, and each byte is judged once, however the
//! bytes were cut.
//! Never: makes the parts of a head; that is `parse`, once the head is whole.

use super::lenient::{self, Leniency};
use super::rules::{self, Verdict, Walk};
use super::{octets, Policy, Reject, Version};

/// How far a head has been judged. Made for heads that do not arrive in one piece.
#[derive(Debug, Default)]
pub struct Scan {
    /// Bytes judged.
    at: usize,
    place: Place,
    /// Where the line begins; a field goes on over the lines that are folded into it.
    line: usize,
    /// Where the part of the line begins that is being read: the target, the version, the value.
    part: usize,
    /// Where the name of the field ends.
    name_end: usize,
    fields: usize,
    /// The field has been walked over: only its first line counts.
    walked: bool,
    version: Version,
    walk: Walk,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Start,
    /// A CR in front of the request line.
    EmptyLine,
    AfterEmptyLine,
    Method,
    Target,
    Version,
    /// The CR of the request line.
    RequestLineEnd,
    Field,
    Name,
    /// White space before the colon, where that is put up with.
    NameSpaces,
    Value,
    ValueEnd,
    /// Behind a line of a field that may be folded.
    Fold,
    /// The CR of the empty line.
    HeadEnd,
}

/// What a judge of one byte needs to know beside the state.
struct Judge<'b> {
    /// All bytes of the head that have arrived.
    bytes: &'b [u8],
    policy: &'b Policy,
    trusted: bool,
}

impl Scan {
    /// Judges what is new in `bytes`, which begin where they did before. Returns the length of the head once it is whole.
    pub fn judge(&mut self, bytes: &[u8], policy: &Policy, trusted: bool) -> Result<Option<usize>, Reject> {
        let judge = Judge { bytes, policy, trusted };
        while let Some(&byte) = bytes.get(self.at) {
            let next = self.step(byte, &judge)?;
            self.at += 1;
            match next {
                Some(place) => self.place = place,
                None => return Ok(Some(self.at)),
            }
        }
        Ok(None)
    }

    /// The place of the byte behind this one; None behind the last byte of the head.
    #[inline]
    fn step(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Option<Place>, Reject> {
        let place = match self.place {
            // RFC 9112 §2.2: "SHOULD ignore at least one empty line (CRLF) received prior to the request-line".
            Place::Start if byte == b'\r' => Place::EmptyLine,
            Place::EmptyLine if byte == b'\n' => Place::AfterEmptyLine,
            Place::Start | Place::AfterEmptyLine if !matches!(byte, b'\r' | b'\n') => {
                self.line = self.at;
                self.method(byte, judge)?
            }
            Place::Start | Place::EmptyLine | Place::AfterEmptyLine => return Err(Reject::RequestLine),
            Place::Method => self.method(byte, judge)?,
            Place::Target => self.target(byte, judge)?,
            Place::Version => self.version(byte, judge)?,
            Place::RequestLineEnd => after_cr(byte, Place::Field, Reject::RequestLine)?,
            Place::Field => self.field(byte, judge)?,
            Place::Name => self.name(byte, judge)?,
            Place::NameSpaces => self.name_spaces(byte, judge)?,
            Place::Value => self.value(byte, judge)?,
            Place::ValueEnd => {
                let behind = if self.may_fold(judge) { Place::Fold } else { Place::Field };
                let place = after_cr(byte, behind, Reject::FieldValue)?;
                self.complete_field(judge)?;
                place
            }
            Place::Fold if matches!(byte, b' ' | b'\t') => {
                self.within_field_size(judge)?;
                Place::Value
            }
            Place::Fold => self.field(byte, judge)?,
            Place::HeadEnd if byte == b'\n' => return Ok(None),
            Place::HeadEnd => return Err(Reject::FieldName),
        };
        Ok(Some(place))
    }

    // --- the request line ---

    fn method(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        let Some(place) = self.request_line_goes_on(byte, judge)? else {
            return Ok(Place::RequestLineEnd);
        };
        let length = self.at - self.line;
        let casefold = judge.policy.leniency.casefold;
        if byte != b' ' {
            let byte = if casefold { byte.to_ascii_uppercase() } else { byte };
            return rules::method_byte(byte, length, judge.policy.methods).map(|()| Place::Method);
        }
        self.part = self.at + 1;
        rules::method_length(length, judge.policy.methods).map(|()| place)
    }

    fn target(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        if self.request_line_goes_on(byte, judge)?.is_none() {
            return Ok(Place::RequestLineEnd);
        }
        match byte {
            b' ' if self.at == self.part => Err(Reject::RequestLine),
            b' ' => {
                self.part = self.at + 1;
                Ok(Place::Version)
            }
            _ if octets::is_target(&[byte]) => Ok(Place::Target),
            _ => Err(Reject::Target),
        }
    }

    fn version(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        if self.request_line_goes_on(byte, judge)?.is_none() {
            return Ok(Place::RequestLineEnd);
        }
        let place = self.at - self.part;
        match judge.policy.leniency.versions {
            true => lenient::version_byte(place, byte)?,
            false => rules::version_byte(place, byte)?,
        }
        Ok(Place::Version)
    }

    /// None: the line is whole, and a good one, but for its LF. What the place is behind a space, otherwise.
    fn request_line_goes_on(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Option<Place>, Reject> {
        if !matches!(byte, b'\r' | b'\n') {
            let full = self.at - self.line >= judge.policy.limits.request_line;
            return if full { Err(Reject::UriTooLong) } else { Ok(Some(Place::Target)) };
        }
        let line = judge.bytes.get(self.line..self.at).unwrap_or_default();
        let start = match judge.policy.leniency {
            Leniency { casefold: false, versions: false, .. } => {
                rules::start_line(line, 0, judge.policy.methods)?
            }
            leniency => {
                let mut line = line.to_vec();
                leniency.rewrite_request_line(&mut line);
                rules::start_line(&line, 0, judge.policy.methods)?
            }
        };
        if byte == b'\n' {
            return Err(Reject::BareLineFeed);
        }
        self.version = start.version;
        Ok(None)
    }

    // --- fields ---

    /// The first byte of a field line, or of the empty one.
    fn field(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        match byte {
            b'\r' => return Ok(Place::HeadEnd),
            b'\n' => return Err(Reject::BareLineFeed),
            _ if self.fields == judge.policy.limits.fields => return Err(Reject::TooManyFields),
            _ => self.fields += 1,
        }
        (self.line, self.walked) = (self.at, false);
        match byte {
            // RFC 9112 §5.2: "A server that receives an obs-fold in a request message ... MUST either reject the message".
            b' ' | b'\t' => self.within_field_size(judge).and(Err(Reject::ObsoleteFolding)),
            b':' => self.within_field_size(judge).and(Err(Reject::FieldName)),
            _ => self.name(byte, judge),
        }
    }

    fn name(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        if !matches!(byte, b'\r' | b'\n') {
            self.within_field_size(judge)?;
        }
        match byte {
            _ if octets::is(byte, octets::TOKEN) => return Ok(Place::Name),
            b':' => {}
            b' ' | b'\t' if judge.policy.leniency.name_spaces && self.is_open(self.at, judge) => {}
            // §5.1: "No whitespace is allowed between the field name and colon".
            _ => return Err(Reject::FieldName),
        }
        self.name_end = self.at;
        self.part = self.at + 1;
        Ok(if byte == b':' { Place::Value } else { Place::NameSpaces })
    }

    fn name_spaces(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        if !matches!(byte, b'\r' | b'\n') {
            self.within_field_size(judge)?;
        }
        let spaces = self.at - self.name_end;
        match byte {
            b':' => {
                self.part = self.at + 1;
                Ok(Place::Value)
            }
            b' ' | b'\t' if spaces < lenient::MOST_SPACES => Ok(Place::NameSpaces),
            _ => Err(Reject::FieldName),
        }
    }

    fn value(&mut self, byte: u8, judge: &Judge<'_>) -> Result<Place, Reject> {
        match byte {
            b'\r' => return Ok(Place::ValueEnd),
            b'\n' => return Err(Reject::BareLineFeed),
            _ => self.within_field_size(judge)?,
        }
        match octets::is_text(byte) {
            true => Ok(Place::Value),
            false => Err(Reject::FieldValue),
        }
    }

    /// gunicorn counts the line end too.
    fn within_field_size(&self, judge: &Judge<'_>) -> Result<(), Reject> {
        let most = judge.policy.limits.field_size.saturating_sub(2);
        match self.at - self.line < most {
            true => Ok(()),
            false => Err(Reject::FieldTooLarge),
        }
    }

    fn field_name<'b>(&self, end: usize, judge: &Judge<'b>) -> &'b [u8] {
        judge.bytes.get(self.line..end).unwrap_or_default()
    }

    /// Whether leniency may touch the field, the name of which ends there.
    fn is_open(&self, end: usize, judge: &Judge<'_>) -> bool {
        !lenient::is_of_the_message(self.field_name(end, judge))
    }

    fn may_fold(&self, judge: &Judge<'_>) -> bool {
        judge.policy.leniency.folding && self.is_open(self.name_end, judge)
    }

    /// Of a field that may be folded, its name is all that means something to `Walk`.
    fn complete_field(&mut self, judge: &Judge<'_>) -> Result<(), Reject> {
        if std::mem::replace(&mut self.walked, true) {
            return Ok(());
        }
        let name = self.field_name(self.name_end, judge);
        let value = octets::trim(judge.bytes.get(self.part..self.at - 1).unwrap_or_default());
        let _: Verdict = self.walk.field(name, value, judge.policy, judge.trusted)?;
        self.walk.is_possible(self.version)
    }
}

/// RFC 9112 §2.2: a bare CR is "invalid"; `stray` says what it makes invalid here.
fn after_cr(byte: u8, behind: Place, stray: Reject) -> Result<Place, Reject> {
    match byte {
        b'\n' => Ok(behind),
        _ => Err(stray),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Forwarders, HeaderMap, Limits, Methods};
    use super::*;

    fn policy() -> Policy {
        Policy {
            limits: Limits { request_line: 8190, fields: 1000, field_size: 65536, head: 65536 },
            header_map: HeaderMap::Drop,
            forwarders: Forwarders::default(),
            methods: Methods::Conventional,
            leniency: Leniency::default(),
        }
    }

    #[test]
    fn a_byte_is_judged_once_however_few_come_at_a_time() {
        let fields = ["A: b\r\n".repeat(500), format!("Long: {}\r\n", "v".repeat(60_000))].concat();
        let bytes = format!("GET /{} HTTP/1.1\r\n{fields}\r\n", "p".repeat(1000)).into_bytes();
        let mut scan = Scan::default();
        for end in 1..bytes.len() {
            assert_eq!(scan.judge(&bytes[..end], &policy(), false), Ok(None));
            // The next one begins here.
            assert_eq!(scan.at, end);
        }
        assert_eq!(scan.judge(&bytes, &policy(), false), Ok(Some(bytes.len())));
    }

    #[test]
    fn a_meaning_that_nothing_can_mend_is_refused_with_its_line() {
        for (version, fields, reject) in [
            ("1.1", "Host: a b\r\n", Reject::Host),
            ("1.1", "Host: a\r\nHost: a\r\n", Reject::DuplicateHost),
            ("1.1", "Content-Length: x\r\n", Reject::ContentLength),
            ("1.1", "Content-Length: 5\r\nContent-Length: 5\r\n", Reject::DuplicateContentLength),
            ("1.1", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Reject::TransferEncodingAndLength),
            ("1.1", "Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", Reject::TransferEncodingAndLength),
            ("1.1", "Transfer-Encoding: chunked, a\r\n", Reject::TransferEncoding),
            ("1.0", "Transfer-Encoding: chunked\r\n", Reject::TransferEncodingInHttp10),
            ("1.1", "Expect: x\r\n", Reject::UnknownExpectation),
        ] {
            let bytes = format!("GET / HTTP/{version}\r\nA: b\r\n{fields}");
            let judge = |end: usize| Scan::default().judge(&bytes.as_bytes()[..end], &policy(), false);
            assert_eq!(judge(bytes.len() - 1), Ok(None), "{fields:?}");
            assert_eq!(judge(bytes.len()), Err(reject), "{fields:?}");
        }
    }
}
