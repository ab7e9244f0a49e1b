//! Owns: the configuration as the rest of the server sees it: complete, typed, checked, and never changed.
//! Rule: a reload makes a new `Config`; every field is filled here, by `fields`, and nowhere else.
//! Never: behaviour; a field says what the operator wants, not what becomes of it.

pub mod app;
pub mod arguments;
mod fields;
mod files;
mod flags;
pub mod kinds;
pub mod lines;
pub mod logging;
mod paths;
mod reading;
pub mod settings;
pub mod sources;
pub mod table;
pub mod values;
mod warm_up;

pub use app::{AppSpec, PasteFile};
pub use kinds::{HookSpec, Value};
pub use values::{Address, LogTarget, Raw};
pub use warm_up::WarmUp;

use crate::error::Error;
use crate::http::Policy;
use crate::proxy_protocol::Mode;
use ::log::LevelFilter;
use fields::{
    addresses, buffering, flag, level, log, logging, number, optional_text, pairs, path, policy, proc_name,
    reload, scheme_headers, seconds, texts, tls,
};
use logging::Logging;
use settings::Settings;
use sources::{Environment, Gathered, RunPython};
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::Opt;

/// How long Nginx keeps an idle connection to a server behind it, from 1.29.7 on (ngx_http_upstream_module).
const PROXY_KEEPALIVE: Duration = Duration::from_secs(60);

/// Whether clients show a certificate; `ssl.CERT_NONE` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    Ignored,
    Optional,
    Required,
}

impl ClientCertificate {
    /// By the number that Python's `ssl` has for it.
    pub fn of(number: i64) -> ClientCertificate {
        match number {
            0 => ClientCertificate::Ignored,
            1 => ClientCertificate::Optional,
            _ => ClientCertificate::Required,
        }
    }
}

/// Those whom client certificates have to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// A file of certificates as PEM.
    File(PathBuf),
    /// Certificates as DER.
    Given(Vec<Vec<u8>>),
}

/// Whether a request's body is read before the application is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffering {
    /// Unless it is long, of known length and comes from a proxy that is trusted.
    Auto,
    On,
    /// Only as much of it as one read brings.
    Off,
}

/// How changes of files are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadEngine {
    /// Told by the kernel, where it knows.
    Auto,
    Poll,
    Inotify,
}

/// How TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub certfile: PathBuf,
    /// None: the key is in the file of the certificate.
    pub keyfile: Option<PathBuf>,
    pub authorities: Option<Authorities>,
    pub client: ClientCertificate,
    pub ciphers: Option<String>,
    /// The versions that are spoken, as far as there are ciphers for them.
    pub tls12: bool,
    pub tls13: bool,
}

