//! Owns: what a connection takes along to another worker, and whether it can go there.
//! Rule: it goes between requests or at the beginning of one; half-read bodies, unsent responses and TLS sessions stay.
//! Never: decides that it goes; that is the event loop.

use std::io;
use std::os::fd::AsFd;

use super::{Conn, State};
use crate::handoff::{Mailbox, Papers, MOST_OCTETS};
use crate::proxy_protocol::Preface;

impl Conn {
    /// Goes on where another worker has left it: between requests, or at the beginning of one.
    pub fn resume(&mut self, papers: &Papers, octets: Vec<u8>) {
        self.preface = papers.preface;
        self.origin = papers.origin.map(Box::new);
        if !octets.is_empty() && !self.is_unintroduced() {
            self.go(State::Head);
        }
        (self.requests, self.deadline, self.pending) = (papers.requests, papers.deadline, octets);
    }

    /// Whether another worker could go on with it: nothing but the beginning of a head has been read, and that little
    /// enough to travel along. Half-read bodies and unsent responses stay.
    pub fn may_move(&self) -> bool {
        matches!(self.state, State::Idle | State::Head)
            && self.pending.len() <= MOST_OCTETS
            && self.transport.may_move()
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
            requests: self.requests,
            deadline: self.deadline,
            secure: self.transport.is_secure(),
            preface: self.preface,
            origin: self.origin.as_deref().copied(),
        };
        mailbox.send(self.as_fd(), papers, &self.pending)
    }
}
