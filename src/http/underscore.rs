//! Owns: field names with `_`. RFC 3875 §4.1.18 maps `-` to `_`, so `X_User` and `X-User` share one environ key.
//! Rule: what the application sees does not depend on the order of fields with different names, and a name by which a
//! trusted forwarder speaks cannot be taken by another spelling of it.
//! Never: reads a value.

use super::{Field, HeaderMap, Policy, Reject};
use std::cmp::Ordering;

/// The names by which a trusted peer speaks for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarders {
    /// The setting `forwarder_headers`.
    listed: Vec<String>,
    /// That setting has `*`: every name with `_`.
    any: bool,
    /// The names of the setting `secure_scheme_headers`.
    schemes: Vec<String>,
    /// Bit n: one of these names has n bytes. Bit 63 stands for all longer ones.
    lengths: u64,
}

impl Forwarders {
    pub fn new(listed: Vec<String>, schemes: Vec<String>) -> Forwarders {
        let any = listed.iter().any(|name| name == "*");
        let lengths = listed.iter().chain(&schemes).fold(0, |bits, name| bits | length_bit(name.as_bytes()));
        Forwarders { listed, any, schemes, lengths }
    }

    pub fn listed(&self) -> &[String] {
        &self.listed
    }

    /// Whether `name` is another spelling of one of these names, and none of them itself.
    #[inline]
    fn is_shadowed(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name) != 0 && self.shadows(name)
    }

    fn shadows(&self, name: &[u8]) -> bool {
        let known = || self.listed.iter().chain(&self.schemes).map(String::as_bytes);
        known().any(|own| same_key(own, name)) && !known().any(|own| own.eq_ignore_ascii_case(name))
    }

    fn rank(&self, name: &[u8]) -> Rank {
        let holds = |names: &[String]| names.iter().any(|own| own.as_bytes().eq_ignore_ascii_case(name));
        if holds(&self.schemes) {
            Rank::Scheme
        } else if holds(&self.listed) {
            Rank::Listed
        } else if self.any && name.contains(&b'_') {
            Rank::Any
        } else {
            Rank::Anybody
        }
    }
}

/// Whose name it is, when a trusted peer sends it. The greatest of several spellings wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Anybody,
    /// By `*` in `forwarder_headers`.
    Any,
    Listed,
    Scheme,
}

fn length_bit(name: &[u8]) -> u64 {
    1 << name.len().min(63)
}

/// As it is compared when the environ key is all that counts.
fn folded(byte: u8) -> u8 {
    if byte == b'_' {
        b'-'
    } else {
        byte.to_ascii_lowercase()
    }
}

/// Whether both names become the same environ key.
pub fn same_key(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(&a, &b)| folded(a) == folded(b))
}

/// Whether a trusted peer's field without `_` poses as one of the forwarder's.
#[inline]
pub fn is_shadowed(name: &[u8], policy: &Policy, trusted: bool) -> bool {
    trusted && policy.forwarders.is_shadowed(name)
}

/// Whether a field is kept that has `_` in its name (setting `header_map`).
pub fn is_kept(name: &[u8], policy: &Policy, trusted: bool) -> Result<bool, Reject> {
    // These say what the message is, and have one environ key that only their own name may set.
    const OF_THE_MESSAGE: [&[u8]; 3] = [b"content-length", b"content-type", b"transfer-encoding"];
    if OF_THE_MESSAGE.iter().any(|known| same_key(name, known)) || is_shadowed(name, policy, trusted) {
        return refused(policy);
    }
    if trusted && policy.forwarders.rank(name) > Rank::Anybody {
        return Ok(true);
    }
    match policy.header_map {
        HeaderMap::Dangerous => Ok(true),
        _ => refused(policy),
    }
}

/// What becomes of a field that would pose as another.
pub fn refused(policy: &Policy) -> Result<bool, Reject> {
    match policy.header_map {
        HeaderMap::Refuse => Err(Reject::UnderscoreInName),
        _ => Ok(false),
    }
}

