//! Owns: the access log of a worker: lines collected in memory and written once a turn of the loop.
//! Rule: a line costs a request no system call; what is collected is written before the worker waits, or at a size.
//! Syslog takes a datagram a line, statsd one a metric; where neither is set, nothing is asked of them.
//! Never: decides what a line looks like; that is `access_log::Format`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::access_log::{Entry, Format, LocalTime};
use crate::config::values::LogTarget;
use crate::http::{rules, Fields, Head, Reject};
use crate::log::{LogFile, Lost, Stream};
use crate::statsd::Statsd;
use crate::sys::clock::{unix_seconds, Nanos};
use crate::sys::process;
use crate::syslog::Syslog;
use crate::transport::Peer;

/// So many octets are written without waiting for the end of the turn.
const ENOUGH: usize = 64 * 1024;
/// A line of the usual format fits.
const TYPICAL: usize = 256;

pub struct AccessLog {
    format: Format,
    to: Recipients,
    pid: u32,
    lines: Mutex<Lines>,
    /// It could not be written the last time.
    is_losing: AtomicBool,
}

/// Who hears of the requests.
#[derive(Default)]
pub struct Recipients {
    /// With the name that it bears.
    pub file: Option<(Arc<LogFile>, LogTarget)>,
    pub syslog: Option<Arc<Syslog>>,
    pub statsd: Option<Arc<Statsd>>,
    /// Hears of what the application's side has not been asked about, in place of all others.
    pub witness: Option<Arc<dyn Witness>>,
}

/// Where the application's side tells of requests itself, this is told of the others.
pub trait Witness: Send + Sync {
    fn answered(&self, request: Answered);
}

/// A request that the server has answered itself.
#[derive(Clone, Debug)]
pub struct Answered {
    pub peer: Peer,
    pub method: Vec<u8>,
    pub target: Vec<u8>,
    pub status: u16,
    pub sent: u64,
    pub elapsed: Duration,
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    time: LocalTime,
}

/// What the log can say about one exchange.
pub struct Line<'a> {
    pub peer: Peer,
    pub head: &'a Head,
    pub octets: &'a [u8],
    pub status: u16,
    pub sent: u64,
    pub elapsed: Nanos,
    pub response_fields: &'a [u8],
    pub environ: &'a dyn Fn(&str) -> Option<String>,
}

/// What is known of a request from outside the thread that runs it.
pub struct Known<'a> {
    pub method: &'a [u8],
    pub target: &'a [u8],
    pub elapsed: Nanos,
}

impl AccessLog {
    /// None where nobody wants to hear.
    pub fn new(to: Recipients, format: &str) -> Option<AccessLog> {
        let Recipients { file, syslog, statsd, witness } = &to;
        if file.is_none() && syslog.is_none() && statsd.is_none() && witness.is_none() {
            return None;
        }
        Some(AccessLog {
            format: Format::new(format),
            to,
            pid: process::id() as u32,
            lines: Mutex::default(),
            is_losing: AtomicBool::default(),
        })
    }

    pub fn wants_response_fields(&self) -> bool {
        self.wants_lines() && self.format.wants_response_fields()
    }

    fn wants_lines(&self) -> bool {
        self.to.file.is_some() || self.to.syslog.is_some()
    }

    pub fn record(&self, line: &Line<'_>) {
        let start = &line.head.start;
        let path = if self.format.wants_path() { path_info(line) } else { Vec::new() };
        self.write(&Entry {
            remote_addr: line.peer.to_string().as_bytes(),
            method: start.method.of(line.octets),
            target: start.target.of(line.octets),
            path: &path,
            query: start.query.of(line.octets),
            protocol: start.version.as_str().as_bytes(),
            status: line.status,
            sent: line.sent,
            elapsed: Duration::from_nanos(line.elapsed),
            pid: self.pid,
            fields: &line.head.fields,
            block: &line.octets[line.head.fields_at..],
            response_fields: line.response_fields,
            environ: line.environ,
            time: "",
        });
    }

    /// A request that was refused before it was understood has no parts to show.
    pub fn refused(&self, reject: Reject, peer: Peer, sent: usize) {
        self.answered(reject, peer, sent, &Known { method: b"-", target: b"-", elapsed: 0 });
    }

