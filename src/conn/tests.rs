//! Owns: what a connection does when time passes: bodies that do not come, and clients that send on after their answer.
//! Rule: over a pair of sockets, with a clock that is an argument.
//! Never: waits for a time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;

use super::{Conn, Desk, Event, Next, Settings, State, Turn};
use crate::config::Buffering;
use crate::sys::clock::{Nanos, SECOND};
use crate::transport::{Peer, Transport};

const START: Nanos = 1000 * SECOND;
const UPLOAD: &[u8] = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n";

struct Client {
    settings: Settings,
    desk: Desk,
    conn: Conn,
    far: UnixStream,
    draining: bool,
}

impl Client {
    fn new(settings: Settings) -> Client {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut desk = Desk::new(&settings);
        let mut turn = Turn {
            desk: &mut desk,
            settings: &settings,
            access: None,
            now: START,
            closing: false,
            draining: false,
        };
        let conn = Conn::new(Transport::Plain(near.into()), Peer::Unix, 0, &mut turn);
        Client { settings, desk, conn, far, draining: false }
    }

    fn advance(&mut self, event: Event, now: Nanos) -> Next {
        let (settings, draining) = (&self.settings, self.draining);
        let mut turn = Turn { desk: &mut self.desk, settings, access: None, now, closing: false, draining };
        self.conn.advance(event, &mut turn)
    }

    fn send(&mut self, bytes: &[u8], now: Nanos) -> Next {
        self.far.write_all(bytes).unwrap();
        self.advance(Event::Readable, now)
    }

    fn answer(&mut self) -> String {
        let mut bytes = [0; 4096];
        let read = self.far.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }
}

fn client() -> Client {
    Client::new(Settings::for_tests(Buffering::On))
}

#[test]
fn a_body_that_came_while_nobody_read_is_no_late_body() {
    let mut client = client();
    client.send(UPLOAD, START);
    assert_eq!(client.conn.state(), State::Body);
    let late = client.conn.deadline() + 100 * SECOND;
    client.far.write_all(b"hello").unwrap();
    assert!(matches!(client.advance(Event::Expired, late), Next::Wait(_)));
    assert_eq!(
        (client.conn.state(), client.conn.deadline()),
        (State::Body, late + client.settings.body_timeout)
    );
    client.far.write_all(&[b'x'; 995]).unwrap();
    assert_eq!(client.advance(Event::Expired, late + 1000 * SECOND), Next::Call);
}

#[test]
fn a_body_of_which_nothing_comes_is_late() {
    let mut client = client();
    client.send(UPLOAD, START);
    let late = client.conn.deadline();
    client.advance(Event::Expired, late);
    assert!(client.answer().starts_with("HTTP/1.1 408 "));
}

#[test]
fn a_head_that_came_while_nobody_read_is_served() {
    let mut client = client();
    client.send(b"GET / HTTP/1.1\r\n", START);
    let late = client.conn.deadline();
    client.far.write_all(b"Host: t\r\n\r\n").unwrap();
    assert_eq!(client.advance(Event::Expired, late), Next::Call);
}

#[test]
fn after_a_refusal_is_read_for_half_a_minute_while_something_comes() {
    let mut client = client();
    client.send(b"nonsense\r\n\r\n", START);
    assert_eq!((client.conn.state(), client.conn.deadline()), (State::Linger, START + 5 * SECOND));
    assert_eq!(client.settings.lingering.load(Relaxed), 1);
    for second in 1..30 {
        client.send(b"x", START + second * SECOND);
        assert_eq!(client.conn.deadline(), START + (second + 5).min(30) * SECOND);
    }
    assert_eq!(client.send(b"x", START + 30 * SECOND), Next::Close);
    drop(client.conn);
    assert_eq!(client.settings.lingering.load(Relaxed), 0);
}

#[test]
fn what_follows_no_request_is_read_up_to_a_bound() {
    let mut client = client();
    client.send(b"nonsense\r\n\r\n", START);
    let mut sent = 0;
    while client.send(&[b'x'; 64 * 1024], START) != Next::Close {
        sent += 64 * 1024;
    }
    assert_eq!(sent, 64 << 20);
}

#[test]
fn what_follows_a_body_that_is_too_large_is_read_for_as_long_as_it_comes() {
    let mut settings = Settings::for_tests(Buffering::On);
    settings.body_limit = 100;
    let mut client = Client::new(settings);
    client.send(UPLOAD, START);
    assert!(client.answer().starts_with("HTTP/1.1 413 "));
    for _ in 0..2000 {
        assert!(matches!(client.send(&[b'x'; 64 * 1024], START), Next::Wait(_)));
    }
}

#[test]
fn a_worker_that_drains_and_a_crowd_have_little_time_for_it() {
    let mut first = client();
    first.send(b"nonsense\r\n\r\n", START);
    assert!(matches!(first.advance(Event::Drain, START + SECOND), Next::Wait(_)));
    assert_eq!(first.conn.deadline(), START + 3 * SECOND);
    first.send(b"x", START + 2 * SECOND);
    assert_eq!(first.conn.deadline(), START + 3 * SECOND);
    let mut leaving = client();
    leaving.draining = true;
    leaving.send(b"nonsense\r\n\r\n", START);
    assert_eq!(leaving.conn.deadline(), START + 2 * SECOND);
    let mut late = client();
    late.settings.lingering.store(256, Relaxed);
    late.send(b"nonsense\r\n\r\n", START);
    assert_eq!(late.conn.deadline(), START + 2 * SECOND);
}
