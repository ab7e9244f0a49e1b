//! Owns: finding the end of an answer in what the server sends, by Content-Length, chunks or the end of the connection.
//! Never: looks at the body.

use httparse::{Header, Status, EMPTY_HEADER};

const FIELDS: usize = 64;
/// A longer head is taken for rubbish.
const HEAD: usize = 65_536;

#[derive(PartialEq, Debug)]
pub enum Progress {
    More,
    Done,
    Bad,
}

#[derive(Clone, Copy)]
enum Part {
    Head,
    Octets(u64),
    ChunkSize(u64),
    /// After a `;` or the digits: to the end of the line.
    ChunkLine(u64),
    Chunk(u64),
    ChunkEnd,
    /// Trailer fields; whether the line has anything in it.
    Trailer(bool),
    UntilEnd,
}

pub struct Reader {
    head: Vec<u8>,
    part: Part,
    pub status: u16,
    /// Whether the connection is there for another request.
    pub keep: bool,
}

impl Reader {
    pub fn new() -> Self {
        Reader { head: Vec::new(), part: Part::Head, status: 0, keep: true }
    }

    pub fn reset(&mut self) {
        self.head.clear();
        self.part = Part::Head;
    }

    /// Whether anything of an answer has come.
    pub fn begun(&self) -> bool {
        !self.head.is_empty() || !matches!(self.part, Part::Head)
    }

    pub fn feed(&mut self, octets: &[u8]) -> Progress {
        if !matches!(self.part, Part::Head) {
            return self.body(octets);
        }
        if self.head.is_empty() {
            return self.take_head(octets);
        }
        let mut held = std::mem::take(&mut self.head);
        held.extend_from_slice(octets);
        self.take_head(&held)
    }

    /// The server has closed its side. Whether that is the end of the answer.
    pub fn ends(&mut self) -> bool {
        self.keep = false;
        matches!(self.part, Part::UntilEnd)
    }

    fn take_head(&mut self, octets: &[u8]) -> Progress {
        let mut fields = [EMPTY_HEADER; FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(octets) {
            Ok(Status::Complete(length)) => {
                self.status = response.code.unwrap_or(0);
                if self.status / 100 == 1 {
                    return self.take_head(&octets[length..]);
                }
                let old = response.version == Some(0);
                self.frame(response.headers, old);
                self.body(&octets[length..])
            }
            Ok(Status::Partial) if octets.len() < HEAD => {
                self.head.extend_from_slice(octets);
                Progress::More
            }
            _ => Progress::Bad,
        }
    }

    fn frame(&mut self, fields: &[Header], old: bool) {
        self.keep = !old;
        self.part = if matches!(self.status, 204 | 304) { Part::Octets(0) } else { Part::UntilEnd };
        for field in fields {
            self.take_field(field);
        }
    }

    fn take_field(&mut self, field: &Header) {
        let named = |name| field.name.eq_ignore_ascii_case(name);
        if named("content-length") {
            let length = std::str::from_utf8(field.value).ok().and_then(|text| text.trim().parse().ok());
            self.part = length.map_or(Part::UntilEnd, Part::Octets);
        } else if named("transfer-encoding") {
            self.part = Part::ChunkSize(0);
        } else if named("connection") {
            self.keep &= !field.value.eq_ignore_ascii_case(b"close");
            self.keep |= field.value.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// More than the answer is as wrong as less: nothing was asked beyond it.
    fn body(&mut self, mut octets: &[u8]) -> Progress {
        loop {
            match self.part {
                Part::UntilEnd => return Progress::More,
                Part::Octets(left) if octets.len() as u64 >= left => {
                    return if octets.len() as u64 == left { Progress::Done } else { Progress::Bad };
                }
                Part::Octets(left) => {
                    self.part = Part::Octets(left - octets.len() as u64);
                    return Progress::More;
                }
                Part::Chunk(left) => {
                    let taken = left.min(octets.len() as u64);
                    octets = &octets[taken as usize..];
                    self.part = if taken == left { Part::ChunkEnd } else { Part::Chunk(left - taken) };
                }
                _ => {}
            }
            let Some((&octet, rest)) = octets.split_first() else { return Progress::More };
            octets = rest;
            match self.line(octet) {
                Progress::Done if octets.is_empty() => return Progress::Done,
                Progress::More => {}
                _ => return Progress::Bad,
            }
        }
    }

    /// One octet of the lines between the chunks.
    fn line(&mut self, octet: u8) -> Progress {
        let digit = (octet as char).to_digit(16);
        self.part = match (self.part, octet, digit) {
            (Part::ChunkSize(size), _, Some(digit)) if size < 1 << 48 => {
                Part::ChunkSize(size * 16 + u64::from(digit))
            }
            (Part::ChunkSize(size), b'\r' | b';' | b' ', None) => Part::ChunkLine(size),
            (Part::ChunkLine(0), b'\n', _) => Part::Trailer(false),
            (Part::ChunkLine(size), b'\n', _) => Part::Chunk(size),
            (Part::ChunkLine(size), ..) => Part::ChunkLine(size),
            (Part::ChunkEnd, b'\r', _) => Part::ChunkEnd,
            (Part::ChunkEnd, b'\n', _) => Part::ChunkSize(0),
            (Part::Trailer(false), b'\n', _) => return Progress::Done,
            (Part::Trailer(true), b'\n', _) => Part::Trailer(false),
            (Part::Trailer(full), _, _) => Part::Trailer(full || octet != b'\r'),
            _ => return Progress::Bad,
        };
        Progress::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fed whole and octet by octet, the outcome is the same.
    fn read(text: &str) -> (Progress, u16, bool) {
        let mut whole = Reader::new();
        let outcome = whole.feed(text.as_bytes());
        let mut dripped = Reader::new();
        let mut last = Progress::More;
        for octet in text.as_bytes() {
            last = dripped.feed(&[*octet]);
        }
        assert_eq!(outcome, last);
        (outcome, whole.status, whole.keep)
    }

    #[test]
    fn length() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(read(text), (Progress::Done, 200, true));
        assert_eq!(read(&text[..text.len() - 1]), (Progress::More, 200, true));
        assert_eq!(Reader::new().feed(format!("{text}!").as_bytes()), Progress::Bad);
    }

    #[test]
    fn closing() {
        let text = "HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(read(text), (Progress::Done, 503, false));
        assert_eq!(read("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"), (Progress::Done, 200, false));
    }

    #[test]
    fn chunks() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nA: b\r\n\r\n";
        assert_eq!(read(text), (Progress::Done, 200, true));
        assert_eq!(read(&text[..text.len() - 2]).0, Progress::More);
    }

    #[test]
    fn until_the_end() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhello"), Progress::More);
        assert!(reader.ends() && !reader.keep);
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
        assert_eq!(read(text), (Progress::Done, 200, true));
    }

    #[test]
    fn rubbish() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(b"hello\r\n\r\n"), Progress::Bad);
    }
}
