//! Owns: the property that a request is the same however its bytes were cut, from the socket to what the application reads.
//! Rule: connection and exchange as in a worker, over a pair of sockets.
//! Never: waits for a time, calls Python.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use proptest::prelude::*;

use super::claim::Claim;
use super::{Budget, Exchange, Outbox, Site, Watch};
use crate::config::Buffering;
use crate::conn::{Conn, Desk, Event, Next, Settings, Turn};
use crate::scoreboard::Scoreboard;
use crate::sys::clock;
use crate::transport::{Peer, Transport};

const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: t\r\n\r\n";

/// What an application sees of a request.
#[derive(Debug, PartialEq)]
struct Seen {
    line: String,
    body: Vec<u8>,
    chunked_length: Option<u64>,
}

/// Small answers need nobody to send their rest.
struct Nobody;

impl Watch for Nobody {
    fn watch(&self, _: BorrowedFd<'_>, _: &Arc<Outbox>) {}

    fn unwatch(&self) {}
}

struct Server {
    settings: Settings,
    desk: Desk,
    conn: Conn,
    seen: Vec<Seen>,
}

impl Server {
    fn new(buffering: Buffering, trusted: bool) -> (Server, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let settings = Settings::for_tests(buffering);
        let mut desk = Desk::new(&settings);
        let conn = Conn::new(
            Transport::Plain(near.into()),
            if trusted { Peer::Unix } else { Peer::Other },
            0,
            &mut turn(&settings, &mut desk),
        );
        (Server { settings, desk, conn, seen: Vec::new() }, far)
    }

    /// Reads what has come; calls the application as often as it can be called.
    fn advance(&mut self) {
        let mut event = Event::Readable;
        while self.conn.advance(event, &mut turn(&self.settings, &mut self.desk)) == Next::Call {
            self.call();
            event = Event::Answered;
        }
    }

    fn call(&mut self) {
        let (closing, claim) = (AtomicBool::new(false), Claim::default());
        claim.open(0);
        let board = Scoreboard::new(1, 1).unwrap();
        let silence = board.slot(0);
        let silence = silence.silence(0);
        let (outlet, budget) = (&Nobody, &Budget::new(0));
        let site = Site {
            settings: &self.settings,
            access: None,
            closing: &closing,
            claim: &claim,
            silence,
            outlet,
            budget,
        };
        let mut exchange = Exchange::new(&mut self.conn, &mut self.desk, site, clock::monotonic());
        let mut body = Vec::new();
        loop {
            let run = exchange
                .body_run(&|wait| {
                    wait();
                    Ok(())
                })
                .unwrap();
            if run.is_empty() {
                break;
            }
            // Not as it comes, so that what is left is kept.
            let taken = run.len().min(5000);
            body.extend_from_slice(&run[..taken]);
            exchange.consume(taken);
        }
        assert!(exchange.body_left().is_none_or(|left| left == 0));
        self.seen.push(Seen {
            line: exchange.request_line(),
            body,
            chunked_length: exchange.chunked_length(),
        });
        exchange.out().extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        exchange.begin(200, Some(0), Some(0));
        exchange.finish().unwrap();
        exchange.settle();
    }
}

fn turn<'a>(settings: &'a Settings, desk: &'a mut Desk) -> Turn<'a> {
    Turn { desk, settings, access: None, now: clock::monotonic(), closing: false, draining: false }
}

fn request(body: &[u8], chunk: Option<usize>) -> Vec<u8> {
    let mut bytes = b"POST /first HTTP/1.1\r\nHost: t\r\n".to_vec();
    match chunk {
        None => {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(body);
        }
        Some(size) => {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for part in body.chunks(size) {
                bytes.extend_from_slice(format!("{:x};a=b\r\n", part.len()).as_bytes());
                bytes.extend_from_slice(part);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\nA: b\r\n\r\n");
        }
    }
    bytes
}

/// The requests that the application is called with.
fn serve(bytes: &[u8], cuts: &[usize], buffering: Buffering, trusted: bool) -> Vec<Seen> {
    let (mut server, mut far) = Server::new(buffering, trusted);
    let mut cuts = cuts.iter().copied().cycle();
    let mut sent = 0;
    while sent < bytes.len() && server.seen.is_empty() {
        let end = bytes.len().min(sent + cuts.next().unwrap_or(usize::MAX).max(1));
        // A body that is streamed is read in the call, which has to go on meanwhile.
        let (now, later) = (&bytes[sent..end], &bytes[end..]);
        far.write_all(now).unwrap();
        sent = end;
        if buffering == Buffering::Off || trusted && later.len() + sent > 60_000 {
            let mut writer = far.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || writer.write_all(later).unwrap());
                while server.seen.len() < 2 {
                    server.advance();
                }
            });
            sent = bytes.len();
        } else {
            server.advance();
        }
    }
    while server.seen.len() < 2 {
        far.write_all(&bytes[sent..]).unwrap();
        sent = bytes.len();
        server.advance();
    }
    server.seen
}

fn modes() -> impl Strategy<Value = (Buffering, bool)> {
    prop::sample::select(vec![
        (Buffering::On, true),
        (Buffering::Auto, false),
        (Buffering::Auto, true),
        (Buffering::Off, false),
    ])
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..200usize, 2 => 60_000..70_000usize, 2 => 120_000..140_000usize, 1 => 200_000..300_000usize]
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    let one = prop_oneof![1..5usize, 1..200usize, 1..20_000usize, 30_000..70_000usize];
    // A mean of more than a few hundred bytes, as the time of a case is that of its reads.
    prop::collection::vec(one, 1..20).prop_map(|mut cuts| {
        cuts.push(20_000);
        cuts
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_is_the_same_however_its_bytes_are_cut(
        length in lengths(),
        chunk in prop::option::of(1000..70_000usize),
        cuts in cuts(),
        (buffering, trusted) in modes(),
    ) {
        let body: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
        let bytes = [&request(&body, chunk)[..], NEXT].concat();
        let seen = serve(&bytes, &cuts, buffering, trusted);
        let is_known = chunk.is_some() && buffering != Buffering::Off;
        let first = Seen {
            line: "POST /first".to_string(),
            body,
            chunked_length: is_known.then_some(length as u64),
        };
        let next = Seen { line: "GET /next".to_string(), body: Vec::new(), chunked_length: None };
        prop_assert_eq!(seen, vec![first, next]);
    }
}
