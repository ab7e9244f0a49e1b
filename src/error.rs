//! Owns: the errors that keep the server from starting: one sentence, and the exit code that goes with it.
//! Rule: the sentence fits a line and names the option to change; whoever prints it adds `rgunicorn: ` and nothing else.
//! Never: prints, exits, or says anything about a request.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why the server does not start. The variants have gunicorn's exit codes, which supervisors act on; those of a worker that
/// could not boot are `worker::BOOT_FAILED` and `worker::APP_NOT_FOUND`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The command line cannot be understood.
    Usage(String),
    /// The value of a setting.
    Setting(Box<Wrong>),
    /// A configuration file, a listener, the pid file, …
    Other(String),
}

/// What is wrong with a setting, and where it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub setting: &'static str,
    /// As whoever set it would call it: a flag, a variable, a file.
    pub source: String,
    /// Where the source is a file, that file.
    pub file: Option<PathBuf>,
    /// In the file, from 1, once somebody has looked.
    pub line: Option<usize>,
    /// The predicate of the sentence.
    pub why: String,
}

/// `--workers: …`, `gunicorn.conf.py:12: workers: …`
impl fmt::Display for Wrong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.source)?;
        if let Some(line) = self.line {
            write!(out, ":{line}")?;
        }
        match self.file {
            Some(_) => write!(out, ": {}: {}", self.setting, self.why),
            None => write!(out, ": {}", self.why),
        }
    }
}

impl Error {
    /// A refusal by the kernel: what was tried, its reason, and the option that asked for it.
    /// `bind 0.0.0.0:80: Permission denied (--bind)`
    pub fn system(what: &str, error: &io::Error, option: &str) -> Error {
        Error::Other(format!("{what}: {} ({option})", reason(error)))
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Setting(_) | Error::Other(_) => 1,
            Error::Usage(_) => 2,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(text) | Error::Other(text) => out.write_str(text),
            Error::Setting(wrong) => wrong.fmt(out),
        }
    }
}

impl std::error::Error for Error {}

/// The kernel's words without the number that the standard library appends: it tells an operator nothing.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_that_supervisors_know() {
        let text = || "x".to_string();
        assert_eq!(Error::Other(text()).exit_code(), 1);
        assert_eq!(Error::Usage(text()).exit_code(), 2);
    }

    #[test]
    fn a_system_error_names_object_reason_and_option() {
        let denied = io::Error::from_raw_os_error(13);
        let error = Error::system("bind 0.0.0.0:80", &denied, "--bind");
        assert_eq!(error.to_string(), "bind 0.0.0.0:80: Permission denied (--bind)");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_wrong_setting_is_named_with_its_place() {
        let wrong = |file: Option<&str>, source: &str, line| {
            let (file, source, why) =
                (file.map(PathBuf::from), source.to_string(), "'x' is wrong".to_string());
            Error::Setting(Box::new(Wrong { setting: "workers", source, file, line, why })).to_string()
        };
        assert_eq!(wrong(None, "WEB_CONCURRENCY", None), "WEB_CONCURRENCY: 'x' is wrong");
        assert_eq!(wrong(Some("c.py"), "c.py", Some(12)), "c.py:12: workers: 'x' is wrong");
        assert_eq!(wrong(Some("c.py"), "c.py", None), "c.py: workers: 'x' is wrong");
    }

    #[test]
    fn a_reason_of_our_own_is_kept_whole() {
        let error = Error::system("read x", &io::Error::other("too short"), "--pid");
        assert_eq!(error.to_string(), "read x: too short (--pid)");
    }
}
