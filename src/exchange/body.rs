//! Owns: the request body as the application reads it: decoded, waited for, at a pace, with its 100 (Continue).
//! Rule: bytes come from what was kept before the call, then from the scratch, then from the socket behind the head;
//! whatever goes wrong is kept as the body's fault and never looks like its end.
//! Never: keeps bytes of its own.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use super::{Exchange, Release};
use crate::body_buffer::BodyBuffer;
use crate::config::Buffering;
use crate::conn::is_transient;
use crate::http::body::Decoder;
use crate::http::response::CONTINUE;
use crate::http::{Framing, Reject};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::{wait_one, Interest};
use crate::timers::Pace;

/// Why the rest of a request body cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    Invalid(Reject),
    /// The client closed or reset the connection inside the body.
    Incomplete,
    TimedOut,
    /// The file that it was kept in cannot be read.
    Unreadable,
    /// The thread is wanted for something else, such as a signal.
    Interrupted,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyFault::Invalid(reject) => reject.text(),
            BodyFault::Incomplete => "client left inside the request body",
            BodyFault::TimedOut => "client sent the request body too slowly (--body-timeout)",
            BodyFault::Unreadable => "the file of the request body cannot be read",
            BodyFault::Interrupted => "interrupted while reading the request body",
        })
    }
}

pub(super) struct Body {
    pub(super) decoder: Decoder,
    /// Every byte of it is in the scratch, or was kept.
    pub(super) whole: bool,
    /// Its length, where that is known, and how much of it has not been consumed.
    pub(super) length: Option<u64>,
    pub(super) left: Option<u64>,
    /// Bytes decoded so far.
    pub(super) decoded: u64,
    /// The first bytes, where they had to wait for others.
    pub(super) stored: Option<Box<BodyBuffer>>,
    /// Decoded bytes not consumed yet, in the scratch; they follow the stored ones.
    pub(super) run: Range<usize>,
    /// Where the undecoded bytes begin, and where reads that need room put theirs.
    pub(super) raw: usize,
    pub(super) floor: usize,
    pub(super) continue_due: bool,
    pub(super) fault: Option<BodyFault>,
    pub(super) pace: Option<Pace>,
}

impl Body {
    fn has_stored(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.left() > 0)
    }

    /// The bytes that are here, and at least so many are still to be had.
    fn at_hand(&self) -> u64 {
        self.stored.as_ref().map_or(0, |stored| stored.left()) + self.run.len() as u64
    }

    fn count(&mut self, consumed: usize) {
        self.left = self.left.map(|left| left - consumed as u64);
    }
}

