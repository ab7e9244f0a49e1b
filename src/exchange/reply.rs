//! Owns: the response as the application gives it: head, blocks, files, and the error page instead.
//! Rule: the framing that the head promised is kept to the byte. A block is sent as far as the socket takes it. The rest is
//! left to the loop, within bounds where the application goes on: beyond them it waits for its client.
//! Never: decides what becomes of the connection.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::outbox::{Outbox, Put};
use super::{Exchange, Release};
use crate::buffer::{Flushed, OutQueue, Parcel, Segment, Shared};
use crate::conn::is_transient;
use crate::http::reject::without_body;
use crate::http::response::{self, Delivery};
use crate::http::Reject;
use crate::sys::poll::Interest;
use crate::sys::{clock, fork};
use crate::timers::Pace;

/// Up to here a block is copied behind its head and leaves in one send; a copy is cheaper than a second iovec.
const COPY_LIMIT: usize = 16 * 1024;

/// The peer takes no more of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

#[derive(Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) delivery: Option<Delivery>,
    /// Octets still owed under `Delivery::Length`.
    pub(super) owed: u64,
    pub(super) sent: u64,
    pub(super) persistent: bool,
    /// The end of the connection is to be that of the response.
    pub(super) until_close: bool,
    pub(super) overlong: bool,
    pub(super) ended: bool,
    pub(super) gone: bool,
    /// This thread is the one to answer.
    pub(super) claimed: bool,
    /// Somebody else has answered: the request ran too long.
    pub(super) overtaken: bool,
    pub(super) wants_fields: bool,
    pub(super) fields: Vec<u8>,
    /// From the first block on that the client was too slow for.
    pub(super) outbox: Option<Arc<Outbox>>,
    /// While it holds something: until when the client has to take some of that, and how much it had taken.
    pub(super) outbox_pace: Option<(Pace, usize)>,
}

/// What the client was answered. The head is there for whoever asked in time to have it kept.
pub struct Answer<'e> {
    pub head: &'e [u8],
    pub status: u16,
    pub sent: u64,
    /// What Content-Length says, where the framing is a length.
    pub length: Option<u64>,
    pub chunked: bool,
}

