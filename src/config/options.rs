//! Owns: the one table of options, what each kind of option accepts, and the command line that follows from the table.
//! Rule: nothing else knows an option's name, flags, default or help; to add an option is to add a row.
//! Never: decides between sources, keeps a value, acts on one.

use super::values::{self, Address, LogTarget, Raw};
use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One row of the table.
#[derive(Debug)]
pub struct Opt {
    /// The setting's name in config files; gunicorn's where gunicorn has it.
    pub name: &'static str,
    pub short: Option<char>,
    /// The first is shown, the others are other spellings of it. Empty: config file only.
    pub long: &'static [&'static str],
    pub env: Option<Env>,
    pub kind: Kind,
    /// As text of this kind; empty means unset.
    pub default: &'static str,
    /// Whether a reload takes a new value over, without a restart.
    pub reloadable: bool,
    pub section: &'static str,
    pub help: &'static str,
}

/// The environment variable that replaces a default.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    pub name: &'static str,
    /// Goes before the variable's text: PORT is only a part of an address.
    pub prefix: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// True or false; the bare flag on a command line stores `given`.
    Flag {
        given: bool,
    },
    Int {
        min: i64,
        max: i64,
    },
    /// A file mode: octal when it begins with 0.
    Mode,
    Seconds,
    Text,
    /// A value of any type that only its being set matters of.
    Anything,
    Path,
    Log,
    /// A user or a group, by name or by number.
    Account,
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// Text with a rule of its own, which gives back the value or the predicate of a sentence.
    Checked(fn(&str) -> Result<String, String>),
    CommaList,
    AllowList,
    /// `NAME=value`, once per flag.
    Env,
    /// Listening addresses, one per flag.
    Addresses,
    /// A dictionary of texts.
    Map,
    /// A Python function, or where it is: `MODULE.NAME`.
    Hook,
}

/// A setting's value once it has been checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unset,
    Bool(bool),
    Int(i64),
    Seconds(Duration),
    Text(String),
    Texts(Vec<String>),
    Pairs(Vec<(String, String)>),
    Path(PathBuf),
    Log(LogTarget),
    Addresses(Vec<Address>),
    Hook(HookSpec),
}

/// Where the function is that a hook calls; which arguments it takes only Python can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookSpec {
    /// In the config file that was executed, under the setting's name.
    Given,
    Import {
        module: String,
        name: String,
    },
}

/// As Python writes it, which is what gunicorn prints.
impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        match self {
            Value::Unset => out.write_str("None"),
            Value::Bool(true) => out.write_str("True"),
            Value::Bool(false) => out.write_str("False"),
            Value::Int(number) => write!(out, "{number}"),
            Value::Seconds(time) => write!(out, "{}", time.as_secs_f64()),
            Value::Text(text) => out.write_str(text),
            Value::Texts(texts) => {
                out.write_str(&list(texts.iter().map(|text| format!("'{text}'")).collect()))
            }
            Value::Pairs(pairs) => {
                let items: Vec<_> =
                    pairs.iter().map(|(name, value)| format!("'{name}': '{value}'")).collect();
                write!(out, "{{{}}}", items.join(", "))
            }
            Value::Path(path) | Value::Log(LogTarget::File(path)) => write!(out, "{}", path.display()),
            Value::Log(LogTarget::Dash) => out.write_str("-"),
            Value::Addresses(all) => out.write_str(&list(all.iter().map(|one| format!("'{one}'")).collect())),
            Value::Hook(HookSpec::Given) => out.write_str("<function>"),
            Value::Hook(HookSpec::Import { name, .. }) => write!(out, "<{name}()>"),
        }
    }
}

const APPLICATION: &str = "Application";
const CONFIGURATION: &str = "Configuration";
const LISTENING: &str = "Listening";
const WORKERS: &str = "Workers";
const TIMEOUTS: &str = "Timeouts";
const LIMITS: &str = "Request limits";
const PROXY: &str = "Behind a proxy";
const TLS: &str = "TLS";
const LOGGING: &str = "Logging";
const PROCESS: &str = "Process";
const HOOKS: &str = "Hooks";

