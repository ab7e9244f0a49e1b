//! Owns: taking connections from the listeners, and from other workers: when, how many, in which worker.
//! Rule: a worker takes when it could serve; the kernel's backlog and the mailbox are the common queues of all workers.
//! Never: decides what becomes of a connection.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use super::roll::Expected;
use super::table::{Entry, Job, Table};
use super::{lock, room, EventLoop, Lead, LISTENER, MAILBOX};
use crate::conn::{Conn, Desk, Event};
use crate::handoff::Handed;
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::{is_gone, Interest};
use crate::sys::{crash, socket};
use crate::transport::{Peer, Transport};

/// Connections accepted in a row before those that wait have their turn.
const ACCEPT_TURN: usize = 16;

/// Where connections come from; the number is the listener's in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Listener(usize),
    Mailbox,
}

/// A connection that has just been taken.
pub(super) struct Arrival<'a> {
    pub(super) comes: Comes,
    pub(super) expected: Expected<'a>,
}

pub(super) enum Comes {
    /// With the number of its listener.
    New(OwnedFd, Peer, usize),
    Handed(Handed),
}

impl EventLoop {
    pub(super) fn listen(&self, table: &mut Table) -> io::Result<()> {
        for source in self.sources() {
            self.watch_source(source)?;
        }
        table.listening = true;
        Ok(())
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        (0..self.plan.listeners.len()).map(Source::Listener).chain([Source::Mailbox])
    }