/// What the operator decided. A time of zero means: no limit, except where a field says otherwise.
#[derive(Clone, Debug)]
pub struct Config {
    pub app: Option<AppSpec>,
    /// Never empty.
    pub bind: Vec<Address>,
    pub backlog: i32,
    pub reuse_port: bool,
    /// At least 1, as `threads` and `worker_connections` are.
    pub workers: usize,
    pub threads: usize,
    pub worker_connections: usize,
    /// 0: workers are not replaced.
    pub max_requests: u64,
    pub max_requests_jitter: u64,
    pub timeout: Duration,
    /// Zero: requests under way are not waited for.
    pub boot_timeout: Duration,
    pub graceful_timeout: Duration,
    /// Zero: a connection serves one request.
    pub keepalive: Duration,
    /// From the first octet of a request to the end of its head.
    pub header_timeout: Duration,
    /// Between two octets of a request body.
    pub body_timeout: Duration,
    /// Without an octet of the response taken by the client.
    pub write_timeout: Duration,
    /// How long a complete request may wait for a thread.
    pub queue_timeout: Duration,
    pub response_buffer: usize,
    /// Bytes of a request body. None: no limit.
    pub limit_request_body: Option<u64>,
    pub request_buffering: Buffering,
    /// Where large request bodies wait, from the working folder. None: the system's folder for such files.
    pub worker_tmp_dir: Option<PathBuf>,
    pub http: Policy,
    pub check_config: bool,
    pub print_config: bool,
    pub preload_app: bool,
    /// What a new application is asked for before anybody else asks.
    pub warm_up: Vec<WarmUp>,
    pub chdir: Option<PathBuf>,
    pub daemon: bool,
    pub raw_env: Vec<(String, String)>,
    pub pidfile: Option<PathBuf>,
    pub pythonpath: Vec<String>,
    /// What the processes are called.
    pub proc_name: String,
    pub umask: u32,
    /// Names or numbers of whom the workers run as.
    pub user: Option<String>,
    pub group: Option<String>,
    pub initgroups: bool,
    /// `*`, addresses and networks in CIDR form, each known to parse.
    pub forwarded_allow_ips: Vec<String>,
    /// Where the application is mounted, as far as nothing else says so; without a slash at its end, "" for nowhere.
    pub root_path: String,
    /// None: no PROXY header is understood.
    pub proxy_protocol: Option<Mode>,
    /// Who must send one, as `forwarded_allow_ips`.
    pub proxy_allow_ips: Vec<String>,
    /// Upper-case field name and the exact value that means https.
    pub secure_scheme_headers: Vec<(String, String)>,
    /// None: no access log.
    pub accesslog: Option<LogTarget>,
    pub access_log_format: String,
    pub errorlog: LogTarget,
    pub loglevel: LevelFilter,
    pub logging: Logging,
    pub sendfile: bool,
    /// Workers are replaced when a file of theirs changes. None: only when told.
    pub reload: Option<ReloadEngine>,
    /// Names of files and patterns, relative to the folder that the server was started in.
    pub reload_extra_files: Vec<String>,
    pub spew: bool,
    /// None: plain HTTP.
    pub tls: Option<Tls>,
    /// Where operators are served, from the working folder. None: nowhere.
    pub control_socket: Option<PathBuf>,
    pub control_socket_mode: u32,
    /// The file that was read; `python:MODULE` if it was a module.
    pub config_file: Option<PathBuf>,
    /// What the fields were made from: two configurations are compared by it.
    settings: Settings,
}

/// A configuration, and what the operator should be told about it once there is a log.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<String>,
}

/// Makes the configuration from all sources. `args` excludes the program's name; a reload passes the same ones again.
pub fn load(args: &[String], env: &Environment, run_python: &mut RunPython) -> Result<Loaded, Error> {
    load_over(Vec::new(), args, env, run_python)
}

/// The same, with settings that go before those of the config file.
pub fn load_over(
    base: Vec<(String, Raw)>,
    args: &[String],
    env: &Environment,
    run_python: &mut RunPython,
) -> Result<Loaded, Error> {
    checked(sources::gather(args, env, base, run_python, Path::new("."))?)
}

/// Makes the configuration of a program that sets everything itself, over what the environment says.
pub fn load_set(entries: Vec<(String, Raw)>, env: &Environment) -> Result<Loaded, Error> {
    checked(sources::gather_set(entries, env)?)
}

fn checked(gathered: Gathered) -> Result<Loaded, Error> {
    let mut warnings = gathered.warnings.clone();
    let config = Config::new(gathered);
    config.check()?;
    paths::check(&config.settings, Path::new("."))?;
    warnings.extend(config.doubts());
    Ok(Loaded { config, warnings })
}

/// The settings that differ although only a restart can change them.
pub fn fixed_changes(old: &Config, new: &Config) -> Vec<&'static str> {
    old.settings.changes(&new.settings).filter(|opt| !opt.reloadable).map(|opt| opt.name).collect()
}

/// Every setting at its default.
impl Default for Config {
    fn default() -> Config {
        Config::new(Gathered::defaults())
    }
}

