//! Owns: the rows of the table about the addresses.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Env, Kind, Opt, ROW};

const LISTENING: &str = "Listening";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "bind",
        short: Some('b'),
        long: &["bind"],
        env: Some(Env { name: "PORT", prefix: "0.0.0.0:" }),
        kind: Kind::Addresses,
        default: "127.0.0.1:8000",
        reloadable: true,
        section: LISTENING,
        help: "Where to listen: HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@NAME (abstract), or fd://N \
               for a descriptor that is already open. May be repeated.",
        ..ROW
    },
    Opt {
        name: "backlog",
        long: &["backlog"],
        kind: Kind::Int { min: 1, max: i32::MAX as i64 },
        default: "2048",
        reloadable: false,
        section: LISTENING,
        help: "Connections that may wait in the kernel until a worker is free. The system cuts it \
               to net.core.somaxconn.",
        ..ROW
    },
    Opt {
        name: "reuse_port",
        long: &["reuse-port"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: LISTENING,
        help: "Bind with SO_REUSEPORT, so that another server may listen on the same port. The \
               workers of this one share a listener as ever.",
        ..ROW
    },
];
