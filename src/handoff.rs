//! Owns: the mailbox, in which workers leave connections for one another.
//! Rule: one queue for all workers of a server, made by the arbiter before the first fork and kept by it: a message is in
//! the kernel's hands until exactly one worker has taken it, so no worker's death loses what is queued, and whoever is
//! free takes next. A connection travels whole (descriptor, octets already read, deadline) or stays where it is.
//! Never: decides which connection moves, or when.
//!
//! A server that replaces another one on USR2 shares its mailbox; whoever changes what a message says changes
//! `arbiter::kin::VERSION`.
//!
//! It is a socket pair (SOCK_SEQPACKET) of which every worker has both ends. The receiving end is watched like a
//! listener (EPOLLEXCLUSIVE): the kernel wakes one worker that waits, and passes over those that are busy.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::proxy_protocol::{Mode, Origin, Preface};
use crate::sys::clock::Nanos;
use crate::sys::{process, socket};
use crate::transport::Peer;

/// The most octets that travel with a connection.
pub const MOST_OCTETS: usize = 32 * 1024;
/// Octets that may be queued, with what the kernel needs for each message.
const QUEUE: usize = 4 << 20;
/// Room for the numbers in front of them.
const MOST_PREFACE: usize = 280;

/// What is known of a connection between two workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Papers {
    pub peer: Peer,
    /// `Listener::id`.
    pub listener: u64,
    /// How many requests it has made.
    pub requests: u64,
    /// When it is to be closed for want of a request.
    pub deadline: Nanos,
    /// TLS is to be spoken on it. Nothing has been said yet: a session that has begun cannot travel.
    pub secure: bool,
    /// What is to come before anything else. The beginning of a PROXY header travels like that of a request.
    pub preface: Preface,
    /// What its PROXY header has said.
    pub origin: Option<Origin>,
}

/// In front of the octets. Writing it allocates nothing.
impl fmt::Display for Papers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Papers { peer, listener, requests, deadline, secure, preface, origin } = self;
        write!(f, "{listener} {requests} {deadline} {} ", u64::from(*secure))?;
        match peer {
            Peer::Tcp(address) => write!(f, "{address} ")?,
            Peer::Unix => f.write_str("- ")?,
            Peer::Other => f.write_str("? ")?,
        }
        f.write_str(match preface {
            Preface::None => "none",
            Preface::Due(mode) => mode.as_str(),
            Preface::Barred => "barred",
            Preface::Unnamed => "unnamed",
        })?;
        match origin {
            Some(origin) => write!(f, " {origin}"),
            None => f.write_str(" -"),
        }
    }
}

/// A connection between two workers.
#[derive(Debug)]
pub struct Handed {
    pub fd: OwnedFd,
    pub papers: Papers,
    /// The beginning of a request.
    pub octets: Vec<u8>,
}

pub struct Mailbox {
    receiver: OwnedFd,
    sender: OwnedFd,
}

impl Mailbox {
    pub fn new() -> io::Result<Mailbox> {
        let (receiver, sender) = process::message_pair()?;
        // The kernel cuts it to what this system allows; without that some 280 connections fit, with it twice as many.
        socket2::SockRef::from(&sender).set_send_buffer_size(QUEUE)?;
        Ok(Mailbox { receiver, sender })
    }

    /// Of a server that came before this one: its receiving and its sending end.
    pub fn inherited(receiver: OwnedFd, sender: OwnedFd) -> Mailbox {
        Mailbox { receiver, sender }
    }

    /// Both ends, in that order.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.receiver.as_fd(), self.sender.as_fd()]
    }

    /// Errors: `WouldBlock` when the queue is full; the connection is still the caller's then, who closes its descriptor
    /// only after an `Ok`.
    pub fn send(&self, fd: BorrowedFd<'_>, papers: Papers, octets: &[u8]) -> io::Result<()> {
        let mut message = format!("{papers}\n").into_bytes();
        message.extend_from_slice(octets);
        socket::send_descriptor(self.sender.as_fd(), &message, fd)
    }

    /// The same for a connection of which nothing has been read. Async-signal-safe.
    pub fn send_untouched(&self, fd: BorrowedFd<'_>, papers: Papers) -> io::Result<()> {
        let mut message = [0; MOST_PREFACE];
        let mut rest = &mut message[..];
        writeln!(rest, "{papers}")?;
        let unused = rest.len();
        socket::send_descriptor(self.sender.as_fd(), &message[..MOST_PREFACE - unused], fd)
    }

    /// The next connection, if there is one. `buffer` is memory to be used again.
    ///
    /// Errors: the kernel's; a message that came without its descriptor, for which this process had no room: it is lost.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Handed>> {
        buffer.resize(MOST_PREFACE + MOST_OCTETS, 0);
        let (length, fd) = match socket::receive_descriptor(self.receiver.as_fd(), buffer) {
            Ok(received) => received,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None)
            }
            Err(e) => return Err(e),
        };
        let fd =
            fd.ok_or_else(|| io::Error::other("a connection is lost, as no descriptor was left for it"))?;
        Ok(Some(read(&buffer[..length], fd).ok_or(io::ErrorKind::InvalidData)?))
    }
}