impl Config {
    fn new(from: Gathered) -> Config {
        let set = from.settings;
        let app = AppSpec::of(&set, from.app.as_deref());
        let proc_name = proc_name(&set, app.as_ref());
        Config {
            logging: logging(&set, &proc_name),
            proc_name,
            app,
            bind: addresses(&set, "bind"),
            backlog: number(&set, "backlog"),
            reuse_port: flag(&set, "reuse_port"),
            workers: number(&set, "workers"),
            threads: number(&set, "threads"),
            worker_connections: number(&set, "worker_connections"),
            max_requests: number(&set, "max_requests"),
            max_requests_jitter: number(&set, "max_requests_jitter"),
            timeout: seconds(&set, "timeout"),
            boot_timeout: seconds(&set, "boot_timeout"),
            graceful_timeout: seconds(&set, "graceful_timeout"),
            keepalive: seconds(&set, "keepalive"),
            header_timeout: seconds(&set, "header_timeout"),
            queue_timeout: seconds(&set, "queue_timeout"),
            response_buffer: number(&set, "response_buffer"),
            body_timeout: seconds(&set, "body_timeout"),
            write_timeout: seconds(&set, "write_timeout"),
            limit_request_body: Some(number(&set, "limit_request_body")).filter(|limit| *limit > 0),
            request_buffering: buffering(&set),
            worker_tmp_dir: path(&set, "worker_tmp_dir"),
            http: policy(&set),
            check_config: flag(&set, "check_config"),
            print_config: flag(&set, "print_config"),
            preload_app: flag(&set, "preload_app"),
            warm_up: texts(&set, "warm_up").iter().filter_map(|text| text.parse().ok()).collect(),
            chdir: path(&set, "chdir"),
            daemon: flag(&set, "daemon"),
            raw_env: pairs(&set, "raw_env"),
            pidfile: path(&set, "pidfile"),
            pythonpath: texts(&set, "pythonpath"),
            umask: number(&set, "umask"),
            user: optional_text(&set, "user"),
            group: optional_text(&set, "group"),
            initgroups: flag(&set, "initgroups"),
            forwarded_allow_ips: texts(&set, "forwarded_allow_ips"),
            root_path: optional_text(&set, "root_path").unwrap_or_default(),
            proxy_protocol: optional_text(&set, "proxy_protocol").and_then(|word| Mode::of(&word)),
            proxy_allow_ips: texts(&set, "proxy_allow_ips"),
            secure_scheme_headers: scheme_headers(&set),
            accesslog: log(&set, "accesslog"),
            access_log_format: optional_text(&set, "access_log_format").unwrap_or_default(),
            errorlog: log(&set, "errorlog").unwrap_or(LogTarget::Dash),
            loglevel: level(&optional_text(&set, "loglevel").unwrap_or_default()),
            sendfile: flag(&set, "sendfile"),
            reload: reload(&set),
            reload_extra_files: texts(&set, "reload_extra_files"),
            spew: flag(&set, "spew"),
            tls: tls(&set),
            control_socket: path(&set, "control_socket").filter(|_| !flag(&set, "control_socket_disable")),
            control_socket_mode: number(&set, "control_socket_mode"),
            config_file: from.config_file,
            settings: set,
        }
    }

