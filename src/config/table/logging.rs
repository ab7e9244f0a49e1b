//! Owns: the rows of the table about logs.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::super::logging::{checked_statsd_address, checked_syslog_address, FACILITY_NAMES};
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
    Opt {
        name: "disable_redirect_access_to_syslog",
        long: &["disable-redirect-access-to-syslog"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: LOGGING,
        help: "Send only the error log to syslog.",
        ..ROW
    },
    Opt {
        name: "capture_output",
        long: &["capture-output"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: LOGGING,
        help: "Write what the application prints to the file of --error-logfile.",
        ..ROW
    },
    Opt {
        name: "logger_class",
        long: &["logger-class"],
        kind: Kind::Class,
        default: "gunicorn.glogging.Logger",
        section: LOGGING,
        help: "Class of a logger in Python, MODULE.NAME, derived from rgunicorn.glogging.Logger.",
        ..ROW
    },
    Opt {
        name: "logconfig",
        long: &["log-config"],
        kind: Kind::File,
        section: LOGGING,
        help: "Configure Python's logging by this file, in the format of logging.config.fileConfig.",
        ..ROW
    },
    Opt {
        name: "logconfig_dict",
        kind: Kind::Tree,
        section: LOGGING,
        help: "The same by a dictionary, as for logging.config.dictConfig; it goes before the other two.",
        ..ROW
    },
    Opt {
        name: "logconfig_json",
        long: &["log-config-json"],
        kind: Kind::File,
        section: LOGGING,
        help: "The same by a JSON file that holds such a dictionary; it goes before --log-config.",
        ..ROW
    },
    Opt {
        name: "syslog_addr",
        long: &["log-syslog-to"],
        kind: Kind::Checked(checked_syslog_address),
        default: "udp://localhost:514",
        section: LOGGING,
        help: "Where syslog listens: udp://HOST:PORT, tcp://HOST:PORT, unix://PATH, \
               unix://PATH#dgram or unix://PATH#stream.",
        ..ROW
    },
    Opt {
        name: "syslog",
        long: &["log-syslog"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: LOGGING,
        help: "Send the logs to syslog as well.",
        ..ROW
    },
    Opt {
        name: "syslog_prefix",
        long: &["log-syslog-prefix"],
        kind: Kind::Text,
        section: LOGGING,
        help: "The program's name in syslog, after `gunicorn.`; without it the name of the processes.",
        ..ROW
    },
    Opt {
        name: "syslog_facility",
        long: &["log-syslog-facility"],
        kind: Kind::Choice(FACILITY_NAMES),
        default: "user",
        section: LOGGING,
        help: "The facility in syslog: user, daemon, local0 to local7, ….",
        ..ROW
    },
    Opt {
        name: "enable_stdio_inheritance",
        short: Some('R'),
        long: &["enable-stdio-inheritance"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: LOGGING,
        help: "Keep standard output and error with --daemon, unless they are a terminal.",
        ..ROW
    },
    Opt {
        name: "statsd_host",
        long: &["statsd-host"],
        kind: Kind::Checked(checked_statsd_address),
        section: LOGGING,
        help: "Send metrics to the statsd server at HOST:PORT or unix://PATH.",
        ..ROW
    },
    Opt {
        name: "dogstatsd_tags",
        long: &["dogstatsd-tags"],
        kind: Kind::Text,
        section: LOGGING,
        help: "Tags to put on each metric, as DogStatsD takes them: env:prod,site:a.",
        ..ROW
    },
    Opt {
        name: "statsd_prefix",
        long: &["statsd-prefix"],
        kind: Kind::Text,
        section: LOGGING,
        help: "What goes before the name of each metric; a dot is added.",
        ..ROW
    },
    Opt {
        name: "enable_backlog_metric",
        long: &["enable-backlog-metric"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: LOGGING,
        help: "Send how many connections wait to be accepted, once a second.",
        ..ROW
    },
];
