//! Owns: one request and its response while the application has them: body in, head and blocks out.
//! Rule: the framing that the head promised is kept to the octet: a block past Content-Length is cut, a body that ends
//! short of it closes the connection, and an aborted chunked body gets no last chunk (RFC 9112 §6, §7).
//! Never: parses heads, waits with the interpreter locked (every wait goes through `Release`), knows Python.

mod body;
pub mod claim;
mod interim;
mod outbox;
mod reply;
mod takeover;

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use self::body::BodyFault;
pub use self::outbox::{Budget, Outbox, Watch};
pub use self::reply::{Answer, Gone};

use self::body::Body;
use self::claim::{Claim, Stage};
use self::reply::Reply;
use crate::access_sink::{AccessLog, Line};
use crate::conn::{Conn, Desk, Fate, Settings};
use crate::http::body::Decoder;
use crate::http::{Framing, Head};
use crate::proxy_protocol::Origin;
use crate::scoreboard::Silence;
use crate::sys::clock::{self, Nanos};
use crate::tls::Facts;
use crate::transport::Peer;

/// Runs the closure while other threads may have the interpreter; an error means that this thread is to stop waiting.
pub type Release<'r> = &'r dyn Fn(&mut (dyn FnMut() + Send)) -> io::Result<()>;

/// What a worker offers to each of its exchanges.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub settings: &'a Settings,
    pub access: Option<&'a AccessLog>,
    /// Every connection is to end with its response.
    pub closing: &'a AtomicBool,
    pub claim: &'a Claim,
    pub silence: Silence<'a>,
    /// What the client is too slow to take: who sends it meanwhile, and how much of it there may be.
    pub outlet: &'a dyn Watch,
    pub budget: &'a Budget,
}

pub struct Exchange<'a> {
    conn: &'a mut Conn,
    desk: &'a mut Desk,
    site: Site<'a>,
    started: Nanos,
    /// When the application was entered: `started`, or later if its lock had to be waited for.
    entered: Nanos,
    body: Body,
    reply: Reply,
}

impl<'a> Exchange<'a> {
    pub fn new(conn: &'a mut Conn, desk: &'a mut Desk, site: Site<'a>, started: Nanos) -> Exchange<'a> {
        let framing = conn.head.fields.framing;
        // A body that is still to come is read behind the head.
        desk.scratch.make_room();
        let floor = desk.scratch.start + conn.head.length;
        desk.out.clear();
        let stored = conn.body.take();
        let has_begun = stored.is_some() || desk.scratch.end > floor;
        let body = Body {
            whole: conn.body_is_whole(desk.scratch.end - floor, stored.as_deref()),
            length: conn.body_length(stored.as_deref()),
            left: conn.body_length(stored.as_deref()),
            decoder: match &stored {
                Some(stored) => stored.decoder(),
                None => Decoder::new(framing, &site.settings.policy.limits),
            },
            decoded: stored.as_ref().map_or(0, |stored| stored.length()),
            stored,
            run: floor..floor,
            raw: floor,
            floor,
            continue_due: conn.head.fields.expect_continue && framing != Framing::Empty && !has_begun,
            fault: None,
            pace: None,
        };
        let wants_fields = site.access.is_some_and(AccessLog::wants_response_fields);
        let reply = Reply { wants_fields, ..Reply::default() };
        Exchange { conn, desk, site, started, entered: started, body, reply }
    }

    /// By a caller that had to wait for the application's lock, and has it now.
    pub fn enter(&mut self) {
        self.entered = clock::monotonic();
    }

    pub fn entered(&self) -> Nanos {
        self.entered
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

    /// For whom the connection is served; a proxy may have named somebody behind it.
    pub fn client(&self) -> Peer {
        self.conn.client()
    }

    /// The other end of the connection.
    pub fn peer(&self) -> Peer {
        self.conn.peer
    }

    /// What a PROXY header has said of the connection.
    pub fn origin(&self) -> Option<&Origin> {
        self.conn.origin.as_deref()
    }

    pub fn is_secure(&self) -> bool {
        self.conn.transport.is_secure()
    }

    /// None: plain HTTP.
    pub fn tls(&self) -> Option<Facts> {
        self.conn.transport.facts()
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

    /// Where the head of the response is written before `begin`, and what is unsent of it after.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.desk.out
    }

    /// Somebody else has answered, and told of it: the request ran too long.
    pub fn is_overtaken(&self) -> bool {
        self.reply.overtaken
    }

    /// Since the request was given to the application.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(clock::monotonic() - self.started)
    }

    /// Writes the access log line, once the response is made. `environ` looks up what only the application's side knows.
    /// A request that was answered because it ran too long has its line already.
    pub fn log_access(&self, environ: &dyn Fn(&str) -> Option<String>) {
        let Some(access) = self.site.access.filter(|_| !self.reply.overtaken) else {
            return;
        };
        access.record(&Line {
            peer: self.conn.client(),
            head: &self.conn.head,
            octets: self.head_octets(),
            status: self.reply.status,
            sent: self.reply.sent,
            elapsed: clock::monotonic() - self.started,
            response_fields: &self.reply.fields,
            environ,
        });
    }

    /// Leaves the connection with what becomes of it and the scratch at the next request's first octet. True when the
    /// request had run too long, and that was noticed.
    pub fn settle(mut self) -> bool {
        self.take_back();
        let read = self.skip_body();
        self.end_take_over();
        // The helper's answer is on its way: a plain close could make the kernel take it back.
        let stage = self.site.claim.close();
        let expired = stage == Stage::Expired;
        self.conn.fate = if expired { Fate::Linger } else { self.fate(read) };
        if expired {
            self.conn.out.clear();
        }
        let scratch = &mut self.desk.scratch;
        scratch.start = if read { self.body.raw } else { scratch.end };
        expired || stage == Stage::Late
    }

    fn fate(&self, body_read: bool) -> Fate {
        let reply = &self.reply;
        if self.conn.taken {
            return Fate::Linger;
        }
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
        match reply.ended && !reply.gone {
            // Without its reset the peer would take the cut response for a whole one.
            false if reply.until_close => Fate::Cut,
            false => Fate::Broken,
            true if reply.owed > 0 => Fate::Broken,
            true if reply.persistent => Fate::Keep,
            true if body_read => Fate::Close,
            true => Fate::Linger,
        }
    }

    /// "GET /path", for log lines.
    pub fn request_line(&self) -> String {
        let octets = self.head_octets();
        let start = &self.conn.head.start;
        let text = |span: crate::http::Span| String::from_utf8_lossy(span.of(octets)).into_owned();
        format!("{} {}", text(start.method), text(start.target))
    }
}

#[cfg(test)]
mod tests;
