//! Owns: what a client was too slow to take of a response while the application makes the rest of it, and how much of that
//! one connection and all connections of a worker may hold.
//! Rule: bytes leave in their order: whoever sends, or adds, has the lock. What the thread has taken back nobody else
//! sends, so the socket is still the connection's wherever it is used.
//! Never: waits, frames, watches for room.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::buffer::{Charge, Flushed, OutQueue, Parcel};
use crate::transport::Transport;

/// So many connections may hold as much as one may; beyond them a thread waits for its client.
const FULL_CONNECTIONS: usize = 128;

/// By whom an outbox is sent while its thread is in the application.
pub trait Watch {
    /// The outbox is to be sent whenever the connection, whose socket `fd` is, has room, until it is empty.
    fn watch(&self, fd: BorrowedFd<'_>, outbox: &Arc<Outbox>);

    /// The thread sends it from now on.
    fn unwatch(&self);
}

/// How much may be kept.
pub struct Budget {
    /// For one connection; 0 is nothing.
    share: usize,
    /// By all connections, and how much that may become.
    used: Arc<AtomicUsize>,
    most: usize,
}

impl Budget {
    pub fn new(share: usize) -> Budget {
        Budget { share, used: Arc::default(), most: share.saturating_mul(FULL_CONNECTIONS) }
    }

    /// How much a connection may hold at the moment.
    pub fn limit(&self) -> usize {
        match self.used.load(Relaxed) < self.most {
            true => self.share,
            false => 0,
        }
    }
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// All of it was kept.
    Kept,
    /// It was not: nothing is left that would have to be sent before it.
    Empty,
    /// It was not: there is no room for it.
    Full,
}

pub struct Outbox(Mutex<Inner>);

struct Inner {
    /// None: the thread has taken back what was left.
    transport: Option<Transport>,
    queue: OutQueue,
    /// Nothing is left to be sent.
    idle: bool,
    gone: bool,
    /// By anybody.
    sent: usize,
}

impl Inner {
    fn flush(&mut self) -> io::Result<()> {
        let Some(transport) = self.transport.as_ref().filter(|_| !self.gone) else {
            return Ok(());
        };
        let held = self.queue.held();
        let flushed = self.queue.flush(transport);
        self.sent += held - self.queue.held().min(held);
        match flushed {
            Ok(flushed) => self.idle = flushed == Flushed::All,
            Err(e) => {
                (self.gone, self.idle) = (true, true);
                self.queue.clear();
                return Err(e);
            }
        }
        Ok(())
    }
}

impl Outbox {
    /// For the connection of `transport`.
    ///
    /// Errors: there is no descriptor left.
    pub fn new(transport: &Transport, budget: &Budget) -> io::Result<Arc<Outbox>> {
        let mut queue = OutQueue::default();
        queue.charge(Charge::new(budget.used.clone()));
        let transport = Some(transport.share()?);
        Ok(Arc::new(Outbox(Mutex::new(Inner { transport, queue, idle: true, gone: false, sent: 0 }))))
    }

    /// It is never poisoned: a thread that panics ends the process.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// By the thread: keeps what is unsent of a block where all that is kept stays within `limit`, having sent what it can.
    ///
    /// Errors: the client takes no more.
    pub fn put(&self, parcel: &Parcel<'_>, limit: usize, socket_is_full: bool) -> io::Result<Put> {
        let mut inner = self.lock();
        let fits = |inner: &Inner| limit > 0 && inner.queue.held() + parcel.left() <= limit;
        if !socket_is_full && !inner.idle && !fits(&inner) {
            inner.flush()?;
        }
        if inner.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if inner.idle && !socket_is_full {
            return Ok(Put::Empty);
        }
        if !fits(&inner) {
            return Ok(Put::Full);
        }
        inner.idle = false;
        parcel.unsent().into_iter().for_each(|bytes| inner.queue.push_copy(bytes));
        Ok(Put::Kept)
    }