impl Exchange<'_> {
    pub fn has_begun(&self) -> bool {
        self.reply.delivery.is_some()
    }

    /// From now on the head of the response is kept for `answer`.
    pub fn keep_head(&mut self) {
        self.reply.wants_fields = true;
    }

    pub fn answer(&self) -> Answer<'_> {
        let reply = &self.reply;
        let (head, status) = match reply.overtaken {
            true => (&[][..], Reject::AppTimeout.status()),
            false => (&reply.fields[..], reply.status),
        };
        let length = match reply.delivery {
            Some(Delivery::Length(_)) => Some(reply.sent + reply.owed),
            Some(Delivery::NoBody(length)) => length,
            _ => None,
        };
        let chunked = reply.delivery == Some(Delivery::Chunked);
        Answer { head, status, sent: reply.sent, length, chunked }
    }

    fn is_head_request(&self) -> bool {
        self.conn.head.start.method.of(self.head_octets()) == b"HEAD"
    }

    /// Decides the framing and completes the head in `out`. `known` is the length of a body that is all there.
    pub fn begin(&mut self, status: u16, content_length: Option<u64>, known: Option<u64>) {
        let version = self.conn.head.start.version;
        let delivery = response::delivery(version, self.is_head_request(), status, content_length, known);
        let body_read = self.body.whole || (self.body.decoder.is_done() && self.body.fault.is_none());
        self.reply.persistent = self.conn.head.persistent()
            && self.site.settings.keepalive > 0
            && !self.conn.is_last
            && delivery != Delivery::UntilClose
            && body_read
            && !self.site.closing.load(Relaxed);
        if self.reply.wants_fields {
            self.reply.fields.clone_from(&self.desk.out);
        }
        response::finish(delivery, self.reply.persistent, version, &mut self.desk.out);
        self.reply.status = status;
        self.reply.owed = if let Delivery::Length(length) = delivery { length } else { 0 };
        self.reply.until_close = delivery == Delivery::UntilClose;
        self.reply.delivery = Some(delivery);
    }

    /// Frames a block: what of it goes out, and what follows it. A chunk's size goes to `out`.
    fn frame<'d>(&mut self, data: &'d [u8], last: bool) -> (&'d [u8], &'static [u8]) {
        let (data, tail): (&[u8], &'static [u8]) = match self.reply.delivery {
            None | Some(Delivery::NoBody(_)) => (&[], b""),
            Some(Delivery::UntilClose) => (data, b""),
            Some(Delivery::Length(_)) => {
                let fits = (data.len() as u64).min(self.reply.owed) as usize;
                self.reply.owed -= fits as u64;
                self.reply.overlong |= fits < data.len();
                (&data[..fits], b"")
            }
            Some(Delivery::Chunked) if data.is_empty() => {
                (data, if last { response::LAST_CHUNK } else { b"" })
            }
            Some(Delivery::Chunked) => {
                response::chunk_size(data.len(), &mut self.desk.out);
                (data, if last { b"\r\n0\r\n\r\n" } else { b"\r\n" })
            }
        };
        self.reply.sent += data.len() as u64;
        (data, tail)
    }

    /// No later block can change what the client sees: stop asking the application for more.
    pub fn is_satisfied(&self) -> bool {
        match self.reply.delivery {
            Some(Delivery::NoBody(_)) => true,
            Some(Delivery::Length(_)) => self.reply.owed == 0,
            _ => false,
        }
    }

    /// Puts a small block behind what is unsent already, so that one send takes all.
    fn gather<'d>(&mut self, data: &'d [u8], tail: &'static [u8]) -> (&'d [u8], &'static [u8]) {
        let out = &mut self.desk.out;
        if out.len() + data.len() + tail.len() > COPY_LIMIT {
            return (data, tail);
        }
        out.extend_from_slice(data);
        out.extend_from_slice(tail);
        (&[], &[])
    }

    /// Before the first octet: makes sure that nobody else answers.
    fn claim(&mut self) -> Result<(), Gone> {
        if self.reply.gone || fork::is_foreign() {
            // What was sent may have broken off anywhere; and of forked processes the one answers that has the connection.
            return self.lost();
        }
        if self.reply.claimed || self.site.claim.begin_reply() {
            self.reply.claimed = true;
            if self.reply.until_close {
                self.conn.set_until_close(true);
            }
            return Ok(());
        }
        self.reply.overtaken = true;
        self.lost()
    }

    /// One try to send `out`, `data` and `tail`, of which `at` octets have left; true when all have.
    fn send(&mut self, data: &[u8], tail: &[u8], at: &mut usize) -> Result<bool, Gone> {
        self.claim()?;
        let mut parcel = Parcel { parts: [&self.desk.out, data, tail], at: *at };
        let sent = parcel.send(&self.conn.transport);
        *at = parcel.at;
        match sent {
            Ok(true) => self.desk.out.clear(),
            Ok(false) => return Ok(false),
            Err(_) => return self.lost(),
        }
        Ok(true)
    }

    fn lost<T>(&mut self) -> Result<T, Gone> {
        self.reply.gone = true;
        self.take_back();
        self.desk.out.clear();
        self.conn.out.clear();
        Err(Gone)
    }

    /// Sends a block, or keeps what the client does not take yet, to be sent while the application makes the next (PEP 3333,
    /// "Buffering and Streaming"). Where that would be too much it waits.
    pub fn write(&mut self, data: &[u8], release: Release<'_>) -> Result<(), Gone> {
        let (data, tail) = self.frame(data, false);
        let (data, tail) = self.gather(data, tail);
        let mut at = 0;
        let mut pace = None;
        self.site.silence.restart(clock::monotonic());
        while !self.deliver(data, tail, &mut at)? {
            let sent = at + self.reply.outbox.as_ref().map_or(0, |outbox| outbox.sent());
            self.wait_to_write(&mut pace, sent, release)?;
        }
        let is_out = match self.reply.outbox.clone() {
            Some(outbox) => self.check_pace(&outbox)?,
            None => true,
        };
        if self.is_satisfied() && is_out {
            self.has_left();
        }
        Ok(())
    }

    /// Gives a client up that takes nothing of what is kept for it, however long the application goes on. True when nothing
    /// is kept.
    fn check_pace(&mut self, outbox: &Outbox) -> Result<bool, Gone> {
        if outbox.is_idle() {
            self.reply.outbox_pace = None;
            return Ok(true);
        }
        let (now, sent) = (clock::monotonic(), outbox.sent());
        let fresh = || (Pace::new(now, self.site.settings.write_timeout), sent);
        let (pace, before) = self.reply.outbox_pace.get_or_insert_with(fresh);
        pace.progress(now, sent - *before);
        *before = sent;
        if pace.left(now).is_none() {
            log::debug!("Response to {} was not taken in time (--write-timeout)", self.conn.client());
            return self.lost();
        }
        Ok(false)
    }

    /// Sends what is in `out`, all of it before it returns.
    pub(super) fn send_out(&mut self, release: Release<'_>) -> Result<(), Gone> {
        let mut at = 0;
        let mut pace = None;
        while !self.send(b"", b"", &mut at)? {
            self.wait_to_write(&mut pace, at, release)?;
        }
        Ok(())
    }

    /// One try to be rid of `out`, `data` and `tail`, of which `at` bytes have left; true when all have, or are kept.
    fn deliver(&mut self, data: &[u8], tail: &[u8], at: &mut usize) -> Result<bool, Gone> {
        if self.reply.outbox.is_some() {
            match self.put(data, tail, *at, false)? {
                Put::Kept => return Ok(true),
                Put::Full => {
                    self.site.outlet.unwatch();
                    return Ok(false);
                }
                Put::Empty => {}
            }
        }
        if self.send(data, tail, at)? {
            return Ok(true);
        }
        if self.site.budget.limit() == 0 {
            return Ok(false);
        }
        if self.reply.outbox.is_none() {
            // Without a descriptor for it, it is as if nothing might be kept.
            self.reply.outbox = Outbox::new(&self.conn.transport, self.site.budget).ok();
        }
        Ok(self.reply.outbox.is_some() && self.put(data, tail, *at, true)? == Put::Kept)
    }

    /// Puts what is unsent into the outbox, if it may; see there.
    fn put(&mut self, data: &[u8], tail: &[u8], at: usize, socket_is_full: bool) -> Result<Put, Gone> {
        self.claim()?;
        let Some(outbox) = &self.reply.outbox else {
            return Ok(Put::Empty);
        };
        let parcel = Parcel { parts: [&self.desk.out, data, tail], at };
        let Ok(put) = outbox.put(&parcel, self.site.budget.limit(), socket_is_full) else {
            return self.lost();
        };
        if put == Put::Kept {
            self.site.outlet.watch(self.conn.transport.as_fd(), outbox);
            self.desk.out.clear();
        }
        Ok(put)
    }

    /// What the loop has been sending is the connection's again. Not in a process that the application forked: the lock may
    /// have been somebody's who is not there.
    pub(super) fn take_back(&mut self) {
        if fork::is_foreign() {
            return;
        }
        if let Some(outbox) = self.reply.outbox.take() {
            self.site.outlet.unwatch();
            self.conn.out = outbox.take_back();
            // What broke while the loop was sending is known here at the latest.
            self.reply.gone |= outbox.is_gone();
        }
    }

    fn wait_to_write(
        &mut self,
        pace: &mut Option<(Pace, usize)>,
        at: usize,
        release: Release<'_>,
    ) -> Result<(), Gone> {
        let now = clock::monotonic();
        let (pace, before) =
            pace.get_or_insert_with(|| (Pace::new(now, self.site.settings.write_timeout), at));
        pace.progress(now, at - *before);
        *before = at;
        let Some(left) = pace.left(now) else {
            log::debug!("Response to {} was not taken in time (--write-timeout)", self.conn.client());
            return self.lost();
        };
        match self.wait(Interest::Write, left, release) {
            Ok(()) => Ok(()),
            Err(_) => self.lost(),
        }
    }

    /// Takes a block that needs no more of the application: sends what the socket has room for and leaves the rest to
    /// the loop. `own` gives a handle that keeps a large block alive meanwhile.
    pub fn post(&mut self, data: &[u8], last: bool, own: &mut dyn FnMut() -> Shared) -> Result<(), Gone> {
        self.take_back();
        self.reply.ended |= last;
        if self.reply.gone {
            return self.lost();
        }
        let whole = data.len();
        let (data, tail) = self.frame(data, last);
        let (rest, tail) = self.gather(data, tail);
        let gathered = rest.len() < data.len();
        if gathered && !last {
            return Ok(());
        }
        let mut at = 0;
        if self.conn.out.is_empty() && self.send(rest, tail, &mut at)? {
            if last {
                self.has_left();
            }
            return Ok(());
        }
        let cut = rest.len() < whole;
        self.queue(rest, tail, at, if cut { None } else { Some(own) });
        Ok(())
    }

    /// All of what there is of the response has; one that is shorter than its head promised is cut all the same.
    fn has_left(&mut self) {
        if self.reply.owed == 0 {
            self.conn.set_until_close(false);
            let alone = self.body.raw == self.desk.scratch.end;
            self.site.claim.end_reply(self.reply.persistent && alone);
        }
    }

    /// The end of a body whose blocks went through `write`.
    pub fn finish(&mut self) -> Result<(), Gone> {
        self.post(b"", true, &mut || Box::new([]))
    }

    fn queue(&mut self, data: &[u8], tail: &[u8], at: usize, own: Option<&mut dyn FnMut() -> Shared>) {
        let parcel = Parcel { parts: [&self.desk.out, data, tail], at };
        let sent: [usize; 3] = std::array::from_fn(|i| parcel.sent_of(i));
        let queue = &mut self.conn.out;
        queue_copy(queue, &self.desk.out[sent[0]..]);
        match own {
            Some(own) if data.len() - sent[1] > COPY_LIMIT => {
                queue.push(Segment::Shared { owner: own(), at: sent[1] });
            }
            _ => queue_copy(queue, &data[sent[1]..]),
        }
        queue_copy(queue, &tail[sent[2]..]);
        self.desk.out.clear();
    }

    /// Takes `length` octets of a file from `offset` as the whole body, to be sent by the kernel.
    pub fn post_file(&mut self, file: OwnedFd, offset: u64, length: u64) -> Result<(), Gone> {
        self.take_back();
        self.reply.ended = true;
        let length = match self.reply.delivery {
            Some(Delivery::Length(_)) => length.min(self.reply.owed),
            Some(Delivery::UntilClose) => length,
            _ => 0,
        };
        self.reply.owed = self.reply.owed.saturating_sub(length);
        self.reply.sent += length;
        self.claim()?;
        let head = std::mem::take(&mut self.desk.out);
        let sent = match self.conn.out.is_empty() {
            // What `write()` was given goes first.
            false => 0,
            true => match self.conn.transport.send(&head, length > 0) {
                Ok(sent) => sent,
                Err(e) if is_transient(&e) => 0,
                Err(_) => return self.lost(),
            },
        };
        queue_copy(&mut self.conn.out, &head[sent..]);
        self.desk.out = head;
        self.desk.out.clear();
        if length > 0 {
            self.conn.out.push(Segment::File { file, at: offset, left: length });
        }
        match self.conn.out.flush(&self.conn.transport) {
            Ok(Flushed::All) => self.has_left(),
            Ok(Flushed::Some(_)) => {}
            Err(_) => return self.lost(),
        }
        Ok(())
    }

    /// Answers with an error page, if nothing was answered yet; otherwise the response is broken off.
    pub fn fail_with(&mut self, reject: Reject) {
        if self.has_begun() || self.is_taken() {
            return;
        }
        self.desk.out.clear();
        reject.page(self.desk.date.at(clock::unix_seconds()), &mut self.desk.out);
        if self.reply.wants_fields {
            self.reply.fields.clone_from(&self.desk.out);
        }
        self.reply.status = reject.status();
        self.reply.delivery = Some(Delivery::UntilClose);
        self.reply.persistent = false;
        if self.is_head_request() {
            without_body(&mut self.desk.out);
        }
        // A page that cannot be delivered has nobody to be told.
        let _ = self.finish();
        self.reply.sent = 0;
    }
}

fn queue_copy(queue: &mut OutQueue, octets: &[u8]) {
    if !octets.is_empty() {
        queue.push(Segment::Bytes { bytes: octets.to_vec(), at: 0 });
    }
}
