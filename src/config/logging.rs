//! Owns: what is configured about logs beyond their files: a Python logger, syslog, statsd, and how their addresses are
//! written.
//! Rule: as gunicorn writes them; an error is the predicate of a sentence.
//! Never: resolves a host, opens a socket, knows Python.

use std::path::PathBuf;

/// Whether and how a logger in Python takes the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonLogger {
    /// In gunicorn's spelling.
    pub class: String,
    /// The setting that asks for Python, for sentences about it.
    pub option: &'static str,
}

/// Where a collector of lines or metrics listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collector {
    Udp {
        host: String,
        port: u16,
    },
    Tcp {
        host: String,
        port: u16,
    },
    UnixDatagram(PathBuf),
    UnixStream(PathBuf),
    /// Whichever of the two it is.
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Syslog {
    pub address: Collector,
    /// Its code (RFC 3164, section 4.1.1).
    pub facility: u8,
    /// What lines are tagged with, before `.error` and `.access`.
    pub tag: String,
    /// Whether the access log goes there too.
    pub access: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statsd {
    pub address: Collector,
    /// Empty, or ending in a dot.
    pub prefix: String,
    /// As DogStatsD has them: `a:b,c:d`.
    pub tags: String,
    pub backlog: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// None: Rust writes the logs.
    pub python: Option<PythonLogger>,
    pub syslog: Option<Syslog>,
    pub statsd: Option<Statsd>,
    /// What the application prints goes to the error log's file.
    pub capture_output: bool,
    pub enable_stdio_inheritance: bool,
}

/// By name, in the order of their codes from 0.
const FACILITIES: [&str; 12] =
    ["kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"];
/// All of them, with the one that has two names.
pub const FACILITY_NAMES: &[&str] = &[
    "auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "security", "syslog", "user",
    "uucp", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// The code of one of `FACILITY_NAMES`.
pub fn facility(name: &str) -> u8 {
    if let Some(number) = name.strip_prefix("local").and_then(|digit| digit.parse::<u8>().ok()) {
        return 16 + number;
    }
    let name = if name == "security" { "auth" } else { name };
    FACILITIES.iter().position(|known| *known == name).map_or(1, |code| code as u8)
}

/// `unix://PATH`, `unix://PATH#dgram`, `unix://PATH#stream`, `udp://HOST:PORT`, `tcp://HOST:PORT`.
pub fn syslog_address(text: &str) -> Result<Collector, String> {
    if let Some(rest) = text.strip_prefix("unix://") {
        return match rest.rsplit_once('#') {
            Some((path, "dgram")) => path_of(path).map(Collector::UnixDatagram),
            Some((path, "stream")) => path_of(path).map(Collector::UnixStream),
            _ => path_of(rest).map(Collector::Unix),
        };
    }
    let (rest, tcp) = match (text.strip_prefix("udp://"), text.strip_prefix("tcp://")) {
        (Some(rest), _) => (rest, false),
        (_, Some(rest)) => (rest, true),
        _ => {
            return Err(format!(
                "'{}' is not udp://HOST:PORT, tcp://HOST:PORT or unix://PATH",
                text.escape_debug()
            ))
        }
    };
    let (host, port) = host_and_port(rest, Some(514))?;
    Ok(if tcp { Collector::Tcp { host, port } } else { Collector::Udp { host, port } })
}

/// `HOST:PORT` or `unix://PATH`.
pub fn statsd_address(text: &str) -> Result<Collector, String> {
    match text.strip_prefix("unix://") {
        Some(path) => path_of(path).map(Collector::UnixDatagram),
        None => host_and_port(text, None).map(|(host, port)| Collector::Udp { host, port }),
    }
}

/// The text itself, where it is an address.
pub fn checked_syslog_address(text: &str) -> Result<String, String> {
    syslog_address(text).map(|_| text.to_string())
}

pub fn checked_statsd_address(text: &str) -> Result<String, String> {
    statsd_address(text).map(|_| text.to_string())
}

fn path_of(path: &str) -> Result<PathBuf, String> {
    match path {
        "" => Err("the path of the socket is missing: unix:///dev/log".to_string()),
        _ if path.len() > 107 => {
            Err(format!("the socket path is {} octets long, the system takes 107", path.len()))
        }
        path => Ok(PathBuf::from(path)),
    }
}

fn host_and_port(text: &str, usual: Option<u16>) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = if host.is_empty() { "localhost".to_string() } else { host.to_ascii_lowercase() };
    match (port, usual) {
        (Some(port), _) => match port.parse::<u16>() {
            Ok(number) if number > 0 => Ok((host, number)),
            _ => Err(format!("'{}' is not a port (1 to 65535)", port.escape_debug())),
        },
        (None, Some(usual)) => Ok((host, usual)),
        (None, None) => Err(format!("'{}' is not HOST:PORT or unix://PATH", text.escape_debug())),
    }
}

/// Ends in exactly one dot, unless it is empty.
pub fn statsd_prefix(text: &str) -> String {
    match text.trim_end_matches('.') {
        "" => String::new(),
        prefix => format!("{prefix}."),
    }
}

/// The classes that stand for what Rust does, by the names that gunicorn and we have for them: true is Statsd.
pub fn built_in(class: &str) -> Option<bool> {
    let name = class.strip_prefix("rgunicorn.").or(class.strip_prefix("gunicorn.")).unwrap_or(class);
    match name {
        "glogging.Logger" | "simple" | "egg:gunicorn#simple" => Some(false),
        "instrument.statsd.Statsd" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syslog_addresses() {
        let udp = |host: &str, port| Ok(Collector::Udp { host: host.to_string(), port });
        assert_eq!(syslog_address("udp://localhost:514"), udp("localhost", 514));
        assert_eq!(syslog_address("udp://Logs"), udp("logs", 514));
        assert_eq!(syslog_address("udp://"), udp("localhost", 514));
        assert_eq!(syslog_address("udp://[::1]:5"), udp("::1", 5));
        assert_eq!(syslog_address("udp://[::1]"), udp("::1", 514));
        assert_eq!(syslog_address("tcp://h:9"), Ok(Collector::Tcp { host: "h".to_string(), port: 9 }));
        assert_eq!(syslog_address("unix:///dev/log"), Ok(Collector::Unix("/dev/log".into())));
        assert_eq!(syslog_address("unix:///l#dgram"), Ok(Collector::UnixDatagram("/l".into())));
        assert_eq!(syslog_address("unix:///l#stream"), Ok(Collector::UnixStream("/l".into())));
        assert_eq!(syslog_address("udp://h:x").unwrap_err(), "'x' is not a port (1 to 65535)");
        assert_eq!(
            syslog_address("/dev/log").unwrap_err(),
            "'/dev/log' is not udp://HOST:PORT, tcp://HOST:PORT or unix://PATH"
        );
        assert!(syslog_address("unix://").is_err());
    }

    #[test]
    fn statsd_addresses_and_prefixes() {
        assert_eq!(
            statsd_address("localhost:8125"),
            Ok(Collector::Udp { host: "localhost".to_string(), port: 8125 })
        );
        assert_eq!(statsd_address("unix:8125"), Ok(Collector::Udp { host: "unix".to_string(), port: 8125 }));
        assert_eq!(statsd_address("unix:///s"), Ok(Collector::UnixDatagram("/s".into())));
        assert_eq!(statsd_address("host").unwrap_err(), "'host' is not HOST:PORT or unix://PATH");
        assert_eq!(["", "a", "a.", "a.b.."].map(statsd_prefix), ["", "a.", "a.", "a.b."]);
    }

    #[test]
    fn facilities() {
        assert_eq!(
            ["kern", "user", "security", "auth", "ftp", "local0", "local7"].map(facility),
            [0, 1, 4, 4, 11, 16, 23]
        );
        assert!(FACILITY_NAMES.iter().all(|name| facility(name) != 1 || *name == "user"));
    }

    #[test]
    fn classes_that_rust_stands_for() {
        assert_eq!(built_in("gunicorn.glogging.Logger"), Some(false));
        assert_eq!(built_in("rgunicorn.instrument.statsd.Statsd"), Some(true));
        assert_eq!(built_in("mine.Logger"), None);
    }
}
