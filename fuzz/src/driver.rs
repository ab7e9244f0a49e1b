//! A connection in memory for the oracles: a socket pair, bytes that come in pieces, an application that answers, and what
//! a client would make of the answers.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use crate::body_buffer::BodyStore;
use crate::config::Buffering;
use crate::conn::{Conn, Desk, Event, Next, Settings, State, Turn};
use crate::exchange::claim::Claim;
use crate::exchange::{BodyFault, Budget, Exchange, Outbox, Site, Watch};
use crate::handoff::Handed;
use crate::http::{Policy, Reject};
use crate::proxy::Trust;
use crate::proxy_protocol::Preface;
use crate::scoreboard::{Scoreboard, Slot};
use crate::sys::clock::{monotonic, SECOND};
use crate::transport::{Peer, Transport};

/// What the leniency of the head may hold back beyond the limit of the head.
const HELD_BACK: usize = 72;
/// An unfinished head is looked at when it has doubled.
const DOUBLED: usize = 2;
/// More than an input of the longest kind takes, a byte at a time.
const MOST_STEPS: usize = 40_000;

/// What the application does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum App {
    /// Reads the body and sends it back, its length told.
    Echo,
    /// Reads the body and sends it back in blocks whose number nobody knows beforehand.
    Blocks,
    /// Answers without having read the body.
    Deaf,
}

pub struct Plan<'a> {
    pub policy: &'a Policy,
    pub trusted: bool,
    pub preface: Preface,
    pub app: App,
}

/// A request as the application saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub client: Option<String>,
    pub is_head: bool,
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    pub fault: Option<BodyFault>,
}

/// The other end of the connection.
pub trait Client {
    /// Sends the next piece; false when nothing will ever come any more.
    fn feed(&mut self) -> bool;
    /// Takes what has been answered.
    fn collect(&mut self);
    /// The bytes that the last piece had.
    fn last(&self) -> usize;
}

/// A client that sends bytes in pieces that end at `ends`, then the end of its side.
pub struct Pieces<'a, I> {
    far: UnixStream,
    data: &'a [u8],
    ends: I,
    at: usize,
    last: usize,
    ended: bool,
    pub answers: Vec<u8>,
}

impl<'a, I: Iterator<Item = usize>> Pieces<'a, I> {
    pub fn new(far: UnixStream, data: &'a [u8], ends: I) -> Pieces<'a, I> {
        Pieces { far, data, ends, at: 0, last: 0, ended: false, answers: Vec::new() }
    }
}

impl<I: Iterator<Item = usize>> Client for Pieces<'_, I> {
    fn feed(&mut self) -> bool {
        let from = self.at;
        self.at = self.ends.next().unwrap_or(self.data.len()).max(from);
        self.last = self.at - from;
        if self.last > 0 {
            // Inputs are smaller than the socket's buffer; a server that has closed is no error of the client's.
            let _ = self.far.write_all(&self.data[from..self.at]);
            return true;
        }
        // A server that has closed the connection already needs no end.
        let _ = self.far.shutdown(Shutdown::Write);
        !std::mem::replace(&mut self.ended, true)
    }

    fn collect(&mut self) {
        drain(&mut self.far, &mut self.answers);
    }

    fn last(&self) -> usize {
        self.last
    }
}

/// Takes what there is.
pub fn drain(from: &mut UnixStream, into: &mut Vec<u8>) {
    let mut block = [0; 8192];
    while let Ok(bytes @ 1..) = from.read(&mut block) {
        into.extend_from_slice(&block[..bytes]);
    }
}

/// Both ends of a connection; nothing on them waits.
pub fn pair() -> (OwnedFd, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a socket pair");
    near.set_nonblocking(true).expect("a socket");
    far.set_nonblocking(true).expect("a socket");
    (near.into(), far)
}

/// Serves a connection until it is closed, and returns the requests that the application saw.
pub fn serve(transport: Transport, client: &mut dyn Client, plan: &Plan<'_>) -> Vec<Seen> {
    run(client, plan, |turn| {
        let mut conn = Conn::new(transport, if plan.trusted { Peer::Unix } else { Peer::Other }, 0, turn);
        conn.expect(plan.preface);
        conn
    })
}

