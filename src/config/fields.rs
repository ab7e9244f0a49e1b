//! Owns: how a field of `Config` is read out of the settings.
//! Rule: what a setting says has been checked by its kind; nothing here can fail.
//! Never: knows where a setting comes from.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::app::AppSpec;
use super::kinds::Value;
use super::logging::{self, Logging, PythonLogger, Statsd, Syslog};
use super::settings::Settings;
use super::values::{Address, LogTarget};
use super::{Authorities, Buffering, ClientCertificate, ReloadEngine, Tls};
use crate::http::{Forwarders, HeaderMap, Leniency, Limits, Methods, Policy};

/// The most that a request head may take, whatever the limits say: each thread has address space for one.
const HEAD_LIMIT: usize = 16 << 20;
/// The most fields that gunicorn accepts, and what its "no limit" amounts to.
const FIELDS_LIMIT: usize = 32_768;

pub(super) fn tls(set: &Settings) -> Option<Tls> {
    Some(Tls {
        certfile: path(set, "certfile")?,
        keyfile: path(set, "keyfile"),
        authorities: path(set, "ca_certs").map(Authorities::File),
        client: ClientCertificate::of(number(set, "cert_reqs")),
        ciphers: optional_text(set, "ciphers"),
        tls12: true,
        tls13: true,
    })
}

pub(super) fn reload(set: &Settings) -> Option<ReloadEngine> {
    flag(set, "reload").then(|| match optional_text(set, "reload_engine").as_deref() {
        Some("poll") => ReloadEngine::Poll,
        Some("inotify") => ReloadEngine::Inotify,
        _ => ReloadEngine::Auto,
    })
}

pub(super) fn buffering(set: &Settings) -> Buffering {
    match optional_text(set, "request_buffering").as_deref() {
        Some("on") => Buffering::On,
        Some("off") => Buffering::Off,
        _ => Buffering::Auto,
    }
}

pub(super) fn proc_name(set: &Settings, app: Option<&AppSpec>) -> String {
    let named = ["proc_name", "default_proc_name"].into_iter().find_map(|name| optional_text(set, name));
    named.or(app.map(AppSpec::name)).unwrap_or_else(|| "rgunicorn".to_string())
}

pub(super) fn policy(set: &Settings) -> Policy {
    let upper = |name: String| name.to_ascii_uppercase();
    let head = limit(set, "limit_request_head", HEAD_LIMIT);
    Policy {
        limits: Limits {
            request_line: limit(set, "limit_request_line", head),
            fields: limit(set, "limit_request_fields", FIELDS_LIMIT),
            field_size: limit(set, "limit_request_field_size", head),
            head,
        },
        header_map: header_map(&optional_text(set, "header_map").unwrap_or_default()),
        forwarders: Forwarders::new(
            texts(set, "forwarder_headers").into_iter().map(upper).collect(),
            scheme_headers(set).into_iter().map(|(name, _)| name).collect(),
        ),
        methods: match flag(set, "permit_unconventional_http_method") {
            true => Methods::Any,
            false => Methods::Conventional,
        },
        leniency: Leniency {
            folding: flag(set, "permit_obsolete_folding"),
            name_spaces: flag(set, "strip_header_spaces"),
            versions: flag(set, "permit_unconventional_http_version"),
            casefold: flag(set, "casefold_http_method"),
        },
    }
}

/// A limit that cannot be above `most`, which 0 stands for.
fn limit(set: &Settings, name: &str, most: usize) -> usize {
    match number(set, name) {
        0 => most,
        limit => most.min(limit),
    }
}

fn header_map(word: &str) -> HeaderMap {
    match word {
        "refuse" => HeaderMap::Refuse,
        "dangerous" => HeaderMap::Dangerous,
        _ => HeaderMap::Drop,
    }
}

/// gunicorn's words; what is critical is written at every level.
pub(super) fn level(word: &str) -> LevelFilter {
    match word {
        "trace" => LevelFilter::Trace,
        "debug" => LevelFilter::Debug,
        "warning" | "warn" => LevelFilter::Warn,
        "error" => LevelFilter::Error,
        "critical" => LevelFilter::Off,
        _ => LevelFilter::Info,
    }
}

