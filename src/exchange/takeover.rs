//! Owns: a connection that the application takes over, to speak on it itself (`gunicorn.socket`).
//! Rule: it happens before anything of a response is sent, and for good: from then on the server neither reads nor sends
//! there, and the connection ends with the call. What was read of it already goes along.
//! Never: knows what is spoken.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::Exchange;
use crate::http::body::Decoder;
use crate::sys::{clock, fork, socket};

/// What the log says of a response that only the application knows: RFC 9110 §15.2.2, Switching Protocols.
const STATUS: u16 = 101;

/// A connection as the application gets it.
pub struct TakenOver {
    /// A blocking socket, the application's own.
    pub fd: OwnedFd,
    /// The octets behind the head that nobody has read yet. They come before what the socket gives.
    pub unread: Vec<u8>,
}

fn refused(kind: io::ErrorKind, why: &str) -> io::Error {
    io::Error::new(kind, format!("gunicorn.socket: {why}"))
}

impl Exchange<'_> {
    pub fn is_taken(&self) -> bool {
        self.conn.taken
    }

    /// A descriptor of the connection for a question about it; the connection stays the server's.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.check_plain()?;
        self.conn.transport.as_fd().try_clone_to_owned()
    }

    fn check_plain(&self) -> io::Result<()> {
        match self.is_secure() {
            true => Err(refused(
                io::ErrorKind::Unsupported,
                "with TLS the server has no socket to give; end TLS in a proxy in front of it",
            )),
            false => Ok(()),
        }
    }

    /// Gives the connection to the application.
    ///
    /// Errors: one with TLS, a response that has begun, a request that ran too long and was answered.
    pub fn take_over(&mut self) -> io::Result<TakenOver> {
        let fd = self.duplicate()?;
        if self.has_begun() || self.conn.taken || fork::is_foreign() {
            return Err(refused(io::ErrorKind::InvalidInput, "the response has begun"));
        }
        if self.reply.gone || !self.site.claim.take_over() {
            return Err(refused(io::ErrorKind::ConnectionReset, "the client has gone, or been answered"));
        }
        let unread = self.unread();
        self.conn.taken = true;
        self.reply.status = STATUS;
        // Nothing is sent any more, whatever the application returns.
        self.reply.gone = true;
        // It speaks when it likes.
        self.site.silence.suspend();
        socket::set_blocking(fd.as_fd())?;
        Ok(TakenOver { fd, unread })
    }

    /// Takes what is left of the octets behind the head; for the request, its body is over.
    fn unread(&mut self) -> Vec<u8> {
        let (body, end) = (&mut self.body, self.desk.scratch.end);
        // Chunks are decoded in part: what is left of them begins with a size again.
        let decoded = matches!(body.decoder, Decoder::Length { .. } | Decoder::Empty) && !body.run.is_empty();
        let from = if decoded { body.run.start } else { body.raw };
        let unread = self.desk.scratch.range(from, end).to_vec();
        (body.run, body.raw, body.decoder) = (end..end, end, Decoder::Empty);
        body.continue_due = false;
        unread
    }

    /// At the end of the call, the thread's next request has a time of its own.
    pub(super) fn end_take_over(&self) {
        if self.conn.taken {
            self.site.silence.restart(clock::monotonic());
        }
    }
}
