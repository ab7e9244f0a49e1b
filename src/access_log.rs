//! Owns: what a line of the access log looks like: the format string compiled once, the escaping, the local time.
//! Rule: one request is one line of valid UTF-8, and no octet a client sent can end the line or a quoted part of it. A
//! format that begins with `{` is JSON: there values are escaped as in its strings (RFC 8259, section 7).
//! Never: opens or writes a file, asks for the time, decides whether a request is logged.

use crate::http::Fields;
use chrono::{DateTime, Local};
use std::fmt::Write;
use std::time::Duration;

/// What is known about a request once it has been answered.
pub struct Entry<'a> {
    /// Empty on a unix socket.
    pub remote_addr: &'a [u8],
    pub method: &'a [u8],
    /// As received.
    pub target: &'a [u8],
    /// PATH_INFO: decoded, without the script name.
    pub path: &'a [u8],
    pub query: &'a [u8],
    pub protocol: &'a [u8],
    pub status: u16,
    /// Octets of the response body.
    pub sent: u64,
    /// From the call of the application to the end of the response.
    pub elapsed: Duration,
    pub pid: u32,
    pub fields: &'a Fields,
    /// What the spans in `fields` are relative to.
    pub block: &'a [u8],
    /// The application's header fields as `Name: value\r\n` lines.
    pub response_fields: &'a [u8],
    /// A value of the WSGI environ as text; the name may be in any case.
    pub environ: &'a dyn Fn(&str) -> Option<String>,
    /// `LocalTime::at` of the end of the request.
    pub time: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Vec<u8>),
    RemoteAddr,
    User,
    Time,
    RequestLine,
    Method,
    Path,
    Query,
    Protocol,
    Status,
    Sent,
    Seconds,
    Millis,
    Micros,
    Decimal,
    Pid,
    RequestField(Vec<u8>),
    ResponseField(Vec<u8>),
    Environ(String),
}

/// A format string taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    pieces: Vec<Piece>,
    dialect: Dialect,
}

/// How what a client sent is escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Text,
    Json,
}

impl Format {
    /// Takes any text: what is no atom stands for itself, an unknown atom for `-`.
    pub fn new(text: &str) -> Format {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            literal(&mut pieces, &rest[..at]);
            rest = &rest[at + 1..];
            match atom(rest) {
                Some((name, after)) => {
                    push(&mut pieces, piece(name));
                    rest = after;
                }
                // `%%`, or a sign that was forgotten to be doubled.
                None => {
                    literal(&mut pieces, "%");
                    rest = rest.strip_prefix('%').unwrap_or(rest);
                }
            }
        }
        literal(&mut pieces, rest);
        literal(&mut pieces, "\n");
        let dialect = if text.trim_start().starts_with('{') { Dialect::Json } else { Dialect::Text };
        Format { pieces, dialect }
    }

    /// Whether lines show `Entry::path`, which has to be made.
    pub fn wants_path(&self) -> bool {
        self.pieces.contains(&Piece::Path)
    }

    /// Whether lines need `Entry::response_fields`, which cost something to keep until then.
    pub fn wants_response_fields(&self) -> bool {
        let mut pieces = self.pieces.iter();
        pieces.any(|piece| matches!(piece, Piece::ResponseField(_)))
    }

    /// Appends the line, its line feed included.
    pub fn write(&self, entry: &Entry, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            piece.write(entry, self.dialect, out);
        }
    }
}

/// `(name)s` after a `%` → the name and what follows. Python's flags, width and other conversions change nothing here.
fn atom(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.strip_prefix('(')?.split_once(')')?;
    let rest = rest.trim_start_matches(|c: char| "#0- +.".contains(c) || c.is_ascii_digit());
    let conversion = rest.chars().next().filter(char::is_ascii_alphabetic)?;
    Some((name, &rest[conversion.len_utf8()..]))
}

fn piece(name: &str) -> Piece {
    match name {
        "h" => Piece::RemoteAddr,
        "u" => Piece::User,
        "t" => Piece::Time,
        "r" => Piece::RequestLine,
        "m" => Piece::Method,
        "U" => Piece::Path,
        "q" => Piece::Query,
        "H" => Piece::Protocol,
        "s" => Piece::Status,
        "b" | "B" => Piece::Sent,
        "f" => Piece::RequestField(b"referer".to_vec()),
        "a" => Piece::RequestField(b"user-agent".to_vec()),
        "T" => Piece::Seconds,
        "M" => Piece::Millis,
        "D" => Piece::Micros,
        "L" => Piece::Decimal,
        "p" => Piece::Pid,
        other => named(other),
    }
}

