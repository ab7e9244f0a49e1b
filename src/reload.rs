//! Owns: the command `rgunicorn reload`: finds the server of a pid file, has it reload, and says how that ended.
//! Rule: the exit code is the answer. It hears only of a reload that began after it had asked, from the very process that
//! the pid file names; and it signals nobody but the server that certainly has that file.
//! Never: reloads; that is the arbiter's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{recv, send, MsgFlags};
use pyo3::prelude::*;

use crate::arbiter::asker::{beside, ANSWER, ASK, DONE};
use crate::daemon;
use crate::error::reason;
use crate::sys::clock::{monotonic, Nanos, SECOND};
use crate::sys::poll::{wait_one, Interest};
use crate::sys::{signal, socket};

/// How long an interrupt may go unnoticed that comes just before a wait, and so does not end it.
const LOOK: Nanos = SECOND / 5;

pub const DONE_CODE: i32 = 0;
pub const FAILED_CODE: i32 = 1;
pub const NO_SERVER_CODE: i32 = 3;
pub const TIMEOUT_CODE: i32 = 4;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub pidfile: PathBuf,
    /// For the end of the reload, so long at the most; None: not at all.
    pub wait: Option<Duration>,
}

/// Why there is no good end: the exit code, and a sentence for standard error.
type Trouble = (i32, String);

/// Runs the command; returns its exit code.
pub fn run(py: Python<'_>, order: &Order) -> i32 {
    match ordered(py, order) {
        Ok(text) => {
            println!("{text}");
            DONE_CODE
        }
        Err((code, sentence)) => {
            eprintln!("rgunicorn: {sentence}");
            code
        }
    }
}

fn ordered(py: Python<'_>, order: &Order) -> Result<String, Trouble> {
    let path = order.pidfile.as_path();
    let server = daemon::server_of(path).map_err(|why| (NO_SERVER_CODE, why))?;
    let pid = server.pid();
    let Some(patience) = order.wait else {
        let sent = server.signal(signal::SIGHUP);
        sent.map_err(|e| {
            (NO_SERVER_CODE, format!("cannot signal the server with pid {pid}: {}", reason(&e)))
        })?;
        return Ok(format!("Reload requested (pid: {pid})"));
    };
    let asker = ask(path, pid).map_err(|e| (NO_SERVER_CODE, e))?;
    answered(py, &asker, patience)
}

/// Asks that very process.
fn ask(path: &Path, pid: i32) -> Result<OwnedFd, String> {
    let channel = beside(path);
    let failed = |e: io::Error| {
        format!("cannot ask the server with pid {pid} at {}: {}", channel.display(), reason(&e))
    };
    let (asker, server) = socket::connect_for_messages(&channel).map_err(failed)?;
    if server != pid {
        return Err(format!("{} is that of process {server}, not of {pid}", channel.display()));
    }
    send(asker.as_raw_fd(), ASK, MsgFlags::MSG_NOSIGNAL).map_err(|e| failed(e.into()))?;
    Ok(asker)
}

fn answered(py: Python<'_>, asker: &OwnedFd, patience: Duration) -> Result<String, Trouble> {
    let until = monotonic().saturating_add(Nanos::try_from(patience.as_nanos()).unwrap_or(Nanos::MAX));
    let failed = |e: io::Error| (NO_SERVER_CODE, format!("no answer of the server: {}", reason(&e)));
    while let Some(left) = until.checked_sub(monotonic()).filter(|left| *left > 0) {
        let ready =
            py.detach(|| wait_one(asker.as_fd(), Interest::Read, Some(left.min(LOOK)))).map_err(failed)?;
        if py.check_signals().is_err() {
            return Err((128 + signal::SIGINT, "interrupted; the reload goes on".into()));
        }
        if ready {
            let mut bytes = vec![0; ANSWER];
            let length = recv(asker.as_raw_fd(), &mut bytes, MsgFlags::empty());
            let length = length.map_err(|e| failed(e.into()))?;
            return understood(&String::from_utf8_lossy(&bytes[..length]));
        }
    }
    let seconds = patience.as_secs_f64();
    Err((TIMEOUT_CODE, format!("the reload has not ended within {seconds} s (--timeout); it goes on")))
}

fn understood(answer: &str) -> Result<String, Trouble> {
    match answer.split_once(' ') {
        Some((DONE, text)) => Ok(text.to_string()),
        Some((_, why)) => Err((FAILED_CODE, why.to_string())),
        None => Err((NO_SERVER_CODE, "the server has ended before the reload had".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_its_exit_code() {
        assert_eq!(understood("done Reload complete"), Ok("Reload complete".into()));
        assert_eq!(understood("failed x y\nz"), Err((FAILED_CODE, "x y\nz".into())));
        assert_eq!(understood("").unwrap_err().0, NO_SERVER_CODE);
    }
}
