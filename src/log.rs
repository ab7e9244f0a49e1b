//! Owns: the error log: its file, its level, its one line format, who else gets its lines; which file a log is.
//! Rule: a line is one write(2) to a descriptor in append mode, so that processes may share a file; a log that cannot be
//! written costs the line, never the request. An outlet, where there is one, takes the lines instead of the file. The
//! process-wide logger is the crate's only mutable global.
//! Never: formats requests, knows Python.

use std::any::Any;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use chrono::Local;

use crate::config::values::LogTarget;
use crate::config::Config;
use crate::defect;
use crate::error::{reason, Error};
use crate::identity::{self, Identity};
use crate::statsd::Statsd;
use crate::sys::file;
use crate::sys::process;
use crate::syslog::Syslog;

pub use crate::log_file::{LogFile, Lost};
pub use crate::log_text::{unforgeable, Column};
pub use crate::syslog::Severity;

/// Which standard stream `-` means.
#[derive(Clone, Copy)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            Stream::Stdout => file::stdout(),
            Stream::Stderr => file::stderr(),
        }
    }
}

/// As whom workers run, who write to the logs and own them; nobody else in particular unless `belong_to` says so.
static OWNER: OnceLock<Identity> = OnceLock::new();

/// From now on files are opened with their rights, as far as they have any. To be said once, before the first is opened.
pub fn belong_to(identity: Option<Identity>) {
    if let Some(identity) = identity {
        // A reload finds the one that the server was started with.
        let _ = OWNER.set(identity);
    }
}

fn open(target: &LogTarget, dash: Stream) -> io::Result<OwnedFd> {
    match target {
        LogTarget::Dash => file::duplicate(dash.fd()),
        LogTarget::File(path) => identity::open_for(OWNER.get(), path, || file::open_append(path)),
    }
}

impl LogFile {
    pub fn open(target: &LogTarget, dash: Stream) -> io::Result<LogFile> {
        Ok(LogFile::new(open(target, dash)?))
    }

    /// Moves the log to `target`, or to the file that now bears its name.
    pub fn reopen(&self, target: &LogTarget, dash: Stream) -> io::Result<()> {
        self.move_to(open(target, dash)?)
    }
}

/// Makes a log's file the property of those who will reopen it. In a folder of theirs they have made it themselves.
pub fn hand_over(target: &LogTarget, identity: &Identity) {
    if let LogTarget::File(path) = target {
        let given = identity.controls(path).and_then(|theirs| match theirs {
            true => Ok(()),
            false => file::give(path, identity.owner()),
        });
        if let Err(e) = given {
            log::warn!("Cannot change the owner of {}: {e} (--user)", path.display());
        }
    }
}

static ERROR_LOG: OnceLock<LogFile> = OnceLock::new();

struct ErrorLog;

