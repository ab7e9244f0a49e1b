//! Owns: how one configured value is written: raw values as the sources hold them, and text → number, time, address, ….
//! Rule: a function either gives the value or the predicate of a sentence (`'x' is not a port`); the caller says whose it is.
//! Never: knows an option by name, reads a file or the environment, resolves a host.

use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A value as its source holds it, before anything is known about the setting it is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(String, Raw)>),
    /// A Python function or class, as a user would recognise it.
    Callable(String),
    /// Anything else without a counterpart here (a module, a TOML date), as a user would recognise it.
    Other(String),
}

impl Raw {
    /// Whether the value is a way of writing "not used"; config templates are full of those.
    pub fn is_off(&self) -> bool {
        match self {
            Raw::None | Raw::Bool(false) => true,
            Raw::Text(text) => text.is_empty(),
            Raw::List(items) => items.is_empty(),
            Raw::Map(pairs) => pairs.is_empty(),
            Raw::Bool(true) | Raw::Int(_) | Raw::Float(_) | Raw::Callable(_) | Raw::Other(_) => false,
        }
    }
}

/// As it appears in an error sentence: text in quotes, so that an empty one or a stray blank is seen.
impl fmt::Display for Raw {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::None => out.write_str("None"),
            Raw::Bool(value) => write!(out, "{value}"),
            Raw::Int(value) => write!(out, "{value}"),
            Raw::Float(value) => write!(out, "{value}"),
            Raw::Text(text) => write!(out, "'{}'", text.escape_debug()),
            Raw::List(_) => out.write_str("a list"),
            Raw::Map(_) => out.write_str("a map"),
            Raw::Callable(what) | Raw::Other(what) => write!(out, "{}", what.escape_debug()),
        }
    }
}

impl From<toml::Value> for Raw {
    fn from(value: toml::Value) -> Raw {
        match value {
            toml::Value::String(text) => Raw::Text(text),
            toml::Value::Integer(number) => Raw::Int(number),
            toml::Value::Float(number) => Raw::Float(number),
            toml::Value::Boolean(value) => Raw::Bool(value),
            toml::Value::Datetime(time) => Raw::Other(time.to_string()),
            toml::Value::Array(items) => Raw::List(items.into_iter().map(Raw::from).collect()),
            toml::Value::Table(table) => {
                Raw::Map(table.into_iter().map(|(key, value)| (key, Raw::from(value))).collect())
            }
        }
    }
}

/// A whole number: decimal, or 0x/0o/0b as Python writes them.
pub fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (base, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        _ => (10, digits),
    };
    // The parser takes a sign of its own, which would let `--5` and `0x-5` through.
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return None;
    }
    let number = i64::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(sign * number)
}

/// As `integer`, but a leading zero means octal: what chmod(1) users write for a file mode.
pub fn mode(text: &str) -> Option<i64> {
    match text.trim().strip_prefix('0') {
        Some(digits) if digits.starts_with(|first: char| first.is_ascii_digit()) => {
            i64::from_str_radix(digits, 8).ok()
        }
        _ => integer(text),
    }
}

/// Seconds → a time. Absurdly long times are cut to 136 years: adding one to a clock must not overflow.
pub fn duration(seconds: f64) -> Option<Duration> {
    const LONGEST: f64 = u32::MAX as f64;
    if seconds.is_nan() || seconds < 0.0 {
        return None;
    }
    Some(Duration::from_secs_f64(seconds.min(LONGEST)))
}

/// True and false, in the spellings that config files and shells use for them.
pub fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "1" => Some(true),
        "false" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

pub fn comma_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_string).collect()
}

/// `NAME=value`, as in an environment; the value may be empty or contain `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
            Ok((name.to_string(), value.to_string()))
        }
        _ => Err(format!("{} is not NAME=value", quoted(text))),
    }
}

/// `NAME=value`; `\=` is a `=` of the name or of the value.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let plain = |text: &str| text.replace("\\=", "=");
    let end = text.match_indices('=').map(|(at, _)| at).find(|at| !text[..*at].ends_with('\\'));
    match end {
        Some(at) if at > 0 => Ok((plain(&text[..at]), plain(&text[at + 1..]))),
        _ => Err(format!("{} is not NAME=value", quoted(text))),
    }
}

