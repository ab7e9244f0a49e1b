//! Owns: who is at the other end, and how octets reach it. Today the socket itself; the enum is where TLS goes.
//! Rule: nothing blocks; a short count or `WouldBlock` is an answer, not an error.
//! Never: buffers what the kernel did not take; that is `buffer::OutQueue`.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys::{file, socket};

/// The other end of a connection. Shown, it is an address without its port; a unix socket's peer has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix,
}

impl Peer {
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => write!(f, "{}", address.ip().to_canonical()),
            Peer::Unix => Ok(()),
        }
    }
}

#[derive(Debug)]
pub enum Transport {
    Plain(OwnedFd),
}

impl Transport {
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::receive(fd.as_fd(), into),
        }
    }

    /// `more`: the rest follows at once, so a short segment need not leave on its own.
    pub fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::transmit(fd.as_fd(), bytes, more),
        }
    }

    pub fn send_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => socket::transmit_vectored(fd.as_fd(), parts),
        }
    }

    pub fn send_file(&self, source: BorrowedFd<'_>, offset: &mut u64, most: usize) -> io::Result<usize> {
        match self {
            Transport::Plain(fd) => file::send_file(fd, source, offset, most),
        }
    }

    pub fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Transport::Plain(fd) => socket::shutdown_write(fd.as_fd()),
        }
    }

    /// Makes the coming close a reset, for a peer that could otherwise take a cut response for a whole one.
    pub fn reset_on_close(&self) -> io::Result<()> {
        match self {
            Transport::Plain(fd) => socket2::SockRef::from(fd).set_linger(Some(Duration::ZERO)),
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Transport::Plain(fd) => fd.as_fd(),
        }
    }
}
