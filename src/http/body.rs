//! Owns: where a request body ends and which octets of the input are content (RFC 9112 §6.3, §7.1).
//! Rule: an octet is judged by what came before it alone, so every segmentation gives the same content, the same end and
//! the same refusal; after a refusal there is nothing but that refusal.
//! Never: copies content, waits, decides what becomes of a body that is cut short.

use super::{octets, Framing, Limits, Reject};
use std::ops::Range;

/// RFC 9112 §7.1.1: "A server ought to limit the total length of chunk extensions received in a request".
const EXTENSION_LINE: u32 = 4 * 1024;
const EXTENSION_SUM: u32 = 16 * 1024;
/// Leading zeros count.
const SIZE_DIGITS: u8 = 16;

/// What one step took from the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Octets that need not be shown again; a run of content ends here.
    pub consumed: usize,
    /// The next run of content, in the input. If it is empty, the input is used up or the body is over.
    pub data: Range<usize>,
}

#[derive(Clone, Debug)]
pub enum Decoder {
    Empty,
    Length { remaining: u64 },
    Chunked(Chunked),
}

impl Decoder {
    pub fn new(framing: Framing, limits: &Limits) -> Decoder {
        match framing {
            Framing::Empty => Decoder::Empty,
            Framing::Length(remaining) => Decoder::Length { remaining },
            Framing::Chunked => Decoder::Chunked(Chunked::new(limits)),
        }
    }

    /// Call again with what is behind `consumed` until the input is used up or the body is over.
    #[inline]
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, Reject> {
        match self {
            Decoder::Empty => Ok(run(0, 0)),
            Decoder::Length { remaining } => Ok(run(0, take(remaining, input.len()))),
            Decoder::Chunked(chunked) => chunked.decode(input),
        }
    }

    /// Whether the body is complete. The input ending before that is an incomplete body (RFC 9112 §8).
    pub fn is_done(&self) -> bool {
        match self {
            Decoder::Empty => true,
            Decoder::Length { remaining } => *remaining == 0,
            Decoder::Chunked(chunked) => chunked.state == State::Done,
        }
    }
}

fn run(from: usize, length: usize) -> Decoded {
    let end = from + length;
    Decoded { consumed: end, data: from..end }
}

/// Takes at most `available` from `remaining`.
fn take(remaining: &mut u64, available: usize) -> usize {
    // What does not fit a usize is more than is available.
    let taken = usize::try_from(*remaining).map_or(available, |rest| rest.min(available));
    *remaining -= taken as u64;
    taken
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension(Extension),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    Trailer(Trailer),
    Done,
    Failed(Reject),
}

/// RFC 9112 §7.1: `chunked-body = *chunk last-chunk trailer-section CRLF`.
#[derive(Clone, Debug)]
pub struct Chunked {
    state: State,
    /// Of the current chunk: its size, and what is left of it while in `Data`.
    size: u64,
    digits: u8,
    /// All sizes so far.
    total: u64,
    extension_line: u32,
    extension_sum: u32,
    trailers: Trailers,
}

impl Chunked {
    fn new(limits: &Limits) -> Chunked {
        Chunked {
            state: State::Size,
            size: 0,
            digits: 0,
            total: 0,
            extension_line: 0,
            extension_sum: 0,
            trailers: Trailers::new(limits),
        }
    }

    fn decode(&mut self, input: &[u8]) -> Result<Decoded, Reject> {
        if let State::Failed(reject) = self.state {
            return Err(reject);
        }
        let mut at = 0;
        while let Some(&octet) = input.get(at) {
            match self.state {
                State::Done => break,
                State::Data => return Ok(self.data(at, input.len() - at)),
                _ => self.step(octet)?,
            }
            at += 1;
        }
        Ok(run(at, 0))
    }

    fn data(&mut self, at: usize, available: usize) -> Decoded {
        let taken = take(&mut self.size, available);
        if self.size == 0 {
            self.state = State::DataCr;
        }
        run(at, taken)
    }

