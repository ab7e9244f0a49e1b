//! Owns: what a connection takes along to another worker, and whether it can go there.
//! Rule: it goes between requests, at the beginning of one, or with one that waits for a thread and is small enough;
//! half-read bodies, unsent responses and TLS sessions stay.
//! Never: decides that it goes; that is the event loop.

use std::io;
use std::os::fd::AsFd;

use super::{Conn, State};
use crate::handoff::{Mailbox, Papers, MOST_OCTETS};
use crate::proxy::Trust;
use crate::proxy_protocol::Preface;

impl Conn {
    /// Goes on where another worker has left it: between requests, or at the beginning of one.
    pub fn resume(&mut self, papers: &Papers, octets: Vec<u8>, trust: &Trust) {
        self.preface = papers.preface;
        self.origin = papers.origin.map(Box::new);
        self.trusted = trust.trusts(self.speaker());
        if !octets.is_empty() && !self.is_unintroduced() {
            self.go(State::Head);
        }
        (self.requests, self.deadline, self.pending) = (papers.requests, papers.deadline, octets);
    }

    /// Whether another worker could go on with it: what has been read of its next request is the beginning of a head, or
    /// all of it, and little enough to travel along. Half-read bodies and unsent responses stay.
    pub fn may_move(&self) -> bool {
        matches!(self.state, State::Idle | State::Head | State::Ready)
            && self.pending.len() <= MOST_OCTETS
            && !self.is_last
            && self.body.is_none()
            && self.transport.may_move()
    }

    /// Whether it has brought along what nobody has parsed here: the poller does not know of that.
    pub fn holds_unparsed(&self) -> bool {
        self.state == State::Head && self.scan.is_none() && !self.pending.is_empty()
    }

    /// Whether it ends with this worker, whoever goes on.
    pub fn is_bound(&self) -> bool {
        self.transport.is_secure()
    }

    /// Whether its descriptor tells all that another worker would have to know of it, were nothing read of its next request.
    pub fn is_bare(&self) -> bool {
        self.preface == Preface::None && self.origin.is_none() && !self.is_bound()
    }

    /// Leaves it to the other workers. After an `Ok` it is theirs, and is to be dropped here.
    pub fn leave_in(&self, mailbox: &Mailbox, listener: u64) -> io::Result<()> {
        let papers = Papers {
            peer: self.peer,
            listener,
            // Whoever goes on reads the request anew, and counts it.
            requests: self.requests - u64::from(self.state == State::Ready),
            deadline: self.deadline,
            secure: self.transport.is_secure(),
            preface: self.preface,
            origin: self.origin.as_deref().copied(),
        };
        mailbox.send(self.as_fd(), papers, &self.pending)
    }
}