pub(super) fn logging(set: &Settings, proc_name: &str) -> Logging {
    Logging {
        python: python_logger(set),
        syslog: flag(set, "syslog").then(|| syslog(set, proc_name)).flatten(),
        statsd: statsd(set),
        capture_output: flag(set, "capture_output"),
        enable_stdio_inheritance: flag(set, "enable_stdio_inheritance"),
    }
}

/// Python takes the lines where its logging is configured, or a class of the operator's.
fn python_logger(set: &Settings) -> Option<PythonLogger> {
    let class = set.get("logger_class").to_string();
    let named = matches!(set.get("logger_class"), Value::Text(_));
    let foreign = !named || logging::built_in(&class).is_none();
    let configured = ["logconfig_dict", "logconfig_json", "logconfig"];
    let option = configured.into_iter().find(|name| *set.get(name) != Value::Unset);
    option.or(foreign.then_some("logger_class")).map(|option| PythonLogger { class, option })
}

/// The texts have been checked by their kinds.
fn syslog(set: &Settings, proc_name: &str) -> Option<Syslog> {
    let name = optional_text(set, "syslog_prefix").unwrap_or_else(|| proc_name.to_string());
    Some(Syslog {
        address: logging::syslog_address(&optional_text(set, "syslog_addr")?).ok()?,
        facility: logging::facility(&optional_text(set, "syslog_facility")?),
        tag: format!("gunicorn.{name}"),
        access: !flag(set, "disable_redirect_access_to_syslog"),
    })
}

fn statsd(set: &Settings) -> Option<Statsd> {
    Some(Statsd {
        address: logging::statsd_address(&optional_text(set, "statsd_host")?).ok()?,
        prefix: logging::statsd_prefix(&optional_text(set, "statsd_prefix").unwrap_or_default()),
        tags: optional_text(set, "dogstatsd_tags").unwrap_or_default(),
        backlog: flag(set, "enable_backlog_metric"),
    })
}

/// Field names are compared in upper case.
pub(super) fn scheme_headers(set: &Settings) -> Vec<(String, String)> {
    pairs(set, "secure_scheme_headers")
        .into_iter()
        .map(|(name, value)| (name.to_ascii_uppercase(), value))
        .collect()
}

// One function per type. A setting's kind decides the type of its value, and `Config::default()` asks for every
// setting once, so that a name asked for as the wrong type fails in the first test that runs.

pub(super) fn flag(set: &Settings, name: &str) -> bool {
    match set.get(name) {
        Value::Bool(value) => *value,
        other => unreachable!("{name} is {other:?}"),
    }
}

/// The option's bounds are within the type that its field has.
pub(super) fn number<T: TryFrom<i64>>(set: &Settings, name: &str) -> T {
    match set.get(name) {
        Value::Int(value) => T::try_from(*value).unwrap_or_else(|_| unreachable!("{name} is {value}")),
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn seconds(set: &Settings, name: &str) -> Duration {
    match set.get(name) {
        Value::Seconds(value) => *value,
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn optional_text(set: &Settings, name: &str) -> Option<String> {
    match set.get(name) {
        Value::Text(value) => Some(value.clone()),
        Value::Unset => None,
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn texts(set: &Settings, name: &str) -> Vec<String> {
    match set.get(name) {
        Value::Texts(value) => value.clone(),
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn pairs(set: &Settings, name: &str) -> Vec<(String, String)> {
    match set.get(name) {
        Value::Pairs(value) => value.clone(),
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn path(set: &Settings, name: &str) -> Option<PathBuf> {
    match set.get(name) {
        Value::Path(value) => Some(value.clone()),
        Value::Unset => None,
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn log(set: &Settings, name: &str) -> Option<LogTarget> {
    match set.get(name) {
        Value::Log(value) => Some(value.clone()),
        Value::Unset => None,
        other => unreachable!("{name} is {other:?}"),
    }
}

pub(super) fn addresses(set: &Settings, name: &str) -> Vec<Address> {
    match set.get(name) {
        Value::Addresses(value) => value.clone(),
        other => unreachable!("{name} is {other:?}"),
    }
}
