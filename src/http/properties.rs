//! Owns: properties of the rules, for more messages than anybody would write down.
//! Rule: each says what holds of every message of a kind; the cases are made by proptest, and a failing one is made small.
//! Never: says what one message comes to; such examples stand beside their rules.

use super::body::Decoder;
use super::parse::{self, Status};
use super::scan::Scan;
use super::{Forwarders, Framing, Head, HeaderMap, Leniency, Limits, Methods, Policy, Reject};
use proptest::prelude::*;
use proptest::sample::select;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn usual() -> Policy {
    Policy {
        limits: Limits { request_line: 8190, fields: 100, field_size: 8190, head: 65536 },
        header_map: HeaderMap::Drop,
        forwarders: Forwarders::default(),
        methods: Methods::Conventional,
        leniency: Leniency::default(),
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    let small = Limits { request_line: 24, fields: 3, field_size: 28, head: 90 };
    let limits = prop_oneof![Just(usual().limits), Just(small)];
    let leniency =
        any::<(bool, bool, bool, bool)>().prop_map(|(folding, name_spaces, versions, casefold)| Leniency {
            folding,
            name_spaces,
            versions,
            casefold,
        });
    let leniency = prop_oneof![Just(Leniency::default()), leniency];
    let map = select(vec![HeaderMap::Drop, HeaderMap::Refuse, HeaderMap::Dangerous]);
    let methods = select(vec![Methods::Conventional, Methods::Any]);
    (limits, leniency, map, methods).prop_map(|(limits, leniency, header_map, methods)| Policy {
        limits,
        header_map,
        methods,
        leniency,
        forwarders: Forwarders::new(vec!["SCRIPT_NAME".into()], vec!["X-FORWARDED-PROTO".into()]),
    })
}

/// Pieces of heads, so that many of what they make is nearly one.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&[u8]> = vec![
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b HTTP/1.1\r\n",
        b"get / HTTP/2.0\r\n",
        b"OPTIONS * HTTP/1.0\r\n",
        b"CONNECT h:80 HTTP/1.1\r\n",
        b"Host: h\r\n",
        b"Host : h\r\n",
        b"A: b\r\n",
        b"A: b\r\n c\r\n",
        b"A \t: b\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length:\r\n 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"X_Y: 1\r\n",
        b"SCRIPT_NAME: /a\r\n",
        b"Script-Name: /b\r\n",
        b"Content-Type: a\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"\xff",
        b"GET",
        b"/",
        b"HTTP/1.1",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        b"\r\n ",
        b"#",
    ];
    let piece = select(known).prop_map(<[u8]>::to_vec);
    let head = proptest::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat());
    let good = "(GET|POST|get) /[a-z]{0,8} HTTP/1[.][01]\r\n(Host: h\r\n)?([A-C][-_]?[a-b]: [a-z]{0,4}\r\n( [a-z ]{1,3}\r\n)?){0,3}\r\n";
    prop_oneof![2 => head, 1 => good.prop_map(String::into_bytes)]
}

/// Lengths from one to the next cut.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1..12usize, 1..20)
}

/// The places of the cuts, the end among them.
fn ends(length: usize, steps: &[usize]) -> Vec<usize> {
    let mut at = 0;
    let mut ends: Vec<usize> = Vec::new();
    for step in steps.iter().cycle() {
        if at >= length {
            break;
        }
        at = length.min(at + step);
        ends.push(at);
    }
    ends
}

/// The head's bytes and what was made of them, or nothing while more is needed; and how many bytes there were.
type Answer = (Result<Option<(Vec<u8>, String)>, Reject>, usize);

fn arrive(bytes: &[u8], ends: impl IntoIterator<Item = usize>, policy: &Policy, trusted: bool) -> Answer {
    let (mut held, mut head, mut scan): (_, _, Option<Box<Scan>>) = (Vec::new(), Head::default(), None);
    for end in ends {
        held.extend_from_slice(&bytes[held.len()..end]);
        let status = match policy.leniency.is_none() {
            true => parse::more(&held, policy, trusted, &mut scan, &mut head),
            false => parse::lenient(&mut held, policy, trusted, &mut scan, &mut head),
        };
        match status {
            Ok(Status::Partial) => {}
            Ok(Status::Complete) => {
                held.truncate(head.length);
                return (Ok(Some((held, format!("{head:?}")))), end);
            }
            Err(reject) => return (Err(reject), end),
        }
    }
    (Ok(None), bytes.len())
}