    fn source_fd(&self, source: Source) -> BorrowedFd<'_> {
        match source {
            Source::Listener(index) => self.plan.listeners[index].as_fd(),
            Source::Mailbox => self.plan.mailbox.as_fd(),
        }
    }

    fn watch_source(&self, source: Source) -> io::Result<()> {
        let token = match source {
            Source::Listener(index) => LISTENER | index as u64,
            Source::Mailbox => MAILBOX,
        };
        self.poller.add(self.source_fd(source), token, Interest::Accept)
    }

    /// Listens, or stops, as the number of connections, the drain and a pause want it.
    pub(super) fn adjust_listening(&self, table: &mut Table) {
        let room = table.has_place(self.plan.most_connections);
        let free = !table.rescued && !table.frozen;
        let wanted = room && free && table.pause.is_none() && !self.draining.load(Relaxed);
        if wanted == table.listening {
            return;
        }
        if !wanted {
            return self.stop_listening(table);
        }
        if let Err(e) = self.listen(table) {
            self.put_off_listening(table, &e);
        }
    }

    fn stop_listening(&self, table: &mut Table) {
        table.listening = false;
        for source in self.sources() {
            // An error could only mean that it is out already.
            let _ = self.poller.remove(self.source_fd(source));
        }
    }

    /// The kernel has no room for watching all of them (epoll_ctl(2), ENOMEM, ENOSPC): none is, and it is tried again.
    fn put_off_listening(&self, table: &mut Table, e: &io::Error) {
        log::error!("Cannot watch the listeners: {e}");
        self.stop_listening(table);
        table.pause = Some(self.next_look_for_room());
        // Whoever leads may wait for something later.
        self.waker.wake();
    }

    /// By a thread that has got the lead. It is free: what the helper has stopped for want of such a thread goes on.
    pub(super) fn come_back(&self, lead: &mut Lead) {
        if std::mem::take(&mut lead.rescued) {
            let mut table = lock(&self.table);
            table.rescued = false;
            self.adjust_listening(&mut table);
        }
    }

    /// Takes one connection and reads it at once: its request is usually there already, and a connection that closes
    /// after its response never enters the poller.
    pub(super) fn accept_turn(
        &self,
        source: Source,
        left: usize,
        lead: &mut Lead,
        desk: &mut Desk,
    ) -> Option<Job> {
        if !self.may_accept() {
            return None;
        }
        let arrival = match self.arrival(source, lead) {
            Ok(Some(arrival)) => arrival,
            Ok(None) => {
                self.exhausted(source);
                return None;
            }
            Err(e) if room::is_want(&e) && self.frees_descriptor(desk) => {
                lead.accepts.push((source, left));
                return None;
            }
            Err(e) => {
                self.accept_failed(&e, source, lead);
                return None;
            }
        };
        if left > 1 {
            lead.accepts.push((source, left - 1));
        }
        self.make_place(desk);
        let job = self.arrived(arrival, desk);
        self.requeue(source);
        job
    }

    /// What a source has, if anything.
    pub(super) fn arrival(&self, source: Source, lead: &mut Lead) -> io::Result<Option<Arrival<'_>>> {
        let Source::Listener(index) = source else {
            let expected = self.roll.expect();
            let handed = self.letter(lead)?;
            return Ok(handed.map(|handed| Arrival { comes: Comes::Handed(handed), expected }));
        };
        self.accept_from(index)
    }

    pub(super) fn accept_from(&self, index: usize) -> io::Result<Option<Arrival<'_>>> {
        let expected = self.roll.expect();
        loop {
            match socket::accept(self.plan.listeners[index].as_fd()) {
                Ok((fd, address)) => {
                    let comes = Comes::New(fd, Peer::at(&address), index);
                    return Ok(Some(Arrival { comes, expected }));
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // It was given up a moment ago, by `exhausted`.
                    Some(libc::ENOTSOCK) if self.closing.load(Relaxed) => return Ok(None),
                    // Somebody was there and has gone, accept(2).
                    Some(libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
                    _ => return Err(e),
                },
            }
        }
    }

    /// Nobody waits there any more. A listener that no worker will look at again is given up at this moment: who comes
    /// later is refused, instead of waiting for nobody.
    pub(super) fn exhausted(&self, source: Source) {
        if let (Source::Listener(index), true) = (source, self.closing.load(Relaxed)) {
            self.plan.listeners[index].close();
        }
    }

    /// Alone, a worker takes what there is; beside others it takes one connection, for which it is then the one to serve.
    pub(super) fn accept_turns(&self) -> usize {
        match self.plan.workers {
            1 => ACCEPT_TURN,
            _ => 1,
        }
    }

    /// The kernel wakes the worker that was first to wait; whoever has taken something goes to the end of that queue.
    fn requeue(&self, source: Source) {
        if self.plan.workers == 1 {
            return;
        }
        // Locked, as the helper may stop listening meanwhile.
        let mut table = lock(&self.table);
        if !table.listening {
            return;
        }
        let requeued = self.poller.remove(self.source_fd(source)).and_then(|()| self.watch_source(source));
        if let Err(e) = requeued {
            self.put_off_listening(&mut table, &e);
        }
    }

    fn source_name(&self, source: Source) -> String {
        match source {
            Source::Listener(index) => self.plan.listeners[index].local().to_string(),
            Source::Mailbox => "the mailbox".into(),
        }
    }

    fn may_accept(&self) -> bool {
        let mut table = lock(&self.table);
        if table.listening && !table.has_place(self.plan.most_connections) {
            // The last that was idle is in use again.
            self.adjust_listening(&mut table);
        }
        table.listening || self.draining.load(Relaxed)
    }

    pub(super) fn accept_failed(&self, e: &io::Error, source: Source, lead: &mut Lead) {
        if crash::is_near() {
            crash::wait_for_the_end();
        }
        if !room::is_want(e) || !self.plan.slot.is_full() {
            log::error!("Cannot accept on {}: {e}", self.source_name(source));
        }
        if room::is_want(e) {
            self.become_full(lead);
        }
        let mut table = lock(&self.table);
        table.pause = Some(self.next_look_for_room());
        self.adjust_listening(&mut table);
    }

    fn arrived(&self, arrival: Arrival<'_>, desk: &mut Desk) -> Option<Job> {
        let is_new = matches!(arrival.comes, Comes::New(..));
        let mut job = self.admit(arrival, desk)?;
        // Of a connection that came here the kernel has told no other worker.
        let leaves = self.draining.load(Relaxed) && !self.closing.load(Relaxed);
        if leaves || is_new && self.is_crowded() {
            self.move_or_keep(job, &mut 1);
            return None;
        }
        let next = job.conn.advance(Event::Readable, &mut self.turn(desk, clock::monotonic()));
        let job = self.settle(job, next)?;
        // It may have waited for long in the backlog, or on its way.
        if is_gone(job.conn.as_fd()) {
            self.abandon(job, desk)
        } else {
            Some(job)
        }
    }

    /// Gives a connection its place in the table.
    pub(super) fn admit(&self, arrival: Arrival<'_>, desk: &mut Desk) -> Option<Job> {
        let mut turn = self.turn(desk, clock::monotonic());
        let Arrival { comes, expected } = arrival;
        let conn = Box::new(match comes {
            Comes::New(fd, peer, listener) => {
                let transport = self.transport(fd, peer, self.plan.tls.is_some())?;
                let mut conn = Conn::new(transport, peer, listener, &mut turn);
                if let Some(introductions) = &self.plan.introductions {
                    conn.expect(introductions.preface(peer.identity()));
                }
                conn
            }
            Comes::Handed(Handed { fd, papers, octets }) => {
                let peer = papers.peer;
                let listener = self.plan.listeners.iter().position(|known| known.id() == papers.listener);
                let Some(listener) = listener else {
                    log::debug!("A connection from {peer} came by an address no longer served");
                    return None;
                };
                let transport = self.transport(fd, peer, papers.secure)?;
                let mut conn = Conn::new(transport, peer, listener, &mut turn);
                conn.resume(&papers, octets, &self.plan.settings.trust);
                conn
            }
        });
        let key = self.enter(&conn, expected);
        Some(Job { key, conn })
    }

    /// A connection stays what it was when it was accepted, whatever a reload has made of the listener.
    fn transport(&self, fd: OwnedFd, peer: Peer, secure: bool) -> Option<Transport> {
        if !secure {
            return Some(Transport::Plain(fd));
        }
        let Some(tls) = &self.plan.tls else {
            log::debug!("A connection from {peer} wants TLS, which is no longer spoken");
            return None;
        };
        match tls.session() {
            Ok(session) => Some(Transport::secure(fd, session)),
            Err(e) => {
                log::error!("Cannot begin TLS with {peer}: {e}");
                None
            }
        }
    }

    fn enter(&self, conn: &Conn, expected: Expected<'_>) -> usize {
        let (fd, peer, tls) = (conn.as_fd().as_raw_fd(), conn.client(), conn.transport.tls());
        let mut table = lock(&self.table);
        table.generation = table.generation.wrapping_add(1);
        let entry = Entry {
            conn: None,
            fd,
            peer,
            tls,
            outbox: None,
            generation: table.generation,
            watched: None,
            queued: Nanos::MAX,
        };
        let key = table.entries.insert(entry);
        self.roll.enter(key, conn, fd, expected);
        self.plan.slot.set_connections(table.entries.len());
        if !table.has_place(self.plan.most_connections) {
            self.adjust_listening(&mut table);
        }
        key
    }
}