/// The same for a connection that another worker has begun.
pub fn resume(handed: Handed, client: &mut dyn Client, plan: &Plan<'_>) -> Vec<Seen> {
    run(client, plan, |turn| {
        let transport = Transport::Plain(handed.fd);
        let mut conn = Conn::new(transport, handed.papers.peer, 0, turn);
        conn.resume(&handed.papers, handed.octets, &turn.settings.trust);
        conn
    })
}

fn run(client: &mut dyn Client, plan: &Plan<'_>, begin: impl FnOnce(&mut Turn<'_>) -> Conn) -> Vec<Seen> {
    let settings = settings(plan);
    let (mut desk, now, client) = (Desk::new(&settings), monotonic(), RefCell::new(client));
    let mut conn = begin(&mut turn(&mut desk, &settings, now));
    let (mut seen, mut next, mut held) = (Vec::new(), Next::Wait(conn.interest()), 0);
    for _ in 0..MOST_STEPS {
        client.borrow_mut().collect();
        next = match next {
            Next::Close => {
                // The close of our end is part of what the client sees.
                drop(conn);
                client.borrow_mut().collect();
                return seen;
            }
            Next::Call => {
                seen.push(call(&mut conn, &mut desk, &settings, plan.app, &client));
                held = 0;
                conn.advance(Event::Answered, &mut turn(&mut desk, &settings, now))
            }
            Next::Wait(_) if conn.state() == State::Reply => {
                conn.advance(Event::Writable, &mut turn(&mut desk, &settings, now))
            }
            Next::Wait(_) => {
                let before = conn.state();
                let event = if client.borrow_mut().feed() { Event::Readable } else { Event::Expired };
                let next = conn.advance(event, &mut turn(&mut desk, &settings, now));
                let last = client.borrow().last();
                held = if (before, conn.state()) == (State::Head, State::Head) { held + last } else { 0 };
                let most = DOUBLED * (plan.policy.limits.head + HELD_BACK) + last;
                assert!(held <= most, "an endless head is held");
                next
            }
        };
    }
    panic!("it makes no progress in {:?}", conn.state());
}

fn settings(plan: &Plan<'_>) -> Settings {
    let long = 3600 * SECOND;
    let peers: &[&str] = if plan.trusted { &["*"] } else { &[] };
    Settings {
        policy: plan.policy.clone(),
        trust: Trust::new(peers, Vec::new()).expect("a list of peers"),
        keepalive: long,
        header_timeout: long,
        body_timeout: long,
        write_timeout: long,
        body_limit: u64::MAX,
        buffering: Buffering::Auto,
        bodies: Arc::new(BodyStore::new(std::env::temp_dir())),
        lingering: Arc::default(),
    }
}

fn turn<'a>(desk: &'a mut Desk, settings: &'a Settings, now: u64) -> Turn<'a> {
    Turn { desk, settings, access: None, now, closing: false, draining: false }
}

/// Where the server would look for how a thread does; nobody looks here.
fn slot() -> &'static Slot {
    static SLOT: OnceLock<Slot> = OnceLock::new();
    SLOT.get_or_init(|| Scoreboard::new(1, 1).expect("memory").slot(0))
}

/// There is no loop that could send while the application goes on.
struct Nobody;

