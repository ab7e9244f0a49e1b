//! Owns: one request and its response while the application has them: body in, head and blocks out.
//! Rule: the framing that the head promised is kept to the octet: a block past Content-Length is cut, a body that ends
//! short of it closes the connection, and an aborted chunked body gets no last chunk (RFC 9112 §6, §7).
//! Never: parses heads, waits with the interpreter locked (every wait goes through `Release`), knows Python.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::access_sink::{AccessLog, Line};
use crate::buffer::{Parcel, Segment, Shared};
use crate::conn::{is_transient, Conn, Desk, Fate, Settings};
use crate::http::body::Decoder;
use crate::http::response::{self, Delivery, CONTINUE};
use crate::http::{Framing, Head, Reject, Version};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::{wait_one, Interest};
use crate::timers::Pace;
use crate::transport::Peer;

/// Runs the closure while other threads may have the interpreter; an error means that this thread is to stop waiting.
pub type Release<'r> = &'r dyn Fn(&mut (dyn FnMut() + Send)) -> io::Result<()>;

/// Up to here a block is copied behind its head and leaves in one send; a copy is cheaper than a second iovec.
const COPY_LIMIT: usize = 16 * 1024;

/// What a worker offers to each of its exchanges.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub settings: &'a Settings,
    pub access: Option<&'a AccessLog>,
    pub draining: &'a AtomicBool,
}

/// Why the rest of a request body cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    Invalid(Reject),
    /// The client closed or reset the connection inside the body.
    Incomplete,
    TimedOut,
    /// The thread is wanted for something else, such as a signal.
    Interrupted,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyFault::Invalid(reject) => reject.text(),
            BodyFault::Incomplete => "client left inside the request body",
            BodyFault::TimedOut => "client sent the request body too slowly (--body-timeout)",
            BodyFault::Interrupted => "interrupted while reading the request body",
        })
    }
}

/// The peer takes no more of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

pub struct Exchange<'a> {
    conn: &'a mut Conn,
    desk: &'a mut Desk,
    site: Site<'a>,
    started: Nanos,
    body: Body,
    reply: Reply,
}

struct Body {
    decoder: Decoder,
    /// Every octet of it is in the scratch.
    whole: bool,
    /// Decoded octets not consumed yet, in the scratch.
    run: Range<usize>,
    /// Where the undecoded octets begin, and where reads that need room put theirs.
    raw: usize,
    floor: usize,
    continue_due: bool,
    fault: Option<BodyFault>,
    pace: Option<Pace>,
}

#[derive(Default)]
struct Reply {
    status: u16,
    delivery: Option<Delivery>,
    /// Octets still owed under `Delivery::Length`.
    owed: u64,
    sent: u64,
    persistent: bool,
    overlong: bool,
    ended: bool,
    gone: bool,
    fields: Vec<u8>,
}

impl<'a> Exchange<'a> {
    pub fn new(conn: &'a mut Conn, desk: &'a mut Desk, site: Site<'a>, started: Nanos) -> Exchange<'a> {
        let framing = conn.head.fields.framing;
        // A body that is still to come is read behind the head.
        desk.scratch.make_room();
        let floor = desk.scratch.start + conn.head.length;
        desk.out.clear();
        let body = Body {
            decoder: Decoder::new(framing, &site.settings.policy.limits),
            whole: conn.body_is_whole(desk.scratch.end - floor),
            run: floor..floor,
            raw: floor,
            floor,
            continue_due: conn.head.fields.expect_continue && framing != Framing::Empty,
            fault: None,
            pace: None,
        };
        Exchange { conn, desk, site, started, body, reply: Reply::default() }
    }

    pub fn head(&self) -> &Head {
        &self.conn.head
    }

    /// The octets that the spans of the start line refer to.
    pub fn head_octets(&self) -> &[u8] {
        let start = self.desk.scratch.start;
        self.desk.scratch.range(start, start + self.conn.head.length)
    }

    /// The octets that the spans of the fields refer to.
    pub fn field_block(&self) -> &[u8] {
        &self.head_octets()[self.conn.head.fields_at..]
    }

    pub fn peer(&self) -> Peer {
        self.conn.peer
    }

    pub fn is_trusted(&self) -> bool {
        self.conn.trusted
    }

    pub fn listener(&self) -> usize {
        self.conn.listener
    }

    /// Whether the field block is the one of the connection's last request; then `memo` is what was left with it.
    pub fn is_repeated(&self) -> bool {
        self.conn.repeated
    }

    pub fn memo(&mut self) -> &mut Option<Box<dyn std::any::Any + Send>> {
        &mut self.conn.memo
    }

    pub fn started(&self) -> Nanos {
        self.started
    }

    /// Where the head of the response is written before `begin`, and what is unsent of it after.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.desk.out
    }

