//! Owns: octets on their way: the scratch a thread reads and parses in, and the queue of what a peer was too slow to take.
//! Rule: one scratch a thread, shared by all its connections; a connection owns memory only while something of it waits.
//! Never: knows HTTP.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use crate::sys::memory::Pages;
use crate::sys::socket;
use crate::transport::Transport;

/// The most octets taken from a socket at once.
pub const READ_SIZE: usize = 64 * 1024;
/// The most octets of a file sent before other connections have their turn.
const FILE_TURN: usize = 1 << 20;

/// Where input is received and parsed. `start..end` are the octets not consumed yet, of the connection being served.
pub struct Scratch {
    bytes: Pages,
    pub start: usize,
    pub end: usize,
}

impl Scratch {
    /// Room for the longest head and a read behind it.
    pub fn new(longest_head: usize) -> Scratch {
        Scratch { bytes: Pages::new(longest_head + READ_SIZE), start: 0, end: 0 }
    }

    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub fn range(&self, start: usize, end: usize) -> &[u8] {
        &self.bytes[start..end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    /// Brings a connection's kept octets back, leaving its own buffer empty but allocated.
    pub fn load(&mut self, kept: &mut Vec<u8>) {
        self.start = 0;
        self.end = kept.len();
        self.bytes[..kept.len()].copy_from_slice(kept);
        kept.clear();
    }

    /// Gives the unconsumed octets to a connection that will wait; memory goes back when there are none.
    pub fn store(&mut self, kept: &mut Vec<u8>) {
        if self.is_empty() {
            *kept = Vec::new();
        } else {
            kept.clear();
            kept.extend_from_slice(self.unread());
        }
        self.start = 0;
        self.end = 0;
    }

    /// Takes `bytes` out of the unconsumed ones, behind the first `at`.
    pub fn remove(&mut self, at: usize, bytes: usize) {
        let from = self.start + at;
        self.bytes.copy_within(from + bytes..self.end, from);
        self.end -= bytes;
    }

    /// Gives the unconsumed octets up.
    pub fn forget(&mut self) {
        self.start = self.end;
    }

    /// Moves the unconsumed octets to the front when there is no room for a read behind them.
    pub fn make_room(&mut self) {
        if self.start > 0 && self.bytes.len() - self.end < READ_SIZE {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// One read behind the unconsumed octets; 0 is the end of the peer's stream.
    pub fn receive(&mut self, transport: &Transport) -> io::Result<usize> {
        self.make_room();
        let most = self.bytes.len().min(self.end + READ_SIZE);
        let received = transport.receive(&mut self.bytes[self.end..most])?;
        self.end += received;
        Ok(received)
    }

    /// One read to `at`, discarding what was behind it.
    pub fn receive_at(&mut self, at: usize, transport: &Transport) -> io::Result<usize> {
        let most = self.bytes.len().min(at + READ_SIZE);
        self.end = at + transport.receive(&mut self.bytes[at..most])?;
        Ok(self.end - at)
    }

    /// As `receive`, from the socket itself, where the octets stay until `take` takes some of them.
    pub fn peek(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.make_room();
        let most = self.bytes.len().min(self.end + READ_SIZE);
        let seen = socket::peek(fd, &mut self.bytes[self.end..most])?;
        self.end += seen;
        Ok(seen)
    }

    /// Takes the first so many of the last `peeked` octets, and forgets the others.
    ///
    /// Errors: the kernel's; that it has not that many.
    pub fn take(&mut self, octets: usize, peeked: usize, fd: BorrowedFd<'_>) -> io::Result<()> {
        let from = self.end - peeked;
        self.end = from + octets;
        match octets == 0 || socket::receive(fd, &mut self.bytes[from..self.end])? == octets {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Reads and forgets; returns how much.
    pub fn discard(&mut self, transport: &Transport) -> io::Result<usize> {
        transport.discard(&mut self.bytes[..READ_SIZE])
    }
}

/// Octets owned by somebody else, such as a Python bytes object.
pub type Shared = Box<dyn AsRef<[u8]> + Send>;

/// Something to send, and how far it has been sent.
pub enum Segment {
    Bytes { bytes: Vec<u8>, at: usize },
    Shared { owner: Shared, at: usize },
    File { file: OwnedFd, at: u64, left: u64 },
}

/// Small pieces are put together into one of this size.
const PIECE: usize = 16 * 1024;

/// A part of what all queues of a worker together may hold; given back when it is dropped.
pub struct Charge {
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    pub fn new(used: Arc<AtomicUsize>) -> Charge {
        Charge { used, bytes: 0 }
    }

    fn take(&mut self, bytes: usize) {
        self.used.fetch_add(bytes, Relaxed);
        self.bytes += bytes;
    }

    /// Less than was asked for where not all of the queue was charged.
    fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.used.fetch_sub(bytes, Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// What waits for the peer, in order. Bounded by what one response had materialised when the application returned, and by
/// what may be kept while it goes on.
#[derive(Default)]
pub struct OutQueue {
    segments: VecDeque<Segment>,
    /// For what `push_copy` adds.
    charge: Option<Charge>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    All,
    /// The socket is full, or this connection had its turn; with the octets that left meanwhile.
    Some(usize),
}

impl OutQueue {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub fn push(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    /// Counts what is added by `push_copy`, until it has left.
    pub fn charge(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    /// How much of what was charged is left.
    pub fn held(&self) -> usize {
        self.charge.as_ref().map_or(0, |charge| charge.bytes)
    }

    /// Adds a copy, to the last piece where that is small.
    pub fn push_copy(&mut self, added: &[u8]) {
        if added.is_empty() {
            return;
        }
        match self.segments.back_mut() {
            Some(Segment::Bytes { bytes, .. }) if bytes.len() + added.len() <= PIECE => {
                bytes.extend_from_slice(added);
            }
            _ => self.push(Segment::Bytes { bytes: added.to_vec(), at: 0 }),
        }
        if let Some(charge) = &mut self.charge {
            charge.take(added.len());
        }
    }

    pub fn clear(&mut self) {
        *self = OutQueue::default();
    }

    fn has_left(&mut self, bytes: usize) {
        if let Some(charge) = &mut self.charge {
            charge.give_back(bytes);
        }
    }

    /// Sends until everything is gone, the socket is full or a turn is over.
    pub fn flush(&mut self, transport: &Transport) -> io::Result<Flushed> {
        let mut sent = 0;
        while let Some(segment) = self.segments.front_mut() {
            match send_segment(segment, transport) {
                Ok((n, done)) => {
                    sent += n;
                    if done {
                        self.segments.pop_front();
                    }
                    self.has_left(n);
                    if !done && sent >= FILE_TURN {
                        return Ok(Flushed::Some(sent));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Some(sent)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
        }
        if self.segments.capacity() > 0 {
            self.segments = VecDeque::new();
        }
        match transport.flush()? {
            true => Ok(Flushed::All),
            false => Ok(Flushed::Some(sent)),
        }
    }
}

/// One system call; the octets it took and whether the segment is finished.
fn send_segment(segment: &mut Segment, transport: &Transport) -> io::Result<(usize, bool)> {
    match segment {
        Segment::Bytes { bytes, at } => {
            let sent = transport.send(&bytes[*at..], false)?;
            *at += sent;
            Ok((sent, *at == bytes.len()))
        }
        Segment::Shared { owner, at } => {
            let bytes = (**owner).as_ref();
            let sent = transport.send(&bytes[*at..], false)?;
            *at += sent;
            Ok((sent, *at == bytes.len()))
        }
        Segment::File { file, at, left } => {
            if *left == 0 {
                return Ok((0, true));
            }
            let most = (*left).min(FILE_TURN as u64) as usize;
            match transport.send_file(file.as_fd(), at, most)? {
                // The file became shorter than what the head promised: the response cannot be completed.
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                sent => {
                    *left -= sent as u64;
                    Ok((sent, *left == 0))
                }
            }
        }
    }
}

/// A head, a block and its framing on their way in one call; `at` counts over all three.
pub struct Parcel<'a> {
    pub parts: [&'a [u8]; 3],
    pub at: usize,
}

impl Parcel<'_> {
    fn length(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    pub fn is_sent(&self) -> bool {
        self.at == self.length()
    }

    pub fn left(&self) -> usize {
        self.length() - self.at
    }

    pub fn unsent(&self) -> [&[u8]; 3] {
        std::array::from_fn(|i| &self.parts[i][self.sent_of(i)..])
    }

    /// What of part `index` has been sent.
    pub fn sent_of(&self, index: usize) -> usize {
        let before: usize = self.parts[..index].iter().map(|part| part.len()).sum();
        self.at.saturating_sub(before).min(self.parts[index].len())
    }

    /// Sends until all of it left or the socket is full; false when it is full, which with TLS can be after the last octet
    /// was taken.
    pub fn send(&mut self, transport: &Transport) -> io::Result<bool> {
        while !self.is_sent() {
            let left = self.unsent();
            let sent = match left {
                [only, [], []] | [[], only, []] | [[], [], only] => transport.send(only, false),
                _ => transport.send_vectored(&left.map(IoSlice::new)),
            };
            match sent {
                Ok(n) => self.at += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
        }
        transport.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Transport, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Transport::Plain(near.into()), far)
    }

    #[test]
    fn a_parcel_and_the_queue_deliver_every_octet_in_order() {
        let (transport, mut far) = pair();
        let body: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
        let mut parcel = Parcel { parts: [b"head", &body, b"tail"], at: 0 };
        assert!(!parcel.send(&transport).unwrap());
        assert_eq!(parcel.sent_of(0), 4);
        assert_eq!(parcel.sent_of(2), 0);
        let mut queue = OutQueue::default();
        queue.push(Segment::Shared { owner: Box::new(body.clone()), at: parcel.sent_of(1) });
        queue.push(Segment::Bytes { bytes: b"tail".to_vec(), at: 0 });
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).unwrap();
            all
        });
        while queue.flush(&transport).unwrap() != Flushed::All {
            crate::sys::poll::wait_one(transport.as_fd(), crate::sys::poll::Interest::Write, None).unwrap();
        }
        drop(transport);
        let all = reader.join().unwrap();
        assert_eq!(all.len(), body.len() + 8);
        assert!(all.starts_with(b"head") && all[4..4 + body.len()] == body[..] && all.ends_with(b"tail"));
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let (transport, _far) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut queue = OutQueue::default();
        queue.push(Segment::File { file: file.into(), at: 0, left: 10 });
        assert!(queue.flush(&transport).is_err());
    }

    #[test]
    fn a_read_takes_no_more_than_there_is_room_for() {
        let (transport, mut far) = pair();
        let mut scratch = Scratch::new(1024);
        far.set_nonblocking(true).unwrap();
        while !scratch.is_full() {
            while far.write(&[b'x'; 4096]).is_ok() {}
            assert!(scratch.receive(&transport).unwrap() <= READ_SIZE);
        }
        assert_eq!(scratch.unread().len(), 1024 + READ_SIZE);
        scratch.start += READ_SIZE;
        assert!(scratch.receive(&transport).unwrap() <= READ_SIZE);
        assert!(scratch.bytes.len() == 1024 + READ_SIZE && scratch.unread().len() <= 1024 + READ_SIZE);
    }

    #[test]
    fn scratch_keeps_what_was_not_consumed() {
        let (transport, mut far) = pair();
        let mut scratch = Scratch::new(1024);
        far.write_all(b"abcdef").unwrap();
        assert_eq!(scratch.receive(&transport).unwrap(), 6);
        scratch.start += 2;
        let mut kept = Vec::new();
        scratch.store(&mut kept);
        assert_eq!(kept, b"cdef");
        scratch.load(&mut kept);
        far.write_all(b"gh").unwrap();
        scratch.receive(&transport).unwrap();
        assert_eq!(scratch.unread(), b"cdefgh");
        assert!(kept.is_empty());
    }
}
