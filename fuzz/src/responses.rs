//! What must hold for the head of a response, whatever an application puts into it.

use crate::http::date::ServerDate;
use crate::http::response::{delivery, field, finish, status_line, Delivery, FieldKind};
use crate::http::Version;

/// Between two fields of an input, and between a name and its value: neither may be in a head.
const RECORD: u8 = 0x1e;
const UNIT: u8 = 0x1f;
/// As many as a client with small buffers takes.
const MOST_FIELDS: usize = 100;

/// The name and the value of a field.
type Line = (Vec<u8>, Vec<u8>);

fn trimmed(value: &[u8]) -> Vec<u8> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let first = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let last = value.iter().rposition(|byte| !blank(byte)).map_or(first, |last| last + 1);
    value[first..last].to_vec()
}

/// Writes the application's part as `start_response` does; None when it is refused.
fn told(data: &[u8], out: &mut Vec<u8>) -> Option<(u16, Option<u64>, Vec<Line>)> {
    let mut records = data.split(|byte| *byte == RECORD);
    let Ok(code) = status_line(records.next().unwrap_or_default(), out) else {
        assert!(out.is_empty(), "something of a refused status was written");
        return None;
    };
    let (mut length, mut lines) = (None, Vec::new());
    out.extend_from_slice(ServerDate::new().at(0));
    for record in records.take(MOST_FIELDS) {
        let Some(colon) = record.iter().position(|byte| *byte == UNIT) else {
            continue;
        };
        let (name, value, before) = (&record[..colon], &record[colon + 1..], out.len());
        match field(name, value, out) {
            Ok(FieldKind::Plain) => lines.push((name.to_vec(), trimmed(value))),
            Ok(kind) => {
                assert_eq!(
                    out.len(),
                    before,
                    "something of a field that is not the application's was written"
                );
                if let FieldKind::ContentLength(told) = kind {
                    if length.replace(told).is_some() {
                        return None;
                    }
                }
            }
            Err(_) => {
                assert_eq!(out.len(), before, "something of a refused field was written");
                return None;
            }
        }
    }
    Some((code, length, lines))
}

/// What leaves is one response to every reader: the status, the application's fields as they were given, the server's own,
/// and no line that nobody wrote.
pub fn response(data: &[u8]) {
    let [bits, size, data @ ..] = data else {
        return;
    };
    let bit = |place: u8| bits >> place & 1 == 1;
    let version = if bit(0) { Version::Http10 } else { Version::Http11 };
    let (is_head, persistent) = (bit(1), bit(2));
    let mut out = Vec::new();
    let Some((code, length, mut expected)) = told(data, &mut out) else {
        return;
    };
    let framed = delivery(version, is_head, code, length, bit(3).then_some(u64::from(*size)));
    finish(framed, persistent, version, &mut out);
    match framed {
        Delivery::Length(length) | Delivery::NoBody(Some(length)) => {
            expected.push((b"Content-Length".to_vec(), length.to_string().into_bytes()));
        }
        Delivery::Chunked => {
            assert_eq!(version, Version::Http11, "an old client knows no chunks");
            expected.push((b"Transfer-Encoding".to_vec(), b"chunked".to_vec()));
        }
        Delivery::NoBody(None) | Delivery::UntilClose => {}
    }
    let goes_on = persistent && framed.is_framed();
    match (goes_on, version) {
        (true, Version::Http11) => {}
        (true, Version::Http10) => expected.push((b"Connection".to_vec(), b"keep-alive".to_vec())),
        (false, _) => expected.push((b"Connection".to_vec(), b"close".to_vec())),
    }
    let (found, read) = read(&out);
    assert_eq!(found, code);
    assert_eq!(read, expected);
    // A reader that knows nothing but line ends finds as many lines: the status, Server, Date, the fields, the end.
    let lines = out.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty()).count();
    assert_eq!(lines, 3 + expected.len());
    assert!(!out.contains(&0) && out.ends_with(b"\r\n\r\n"));
}

/// As another parser reads it, without the two fields that the server puts first.
fn read(out: &[u8]) -> (u16, Vec<Line>) {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS + 8];
    let mut head = httparse::Response::new(&mut fields);
    assert_eq!(head.parse(out), Ok(httparse::Status::Complete(out.len())));
    assert_eq!(head.version, Some(1));
    let lines = head.headers.iter().map(|field| (field.name.as_bytes().to_vec(), trimmed(field.value)));
    let mut lines: Vec<Line> = lines.collect();
    let own: Vec<Line> = lines.drain(..2).collect();
    assert!(own[0].0 == b"Server" && own[1].0 == b"Date", "{own:?}");
    (head.code.expect("a status"), lines)
}
