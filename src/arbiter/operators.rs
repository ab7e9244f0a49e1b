//! Owns: the control socket: its file, and the connections of those who ask and command.
//! Rule: nothing waits and everything is bounded: connections, octets, time without a word. Only root and the user of this
//! process are heard. Who does not read an answer is asked nothing more; when all places are taken, who has been silent
//! for the longest gives way, so that nobody can lock the operator out.
//! Never: carries a command out; removes what is not a socket, or another server's.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::control::{reply, take_request, Request, MOST_OCTETS};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::poll::Interest;
use crate::sys::socket::InFolder;
use crate::sys::{process, socket};

const MOST_CLIENTS: usize = 16;
/// What gunicorn has.
const IDLE: Nanos = 300 * SECOND;
const BACKLOG: i32 = 64;

/// Where a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Talk {
    Open,
    /// The client sends nothing more, and may wait for answers.
    Heard,
    /// It is told what is left to tell, and goes.
    Leaving,
    Gone,
}

struct Client {
    id: u64,
    user: u32,
    stream: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When it last sent or took something.
    active: Nanos,
    talk: Talk,
}

/// A request, of whom.
pub struct Asked {
    pub user: u32,
    pub request: Request,
    client: u64,
}

pub struct Operators {
    listener: OwnedFd,
    path: PathBuf,
    mode: u32,
    /// Device and inode of the file: one of that name may come to be another's.
    identity: (u64, u64),
    clients: Vec<Client>,
    next_id: u64,
    /// Who was turned away last, which is said once.
    stranger: Option<u32>,
}

impl Operators {
    /// Makes the file, in the place of one that a dead server has left behind.
    ///
    /// Errors: something else is there, a server listens there, what bind(2) says.
    pub fn listen(path: &Path, mode: u32) -> io::Result<Operators> {
        let place = InFolder::of(path)?;
        clear_way(&place.path())?;
        // The file is never, not for a moment, more open than asked.
        let before = process::set_umask(0o777 & !mode);
        let bound = socket::bind_stream(&place.path());
        process::set_umask(before);
        let listener = bound?;
        let identity = identity(&place.path()).ok_or(ErrorKind::NotFound)?;
        socket::listen(listener.as_fd(), BACKLOG)?;
        let (path, clients) = (path.to_path_buf(), Vec::new());
        Ok(Operators { listener, path, mode, identity, clients, next_id: 0, stranger: None })
    }

    /// Whether it is what the configuration wants, and still there.
    pub fn is_at(&self, path: &Path, mode: u32) -> bool {
        self.path == path && self.mode == mode && identity(path) == Some(self.identity)
    }

    /// Takes the file away, if it still is this one's.
    pub fn remove(self) {
        let removed = InFolder::of(&self.path).and_then(|place| match identity(&place.path()) {
            Some(found) if found == self.identity => fs::remove_file(place.path()),
            _ => Ok(()),
        });
        if let Err(e) = removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) }) {
            log::warn!("Cannot remove {}: {e}", self.path.display());
        }
    }

    pub fn waits(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        let listener = (self.listener.as_fd(), Interest::Read);
        std::iter::once(listener).chain(self.clients.iter().map(|client| {
            let interest = if client.output.is_empty() { Interest::Read } else { Interest::Write };
            (client.stream.as_fd(), interest)
        }))
    }

    /// When the first of them has been silent for too long.
    pub fn deadline(&self) -> Option<Nanos> {
        self.clients.iter().map(|client| client.active + IDLE).min()
    }

    /// Takes in what has come, and sends what is left to send.
    pub fn hear(&mut self, now: Nanos) {
        self.accept(now);
        for client in &mut self.clients {
            client.flush(now);
            client.read(now);
        }
    }

    /// A complete request, of somebody who has read all answers so far.
    pub fn next(&mut self) -> Option<Asked> {
        let (at, asked) =
            self.clients.iter_mut().enumerate().find_map(|(at, client)| Some((at, client.next()?)))?;
        // The others have their turn before this one.
        self.clients[at..].rotate_left(1);
        Some(asked)
    }

    pub fn answer(&mut self, asked: &Asked, answer: Result<Value, String>, now: Nanos) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == asked.client) {
            client.output.extend(reply(&asked.request.id, answer));
            client.flush(now);
        }
    }

    /// Lets go who is done or has been silent for too long; to be called when `next` has given what it has.
    pub fn dismiss(&mut self, now: Nanos) {
        self.clients.retain(|client| !client.is_done() && client.active + IDLE > now);
    }

    fn accept(&mut self, now: Nanos) {
        for _ in 0..MOST_CLIENTS {
            // Whoever is gone before is no loss; without a descriptor to spare the others are heard all the same.
            let Ok((stream, _)) = socket::accept(self.listener.as_fd()) else {
                return;
            };
            match socket::peer_user(stream.as_fd()) {
                Ok(user) if user == 0 || user == process::user() => self.admit(stream, user, now),
                Ok(user) => self.turn_away(&stream, user),
                Err(e) => log::warn!("Who is at the control socket cannot be told: {e}"),
            }
        }
    }

    fn admit(&mut self, stream: OwnedFd, user: u32, now: Nanos) {
        if self.clients.len() >= MOST_CLIENTS {
            let silent = (0..self.clients.len()).min_by_key(|at| self.clients[*at].active);
            silent.map(|at| self.clients.remove(at));
        }
        self.next_id += 1;
        let (id, input, output) = (self.next_id, Vec::new(), Vec::new());
        self.clients.push(Client { id, user, stream, input, output, active: now, talk: Talk::Open });
    }

    fn turn_away(&mut self, stream: &OwnedFd, user: u32) {
        let why = format!("only root and user {} are obeyed, and this is user {user}", process::user());
        if self.stranger.replace(user) != Some(user) {
            log::warn!("Control socket: {why}");
        }
        // A courtesy; the socket's buffer is empty and takes it.
        let _ = socket::transmit(stream.as_fd(), &reply(&Value::Null, Err(why)), false);
    }
}

impl Client {
    fn next(&mut self) -> Option<Asked> {
        if !self.output.is_empty() || !matches!(self.talk, Talk::Open | Talk::Heard) {
            return None;
        }
        match take_request(&mut self.input) {
            Ok(request) => request.map(|request| Asked { user: self.user, request, client: self.id }),
            Err(why) => {
                self.output.extend(reply(&Value::Null, Err(why)));
                self.talk = Talk::Leaving;
                self.flush(self.active);
                None
            }
        }
    }

    /// Asked when no complete request is left.
    fn is_done(&self) -> bool {
        match self.talk {
            Talk::Open => false,
            Talk::Heard | Talk::Leaving => self.output.is_empty(),
            Talk::Gone => true,
        }
    }

    fn flush(&mut self, now: Nanos) {
        while !self.output.is_empty() && self.talk != Talk::Gone {
            match socket::transmit(self.stream.as_fd(), &self.output, false) {
                Ok(count) => {
                    self.output.drain(..count);
                    self.active = now;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.talk = Talk::Gone,
            }
        }
    }

    fn read(&mut self, now: Nanos) {
        let mut chunk = [0; 4096];
        while self.talk == Talk::Open && self.output.is_empty() && self.input.len() < MOST_OCTETS {
            match socket::receive(self.stream.as_fd(), &mut chunk) {
                Ok(0) => self.talk = Talk::Heard,
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    self.active = now;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.talk = Talk::Gone,
            }
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn clear_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(ErrorKind::AlreadyExists, "something else than a socket is there"))
        }
        Ok(_) if socket::is_abandoned(path) => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another server listens there")),
    }
}