proptest! {
    #![proptest_config(config(8192))]

    /// Nothing but the bytes decides, and it is decided with the first that can decide it.
    #[test]
    fn a_head_comes_to_the_same_with_the_same_byte_however_it_is_cut(
        bytes in pieces(), steps in cuts(), policy in policies(), trusted in any::<bool>(),
    ) {
        let (single, first) = arrive(&bytes, 1..=bytes.len(), &policy, trusted);
        let ends = ends(bytes.len(), &steps);
        let expected = ends.iter().copied().find(|&end| end >= first).unwrap_or(bytes.len());
        prop_assert_eq!(arrive(&bytes, ends, &policy, trusted), (single.clone(), expected));
        prop_assert_eq!(arrive(&bytes, [bytes.len()], &policy, trusted).0, single);
    }

    /// A head that is not refused can still become one that is accepted: what was kept was not hopeless.
    #[test]
    fn what_follows_a_head_changes_nothing(bytes in pieces(), rest in pieces(), policy in policies()) {
        let (answer, first) = arrive(&bytes, 1..=bytes.len(), &policy, false);
        if answer != Ok(None) {
            let longer = [&bytes[..first], &rest[..]].concat();
            prop_assert_eq!(arrive(&longer, [longer.len()], &policy, false).0, answer);
        }
    }

    /// RFC 9112 §6.3: one length, or chunked alone in HTTP/1.1, or no body; all else is refused.
    #[test]
    fn the_end_of_a_body_has_one_meaning_or_the_head_is_refused(
        lines in proptest::collection::vec(select(vec![
            ("Content-Length", "0"), ("Content-Length", "5"), ("content-length", "05"), ("Content-Length", "+5"),
            ("Content-Length", "5, 5"), ("Content-Length", ""), ("CONTENT-LENGTH", "9223372036854775807"),
            ("Content-Length", "9223372036854775808"), ("Transfer-Encoding", "chunked"), ("transfer-encoding", "Chunked"),
            ("Transfer-Encoding", "gzip"), ("Transfer-Encoding", "gzip, chunked"), ("Transfer-Encoding", "chunked, chunked"),
            ("Transfer-Encoding", ""), ("Transfer-Encoding", "x"), ("Content_Length", "7"), ("Transfer_Encoding", "chunked"),
            ("A", "b"),
        ]), 0..4),
        old in any::<bool>(),
    ) {
        let version = if old { "1.0" } else { "1.1" };
        let text: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let bytes = format!("POST / HTTP/{version}\r\n{text}\r\n").into_bytes();
        let mut head = Head::default();
        let answer = parse::head(&bytes, &usual(), false, &mut head).map(|_| head.fields.framing);
        let of = |wanted: &str| -> Vec<&str> {
            lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value).collect()
        };
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
        let expected = match (&of("content-length")[..], &of("transfer-encoding")[..]) {
            ([], []) => Some(Framing::Empty),
            ([length], []) => number(length).map(|length| Framing::Length(length as u64)),
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") && !old => Some(Framing::Chunked),
            _ => None,
        };
        prop_assert_eq!(answer.ok(), expected, "{:?}", String::from_utf8_lossy(&bytes));
    }

    /// RFC 9112 §3.2, read by a reader of its own.
    #[test]
    fn a_target_has_one_of_the_four_forms(
        method in select(vec!["GET", "OPTIONS", "CONNECT", "POST"]),
        target in "(/|[*]|http|https:|ftp|://|:|//|[a-z]{1,3}|[.]|[?]|@|\\[::1\\]|80|%41|%4|#|\\\\|<|é){0,7}",
    ) {
        let bytes = format!("{method} {target} HTTP/1.1\r\n\r\n").into_bytes();
        let mut head = Head::default();
        let answer = parse::head(&bytes, &usual(), false, &mut head);
        let visible = target.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'#');
        let host = |text: &str| super::rules::is_host(text.as_bytes()) && !text.is_empty() && !text.starts_with(':');
        let absolute = target.split_once("://").is_some_and(|(scheme, rest)| {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            let plain = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
            plain && scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && host(authority)
        });
        let connect = target.rsplit_once(':').is_some_and(|(name, port)| {
            host(&target) && !name.is_empty() && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
        });
        let expected = visible && match method {
            "CONNECT" => connect,
            "OPTIONS" if target == "*" => true,
            _ => target.starts_with('/') || absolute,
        };
        prop_assert_eq!(answer.is_ok(), expected, "{}", target);
        if answer.is_ok() && method != "CONNECT" {
            let start = head.start;
            let (path, query) = (start.path.of(&bytes), start.query.of(&bytes));
            let rest = match start.authority.is_empty() {
                true => target.as_bytes(),
                false => target.split_once("://").unwrap().1.as_bytes(),
            };
            let authority = start.authority.of(&bytes);
            prop_assert!(rest.starts_with(authority));
            let mark = if query.is_empty() && !rest.contains(&b'?') { &b""[..] } else { b"?" };
            prop_assert_eq!([authority, path, mark, query].concat(), rest.to_vec());
        }
    }

    /// RFC 9110 §5.5: what is accepted arrives without the white space around it, and nothing else is changed.
    #[test]
    fn a_value_arrives_as_it_was_sent_or_is_refused(value in proptest::collection::vec(any::<u8>(), 0..12)) {
        let bytes = [b"GET / HTTP/1.1\r\nA: ", &value[..], b"\r\nB: c\r\n\r\n"].concat();
        let mut head = Head::default();
        let answer = parse::head(&bytes, &usual(), false, &mut head);
        let good = value.iter().all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f);
        prop_assert_eq!(answer.is_ok(), good);
        if good {
            let field = head.fields.list[0];
            let from = value.iter().position(|byte| !b" \t".contains(byte)).unwrap_or(value.len());
            let to = value.iter().rposition(|byte| !b" \t".contains(byte)).map_or(from, |last| last + 1);
            prop_assert_eq!(field.value.of(&bytes[head.fields_at..]), &value[from..to]);
            prop_assert_eq!(head.fields.list.len(), 2);
        }
    }
}