    /// Every setting by its name in a configuration file.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.settings.iter().map(|(opt, value)| (opt.name, value))
    }

    /// What no single option can know to be wrong.
    fn check(&self) -> Result<(), Error> {
        if self.bind.is_empty() {
            return Err(self.wrong("bind", "no address is left to listen on (--bind)".to_string()));
        }
        // Served without TLS, the site would be up and exposed.
        if self.tls.is_none() {
            let set = |name: &&&str| *self.settings.get(name) != Value::Unset;
            if let Some(name) = ["keyfile", "ca_certs"].iter().find(set) {
                return Err(
                    self.wrong(name, "there is no certificate to go with it (--certfile)".to_string())
                );
            }
        }
        Ok(())
    }

    /// Every setting, a line each, sorted by name.
    pub fn listing(&self) -> String {
        self.settings.to_string()
    }

    /// The error that says what is wrong with a setting, in the name of whoever set it.
    pub fn wrong(&self, name: &str, why: String) -> Error {
        self.settings.wrong(name, why)
    }

    /// What gunicorn calls the kind of worker that this is.
    pub fn worker_kind(&self) -> &'static str {
        match self.settings.get("worker_class") {
            Value::Text(class) if class == "gthread" => "gthread",
            _ if self.threads > 1 => "gthread",
            _ => "sync",
        }
    }

    /// What can be served, but hardly as the operator imagines it.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.worker_connections < self.threads {
            doubts.push(format!(
                "worker_connections ({}) is less than threads ({}): some threads stay idle",
                self.worker_connections, self.threads
            ));
        }
        if *self.settings.get("ssl_version") != Value::Unset {
            doubts.push("ssl_version is ignored: TLS 1.2 and 1.3 are spoken".to_string());
        }
        doubts.extend(self.short_keepalive().filter(|_| self.check_config));
        doubts.extend(self.ignored());
        doubts
    }

    /// A proxy that keeps a connection for longer sends a request on it at the moment in which it is closed here.
    fn short_keepalive(&self) -> Option<String> {
        let is_short = !self.keepalive.is_zero() && self.keepalive < PROXY_KEEPALIVE;
        let has_socket = self.bind.iter().any(|address| !matches!(address, Address::Fd(_)));
        (is_short && has_socket).then(|| {
            format!(
                "keepalive ({}) is shorter than a proxy may keep its connections (Nginx: {} s): a POST that meets the close \
                 of an idle connection is answered 502 there",
                self.keepalive.as_secs_f64(),
                PROXY_KEEPALIVE.as_secs()
            )
        })
    }

    /// The settings without effect that somebody has changed, with the reasons.
    fn ignored(&self) -> Option<String> {
        let changed = |(opt, value): &(&Opt, &Value)| opt.default_value().as_ref() != Ok(value);
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (opt, _) in self.settings.iter().filter(changed) {
            let Some(why) = opt.ignored else { continue };
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(opt.name),
                None => reasons.push((why, vec![opt.name])),
            }
        }
        let parts: Vec<_> =
            reasons.iter().map(|(why, names)| format!("{} ({why})", names.join(", "))).collect();
        (!parts.is_empty()).then(|| format!("Ignored: {}", parts.join("; ")))
    }
}
#[cfg(test)]
mod tests {
    use super::sources::Script;
    use super::*;
    use crate::http::HeaderMap;

    fn loaded(line: &str, python: &[(&str, Raw)]) -> Result<Loaded, Error> {
        let words = format!("-c python:conf {line}");
        let words: Vec<_> = words.split_whitespace().map(str::to_string).collect();
        let globals = python.iter();
        let globals: Vec<_> = globals.map(|(name, raw)| (name.to_string(), raw.clone())).collect();
        let mut run = |script: Script| match script {
            Script::File(_) => Ok(globals.clone()),
            Script::Server(_) => Ok(Vec::new()),
        };
        load(&words, &|_| None, &mut run)
    }

    fn config(line: &str) -> Config {
        loaded(line, &[]).unwrap().config
    }

    fn said(text: &str) -> Raw {
        Raw::Text(text.to_string())
    }

