//! Owns: what becomes of what somebody has written: one function for a kind, and the rules that single options have.
//! Rule: an error is the predicate of a sentence; the option and the source that begin it are added by `settings`.
//! Never: knows an option.

use super::kinds::{HookSpec, Kind, Value};
use super::values::{self, Address, LogTarget, Raw};
use super::warm_up::WarmUp;

impl Kind {
    pub fn read(self, raw: &Raw) -> Result<Value, String> {
        match self {
            Kind::Flag { .. } => flag(raw),
            Kind::Int { min, max } => int(raw, min, max),
            Kind::Mode => mode(raw),
            Kind::Seconds => seconds(raw),
            Kind::Text => text(raw, |text| Ok(Value::Text(text.to_string()))),
            Kind::Anything => anything(raw),
            Kind::Path | Kind::Folder | Kind::File | Kind::NewFile => {
                text(raw, |text| values::path(text).map(Value::Path))
            }
            Kind::Log => text(raw, |text| Ok(Value::Log(LogTarget::of(text)))),
            Kind::Account => account(raw),
            Kind::Choice(words) => choice(raw, words),
            Kind::Switch { words, bare } => switch(raw, words, bare),
            Kind::Checked(rule) => text(raw, |text| rule(text).map(Value::Text)),
            Kind::Worker => worker(raw),
            Kind::Texts => texts(raw, single).map(Value::Texts),
            Kind::WarmUps => warm_ups(raw),
            Kind::CommaList => texts(raw, values::comma_list).map(Value::Texts),
            Kind::AllowList => allow_list(raw),
            Kind::Env => env(raw),
            Kind::Variables => variables(raw),
            Kind::Addresses => addresses(raw),
            Kind::Map => map(raw),
            Kind::Hook => hook_spec(raw),
            Kind::Class => class(raw),
            Kind::Tree => tree(raw),
        }
    }
}

fn flag(raw: &Raw) -> Result<Value, String> {
    let value = match raw {
        Raw::Bool(value) => Some(*value),
        Raw::Text(text) => values::boolean(text),
        _ => None,
    };
    value.map(Value::Bool).ok_or_else(|| format!("{raw} is neither true nor false"))
}

fn int(raw: &Raw, min: i64, max: i64) -> Result<Value, String> {
    match whole(raw, values::integer) {
        Some(number) if (min..=max).contains(&number) => Ok(Value::Int(number)),
        Some(number) if number > max => Err(format!("{raw} is more than {max}")),
        _ => Err(format!("{raw} is not a whole number ≥ {min}")),
    }
}

fn mode(raw: &Raw) -> Result<Value, String> {
    whole(raw, values::mode)
        .filter(|mode| (0..=0o7777).contains(mode))
        .map(Value::Int)
        .ok_or_else(|| format!("{raw} is not a file mode like 0022"))
}

fn whole(raw: &Raw, parse: fn(&str) -> Option<i64>) -> Option<i64> {
    match raw {
        Raw::Int(number) => Some(*number),
        // In Python False is 0, and `max_requests = False` has its readers.
        Raw::Bool(value) => Some(i64::from(*value)),
        Raw::Text(text) => parse(text),
        // Python's `cores * 2 / 1` is a float, and a whole one is no mistake; 2^53 is where floats stop counting.
        Raw::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(*number as i64),
        _ => None,
    }
}

