//! Owns: the rows of the table about what is taken for a request.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};
use crate::config::reading;

const PARSING: &str = "What is taken for a request";
const OFF: Opt = Opt { kind: Kind::Flag { given: true }, default: "false", section: PARSING, ..ROW };

pub const ROWS: &[Opt] = &[
    Opt {
        name: "protocol",
        long: &["protocol"],
        kind: Kind::Checked(reading::protocol),
        default: "http",
        section: PARSING,
        help: "What is spoken with the server in front: http.",
        ..ROW
    },
    Opt {
        name: "uwsgi_allow_ips",
        long: &["uwsgi-allow-from"],
        kind: Kind::AllowList,
        default: "127.0.0.1,::1",
        section: PARSING,
        help: "Accepted, and without effect while --protocol is http.",
        ..ROW
    },
    Opt {
        name: "http_parser",
        long: &["http-parser"],
        kind: Kind::Choice(&["auto", "python", "fast"]),
        default: "auto",
        section: PARSING,
        help: "Accepted, and without effect: there is one parser.",
        ..ROW
    },
    Opt {
        name: "permit_obsolete_folding",
        long: &["permit-obsolete-folding"],
        help: "Accept header fields that go on in a second line that begins with a space, as one \
               line. Those that frame a message are refused still.",
        ..OFF
    },
    Opt {
        name: "strip_header_spaces",
        long: &["strip-header-spaces"],
        help: "Accept spaces between a header field's name and its colon. Those that frame a \
               message are refused still.",
        ..OFF
    },
    Opt {
        name: "permit_unconventional_http_method",
        long: &["permit-unconventional-http-method"],
        help: "Accept methods with lower-case letters or #, and of any length.",
        ..OFF
    },
    Opt {
        name: "permit_unconventional_http_version",
        long: &["permit-unconventional-http-version"],
        help: "Accept other HTTP versions than 1.0 and 1.1; they are served as the nearest of the \
               two.",
        ..OFF
    },
    Opt {
        name: "casefold_http_method",
        long: &["casefold-http-method"],
        help: "Put methods in upper case: get becomes GET.",
        ..OFF
    },
];
