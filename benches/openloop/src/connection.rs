//! Owns: one connection and the request that is on it. It is opened when a request needs it, and stays while the server
//! keeps it.
//! Never: chooses requests, or repeats one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};

use crate::poller::Poller;
use crate::record::Outcome;
use crate::response::{Progress, Reader};

#[derive(Clone, Copy, PartialEq)]
pub enum State {
    Closed,
    Connecting,
    Idle,
    Busy,
}

/// What a call has brought.
pub enum Happening {
    Nothing,
    /// The request is over.
    Over(Outcome),
    /// The server closed the connection while nothing was asked.
    IdleClose,
}

pub struct Connection {
    token: usize,
    server: SocketAddr,
    source: Option<SocketAddr>,
    stream: Option<TcpStream>,
    pub state: State,
    /// The number of the request on it.
    pub request: usize,
    sent: usize,
    /// Whether the poller also waits for room to send.
    watched: bool,
    pub answer: Reader,
}

impl Connection {
    pub fn new(token: usize, server: SocketAddr, source: Option<SocketAddr>) -> Self {
        Connection {
            token,
            server,
            source,
            stream: None,
            state: State::Closed,
            request: 0,
            sent: 0,
            watched: false,
            answer: Reader::new(),
        }
    }

    pub fn free(&self) -> bool {
        matches!(self.state, State::Closed | State::Idle)
    }

    /// Sends the octets of request number `request`, as soon as there is a connection.
    pub fn start(&mut self, request: usize, octets: &[u8], poller: &Poller) -> Happening {
        self.request = request;
        self.sent = 0;
        self.answer.reset();
        if self.state == State::Idle {
            self.state = State::Busy;
            return self.send(octets, poller);
        }
        self.state = State::Connecting;
        match self.open(poller) {
            Ok(()) => Happening::Nothing,
            Err(_) => self.over(Outcome::Refused),
        }
    }

    /// The poller has seen something.
    pub fn ready(&mut self, octets: &[u8], poller: &Poller, buffer: &mut [u8]) -> Happening {
        match self.state {
            State::Closed => Happening::Nothing,
            State::Connecting => self.connected(octets, poller),
            State::Idle => self.receive_idle(buffer),
            State::Busy if self.sent < octets.len() => match self.send(octets, poller) {
                Happening::Nothing => self.receive(buffer),
                happening => happening,
            },
            State::Busy => self.receive(buffer),
        }
    }

    fn open(&mut self, poller: &Poller) -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = self.source {
            // The port is then chosen on connecting, and may be one that waits after a connection to another server.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
        }
        match socket.connect(&self.server.into()) {
            Err(e) if e.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        poller.add(&socket, self.token, true)?;
        self.watched = true;
        self.stream = Some(socket.into());
        Ok(())
    }

    fn connected(&mut self, octets: &[u8], poller: &Poller) -> Happening {
        let Some(stream) = &self.stream else { return self.over(Outcome::Refused) };
        if !matches!(stream.take_error(), Ok(None)) {
            return self.over(Outcome::Refused);
        }
        self.state = State::Busy;
        self.send(octets, poller)
    }

    fn send(&mut self, octets: &[u8], poller: &Poller) -> Happening {
        let Some(stream) = &mut self.stream else { return self.over(Outcome::Refused) };
        match stream.write(&octets[self.sent..]) {
            Ok(length) => self.sent += length,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            // What the server said before it closed is still to be read.
            Err(_) if self.sent > 0 => self.sent = octets.len(),
            Err(_) => return self.broken(),
        }
        let unsent = self.sent < octets.len();
        if unsent != self.watched && poller.change(stream, self.token, unsent).is_err() {
            return self.broken();
        }
        self.watched = unsent;
        Happening::Nothing
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Happening {
        let Some(stream) = &mut self.stream else { return self.broken() };
        let length = match stream.read(buffer) {
            Ok(0) if self.answer.ends() => return self.answered(),
            Ok(0) => return self.broken(),
            Ok(length) => length,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Happening::Nothing
            }
            Err(_) => return self.broken(),
        };
        match self.answer.feed(&buffer[..length]) {
            Progress::More => Happening::Nothing,
            Progress::Done => self.answered(),
            Progress::Bad => self.over(Outcome::Failed),
        }
    }

    fn receive_idle(&mut self, buffer: &mut [u8]) -> Happening {
        let Some(stream) = &mut self.stream else { return Happening::Nothing };
        match stream.read(buffer) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Happening::Nothing
            }
            _ => {
                self.close();
                Happening::IdleClose
            }
        }
    }

    fn answered(&mut self) -> Happening {
        if self.answer.keep {
            self.state = State::Idle;
        } else {
            self.close();
        }
        Happening::Over(if self.answer.status == 200 { Outcome::Answered } else { Outcome::Failed })
    }

    fn broken(&mut self) -> Happening {
        let outcome = if self.answer.begun() { Outcome::Cut } else { Outcome::Reset };
        self.over(outcome)
    }

    fn over(&mut self, outcome: Outcome) -> Happening {
        self.close();
        Happening::Over(outcome)
    }

    /// The poller forgets a descriptor that is closed.
    fn close(&mut self) {
        self.stream = None;
        self.state = State::Closed;
    }
}