/// Settles what is left of fields that share an environ key and differ in their names: from a trusted peer the forwarder's
/// spelling stays alone. Where nobody's spelling is better than another (`header_map = dangerous`), all of them stay, in
/// the order of their names, so that the list they become is the same whoever came first. `list` has names with `_`.
pub fn settle(list: &mut Vec<Field>, block: &[u8], policy: &Policy, trusted: bool) -> Result<(), Reject> {
    let mut sorted = list.clone();
    // Stable: fields of one name stay in their order.
    sorted.sort_by(|a, b| by_key(a.name.of(block), b.name.of(block)));
    let mut kept: Vec<Field> = Vec::with_capacity(list.len());
    let mut changed = false;
    for group in sorted.chunk_by(|a, b| same_key(a.name.of(block), b.name.of(block))) {
        if is_one_name(group, block) {
            kept.extend_from_slice(group);
            continue;
        }
        refused(policy)?;
        changed = true;
        let mut group = group.to_vec();
        group.sort_by(|a, b| by_spelling(a.name.of(block), b.name.of(block)));
        let rank = |field: &Field| match trusted {
            true => policy.forwarders.rank(field.name.of(block)),
            false => Rank::Anybody,
        };
        let best = group.iter().max_by_key(|field| rank(field)).copied();
        match best.filter(|best| rank(best) > Rank::Anybody) {
            Some(best) => {
                let name = best.name.of(block);
                kept.extend(group.iter().filter(|field| field.name.of(block).eq_ignore_ascii_case(name)));
            }
            None => kept.append(&mut group),
        }
    }
    if changed {
        *list = kept;
    }
    Ok(())
}

fn is_one_name(group: &[Field], block: &[u8]) -> bool {
    let first = group.first().map_or(&b""[..], |field| field.name.of(block));
    group.iter().all(|field| field.name.of(block).eq_ignore_ascii_case(first))
}

fn by_key(one: &[u8], other: &[u8]) -> Ordering {
    one.iter().map(|&byte| folded(byte)).cmp(other.iter().map(|&byte| folded(byte)))
}

/// `-` before `_`.
fn by_spelling(one: &[u8], other: &[u8]) -> Ordering {
    one.iter().map(u8::to_ascii_lowercase).cmp(other.iter().map(u8::to_ascii_lowercase))
}

#[cfg(test)]
mod tests {
    use super::super::{parse, Head, Leniency, Limits, Methods};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn policy(header_map: HeaderMap, listed: &[&str]) -> Policy {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Policy {
            limits: Limits { request_line: 4094, fields: 100, field_size: 8190, head: 65536 },
            header_map,
            forwarders: Forwarders::new(owned(listed), owned(&["X-FORWARDED-PROTO"])),
            methods: Methods::Conventional,
            leniency: Leniency::default(),
        }
    }

    /// Environ keys and their values, as `wsgi` joins them.
    type Environ = BTreeMap<String, Vec<String>>;

    fn environ(fields: &[(String, String)], policy: &Policy, trusted: bool) -> Result<Environ, Reject> {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let bytes = format!("POST / HTTP/1.1\r\n{lines}\r\n").into_bytes();
        let mut head = Head::default();
        assert_eq!(parse::head(&bytes, policy, trusted, &mut head)?, parse::Status::Complete);
        let (block, mut environ) = (&bytes[head.fields_at..], Environ::new());
        let text = |span: super::super::Span| String::from_utf8(span.of(block).to_vec()).unwrap();
        for field in &head.fields.list {
            let key = text(field.name).to_ascii_uppercase().replace('-', "_");
            environ.entry(key).or_default().push(text(field.value));
        }
        Ok(environ)
    }

