//! Owns: who is at the other end, and how octets reach it: by the socket itself, or in TLS over it.
//! Rule: nothing blocks; a short count or `WouldBlock` is an answer, not an error. What `send` took has left when `flush`
//! says so; a plain socket has nothing left to flush.
//! Never: buffers what the kernel did not take; that is `buffer::OutQueue`, and in TLS the session, a few records of it.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use socket2::SockAddr;

use crate::proxy::Identity;
use crate::sys::{file, socket};
use crate::tls::{Facts, Failure, Session};

/// The other end of a connection. Shown, it is an address without its port; only TCP has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix,
    /// By a family of addresses that an inherited listener has brought along, such as AF_VSOCK.
    Other,
}

impl Peer {
    /// By the address that the kernel gives for the other end of a socket.
    pub fn at(address: &SockAddr) -> Peer {
        match address.as_socket() {
            Some(address) => Peer::Tcp(address),
            None if address.is_unix() => Peer::Unix,
            None => Peer::Other,
        }
    }

    pub fn identity(&self) -> Identity {
        match self {
            Peer::Tcp(address) => Identity::Ip(address.ip()),
            Peer::Unix => Identity::UnixSocket,
            Peer::Other => Identity::Unknown,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => write!(f, "{}", address.ip().to_canonical()),
            Peer::Unix | Peer::Other => Ok(()),
        }
    }
}

/// A socket with TLS on it. The helper may have to answer in place of the thread that serves the connection; neither
/// keeps the session locked over a wait.
#[derive(Debug)]
pub struct Tls {
    fd: OwnedFd,
    session: Mutex<Session>,
}

impl Tls {
    /// A poisoned lock means a panic inside rustls: the session refuses what it cannot do any more.
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Octets and the end of the stream, as `socket::last_words`.
    pub fn last_words(&self, octets: &[u8]) -> io::Result<()> {
        let mut session = self.session();
        session.send(self.fd.as_fd(), &[IoSlice::new(octets)])?;
        session.finish(self.fd.as_fd())?;
        // A peer that has read the end may be gone by now.
        let _ = socket::shutdown_write(self.fd.as_fd());
        Ok(())
    }
}

#[derive(Debug)]
pub enum Transport {
    Plain(OwnedFd),
    Tls(Arc<Tls>),
}

impl Transport {
    pub fn secure(fd: OwnedFd, session: Session) -> Transport {
        Transport::Tls(Arc::new(Tls { fd, session: Mutex::new(session) }))
    }

    /// Another handle for the same connection, by a descriptor of its own.
    ///
    /// Errors: there is no descriptor left.
    pub fn share(&self) -> io::Result<Transport> {
        match self {
            Transport::Plain(fd) => fd.try_clone().map(Transport::Plain),
            Transport::Tls(tls) => Ok(Transport::Tls(tls.clone())),
        }
    }

    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::receive(fd.as_fd(), into),
            Transport::Tls(tls) => tls.session().receive(tls.fd.as_fd(), into),
        }
    }

    /// Receives and forgets; `room` may be overwritten.
    pub fn discard(&self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::discard(fd.as_fd(), room),
            Transport::Tls(_) => self.receive(room),
        }
    }

    /// `more`: the rest follows at once, so a short segment need not leave on its own.
    pub fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::transmit(fd.as_fd(), bytes, more),
            Transport::Tls(tls) => tls.session().send(tls.fd.as_fd(), &[IoSlice::new(bytes)]),
        }
    }

    pub fn send_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::transmit_vectored(fd.as_fd(), parts),
            Transport::Tls(tls) => tls.session().send(tls.fd.as_fd(), parts),
        }
    }

    pub fn send_file(&self, source: BorrowedFd<'_>, offset: &mut u64, most: usize) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => file::send_file(fd, source, offset, most),
            Transport::Tls(tls) => tls.session().send_file(tls.fd.as_fd(), source, offset, most),
        }
    }

    /// Whether all that was taken has left.
    pub fn flush(&self) -> io::Result<bool> {
        match self {
            Transport::Plain(_) => Ok(true),
            Transport::Tls(tls) => tls.session().flush(tls.fd.as_fd()),
        }
    }

    /// Whether something that was taken has not left.
    pub fn owes(&self) -> bool {
        match self {
            Transport::Plain(_) => false,
            Transport::Tls(tls) => tls.session().owes(),
        }
    }

    /// Ends our side where that takes octets, behind all that was sent; false while not all has left.
    pub fn finish(&self) -> io::Result<bool> {
        match self {
            Transport::Plain(_) => Ok(true),
            Transport::Tls(tls) => tls.session().finish(tls.fd.as_fd()),
        }
    }

    /// Keeps the peer from sending more, and lets it know. False where that cannot be done: in TCP, and in TLS.
    pub fn refuse_input(&self, peer: Peer) -> bool {
        matches!((self, peer), (Transport::Plain(_), Peer::Unix))
            && socket::shutdown_read(self.as_fd()).is_ok()
    }

    pub fn shutdown_write(&self) -> io::Result<()> {
        self.finish()?;
        socket::shutdown_write(self.as_fd())
    }

    /// Whether every close resets the connection from now on, that by the end of the process too (socket(7), SO_LINGER). Of a
    /// unix socket it is only noted: its peer sees the same end either way.
    pub fn set_reset_on_close(&self, resets: bool) -> io::Result<()> {
        socket2::SockRef::from(self).set_linger(resets.then_some(Duration::ZERO))
    }

    /// There is something to `receive`, though the poller would not tell.
    pub fn holds_input(&self) -> bool {
        match self {
            Transport::Plain(_) => false,
            Transport::Tls(tls) => tls.session().holds_input(),
        }
    }

    /// What it holds may be a request.
    pub fn holds_octets(&self) -> bool {
        match self {
            Transport::Plain(_) => false,
            Transport::Tls(tls) => tls.session().holds_octets(),
        }
    }

    pub fn is_secure(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }

    /// Whether another process could go on with it: the state of a TLS session cannot leave this one.
    pub fn may_move(&self) -> bool {
        match self {
            Transport::Plain(_) => true,
            Transport::Tls(tls) => tls.session().is_untouched(),
        }
    }

    /// How the peer has failed to speak TLS, if it has.
    pub fn failure(&self) -> Option<Failure> {
        match self {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.session().failure(),
        }
    }

    pub fn facts(&self) -> Option<Facts> {
        match self {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => Some(tls.session().facts()),
        }
    }

    /// For whoever may have to speak on it while a thread serves it.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        match self {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => Some(tls.clone()),
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Plain(fd) => fd.as_fd(),
            Transport::Tls(tls) => tls.fd.as_fd(),
        }
    }
}