impl Exchange<'_> {
    pub fn body_fault(&self) -> Option<BodyFault> {
        self.body.fault
    }

    /// The bytes that have not been read, if that is known.
    pub fn body_left(&self) -> Option<u64> {
        self.body.left
    }

    /// Of these, the bytes that the client need not be waited for.
    pub fn body_at_hand(&self) -> u64 {
        match (self.body.whole, self.body.left) {
            (true, Some(left)) => left,
            _ => self.body.at_hand(),
        }
    }

    /// The decoded length of a chunked body that was buffered. Without buffering it depends on the network whether the whole
    /// body is here, and the application must not see that.
    pub fn chunked_length(&self) -> Option<u64> {
        let is_chunked = self.conn.head.fields.framing == Framing::Chunked;
        self.body.length.filter(|_| is_chunked && self.site.settings.buffering != Buffering::Off)
    }

    /// The next bytes of the body, waiting for them if need be; empty at the end. Take them with `consume`.
    pub fn body_run(&mut self, release: Release<'_>) -> Result<&[u8], BodyFault> {
        if self.body.has_stored() {
            self.fill_window(release)?;
            return Ok(self.body.stored.as_ref().map_or(&[], |stored| stored.run()));
        }
        while self.body.run.is_empty() && !self.body.decoder.is_done() {
            if self.body.raw < self.desk.scratch.end {
                self.decode()?;
            } else {
                self.receive(release)?;
            }
        }
        Ok(self.desk.scratch.range(self.body.run.start, self.body.run.end))
    }

    pub fn consume(&mut self, bytes: usize) {
        self.body.count(bytes);
        match &mut self.body.stored {
            Some(stored) if stored.left() > 0 => stored.consume(bytes),
            _ => self.body.run.start += bytes,
        }
        self.site.silence.restart(clock::monotonic());
    }

    /// Fills `into` straight from the file of the body, or from the socket where the framing is a length; 0 means use
    /// `body_run`.
    pub fn body_read_direct(&mut self, into: &mut [u8], release: Release<'_>) -> Result<usize, BodyFault> {
        if self.body.has_stored() {
            return self.read_stored(into, release);
        }
        let Decoder::Length { remaining } = self.body.decoder else {
            return Ok(0);
        };
        if remaining == 0 || !self.body.run.is_empty() || self.body.raw < self.desk.scratch.end {
            return Ok(0);
        }
        let most = (into.len() as u64).min(remaining) as usize;
        loop {
            match self.conn.transport.receive(&mut into[..most]) {
                Ok(0) => return self.fail(BodyFault::Incomplete),
                Ok(bytes) => {
                    self.arrived(bytes);
                    self.body.count(bytes);
                    self.body.decoder = Decoder::Length { remaining: remaining - bytes as u64 };
                    return Ok(bytes);
                }
                Err(e) if is_transient(&e) => self.wait_for_body(release)?,
                Err(_) => return self.fail(BodyFault::Incomplete),
            }
        }
    }

    fn read_stored(&mut self, into: &mut [u8], release: Release<'_>) -> Result<usize, BodyFault> {
        let Some(stored) = self.body.stored.as_mut().filter(|stored| stored.is_at_file()) else {
            return Ok(0);
        };
        let mut read = Ok(0);
        let released = release(&mut || read = stored.read(into));
        let read = self.of_file(read)?;
        self.body.count(read);
        self.site.silence.restart(clock::monotonic());
        released.or_else(|_| self.fail(BodyFault::Interrupted))?;
        Ok(read)
    }

    fn fill_window(&mut self, release: Release<'_>) -> Result<(), BodyFault> {
        let Some(stored) = self.body.stored.as_mut().filter(|stored| stored.is_at_file()) else {
            return Ok(());
        };
        let mut filled = Ok(());
        let released = release(&mut || filled = stored.fill_window());
        self.of_file(filled)?;
        released.or_else(|_| self.fail(BodyFault::Interrupted))
    }

    fn of_file<T>(&mut self, read: io::Result<T>) -> Result<T, BodyFault> {
        read.or_else(|e| {
            log::error!("Cannot read a request body back from its file: {e}");
            self.fail(BodyFault::Unreadable)
        })
    }

    fn fail<T>(&mut self, fault: BodyFault) -> Result<T, BodyFault> {
        self.body.fault = Some(fault);
        Err(fault)
    }

    fn decode(&mut self) -> Result<(), BodyFault> {
        if let Some(fault) = self.body.fault {
            return Err(fault);
        }
        let raw = self.body.raw;
        match self.body.decoder.decode(self.desk.scratch.range(raw, self.desk.scratch.end)) {
            Ok(decoded) => {
                self.body.decoded += decoded.data.len() as u64;
                if self.body.decoded > self.site.settings.body_limit {
                    return self.fail(BodyFault::Invalid(Reject::BodyTooLarge));
                }
                self.body.run = raw + decoded.data.start..raw + decoded.data.end;
                self.body.raw = raw + decoded.consumed;
                Ok(())
            }
            Err(reject) => self.fail(BodyFault::Invalid(reject)),
        }
    }

    fn arrived(&mut self, octets: usize) {
        let now = clock::monotonic();
        self.site.silence.restart(now);
        if let Some(pace) = &mut self.body.pace {
            pace.progress(now, octets);
        }
    }

    fn receive(&mut self, release: Release<'_>) -> Result<(), BodyFault> {
        if let Some(fault) = self.body.fault {
            return Err(fault);
        }
        self.body.raw = self.body.floor;
        match self.desk.scratch.receive_at(self.body.floor, &self.conn.transport) {
            Ok(0) => self.fail(BodyFault::Incomplete),
            Ok(octets) => {
                self.arrived(octets);
                Ok(())
            }
            Err(e) if is_transient(&e) => {
                self.desk.scratch.end = self.body.floor;
                self.wait_for_body(release)
            }
            Err(_) => self.fail(BodyFault::Incomplete),
        }
    }

    /// RFC 9110 §10.1.1: the 100 goes out when the application first asks for a body that has not come.
    fn send_continue(&mut self) -> Result<(), BodyFault> {
        if std::mem::take(&mut self.body.continue_due) && self.reply.delivery.is_none() {
            // A client that has no room for these bytes need not wait for them; one that has gone is noticed by the next
            // read. Nothing can follow a part of them.
            if self.conn.transport.send(CONTINUE, false).is_ok_and(|sent| sent < CONTINUE.len()) {
                return self.fail(BodyFault::Incomplete);
            }
        }
        Ok(())
    }

    fn wait_for_body(&mut self, release: Release<'_>) -> Result<(), BodyFault> {
        self.send_continue()?;
        let now = clock::monotonic();
        let pace = *self.body.pace.get_or_insert_with(|| Pace::new(now, self.site.settings.body_timeout));
        let Some(left) = pace.left(now) else {
            return self.fail(BodyFault::TimedOut);
        };
        match self.wait(Interest::Read, left, release) {
            Ok(()) => Ok(()),
            Err(_) => self.fail(BodyFault::Interrupted),
        }
    }

    /// Every wait for the client. It is not the application's silence; that the interpreter is had back may be another
    /// application's doing, and counts.
    pub(super) fn wait(&self, interest: Interest, left: Nanos, release: Release<'_>) -> io::Result<()> {
        let (fd, silence) = (self.conn.transport.as_fd(), self.site.silence);
        let mut result = Ok(false);
        silence.suspend();
        release(&mut || {
            result = wait_one(fd, interest, Some(left));
            silence.restart(clock::monotonic());
        })?;
        result.map(|_| ())
    }

    /// Passes over what the application left unread, where all of it is here; false when octets of it are still to come.
    pub(super) fn skip_body(&mut self) -> bool {
        if self.body.fault.is_some() {
            return false;
        }
        while self.body.whole && !self.body.decoder.is_done() {
            if self.decode().is_err() {
                return false;
            }
        }
        self.body.decoder.is_done()
    }
}