    fn fields(lines: &[(&str, &str)]) -> Vec<(String, String)> {
        lines.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn both_ways(lines: &[(&str, &str)], policy: &Policy, trusted: bool) -> Result<Environ, Reject> {
        let lines = fields(lines);
        let found = environ(&lines, policy, trusted);
        let turned: Vec<_> = lines.into_iter().rev().collect();
        assert_eq!(environ(&turned, policy, trusted), found, "{turned:?}");
        found
    }

    fn values(lines: &[(&str, &str)], policy: &Policy, trusted: bool, key: &str) -> Vec<String> {
        both_ways(lines, policy, trusted).unwrap().remove(key).unwrap_or_default()
    }

    #[test]
    fn a_forwarders_name_wins_over_its_other_spellings() {
        let user = [("REMOTE_USER", "proxy"), ("Remote-User", "client")];
        for map in [HeaderMap::Drop, HeaderMap::Dangerous] {
            for listed in [&["REMOTE_USER"][..], &["*"]] {
                let policy = policy(map, listed);
                assert_eq!(values(&user, &policy, true, "REMOTE_USER"), ["proxy"], "{policy:?}");
            }
        }
        let refusing = policy(HeaderMap::Refuse, &["REMOTE_USER"]);
        assert_eq!(both_ways(&user, &refusing, true), Err(Reject::UnderscoreInName));
        assert!(both_ways(&user[..1], &refusing, true).is_ok());
        // Of a peer that is not trusted, nobody's name is better.
        let dropping = policy(HeaderMap::Drop, &["REMOTE_USER"]);
        assert_eq!(values(&user, &dropping, false, "REMOTE_USER"), ["client"]);
        let dangerous = policy(HeaderMap::Dangerous, &["REMOTE_USER"]);
        assert_eq!(values(&user, &dangerous, false, "REMOTE_USER"), ["client", "proxy"]);
    }

    #[test]
    fn what_the_forwarder_has_not_said_nobody_says_in_its_place() {
        let listed = policy(HeaderMap::Drop, &["REMOTE_USER"]);
        for name in ["Remote-User", "remote-USER"] {
            assert!(values(&[(name, "client")], &listed, true, "REMOTE_USER").is_empty(), "{name}");
        }
        let refusing = policy(HeaderMap::Refuse, &["REMOTE_USER"]);
        assert_eq!(both_ways(&[("Remote-User", "a")], &refusing, true), Err(Reject::UnderscoreInName));
        // With `*` no name is the forwarder's more than another.
        let any = policy(HeaderMap::Drop, &["*"]);
        assert_eq!(values(&[("Remote-User", "client")], &any, true, "REMOTE_USER"), ["client"]);
    }

    #[test]
    fn a_scheme_field_has_no_other_spelling() {
        let lines = [("X-Forwarded-Proto", "https"), ("X_Forwarded_Proto", "http")];
        for (map, listed) in [(HeaderMap::Drop, "*"), (HeaderMap::Dangerous, "A_B")] {
            let policy = policy(map, &[listed]);
            assert_eq!(values(&lines, &policy, true, "X_FORWARDED_PROTO"), ["https"], "{listed}");
            assert!(values(&lines[1..], &policy, true, "X_FORWARDED_PROTO").is_empty(), "{listed}");
        }
        let both = policy(HeaderMap::Drop, &["X_FORWARDED_PROTO"]);
        assert_eq!(values(&lines, &both, true, "X_FORWARDED_PROTO"), ["https"]);
        assert_eq!(values(&lines[1..], &both, true, "X_FORWARDED_PROTO"), ["http"]);
    }

    #[test]
    fn what_frames_a_message_has_no_other_spelling() {
        for name in ["Content_Length", "content_type", "Transfer_Encoding", "TRANSFER_ENCODING"] {
            for listed in ["*", name] {
                let dangerous = policy(HeaderMap::Dangerous, &[&listed.to_ascii_uppercase()]);
                let lines = [(name, "5"), ("Content-Type", "a/b"), ("Content-Length", "0")];
                let found = both_ways(&lines, &dangerous, true).unwrap();
                assert_eq!(found.get("CONTENT_TYPE"), Some(&vec!["a/b".to_string()]), "{name} {listed}");
                assert_eq!(found.get("CONTENT_LENGTH"), Some(&vec!["0".to_string()]), "{name} {listed}");
                assert!(!found.contains_key("TRANSFER_ENCODING"));
                let refusing = policy(HeaderMap::Refuse, &[&listed.to_ascii_uppercase()]);
                assert_eq!(both_ways(&lines[..1], &refusing, true), Err(Reject::UnderscoreInName));
            }
        }
    }

    /// Names of few letters, so that many share a key.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            6 => "[xX][-_][yY]([-_][zZ])?",
            3 => proptest::sample::select(vec![
                "Remote-User", "REMOTE_USER", "Remote_User", "SCRIPT_NAME", "Script-Name", "Host", "Cookie",
                "X-Forwarded-Proto", "X_FORWARDED_PROTO", "X-Forwarded_Proto", "Content-Type", "Content_Type",
                "Content_Length", "Content-Length", "Transfer_Encoding", "Path-Info", "PATH_INFO",
            ]).prop_map(str::to_string),
        ]
    }

    fn head_map() -> impl Strategy<Value = HeaderMap> {
        proptest::sample::select(vec![HeaderMap::Drop, HeaderMap::Refuse, HeaderMap::Dangerous])
    }

    fn listed() -> impl Strategy<Value = Vec<&'static str>> {
        let names = ["REMOTE_USER", "SCRIPT_NAME", "*", "X_Y", "X_Y-Z", "X_Y_Z", "X-Y", "X_FORWARDED_PROTO"];
        proptest::sample::subsequence(names.to_vec(), 0..=names.len())
    }

    /// The same fields in another order, in which those of one name keep theirs.
    fn in_another_order(fields: &[(String, String)], keys: &[u32]) -> Vec<(String, String)> {
        let mut turns: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for ((name, _), key) in fields.iter().zip(keys) {
            turns.entry(name.to_ascii_lowercase()).or_default().push(*key);
        }
        for keys in turns.values_mut() {
            keys.sort_by(|a, b| b.cmp(a));
        }
        let key = |name: &str| turns.get_mut(&name.to_ascii_lowercase()).and_then(Vec::pop).unwrap();
        let keys: Vec<u32> = fields.iter().map(|(name, _)| name.as_str()).map(key).collect();
        let mut order: Vec<usize> = (0..fields.len()).collect();
        order.sort_by_key(|&place| (keys[place], place));
        order.into_iter().map(|place| fields[place].clone()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_environ_does_not_depend_on_the_order_of_other_fields(
            fields in proptest::collection::vec((name(), any::<u32>()), 0..9),
            map in head_map(),
            listed in listed(),
            trusted in any::<bool>(),
        ) {
            let keys: Vec<u32> = fields.iter().map(|(_, key)| *key).collect();
            let number = |(n, (name, _)): (usize, (String, u32))| (name, n.to_string());
            let fields: Vec<_> = fields.into_iter().enumerate().map(number).collect();
            let policy = policy(map, &listed);
            let found = environ(&fields, &policy, trusted);
            let turned = in_another_order(&fields, &keys);
            let other = environ(&turned, &policy, trusted);
            // Of several reasons to refuse, the first counts.
            prop_assert!(found == other || found.is_err() && other.is_err(), "{found:?} {other:?}");
            // Where a trusted peer's own name is there, nobody else's value is under its key.
            if let (Ok(found), true) = (found, trusted) {
                let is_own = |name: &str| policy.forwarders.rank(name.as_bytes()) > Rank::Any;
                for (key, values) in found {
                    let said: Vec<_> =
                        fields.iter().filter(|(name, _)| same_key(name.as_bytes(), key.as_bytes())).collect();
                    if said.iter().any(|(name, _)| is_own(name)) {
                        let by_others = said.iter().filter(|(name, _)| !is_own(name)).map(|(_, value)| value);
                        prop_assert!(by_others.into_iter().all(|value| !values.contains(value)), "{key} {values:?}");
                    }
                }
            }
        }
    }
}