/// `{name}i`, `{name}o`, `{name}e`; `l` and whatever is unknown is a dash.
fn named(text: &str) -> Piece {
    let parts = text.strip_prefix('{').and_then(|rest| rest.rsplit_once('}'));
    match parts {
        Some((name, "i")) => Piece::RequestField(name.as_bytes().to_vec()),
        Some((name, "o")) => Piece::ResponseField(name.as_bytes().to_vec()),
        Some((name, "e")) => Piece::Environ(name.to_string()),
        _ => Piece::Literal(b"-".to_vec()),
    }
}

fn literal(pieces: &mut Vec<Piece>, text: &str) {
    push(pieces, Piece::Literal(text.as_bytes().to_vec()));
}

/// Joins neighbouring literals: a line is written in as few steps as it has atoms.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), piece) {
        (_, Piece::Literal(text)) if text.is_empty() => {}
        (Some(Piece::Literal(before)), Piece::Literal(text)) => before.extend(text),
        (_, piece) => pieces.push(piece),
    }
}

impl Piece {
    fn write(&self, entry: &Entry, dialect: Dialect, out: &mut Vec<u8>) {
        match self {
            Piece::Literal(text) => out.extend_from_slice(text),
            Piece::RemoteAddr => escape(entry.remote_addr, dialect, out),
            Piece::User => user(entry, dialect, out),
            Piece::Time => out.extend_from_slice(entry.time.as_bytes()),
            Piece::RequestLine => request_line(entry, dialect, out),
            Piece::Method => escape(entry.method, dialect, out),
            Piece::Path => escape(entry.path, dialect, out),
            Piece::Query => escape(entry.query, dialect, out),
            Piece::Protocol => escape(entry.protocol, dialect, out),
            Piece::Status => integer(entry.status.into(), out),
            Piece::Sent => integer(entry.sent, out),
            Piece::Seconds => integer(entry.elapsed.as_secs(), out),
            Piece::Millis => integer(millis(entry.elapsed), out),
            Piece::Micros => integer(micros(entry.elapsed), out),
            Piece::Decimal => decimal(entry.elapsed, out),
            Piece::Pid => pid(entry.pid, out),
            Piece::RequestField(name) => or_dash(request_field(entry, name), dialect, out),
            Piece::ResponseField(name) => or_dash(response_field(entry, name), dialect, out),
            Piece::Environ(name) => {
                or_dash((entry.environ)(name).as_deref().map(str::as_bytes), dialect, out)
            }
        }
    }
}

fn or_dash(value: Option<&[u8]>, dialect: Dialect, out: &mut Vec<u8>) {
    match value {
        Some(value) => escape(value, dialect, out),
        None => out.push(b'-'),
    }
}

fn request_line(entry: &Entry, dialect: Dialect, out: &mut Vec<u8>) {
    escape(entry.method, dialect, out);
    out.push(b' ');
    escape(entry.target, dialect, out);
    out.push(b' ');
    escape(entry.protocol, dialect, out);
}

fn pid(pid: u32, out: &mut Vec<u8>) {
    out.push(b'<');
    integer(pid.into(), out);
    out.push(b'>');
}

/// The last field of that name, as in gunicorn.
fn request_field<'a>(entry: &Entry<'a>, name: &[u8]) -> Option<&'a [u8]> {
    let mut fields = entry.fields.list.iter().rev();
    let field = fields.find(|field| field.name.of(entry.block).eq_ignore_ascii_case(name))?;
    Some(field.value.of(entry.block))
}

fn response_field<'a>(entry: &Entry<'a>, name: &[u8]) -> Option<&'a [u8]> {
    let mut lines = entry.response_fields.rsplit(|octet| *octet == b'\n');
    lines.find_map(|line| {
        let colon = line.iter().position(|octet| *octet == b':')?;
        let (found, value) = line.split_at(colon);
        found.eq_ignore_ascii_case(name).then(|| value[1..].trim_ascii())
    })
}

/// The user's name in `Authorization: Basic` (RFC 7617 §2), a dash if there is none.
fn user(entry: &Entry, dialect: Dialect, out: &mut Vec<u8>) {
    let name = request_field(entry, b"authorization").and_then(basic_user);
    match name {
        Some(name) if !name.is_empty() => escape(name.as_bytes(), dialect, out),
        _ => out.push(b'-'),
    }
}

