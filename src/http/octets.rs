//! Owns: which octets may stand where in an HTTP/1.x message.
//! Rule: a question about an octet is one look-up in a table made at compile time.
//! Never: positions, lengths or meanings; those are `rules`.

/// RFC 9110 §5.6.2: `tchar`.
pub const TOKEN: u8 = 1;
/// A `tchar` that gunicorn takes in a method: no lower-case letter and no `#`.
pub const METHOD: u8 = 2;
/// RFC 3986 §3.2.2: `unreserved / sub-delims`, what a host may contain beside `%XX`.
pub const HOST: u8 = 4;
/// RFC 3986 §3.1: what a scheme may contain after its first letter.
pub const SCHEME: u8 = 8;
/// RFC 5234 B.1.
pub const DIGIT: u8 = 16;
pub const HEXDIG: u8 = 32;

const fn class_of(octet: u8) -> u8 {
    let mut class = 0;
    if octet.is_ascii_digit() {
        class |= DIGIT;
    }
    if octet.is_ascii_hexdigit() {
        class |= HEXDIG;
    }
    if octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'-' | b'.') {
        class |= SCHEME;
    }
    if octet.is_ascii_alphanumeric()
        || matches!(octet, b'-' | b'.' | b'_' | b'~')
        || matches!(octet, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
    {
        class |= HOST;
    }
    if octet.is_ascii_alphanumeric()
        || matches!(octet, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+')
        || matches!(octet, b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
    {
        class |= TOKEN;
        if !octet.is_ascii_lowercase() && octet != b'#' {
            class |= METHOD;
        }
    }
    class
}

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        table[octet] = class_of(octet as u8);
        octet += 1;
    }
    table
};

#[inline]
#[allow(clippy::indexing_slicing, reason = "an octet indexes a table of 256")]
pub fn is(octet: u8, class: u8) -> bool {
    CLASSES[octet as usize] & class != 0
}

#[inline]
pub fn all(octets: &[u8], class: u8) -> bool {
    octets.iter().all(|&octet| is(octet, class))
}

#[inline]
pub fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && all(octets, TOKEN)
}

/// RFC 9110 §5.5: HTAB, SP, VCHAR and obs-text; never another control, and never DEL.
#[inline]
pub fn is_text(octet: u8) -> bool {
    (octet >= b' ') & (octet != 0x7f) | (octet == b'\t')
}

/// Without an early exit, so that the compiler takes many octets at a time.
#[inline]
pub fn is_field_value(octets: &[u8]) -> bool {
    octets.iter().fold(true, |good, &o| good & is_text(o))
}

/// A request target is printable ASCII (RFC 9112 §3.2 by way of RFC 3986 §2), and a fragment is no part of it (§3.2.1).
#[inline]
pub fn is_target(octets: &[u8]) -> bool {
    let allowed = |o: u8| (o.wrapping_sub(0x21) < 0x5e) & (o != b'#');
    octets.iter().fold(true, |good, &o| good & allowed(o))
}

/// RFC 9110 §5.6.3: optional whitespace is SP and HTAB, nothing that Unicode calls a space.
pub fn trim(mut octets: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = octets {
        octets = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = octets {
        octets = rest;
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_rfc_9110_5_6_2() {
        for octet in 0..=255u8 {
            let separators = b"\"(),/:;<=>?@[\\]{}";
            let expected = octet > 0x20 && octet < 0x7f && !separators.contains(&octet);
            assert_eq!(is(octet, TOKEN), expected, "{octet:#x}");
        }
        assert!(!is_token(b""));
    }

    #[test]
    fn field_values_have_no_control_but_htab() {
        for octet in 0..=255u8 {
            let expected = octet == 9 || (octet >= 0x20 && octet != 0x7f);
            assert_eq!(is_field_value(&[b'a', octet]), expected, "{octet:#x}");
        }
    }

    #[test]
    fn targets_are_printable_ascii_without_fragment() {
        for octet in 0..=255u8 {
            let expected = (0x21..=0x7e).contains(&octet) && octet != b'#';
            assert_eq!(is_target(&[b'/', octet]), expected, "{octet:#x}");
        }
    }

    #[test]
    fn only_sp_and_htab_are_trimmed() {
        assert_eq!(trim(b" \ta\x0b\t "), b"a\x0b");
        assert_eq!(trim(b"\xa0a\x85"), b"\xa0a\x85");
        assert_eq!(trim(b" \t "), b"");
    }
}