fn seconds(raw: &Raw) -> Result<Value, String> {
    let number = match raw {
        Raw::Int(number) => Some(*number as f64),
        Raw::Bool(value) => Some(f64::from(*value)),
        Raw::Float(number) => Some(*number),
        Raw::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    number
        .and_then(values::duration)
        .map(Value::Seconds)
        .ok_or_else(|| format!("{raw} is not a number of seconds ≥ 0"))
}

/// One text; an empty one, or None, leaves the setting unset.
fn text(raw: &Raw, read: impl Fn(&str) -> Result<Value, String>) -> Result<Value, String> {
    match raw {
        Raw::None => Ok(Value::Unset),
        Raw::Text(text) if text.trim().is_empty() => Ok(Value::Unset),
        Raw::Text(text) => read(text.trim()),
        other => Err(format!("{other} is not a text")),
    }
}

fn anything(raw: &Raw) -> Result<Value, String> {
    match raw.is_off() {
        true => Ok(Value::Unset),
        false => Ok(Value::Text(raw.to_string())),
    }
}

/// Numbers stay texts: whoever looks a name up knows what a number means.
fn account(raw: &Raw) -> Result<Value, String> {
    match raw {
        Raw::Int(number) if *number >= 0 => Ok(Value::Text(number.to_string())),
        Raw::Int(_) => Err(format!("{raw} is neither a name nor a number ≥ 0")),
        other => text(other, |text| Ok(Value::Text(text.to_string()))),
    }
}

fn choice(raw: &Raw, words: &[&str]) -> Result<Value, String> {
    let given = match raw {
        Raw::Text(text) => text.trim().to_ascii_lowercase(),
        _ => String::new(),
    };
    match words.contains(&given.as_str()) {
        true => Ok(Value::Text(given)),
        false => Err(format!("{raw} is not one of: {}", words.join(", "))),
    }
}

fn switch(raw: &Raw, words: &[&str], bare: &str) -> Result<Value, String> {
    let off = words.first().copied().unwrap_or_default();
    let on = match raw {
        Raw::Bool(on) => Some(*on),
        Raw::None => Some(false),
        Raw::Text(text) if text.trim().is_empty() => Some(false),
        Raw::Text(text) => values::boolean(text),
        _ => None,
    };
    match on {
        Some(on) => Ok(Value::Text(if on { bare } else { off }.to_string())),
        None => choice(raw, words),
    }
}

fn texts(raw: &Raw, split: fn(&str) -> Vec<String>) -> Result<Vec<String>, String> {
    match raw {
        Raw::None => Ok(Vec::new()),
        Raw::Text(text) => Ok(split(text)),
        Raw::List(items) => items.iter().map(item).collect(),
        other => Err(format!("{other} is not a text or a list of texts")),
    }
}

fn item(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::Text(text) => Ok(text.trim().to_string()),
        other => Err(format!("{other}, in the list, is not a text")),
    }
}

/// A text where a list is expected is a list of one.
fn single(text: &str) -> Vec<String> {
    match text.trim() {
        "" => Vec::new(),
        text => vec![text.to_string()],
    }
}

fn warm_ups(raw: &Raw) -> Result<Value, String> {
    let items = texts(raw, single)?;
    items.iter().try_for_each(|item| item.parse::<WarmUp>().map(drop))?;
    Ok(Value::Texts(items))
}

fn allow_list(raw: &Raw) -> Result<Value, String> {
    let items = texts(raw, values::comma_list)?;
    let checked: Result<_, _> = items.iter().map(|item| values::network(item)).collect();
    checked.map(Value::Texts)
}

fn env(raw: &Raw) -> Result<Value, String> {
    let items = texts(raw, single)?;
    let pairs: Result<_, _> = items.iter().map(|item| values::pair(item)).collect();
    pairs.map(Value::Pairs)
}

/// Kept as they were written, which is how Python has them.
fn variables(raw: &Raw) -> Result<Value, String> {
    let items = texts(raw, single)?;
    items.iter().try_for_each(|item| values::variable(item).map(|_| ()))?;
    Ok(Value::Texts(items))
}

fn addresses(raw: &Raw) -> Result<Value, String> {
    let items = texts(raw, single)?;
    let parsed: Result<Vec<_>, _> = items.iter().map(|item| item.parse::<Address>()).collect();
    parsed.map(Value::Addresses)
}

fn map(raw: &Raw) -> Result<Value, String> {
    let pairs: Result<_, String> = match raw {
        Raw::Map(pairs) => pairs.iter().map(|(key, value)| Ok((key.clone(), item(value)?))).collect(),
        // The table's default is written this way.
        Raw::Text(text) => values::comma_list(text).iter().map(|item| values::pair(item)).collect(),
        other => Err(format!("{other} is not a map of texts")),
    };
    pairs.map(Value::Pairs)
}