    /// By whoever watches: sends what the socket has room for. `done` is called, before anything can be added, when there
    /// is nothing left to be watched for.
    pub fn send(&self, done: impl FnOnce()) {
        let mut inner = self.lock();
        // What broke is for the thread to find.
        let _ = inner.flush();
        if inner.idle || inner.transport.is_none() {
            done();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.lock().idle
    }

    /// Whether the client takes no more.
    pub fn is_gone(&self) -> bool {
        self.lock().gone
    }

    pub fn sent(&self) -> usize {
        self.lock().sent
    }

    /// By the thread: what is left, which nobody else sends any more.
    pub fn take_back(&self) -> OutQueue {
        let mut inner = self.lock();
        inner.transport = None;
        std::mem::take(&mut inner.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn pair() -> (Transport, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Transport::Plain(near.into()), far)
    }

    fn parcel(bytes: &[u8]) -> Parcel<'_> {
        Parcel { parts: [b"", bytes, b""], at: 0 }
    }

    fn fill(transport: &Transport) -> usize {
        let mut sent = 0;
        while let Ok(bytes) = transport.send(&[b'.'; 4096], false) {
            sent += bytes;
        }
        sent
    }

    #[test]
    fn blocks_leave_in_order_and_within_the_limit() {
        let (transport, mut far) = pair();
        let budget = Budget::new(100);
        let outbox = Outbox::new(&transport, &budget).unwrap();
        assert_eq!(outbox.put(&parcel(b"x"), 100, false).unwrap(), Put::Empty, "the thread sends it itself");
        let mut before = fill(&transport);
        let mut expected = Vec::new();
        for number in 0..10u8 {
            let block = [b'a' + number; 10];
            assert_eq!(outbox.put(&parcel(&block), budget.limit(), number == 0).unwrap(), Put::Kept);
            expected.extend(block);
        }
        assert_eq!(outbox.put(&parcel(b"x"), budget.limit(), false).unwrap(), Put::Full);
        let mut done = false;
        while !done {
            let mut room = vec![0; before.clamp(1, 65536)];
            before -= far.read(&mut room).unwrap();
            outbox.send(|| done = true);
        }
        assert!(outbox.is_idle() && outbox.sent() == 100);
        drop(transport);
        drop(outbox.take_back());
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).unwrap();
        assert_eq!(rest[before..], expected);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn all_connections_together_have_a_limit() {
        let budget = Budget::new(1000);
        let block = [b'x'; 1000];
        let mut kept = Vec::new();
        while budget.limit() > 0 {
            let (transport, far) = pair();
            fill(&transport);
            let outbox = Outbox::new(&transport, &budget).unwrap();
            assert_eq!(outbox.put(&parcel(&block), budget.limit(), true).unwrap(), Put::Kept);
            kept.push((outbox.take_back(), far));
        }
        assert_eq!(kept.len(), FULL_CONNECTIONS, "what the thread has taken back still counts");
        kept.pop();
        assert_eq!(budget.limit(), 1000);
        drop(kept);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn a_client_that_left_is_an_error_for_the_thread() {
        let (transport, far) = pair();
        fill(&transport);
        let outbox = Outbox::new(&transport, &Budget::new(100)).unwrap();
        assert_eq!(outbox.put(&parcel(b"x"), 100, true).unwrap(), Put::Kept);
        drop(far);
        let mut done = false;
        outbox.send(|| done = true);
        assert!(done && outbox.put(&parcel(b"y"), 100, false).is_err());
    }

    #[test]
    fn nobody_sends_what_was_taken_back() {
        let (transport, _far) = pair();
        fill(&transport);
        let outbox = Outbox::new(&transport, &Budget::new(100)).unwrap();
        assert_eq!(outbox.put(&parcel(b"x"), 100, true).unwrap(), Put::Kept);
        let left = outbox.take_back();
        let mut done = false;
        outbox.send(|| done = true);
        assert!(done && outbox.sent() == 0 && left.held() == 1);
    }
}