    pub fn server_date(&mut self) -> &[u8] {
        self.desk.date.at(clock::unix_seconds())
    }

    // ---- the request body

    /// Whether reading the body could only ever give nothing.
    pub fn body_is_empty(&self) -> bool {
        self.conn.head.fields.framing == Framing::Empty
    }

    pub fn body_fault(&self) -> Option<BodyFault> {
        self.body.fault
    }

    /// The octets left, when the framing tells.
    pub fn body_left(&self) -> Option<u64> {
        match self.body.decoder {
            Decoder::Length { remaining } => Some(remaining + self.body.run.len() as u64),
            Decoder::Empty => Some(0),
            _ => None,
        }
    }

    /// The next octets of the body, waiting for them if need be; empty at the end. Take them with `consume`.
    pub fn body_run(&mut self, release: Release<'_>) -> Result<&[u8], BodyFault> {
        while self.body.run.is_empty() && !self.body.decoder.is_done() {
            if self.body.raw < self.desk.scratch.end {
                self.decode()?;
            } else {
                self.receive(release)?;
            }
        }
        Ok(self.desk.scratch.range(self.body.run.start, self.body.run.end))
    }

    pub fn consume(&mut self, octets: usize) {
        self.body.run.start += octets;
    }

    /// Fills `into` straight from the socket where nothing is buffered and the framing is a length; 0 means use `body_run`.
    pub fn body_read_direct(&mut self, into: &mut [u8], release: Release<'_>) -> Result<usize, BodyFault> {
        let Decoder::Length { remaining } = self.body.decoder else {
            return Ok(0);
        };
        if remaining == 0 || !self.body.run.is_empty() || self.body.raw < self.desk.scratch.end {
            return Ok(0);
        }
        let most = (into.len() as u64).min(remaining) as usize;
        loop {
            match self.conn.transport.receive(&mut into[..most]) {
                Ok(0) => return self.fail(BodyFault::Incomplete),
                Ok(octets) => {
                    self.arrived(octets);
                    self.body.decoder = Decoder::Length { remaining: remaining - octets as u64 };
                    return Ok(octets);
                }
                Err(e) if is_transient(&e) => self.wait_for_body(release)?,
                Err(_) => return self.fail(BodyFault::Incomplete),
            }
        }
    }

    fn fail<T>(&mut self, fault: BodyFault) -> Result<T, BodyFault> {
        self.body.fault = Some(fault);
        Err(fault)
    }

    fn decode(&mut self) -> Result<(), BodyFault> {
        if let Some(fault) = self.body.fault {
            return Err(fault);
        }
        let raw = self.body.raw;
        match self.body.decoder.decode(self.desk.scratch.range(raw, self.desk.scratch.end)) {
            Ok(decoded) => {
                self.body.run = raw + decoded.data.start..raw + decoded.data.end;
                self.body.raw = raw + decoded.consumed;
                Ok(())
            }
            Err(reject) => self.fail(BodyFault::Invalid(reject)),
        }
    }

    fn arrived(&mut self, octets: usize) {
        if let Some(pace) = &mut self.body.pace {
            pace.progress(clock::monotonic(), octets);
        }
    }

    fn receive(&mut self, release: Release<'_>) -> Result<(), BodyFault> {
        if let Some(fault) = self.body.fault {
            return Err(fault);
        }
        self.body.raw = self.body.floor;
        match self.desk.scratch.receive_at(self.body.floor, &self.conn.transport) {
            Ok(0) => self.fail(BodyFault::Incomplete),
            Ok(octets) => {
                self.arrived(octets);
                Ok(())
            }
            Err(e) if is_transient(&e) => {
                self.desk.scratch.end = self.body.floor;
                self.wait_for_body(release)
            }
            Err(_) => self.fail(BodyFault::Incomplete),
        }
    }