const ANY: i64 = i64::MAX;

/// What most rows have in common.
const ROW: Opt = Opt {
    name: "",
    short: None,
    long: &[],
    env: None,
    kind: Kind::Text,
    default: "",
    reloadable: true,
    section: "",
    help: "",
};

pub const OPTIONS: &[Opt] = &[
    Opt {
        name: "wsgi_app",
        section: APPLICATION,
        help: "The application, MODULE:NAME, when the command line names none.",
        ..ROW
    },
    Opt {
        name: "pythonpath",
        long: &["pythonpath"],
        kind: Kind::CommaList,
        section: APPLICATION,
        help: "Directories to import from before all others, separated by commas.",
        ..ROW
    },
    Opt {
        name: "chdir",
        long: &["chdir"],
        kind: Kind::Path,
        reloadable: true,
        section: APPLICATION,
        help: "Go to this directory before anything is imported.",
        ..ROW
    },
    Opt {
        name: "raw_env",
        short: Some('e'),
        long: &["env"],
        kind: Kind::Env,
        section: APPLICATION,
        help: "Set NAME=value in the environment of the application. May be repeated.",
        ..ROW
    },
    Opt {
        name: "preload_app",
        long: &["preload"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: true,
        section: APPLICATION,
        help: "Import the application once and fork the workers from there: less memory and a \
               quicker start, but connections and threads that the import opens are not carried \
               over.",
        ..ROW
    },
    Opt {
        name: "config",
        short: Some('c'),
        long: &["config"],
        kind: Kind::Path,
        reloadable: false,
        section: CONFIGURATION,
        help: "The config file: Python, or TOML when it is named *.toml; python:MODULE imports \
               one. Without it, ./gunicorn.conf.py or ./rgunicorn.toml is read if there is one, or \
               [tool.rgunicorn] in ./pyproject.toml.",
        ..ROW
    },
    Opt {
        name: "check_config",
        long: &["check-config"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: CONFIGURATION,
        help: "Read the configuration, import the application, then exit: 0 if all is well.",
        ..ROW
    },
    Opt {
        name: "print_config",
        long: &["print-config"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: CONFIGURATION,
        help: "Print every setting with its value, then do as --check-config does.",
        ..ROW
    },
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
    Opt {
        name: "workers",
        short: Some('w'),
        long: &["workers"],
        env: Some(Env { name: "WEB_CONCURRENCY", prefix: "" }),
        kind: Kind::Int { min: 1, max: 65_535 },
        default: "1",
        section: WORKERS,
        help: "Processes that serve requests. Start with one per core; more only if the \
               application waits a lot and is not thread-safe.",
        ..ROW
    },
    Opt {
        name: "threads",
        long: &["threads"],
        kind: Kind::Int { min: 1, max: 65_535 },
        default: "1",
        section: WORKERS,
        help: "Requests that one worker may have in the application at once. Raise it when the \
               application waits for databases or other services.",
        ..ROW
    },
    Opt {
        name: "worker_class",
        short: Some('k'),
        long: &["worker-class"],
        kind: Kind::Checked(worker_class),
        default: "sync",
        section: WORKERS,
        help: "sync or gthread, for compatibility: both are the one engine, and --threads decides.",
        ..ROW
    },
    Opt {
        name: "worker_connections",
        long: &["worker-connections"],
        kind: Kind::Int { min: 1, max: 1_000_000 },
        default: "1000",
        section: WORKERS,
        help: "Connections that one worker holds open, idle ones included.",
        ..ROW
    },
    Opt {
        name: "max_requests",
        long: &["max-requests"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "0",
        section: WORKERS,
        help: "Replace a worker after this many requests, to bound a leak. 0 = never.",
        ..ROW
    },
    Opt {
        name: "max_requests_jitter",
        long: &["max-requests-jitter"],
        kind: Kind::Int { min: 0, max: u32::MAX as i64 },
        default: "0",
        section: WORKERS,
        help: "Add up to this many, at random, to --max-requests, so that workers are not all \
               replaced together.",
        ..ROW
    },
    Opt {
        name: "timeout",
        short: Some('t'),
        long: &["timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "How long the application may work on one request. Past it, the client is answered 504, \
               the request and every thread's stack are logged, and the worker is replaced. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "graceful_timeout",
        long: &["graceful-timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "On stop or reload, how long requests already begun may take to finish; then they are \
               answered 504.",
        ..ROW
    },
    Opt {
        name: "keepalive",
        long: &["keep-alive"],
        kind: Kind::Seconds,
        default: "2",
        section: TIMEOUTS,
        help: "How long an idle connection is kept for its next request. Behind a proxy, make it \
               longer than the proxy's own. 0 = close after each response.",
        ..ROW
    },
    Opt {
        name: "header_timeout",
        long: &["header-timeout"],
        kind: Kind::Seconds,
        default: "10",
        section: TIMEOUTS,
        help: "Total time in which a client must send the head of a request. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "body_timeout",
        long: &["body-timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "Longest pause of a client while it sends a request body. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "write_timeout",
        long: &["write-timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "Longest time in which a client takes nothing of its response. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "limit_request_line",
        long: &["limit-request-line"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "4094",
        section: LIMITS,
        help: "Octets in the request line. 0 = no limit but that of a whole head, 64 KiB.",
        ..ROW
    },
    Opt {
        name: "limit_request_fields",
        long: &["limit-request-fields"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "100",
        section: LIMITS,
        help: "Header fields in one request. 0 = as many as possible, 32768.",
        ..ROW
    },
    Opt {
        name: "limit_request_field_size",
        // gunicorn's own spelling has the underscore; scripts in the field carry it.
        long: &["limit-request-field_size", "limit-request-field-size"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "8190",
        section: LIMITS,
        help: "Octets in one header field, name and value. 0 = 8190, as in gunicorn.",
        ..ROW
    },
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
        name: "certfile",
        long: &["certfile"],
        kind: Kind::Path,
        section: TLS,
        help: "Speak HTTPS, with this certificate and those that lead to its authority, in PEM form.",
        ..ROW
    },
    Opt {
        name: "keyfile",
        long: &["keyfile"],
        kind: Kind::Path,
        section: TLS,
        help: "The certificate's key, not encrypted; without this it is in --certfile.",
        ..ROW
    },
    Opt {
        name: "ca_certs",
        long: &["ca-certs"],
        kind: Kind::Path,
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
        name: "daemon",
        short: Some('D'),
        long: &["daemon"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: PROCESS,
        help: "Detach from the terminal. Leave it out under systemd, a container or a supervisor.",
        ..ROW
    },
    Opt {
        name: "pidfile",
        short: Some('p'),
        long: &["pid"],
        kind: Kind::Path,
        reloadable: false,
        section: PROCESS,
        help: "File to keep the process id in, for as long as the server runs.",
        ..ROW
    },
    Opt {
        name: "user",
        short: Some('u'),
        long: &["user"],
        kind: Kind::Account,
        reloadable: false,
        section: PROCESS,
        help: "Run the workers as this user, by name or number; the arbiter stays root.",
        ..ROW
    },
    Opt {
        name: "group",
        short: Some('g'),
        long: &["group"],
        kind: Kind::Account,
        reloadable: false,
        section: PROCESS,
        help: "Run the workers with this group, by name or number; without it, with the one \
               that --user has.",
        ..ROW
    },
    Opt {
        name: "initgroups",
        long: &["initgroups"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: PROCESS,
        help: "Give the workers all groups of --user; otherwise they are in --group only.",
        ..ROW
    },
    Opt {
        name: "proc_name",
        short: Some('n'),
        long: &["name"],
        section: PROCESS,
        help: "The name that ps shows, where the Python package setproctitle is installed; \
               without it, the application's.",
        ..ROW
    },
    Opt {
        name: "default_proc_name",
        section: PROCESS,
        help: "The name that is shown when --name is not given.",
        ..ROW
    },
    Opt {
        name: "umask",
        short: Some('m'),
        long: &["umask"],
        kind: Kind::Mode,
        default: "0",
        reloadable: false,
        section: PROCESS,
        help: "Permission bits taken from unix sockets that are made; 0 leaves them open to all.",
        ..ROW
    },
    Opt {
        name: "worker_tmp_dir",
        long: &["worker-tmp-dir"],
        kind: Kind::Path,
        section: PROCESS,
        help: "Accepted, and without effect: workers are watched through shared memory, not \
               through files.",
        ..ROW
    },
    Opt {
        name: "tmp_upload_dir",
        kind: Kind::Path,
        section: PROCESS,
        help: "Accepted, and without effect, as in gunicorn.",
        ..ROW
    },
    Opt {
        name: "sendfile",
        long: &["no-sendfile"],
        env: Some(Env { name: "SENDFILE", prefix: "" }),
        kind: Kind::Flag { given: false },
        default: "true",
        section: PROCESS,
        help: "Copy files into the socket instead of using sendfile(2), which some network file \
               systems do badly.",
        ..ROW
    },
    hook("on_starting", "Called as on_starting(server) in the arbiter, before it listens."),
    hook("on_reload", "Called as on_reload(server) in the arbiter on a reload, before new workers start."),
    hook("when_ready", "Called as when_ready(server) in the arbiter once it listens, before the first fork."),
    hook("pre_fork", "Called as pre_fork(server, worker) in the arbiter before each worker is forked."),
    hook("post_fork", "Called as post_fork(server, worker) in the new worker, before the application is loaded."),
    hook("post_worker_init", "Called as post_worker_init(worker) in the worker once the application is loaded."),
    hook("worker_int", "Called as worker_int(worker) in a worker that INT or QUIT ends."),
    hook("worker_abort", "Called as worker_abort(worker) in a worker on ABRT, also when --timeout breaks off a request."),
    hook("pre_exec", "For the binary upgrade, which is not there yet: pre_exec(server)."),
    hook("pre_request", "Called as pre_request(worker, req) in the worker before each request."),
    hook("post_request", "Called as post_request(worker, req, environ, resp) in the worker after each request; the last two may be left out."),
    hook("child_exit", "Called as child_exit(server, worker) in the arbiter when a worker has ended."),
    hook("worker_exit", "Called as worker_exit(server, worker) in a worker on its way out."),
    hook("nworkers_changed", "Called as nworkers_changed(server, new, old) in the arbiter when the number of workers wanted is set; old is None at the start."),
    hook("on_exit", "Called as on_exit(server) in the arbiter, last of all."),
];

/// A row for a function of the operator's, which has no flag.
const fn hook(name: &'static str, help: &'static str) -> Opt {
    Opt { name, kind: Kind::Hook, section: HOOKS, help, ..ROW }
}

/// gunicorn's settings that are not in the table, with their flags: known, so that whoever uses one is told.
pub const NOT_YET: &[(&str, &str)] = &[
    ("reload", "--reload"),
    ("reload_engine", "--reload-engine"),
    ("reload_extra_files", "--reload-extra-file"),
    ("spew", "--spew"),
    ("disable_redirect_access_to_syslog", "--disable-redirect-access-to-syslog"),
    ("capture_output", "--capture-output"),
    ("logger_class", "--logger-class"),
    ("logconfig", "--log-config"),
    ("logconfig_dict", ""),
    ("logconfig_json", "--log-config-json"),
    ("syslog_addr", "--log-syslog-to"),
    ("syslog", "--log-syslog"),
    ("syslog_prefix", "--log-syslog-prefix"),
    ("syslog_facility", "--log-syslog-facility"),
    ("enable_stdio_inheritance", "-R --enable-stdio-inheritance"),
    ("statsd_host", "--statsd-host"),
    ("dogstatsd_tags", "--dogstatsd-tags"),
    ("statsd_prefix", "--statsd-prefix"),
    ("enable_backlog_metric", "--enable-backlog-metric"),
    ("paste", "--paste --paster"),
    ("raw_paste_global_conf", "--paste-global"),
    ("ssl_context", ""),
    ("proxy_protocol", "--proxy-protocol"),
    ("proxy_allow_ips", "--proxy-allow-from"),
    ("protocol", "--protocol"),
    ("uwsgi_allow_ips", "--uwsgi-allow-from"),
    ("http_protocols", "--http-protocols"),
    ("http2_cleartext", "--http2-cleartext"),
    ("http2_max_concurrent_streams", "--http2-max-concurrent-streams"),
    ("http2_initial_window_size", "--http2-initial-window-size"),
    ("http2_max_frame_size", "--http2-max-frame-size"),
    ("http2_max_header_list_size", "--http2-max-header-list-size"),
    ("permit_obsolete_folding", "--permit-obsolete-folding"),
    ("strip_header_spaces", "--strip-header-spaces"),
    ("permit_unconventional_http_method", "--permit-unconventional-http-method"),
    ("permit_unconventional_http_version", "--permit-unconventional-http-version"),
    ("casefold_http_method", "--casefold-http-method"),
    ("asgi_loop", "--asgi-loop"),
    ("asgi_lifespan", "--asgi-lifespan"),
    ("asgi_disconnect_grace_period", "--asgi-disconnect-grace-period"),
    ("websocket_max_message_size", "--websocket-max-message-size"),
    ("http_parser", "--http-parser"),
    ("root_path", "--root-path"),
    ("dirty_apps", "--dirty-app"),
    ("dirty_workers", "--dirty-workers"),
    ("dirty_timeout", "--dirty-timeout"),
    ("dirty_threads", "--dirty-threads"),
    ("dirty_graceful_timeout", "--dirty-graceful-timeout"),
    ("on_dirty_starting", ""),
    ("dirty_post_fork", ""),
    ("dirty_worker_init", ""),
    ("dirty_worker_exit", ""),
    ("control_socket", "--control-socket"),
    ("control_socket_mode", "--control-socket-mode"),
    ("control_socket_disable", "--no-control-socket"),
];

impl Opt {
    /// The flag as errors show it; a setting without one is shown by its name.
    pub fn flag(&self) -> String {
        match self.long.first() {
            Some(long) => format!("--{long}"),
            None => self.name.to_string(),
        }
    }

    /// A raw value → this setting's value, or the predicate of an error sentence.
    pub fn read(&self, raw: &Raw) -> Result<Value, String> {
        match (self.kind, raw) {
            // A flag set to None in a config file is one that was left alone.
            (Kind::Flag { .. }, Raw::None) => self.default_value(),
            (kind, raw) => kind.read(raw),
        }
    }

    pub fn default_value(&self) -> Result<Value, String> {
        self.kind.read(&Raw::Text(self.default.to_string()))
    }
}

impl Kind {
    /// Whether the option may be given several times, each adding a value.
    pub fn repeats(self) -> bool {
        matches!(self, Kind::Env | Kind::Addresses)
    }

    /// Whether an empty environment variable says something; elsewhere it is taken for an unset one.
    pub fn takes_empty(self) -> bool {
        matches!(self, Kind::CommaList | Kind::AllowList)
    }

    /// What stands for the value in the help.
    fn meta(self) -> &'static str {
        match self {
            Kind::Flag { .. } => "",
            Kind::Int { .. } => "N",
            Kind::Mode => "MODE",
            Kind::Seconds => "SECONDS",
            Kind::Text | Kind::Anything | Kind::Hook => "TEXT",
            Kind::Choice(_) | Kind::Checked(_) => "WORD",
            Kind::Path | Kind::Log => "PATH",
            Kind::Account => "NAME",
            Kind::CommaList | Kind::AllowList => "LIST",
            Kind::Env | Kind::Map => "NAME=VALUE",
            Kind::Addresses => "ADDRESS",
        }
    }

    fn read(self, raw: &Raw) -> Result<Value, String> {
        match self {
            Kind::Flag { .. } => flag(raw),
            Kind::Int { min, max } => int(raw, min, max),
            Kind::Mode => mode(raw),
            Kind::Seconds => seconds(raw),
            Kind::Text => text(raw, |text| Ok(Value::Text(text.to_string()))),
            Kind::Anything => anything(raw),
            Kind::Path => text(raw, |text| values::path(text).map(Value::Path)),
            Kind::Log => text(raw, |text| Ok(Value::Log(LogTarget::of(text)))),
            Kind::Account => account(raw),
            Kind::Choice(words) => choice(raw, words),
            Kind::Checked(rule) => text(raw, |text| rule(text).map(Value::Text)),
            Kind::CommaList => texts(raw, values::comma_list).map(Value::Texts),
            Kind::AllowList => allow_list(raw),
            Kind::Env => env(raw),
            Kind::Addresses => addresses(raw),
            Kind::Map => map(raw),
            Kind::Hook => hook_spec(raw),
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

/// The kinds of worker there are in gunicorn; here only those that a thread per request can stand in for.
fn worker_class(text: &str) -> Result<String, String> {
    let advice = match text {
        "sync" | "gthread" => return Ok(text.to_string()),
        "egg:gunicorn#sync" | "gunicorn.workers.sync.SyncWorker" => return Ok("sync".to_string()),
        "egg:gunicorn#gthread" | "gunicorn.workers.gthread.ThreadWorker" => return Ok("gthread".to_string()),
        _ if text.contains("uvicorn") || text.contains("asgi") || text.contains("aiohttp") => {
            "only WSGI applications are served"
        }
        _ => "use gthread with --threads",
    };
    Err(format!("'{}' is not available here, {advice}", text.escape_debug()))
}

pub fn find(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.name == name)
}

/// The setting of gunicorn's that has this name or this flag, if it is one of those not supported yet.
pub fn not_yet(name: &str) -> bool {
    NOT_YET
        .iter()
        .any(|(setting, flags)| *setting == name || flags.split_whitespace().any(|flag| flag == name))
}

/// The setting that a misspelt name was probably meant for.
pub fn closest_name(name: &str) -> Option<&'static str> {
    let settings = OPTIONS.iter().map(|opt| opt.name);
    closest(name, settings.chain(NOT_YET.iter().map(|(name, _)| *name)))
}

/// The flags that a word, without its dashes, could be short for.
pub fn flags_beginning(word: &str) -> Vec<String> {
    OPTIONS.iter().filter(|opt| opt.long.iter().any(|long| long.starts_with(word))).map(Opt::flag).collect()
}

/// The long flag, without dashes, that a misspelt one was probably meant for.
pub fn closest_flag(flag: &str) -> Option<&'static str> {
    let longs = OPTIONS.iter().flat_map(|opt| opt.long.iter().copied());
    closest(flag, longs.chain(["help", "version"]))
}

fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (distance(word, candidate), candidate))
        // Two edits turn most four-letter words into one another.
        .filter(|(edits, candidate)| *edits <= 2 && *edits * 3 <= candidate.len())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's: the insertions, deletions and replacements that lead from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

/// Ids of the positional arguments: the application, and whatever else there is.
pub const APP: &str = "APP";
pub const EXTRA: &str = "EXTRA";

/// The command line: one argument per row that has a flag, under its section's heading.
pub fn command() -> Command {
    let app = Arg::new(APP).help("The application, MODULE:NAME; NAME is 'application' if left out.");
    let extra = Arg::new(EXTRA).num_args(0..).hide(true);
    let version = Arg::new("version")
        .short('v')
        .long("version")
        .action(ArgAction::Version)
        .help_heading(CONFIGURATION)
        .help("Print the version.");
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::Help)
        .help_heading(CONFIGURATION)
        .help("Print this.");
    Command::new("rgunicorn")
        .about("Serves a WSGI application over HTTP from several processes.")
        .override_usage("rgunicorn [OPTIONS] [APP]")
        .after_help(PRECEDENCE)
        .version("")
        .no_binary_name(true)
        .disable_version_flag(true)
        .disable_help_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .next_line_help(true)
        .max_term_width(80)
        .arg(app)
        .arg(extra)
        .args(OPTIONS.iter().filter(|opt| !opt.long.is_empty()).map(arg))
        .arg(help)
        .arg(version)
}

const PRECEDENCE: &str = "A value on the command line replaces one from GUNICORN_CMD_ARGS, that one \
     from the config file, that one from the environment.";

fn arg(opt: &'static Opt) -> Arg {
    let action = match opt.kind {
        Kind::Flag { .. } => ArgAction::SetTrue,
        kind if kind.repeats() => ArgAction::Append,
        _ => ArgAction::Set,
    };
    let arg = Arg::new(opt.name)
        .long(opt.long[0])
        .aliases(&opt.long[1..])
        .action(action)
        .help_heading(opt.section)
        .help(help(opt));
    let arg = match opt.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match opt.kind {
        Kind::Flag { .. } => arg,
        // `-w -1` must reach the sentence about the number, not be taken for a flag.
        kind => arg.value_name(kind.meta()).allow_negative_numbers(true),
    }
}

/// The help text, with what applies when the option is not given.
fn help(opt: &Opt) -> StyledStr {
    let mut notes = Vec::new();
    if !opt.default.is_empty() && !matches!(opt.kind, Kind::Flag { .. }) {
        notes.push(format!("[default: {}]", opt.default));
    }
    if let Some(env) = opt.env {
        notes.push(format!("[env: {}]", env.name));
    }
    match notes.is_empty() {
        true => StyledStr::from(opt.help),
        false => StyledStr::from(format!("{}\n{}", opt.help, notes.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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
    fn the_table_is_consistent() {
        let mut names = BTreeSet::new();
        let mut flags = BTreeSet::new();
        for opt in OPTIONS {
            assert!(names.insert(opt.name), "{} twice", opt.name);
            assert!(opt.long.iter().all(|flag| flags.insert(*flag)));
            assert!(opt.default_value().is_ok(), "default of {}", opt.name);
            assert!(!opt.section.is_empty() && opt.help.ends_with('.'));
        }
        command().debug_assert();
    }

    #[test]
    fn every_setting_of_gunicorn_is_known_once() {
        let ours = ["header_timeout", "body_timeout", "write_timeout"];
        let names: BTreeSet<_> = OPTIONS
            .iter()
            .map(|opt| opt.name)
            .filter(|name| !ours.contains(name))
            .chain(NOT_YET.iter().map(|(name, _)| *name))
            .collect();
        assert_eq!(names.len(), 120);
        assert_eq!(OPTIONS.len() - ours.len() + NOT_YET.len(), 120);
    }

    #[test]
    fn the_help_fits_a_terminal_and_is_grouped() {
        let help = command().render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 80));
        for opt in OPTIONS.iter().filter(|opt| !opt.long.is_empty()) {
            assert!(help.contains(&format!("\n{}:\n", opt.section)));
            assert!(help.contains(&opt.flag()));
        }
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
        assert!(OPTIONS.iter().filter(|opt| matches!(opt.kind, Kind::Hook)).all(|opt| opt.long.is_empty()));
    }

    #[test]
    fn worker_classes() {
        for class in ["sync", "gthread", "gunicorn.workers.gthread.ThreadWorker"] {
            assert!(read("worker_class", said(class)).is_ok());
        }
        assert_eq!(
            refused("worker_class", said("gevent")),
            "'gevent' is not available here, use gthread with --threads"
        );
        assert_eq!(
            refused("worker_class", said("uvicorn.workers.UvicornWorker")),
            "'uvicorn.workers.UvicornWorker' is not available here, only WSGI applications are \
             served"
        );
    }

    #[test]
    fn misspellings() {
        assert_eq!(closest_flag("wrokers"), Some("workers"));
        assert_eq!(closest_flag("keepalive"), Some("keep-alive"));
        assert_eq!(closest_flag("hepl"), None);
        assert_eq!(closest_name("worker"), Some("workers"));
        assert_eq!(closest_name("certfiel"), Some("certfile"));
        assert_eq!(closest_name("statsd_hots"), Some("statsd_host"));
        assert_eq!(closest_name("blog"), None);
        assert_eq!(closest_name("os"), None);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn prefixes_and_settings_of_gunicorn_only() {
        let flags = ["--workers", "--worker-class", "--worker-connections", "--worker-tmp-dir"];
        assert_eq!(flags_beginning("worker"), flags);
        assert!(not_yet("statsd_host") && not_yet("--statsd-host") && not_yet("-R"));
        assert!(!not_yet("") && !not_yet("workers"));
    }
}
