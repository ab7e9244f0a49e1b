//! Owns: the rows of the table about HTTPS.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};

const TLS: &str = "TLS";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "certfile",
        long: &["certfile"],
        kind: Kind::File,
        section: TLS,
        help: "Speak HTTPS, with this certificate and those that lead to its authority, in PEM form.",
        ..ROW
    },
    Opt {
        name: "keyfile",
        long: &["keyfile"],
        kind: Kind::File,
        section: TLS,
        help: "The certificate's key, not encrypted; without this it is in --certfile.",
        ..ROW
    },
    Opt {
        name: "ca_certs",
        long: &["ca-certs"],
        kind: Kind::File,
        section: TLS,
        help: "The authorities that client certificates have to come from.",
        ..ROW
    },
    Opt {
        name: "cert_reqs",
        long: &["cert-reqs"],
        kind: Kind::Int { min: 0, max: 2 },
        default: "0",
        section: TLS,
        help: "Whether clients show a certificate: 0 = no, 1 = they may, 2 = they must.",
        ..ROW
    },
    Opt {
        name: "ciphers",
        long: &["ciphers"],
        kind: Kind::Text,
        section: TLS,
        help: "The cipher suites that are spoken, best first, by OpenSSL's names with colons between them. \
               Without it, all that are safe.",
        ..ROW
    },
    Opt {
        name: "ssl_version",
        long: &["ssl-version"],
        kind: Kind::Anything,
        section: TLS,
        help: "For compatibility; ignored, as in gunicorn: TLS 1.2 and 1.3 are spoken.",
        ..ROW
    },
    Opt {
        name: "suppress_ragged_eofs",
        long: &["suppress-ragged-eofs"],
        kind: Kind::Flag { given: true },
        default: "true",
        section: TLS,
        help: "For compatibility: a client's end without TLS's own is always taken for an end.",
        ..ROW
    },
    Opt {
        name: "do_handshake_on_connect",
        long: &["do-handshake-on-connect"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: TLS,
        help: "For compatibility: handshakes are always made at once, and hold no thread.",
        ..ROW
    },
];