    fn step(&mut self, octet: u8) -> Result<(), Reject> {
        let next = self.after(octet);
        self.state = next.unwrap_or_else(State::Failed);
        next.map(drop)
    }

    /// The state behind a framing octet.
    fn after(&mut self, octet: u8) -> Result<State, Reject> {
        match self.state {
            State::Size => self.size(octet),
            State::Extension(place) => self.extension(place, octet),
            State::SizeLf if octet != b'\n' => Err(Reject::ChunkSize),
            State::SizeLf if self.size > 0 => Ok(State::Data),
            // §7.1: `last-chunk = 1*("0") [ chunk-ext ] CRLF`.
            State::SizeLf => Ok(State::Trailer(Trailer::Start)),
            State::DataCr if octet == b'\r' => Ok(State::DataLf),
            State::DataLf if octet == b'\n' => Ok(self.next_chunk()),
            State::DataCr | State::DataLf => Err(Reject::ChunkEnd),
            State::Trailer(place) => self.trailers.after(place, octet),
            // `decode` comes here in none of these; they stay what they are.
            State::Data | State::Done => Ok(self.state),
            State::Failed(reject) => Err(reject),
        }
    }

    fn next_chunk(&mut self) -> State {
        self.digits = 0;
        self.extension_line = 0;
        State::Size
    }

    /// §7.1: `chunk-size = 1*HEXDIG`; "recipients MUST anticipate potentially large hexadecimal numerals and prevent
    /// parsing errors due to integer conversion overflows".
    fn size(&mut self, octet: u8) -> Result<State, Reject> {
        if let Some(digit) = char::from(octet).to_digit(16) {
            if self.digits == SIZE_DIGITS {
                return Err(Reject::ChunkSize);
            }
            self.digits += 1;
            // Sixteen digits fit; the data before has left 0.
            self.size = self.size << 4 | u64::from(digit);
            return Ok(State::Size);
        }
        if self.digits == 0 || !matches!(octet, b'\r' | b';' | b' ' | b'\t') {
            return Err(Reject::ChunkSize);
        }
        self.count_size()?;
        if octet == b'\r' {
            return Ok(State::SizeLf);
        }
        self.extension(Extension::Between, octet)
    }

    fn count_size(&mut self) -> Result<(), Reject> {
        let total = self.total.checked_add(self.size);
        self.total = total.filter(|&total| total <= i64::MAX as u64).ok_or(Reject::ChunkSize)?;
        Ok(())
    }

    fn extension(&mut self, place: Extension, octet: u8) -> Result<State, Reject> {
        self.extension_line += 1;
        self.extension_sum += 1;
        if self.extension_line > EXTENSION_LINE || self.extension_sum > EXTENSION_SUM {
            return Err(Reject::ChunkExtensionsTooLarge);
        }
        place.after(octet).ok_or(Reject::ChunkExtension)
    }
}

/// RFC 9112 §7.1.1: `chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )`, where the value is a
/// token or a quoted-string. They are ignored, but a line that does not fit may be read otherwise by another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// A `;` must follow.
    Between,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    Escaped,
    /// Behind a quoted string, where the line may end.
    Unquoted,
}