/// One entry of an allow list: `*`, an address, or a network, which is given back in CIDR form.
pub fn network(text: &str) -> Result<String, String> {
    if text == "*" || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_string());
    }
    let net =
        text.parse::<IpNet>().ok().or_else(|| with_netmask(text)).ok_or_else(|| {
            format!("{} is not an IP address, a network like 10.0.0.0/8, or *", quoted(text))
        })?;
    // 10.1.2.3/8 is a slip: either the one host or the whole network was meant, and trust is at stake.
    if net.addr() != net.network() {
        let meant = net.trunc();
        return Err(format!(
            "'{text}' is neither an address nor a network: write '{meant}' or '{}'",
            net.addr()
        ));
    }
    Ok(net.to_string())
}

/// `10.0.0.0/255.0.0.0`, the older way of writing a network.
fn with_netmask(text: &str) -> Option<IpNet> {
    let (address, mask) = text.split_once('/')?;
    let address = address.parse::<Ipv4Addr>().ok()?;
    let mask = mask.parse::<Ipv4Addr>().ok()?;
    Ipv4Net::with_netmask(address, mask).ok().map(IpNet::V4)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.escape_debug())
}

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// `-`: standard output for the access log, standard error for the error log.
    Dash,
    File(PathBuf),
}

impl LogTarget {
    pub fn of(text: &str) -> LogTarget {
        match text {
            "-" => LogTarget::Dash,
            path => LogTarget::File(PathBuf::from(path)),
        }
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The host is lower case, without brackets, not resolved, never empty.
    Tcp { host: String, port: u16 },
    /// A path; one that begins with NUL is a name in Linux's abstract namespace.
    Unix(PathBuf),
    /// A descriptor that whoever started us has opened.
    Fd(RawFd),
}

/// What a bare host listens on.
const DEFAULT_PORT: u16 = 8000;
/// What an empty host means: every IPv4 address of the machine.
const ANY_HOST: &str = "0.0.0.0";
/// `sizeof sun_path - 1` on Linux.
const UNIX_PATH_MAX: usize = 107;

impl Address {
    /// The name in the abstract namespace, without its leading NUL.
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match self {
            Address::Unix(path) => path.as_os_str().as_bytes().strip_prefix(b"\0"),
            Address::Tcp { .. } | Address::Fd(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("unix:") {
            return unix(rest.strip_prefix("//").unwrap_or(rest));
        }
        if let Some(number) = text.strip_prefix("fd://") {
            return descriptor(number);
        }
        tcp(text.strip_prefix("tcp://").unwrap_or(text))
    }
}

/// As it is written after `--bind`.
impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(out, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(out, "{host}:{port}"),
            Address::Unix(path) => match self.abstract_name() {
                Some(name) => write!(out, "unix:@{}", String::from_utf8_lossy(name)),
                None => write!(out, "unix:{}", path.display()),
            },
            Address::Fd(number) => write!(out, "fd://{number}"),
        }
    }
}

fn unix(path: &str) -> Result<Address, String> {
    // A command line cannot carry a NUL, so `@name` and a spelt-out `\0name` stand for one.
    let hidden = ["@", "\0", "\\0"].iter().find_map(|mark| path.strip_prefix(mark));
    let path = match hidden {
        Some(name) => format!("\0{name}"),
        None => path.to_string(),
    };
    if path.is_empty() || path == "\0" {
        return Err("'unix:' lacks the path of the socket: unix:/run/app.sock".to_string());
    }
    if path.len() > UNIX_PATH_MAX {
        return Err(format!(
            "the socket path is {} octets long, the system takes {UNIX_PATH_MAX}",
            path.len()
        ));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn descriptor(number: &str) -> Result<Address, String> {
    match number.trim().parse::<RawFd>() {
        Ok(fd) if fd >= 0 => Ok(Address::Fd(fd)),
        _ => Err(format!("{} is not the number of an open file", quoted(number))),
    }
}

fn tcp(text: &str) -> Result<Address, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => bracketed(text, rest)?,
        None => plain(text)?,
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => {
            port.trim().parse().map_err(|_| format!("{} is not a port (0 to 65535)", quoted(port)))?
        }
    };
    let host = if host.is_empty() { ANY_HOST } else { host };
    Ok(Address::Tcp { host: host.to_ascii_lowercase(), port })
}

/// `[v6]` or `[v6]:port`, the opening bracket already taken off `rest`.
fn bracketed<'a>(text: &str, rest: &'a str) -> Result<(&'a str, Option<&'a str>), String> {
    let wrong = || format!("{} is not an address: an IPv6 address is written [::1]:8000", quoted(text));
    let (host, tail) = rest.split_once(']').ok_or_else(wrong)?;
    if tail.is_empty() {
        return Ok((host, None));
    }
    match tail.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None => Err(wrong()),
    }
}

