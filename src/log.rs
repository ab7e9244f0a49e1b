//! Owns: the error log: its file, its level, its one line format; and the kind of log file that can be reopened.
//! Rule: a line is one write(2) to a descriptor in append mode, so that processes may share a file; a log that cannot be
//! written costs the line, never the request. The process-wide logger is the crate's only mutable global.
//! Never: formats requests.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use chrono::Local;

use crate::config::values::LogTarget;
use crate::sys::file::{self, Owner};
use crate::sys::process;

/// A log that keeps its descriptor's number when it is reopened or moved, so that whoever inherited it follows.
pub struct LogFile {
    fd: OwnedFd,
}

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

fn open(target: &LogTarget, dash: Stream) -> io::Result<OwnedFd> {
    match target {
        LogTarget::Dash => file::duplicate(dash.fd()),
        LogTarget::File(path) => file::open_append(path),
    }
}

impl LogFile {
    pub fn open(target: &LogTarget, dash: Stream) -> io::Result<LogFile> {
        Ok(LogFile { fd: open(target, dash)? })
    }

    /// Moves the log to `target`, or to the file that now bears its name.
    pub fn reopen(&self, target: &LogTarget, dash: Stream) -> io::Result<()> {
        file::replace(self.fd.as_fd(), open(target, dash)?.as_fd())
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        file::write_all(self.fd.as_fd(), bytes)
    }
}

impl AsFd for LogFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a log's file the property of those who will reopen it.
pub fn hand_over(target: &LogTarget, owner: Owner) {
    if let LogTarget::File(path) = target {
        if let Err(e) = file::give(path, owner) {
            log::warn!("Cannot change the owner of {}: {e} (--user)", path.display());
        }
    }
}

static ERROR_LOG: OnceLock<LogFile> = OnceLock::new();

struct ErrorLog;

impl Write for ErrorLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match ERROR_LOG.get() {
            Some(log) => log.write(bytes)?,
            None => file::write_all(file::stderr(), bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends every record of this process and its children to `target`. Called again, it moves the log and sets the level.
///
/// Errors: the file cannot be opened; then the log stays where it was.
pub fn init(target: &LogTarget, level: log::LevelFilter) -> io::Result<()> {
    match ERROR_LOG.get() {
        Some(log) => log.reopen(target, Stream::Stderr)?,
        None => {
            let log = LogFile::open(target, Stream::Stderr)?;
            if ERROR_LOG.set(log).is_ok() {
                install();
            }
        }
    }
    log::set_max_level(level);
    Ok(())
}

/// `init` for a server that runs: a log that cannot be opened is reported, in the one there is.
pub fn take_up(target: &LogTarget, level: log::LevelFilter) {
    if let Err(e) = init(target, level) {
        log::error!("Cannot reopen the error log: {e} (--error-logfile)");
    }
}

fn install() {
    let mut builder = env_logger::Builder::new();
    builder.target(env_logger::Target::Pipe(Box::new(ErrorLog)));
    builder.filter_level(log::LevelFilter::Trace);
    builder.format(|line, record| {
        let time = Local::now().format("%Y-%m-%d %H:%M:%S %z");
        writeln!(line, "[{time}] [{}] [{}] {}", process::id(), level_name(record.level()), record.args())
    });
    // A logger set by somebody else in the process (an embedding test) stays.
    let _ = builder.try_init();
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

/// One line at the level that `log` does not have: something killed on purpose, a server that gives up.
pub fn critical(message: std::fmt::Arguments<'_>) {
    let time = Local::now().format("%Y-%m-%d %H:%M:%S %z");
    let line = format!("[{time}] [{}] [CRITICAL] {message}\n", process::id());
    // Nobody is left to be told that the error log cannot be written.
    let _ = ErrorLog.write(line.as_bytes());
}

/// Octets as they are, for `wsgi.errors`.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    ErrorLog.write(bytes).map(|_| ())
}

/// The descriptor of the error log, for what writes to it below this program (faulthandler).
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    ERROR_LOG.get().map(|log| log.as_fd())
}