    /// RFC 9110 §10.1.1: the 100 goes out when the application first asks for a body that has not come.
    fn send_continue(&mut self) {
        if std::mem::take(&mut self.body.continue_due) && self.reply.delivery.is_none() {
            // A client that takes no 25 octets will not send a body either; reading it tells.
            let _ = self.conn.transport.send(CONTINUE, false);
        }
    }

    fn wait_for_body(&mut self, release: Release<'_>) -> Result<(), BodyFault> {
        self.send_continue();
        let now = clock::monotonic();
        let pace = *self.body.pace.get_or_insert_with(|| Pace::new(now, self.site.settings.body_timeout));
        let Some(left) = pace.left(now) else {
            return self.fail(BodyFault::TimedOut);
        };
        match self.wait(Interest::Read, left, release) {
            Ok(()) => Ok(()),
            Err(_) => self.fail(BodyFault::Interrupted),
        }
    }

    fn wait(&self, interest: Interest, left: Nanos, release: Release<'_>) -> io::Result<()> {
        let fd = self.conn.transport.as_fd();
        let mut result = Ok(false);
        release(&mut || result = wait_one(fd, interest, Some(left)))?;
        result.map(|_| ())
    }

    // ---- the response

    pub fn has_begun(&self) -> bool {
        self.reply.delivery.is_some()
    }

    pub fn delivery(&self) -> Option<Delivery> {
        self.reply.delivery
    }

    fn is_head_request(&self) -> bool {
        self.conn.head.start.method.of(self.head_octets()) == b"HEAD"
    }

