//! Owns: the errors that keep the server from starting: one sentence, and the exit code that goes with it.
//! Rule: the sentence fits a line and names the option to change; whoever prints it adds `rgunicorn: ` and nothing else.
//! Never: prints, exits, or says anything about a request.

use std::fmt;
use std::io;

/// Why the server does not start. The variants are gunicorn's exit codes, which supervisors act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The command line cannot be understood.
    Usage(String),
    /// A worker failed before it was ready for requests.
    Boot(String),
    /// The application was not found where the operator said.
    AppLoad(String),
    /// A configuration file, a listener, the pid file, …
    Other(String),
}

impl Error {
    /// A refusal by the kernel: what was tried, its reason, and the option that asked for it.
    /// `bind 0.0.0.0:80: Permission denied (--bind)`
    pub fn system(what: &str, error: &io::Error, option: &str) -> Error {
        Error::Other(format!("{what}: {} ({option})", reason(error)))
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Other(_) => 1,
            Error::Usage(_) => 2,
            Error::Boot(_) => 3,
            Error::AppLoad(_) => 4,
        }
    }

    fn sentence(&self) -> &str {
        match self {
            Error::Usage(text) | Error::Boot(text) | Error::AppLoad(text) | Error::Other(text) => text,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.sentence())
    }
}

impl std::error::Error for Error {}

/// The kernel's words without the number that the standard library appends: it tells an operator nothing.
fn reason(error: &io::Error) -> String {
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
        assert_eq!(Error::Boot(text()).exit_code(), 3);
        assert_eq!(Error::AppLoad(text()).exit_code(), 4);
    }

    #[test]
    fn a_system_error_names_object_reason_and_option() {
        let denied = io::Error::from_raw_os_error(13);
        let error = Error::system("bind 0.0.0.0:80", &denied, "--bind");
        assert_eq!(error.to_string(), "bind 0.0.0.0:80: Permission denied (--bind)");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_reason_of_our_own_is_kept_whole() {
        let error = Error::system("read x", &io::Error::other("too short"), "--pid");
        assert_eq!(error.to_string(), "read x: too short (--pid)");
    }
}