impl Extension {
    fn after(self, octet: u8) -> Option<State> {
        use Extension::*;
        let token = octets::is(octet, octets::TOKEN);
        let next = match (self, octet) {
            (Name | Token | Unquoted, b'\r') => return Some(State::SizeLf),
            (Between | Name | AfterName | Token | Unquoted, b';') => BeforeName,
            (Between | Token | Unquoted, b' ' | b'\t') => Between,
            (Name | AfterName, b' ' | b'\t') => AfterName,
            (BeforeName | BeforeValue, b' ' | b'\t') => self,
            (Name | AfterName, b'=') => BeforeValue,
            (BeforeName | Name, _) if token => Name,
            (BeforeValue | Token, _) if token => Token,
            (BeforeValue, b'"') => Quoted,
            // RFC 9110 §5.6.4: quoted-string.
            (Quoted, b'"') => Unquoted,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if octets::is_text(octet) => Quoted,
            _ => return None,
        };
        Some(State::Extension(next))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trailer {
    Start,
    Name,
    Value,
    LineLf,
    EndLf,
}

/// The longest of the forbidden names.
const NAME_OCTETS: usize = 17;

/// RFC 9112 §7.1.2: trailer fields are read under the limits of the head and dropped; never are they merged into it.
#[derive(Clone, Debug)]
struct Trailers {
    name: [u8; NAME_OCTETS],
    line: usize,
    section_left: usize,
    fields_left: usize,
    field_size: usize,
}

impl Trailers {
    fn new(limits: &Limits) -> Trailers {
        Trailers {
            name: [0; NAME_OCTETS],
            line: 0,
            section_left: limits.head,
            fields_left: limits.fields,
            field_size: limits.field_size,
        }
    }

    fn after(&mut self, place: Trailer, octet: u8) -> Result<State, Reject> {
        self.count()?;
        let next = match (place, octet) {
            (Trailer::Start, b'\r') => Trailer::EndLf,
            (Trailer::EndLf, b'\n') => return Ok(State::Done),
            (Trailer::LineLf, b'\n') => Trailer::Start,
            (Trailer::Start, _) => self.begin(octet)?,
            (Trailer::Name, b':') => self.name_is_allowed()?,
            (Trailer::Name, _) => self.name(octet)?,
            (Trailer::Value, b'\r') => Trailer::LineLf,
            (Trailer::Value, _) if octets::is_text(octet) => self.grow(Trailer::Value)?,
            _ => return Err(Reject::Trailer),
        };
        Ok(State::Trailer(next))
    }

    fn count(&mut self) -> Result<(), Reject> {
        self.section_left = self.section_left.checked_sub(1).ok_or(Reject::TrailersTooLarge)?;
        Ok(())
    }

    fn begin(&mut self, octet: u8) -> Result<Trailer, Reject> {
        self.fields_left = self.fields_left.checked_sub(1).ok_or(Reject::TrailersTooLarge)?;
        self.line = 0;
        self.name = [0; NAME_OCTETS];
        self.name(octet)
    }

    fn name(&mut self, octet: u8) -> Result<Trailer, Reject> {
        if !octets::is(octet, octets::TOKEN) {
            return Err(Reject::Trailer);
        }
        if let Some(place) = self.name.get_mut(self.line) {
            *place = octet.to_ascii_lowercase();
        }
        self.grow(Trailer::Name)
    }

    fn grow(&mut self, place: Trailer) -> Result<Trailer, Reject> {
        self.line += 1;
        // The line end counts too, as in the head.
        if self.line + 2 > self.field_size {
            return Err(Reject::TrailersTooLarge);
        }
        Ok(place)
    }

    /// RFC 9110 §6.5.1: no trailer may describe "message framing, routing, authentication"; gunicorn's list.
    fn name_is_allowed(&mut self) -> Result<Trailer, Reject> {
        match self.name.get(..self.line) {
            Some(
                b"host" | b"content-length" | b"transfer-encoding" | b"trailer" | b"authorization" | b"te",
            ) => Err(Reject::ForbiddenTrailer),
            _ => self.grow(Trailer::Value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { request_line: 4094, fields: 4, field_size: 60, head: 200 };

    /// Content, octets consumed, and whether the body is over.
    type Outcome = Result<(Vec<u8>, usize, bool), Reject>;

    /// Shows the input in pieces; what is behind the end of the body is shown too.
    fn fed(framing: Framing, input: &[u8], mut piece: impl FnMut() -> usize) -> Outcome {
        let mut decoder = Decoder::new(framing, &LIMITS);
        let (mut content, mut at) = (Vec::new(), 0);
        while at < input.len() && !decoder.is_done() {
            let shown = &input[at..input.len().min(at + piece().max(1))];
            let step = match decoder.decode(shown) {
                Ok(step) => step,
                Err(reject) => {
                    assert_eq!(decoder.decode(b"x"), Err(reject), "a refusal is final");
                    assert!(!decoder.is_done());
                    return Err(reject);
                }
            };
            assert!(step.consumed > 0 && step.data.end <= step.consumed);
            content.extend_from_slice(&shown[step.data]);
            at += step.consumed;
        }
        Ok((content, at, decoder.is_done()))
    }

    fn outcome_of(framing: Framing, input: &[u8]) -> Outcome {
        let whole = fed(framing, input, || usize::MAX / 2);
        let shown = String::from_utf8_lossy(&input[..input.len().min(100)]).into_owned();
        assert_eq!(whole, fed(framing, input, || 1), "{shown:?}");
        let mut state = input.len() as u64 + 7;
        for _ in 0..4 {
            let random = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 33) as usize % 9
            };
            assert_eq!(whole, fed(framing, input, random), "{shown:?}");
        }
        whole
    }

    fn chunked(input: impl AsRef<[u8]>) -> Outcome {
        outcome_of(Framing::Chunked, input.as_ref())
    }

    fn content(input: impl AsRef<[u8]>) -> Vec<u8> {
        let (content, consumed, done) = chunked(&input).unwrap();
        assert!(done, "{:?}", String::from_utf8_lossy(input.as_ref()));
        assert_eq!(consumed, input.as_ref().len());
        content
    }

    #[test]
    fn no_framing_is_no_body() {
        assert_eq!(outcome_of(Framing::Empty, b"GET /"), Ok((vec![], 0, true)));
        assert_eq!(outcome_of(Framing::Length(0), b"GET /"), Ok((vec![], 0, true)));
    }

    #[test]
    fn length_is_that_many_octets() {
        let exact = outcome_of(Framing::Length(5), b"helloGET");
        assert_eq!(exact, Ok((b"hello".to_vec(), 5, true)));
        let cut = outcome_of(Framing::Length(6), b"hello");
        assert_eq!(cut, Ok((b"hello".to_vec(), 5, false)));
        let huge = outcome_of(Framing::Length(i64::MAX as u64), b"hello");
        assert_eq!(huge, Ok((b"hello".to_vec(), 5, false)));
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(content("0\r\n\r\n"), b"");
        assert_eq!(content("5\r\nhello\r\n0\r\n\r\n"), b"hello");
        assert_eq!(
            content("5\r\nhello\r\n1\r\n,\r\n00c\r\n brave world\r\n000\r\n\r\n"),
            b"hello, brave world"
        );
        assert_eq!(content("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n").len(), 20);
        assert_eq!(content("2\r\n\r\n\r\n0\r\n\r\n"), b"\r\n");
        assert_eq!(content("0000000000000001\r\nx\r\n0\r\n\r\n"), b"x");
    }

    #[test]
    fn what_follows_the_body_is_left_alone() {
        let (content, consumed, done) = chunked("1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!((content.as_slice(), consumed, done), (&b"x"[..], 11, true));
    }

    #[test]
    fn a_run_of_content_is_one_step() {
        let mut decoder = Decoder::new(Framing::Chunked, &LIMITS);
        let input = [b"10000\r\n", vec![b'x'; 70_000].as_slice()].concat();
        let step = decoder.decode(&input).unwrap();
        assert_eq!(step, Decoded { consumed: 65_543, data: 7..65_543 });
    }

    #[test]
    fn a_body_that_is_cut_is_not_done() {
        let whole = "5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n";
        for end in 0..whole.len() {
            let (_, _, done) = chunked(&whole[..end]).unwrap();
            assert!(!done, "{end}");
        }
    }

    #[test]
    fn chunk_size_is_hex_digits() {
        for line in
            ["", "0x5", "+5", "-5", "5_0", " 5", "g", "5g", "\t5", ";a", "\"5\"", "00000000000000005", "5.0"]
        {
            let answer = chunked(format!("{line}\r\nhello\r\n0\r\n\r\n"));
            assert_eq!(answer, Err(Reject::ChunkSize), "{line:?}");
        }
        assert_eq!(chunked("5 \r\nhello\r\n0\r\n\r\n"), Err(Reject::ChunkExtension));
        assert_eq!(chunked("\r\n\r\n"), Err(Reject::ChunkSize));
    }

    #[test]
    fn chunk_sizes_stay_within_63_bits_in_sum() {
        for size in ["FFFFFFFFFFFFFFFF", "8000000000000000", "10000000000000000"] {
            assert_eq!(chunked(format!("{size}\r\nx")), Err(Reject::ChunkSize), "{size}");
        }
        assert!(chunked("7FFFFFFFFFFFFFFF\r\nx").is_ok());
        assert_eq!(chunked("1\r\nx\r\n7FFFFFFFFFFFFFFF\r\nx"), Err(Reject::ChunkSize));
    }

    #[test]
    fn lines_end_with_crlf_only() {
        for (input, reject) in [
            ("5\nhello\r\n0\r\n\r\n", Reject::ChunkSize),
            ("5\rhello\r\n0\r\n\r\n", Reject::ChunkSize),
            ("5\r\r\nhello\r\n0\r\n\r\n", Reject::ChunkSize),
            ("5\r\nhello\n0\r\n\r\n", Reject::ChunkEnd),
            ("5\r\nhello\r0\r\n\r\n", Reject::ChunkEnd),
            ("5\r\nhelloxx0\r\n\r\n", Reject::ChunkEnd),
            ("5\r\nhello0\r\n\r\n", Reject::ChunkEnd),
            ("5\r\nhello\r\r\n0\r\n\r\n", Reject::ChunkEnd),
            ("4\r\nhello\r\n0\r\n\r\n", Reject::ChunkEnd),
            ("5\r\nhello\r\n\r\n0\r\n\r\n", Reject::ChunkSize),
            ("0\n\r\n", Reject::ChunkSize),
            ("0\n\n", Reject::ChunkSize),
            ("0\r\n\n", Reject::Trailer),
            ("0\r\n\rX", Reject::Trailer),
            ("0\r\n\r\r\n", Reject::Trailer),
            ("5;a\nb\r\nhello\r\n0\r\n\r\n", Reject::ChunkExtension),
            ("5;a\rb\r\nhello\r\n0\r\n\r\n", Reject::ChunkSize),
        ] {
            assert_eq!(chunked(input), Err(reject), "{input:?}");
        }
    }

    #[test]
    fn extensions_follow_the_grammar_and_are_ignored() {
        for extension in [
            ";a",
            ";a=b",
            ";a=\"b\"",
            ";a=\"\"",
            ";a;b=c;d",
            " ;a",
            "\t; a = b",
            ";a=\"b\\\"c;\t\x7e\"",
            ";a=\"b\";c",
            ";a=b ;c",
            ";a ;b",
            ";a=\"\u{e9}\"",
            ";a=\"b\" ;c",
        ] {
            let body = format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n");
            assert_eq!(content(body), b"hello", "{extension:?}");
        }
        for extension in [
            ";",
            ";;a",
            ";a;",
            ";=b",
            ";a=",
            ";a=b c",
            ";a b",
            ";a=\"b\"c",
            ";a=\"b\0\"",
            ";a=\"b\u{7f}\"",
            ";a=@",
            ";@",
            ";a=b=c",
            ";\0",
            ";a\u{b}",
            ";a ",
            ";a=b ",
            ";a=\"b\" ",
            " a",
            ";a=\"\\\u{1}\"",
            ";é",
        ] {
            let body = format!("5{extension}\r\nhello\r\n0\r\n\r\n");
            assert_eq!(chunked(body), Err(Reject::ChunkExtension), "{extension:?}");
        }
    }

    #[test]
    fn extensions_are_capped_by_line_and_in_sum() {
        let line = |octets: usize| format!("1;{}\r\nx\r\n", "a".repeat(octets - 2));
        let most = EXTENSION_LINE as usize;
        assert!(chunked(line(most)).is_ok());
        assert_eq!(chunked(line(most + 2)), Err(Reject::ChunkExtensionsTooLarge));
        let endless = format!("1;{}", "a".repeat(most + 1));
        assert_eq!(chunked(endless), Err(Reject::ChunkExtensionsTooLarge));
        let many = line(1000).repeat(17);
        assert_eq!(chunked(many), Err(Reject::ChunkExtensionsTooLarge));
    }

    #[test]
    fn trailers_are_checked_and_dropped() {
        for trailers in ["A: b\r\n", "A:\r\nB: \t c\u{e9}\r\n", "Hosts: a\r\nX-Host: b\r\n"] {
            assert_eq!(content(format!("1\r\nx\r\n0\r\n{trailers}\r\n")), b"x", "{trailers:?}");
        }
        for trailers in [
            "A\r\n",
            ": b\r\n",
            "A : b\r\n",
            " A: b\r\n",
            "A: b\r\n c\r\n",
            "A: \0\r\n",
            "A: b\n",
            "A: b\rc\r\n",
        ] {
            assert_eq!(chunked(format!("0\r\n{trailers}\r\n")), Err(Reject::Trailer), "{trailers:?}");
        }
    }

    #[test]
    fn trailers_that_would_change_framing_or_routing_are_refused() {
        for name in ["Host", "content-LENGTH", "Transfer-Encoding", "Trailer", "AUTHORIZATION", "te"] {
            for before in ["", "A: b\r\n", "Transfer-Encoding-Of-Mine: b\r\n"] {
                let answer = chunked(format!("0\r\n{before}{name}: x\r\n\r\n"));
                assert_eq!(answer, Err(Reject::ForbiddenTrailer), "{name}");
            }
        }
    }

    #[test]
    fn trailers_are_under_the_limits_of_the_head() {
        let line = |octets: usize| format!("A: {}\r\n", "b".repeat(octets - 5));
        assert_eq!(content(format!("0\r\n{}\r\n", line(60))), b"");
        let too_large = Err(Reject::TrailersTooLarge);
        assert_eq!(chunked(format!("0\r\n{}\r\n", line(61))), too_large);
        assert_eq!(chunked(format!("0\r\nA{}", "a".repeat(60))), too_large);
        assert_eq!(content(format!("0\r\n{}\r\n", line(6).repeat(4))), b"");
        assert_eq!(chunked(format!("0\r\n{}\r\n", line(6).repeat(5))), too_large);
        assert_eq!(chunked(format!("0\r\n{}\r\n", line(52).repeat(4))), too_large);
    }

    #[test]
    fn no_octets_make_the_answer_depend_on_segmentation() {
        let alphabet = b"01a;=\" \\\r\n\r\n:xT\0\xff";
        let mut state: u64 = 42;
        let mut random = move |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        let seeds = ["3\r\nabc\r\n0\r\n\r\n", "2;a=\"b\";c\r\nab\r\n1\r\nx\r\n0\r\nTe: x\r\nHost: y\r\n\r\n"];
        for _ in 0..20_000 {
            let mut input = seeds[random(2)].as_bytes().to_vec();
            for _ in 0..random(4) {
                let at = random(input.len());
                match random(3) {
                    0 => input[at] = alphabet[random(alphabet.len())],
                    1 => input.insert(at, alphabet[random(alphabet.len())]),
                    _ => drop(input.remove(at)),
                }
            }
            let _ = chunked(input);
        }
    }
}
