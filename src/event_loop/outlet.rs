//! Owns: sending what a client was too slow to take, while a thread is in the application for it.
//! Rule: whoever finds room in the socket sends, the leading thread or the helper; the lock of the outbox goes before that
//! of the table.
//! Never: calls the application, waits, closes.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::table::token;
use super::{lock, EventLoop};
use crate::exchange::{Outbox, Watch};
use crate::sys::poll::Interest;

/// The connection under a key, which a thread serves.
pub(super) struct Outlet<'a> {
    pub(super) event_loop: &'a EventLoop,
    pub(super) key: usize,
}

impl Watch for Outlet<'_> {
    fn watch(&self, fd: BorrowedFd<'_>, outbox: &Arc<Outbox>) {
        let poller = &self.event_loop.poller;
        let mut table = lock(&self.event_loop.table);
        // A thread serves it, so it is there.
        let entry = &mut table.entries[self.key];
        entry.outbox = Some(outbox.clone());
        let token = token(self.key, entry.generation);
        let watched = match entry.watched {
            Some(Interest::Write) => return,
            Some(_) => poller.modify(fd, token, Interest::Write),
            None => poller.add(fd, token, Interest::Write),
        };
        match watched {
            Ok(()) => entry.watched = Some(Interest::Write),
            // The thread sends it when it has more, or has ended.
            Err(e) => log::error!("Cannot watch a connection for room: {e}"),
        }
    }

    fn unwatch(&self) {
        let mut table = lock(&self.event_loop.table);
        table.entries[self.key].outbox = None;
        self.event_loop.put_off(&mut table, self.key);
    }
}

impl EventLoop {
    /// The connection has room, or is broken.
    pub(super) fn send_outbox(&self, key: usize, wanted: u64, outbox: &Arc<Outbox>) {
        outbox.send(|| {
            let mut table = lock(&self.table);
            let entry = table.entries.get(key).filter(|entry| token(key, entry.generation) == wanted);
            // It may be back from its thread, and wait for something else.
            let is_its = |sent: &Arc<Outbox>| Arc::ptr_eq(sent, outbox);
            if entry.is_some_and(|entry| entry.outbox.as_ref().is_some_and(is_its)) {
                self.put_off(&mut table, key);
            }
        });
    }
}