fn basic_user(value: &[u8]) -> Option<String> {
    let space = value.iter().position(|octet| *octet == b' ')?;
    let (scheme, credentials) = value.split_at(space);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let mut name = base64(credentials.trim_ascii())?;
    let end = name.iter().position(|octet| *octet == b':');
    name.truncate(end.unwrap_or(name.len()));
    String::from_utf8(name).ok()
}

/// RFC 4648 §4, padding optional.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len());
    let (mut bits, mut held) = (0u32, 0);
    for digit in text.trim_ascii_end().iter().take_while(|octet| **octet != b'=') {
        bits = bits << 6 | base64_digit(*digit)?;
        held += 6;
        if held >= 8 {
            held -= 8;
            octets.push((bits >> held) as u8);
        }
    }
    // Six bits that are left over are a digit that belongs to no octet.
    (held < 6).then_some(octets)
}

fn base64_digit(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

/// Appends what a client sent. A line may be read by a parser of quoted text, of JSON or of lines: a quote and a
/// backslash get a backslash, whatever is no printable character becomes \xHH.
fn escape(value: &[u8], dialect: Dialect, out: &mut Vec<u8>) {
    // Without an early exit the compiler checks many octets at a time; nearly every value passes.
    let special = value.iter().fold(false, |found, octet| found | !plain(*octet));
    match special {
        false => out.extend_from_slice(value),
        true => escape_slowly(value, dialect, out),
    }
}

fn plain(octet: u8) -> bool {
    // Not `&&`: branches would keep the loop from being vectorised.
    (b' '..0x7f).contains(&octet) & (octet != b'"') & (octet != b'\\')
}

#[cold]
fn escape_slowly(value: &[u8], dialect: Dialect, out: &mut Vec<u8>) {
    for chunk in value.utf8_chunks() {
        for letter in chunk.valid().chars() {
            escape_char(letter, dialect, out);
        }
        for octet in chunk.invalid() {
            // A JSON string has characters only: it shows the octet as text has it.
            if dialect == Dialect::Json {
                out.push(b'\\');
            }
            hex(*octet, out);
        }
    }
}

fn escape_char(letter: char, dialect: Dialect, out: &mut Vec<u8>) {
    let mut space = [0; 4];
    let octets = letter.encode_utf8(&mut space).as_bytes();
    // U+2028 and U+2029 end a line for whoever goes by Unicode; the others turn it round, or are not seen.
    let breaks = letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    match (letter, dialect) {
        ('"' | '\\', _) => out.extend_from_slice(&[b'\\', letter as u8]),
        (_, Dialect::Json) if breaks => out.extend_from_slice(format!("\\u{:04x}", letter as u32).as_bytes()),
        (_, Dialect::Text) if breaks => octets.iter().for_each(|octet| hex(*octet, out)),
        _ => out.extend_from_slice(octets),
    }
}

fn hex(octet: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let (high, low) = (octet >> 4, octet & 15);
    out.extend_from_slice(&[b'\\', b'x', DIGITS[high as usize], DIGITS[low as usize]]);
}

fn millis(time: Duration) -> u64 {
    time.as_secs() * 1000 + u64::from(time.subsec_millis())
}

fn micros(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())
}

/// Seconds with six decimals.
fn decimal(time: Duration, out: &mut Vec<u8>) {
    integer(time.as_secs(), out);
    // A leading 1 makes all six digits appear; its place is where the point goes.
    let point = out.len();
    integer(1_000_000 + u64::from(time.subsec_micros()), out);
    out[point] = b'.';
}

