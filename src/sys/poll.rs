//! Owns: waiting for descriptors: epoll for a worker's many, poll(2) for a process's few, an eventfd to wake another.
//! Rule: level-triggered always; a poller is made after the fork that gave the process its role.
//! Never: owns the descriptors it watches, knows what they are.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::clock::Nanos;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
    /// Read, for a listener shared between processes: the kernel wakes one of the waiters (EPOLLEXCLUSIVE).
    Accept,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Accept => EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE,
        }
    }

    fn poll_flags(self) -> PollFlags {
        match self {
            Interest::Read | Interest::Accept => PollFlags::POLLIN,
            Interest::Write => PollFlags::POLLOUT,
        }
    }
}

const BATCH: usize = 128;

/// What one wait found; consumed token by token, by whoever leads the loop.
pub struct Events {
    list: Vec<EpollEvent>,
    next: usize,
    count: usize,
}

impl Default for Events {
    fn default() -> Self {
        Events { list: vec![EpollEvent::empty(); BATCH], next: 0, count: 0 }
    }
}

impl Events {
    pub fn is_empty(&self) -> bool {
        self.next == self.count
    }
}

impl Events {
    /// Whether the peer of the last one has left for good: reset, or closed for both directions (epoll_ctl(2), EPOLLHUP).
    /// One that only sends no more is still there to read.
    pub fn found_gone(&self) -> bool {
        let last = self.next.checked_sub(1).and_then(|last| self.list.get(last));
        last.is_some_and(|event| event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR))
    }
}

impl Iterator for Events {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let token = self.list[..self.count].get(self.next)?.data();
        self.next += 1;
        Some(token)
    }
}

pub struct Poller(Epoll);

impl Poller {
    pub fn new() -> io::Result<Poller> {
        Ok(Poller(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(interest.flags(), token))?)
    }

    /// Not for `Interest::Accept`: the kernel refuses to modify an exclusive registration; remove and add it.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.0.modify(fd, &mut EpollEvent::new(interest.flags(), token))?)
    }

    /// `remove` by number: for a descriptor whose owner is elsewhere at the moment.
    pub fn forget(&self, fd: RawFd) -> io::Result<()> {
        // SAFETY: the number is only passed to epoll_ctl, which reports EBADF or ENOENT when it is not ours any more.
        self.remove(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    /// Waits at most `patience` (None: for ever); a signal ends the wait early with no events.
    pub fn wait(&self, events: &mut Events, patience: Option<Nanos>) -> io::Result<usize> {
        events.next = 0;
        events.count = 0;
        let timeout = EpollTimeout::try_from(milliseconds(patience)).unwrap_or(EpollTimeout::MAX);
        match self.0.wait(&mut events.list, timeout) {
            Ok(count) => {
                events.count = count;
                Ok(count)
            }
            Err(Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Poller {
    /// Readable while anything it watches is ready; whoever waits for that takes no event from anybody.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0 .0.as_fd()
    }
}

/// Whether the peer of a socket has left for good.
pub fn is_gone(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    // What cannot be told is not known to be gone.
    poll(&mut polled, PollTimeout::ZERO).is_ok()
        && polled[0].revents().is_some_and(|found| found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// Rounded up, so that a deadline has really passed when the wait for it ends.
fn milliseconds(patience: Option<Nanos>) -> i32 {
    match patience {
        None => -1,
        Some(nanos) => nanos.div_ceil(1_000_000).min(i32::MAX as u64) as i32,
    }
}

/// Waits for one descriptor; false when the time passed or a signal came first.
pub fn wait_one(fd: BorrowedFd<'_>, interest: Interest, patience: Option<Nanos>) -> io::Result<bool> {
    Ok(wait_few(&[fd], interest, patience)?[0])
}

/// Waits for any of a few descriptors; says which are ready, none when the time passed or a signal came first.
pub fn wait_few(
    fds: &[BorrowedFd<'_>],
    interest: Interest,
    patience: Option<Nanos>,
) -> io::Result<Vec<bool>> {
    poll_list(fds.iter().map(|fd| PollFd::new(*fd, interest.poll_flags())).collect(), patience)
}

/// The same, each for what it is waited for.
pub fn wait_each<'a>(
    fds: impl Iterator<Item = (BorrowedFd<'a>, Interest)>,
    patience: Option<Nanos>,
) -> io::Result<Vec<bool>> {
    poll_list(fds.map(|(fd, interest)| PollFd::new(fd, interest.poll_flags())).collect(), patience)
}

fn poll_list(mut list: Vec<PollFd>, patience: Option<Nanos>) -> io::Result<Vec<bool>> {
    let timeout = PollTimeout::try_from(milliseconds(patience)).unwrap_or(PollTimeout::MAX);
    match poll(&mut list, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(list.iter().map(|p| p.any().unwrap_or(false)).collect()),
        Err(errno) => Err(errno.into()),
    }
}

/// An eventfd: `wake` makes it readable until `clear`.
pub struct Waker(OwnedFd);

impl From<OwnedFd> for Waker {
    /// Of one that another process has made.
    fn from(eventfd: OwnedFd) -> Waker {
        Waker(eventfd)
    }
}

impl Waker {
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?.into()))
    }

    pub fn wake(&self) {
        // EAGAIN means that the counter is full: the reader is awake already.
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Never waits, whatever another process that has the same eventfd has made of its flags, which they share.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let into = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::preadv2(self.0.as_fd().as_raw_fd(), &into, 1, -1, libc::RWF_NOWAIT) };
        // EAGAIN means that nobody woke it; before Linux 5.8 an eventfd has only its flags.
        if got < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
            let _ = nix::unistd::read(&self.0, &mut count);
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_round_up() {
        assert_eq!(milliseconds(None), -1);
        assert_eq!(milliseconds(Some(0)), 0);
        assert_eq!(milliseconds(Some(1)), 1);
        assert_eq!(milliseconds(Some(2_000_000)), 2);
        assert_eq!(milliseconds(Some(u64::MAX)), i32::MAX);
    }

    #[test]
    fn a_waker_is_readable_from_wake_to_clear() {
        let waker = Waker::new().unwrap();
        let poller = Poller::new().unwrap();
        let mut events = Events::default();
        poller.add(&waker, 9, Interest::Read).unwrap();
        assert_eq!(poller.wait(&mut events, Some(0)).unwrap(), 0);
        waker.wake();
        waker.wake();
        poller.wait(&mut events, Some(0)).unwrap();
        assert_eq!(events.collect::<Vec<_>>(), [9]);
        waker.clear();
        assert!(!wait_one(waker.as_fd(), Interest::Read, Some(0)).unwrap());
        nix::fcntl::fcntl(&waker, nix::fcntl::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
        waker.clear();
        waker.wake();
        waker.clear();
        assert!(!wait_one(waker.as_fd(), Interest::Read, Some(0)).unwrap());
    }
}
