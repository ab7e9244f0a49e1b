//! Owns: the way to a collector of lines or metrics (syslog, statsd): a socket that is made, lost and made again.
//! Rule: sending never waits and never fails anybody: what the collector does not take is counted, and that is all. A
//! stream belongs to one process; a datagram socket serves the children too. A stream keeps whole lines, up to a limit.
//! Never: knows what is in a line.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::logging::Collector;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::poll::{wait_one, Interest};
use crate::sys::{process, socket};

/// What a stream holds that the collector has not taken.
const ENOUGH: usize = 256 * 1024;
/// A datagram's line is cut here: more than IPv4 carries would be refused as a whole.
const LONGEST: usize = 60 * 1024;
/// Between two tries to connect a stream.
const PAUSE: Nanos = SECOND;

pub struct Remote {
    ways: Vec<(SockAddr, Type)>,
    link: Mutex<Link>,
    lost: AtomicU64,
}

#[derive(Default)]
struct Link {
    socket: Option<Socket>,
    stream: bool,
    /// Whose the stream is.
    pid: i32,
    pending: Vec<u8>,
    /// The first line of `pending` has been sent in part.
    partial: bool,
    /// No try before this.
    retry_at: Nanos,
}

impl Remote {
    /// Resolves the host, which may take its time; connects later.
    pub fn new(collector: &Collector) -> io::Result<Remote> {
        let ways = match collector {
            Collector::Udp { host, port } => resolved(host, *port)?.map(|way| (way, Type::DGRAM)).collect(),
            Collector::Tcp { host, port } => resolved(host, *port)?.map(|way| (way, Type::STREAM)).collect(),
            Collector::UnixDatagram(path) => vec![(SockAddr::unix(path)?, Type::DGRAM)],
            Collector::UnixStream(path) => vec![(SockAddr::unix(path)?, Type::STREAM)],
            Collector::Unix(path) => {
                vec![(SockAddr::unix(path)?, Type::DGRAM), (SockAddr::unix(path)?, Type::STREAM)]
            }
        };
        Ok(Remote { ways, link: Mutex::default(), lost: AtomicU64::new(0) })
    }

    /// Waits for a stream to be connected, for a process that has the time.
    pub fn meet(&self, patience: Nanos) {
        let mut link = self.link();
        link.leave_to_parent();
        if link.socket.is_none() {
            // Sending tries again, and counts what is lost.
            let _ = self.open(&mut link);
        }
        if let Some(socket) = link.socket.as_ref().filter(|_| link.stream) {
            let _ = wait_one(socket.as_fd(), Interest::Write, Some(patience));
        }
    }

    /// Sends a line, which a stream gets with a line feed at its end; line feeds inside become `#012` there.
    pub fn send(&self, line: &[u8]) {
        let mut link = self.link();
        link.leave_to_parent();
        if link.socket.is_none() && self.open(&mut link).is_err() && !self.may_wait(&link) {
            self.lose(1);
            return;
        }
        match link.stream {
            true => self.send_on(&mut link, line),
            false => self.send_datagram(&mut link, &line[..line.len().min(LONGEST)]),
        }
    }

    /// Sends what has been waiting.
    pub fn flush(&self) {
        let mut link = self.link();
        if link.stream && !link.pending.is_empty() {
            link.leave_to_parent();
            if link.socket.is_some() || self.open(&mut link).is_ok() {
                self.push(&mut link);
            }
        }
    }