impl Write for ErrorLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match ERROR_LOG.get() {
            Some(log) => {
                defect::planted("log");
                log.write(bytes)?;
                own_up(log);
            }
            None => file::write_all(file::stderr(), bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The error log says what it has lost.
fn own_up(log: &LogFile) {
    if let Some(Lost { lines, why }) = log.take_lost() {
        to_file(Severity::Warning, &format!("{lines} line(s) of this log were lost, as {why}"));
    }
}

/// Writes what the reader of the error log had no room for; whether there is more.
pub fn retry() -> bool {
    let Some(log) = ERROR_LOG.get().filter(|log| log.is_waiting()) else {
        return false;
    };
    // Nobody is left to be told.
    let _ = log.retry();
    own_up(log);
    log.is_waiting()
}

/// What the standard streams were before the log was put in their place.
static STREAMS: OnceLock<[OwnedFd; 2]> = OnceLock::new();

/// Sends every record of this process and its children to the file of `config`. Called again, it moves the log.
///
/// Errors: the file cannot be opened; then the log stays where it was.
pub fn init(config: &Config) -> io::Result<()> {
    let captures = config.logging.capture_output && config.errorlog != LogTarget::Dash;
    if !captures {
        give_streams_back()?;
    }
    match ERROR_LOG.get() {
        Some(log) => log.reopen(&config.errorlog, Stream::Stderr)?,
        None => {
            let log = LogFile::open(&config.errorlog, Stream::Stderr)?;
            if ERROR_LOG.set(log).is_ok() {
                install();
            }
        }
    }
    // An outlet has a level of its own.
    if routes().outlet.is_none() {
        log::set_max_level(config.loglevel);
    }
    match ERROR_LOG.get().filter(|_| captures) {
        Some(log) => take_streams(log),
        None => Ok(()),
    }
}

/// `init` for a server that runs: a log that cannot be opened is reported, in the one there is.
pub fn take_up(config: &Config) {
    if let Err(e) = init(config) {
        log::error!("Cannot reopen the error log: {e} (--error-logfile)");
    }
}

fn take_streams(log: &LogFile) -> io::Result<()> {
    if STREAMS.get().is_none() {
        let before = [file::duplicate(file::stdout())?, file::duplicate(file::stderr())?];
        // This thread is the only one.
        let _ = STREAMS.set(before);
    }
    file::become_stdout(log.as_fd())?;
    file::become_stderr(log.as_fd())
}

fn give_streams_back() -> io::Result<()> {
    match STREAMS.get() {
        Some([out, err]) => {
            file::become_stdout(out.as_fd())?;
            file::become_stderr(err.as_fd())
        }
        None => Ok(()),
    }
}

// ---- who gets the lines

/// Takes lines in place of the file.
pub trait Outlet: Send + Sync {
    /// Never waits for anything but the interpreter, and for that only in a process that has a single thread.
    fn take(&self, severity: Severity, text: String);

    /// The process ends without the interpreter: what waits for it goes to the file.
    fn give_up(&self);

    /// For whoever has made it.
    fn as_any(&self) -> &dyn Any;
}

/// Where the lines go.
#[derive(Clone, Default)]
pub struct Routes {
    pub outlet: Option<Arc<dyn Outlet>>,
    /// Beside the file.
    pub syslog: Option<Arc<Syslog>>,
    pub statsd: Option<Arc<Statsd>>,
}

static ROUTES: RwLock<Routes> = RwLock::new(Routes { outlet: None, syslog: None, statsd: None });

/// Those of now.
pub fn routes() -> Routes {
    ROUTES.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// From now on lines go there, from this level on.
pub fn route(routes: Routes, level: log::LevelFilter) {
    *ROUTES.write().unwrap_or_else(PoisonError::into_inner) = routes;
    log::set_max_level(level);
}

impl Routes {
    /// Where the lines go that Rust writes.
    ///
    /// Errors: the host of syslog is not known.
    pub fn native(config: &Config) -> Result<Routes, Error> {
        let syslog = config.logging.syslog.as_ref().map(Syslog::new).transpose();
        let syslog =
            syslog.map_err(|e| config.wrong("syslog_addr", format!("no such host: {}", reason(&e))))?;
        if let Some(syslog) = &syslog {
            syslog.meet(crate::sys::clock::SECOND);
        }
        let statsd = config.logging.statsd.as_ref().map(Statsd::new).transpose().unwrap_or_else(|e| {
            // As in gunicorn: nobody has to be there.
            log::warn!("No metrics are sent, there is no such host: {} (--statsd-host)", reason(&e));
            None
        });
        Ok(Routes { outlet: None, syslog: syslog.map(Arc::new), statsd: statsd.map(Arc::new) })
    }
}

/// The target of records that carry a traceback.
const EXCEPTION: &str = "exception";

struct Router {
    file: env_logger::Logger,
}

impl log::Log for Router {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let severity = match record.level() {
            log::Level::Error => Severity::Error,
            log::Level::Warn => Severity::Warning,
            log::Level::Info => Severity::Info,
            log::Level::Debug | log::Level::Trace => Severity::Debug,
        };
        let counted = if record.target() == EXCEPTION { Some(EXCEPTION) } else { counted(severity) };
        deliver(severity, counted, record.args(), || self.file.log(record));
    }

    fn flush(&self) {}
}

fn install() {
    let mut builder = env_logger::Builder::new();
    builder.target(env_logger::Target::Pipe(Box::new(ErrorLog)));
    builder.filter_level(log::LevelFilter::Trace);
    builder.format(|line, record| {
        let time = Local::now().format("%Y-%m-%d %H:%M:%S %z");
        let text = record.args().to_string();
        let level = level_name(record.level());
        writeln!(line, "[{time}] [{}] [{level}] {}", process::id(), unforgeable(&text, Column::Inside))
    });
    // A logger set by somebody else in the process (an embedding test) stays.
    let _ = log::set_boxed_logger(Box::new(Router { file: builder.build() }));
}

fn deliver(
    severity: Severity,
    counted: Option<&str>,
    text: &std::fmt::Arguments<'_>,
    to_file: impl FnOnce(),
) {
    let Routes { outlet, syslog, statsd } = routes();
    if let Some(outlet) = outlet {
        return outlet.take(severity, unforgeable(&text.to_string(), Column::Inside).into_owned());
    }
    to_file();
    if let Some(syslog) = syslog {
        syslog.report(severity, &unforgeable(&text.to_string(), Column::Inside));
    }
    if let (Some(statsd), Some(level)) = (statsd, counted) {
        statsd.line(level);
    }
}

/// gunicorn's metric counts these.
fn counted(severity: Severity) -> Option<&'static str> {
    match severity {
        Severity::Critical => Some("critical"),
        Severity::Error => Some("error"),
        Severity::Warning => Some("warning"),
        Severity::Info | Severity::Debug => None,
    }
}

/// The names that gunicorn, after Python, gives its levels.
fn level_name(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "ERROR",
        log::Level::Warn => "WARNING",
        log::Level::Info => "INFO",
        log::Level::Debug | log::Level::Trace => "DEBUG",
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "CRITICAL",
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
        Severity::Debug => "DEBUG",
    }
}

