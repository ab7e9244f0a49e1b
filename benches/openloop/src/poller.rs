//! Owns: waiting, for sockets and for a moment, more precisely than epoll's milliseconds.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::record::Nanos;

/// The last stretch before a moment is spent looking instead of sleeping: it takes about as long to wake up.
const SPIN: Nanos = 50_000;
const TIMER: u64 = u64::MAX;
const EVENTS: usize = 256;

pub struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    events: Vec<EpollEvent>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        Ok(Poller { epoll, timer, events: vec![EpollEvent::empty(); EVENTS] })
    }

    pub fn add(&self, socket: impl AsFd, token: usize, writable: bool) -> io::Result<()> {
        Ok(self.epoll.add(socket, EpollEvent::new(interest(writable), token as u64))?)
    }

    pub fn change(&self, socket: impl AsFd, token: usize, writable: bool) -> io::Result<()> {
        Ok(self.epoll.modify(socket, &mut EpollEvent::new(interest(writable), token as u64))?)
    }

    /// Until a socket is ready or `pause` is over. Returns how many events there are.
    pub fn wait(&mut self, pause: Nanos) -> io::Result<usize> {
        if pause <= SPIN {
            return self.look_once();
        }
        let sleep = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(pause - SPIN)));
        self.timer.set(sleep, TimerSetTimeFlags::empty())?;
        self.look(EpollTimeout::NONE)
    }

    /// What is ready now.
    pub fn look_once(&mut self) -> io::Result<usize> {
        self.look(EpollTimeout::ZERO)
    }

    fn look(&mut self, timeout: EpollTimeout) -> io::Result<usize> {
        match self.epoll.wait(&mut self.events, timeout) {
            Err(nix::Error::EINTR) => Ok(0),
            found => Ok(found?),
        }
    }

    /// The socket of the event, or None when it was the timer.
    pub fn event(&self, index: usize) -> Option<usize> {
        let token = self.events[index].data();
        if token == TIMER {
            // Only to make it quiet again; that it has run out is known.
            let _ = self.timer.wait();
            return None;
        }
        Some(token as usize)
    }
}

fn interest(writable: bool) -> EpollFlags {
    let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
    if writable {
        readable | EpollFlags::EPOLLOUT
    } else {
        readable
    }
}