    #[test]
    fn defaults_are_those_of_gunicorn() {
        let config = Config::default();
        assert_eq!(config.bind, ["127.0.0.1:8000".parse::<Address>().unwrap()]);
        assert_eq!((config.backlog, config.workers, config.threads), (2048, 1, 1));
        assert_eq!(config.worker_connections, 1000);
        assert_eq!((config.max_requests, config.max_requests_jitter), (0, 0));
        assert_eq!(config.timeout, Duration::from_secs(30));
        assert_eq!(config.graceful_timeout, Duration::from_secs(30));
        // Longer than Nginx keeps its own, by which no request meets the close of an idle connection.
        assert_eq!(config.keepalive, Duration::from_secs(75));
        assert_eq!(config.http.limits.request_line, 8190);
        assert_eq!(config.http.limits.fields, 100);
        assert_eq!(config.http.limits.field_size, 8190);
        assert_eq!(config.http.limits.head, 65_536);
        assert_eq!(config.http.header_map, HeaderMap::Drop);
        assert_eq!(config.http.forwarders.listed(), ["SCRIPT_NAME", "PATH_INFO"]);
        assert_eq!(config.forwarded_allow_ips, ["127.0.0.1", "::1"]);
        assert_eq!(config.secure_scheme_headers.len(), 3);
        assert_eq!((config.accesslog, config.errorlog), (None, LogTarget::Dash));
        assert_eq!((config.umask, config.loglevel), (0, LevelFilter::Info));
        assert!(config.sendfile && !config.daemon && !config.preload_app);
        assert_eq!((config.app, config.chdir, config.pidfile), (None, None, None));
    }

    #[test]
    fn defaults_of_our_own_timeouts() {
        let config = Config::default();
        assert_eq!(config.header_timeout, Duration::from_secs(10));
        assert_eq!(config.body_timeout, Duration::from_secs(30));
        assert_eq!(config.write_timeout, Duration::from_secs(30));
    }

    #[test]
    fn limits_of_zero() {
        let none = "--limit-request-line 0 --limit-request-fields 0 --limit-request-field_size 0";
        let limits = config(none).http.limits;
        assert_eq!(limits.request_line, 65_536);
        assert_eq!(limits.fields, 32_768);
        assert_eq!(limits.field_size, 65_536);
        let limits = config(&format!("{none} --limit-request-head 0")).http.limits;
        assert_eq!((limits.request_line, limits.field_size, limits.head), (16 << 20, 16 << 20, 16 << 20));
        let limits = config(&format!("{none} --limit-request-head 100000")).http.limits;
        assert_eq!((limits.request_line, limits.field_size, limits.head), (100_000, 100_000, 100_000));
    }

    #[test]
    fn limits_are_cut_to_what_a_head_can_hold() {
        let much = "--limit-request-line 9999999 --limit-request-fields 9999999 \
                    --limit-request-field_size 9999999";
        let limits = config(much).http.limits;
        assert_eq!(limits.request_line, 65_536);
        assert_eq!(limits.fields, 32_768);
        assert_eq!(limits.field_size, 65_536);
    }

    #[test]
    fn the_command_line_names_the_application_before_the_file() {
        let file = [("wsgi_app", said("file:app"))];
        let app = |line| loaded(line, &file).unwrap().config.app;
        let module = |name: &str| Some(AppSpec::Module(name.to_string()));
        assert_eq!(app(""), module("file:app"));
        assert_eq!(app("line:app"), module("line:app"));
    }

    #[test]
    fn where_paste_is_said_decides_what_it_goes_before() {
        let file = [("wsgi_app", said("file:app")), ("paste", said("/file.ini"))];
        let name = |line, file: &[_]| loaded(line, file).unwrap().config.app.unwrap().name();
        assert_eq!(name("line:app --paste /line.ini", &file), "/line.ini");
        assert_eq!(name("line:app", &file), "line:app");
        assert_eq!(name("", &file), "/file.ini");
        assert_eq!(config("--paster /line.ini").proc_name, "/line.ini");
    }

    #[test]
    fn a_paste_file_its_application_and_its_variables() {
        let line =
            "--paste /a/shop.ini#blog --paste-global a=b=c --paste-global d\\=e=f\\=g --paste-global h=";
        let variables = [("a", "b=c"), ("d=e", "f=g"), ("h", "")];
        let variables = variables.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
        let file = PasteFile { path: "/a/shop.ini".into(), name: Some("blog".to_string()), variables };
        assert_eq!(config(line).app, Some(AppSpec::Paste(file)));
        let Some(AppSpec::Paste(file)) = config("--paste shop.ini").app else { panic!("no file") };
        assert!(file.path.is_absolute() && file.path.ends_with("shop.ini") && file.name.is_none());
        for wrong in ["a", "=b", "a\\=b"] {
            let sentence = loaded(&format!("--paste-global {wrong}"), &[]).unwrap_err().to_string();
            assert_eq!(
                sentence,
                format!("--paste-global: '{wrong}' is not NAME=value").replace('\\', "\\\\")
            );
        }
    }