/// One line at the level that `log` does not have: something killed on purpose, a server that gives up.
pub fn critical(message: std::fmt::Arguments<'_>) {
    let file = || to_file(Severity::Critical, &message.to_string());
    deliver(Severity::Critical, counted(Severity::Critical), &message, file);
}

/// A line of the application's, which is in no metric of the server's.
pub fn of_application(severity: Severity, message: &str) {
    let level = match severity {
        Severity::Critical | Severity::Error => log::Level::Error,
        Severity::Warning => log::Level::Warn,
        Severity::Info => log::Level::Info,
        Severity::Debug => log::Level::Debug,
    };
    if severity == Severity::Critical || level <= log::max_level() {
        deliver(severity, None, &format_args!("{message}"), || to_file(severity, message));
    }
}

/// An error with its traceback.
pub fn exception(message: std::fmt::Arguments<'_>) {
    log::error!(target: EXCEPTION, "{message}");
}

/// Before the process ends in a thread that cannot have the interpreter.
pub fn give_up() {
    if let Some(outlet) = routes().outlet {
        outlet.give_up();
    }
}

/// A line for the file, whoever else would take it.
pub fn to_file(severity: Severity, text: &str) {
    let time = Local::now().format("%Y-%m-%d %H:%M:%S %z");
    let text = unforgeable(text, Column::Inside);
    let line = format!("[{time}] [{}] [{}] {text}\n", process::id(), severity_name(severity));
    // Nobody is left to be told that the error log cannot be written.
    let _ = ErrorLog.write(line.as_bytes());
}

/// Text of the application's, for `wsgi.errors`.
pub fn raw(text: &str) {
    // Nobody is left to be told that the error log cannot be written.
    let _ = ErrorLog.write(unforgeable(text, Column::Start).as_bytes());
}

/// The descriptor of the error log, for what writes to it below this program (faulthandler).
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    ERROR_LOG.get().map(|log| log.as_fd())
}