fn integer(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The local time in the log's form, formatted once a second.
#[derive(Clone, Debug, Default)]
pub struct LocalTime {
    second: i64,
    /// Empty until the first use.
    text: String,
}

impl LocalTime {
    /// `[10/Oct/2000:13:55:36 +0000]`
    pub fn at(&mut self, unix_seconds: i64) -> &str {
        if self.second != unix_seconds || self.text.is_empty() {
            self.second = unix_seconds;
            self.format();
        }
        &self.text
    }

    fn format(&mut self) {
        // Beyond the year 262000 there is no calendar; 1970 is as good as any.
        let time = DateTime::from_timestamp(self.second, 0).unwrap_or_default();
        let local = time.with_timezone(&Local);
        self.text.clear();
        // Writing to a String fails only if the format is wrong, which the tests would show.
        let _ = write!(self.text, "{}", local.format("[%d/%b/%Y:%H:%M:%S %z]"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Field, Span};

    const DEFAULT: &str = r#"%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s""#;

    /// A field block and the fields in it.
    struct Block {
        octets: Vec<u8>,
        fields: Fields,
    }

    fn block(pairs: &[(&str, &[u8])]) -> Block {
        let mut octets = Vec::new();
        let mut fields = Fields::default();
        let add = |text: &[u8], octets: &mut Vec<u8>| {
            let start = octets.len() as u32;
            octets.extend_from_slice(text);
            Span { start, end: octets.len() as u32 }
        };
        for (name, value) in pairs {
            let name = add(name.as_bytes(), &mut octets);
            octets.extend_from_slice(b": ");
            let value = add(value, &mut octets);
            octets.extend_from_slice(b"\r\n");
            fields.list.push(Field { name, value });
        }
        Block { octets, fields }
    }

    fn entry(block: &Block) -> Entry<'_> {
        Entry {
            remote_addr: b"10.0.0.1",
            method: b"GET",
            target: b"/a%20b?x=1",
            path: b"/a b",
            query: b"x=1",
            protocol: b"HTTP/1.1",
            status: 200,
            sent: 1234,
            elapsed: Duration::new(3, 45_678_901),
            pid: 42,
            fields: &block.fields,
            block: &block.octets,
            response_fields: b"Content-Type: text/plain\r\nX-Id: 1\r\nx-id:2\r\n",
            environ: &|name| (name == "wsgi.url_scheme").then(|| "http".to_string()),
            time: "[10/Oct/2000:13:55:36 +0000]",
        }
    }

    fn line(format: &str, entry: &Entry) -> String {
        let mut out = Vec::new();
        Format::new(format).write(entry, &mut out);
        let mut line = String::from_utf8(out).unwrap();
        assert_eq!(line.pop(), Some('\n'));
        line
    }

    fn plainly(format: &str) -> String {
        line(format, &entry(&block(&[])))
    }

    #[test]
    fn the_default_format() {
        let block = block(&[("Host", b"x"), ("Referer", b"http://r/"), ("User-Agent", b"curl/8")]);
        assert_eq!(
            line(DEFAULT, &entry(&block)),
            "10.0.0.1 - - [10/Oct/2000:13:55:36 +0000] \"GET /a%20b?x=1 HTTP/1.1\" 200 1234 \
             \"http://r/\" \"curl/8\""
        );
    }

    #[test]
    fn what_is_missing_is_a_dash() {
        assert!(plainly(DEFAULT).ends_with(" 200 1234 \"-\" \"-\""));
        let block = block(&[]);
        let unix = Entry { remote_addr: b"", sent: 0, ..entry(&block) };
        assert_eq!(line("%(h)s|%(b)s|%(B)s", &unix), "|0|0");
    }

    #[test]
    fn every_atom() {
        assert_eq!(plainly("%(m)s %(U)s %(q)s %(H)s %(B)s %(p)s"), "GET /a b x=1 HTTP/1.1 1234 <42>");
        assert_eq!(plainly("%(T)s %(M)s %(D)s %(L)s"), "3 3045 3045678 3.045678");
        assert_eq!(plainly("%(l)s %(x)s %(x-y)s %({x}z)s %({x)s"), "- - - - -");
    }

    #[test]
    fn text_that_is_no_atom_stands_for_itself() {
        assert_eq!(plainly(""), "");
        assert_eq!(plainly("100%% é"), "100% é");
        assert_eq!(plainly("%"), "%");
        assert_eq!(plainly("%x %(s %(s)"), "%x %(s %(s)");
        assert_eq!(plainly("%(s)d %(D)10d %(s)-5s."), "200 3045678 200.");
        assert_eq!(Format::new("a %(l)s%% b").pieces.len(), 1);
    }

    #[test]
    fn a_format_that_is_json_gets_values_escaped_as_json() {
        let value = b"a\"b\\c\td\xffe\xc3\xa9f\xe2\x80\xa8g\x7f";
        let block = block(&[("User-Agent", value)]);
        let escaped = "a\\\"b\\\\c\\u0009d\\\\xFFe\u{e9}f\\u2028g\\u007f";
        let wanted = format!("{{\"a\": \"{escaped}\", \"s\": 200}}");
        assert_eq!(line("{\"a\": \"%(a)s\", \"s\": %(s)s}", &entry(&block)), wanted);
    }

    #[test]
    fn times_beyond_a_day() {
        let block = block(&[]);
        let long = Entry { elapsed: Duration::from_secs(100_000), ..entry(&block) };
        assert_eq!(line("%(T)s %(D)s %(L)s", &long), "100000 100000000000 100000.000000");
    }

    #[test]
    fn named_fields() {
        let block = block(&[("X-Request-ID", b"a"), ("x-request-id", b"b")]);
        let entry = entry(&block);
        assert_eq!(line("%({X-Request-Id}i)s", &entry), "b");
        assert_eq!(line("%({x-none}i)s", &entry), "-");
        assert_eq!(line("%({content-type}o)s", &entry), "text/plain");
        assert_eq!(line("%({X-ID}o)s", &entry), "2");
        assert_eq!(line("%({date}o)s", &entry), "-");
        assert_eq!(line("%({wsgi.url_scheme}e)s", &entry), "http");
        assert_eq!(line("%({none}e)s", &entry), "-");
    }

    #[test]
    fn only_some_formats_need_the_environ() {
        assert!(!Format::new(DEFAULT).wants_response_fields());
        assert!(Format::new("%({a}o)s").wants_response_fields());
    }

    #[test]
    fn a_value_cannot_leave_its_quotes_or_its_line() {
        let escaped = |value: &[u8]| {
            let block = block(&[("User-Agent", value)]);
            line("%(a)s", &entry(&block))
        };
        assert_eq!(escaped(b"a\"b"), "a\\\"b");
        assert_eq!(escaped(b"\\\" 200"), "\\\\\\\" 200");
        assert_eq!(escaped(b"a\r\nb\t\x00\x7f"), "a\\x0D\\x0Ab\\x09\\x00\\x7F");
        assert_eq!(escaped("é \u{1f600}".as_bytes()), "é \u{1f600}");
        assert_eq!(escaped(b"\xe9 \xff"), "\\xE9 \\xFF");
        assert_eq!(escaped("\u{9b}".as_bytes()), "\\xC2\\x9B");
        assert_eq!(escaped("\u{2028}".as_bytes()), "\\xE2\\x80\\xA8");
        assert_eq!(escaped("a\u{202e}b\u{feff}".as_bytes()), "a\\xE2\\x80\\xAEb\\xEF\\xBB\\xBF");
    }

    #[test]
    fn users_of_basic_authorization() {
        let user = |value: &str| {
            let block = block(&[("Authorization", value.as_bytes())]);
            line("%(u)s", &entry(&block))
        };
        assert_eq!(user("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), "Aladdin");
        assert_eq!(user("basic  QWxhZGRpbjpvcGVuIHNlc2FtZQ"), "Aladdin");
        assert_eq!(user("Basic YWJj"), "abc");
        assert_eq!(user("Basic YSJiOmM="), "a\\\"b");
        for none in ["Basic", "Basic ", "Basic OmE=", "Basic /w==", "Basic a", "Basic !", "Bearer YWJj"] {
            assert_eq!(user(none), "-", "{none}");
        }
    }

    #[test]
    fn base64_alphabet() {
        assert_eq!(base64(b"+/8="), Some(vec![0xfb, 0xff]));
        assert_eq!(base64(b"AAAA"), Some(vec![0, 0, 0]));
        assert_eq!(base64(b"AAAAA"), None);
        assert_eq!(base64(b"A-AA"), None);
    }

    #[test]
    fn integers_of_any_size() {
        for number in [0, 9, 10, 200, u64::MAX] {
            let mut out = Vec::new();
            integer(number, &mut out);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn local_time_is_formatted_once_a_second() {
        let mut clock = LocalTime::default();
        let first = clock.at(971_186_136).to_string();
        assert_eq!(first.len(), "[10/Oct/2000:13:55:36 +0000]".len());
        assert!(first.starts_with('[') && first.contains("/Oct/2000:") && first.ends_with(']'));
        assert_eq!(clock.at(971_186_136), first);
        assert_ne!(clock.at(971_186_137), first);
        assert!(LocalTime::default().at(0).contains("19"));
        assert!(LocalTime::default().at(i64::MAX).contains("19"));
    }
}
