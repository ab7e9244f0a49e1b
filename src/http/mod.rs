//! Owns: the value types of HTTP/1.x that every other file of this layer speaks in.
//! Rule: a head is a set of offsets into the octets it was parsed from; nothing is copied and nothing is decoded here.
//! Never: sockets, clock, log, Python, globals; `now` and limits are arguments, results are values.
// No panic can be reached from the network: what could be one here says why it is none.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

pub mod body;
pub mod date;
pub mod lenient;
pub mod octets;
pub mod parse;
pub mod reject;
pub mod response;
pub mod rules;
pub mod scan;
pub mod underscore;

pub use lenient::Leniency;
pub use reject::Reject;
pub use underscore::Forwarders;

/// A range of octets, relative to a base that the holder names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    #[allow(clippy::indexing_slicing, reason = "the parser has made it, of these octets")]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }

    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// The two versions that this server speaks (RFC 9112 §2.3); any other is refused while parsing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    Http10,
    #[default]
    Http11,
}

impl Version {
    /// As it stands in SERVER_PROTOCOL.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        }
    }
}

/// How the end of the request body is found (RFC 9112 §6.3), decided once from the whole head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    Empty,
    Length(u64),
    Chunked,
}

/// One field line; both spans are relative to the start of the field block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: Span,
    pub value: Span,
}

/// What follows from the field block alone, so that an identical block need not be read again.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// The fields the application may see, in order: those dropped by policy are gone.
    pub list: Vec<Field>,
    pub framing: Framing,
    /// `Connection` contains `close` / `keep-alive` (RFC 9112 §9.3), over all its lines.
    pub close: bool,
    pub keep_alive: bool,
    /// `Expect: 100-continue` (RFC 9110 §10.1.1).
    pub expect_continue: bool,
}

/// The start line, offsets relative to the first octet handed to the parser.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartLine {
    pub method: Span,
    /// The request target as received (RAW_URI).
    pub target: Span,
    /// Path and query of the target; the query excludes `?` and is empty when there is none.
    pub path: Span,
    pub query: Span,
    /// The authority of an absolute-form target, which replaces Host (RFC 9112 §3.2.2); empty otherwise.
    pub authority: Span,
    pub version: Version,
}

/// A whole request head. Reused from request to request: parsing overwrites it.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub start: StartLine,
    /// Where the field block begins; `Field` spans are relative to it.
    pub fields_at: usize,
    pub fields: Fields,
    /// Octets of the whole head, a skipped leading CRLF and the final CRLFCRLF included.
    pub length: usize,
}

impl Head {
    /// Whether the connection may serve another request after this one (RFC 9112 §9.3).
    pub fn persistent(&self) -> bool {
        match self.start.version {
            Version::Http11 => !self.fields.close,
            Version::Http10 => self.fields.keep_alive && !self.fields.close,
        }
    }
}

/// Bounds on what a client may send before it is refused; all in octets except `fields`.
/// 0 is no special value here: the configuration has made a number of "unlimited".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub request_line: usize,
    pub fields: usize,
    pub field_size: usize,
    /// The whole head.
    pub head: usize,
}

/// What to do with a field name that contains `_` (setting `header_map`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderMap {
    #[default]
    Drop,
    Refuse,
    Dangerous,
}

/// Which methods are passed on (setting `permit_unconventional_http_method`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Methods {
    /// Those that look like the registered ones: 3 to 20 octets, no lower-case letter, no `#`.
    #[default]
    Conventional,
    /// Every token (RFC 9110 §9.1).
    Any,
}

/// Everything the operator decided about heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub limits: Limits,
    pub header_map: HeaderMap,
    pub forwarders: Forwarders,
    pub methods: Methods,
    /// What `lenient` rewrites before a head is parsed.
    pub leniency: Leniency,
}

#[cfg(test)]
mod properties;
