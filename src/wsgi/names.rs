//! Owns: from field names to environ keys: `Accept-Language` → `HTTP_ACCEPT_LANGUAGE`.
//! Rule: known names, and those seen often enough to be kept, are found without making a string; what is kept is bounded,
//! so that a client cannot grow it.
//! Never: decides which names the application may see.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::http::underscore::same_key;

/// Names that clients and proxies really send.
const KNOWN: &[&str] = &[
    "Accept",
    "Accept-Charset",
    "Accept-Encoding",
    "Accept-Language",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
    "Authorization",
    "Cache-Control",
    "CF-Connecting-IP",
    "CF-IPCountry",
    "CF-Ray",
    "Connection",
    "Content-Encoding",
    "Content-Language",
    "Content-Length",
    "Content-Type",
    "Cookie",
    "Date",
    "DNT",
    "Expect",
    "Forwarded",
    "From",
    "Host",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "If-Unmodified-Since",
    "Keep-Alive",
    "Origin",
    "Pragma",
    "Priority",
    "Range",
    "Referer",
    "Sec-CH-UA",
    "Sec-CH-UA-Mobile",
    "Sec-CH-UA-Platform",
    "Sec-Fetch-Dest",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Site",
    "Sec-Fetch-User",
    "TE",
    "Traceparent",
    "Tracestate",
    "Upgrade",
    "Upgrade-Insecure-Requests",
    "User-Agent",
    "Via",
    "X-Amzn-Trace-Id",
    "X-CSRFToken",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Forwarded-Protocol",
    "X-Forwarded-Ssl",
    "X-Real-IP",
    "X-Request-Id",
    "X-Request-Start",
    "X-Requested-With",
];

const BUCKETS: usize = 512;
/// Names kept in all, the known ones included; half of the buckets stay free so that a search ends soon.
const MOST: usize = 256;
const LONGEST: usize = 64;

/// Kept by environ key: `X-User` and `X_User` are one entry, however often a request has either.
struct Entry {
    name: Box<[u8]>,
    key: Py<PyString>,
    /// The request that had the key last, to notice a second one.
    request: u64,
}

pub struct Names {
    buckets: Vec<Option<Entry>>,
    count: usize,
    request: u64,
}

/// An environ key, and whether this request can have it already.
pub enum Key<'n> {
    First(&'n Py<PyString>),
    Uncertain(Py<PyString>),
}

impl Names {
    pub fn new(py: Python<'_>) -> Names {
        let mut buckets = Vec::new();
        buckets.resize_with(BUCKETS, || None);
        let mut names = Names { buckets, count: 0, request: 0 };
        for name in KNOWN {
            names.key(py, name.as_bytes());
        }
        names
    }

    /// Before the fields of a request.
    pub fn start(&mut self) {
        self.request += 1;
    }

    pub fn key(&mut self, py: Python<'_>, name: &[u8]) -> Key<'_> {
        let at = self.find(name);
        let request = self.request;
        if self.buckets[at].is_none() {
            let key = make_key(name);
            if self.count >= MOST || name.len() > LONGEST {
                // Not interned: some Pythons (3.12) never let go of what is.
                return Key::Uncertain(PyString::new(py, &key).unbind());
            }
            let key = PyString::intern(py, &key).unbind();
            self.count += 1;
            self.buckets[at] = Some(Entry { name: name.into(), key, request: request.wrapping_sub(1) });
        }
        match &mut self.buckets[at] {
            Some(entry) if entry.request == request => Key::Uncertain(entry.key.clone_ref(py)),
            Some(entry) => {
                entry.request = request;
                Key::First(&entry.key)
            }
            None => Key::Uncertain(PyString::new(py, &make_key(name)).unbind()),
        }
    }

    /// The bucket that has the name's environ key, or the free one where it belongs.
    fn find(&self, name: &[u8]) -> usize {
        let mut at = hash(name) % BUCKETS;
        while let Some(entry) = &self.buckets[at] {
            if entry.name.eq_ignore_ascii_case(name) || same_key(&entry.name, name) {
                break;
            }
            at = (at + 1) % BUCKETS;
        }
        at
    }
}

/// Of what the environ key is made of: letters without their case, `_` as `-`.
fn hash(name: &[u8]) -> usize {
    let folded = |&byte: &u8| usize::from(if byte == b'_' { b'-' } else { byte | 0x20 });
    name.iter().map(folded).fold(name.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

fn make_key(name: &[u8]) -> String {
    let upper: String = name
        .iter()
        .map(|octet| if *octet == b'-' { '_' } else { char::from(octet.to_ascii_uppercase()) })
        .collect();
    match upper.as_str() {
        "CONTENT_TYPE" | "CONTENT_LENGTH" => upper,
        _ => format!("HTTP_{upper}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(py: Python<'_>, names: &mut Names, name: &[u8]) -> (String, bool) {
        match names.key(py, name) {
            Key::First(key) => (key.to_string(), true),
            Key::Uncertain(key) => (key.to_string(), false),
        }
    }

    #[test]
    fn a_name_is_found_in_any_case_and_a_second_one_is_noticed() {
        Python::initialize();
        Python::attach(|py| {
            let mut names = Names::new(py);
            for _ in 0..2 {
                names.start();
                assert_eq!(text(py, &mut names, b"accept-LANGUAGE"), ("HTTP_ACCEPT_LANGUAGE".into(), true));
                assert_eq!(text(py, &mut names, b"Accept-Language"), ("HTTP_ACCEPT_LANGUAGE".into(), false));
                assert_eq!(text(py, &mut names, b"Content-Type"), ("CONTENT_TYPE".into(), true));
                assert_eq!(text(py, &mut names, b"X-New"), ("HTTP_X_NEW".into(), true));
                assert_eq!(text(py, &mut names, b"X_New"), ("HTTP_X_NEW".into(), false));
                // Whichever comes first.
                assert_eq!(text(py, &mut names, b"X_USER"), ("HTTP_X_USER".into(), true));
                assert_eq!(text(py, &mut names, b"x-user"), ("HTTP_X_USER".into(), false));
                assert_eq!(text(py, &mut names, b"Cf_Ray"), ("HTTP_CF_RAY".into(), true));
                assert_eq!(text(py, &mut names, b"CF-Ray"), ("HTTP_CF_RAY".into(), false));
            }
        });
    }

    #[test]
    fn what_clients_invent_is_kept_only_up_to_a_bound() {
        Python::initialize();
        Python::attach(|py| {
            let mut names = Names::new(py);
            for i in 0..5000 {
                names.start();
                let name = format!("X-Made-Up-{i}");
                assert_eq!(text(py, &mut names, name.as_bytes()).0, format!("HTTP_X_MADE_UP_{i}"));
            }
            assert_eq!(names.count, MOST);
            assert_eq!(text(py, &mut names, b"Host").0, "HTTP_HOST");
        });
    }
}
