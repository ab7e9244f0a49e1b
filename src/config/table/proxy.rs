//! Owns: the rows of the table about trust in the server in front.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Env, Kind, Opt, ROW};
use crate::config::reading;

const PROXY: &str = "Behind a proxy";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "forwarded_allow_ips",
        long: &["forwarded-allow-ips"],
        env: Some(Env { name: "FORWARDED_ALLOW_IPS", prefix: "" }),
        kind: Kind::AllowList,
        default: "127.0.0.1,::1",
        section: PROXY,
        help: "Proxies whose forwarded headers are believed: addresses and networks, separated by \
               commas; * = every peer. Peers on a unix socket always are.",
        ..ROW
    },
    Opt {
        name: "secure_scheme_headers",
        kind: Kind::Map,
        default: "X-FORWARDED-PROTOCOL=ssl,X-FORWARDED-PROTO=https,X-FORWARDED-SSL=on",
        section: PROXY,
        help: "Header fields, with their values, by which a trusted proxy says that the client \
               came over https.",
        ..ROW
    },
    Opt {
        name: "forwarder_headers",
        long: &["forwarder-headers"],
        kind: Kind::CommaList,
        default: "SCRIPT_NAME,PATH_INFO",
        section: PROXY,
        help: "Field names with an underscore that a trusted proxy may send; * = all.",
        ..ROW
    },
    Opt {
        name: "header_map",
        long: &["header-map"],
        kind: Kind::Choice(&["drop", "refuse", "dangerous"]),
        default: "drop",
        section: PROXY,
        help: "Other field names with an underscore, which could pose as the dashed one: drop the \
               field, refuse the request, or let it pass (dangerous).",
        ..ROW
    },
    Opt {
        name: "proxy_protocol",
        long: &["proxy-protocol"],
        kind: Kind::Switch { words: &["off", "v1", "v2", "auto"], bare: "auto" },
        default: "off",
        section: PROXY,
        help: "A proxy's connections begin with a PROXY header that names the client: version v1, \
               v2, or either (auto, also without a word). From the peers in --proxy-allow-from it \
               must come.",
        ..ROW
    },
    Opt {
        name: "proxy_allow_ips",
        long: &["proxy-allow-from"],
        kind: Kind::AllowList,
        default: "127.0.0.1,::1",
        section: PROXY,
        help: "Proxies that must begin with a PROXY header when --proxy-protocol is on: addresses \
               and networks, separated by commas; * = every peer. Others must not, and are served \
               as they are.",
        ..ROW
    },
    Opt {
        name: "root_path",
        long: &["root-path"],
        kind: Kind::Checked(reading::root_path),
        section: PROXY,
        help: "Where the application is mounted, SCRIPT_NAME for it: taken off paths that begin \
               with it. The environment's SCRIPT_NAME and a trusted peer's field come first.",
        ..ROW
    },
];
