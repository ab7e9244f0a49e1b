//! Owns: what becomes of those who come to a worker that has no room for another descriptor.
//! Rule: they go on to a worker that has room; where none has, the connection here that has been idle longest makes room
//! (`idle`); without one they are told so at once (503), as in the backlog they would wait without being told. A few
//! descriptors are kept in reserve for that: accept(2) wants one before it says who is there, and what is taken out of the
//! mailbox without one is lost (unix(7), SCM_RIGHTS).
//! Never: ends a connection in use; waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use super::accept::{Arrival, Comes};
use super::{lock, EventLoop, Lead};
use crate::conn::Desk;
use crate::handoff::{Handed, Papers};
use crate::proxy_protocol::Preface;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::crash;
use crate::transport::Peer;

/// One for who comes, and one should the application open something at that moment.
const KEPT: usize = 2;
/// Until it looks for room again.
const PAUSE: Nanos = SECOND / 10;
/// Connections in a row that are sent on or turned away.
const MOST: usize = 64;

/// Descriptors that are only held, and given up for a moment.
pub(super) struct Reserve(Vec<OwnedFd>);

impl Reserve {
    /// Copies of `of`.
    pub(super) fn new(of: BorrowedFd<'_>) -> io::Result<Reserve> {
        let copies = (0..KEPT).map(|_| of.try_clone_to_owned());
        Ok(Reserve(copies.collect::<io::Result<_>>()?))
    }

    fn give_up(&mut self) {
        self.0.clear();
    }

    /// False when it does not become whole again.
    fn restore(&mut self, of: BorrowedFd<'_>) -> bool {
        while self.0.len() < KEPT {
            match of.try_clone_to_owned() {
                Ok(copy) => self.0.push(copy),
                Err(_) => return false,
            }
        }
        true
    }
}

pub(super) fn is_want(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl EventLoop {
    fn restore(&self, lead: &mut Lead) -> bool {
        lead.reserve.restore(self.waker.as_fd())
    }

    /// Whether one more descriptor is to be had beside the reserve.
    fn has_room(&self, lead: &mut Lead) -> bool {
        self.restore(lead) && self.waker.as_fd().try_clone_to_owned().is_ok()
    }

    /// Whether another worker can take what this one cannot.
    fn others_have_room(&self) -> bool {
        !self.is_last() && self.plan.slot.has_sibling_with_room()
    }

    /// Whether an idle connection has given up its descriptor; not where another worker has one left.
    pub(super) fn frees_descriptor(&self, desk: &mut Desk) -> bool {
        !self.others_have_room() && !self.draining.load(Relaxed) && self.end_longest_idle(desk)
    }

    /// What the mailbox has.
    ///
    /// Errors: there is no room for it, and it has been sent on, or turned away; the kernel's.
    pub(super) fn letter(&self, lead: &mut Lead) -> io::Result<Option<Handed>> {
        let received = self.take_letter(lead)?;
        if self.restore(lead) {
            return Ok(received);
        }
        if let Some(handed) = received {
            self.send_on(handed);
        }
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }

    /// The same where it may be had by a descriptor of the reserve only.
    fn take_letter(&self, lead: &mut Lead) -> io::Result<Option<Handed>> {
        if !self.restore(lead) && lead.reserve.0.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        lead.reserve.give_up();
        self.plan.mailbox.receive(&mut lead.letter)
    }

    /// By a worker that cannot keep it.
    fn send_on(&self, Handed { fd, papers, octets }: Handed) {
        if self.others_have_room() && self.plan.mailbox.send(fd.as_fd(), papers, &octets).is_ok() {
            return;
        }
        let has_asked = !octets.is_empty() || crash::has_input(fd.as_raw_fd());
        match has_asked && !papers.secure {
            true => _ = crash::say(fd.as_raw_fd(), self.pages.unavailable()),
            false => crash::end(fd.as_raw_fd()),
        }
    }

    /// No descriptor was left for who has come.
    pub(super) fn become_full(&self, lead: &mut Lead) {
        self.plan.slot.set_full(true);
        self.send_all_on(lead);
    }

    /// Time to listen again, if there is room.
    pub(super) fn end_pause(&self, lead: &mut Lead, now: Nanos, desk: &mut Desk) {
        let is_full = self.plan.slot.is_full()
            && !self.has_room(lead)
            && !(self.frees_descriptor(desk) && self.has_room(lead));
        if is_full && (!self.draining.load(Relaxed) || self.closing.load(Relaxed)) {
            self.send_all_on(lead);
        }
        let mut table = lock(&self.table);
        table.pause = is_full.then_some(now + PAUSE);
        if !is_full && self.plan.slot.is_full() {
            log::info!("There are free descriptors again");
            self.plan.slot.set_full(false);
        }
        self.adjust_listening(&mut table);
    }

    /// Until when a worker that could not accept does not listen.
    pub(super) fn next_look_for_room(&self) -> Nanos {
        clock::monotonic() + PAUSE
    }

    fn send_all_on(&self, lead: &mut Lead) {
        let refused: usize = (0..self.plan.listeners.len()).map(|index| self.refer(index, lead)).sum();
        if refused > 0 {
            log::warn!("Answered {refused} connection(s) with 503, as no descriptor is left (ulimit -n)");
        }
        for _ in 0..MOST {
            let _expected = self.roll.expect();
            let Ok(Some(handed)) = self.take_letter(lead) else {
                break;
            };
            self.send_on(handed);
            if self.others_have_room() {
                // It may be the next in the mailbox.
                break;
            }
        }
        self.restore(lead);
    }

    /// Sends on who waits at a listener; returns how many had to be turned away.
    fn refer(&self, listener: usize, lead: &mut Lead) -> usize {
        let mut refused = 0;
        for _ in 0..MOST {
            self.restore(lead);
            lead.reserve.give_up();
            let Ok(Some(Arrival { comes: Comes::New(fd, peer, _), expected: _expected })) =
                self.accept_from(listener)
            else {
                break;
            };
            let papers = self.first_papers(peer, listener);
            if self.others_have_room() && self.plan.mailbox.send(fd.as_fd(), papers, &[]).is_ok() {
                continue;
            }
            match papers.secure {
                // A handshake would take longer than there is.
                true => crash::end(fd.as_raw_fd()),
                false => _ = crash::say(fd.as_raw_fd(), self.pages.unavailable()),
            }
            refused += 1;
        }
        self.restore(lead);
        refused
    }

    /// Of a connection that has just been accepted.
    fn first_papers(&self, peer: Peer, listener: usize) -> Papers {
        let preface =
            self.plan.introductions.as_ref().map(|introductions| introductions.preface(peer.identity()));
        Papers {
            peer,
            listener: self.plan.listeners[listener].id(),
            requests: 0,
            deadline: clock::monotonic() + self.plan.settings.header_timeout,
            secure: self.plan.tls.is_some(),
            preface: preface.unwrap_or(Preface::None),
            origin: None,
        }
    }
}