    /// A request that was answered by the server itself; of its parts only those in `known` are at hand.
    pub fn answered(&self, reject: Reject, peer: Peer, sent: usize, known: &Known<'_>) {
        if let Some(witness) = &self.to.witness {
            return witness.answered(Answered {
                peer,
                method: known.method.to_vec(),
                target: known.target.to_vec(),
                status: reject.status(),
                sent: sent as u64,
                elapsed: Duration::from_nanos(known.elapsed),
            });
        }
        self.write(&Entry {
            remote_addr: peer.to_string().as_bytes(),
            method: known.method,
            target: known.target,
            path: known.target.split(|octet| *octet == b'?').next().unwrap_or_default(),
            query: b"",
            protocol: b"-",
            status: reject.status(),
            sent: sent as u64,
            elapsed: Duration::from_nanos(known.elapsed),
            pid: self.pid,
            fields: &Fields::default(),
            block: b"",
            response_fields: b"",
            environ: &|_| None,
            time: "",
        });
    }

    fn write(&self, entry: &Entry<'_>) {
        if let Some(statsd) = &self.to.statsd {
            statsd.request(entry.status, entry.elapsed);
        }
        if !self.wants_lines() {
            return;
        }
        // What the format asks of the environ may run Python code, and so wait for another thread: never under the lock.
        let time = self.lines().time.at(unix_seconds() as i64).to_owned();
        let mut line = Vec::with_capacity(TYPICAL);
        self.format.write(&Entry { time: &time, ..*entry }, &mut line);
        if let Some(syslog) = &self.to.syslog {
            syslog.access(&line[..line.len() - 1]);
        }
        if self.to.file.is_none() {
            return;
        }
        let mut lines = self.lines();
        lines.bytes.extend_from_slice(&line);
        if lines.bytes.len() >= ENOUGH {
            self.empty(&mut lines.bytes);
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Writes what has been collected.
    pub fn flush(&self) {
        let mut lines = self.lines();
        if !lines.bytes.is_empty() {
            self.empty(&mut lines.bytes);
        } else if self.is_waiting() {
            self.note(|file| file.retry());
        }
        if let Some(syslog) = &self.to.syslog {
            syslog.flush();
        }
    }

    fn empty(&self, bytes: &mut Vec<u8>) {
        self.note(|file| file.write(bytes));
        bytes.clear();
    }

    fn note(&self, write: impl FnOnce(&LogFile) -> io::Result<()>) {
        let Some((file, _)) = &self.to.file else {
            return;
        };
        if let Err(e) = write(file) {
            // Once, until it can be written again.
            if !self.is_losing.swap(true, Relaxed) {
                log::warn!("Lines of the access log are lost: {e} (--access-logfile)");
            }
            return;
        }
        self.is_losing.store(false, Relaxed);
        if let Some(Lost { lines, why }) = file.take_lost() {
            log::warn!("{lines} line(s) of the access log were lost, as {why} (--access-logfile)");
        }
    }

    /// Whether lines wait for the reader of the file, so that it should be flushed again.
    pub fn is_waiting(&self) -> bool {
        self.to.file.as_ref().is_some_and(|(file, _)| file.is_waiting())
    }

    /// Goes on in the file that now bears the name.
    pub fn reopen(&self) -> io::Result<()> {
        self.flush();
        match &self.to.file {
            Some((file, target)) => file.reopen(target, Stream::Stdout),
            None => Ok(()),
        }
    }
}

/// The octets of PATH_INFO: decoded, without what SCRIPT_NAME takes of it.
fn path_info(line: &Line<'_>) -> Vec<u8> {
    let path = line.head.start.path.of(line.octets);
    let script_name = (line.environ)("SCRIPT_NAME").unwrap_or_default();
    let mut decoded = Vec::new();
    rules::decode_path(rules::path_below(path, script_name.as_bytes()), &mut decoded);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn lines_are_written_before_they_are_many() {
        let null = File::options().write(true).open("/dev/null").unwrap();
        let file = Some((Arc::new(LogFile::new(null.into())), LogTarget::Dash));
        let log = AccessLog::new(Recipients { file, ..Recipients::default() }, "%(U)s").unwrap();
        let target = [b'x'; 1000];
        let mut most = 0;
        for _ in 0..1000 {
            let known = Known { method: b"GET", target: &target, elapsed: 0 };
            log.answered(Reject::Overloaded, Peer::Unix, 0, &known);
            most = most.max(log.lines().bytes.len());
        }
        assert!(most < ENOUGH && most > ENOUGH / 2, "{most}");
    }
}
