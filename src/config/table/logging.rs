//! Owns: the rows of the table about logs.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};

const LOGGING: &str = "Logging";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "accesslog",
        long: &["access-logfile"],
        kind: Kind::Log,
        section: LOGGING,
        help: "File for a line per request; - = standard output. Without it, none are written.",
        ..ROW
    },
    Opt {
        name: "access_log_format",
        long: &["access-logformat"],
        kind: Kind::Text,
        default: r#"%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s""#,
        section: LOGGING,
        help: "What such a line holds, in gunicorn's atoms: %(D)s is the time taken in \
               microseconds, %({x-request-id}i)s a header field of the request.",
        ..ROW
    },
    Opt {
        name: "errorlog",
        long: &["error-logfile", "log-file"],
        kind: Kind::Log,
        default: "-",
        section: LOGGING,
        help: "File for what the server itself has to say; - = standard error.",
        ..ROW
    },
    Opt {
        name: "loglevel",
        long: &["log-level"],
        kind: Kind::Choice(&["debug", "info", "warning", "error", "critical", "warn", "trace"]),
        default: "info",
        section: LOGGING,
        help: "The least of it that is written: debug, info, warning, error or critical.",
        ..ROW
    },
];
