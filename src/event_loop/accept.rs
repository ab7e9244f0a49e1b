//! Owns: taking connections from the listeners: when, how many, in which worker.
//! Rule: a worker accepts when it could serve; the kernel's backlog is the one common queue of all workers.
//! Never: decides what becomes of a connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;

use super::table::{Entry, Job, Table};
use super::{lock, EventLoop, Lead, LISTENER};
use crate::conn::{Conn, Desk, Event, Next};
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::Interest;
use crate::sys::socket;
use crate::transport::{Peer, Transport};

/// Connections accepted in a row before those that wait have their turn.
const ACCEPT_TURN: usize = 16;
/// How long nothing is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Nanos = SECOND / 10;

impl EventLoop {
    pub(super) fn listen(&self, table: &mut Table) -> io::Result<()> {
        for (index, listener) in self.plan.listeners.iter().enumerate() {
            self.poller.add(&**listener, LISTENER | index as u64, Interest::Accept)?;
        }
        table.listening = true;
        Ok(())
    }

    /// Listens, or stops, as the number of connections, the drain and a pause want it.
    pub(super) fn adjust_listening(&self, table: &mut Table) {
        let room = table.entries.len() < self.plan.most_connections;
        let wanted = room && table.pause.is_none() && !self.draining.load(Relaxed);
        if wanted == table.listening {
            return;
        }
        if wanted {
            if let Err(e) = self.listen(table) {
                log::error!("Cannot watch the listeners: {e}");
            }
            return;
        }
        table.listening = false;
        for listener in &self.plan.listeners {
            // It was added by `listen`; an error could only mean that it is out already.
            let _ = self.poller.remove(&**listener);
        }
    }

    /// Accepts one connection and reads it at once: its request is usually there already, and a connection that closes
    /// after its response never enters the poller.
    pub(super) fn accept_turn(
        &self,
        listener: usize,
        left: usize,
        lead: &mut Lead,
        desk: &mut Desk,
    ) -> Option<Job> {
        if !self.may_accept() {
            return None;
        }
        match socket::accept(self.plan.listeners[listener].as_fd()) {
            Ok((fd, address)) => {
                if left > 1 {
                    lead.accepts.push((listener, left - 1));
                }
                self.accepted(fd, address, listener, desk)
            }
            Err(e) => {
                self.accept_failed(&e, listener);
                None
            }
        }
    }

    /// Alone, a worker takes what there is; beside others it takes one connection, for which it is then the one to serve.
    pub(super) fn accept_turns(&self) -> usize {
        match self.plan.workers {
            1 => ACCEPT_TURN,
            _ => 1,
        }
    }

    /// The kernel wakes the worker that was first to wait; whoever has accepted goes to the end of that queue.
    fn requeue(&self, listener: usize) {
        if self.plan.workers == 1 || !lock(&self.table).listening {
            return;
        }
        let socket = &*self.plan.listeners[listener];
        let requeued = self.poller.remove(socket).and_then(|()| {
            let token = LISTENER | listener as u64;
            self.poller.add(socket, token, Interest::Accept)
        });
        if let Err(e) = requeued {
            log::error!("Cannot watch {}: {e}", socket.local());
        }
    }

    fn may_accept(&self) -> bool {
        let table = lock(&self.table);
        table.listening || self.draining.load(Relaxed)
    }

    fn accept_failed(&self, e: &io::Error, listener: usize) {
        match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
            _ => {
                let local = self.plan.listeners[listener].local();
                log::error!("Cannot accept on {local}: {e}");
                let mut table = lock(&self.table);
                table.pause = Some(clock::monotonic() + ACCEPT_PAUSE);
                self.adjust_listening(&mut table);
            }
        }
    }

    fn accepted(
        &self,
        fd: OwnedFd,
        address: Option<SocketAddr>,
        listener: usize,
        desk: &mut Desk,
    ) -> Option<Job> {
        let peer = address.map_or(Peer::Unix, Peer::Tcp);
        let trusted = self.plan.trust.trusts(address.map(|address| address.ip()));
        let now = clock::monotonic();
        let number = fd.as_raw_fd();
        let mut turn = self.turn(desk, now);
        let mut conn = Box::new(Conn::new(Transport::Plain(fd), peer, listener, trusted, &mut turn));
        let next = conn.advance(Event::Readable, &mut turn);
        self.requeue(listener);
        if next == Next::Close {
            return None;
        }
        let key = self.enter(number);
        self.settle(Job { key, conn }, next)
    }

    fn enter(&self, fd: RawFd) -> usize {
        let mut table = lock(&self.table);
        table.generation = table.generation.wrapping_add(1);
        let entry = Entry { conn: None, fd, generation: table.generation, watched: None, queued: Nanos::MAX };
        let key = table.entries.insert(entry);
        if table.entries.len() >= self.plan.most_connections {
            self.adjust_listening(&mut table);
        }
        key
    }
}