    /// How many lines were lost since the last time that anybody asked.
    pub fn take_lost(&self) -> u64 {
        match self.lost.load(Relaxed) {
            0 => 0,
            _ => self.lost.swap(0, Relaxed),
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lose(&self, lines: u64) {
        self.lost.fetch_add(lines, Relaxed);
    }

    /// Whether a line can be kept until there is a stream again.
    fn may_wait(&self, link: &Link) -> bool {
        link.stream && self.ways.iter().any(|(_, kind)| *kind == Type::STREAM)
    }

    fn open(&self, link: &mut Link) -> io::Result<()> {
        let now = clock::monotonic();
        if link.retry_at > now {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut failed = io::ErrorKind::NotConnected.into();
        for (address, kind) in &self.ways {
            match connect(address, *kind) {
                Ok(socket) => {
                    link.socket = Some(socket);
                    link.stream = *kind == Type::STREAM;
                    link.pid = process::id();
                    return Ok(());
                }
                Err(e) => {
                    link.stream = *kind == Type::STREAM;
                    failed = e;
                }
            }
        }
        if link.stream {
            link.retry_at = now + PAUSE;
        }
        Err(failed)
    }

    /// A server that was restarted refuses the first; the kernel tells of one that was refused before.
    fn send_datagram(&self, link: &mut Link, line: &[u8]) {
        for attempt in 0..2 {
            let Some(socket) = &link.socket else {
                break;
            };
            match socket::transmit(socket.as_fd(), line, false) {
                Ok(_) => return,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    link.socket = None;
                    if attempt == 1 || self.open(link).is_err() {
                        break;
                    }
                }
            }
        }
        self.lose(1);
    }

    fn send_on(&self, link: &mut Link, line: &[u8]) {
        if link.pending.len() + line.len() > ENOUGH {
            self.lose(1);
        } else {
            for part in line.split_inclusive(|octet| *octet == b'\n') {
                match part.split_last() {
                    Some((b'\n', text)) => {
                        link.pending.extend_from_slice(text);
                        link.pending.extend_from_slice(b"#012");
                    }
                    _ => link.pending.extend_from_slice(part),
                }
            }
            link.pending.push(b'\n');
        }
        self.push(link);
    }

    fn push(&self, link: &mut Link) {
        let Some(socket) = &link.socket else {
            return;
        };
        let mut at = 0;
        let failed = loop {
            if at == link.pending.len() {
                break false;
            }
            match socket::transmit(socket.as_fd(), &link.pending[at..], false) {
                Ok(sent) => at += sent,
                Err(e) => break e.kind() != io::ErrorKind::WouldBlock,
            }
        };
        if at > 0 {
            link.partial = link.pending[at - 1] != b'\n';
            link.pending.drain(..at);
        }
        if failed {
            self.disconnect(link);
        }
    }

    /// The rest of a line that the lost stream had the beginning of is no line.
    fn disconnect(&self, link: &mut Link) {
        link.socket = None;
        link.retry_at = clock::monotonic() + PAUSE;
        if std::mem::take(&mut link.partial) {
            let end = link.pending.iter().position(|octet| *octet == b'\n');
            link.pending.drain(..end.map_or(link.pending.len(), |end| end + 1));
            self.lose(1);
        }
    }
}

impl Link {
    /// A stream that was inherited is the parent's, with what waits for it.
    fn leave_to_parent(&mut self) {
        if self.stream && self.pid != process::id() {
            *self = Link { stream: true, pid: process::id(), ..Link::default() };
        }
    }
}

fn resolved(host: &str, port: u16) -> io::Result<impl Iterator<Item = SockAddr>> {
    let mut found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    // What listens on "localhost" for datagrams can be told from nothing; IPv4 is what gunicorn uses.
    found.sort_by_key(|address| address.is_ipv6());
    Ok(found.into_iter().map(SockAddr::from))
}

fn connect(address: &SockAddr, kind: Type) -> io::Result<Socket> {
    let domain = if address.is_unix() { Domain::UNIX } else { Domain::from(i32::from(address.family())) };
    let socket = Socket::new(domain, kind, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn datagrams_arrive_and_a_server_that_comes_back_is_found() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let remote = Remote::new(&Collector::Udp { host: "127.0.0.1".to_string(), port }).unwrap();
        remote.send(b"one");
        let mut octets = [0; 10];
        assert_eq!(server.recv(&mut octets).unwrap(), 3);
        drop(server);
        (0..3).for_each(|_| remote.send(b"lost"));
        let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        remote.send(b"two");
        assert_eq!(server.recv(&mut octets).unwrap(), 3);
    }

    #[test]
    fn a_stream_gets_lines() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let remote = Remote::new(&Collector::Tcp { host: "127.0.0.1".to_string(), port }).unwrap();
        remote.meet(SECOND);
        remote.send(b"one\ntwo");
        remote.send(b"three");
        let mut stream = server.accept().unwrap().0;
        let mut octets = [0; 17];
        stream.read_exact(&mut octets).unwrap();
        assert_eq!(&octets, b"one#012two\nthree\n");
    }

    #[test]
    fn nobody_there_costs_the_lines_only() {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let remote = Remote::new(&Collector::Tcp { host: "127.0.0.1".to_string(), port }).unwrap();
        (0..20_000).for_each(|_| remote.send(b"a line that nobody wants to hear"));
        assert!(remote.take_lost() > 10_000);
        let remote = Remote::new(&Collector::UnixDatagram("/nonexistent/log".into())).unwrap();
        remote.send(b"x");
        assert_eq!((remote.take_lost(), remote.take_lost()), (1, 0));
    }
}