/// What a chunked body comes to: its content, how many bytes it took, and whether it is over.
fn decode(
    bytes: &[u8],
    ends: impl IntoIterator<Item = usize>,
    limits: &Limits,
) -> Result<(Vec<u8>, usize, bool), (Reject, usize)> {
    let mut decoder = Decoder::new(Framing::Chunked, limits);
    let (mut content, mut at) = (Vec::new(), 0);
    for end in ends {
        while at < end && !decoder.is_done() {
            let step = decoder.decode(&bytes[at..end]).map_err(|reject| (reject, end))?;
            content.extend_from_slice(&bytes[at..end][step.data.clone()]);
            at += step.consumed;
        }
    }
    Ok((content, at, decoder.is_done()))
}

fn chunks() -> impl Strategy<Value = Vec<(Vec<u8>, String)>> {
    proptest::collection::vec(
        (proptest::collection::vec(any::<u8>(), 1..20), "(;[a-z]{1,4}(=([a-z]{1,3}|\"[a-z ]{0,3}\"))?){0,2}"),
        0..5,
    )
}

fn encoded(chunks: &[(Vec<u8>, String)], trailers: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut bytes, mut content) = (Vec::new(), Vec::new());
    for (data, extension) in chunks {
        bytes.extend_from_slice(format!("{:x}{extension}\r\n", data.len()).as_bytes());
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
        content.extend_from_slice(data);
    }
    bytes.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    (bytes, content)
}

proptest! {
    #![proptest_config(config(4096))]

    #[test]
    fn a_chunked_body_is_its_chunks_however_it_is_cut(
        chunks in chunks(), trailers in "(x-[a-z]{1,4}: [a-z]{0,4}\r\n){0,2}", steps in cuts(), next in pieces(),
    ) {
        let (bytes, content) = encoded(&chunks, &trailers);
        let length = bytes.len();
        let bytes = [bytes, next].concat();
        let found = decode(&bytes, ends(bytes.len(), &steps), &usual().limits);
        prop_assert_eq!(found, Ok((content, length, true)));
    }

    #[test]
    fn a_chunked_body_that_is_wrong_is_refused_with_the_same_byte_however_it_is_cut(
        chunks in chunks(), steps in cuts(), place in any::<prop::sample::Index>(),
        put in select(vec![&b""[..], b"\r", b"\n", b"\r\n", b" ", b"0", b"f", b"g", b";", b"\"", b"=", b"\0", b"\xff", b"-", b"_", b"0x"]),
        gone in 0..3usize,
    ) {
        let (mut bytes, _) = encoded(&chunks, "");
        let at = place.index(bytes.len());
        bytes.splice(at..bytes.len().min(at + gone), put.iter().copied());
        let limits = usual().limits;
        let single = decode(&bytes, 1..=bytes.len(), &limits);
        let ends = ends(bytes.len(), &steps);
        let expected = single.map_err(|(reject, first)| {
            (reject, ends.iter().copied().find(|&end| end >= first).unwrap_or(bytes.len()))
        });
        prop_assert_eq!(decode(&bytes, ends, &limits), expected);
    }
}