fn hook_spec(raw: &Raw) -> Result<Value, String> {
    if matches!(raw, Raw::Callable(_)) {
        return Ok(Value::Hook(HookSpec::Given));
    }
    text(raw, |text| match text.rsplit_once('.') {
        Some((module, name)) if !module.is_empty() && !name.is_empty() => {
            Ok(Value::Hook(HookSpec::Import { module: module.to_string(), name: name.to_string() }))
        }
        _ => Err(format!("'{}' is not MODULE.NAME", text.escape_debug())),
    })
    .map_err(|why| match raw {
        Raw::Text(_) => why,
        other => format!("{other} is neither a function nor MODULE.NAME"),
    })
}

fn class(raw: &Raw) -> Result<Value, String> {
    match raw {
        Raw::Callable(shown) => Ok(Value::Given(shown.clone())),
        Raw::Text(text) if !text.trim().is_empty() => Ok(Value::Text(text.trim().to_string())),
        other => Err(format!("{other} is neither a class nor MODULE.NAME")),
    }
}

fn tree(raw: &Raw) -> Result<Value, String> {
    match raw {
        _ if raw.is_off() => Ok(Value::Unset),
        Raw::Map(_) => Ok(Value::Tree(raw.clone())),
        other => Err(format!("{other} is not a dictionary")),
    }
}

fn worker(raw: &Raw) -> Result<Value, String> {
    match raw {
        Raw::Callable(shown) => worker_class(class_name(shown)).map(Value::Text),
        Raw::None | Raw::Text(_) => text(raw, |text| worker_class(text).map(Value::Text)),
        other => Err(format!("{other} is neither sync nor gthread")),
    }
}

/// `<class 'a.b.C'>`, as Python shows a class, without what is around its name.
fn class_name(shown: &str) -> &str {
    shown.strip_prefix("<class '").and_then(|rest| rest.strip_suffix("'>")).unwrap_or(shown)
}

const GREENLETS: &[&str] = &["gevent", "eventlet", "meinheld"];
const LOOPS: &[&str] = &["asgi", "uvicorn", "aiohttp", "hypercorn", "daphne"];

/// A mount point as it stands at the beginning of a request's path.
pub fn root_path(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|octet| octet.is_ascii_graphic() && !matches!(octet, b'%' | b'?' | b'#'));
    match text.starts_with('/') && plain {
        true => Ok(text.trim_end_matches('/').to_string()),
        false => Err(format!("'{}' is not a path like /shop, of plain letters", text.escape_debug())),
    }
}

/// What is spoken with the peers.
pub fn protocol(text: &str) -> Result<String, String> {
    match text.to_ascii_lowercase().as_str() {
        "http" => Ok("http".to_string()),
        "uwsgi" => {
            Err("'uwsgi' is not available yet, use http (in Nginx proxy_pass instead of uwsgi_pass)"
                .to_string())
        }
        _ => Err(format!("'{}' is not one of: http, uwsgi", text.escape_debug())),
    }
}

/// The kinds of worker there are in gunicorn; here only those that a thread per request can stand in for.
fn worker_class(text: &str) -> Result<String, String> {
    if let Some(word) = built_in(text) {
        return Ok(word.to_string());
    }
    let names = |words: &[&str]| words.iter().any(|word| text.to_ascii_lowercase().contains(word));
    let advice = if names(GREENLETS) {
        "there are no greenlets; use gthread with --threads N for N requests at once"
    } else if names(LOOPS) {
        "only WSGI applications are served; an ASGI application needs a server of its own"
    } else if names(&["tornado"]) {
        "a Tornado application needs its own server, and for WSGI there is gthread with --threads N"
    } else {
        "a worker is sync or gthread; what another class adds can be done in post_fork, post_worker_init or \
         worker_exit"
    };
    Err(format!("'{}' cannot be honoured: {advice}", text.escape_debug()))
}

