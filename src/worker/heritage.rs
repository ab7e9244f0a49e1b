//! Owns: what a worker or a mold inherits from the arbiter, and what it does with that before it loads anything.
//! Rule: what takes the arbiter's rights is done first, in the first process after it; then they are given up for good.
//! Never: loads the application, serves.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use super::BOOT_FAILED;
use crate::config::Config;
use crate::handoff::Mailbox;
use crate::hooks::{Hooks, Server};
use crate::identity::Identity;
use crate::launch::Launch;
use crate::listener::Listener;
use crate::log::{LogFile, Stream};
use crate::python::Interrupts;
use crate::scoreboard::Notice;
use crate::sys::poll::Waker;
use crate::tls::Context;
use crate::watch::journal::Journal;

/// The other end of it is held by the arbiter alone: when it reads as ended, the arbiter is gone.
pub type Lifeline = OwnedFd;

/// What every process of a generation inherits from the arbiter.
#[derive(Clone)]
pub struct Heritage {
    pub generation: u64,
    pub config: Arc<Config>,
    pub tls: Option<Context>,
    pub listeners: Vec<Arc<Listener>>,
    pub mailbox: Arc<Mailbox>,
    pub notice: Arc<Notice>,
    pub lifeline: Arc<Lifeline>,
    pub arbiter: Arc<Waker>,
    pub interrupts: Interrupts,
    pub launch: Arc<Launch>,
    pub hooks: Arc<Hooks>,
    pub server: Arc<Server>,
    /// Where it says why it could not load the application.
    pub report: Arc<OwnedFd>,
    /// As whom to run, until that has been done.
    pub identity: Option<Identity>,
    /// The access log, once it has been opened.
    pub access: Option<Arc<LogFile>>,
    /// With `reload`: where to note what is imported.
    pub imports: Option<Arc<Journal>>,
}

/// Why the application could not be loaded; it has been logged.
pub struct Failure {
    pub code: i32,
    /// Empty where the process was told to stop.
    pub sentence: String,
}

impl Heritage {
    /// Whether the arbiter still decides if this generation takes over.
    pub fn is_on_trial(&self) -> bool {
        self.notice.proving() == self.generation
    }

    /// Reports to the arbiter; returns the exit code.
    pub fn failed(&self, failure: &Failure) -> i32 {
        use nix::sys::socket::{send, MsgFlags};
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if !failure.sentence.is_empty() {
            // The arbiter knows the exit code all the same.
            let _ = send(self.report.as_raw_fd(), failure.sentence.as_bytes(), flags);
        }
        failure.code
    }

    /// Does what takes the arbiter's rights, then gives them up. Once, in the first process after the arbiter.
    ///
    /// Errors: the exit code; the process must not load the application.
    pub fn settle(&mut self) -> Result<(), i32> {
        let native = self.config.logging.python.is_none();
        if let (Some(target), None) = (self.config.accesslog.as_ref().filter(|_| native), &self.access) {
            let opened = LogFile::open(target, Stream::Stdout);
            self.access = Some(Arc::new(
                opened.map_err(|e| refused("Cannot open the access log", &e, "--access-logfile"))?,
            ));
        }
        let Some(identity) = self.identity.take() else {
            return Ok(());
        };
        let what = format!("Cannot run as {identity}");
        identity.assume().map_err(|e| refused(&what, &e, "--user"))
    }
}

fn refused(what: &str, e: &std::io::Error, option: &str) -> i32 {
    log::error!("{what}: {e} ({option})");
    BOOT_FAILED
}
