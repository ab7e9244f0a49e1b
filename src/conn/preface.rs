//! Owns: what comes before a connection's first request: a PROXY header, and the client whom it names.
//! Rule: it is read from the socket itself, and no further, as what follows may be TLS.
//! Never: decides who may send one; that is `proxy`.

use std::os::fd::AsFd;

use super::{is_transient, Conn, Next, Turn};
use crate::http::Reject;
use crate::proxy::Identity;
use crate::proxy_protocol::{self, Header, Mode, Preface};
use crate::transport::Peer;

impl Conn {
    /// Before anything has been read.
    pub fn expect(&mut self, preface: Preface) {
        self.preface = preface;
    }

    /// For whom it is served: the client that a PROXY header has named, else the peer.
    pub(crate) fn client(&self) -> Peer {
        self.origin.as_ref().map_or(self.peer, |origin| Peer::Tcp(origin.client))
    }

    /// Whom its requests come from, as far as that can be told: a proxy's own address says nothing of its clients.
    pub(super) fn speaker(&self) -> Identity {
        match self.preface {
            Preface::Unnamed => Identity::Unknown,
            _ => self.client().identity(),
        }
    }

    /// Its client has been named since it was entered in the table.
    pub fn is_newly_introduced(&self) -> bool {
        self.origin.is_some() && self.requests == 1
    }

    pub(super) fn is_unintroduced(&self) -> bool {
        matches!(self.preface, Preface::Due(_))
    }

    /// Reads the PROXY header; None once that is done. Until then the connection counts as idle: its deadline, set when it
    /// was accepted, is not moved by it. It is read from the socket itself, and no further: what follows may be TLS.
    pub(super) fn read_preface(&mut self, mode: Mode, turn: &mut Turn<'_>) -> Option<Next> {
        let scratch = &mut turn.desk.scratch;
        let held = self.pending.len();
        scratch.load(&mut self.pending);
        let peeked = match scratch.peek(self.transport.as_fd()) {
            Ok(0) => return Some(self.vanished()),
            Ok(peeked) => peeked,
            Err(e) if is_transient(&e) => return Some(self.park(turn)),
            Err(_) => return Some(self.vanished()),
        };
        let read = proxy_protocol::header(scratch.unread(), mode);
        let taken = match read {
            // What another worker has read along was no whole header: that worker is not to be believed.
            Ok(Header::Complete { length, .. }) if length < held => return Some(self.vanished()),
            Ok(Header::Complete { length, .. }) => length - held,
            _ => peeked,
        };
        if scratch.take(taken, peeked, self.transport.as_fd()).is_err() {
            return Some(self.vanished());
        }
        match read {
            Ok(Header::Partial) => Some(self.park(turn)),
            Ok(Header::Complete { origin, .. }) => {
                let speaks_for_itself = origin.is_some() || proxy_protocol::is_local(scratch.unread());
                scratch.forget();
                self.preface = if speaks_for_itself { Preface::None } else { Preface::Unnamed };
                self.origin = origin.map(Box::new);
                self.trusted = turn.settings.trust.trusts(self.speaker());
                None
            }
            Err(_) => Some(self.refuse_preface(turn)),
        }
    }

    fn refuse_preface(&mut self, turn: &mut Turn<'_>) -> Next {
        if !self.transport.is_secure() {
            return self.refuse(Reject::ProxyHeader, turn);
        }
        // Without a handshake there is nothing to say that the peer would understand.
        log::warn!("Invalid request from ip={}: {}", self.peer, Reject::ProxyHeader.text());
        self.linger(turn)
    }

    /// The same octets are another offence when they come from a peer that may not speak for others.
    pub(super) fn offence(&self, reject: Reject, octets: &[u8]) -> Reject {
        let header = self.preface == Preface::Barred && proxy_protocol::looks_like_header(octets);
        match header && self.requests == 0 {
            true => Reject::Forbidden,
            false => reject,
        }
    }
}