impl AsFd for Mailbox {
    /// Readable while a connection is queued.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

fn read(message: &[u8], fd: OwnedFd) -> Option<Handed> {
    let end = memchr::memchr(b'\n', message)?;
    let mut words = std::str::from_utf8(&message[..end]).ok()?.split(' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let (listener, requests, deadline, secure) = (number()?, number()?, number()?, number()? == 1);
    let peer = match words.next()? {
        "-" => Peer::Unix,
        "?" => Peer::Other,
        address => Peer::Tcp(address.parse::<SocketAddr>().ok()?),
    };
    let preface = match words.next()? {
        "none" => Preface::None,
        "barred" => Preface::Barred,
        "unnamed" => Preface::Unnamed,
        mode => Preface::Due(Mode::of(mode)?),
    };
    let origin = match words.next()? {
        "-" => None,
        origin => Some(origin.parse().ok()?),
    };
    let papers = Papers { peer, listener, requests, deadline, secure, preface, origin };
    Some(Handed { fd, papers, octets: message[end + 1..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    const PEER: &str = "[2001:db8:1234:5678:9abc:def0:1234:5678%4294967295]:65535";

    fn papers(peer: Peer) -> Papers {
        let longest = "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535";
        let origin = Some(format!("{longest},{longest}").parse().unwrap());
        let (requests, deadline, preface) = (u64::MAX, Nanos::MAX, Preface::Due(Mode::Auto));
        Papers { peer, listener: u64::MAX, requests, deadline, secure: true, preface, origin }
    }

    fn send(mailbox: &Mailbox, fd: impl AsFd, octets: &[u8]) -> io::Result<()> {
        mailbox.send(fd.as_fd(), papers(Peer::Tcp(PEER.parse().unwrap())), octets)
    }

    #[test]
    fn a_connection_arrives_whole_and_alive() {
        let mailbox = Mailbox::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let octets = vec![b'x'; MOST_OCTETS];
        send(&mailbox, &near, &octets).unwrap();
        drop(near);
        let handed = mailbox.receive(&mut Vec::new()).unwrap().unwrap();
        assert_eq!(handed.papers, papers(Peer::Tcp(PEER.parse().unwrap())));
        assert_eq!(handed.octets, octets);
        UnixStream::from(handed.fd).write_all(b"hello").unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(mailbox.receive(&mut Vec::new()).unwrap().is_none());
    }

    #[test]
    fn what_a_crashing_worker_passes_on_arrives_too() {
        let mailbox = Mailbox::new().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let papers = papers(Peer::Tcp(PEER.parse().unwrap()));
        mailbox.send_untouched(near.as_fd(), papers).unwrap();
        drop(near);
        let handed = mailbox.receive(&mut Vec::new()).unwrap().unwrap();
        assert_eq!((handed.papers, handed.octets.len()), (papers, 0));
        UnixStream::from(handed.fd).write_all(b"hello").unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_peer_without_an_address_stays_what_it_is() {
        let mailbox = Mailbox::new().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let prefaces = [Preface::None, Preface::Barred, Preface::Due(Mode::V1), Preface::Unnamed];
        for (preface, peer) in prefaces.into_iter().zip([Peer::Unix, Peer::Other].into_iter().cycle()) {
            let papers = Papers { listener: 1, secure: false, preface, origin: None, ..papers(peer) };
            mailbox.send(near.as_fd(), papers, b"").unwrap();
            let handed = mailbox.receive(&mut Vec::new()).unwrap().unwrap();
            assert_eq!((handed.papers, handed.octets.len()), (papers, 0));
        }
    }

    #[test]
    fn a_full_mailbox_refuses_and_loses_nothing() {
        let mailbox = Mailbox::new().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let mut sent = 0;
        let refusal = loop {
            match send(&mailbox, &near, &[b'x'; 1000]) {
                Ok(()) => sent += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
        let mut buffer = Vec::new();
        for _ in 0..sent {
            assert!(mailbox.receive(&mut buffer).unwrap().is_some());
        }
        assert!(mailbox.receive(&mut buffer).unwrap().is_none());
        assert!(sent > 50, "only {sent} connections fit");
    }

    /// A process that dies has its descriptors closed and nothing else; so has each side here, after each step.
    #[test]
    fn whoever_dies_at_whatever_step_the_connection_is_served_once_or_closed_unanswered() {
        let answer = |handed: Handed| UnixStream::from(handed.fd).write_all(b"once").unwrap();
        let deaths = ["before sending", "after sending", "receiver", "never"];
        for death in deaths {
            let mailbox = Mailbox::new().unwrap();
            let (near, mut far) = UnixStream::pair().unwrap();
            if death != "before sending" {
                send(&mailbox, &near, b"GET").unwrap();
            }
            // The sender dies, or closes its copy.
            drop(near);
            let taken = mailbox.receive(&mut Vec::new()).unwrap();
            assert_eq!(taken.is_some(), death != "before sending");
            match taken {
                Some(handed) if death != "receiver" => answer(handed),
                // The receiver dies with it in its hands.
                taken => drop(taken),
            }
            assert!(mailbox.receive(&mut Vec::new()).unwrap().is_none(), "{death}: it is queued twice");
            let mut text = String::new();
            far.read_to_string(&mut text).unwrap();
            let served = matches!(death, "after sending" | "never");
            assert_eq!(text, if served { "once" } else { "" }, "{death}");
        }
    }
}