/// `host`, `host:port` or `:port`.
fn plain(text: &str) -> Result<(&str, Option<&str>), String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("'{text}' is an IPv6 address without brackets: write '[{text}]:{DEFAULT_PORT}'"));
    }
    // A number alone would be taken for the host 0.0.x.y, which nobody means.
    if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(format!("'{text}' is a port without a host: write ':{text}' or '127.0.0.1:{text}'"));
    }
    if text.contains(['/', '\0']) || text.contains(char::is_whitespace) {
        return Err(format!("{} is not an address: host:port, unix:PATH or fd://N", quoted(text)));
    }
    Ok(match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

/// A path as configured; a NUL would silently cut it short in the kernel.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        return Err(format!("{} is not a path", quoted(text)));
    }
    Ok(Path::new(text).to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<String, String> {
        text.parse::<Address>().map(|address| address.to_string())
    }

    fn shown(text: &str) -> String {
        address(text).unwrap()
    }

    fn refused(text: &str) -> String {
        address(text).unwrap_err()
    }

    #[test]
    fn tcp_addresses_as_gunicorn_reads_them() {
        assert_eq!(shown(""), "0.0.0.0:8000");
        assert_eq!(shown(":9000"), "0.0.0.0:9000");
        assert_eq!(shown("Example"), "example:8000");
        assert_eq!(shown("127.0.0.1:0"), "127.0.0.1:0");
        assert_eq!(shown("tcp://h:9"), "h:9");
        assert_eq!(shown("tcp://H"), "h:8000");
        assert_eq!(shown("[::1]"), "[::1]:8000");
        assert_eq!(shown("[::]:0"), "[::]:0");
        assert_eq!(shown("tcp://[::1]:80"), "[::1]:80");
        assert_eq!(
            "[FE80::1%eth0]:1".parse(),
            Ok(Address::Tcp { host: "fe80::1%eth0".to_string(), port: 1 })
        );
    }

    #[test]
    fn unix_addresses() {
        for text in ["unix:/run/x", "unix:///run/x"] {
            assert_eq!(text.parse(), Ok(Address::Unix("/run/x".into())));
        }
        assert_eq!("unix:x".parse(), Ok(Address::Unix("x".into())));
        assert_eq!("unix://x".parse(), Ok(Address::Unix("x".into())));
        assert_eq!(shown("unix:x"), "unix:x");
    }

    #[test]
    fn abstract_addresses() {
        for text in ["unix:@n", "unix:\0n", "unix:\\0n"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.abstract_name(), Some(&b"n"[..]));
            assert_eq!(address.to_string(), "unix:@n");
        }
        assert_eq!(Address::Fd(3).abstract_name(), None);
        assert_eq!(Address::Unix("/n".into()).abstract_name(), None);
    }

    #[test]
    fn descriptors() {
        assert_eq!("fd://3".parse(), Ok(Address::Fd(3)));
        assert_eq!(shown("fd://3"), "fd://3");
        assert_eq!(refused("fd://x"), "'x' is not the number of an open file");
        assert_eq!(refused("fd://-1"), "'-1' is not the number of an open file");
    }

    #[test]
    fn wrong_addresses_say_how_to_write_them() {
        assert_eq!(refused("h:x"), "'x' is not a port (0 to 65535)");
        assert_eq!(refused("h:"), "'' is not a port (0 to 65535)");
        assert_eq!(refused("h:70000"), "'70000' is not a port (0 to 65535)");
        assert_eq!(refused("a:b:9"), "'b:9' is not a port (0 to 65535)");
        assert_eq!(refused("::1"), "'::1' is an IPv6 address without brackets: write '[::1]:8000'");
        assert_eq!(refused("8000"), "'8000' is a port without a host: write ':8000' or '127.0.0.1:8000'");
        let v6 = "is not an address: an IPv6 address is written [::1]:8000";
        assert_eq!(refused("[::1"), format!("'[::1' {v6}"));
        assert_eq!(refused("[::1]x"), format!("'[::1]x' {v6}"));
        assert_eq!(refused("http://h:1"), "'http://h:1' is not an address: host:port, unix:PATH or fd://N");
        assert_eq!(refused("unix:"), "'unix:' lacks the path of the socket: unix:/run/app.sock");
        assert_eq!(
            refused(&format!("unix:/{}", "x".repeat(107))),
            "the socket path is 108 octets long, the system takes 107"
        );
    }

    #[test]
    fn integers() {
        let good = [
            ("12", 12),
            (" 0x1F ", 31),
            ("0o17", 15),
            ("0b11", 3),
            ("-4", -4),
            ("+4", 4),
            ("010", 10),
            ("1_000", 1000),
        ];
        for (text, number) in good {
            assert_eq!(integer(text), Some(number), "{text}");
        }
        for text in ["", "x", "1.5", "--5", "0x-5", "0x", "1 2", "-", "_1", "é1", "0é"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(mode("0022"), Some(0o22));
        assert_eq!(mode("0o22"), Some(0o22));
        assert_eq!(mode("0x12"), Some(0x12));
        assert_eq!(mode("18"), Some(18));
        assert_eq!(mode("0"), Some(0));
        assert_eq!(mode("089"), None);
    }

    #[test]
    fn times() {
        assert_eq!(duration(0.0), Some(Duration::ZERO));
        assert_eq!(duration(2.5), Some(Duration::from_millis(2500)));
        assert_eq!(duration(-0.1), None);
        assert_eq!(duration(f64::NAN), None);
        assert_eq!(duration(f64::INFINITY), Some(Duration::from_secs(u32::MAX.into())));
    }

    #[test]
    fn booleans() {
        for text in ["true", "True", " yes", "y", "1"] {
            assert_eq!(boolean(text), Some(true));
        }
        for text in ["false", "NO", "n", "0"] {
            assert_eq!(boolean(text), Some(false));
        }
        assert_eq!(boolean("maybe"), None);
    }

    #[test]
    fn lists_and_pairs() {
        assert_eq!(comma_list("a, b,,c ,"), ["a", "b", "c"]);
        assert!(comma_list("").is_empty());
        assert_eq!(pair("A=b=c"), Ok(("A".to_string(), "b=c".to_string())));
        assert_eq!(pair("A="), Ok(("A".to_string(), String::new())));
        assert_eq!(pair("A"), Err("'A' is not NAME=value".to_string()));
        assert_eq!(pair("=b"), Err("'=b' is not NAME=value".to_string()));
    }

    #[test]
    fn allow_list_entries() {
        let good = [
            ("*", "*"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("fd00::/8", "fd00::/8"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ];
        for (text, kept) in good {
            assert_eq!(network(text).as_deref(), Ok(kept));
        }
        assert_eq!(
            network("10.1.2.3/8").unwrap_err(),
            "'10.1.2.3/8' is neither an address nor a network: write '10.0.0.0/8' or '10.1.2.3'"
        );
        for text in ["localhost", "10.0.0.0/33", "10.0.0", ""] {
            assert_eq!(
                network(text).unwrap_err(),
                format!("'{text}' is not an IP address, a network like 10.0.0.0/8, or *")
            );
        }
    }

    #[test]
    fn log_targets_and_paths() {
        assert_eq!(LogTarget::of("-"), LogTarget::Dash);
        assert_eq!(LogTarget::of("/x"), LogTarget::File("/x".into()));
        assert_eq!(path("a").unwrap(), Path::new("a"));
        assert_eq!(path("a\0").unwrap_err(), "'a\\0' is not a path");
    }

    #[test]
    fn raw_values_in_sentences() {
        let shown = |raw: Raw| raw.to_string();
        assert_eq!(shown(Raw::Text("a\n".to_string())), "'a\\n'");
        assert_eq!(shown(Raw::Int(3)), "3");
        assert_eq!(shown(Raw::Float(2.5)), "2.5");
        assert_eq!(shown(Raw::Bool(true)), "true");
        assert_eq!(shown(Raw::None), "None");
        assert_eq!(shown(Raw::List(vec![])), "a list");
        assert_eq!(shown(Raw::Map(vec![])), "a map");
        assert_eq!(shown(Raw::Other("a function".to_string())), "a function");
    }

    #[test]
    fn raw_values_from_toml() {
        let table: toml::Table = "a = 1\nb = ['x', true]\nc = {d = 1.5}\ne = 2020-01-01".parse().unwrap();
        let raw = Raw::from(toml::Value::Table(table));
        let text = |text: &str| text.to_string();
        assert_eq!(
            raw,
            Raw::Map(vec![
                (text("a"), Raw::Int(1)),
                (text("b"), Raw::List(vec![Raw::Text(text("x")), Raw::Bool(true)])),
                (text("c"), Raw::Map(vec![(text("d"), Raw::Float(1.5))])),
                (text("e"), Raw::Other(text("2020-01-01"))),
            ])
        );
    }

    #[test]
    fn ways_of_writing_not_used() {
        for raw in
            [Raw::None, Raw::Bool(false), Raw::Text(String::new()), Raw::List(vec![]), Raw::Map(vec![])]
        {
            assert!(raw.is_off());
        }
        assert!(!Raw::Int(0).is_off());
        assert!(!Raw::Text("x".to_string()).is_off());
    }
}