impl Watch for Nobody {
    fn watch(&self, _: BorrowedFd<'_>, _: &Arc<Outbox>) {}

    fn unwatch(&self) {}
}

/// The application's part: what it reads is what it sends back.
fn call(
    conn: &mut Conn,
    desk: &mut Desk,
    settings: &Settings,
    app: App,
    client: &RefCell<&mut dyn Client>,
) -> Seen {
    let release = |wait: &mut (dyn FnMut() + Send)| -> io::Result<()> {
        let mut client = client.borrow_mut();
        client.collect();
        client.feed();
        wait();
        Ok(())
    };
    let (claim, closing) = (Claim::default(), AtomicBool::new(false));
    claim.open(conn.as_fd().as_raw_fd());
    let silence = slot().silence(0);
    let (outlet, budget) = (&Nobody, &Budget::new(0));
    let site = Site { settings, access: None, closing: &closing, claim: &claim, silence, outlet, budget };
    let mut exchange = Exchange::new(conn, desk, site, monotonic());
    let named = match exchange.client() {
        Peer::Tcp(address) => Some(address.to_string()),
        Peer::Unix | Peer::Other => None,
    };
    let head = exchange.head_octets().to_vec();
    let is_head = exchange.head().start.method.of(&head) == b"HEAD";
    let mut seen = Seen { client: named, is_head, head, body: Vec::new(), fault: None };
    if app != App::Deaf {
        loop {
            match exchange.body_run(&release) {
                Ok([]) => break,
                Ok(run) => {
                    let taken = run.len();
                    seen.body.extend_from_slice(run);
                    exchange.consume(taken);
                }
                Err(fault) => {
                    seen.fault = Some(fault);
                    break;
                }
            }
        }
    }
    if seen.fault.is_some() {
        exchange.fail_with(Reject::IncompleteBody);
        exchange.settle();
        return seen;
    }
    exchange.out().extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    let body = seen.body.clone();
    // A client that takes nothing has left: what is said to it is said to nobody.
    let _ = match app {
        App::Blocks => {
            exchange.begin(200, None, None);
            let mut blocks = body.chunks(1 + body.len() / 3);
            blocks.try_for_each(|block| exchange.write(block, &release)).and_then(|()| exchange.finish())
        }
        App::Echo | App::Deaf => {
            exchange.begin(200, None, Some(body.len() as u64));
            exchange.post(&body, true, &mut || Box::new(body.clone()))
        }
    };
    exchange.settle();
    seen
}

/// A final response as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
    /// Nothing comes after it.
    pub last: bool,
}

/// Reads all that was answered to these requests: responses and nothing else, one a request, and maybe a refusal.
pub fn responses(mut answers: &[u8], seen: &[Seen]) -> Vec<Response> {
    let mut all: Vec<Response> = Vec::new();
    while !answers.is_empty() {
        assert!(!all.last().is_some_and(|before| before.last), "an answer behind the last one");
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut fields);
        let status = head.parse(answers);
        let Ok(httparse::Status::Complete(length)) = status else {
            panic!("{status:?}: {:?}", String::from_utf8_lossy(answers));
        };
        let code = head.code.expect("a status");
        let body = &answers[length..];
        if code < 200 {
            answers = body;
            continue;
        }
        let value = |name: &str| {
            let mut named = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            let value = named.next().map(|field| field.value);
            assert!(named.next().is_none(), "{name} twice");
            value
        };
        let is_head = seen.get(all.len()).is_some_and(|request| request.is_head);
        let (told, coding) = (value("content-length"), value("transfer-encoding"));
        assert!(told.is_none() || coding.is_none(), "framed twice");
        let told = told.map(|digits| std::str::from_utf8(digits).unwrap().parse::<usize>().unwrap());
        let (content, rest) = match (is_head, told, coding) {
            (true, _, _) => (Vec::new(), body),
            (_, Some(length), _) => (body[..length].to_vec(), &body[length..]),
            (_, _, Some(coding)) => {
                assert_eq!(coding, b"chunked");
                unchunked(body)
            }
            _ => (body.to_vec(), &b""[..]),
        };
        let last = value("connection").is_some_and(|value| value == b"close");
        all.push(Response { status: code, body: content, last });
        answers = rest;
    }
    all
}

/// A reader of chunks that shares nothing with the server's.
fn unchunked(mut body: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut content = Vec::new();
    loop {
        let end = body.windows(2).position(|pair| pair == b"\r\n").expect("the size of a chunk");
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).expect("digits");
        body = &body[end + 2..];
        content.extend_from_slice(&body[..size]);
        assert_eq!(body[size..size + 2], *b"\r\n");
        body = &body[size + 2..];
        if size == 0 {
            return (content, body);
        }
    }
}