/// `gthread`, `egg:gunicorn#gthread` and `gunicorn.workers.gthread.ThreadWorker` are one.
fn built_in(text: &str) -> Option<&'static str> {
    let eggs = ["egg:gunicorn#", "egg:rgunicorn#"];
    let classes = ["gunicorn.workers.", "rgunicorn.workers."];
    let short = |prefixes: &[&str]| prefixes.iter().find_map(|prefix| text.strip_prefix(prefix));
    match (short(&eggs).unwrap_or(text), short(&classes)) {
        ("sync", _) | (_, Some("sync.SyncWorker")) => Some("sync"),
        ("gthread", _) | (_, Some("gthread.ThreadWorker")) => Some("gthread"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{find, options};
    use super::*;
    use std::time::Duration;

    fn read(name: &str, raw: Raw) -> Result<Value, String> {
        find(name).unwrap().read(&raw)
    }

    fn said(text: &str) -> Raw {
        Raw::Text(text.to_string())
    }

    fn refused(name: &str, raw: Raw) -> String {
        read(name, raw).unwrap_err()
    }

    #[test]
    fn numbers() {
        assert_eq!(read("workers", Raw::Int(3)), Ok(Value::Int(3)));
        assert_eq!(read("workers", said("0x10")), Ok(Value::Int(16)));
        assert_eq!(read("workers", Raw::Float(2.0)), Ok(Value::Int(2)));
        assert_eq!(read("max_requests", Raw::Bool(false)), Ok(Value::Int(0)));
        assert_eq!(refused("workers", said("x")), "'x' is not a whole number ≥ 1");
        assert_eq!(refused("workers", Raw::Float(2.5)), "2.5 is not a whole number ≥ 1");
        assert_eq!(refused("workers", Raw::None), "None is not a whole number ≥ 1");
        assert_eq!(refused("threads", Raw::Int(0)), "0 is not a whole number ≥ 1");
        assert_eq!(refused("threads", Raw::Int(65_536)), "65536 is more than 65535");
    }

    #[test]
    fn modes_and_seconds() {
        assert_eq!(read("umask", said("0022")), Ok(Value::Int(0o22)));
        assert_eq!(read("umask", Raw::Int(18)), Ok(Value::Int(18)));
        assert_eq!(refused("umask", said("rwx")), "'rwx' is not a file mode like 0022");
        assert_eq!(refused("umask", Raw::Int(0o10000)), "4096 is not a file mode like 0022");
        let half = Value::Seconds(Duration::from_millis(500));
        assert_eq!(read("timeout", said("0.5")), Ok(half.clone()));
        assert_eq!(read("timeout", Raw::Float(0.5)), Ok(half));
        assert_eq!(refused("timeout", said("-1")), "'-1' is not a number of seconds ≥ 0");
        assert_eq!(refused("timeout", said("30s")), "'30s' is not a number of seconds ≥ 0");
    }

    #[test]
    fn flags_and_choices() {
        assert_eq!(read("daemon", said("True")), Ok(Value::Bool(true)));
        assert_eq!(read("sendfile", Raw::None), Ok(Value::Bool(true)));
        assert_eq!(refused("daemon", said("x")), "'x' is neither true nor false");
        assert_eq!(refused("daemon", Raw::Int(1)), "1 is neither true nor false");
        let refuse = Value::Text("refuse".to_string());
        assert_eq!(read("header_map", said(" REFUSE")), Ok(refuse));
        assert_eq!(refused("header_map", said("x")), "'x' is not one of: drop, refuse, dangerous");
    }

    #[test]
    fn switches_are_words_or_booleans() {
        for (raw, word) in [
            (said("V1"), "v1"),
            (said("auto"), "auto"),
            (Raw::Bool(true), "auto"),
            (said("yes"), "auto"),
            (Raw::Bool(false), "off"),
            (said("False"), "off"),
            (said(""), "off"),
            (Raw::None, "off"),
        ] {
            assert_eq!(read("proxy_protocol", raw.clone()), Ok(Value::Text(word.to_string())), "{raw}");
        }
        assert_eq!(refused("proxy_protocol", said("v3")), "'v3' is not one of: off, v1, v2, auto");
        assert_eq!(refused("proxy_protocol", Raw::Int(1)), "1 is not one of: off, v1, v2, auto");
    }

    #[test]
    fn mount_points_and_protocols() {
        for (given, path) in [("/shop", "/shop"), ("/shop/v1/", "/shop/v1"), ("/", "")] {
            assert_eq!(read("root_path", said(given)), Ok(Value::Text(path.to_string())));
        }
        assert_eq!(read("root_path", said("")), Ok(Value::Unset));
        for bad in ["shop", "/a b", "/a?b", "/%41", "/\u{e9}"] {
            assert!(refused("root_path", said(bad)).ends_with("is not a path like /shop, of plain letters"));
        }
        assert_eq!(read("protocol", said("HTTP")), Ok(Value::Text("http".to_string())));
        assert!(refused("protocol", said("uwsgi")).starts_with("'uwsgi' is not available yet, use http"));
        assert_eq!(refused("protocol", said("ftp")), "'ftp' is not one of: http, uwsgi");
    }

    #[test]
    fn texts_and_paths() {
        assert_eq!(read("pidfile", Raw::None), Ok(Value::Unset));
        assert_eq!(read("pidfile", said(" ")), Ok(Value::Unset));
        assert_eq!(read("pidfile", said(" a ")), Ok(Value::Path("a".into())));
        assert_eq!(read("accesslog", said("-")), Ok(Value::Log(LogTarget::Dash)));
        assert_eq!(refused("pidfile", Raw::Int(3)), "3 is not a text");
        assert_eq!(refused("chdir", said("a\0b")), "'a\\0b' is not a path");
    }

    #[test]
    fn lists() {
        let list = |items: &[&str]| Raw::List(items.iter().map(|item| said(item)).collect());
        let paths = Value::Texts(vec!["a".to_string(), "b".to_string()]);
        assert_eq!(read("pythonpath", said("a,b")), Ok(paths.clone()));
        assert_eq!(read("pythonpath", list(&["a", "b "])), Ok(paths));
        assert_eq!(read("bind", Raw::None), Ok(Value::Addresses(vec![])));
        assert_eq!(read("bind", list(&["fd://3"])), Ok(Value::Addresses(vec![Address::Fd(3)])));
        assert_eq!(refused("bind", Raw::Int(80)), "80 is not a text or a list of texts");
        assert_eq!(refused("bind", Raw::List(vec![Raw::Int(80)])), "80, in the list, is not a text");
        assert_eq!(refused("bind", said("h:x")), "'x' is not a port (0 to 65535)");
        assert_eq!(refused("raw_env", said("A")), "'A' is not NAME=value");
        assert!(refused("forwarded_allow_ips", said("x")).starts_with("'x' is not an IP address"));
    }

    #[test]
    fn values_are_shown_as_python_shows_them() {
        let shown = |name: &str, raw| read(name, raw).unwrap().to_string();
        assert_eq!(shown("pidfile", Raw::None), "None");
        assert_eq!(shown("daemon", Raw::Bool(true)), "True");
        assert_eq!(shown("timeout", Raw::Int(30)), "30");
        assert_eq!(shown("timeout", Raw::Float(0.5)), "0.5");
        assert_eq!(shown("bind", said(":80")), "['0.0.0.0:80']");
        assert_eq!(shown("pythonpath", said("a,b")), "['a', 'b']");
        assert_eq!(shown("secure_scheme_headers", said("A=b")), "{'A': 'b'}");
        assert_eq!(shown("errorlog", said("-")), "-");
    }

    #[test]
    fn maps() {
        let pairs = vec![("A".to_string(), "b".to_string())];
        let raw = Raw::Map(vec![("A".to_string(), said("b"))]);
        assert_eq!(read("secure_scheme_headers", raw), Ok(Value::Pairs(pairs.clone())));
        assert_eq!(read("secure_scheme_headers", said("A=b")), Ok(Value::Pairs(pairs)));
        assert_eq!(refused("secure_scheme_headers", Raw::Int(1)), "1 is not a map of texts");
    }

    #[test]
    fn hooks() {
        let function = || Raw::Callable("<function f>".to_string());
        assert_eq!(read("post_fork", function()), Ok(Value::Hook(HookSpec::Given)));
        assert_eq!(read("post_fork", Raw::None), Ok(Value::Unset));
        let spec = HookSpec::Import { module: "a.b".to_string(), name: "c".to_string() };
        assert_eq!(read("post_fork", said("a.b.c")), Ok(Value::Hook(spec)));
        assert_eq!(refused("post_fork", said("c")), "'c' is not MODULE.NAME");
        assert_eq!(refused("post_fork", Raw::Int(3)), "3 is neither a function nor MODULE.NAME");
        let list = Raw::List(vec![function()]);
        assert_eq!(refused("post_fork", list), "a list is neither a function nor MODULE.NAME");
        assert!(options().filter(|opt| matches!(opt.kind, Kind::Hook)).all(|opt| opt.long.is_empty()));
    }

    #[test]
    fn loggers() {
        let class = Raw::Callable("<class 'L'>".to_string());
        assert_eq!(read("logger_class", class), Ok(Value::Given("<class 'L'>".to_string())));
        assert_eq!(read("logger_class", said("a.B")), Ok(Value::Text("a.B".to_string())));
        assert_eq!(refused("logger_class", Raw::Int(3)), "3 is neither a class nor MODULE.NAME");
        let map = Raw::Map(vec![("version".to_string(), Raw::Int(1))]);
        assert_eq!(read("logconfig_dict", map.clone()), Ok(Value::Tree(map.clone())));
        assert_eq!(read("logconfig_dict", map).unwrap().to_string(), "{'version': ...}");
        assert_eq!(read("logconfig_dict", Raw::Map(vec![])), Ok(Value::Unset));
        assert_eq!(refused("logconfig_dict", said("x")), "'x' is not a dictionary");
    }

    #[test]
    fn worker_classes() {
        let class = |name: &str| Raw::Callable(format!("<class '{name}'>"));
        let (sync, gthread) = (Value::Text("sync".to_string()), Value::Text("gthread".to_string()));
        for raw in [said("sync"), said("egg:gunicorn#sync"), class("gunicorn.workers.sync.SyncWorker")] {
            assert_eq!(read("worker_class", raw), Ok(sync.clone()));
        }
        for raw in [said("gthread"), said("gunicorn.workers.gthread.ThreadWorker")] {
            assert_eq!(read("worker_class", raw), Ok(gthread.clone()));
        }
        assert_eq!(read("worker_class", class("rgunicorn.workers.gthread.ThreadWorker")), Ok(gthread));
        assert_eq!(read("worker_class", Raw::None), Ok(Value::Unset));
        assert_eq!(refused("worker_class", Raw::Int(3)), "3 is neither sync nor gthread");
    }

    #[test]
    fn worker_classes_that_cannot_be_honoured() {
        let advised = [
            ("gevent", "use gthread with --threads N"),
            ("egg:gunicorn#gevent", "use gthread with --threads N"),
            ("eventlet", "use gthread with --threads N"),
            ("geventwebsocket.gunicorn.workers.GeventWebSocketWorker", "use gthread with --threads N"),
            ("tornado", "gthread with --threads N"),
            ("asgi", "only WSGI applications are served"),
            ("uvicorn.workers.UvicornWorker", "only WSGI applications are served"),
            ("uvicorn_worker.UvicornWorker", "only WSGI applications are served"),
            ("aiohttp.GunicornWebWorker", "only WSGI applications are served"),
            ("gunicorn.workers.sync", "a worker is sync or gthread"),
            ("mine.CustomWorker", "a worker is sync or gthread"),
        ];
        for (name, advice) in advised {
            let why = refused("worker_class", said(name));
            assert!(
                why.starts_with(&format!("'{name}' cannot be honoured: ")) && why.contains(advice),
                "{why}"
            );
        }
        let own = Raw::Callable("<class '__config__.Mine'>".to_string());
        assert!(refused("worker_class", own)
            .starts_with("'__config__.Mine' cannot be honoured: a worker is sync"));
    }
}
