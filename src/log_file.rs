//! Owns: writing to a log: to a file at once; to a pipe, a terminal or a socket only what its reader has room for, with a
//! bounded queue for the rest.
//! Rule: nobody waits for the reader of a log. Lines that do not fit the queue are lost and counted; a line goes out whole,
//! so that processes may share a log.
//! Never: decides what a line looks like, opens a file by name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sys::file::{self, Kind};
use crate::sys::process;

/// What is kept for a reader that has no room.
const MOST: usize = 256 * 1024;
/// So much goes into a pipe whole or not at all, pipe(7).
const WHOLE: usize = 4096;

/// A log that keeps its descriptor's number when it is moved to another file, so that whoever inherited it follows.
pub struct LogFile {
    fd: OwnedFd,
    queue: Mutex<Queue>,
    /// Whether anything is in the queue.
    waiting: AtomicBool,
}

/// What a log has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub lines: u64,
    pub why: &'static str,
}

struct Queue {
    kind: Kind,
    /// Whose it is: a fork copies what its parent will write.
    pid: i32,
    bytes: Vec<u8>,
    lost: u64,
}

impl LogFile {
    pub fn new(fd: OwnedFd) -> LogFile {
        let (fd, kind) = unhurried(fd);
        let queue = Queue { kind, pid: process::id(), bytes: Vec::new(), lost: 0 };
        LogFile { fd, queue: Mutex::new(queue), waiting: AtomicBool::new(false) }
    }

    /// Goes on in another file. Where it is the same pipe as before, nothing changes: who may write to it need not be
    /// allowed to open it.
    pub fn move_to(&self, fd: OwnedFd) -> io::Result<()> {
        let mut queue = self.queue();
        // What its reader has not taken by now is not for the next one.
        let _ = self.send(&mut queue);
        if queue.kind != Kind::File && file::inode(fd.as_fd())? == file::inode(self.fd.as_fd())? {
            return Ok(());
        }
        let (fd, kind) = unhurried(fd);
        file::replace(self.fd.as_fd(), fd.as_fd())?;
        queue.kind = kind;
        queue.lost += lines(&queue.bytes);
        queue.bytes.clear();
        self.waiting.store(false, Relaxed);
        Ok(())
    }

    /// Errors: the kernel's; the lines are lost.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut queue = self.queue();
        if queue.kind == Kind::File {
            drop(queue);
            let written = file::write_all(self.fd.as_fd(), bytes);
            if written.is_err() {
                self.queue().lost += lines(bytes);
            }
            return written;
        }
        queue.push(bytes);
        self.send(&mut queue)
    }

    /// Whether lines wait for the reader: `retry` should be called again.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Relaxed)
    }

    /// Writes what waits, as far as there is room by now.
    pub fn retry(&self) -> io::Result<()> {
        match self.is_waiting() {
            true => self.send(&mut self.queue()),
            false => Ok(()),
        }
    }

    /// How many lines were lost since the last time, once there is room for saying so.
    pub fn take_lost(&self) -> Option<Lost> {
        let mut queue = self.queue();
        let why = match queue.kind {
            Kind::File => "it could not be written",
            Kind::Pipe | Kind::Socket => "nobody read it",
        };
        match queue.bytes.is_empty() {
            true => Some(std::mem::take(&mut queue.lost))
                .filter(|lines| *lines > 0)
                .map(|lines| Lost { lines, why }),
            false => None,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.pid != process::id() {
            queue.pid = process::id();
            queue.bytes.clear();
            queue.lost = 0;
            self.waiting.store(false, Relaxed);
        }
        queue
    }

    fn send(&self, queue: &mut Queue) -> io::Result<()> {
        let mut sent = 0;
        let mut result = Ok(());
        while sent < queue.bytes.len() {
            match file::write_now(self.fd.as_fd(), queue.kind, portion(&queue.bytes[sent..])) {
                Ok(length) => sent += length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => {
                    queue.lost += lines(&queue.bytes[sent..]);
                    sent = queue.bytes.len();
                    result = Err(e);
                }
            }
        }
        queue.bytes.drain(..sent);
        self.waiting.store(!queue.bytes.is_empty(), Relaxed);
        result
    }
}

impl AsFd for LogFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Queue {
    fn push(&mut self, bytes: &[u8]) {
        match self.bytes.len() + bytes.len() <= MOST {
            true => self.bytes.extend_from_slice(bytes),
            false => self.lost += lines(bytes),
        }
    }
}

/// The descriptor in a form in which a write does not wait for the reader, where there is one: others have the same open
/// file, and would be surprised by a flag.
fn unhurried(fd: OwnedFd) -> (OwnedFd, Kind) {
    match file::kind(fd.as_fd()) {
        Kind::Pipe => match file::reopen_without_waiting(fd.as_fd()) {
            Ok(own) => (own, Kind::Pipe),
            // Not ours to open, or nobody reads it: then a write says so.
            Err(_) => (fd, Kind::File),
        },
        kind => (fd, kind),
    }
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|octet| **octet == b'\n').count() as u64
}

/// As many whole lines as go into a pipe at once; a longer one alone.
fn portion(bytes: &[u8]) -> &[u8] {
    if bytes.len() <= WHOLE {
        return bytes;
    }
    let end = memchr::memrchr(b'\n', &bytes[..WHOLE]).or_else(|| memchr::memchr(b'\n', bytes));
    &bytes[..end.map_or(bytes.len(), |at| at + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn portions_end_with_a_line_and_fit_a_pipe() {
        assert_eq!(portion(b"a\nb\n"), b"a\nb\n");
        let many = b"0123456789\n".repeat(1000);
        assert_eq!(portion(&many).len(), WHOLE / 11 * 11);
        let long = [b"x".repeat(5000), b"\ny\n".to_vec()].concat();
        assert_eq!(portion(&long).len(), 5001);
        assert_eq!(portion(&b"x".repeat(5000)).len(), 5000);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_gets_the_others_whole() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let log = LogFile::new(writer.into());
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        for _ in 0..1000 {
            log.write(&line).unwrap();
        }
        assert!(log.is_waiting());
        assert_eq!(log.take_lost(), None, "there is no room for it yet");
        let mut got = vec![0; 400_000];
        let mut length = 0;
        while log.is_waiting() {
            length += reader.read(&mut got[length..]).unwrap();
            log.retry().unwrap();
        }
        let Lost { lines: lost, .. } = log.take_lost().unwrap();
        drop(log);
        length += reader.read_to_end(&mut got.split_off(length)).unwrap();
        assert_eq!(length as u64, (1000 - lost) * 1000);
        assert!(lost > 500);
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error_and_no_wait() {
        let (reader, writer) = std::io::pipe().unwrap();
        let log = LogFile::new(writer.into());
        drop(reader);
        assert_eq!(log.write(b"x\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!log.is_waiting());
        assert_eq!(log.take_lost().map(|lost| lost.lines), Some(1));
    }

    #[test]
    fn a_full_disk_costs_lines_that_are_counted() {
        let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
        let log = LogFile::new(full.into());
        assert_eq!(log.write(b"x\ny\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(!log.is_waiting());
        assert_eq!(log.take_lost(), Some(Lost { lines: 2, why: "it could not be written" }));
        assert_eq!(log.take_lost(), None);
    }
}