    #[test]
    fn names_in_upper_case() {
        let headers = Raw::Map(vec![("X-Proto".to_string(), said("Https"))]);
        let file = [("secure_scheme_headers", headers), ("forwarder_headers", said("remote_user"))];
        let config = loaded("", &file).unwrap().config;
        let pair = ("X-PROTO".to_string(), "Https".to_string());
        assert_eq!(config.secure_scheme_headers, [pair]);
        assert_eq!(config.http.forwarders.listed(), ["REMOTE_USER"]);
    }

    #[test]
    fn words_for_levels_and_header_map() {
        let levels = [
            ("debug", LevelFilter::Debug),
            ("WARNING", LevelFilter::Warn),
            ("error", LevelFilter::Error),
            ("critical", LevelFilter::Off),
            ("trace", LevelFilter::Trace),
        ];
        for (word, level) in levels {
            assert_eq!(config(&format!("--log-level {word}")).loglevel, level);
        }
        let policy = |word: &str| config(&format!("--header-map {word}")).http;
        assert_eq!(policy("refuse").header_map, HeaderMap::Refuse);
        assert_eq!(policy("dangerous").header_map, HeaderMap::Dangerous);
    }

    #[test]
    fn no_address_at_all_is_an_error() {
        let error = loaded("", &[("bind", Raw::List(vec![]))]).unwrap_err();
        assert_eq!(error.to_string(), "python:conf: bind: no address is left to listen on (--bind)");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn more_threads_than_connections_is_doubted() {
        let loaded = loaded("--threads 4 --worker-connections 2", &[]).unwrap();
        assert_eq!(
            loaded.warnings,
            ["worker_connections (2) is less than threads (4): some threads stay idle"]
        );
    }

    #[test]
    fn a_keepalive_shorter_than_that_of_a_proxy_is_doubted_by_a_check() {
        let said = |line: &str| loaded(line, &[]).unwrap().warnings.join("\n");
        for line in ["--keep-alive 5", "--keep-alive 59 -b unix:/tmp/s", "--keep-alive 59 -b fd://3 -b :80"] {
            assert!(said(&format!("--check-config {line}")).starts_with("keepalive ("), "{line}");
            assert_eq!(said(line), "");
        }
        for line in ["", "--keep-alive 60", "--keep-alive 0", "--keep-alive 5 -b fd://3"] {
            assert_eq!(said(&format!("--check-config {line}")), "", "{line}");
        }
    }

    #[test]
    fn tls_is_spoken_with_a_certificate() {
        assert_eq!(config("").tls, None);
        let client = |line: &str| config(&format!("--certfile /dev/null {line}")).tls.unwrap().client;
        assert_eq!(client(""), ClientCertificate::Ignored);
        assert_eq!(client("--cert-reqs 1"), ClientCertificate::Optional);
        assert_eq!(client("--cert-reqs 2"), ClientCertificate::Required);
        let (c, k, a) = ("/dev/null", "/dev/./null", "/dev//null");
        let tls = config(&format!("--certfile {c} --keyfile {k} --ca-certs {a} --ciphers x:y")).tls.unwrap();
        assert_eq!((tls.certfile, tls.keyfile), (c.into(), Some(k.into())));
        assert_eq!(
            (tls.authorities, tls.ciphers.as_deref()),
            (Some(Authorities::File(a.into())), Some("x:y"))
        );
    }

    #[test]
    fn a_key_without_a_certificate_is_an_error() {
        for (line, flag) in [("--keyfile k", "--keyfile"), ("--ca-certs a", "--ca-certs")] {
            let sentence = loaded(line, &[]).unwrap_err().to_string();
            assert_eq!(sentence, format!("{flag}: there is no certificate to go with it (--certfile)"));
        }
        // Templates have the rest of it.
        assert!(loaded("--cert-reqs 2 --ciphers x --suppress-ragged-eofs", &[]).is_ok());
    }

    #[test]
    fn ssl_version_is_ignored_with_a_warning() {
        let text = "ssl_version is ignored: TLS 1.2 and 1.3 are spoken";
        for raw in [Raw::Int(17), said("TLSv1_2"), Raw::Other("<_SSLMethod>".into())] {
            assert_eq!(loaded("", &[("ssl_version", raw)]).unwrap().warnings, [text]);
        }
        assert!(loaded("", &[("ssl_version", Raw::None)]).unwrap().warnings.is_empty());
    }

    #[test]
    fn what_is_not_for_wsgi_is_ignored_with_one_warning() {
        let dirty = Raw::List(vec![said("a:B")]);
        let file = [("dirty_apps", dirty), ("on_dirty_starting", Raw::Callable("f".to_string()))];
        assert_eq!(
            loaded("--http-protocols h2,h1 --asgi-loop uvloop --http2-max-frame-size 16384 app:app", &file)
                .map(|loaded| (loaded.warnings, loaded.config.app))
                .unwrap(),
            (
                vec![
                    "Ignored: asgi_loop (only WSGI applications are served); http_protocols (HTTP/1.1 is spoken; \
                     HTTP/2 is for the proxy in front); dirty_apps, on_dirty_starting (there are no dirty workers; \
                     use a task queue)"
                        .to_string()
                ],
                Some(AppSpec::Module("app:app".to_string()))
            )
        );
        assert!(loaded("--http-protocols h1 --dirty-workers 0", &[]).unwrap().warnings.is_empty());
    }

    #[test]
    fn paths_are_judged_by_what_they_are_for() {
        let refused = |line: &str| loaded(line, &[]).unwrap_err();
        let pairs = [
            (
                "--chdir /nonexistent",
                "--chdir: '/nonexistent' is not a folder that exists: No such file or directory",
            ),
            ("--chdir /dev/null", "--chdir: '/dev/null' is not a folder"),
            (
                "--certfile /nonexistent",
                "--certfile: '/nonexistent' is not a file that can be read: No such file or directory",
            ),
            ("--certfile /dev", "--certfile: '/dev' is a folder, not a file"),
            (
                "--pid /nonexistent/a",
                "--pid: '/nonexistent/a' is not in a folder that exists: No such file or directory",
            ),
            ("--pid /dev/null/a", "--pid: '/dev/null/a' is not in a folder"),
            ("--access-logfile /dev", "--access-logfile: '/dev' is a folder, not a file"),
            ("--worker-tmp-dir null --chdir /dev", "--worker-tmp-dir: 'null' is not a folder"),
        ];
        for (line, sentence) in pairs {
            let error = refused(line);
            assert_eq!((error.to_string().as_str(), error.exit_code()), (sentence, 1));
        }
        assert!(loaded("--certfile null --pid new --access-logfile - --chdir /dev", &[]).is_ok());
    }

    #[test]
    fn the_kind_of_worker() {
        let kind = |line: &str| config(line).worker_kind();
        assert_eq!([kind(""), kind("-k gthread"), kind("--threads 2")], ["sync", "gthread", "gthread"]);
    }

    #[test]
    fn changes_that_need_a_restart() {
        let old = config("");
        let new = config("-w 3 -b :9 --preload -t 1 --umask 7 --backlog 9");
        assert_eq!(fixed_changes(&old, &new), ["backlog", "umask"]);
        assert!(fixed_changes(&old, &old.clone()).is_empty());
        assert!(fixed_changes(&old, &config("-w 9")).is_empty());
    }

    #[test]
    fn the_file_that_was_read_is_remembered() {
        assert_eq!(config("").config_file, Some("python:conf".into()));
        assert_eq!(Config::default().config_file, None);
    }
}
