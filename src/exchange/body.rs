//! Owns: the request body as the application reads it: decoded, waited for, at a pace, with its 100 (Continue).
//! Rule: octets come from the scratch first, then from the socket behind the head; whatever goes wrong is kept as the
//! body's fault and never looks like its end.
//! Never: holds octets of its own.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use super::{Exchange, Release};
use crate::conn::is_transient;
use crate::http::body::Decoder;
use crate::http::response::CONTINUE;
use crate::http::Reject;
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
    /// The thread is wanted for something else, such as a signal.
    Interrupted,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyFault::Invalid(reject) => reject.text(),
            BodyFault::Incomplete => "client left inside the request body",
            BodyFault::TimedOut => "client sent the request body too slowly (--body-timeout)",
            BodyFault::Interrupted => "interrupted while reading the request body",
        })
    }
}

pub(super) struct Body {
    pub(super) decoder: Decoder,
    /// Every octet of it is in the scratch.
    pub(super) whole: bool,
    /// Decoded octets not consumed yet, in the scratch.
    pub(super) run: Range<usize>,
    /// Where the undecoded octets begin, and where reads that need room put theirs.
    pub(super) raw: usize,
    pub(super) floor: usize,
    pub(super) continue_due: bool,
    pub(super) fault: Option<BodyFault>,
    pub(super) pace: Option<Pace>,
}

impl Exchange<'_> {
    pub fn body_fault(&self) -> Option<BodyFault> {
        self.body.fault
    }

    /// The octets left, when the framing tells.
    pub fn body_left(&self) -> Option<u64> {
        match self.body.decoder {
            Decoder::Length { remaining } => Some(remaining + self.body.run.len() as u64),
            Decoder::Empty => Some(0),
            _ => None,
        }
    }

    /// The next octets of the body, waiting for them if need be; empty at the end. Take them with `consume`.
    pub fn body_run(&mut self, release: Release<'_>) -> Result<&[u8], BodyFault> {
        while self.body.run.is_empty() && !self.body.decoder.is_done() {
            if self.body.raw < self.desk.scratch.end {
                self.decode()?;
            } else {
                self.receive(release)?;
            }
        }
        Ok(self.desk.scratch.range(self.body.run.start, self.body.run.end))
    }

    pub fn consume(&mut self, octets: usize) {
        self.body.run.start += octets;
        self.site.silence.restart(clock::monotonic());
    }

    /// Fills `into` straight from the socket where nothing is buffered and the framing is a length; 0 means use `body_run`.
    pub fn body_read_direct(&mut self, into: &mut [u8], release: Release<'_>) -> Result<usize, BodyFault> {
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
                Ok(octets) => {
                    self.arrived(octets);
                    self.body.decoder = Decoder::Length { remaining: remaining - octets as u64 };
                    return Ok(octets);
                }
                Err(e) if is_transient(&e) => self.wait_for_body(release)?,
                Err(_) => return self.fail(BodyFault::Incomplete),
            }
        }
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
    fn send_continue(&mut self) {
        if std::mem::take(&mut self.body.continue_due) && self.reply.delivery.is_none() {
            // A client that takes no 25 octets will not send a body either; reading it tells.
            let _ = self.conn.transport.send(CONTINUE, false);
        }
    }

    fn wait_for_body(&mut self, release: Release<'_>) -> Result<(), BodyFault> {
        self.send_continue();
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