    /// Decides the framing and completes the head in `out`. `known` is the length of a body that is all there.
    pub fn begin(&mut self, status: u16, content_length: Option<u64>, known: Option<u64>) -> Delivery {
        let version = self.conn.head.start.version;
        let delivery = response::delivery(version, self.is_head_request(), status, content_length, known);
        let body_read = self.body.whole || (self.body.decoder.is_done() && self.body.fault.is_none());
        self.reply.persistent = self.conn.head.persistent()
            && self.site.settings.keepalive > 0
            && delivery != Delivery::UntilClose
            && body_read
            && !self.site.draining.load(Relaxed);
        if self.site.access.is_some_and(|access| access.wants_response_fields()) {
            self.reply.fields.clone_from(&self.desk.out);
        }
        response::finish(delivery, self.reply.persistent, version, &mut self.desk.out);
        self.reply.status = status;
        self.reply.owed = if let Delivery::Length(length) = delivery { length } else { 0 };
        self.reply.delivery = Some(delivery);
        delivery
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

    /// One try to send `out`, `data` and `tail`, of which `at` octets have left; true when all have.
    fn send(&mut self, data: &[u8], tail: &[u8], at: &mut usize) -> Result<bool, Gone> {
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
        self.desk.out.clear();
        self.conn.out.clear();
        Err(Gone)
    }

    /// Sends a block whole before it returns (PEP 3333, "Buffering and Streaming").
    pub fn write(&mut self, data: &[u8], release: Release<'_>) -> Result<(), Gone> {
        let (data, tail) = self.frame(data, false);
        let (data, tail) = self.gather(data, tail);
        let mut at = 0;
        let mut pace = None;
        while !self.send(data, tail, &mut at)? {
            self.wait_to_write(&mut pace, at, release)?;
        }
        Ok(())
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
            log::debug!("Response to {} was not taken in time (--write-timeout)", self.conn.peer);
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
        self.reply.ended |= last;
        let whole = data.len();
        let (data, tail) = self.frame(data, last);
        let (rest, tail) = self.gather(data, tail);
        let gathered = rest.len() < data.len();
        if gathered && !last {
            return Ok(());
        }
        let mut at = 0;
        if self.conn.out.is_empty() && self.send(rest, tail, &mut at)? {
            return Ok(());
        }
        let cut = rest.len() < whole;
        self.queue(rest, tail, at, if cut { None } else { Some(own) });
        Ok(())
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
        self.reply.ended = true;
        let length = match self.reply.delivery {
            Some(Delivery::Length(_)) => length.min(self.reply.owed),
            Some(Delivery::UntilClose) => length,
            _ => 0,
        };
        self.reply.owed = self.reply.owed.saturating_sub(length);
        self.reply.sent += length;
        let head = std::mem::take(&mut self.desk.out);
        let sent = match self.conn.transport.send(&head, length > 0) {
            Ok(sent) => sent,
            Err(e) if is_transient(&e) => 0,
            Err(_) => return self.lost(),
        };
        queue_copy(&mut self.conn.out, &head[sent..]);
        self.desk.out = head;
        self.desk.out.clear();
        if length > 0 {
            self.conn.out.push(Segment::File { file, at: offset, left: length });
        }
        match self.conn.out.flush(&self.conn.transport) {
            Ok(_) => Ok(()),
            Err(_) => self.lost(),
        }
    }

    /// Answers with an error page, if nothing was answered yet; otherwise the response is broken off.
    pub fn fail_with(&mut self, reject: Reject) {
        if self.has_begun() {
            return;
        }
        self.desk.out.clear();
        reject.page(self.desk.date.at(clock::unix_seconds()), &mut self.desk.out);
        self.reply.status = reject.status();
        self.reply.delivery = Some(Delivery::UntilClose);
        self.reply.persistent = false;
        if self.is_head_request() {
            cut_body(&mut self.desk.out);
        }
        // A page that cannot be delivered has nobody to be told.
        let _ = self.finish();
        self.reply.sent = 0;
    }

    /// Forgets a head that was written but not sent.
    pub fn discard_head(&mut self) {
        self.desk.out.clear();
    }

    // ---- the end

    /// Writes the access log line, once the response is made. `environ` looks up what only the application's side knows.
    pub fn log_access(&self, environ: &dyn Fn(&str) -> Option<String>) {
        let Some(access) = self.site.access else {
            return;
        };
        access.record(&Line {
            peer: self.conn.peer,
            head: &self.conn.head,
            octets: self.head_octets(),
            status: self.reply.status,
            sent: self.reply.sent,
            elapsed: clock::monotonic() - self.started,
            response_fields: &self.reply.fields,
            environ,
        });
    }

    /// Leaves the connection with what becomes of it and the scratch at the next request's first octet.
    pub fn settle(mut self) {
        let read = self.skip_body();
        self.conn.fate = self.fate(read);
        let scratch = &mut self.desk.scratch;
        scratch.start = if read { self.body.raw } else { scratch.end };
    }

    fn fate(&self, body_read: bool) -> Fate {
        let reply = &self.reply;
        if reply.owed > 0 && reply.ended && !reply.gone {
            log::error!(
                "Response to {} is {} octets shorter than its Content-Length",
                self.request_line(),
                reply.owed
            );
        }
        if reply.overlong {
            log::warn!("Response to {} is longer than its Content-Length and was cut", self.request_line());
        }
        match (reply.ended && !reply.gone, reply.delivery) {
            // Without its reset the peer would take the cut response for a whole one.
            (false, None | Some(Delivery::UntilClose)) => Fate::Cut,
            (true, _) if reply.persistent && reply.owed == 0 => Fate::Keep,
            _ if body_read => Fate::Close,
            _ => Fate::Linger,
        }
    }

    /// "GET /path", for log lines.
    pub fn request_line(&self) -> String {
        let octets = self.head_octets();
        let start = &self.conn.head.start;
        let text = |span: crate::http::Span| String::from_utf8_lossy(span.of(octets)).into_owned();
        format!("{} {}", text(start.method), text(start.target))
    }

    /// Passes over what the application left unread, where all of it is here; false when octets of it are still to come.
    fn skip_body(&mut self) -> bool {
        if self.body.fault.is_some() {
            return false;
        }
        while self.body.whole && !self.body.decoder.is_done() {
            if self.decode().is_err() {
                return false;
            }
        }
        self.body.decoder.is_done()
    }

    pub fn version(&self) -> Version {
        self.conn.head.start.version
    }
}

fn queue_copy(queue: &mut crate::buffer::OutQueue, octets: &[u8]) {
    if !octets.is_empty() {
        queue.push(Segment::Bytes { bytes: octets.to_vec(), at: 0 });
    }
}

/// RFC 9110 §9.3.2: the answer to HEAD ends with its head.
fn cut_body(response: &mut Vec<u8>) {
    if let Some(end) = memchr::memmem::find(response, b"\r\n\r\n") {
        response.truncate(end + 4);
    }
}
