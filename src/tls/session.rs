//! Owns: one connection's TLS: its handshake, its records, its end, over a socket that does not block.
//! Rule: octets are taken from the socket only when no plain ones are left, and plain ones are encrypted only when the
//! records made before have left, so a session holds a read and a few records at the most. `WouldBlock` is an answer.
//! Never: waits; owns the socket; decides what becomes of a connection that breaks the rules of TLS.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;

use rustls::{PeerMisbehaved, ProtocolVersion, ServerConnection};

use super::ciphers;
use crate::sys::{file, socket};

/// The octets taken from a socket or a file at once: what one record holds (RFC 8446 §5.1).
const BLOCK: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    Untouched,
    Open,
    /// The peer has broken the rules, and has been told. What it sends on is read to be forgotten.
    Failed(Failure),
    /// The peer does not speak TLS but HTTP: it is to be told so in its own language.
    Plain,
}

/// What went wrong, for whoever decides what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An alert has told the peer.
    Protocol,
    /// The same, and what it was is worth saying: a server name that is no DNS name (RFC 6066 §3), such as one with a port.
    /// rustls refuses it, and the message cannot be changed before rustls reads it, as the keys depend on it.
    ServerName,
    /// It can be answered in plain HTTP.
    PlainHttp,
}

/// What an application can learn of a session.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    pub protocol: &'static str,
    pub cipher: &'static str,
    /// The client's own certificate, verified, in DER form.
    pub client: Option<Vec<u8>>,
}

pub struct Session {
    tls: ServerConnection,
    phase: Phase,
    /// Decrypted octets that were not taken yet.
    plain: usize,
    /// The peer has ended its side, in order or not.
    ended: bool,
    /// Octets from the socket for which there was no room.
    raw: Vec<u8>,
    /// Our side has ended in order: what comes now is not for anybody.
    finished: bool,
}

impl Session {
    pub(super) fn new(tls: ServerConnection) -> Session {
        Session { tls, phase: Phase::Untouched, plain: 0, ended: false, raw: Vec::new(), finished: false }
    }

    /// Nothing of it has been said: another process could begin it.
    pub fn is_untouched(&self) -> bool {
        self.phase == Phase::Untouched
    }

    pub fn failure(&self) -> Option<Failure> {
        match self.phase {
            Phase::Failed(failure) => Some(failure),
            Phase::Plain => Some(Failure::PlainHttp),
            _ => None,
        }
    }

    /// There is something to `receive`, though the socket may have nothing.
    pub fn holds_input(&self) -> bool {
        self.failure().is_none() && !self.finished && (self.ended || self.holds_octets())
    }

    /// What it has may be a request.
    pub fn holds_octets(&self) -> bool {
        self.plain > 0 || !self.raw.is_empty()
    }

    /// Records are made that the socket did not take.
    pub fn owes(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Failed(_)) && self.tls.wants_write()
    }

    /// Plain octets; 0 is the end of the peer's side. The handshake is made on the way. After `finish` and after a failure
    /// they are what the socket has, to be thrown away.
    ///
    /// Errors: `WouldBlock`; the kernel's; what is wrong with the peer's TLS, after which `failure` says how it ends.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
        loop {
            // Behind a close_notify of ours rustls has no alert left to send (RFC 8446 §6.1), and takes it amiss to need one.
            if self.failure().is_some() || self.finished {
                return socket::receive(fd, into);
            }
            if self.plain > 0 {
                return self.take(into);
            }
            if !self.raw.is_empty() {
                let raw = std::mem::take(&mut self.raw);
                self.digest(&raw, fd)?;
            } else if self.ended {
                return Ok(0);
            } else {
                self.fetch(fd)?;
            }
        }
    }

    fn take(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let taken = self.tls.reader().read(into)?;
        self.plain -= taken;
        Ok(taken)
    }

    /// One read of the socket.
    fn fetch(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut block = [0; BLOCK];
        match socket::receive(fd, &mut block) {
            // Without a close_notify it is the same to us: HTTP's framing tells whether a request is complete.
            Ok(0) => self.ended = true,
            Ok(octets) => return self.digest(&block[..octets], fd),
            Err(e) => {
                // The peer waits for what it is to be told, and what is decided here has been waiting for its request.
                self.flush(fd)?;
                return Err(e);
            }
        }
        Ok(())
    }

    fn digest(&mut self, mut octets: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        if self.phase == Phase::Untouched {
            if octets[0].is_ascii_alphabetic() {
                self.phase = Phase::Plain;
                return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP instead of TLS"));
            }
            self.phase = Phase::Open;
        }
        while !octets.is_empty() && !self.ended {
            if self.plain > BLOCK {
                self.raw = octets.to_vec();
                return Ok(());
            }
            self.tls.read_tls(&mut octets)?;
            match self.tls.process_new_packets() {
                Ok(state) => {
                    self.plain = state.plaintext_bytes_to_read();
                    self.ended = state.peer_has_closed();
                }
                Err(e) => return Err(self.fail(e, fd)),
            }
        }
        Ok(())
    }

    fn fail(&mut self, e: rustls::Error, fd: BorrowedFd<'_>) -> io::Error {
        self.phase = Phase::Failed(match e {
            rustls::Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => {
                Failure::ServerName
            }
            _ => Failure::Protocol,
        });
        self.plain = 0;
        // The alert; a peer that takes no more of us will see the end of the connection.
        let _ = self.flush(fd);
        io::Error::new(io::ErrorKind::InvalidData, e)
    }

    /// Sends the records that are made; false when the socket is full before they all left.
    pub fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        while self.owes() {
            match self.tls.write_tls(&mut Wire(fd)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Takes some of these octets; they have left for good when `flush` is true.
    pub fn send(&mut self, fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.phase {
            Phase::Plain => return socket::transmit_vectored(fd, parts),
            Phase::Failed(_) => return Err(io::ErrorKind::BrokenPipe.into()),
            _ => {}
        }
        if !self.flush(fd)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.tls.writer().write_vectored(parts)?;
        self.flush(fd)?;
        Ok(taken)
    }

    /// Some of a file; moves `offset` and returns the octets taken, 0 at the end of the file.
    pub fn send_file(
        &mut self,
        fd: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        offset: &mut u64,
        most: usize,
    ) -> io::Result<usize> {
        if !self.flush(fd)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut block = [0; BLOCK];
        let most = most.min(BLOCK);
        let read = file::read_at(source, &mut block[..most], *offset)?;
        if read == 0 {
            return Ok(0);
        }
        let sent = self.send(fd, &[IoSlice::new(&block[..read])])?;
        *offset += sent as u64;
        Ok(sent)
    }

    /// Says that nothing more will come (RFC 8446 §6.1), behind whatever was to be sent; false while not all has left.
    pub fn finish(&mut self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        if self.phase == Phase::Open && !self.tls.is_handshaking() {
            self.tls.send_close_notify();
            self.finished = true;
        }
        self.flush(fd)
    }

    pub fn facts(&self) -> Facts {
        Facts {
            protocol: match self.tls.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "",
            },
            cipher: self.tls.negotiated_cipher_suite().map_or("", |suite| ciphers::name(suite.suite())),
            client: self
                .tls
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|own| own.as_ref().to_vec()),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// The socket as rustls writes to it.
struct Wire<'a>(BorrowedFd<'a>);

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        socket::transmit(self.0, bytes, false)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [one] => socket::transmit(self.0, one, false),
            _ => socket::transmit_vectored(self.0, parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
