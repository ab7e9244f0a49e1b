//! Owns: sockets below the level of HTTP: accept with the peer's address, receive, send, staged close.
//! Rule: nothing here blocks; every descriptor is CLOEXEC and, when accepted, non-blocking.
//! Never: buffers, retries EAGAIN, knows what the octets mean.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    recv, recvmsg, send, sendmsg, shutdown, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown,
};
use socket2::{SockAddr, SockRef};

/// accept4(2): the connection, and the peer's address unless the listener is a unix socket.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `storage` is a sockaddr_storage of `length` octets as accept4 wants; it is initialised on success.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            match libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(OwnedFd::from_raw_fd(fd)),
            }
        })?
    };
    Ok((fd, address.as_socket()))
}

pub fn receive(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
}

/// What `receive` would give, left where it is.
pub fn peek(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK)?)
}

pub fn transmit(fd: BorrowedFd<'_>, bytes: &[u8], more: bool) -> io::Result<usize> {
    let mut flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    if more {
        flags |= MsgFlags::from_bits_retain(libc::MSG_MORE);
    }
    Ok(send(fd.as_raw_fd(), bytes, flags)?)
}

pub fn transmit_vectored(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(&fd).send_vectored_with_flags(parts, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
}

/// A message with a descriptor (unix(7), SCM_RIGHTS); the receiver gets a duplicate of it.
pub fn send_descriptor(by: BorrowedFd<'_>, message: &[u8], passed: BorrowedFd<'_>) -> io::Result<()> {
    let passed = [passed.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&passed)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(by.as_raw_fd(), &[IoSlice::new(message)], &control, flags, None)?;
    Ok(())
}

/// A message into `into`, and its descriptor, CLOEXEC; None when the process has no room for another descriptor.
pub fn receive_descriptor(by: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(into)];
    let message = recvmsg::<()>(by.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let passed = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(passed) => passed.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us.
    let passed = passed.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    Ok((message.bytes, passed))
}

/// Octets and the end of the stream, on a connection by its number: for one whose owner is busy and keeps it open.
/// Octets that do not fit in the socket's buffer are lost.
pub fn last_words(number: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the caller knows that the owner keeps the descriptor open meanwhile.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    transmit(fd, bytes, false)?;
    shutdown_write(fd)
}

/// The first half of a staged close (RFC 9112 §9.6).
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(fd.as_raw_fd(), Shutdown::Write)?)
}

/// Takes over a descriptor inherited under a known number (`fd://N`).
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the operator named this descriptor as ours; fcntl below reports EBADF when it is not open.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)) {
        Ok(_) => Ok(fd),
        Err(errno) => {
            // Not open: closing it would be wrong too.
            std::mem::forget(fd);
            Err(errno.into())
        }
    }
}
