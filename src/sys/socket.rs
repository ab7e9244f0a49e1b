//! Owns: sockets below the level of HTTP: accept with the peer's address, receive, send, staged close.
//! Rule: nothing here blocks; every descriptor is CLOEXEC and, when accepted, non-blocking.
//! Never: buffers, retries EAGAIN, knows what the octets mean.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{getsockopt, recv, recvmsg, send, shutdown, ControlMessageOwned, MsgFlags, Shutdown};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// accept4(2): the connection, and the peer's address unless the listener is a unix socket.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockAddr)> {
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
    Ok((fd, address))
}

pub fn receive(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT)?)
}

/// Receives and forgets; returns how many bytes. TCP does not even copy them to `room` (tcp(7), MSG_TRUNC), whose content is
/// undefined afterwards.
pub fn discard(fd: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    Ok(recv(fd.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC)?)
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

/// A message with a descriptor (unix(7), SCM_RIGHTS); the receiver gets a duplicate of it. Async-signal-safe, so that a
/// process that crashes can still pass on what it has.
pub fn send_descriptor(by: BorrowedFd<'_>, message: &[u8], passed: BorrowedFd<'_>) -> io::Result<()> {
    const LENGTH: u32 = size_of::<RawFd>() as u32;
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: message.as_ptr() as *mut libc::c_void, iov_len: message.len() };
    // SAFETY: the control buffer is aligned for a cmsghdr and has room for one with a descriptor (24 of 64 octets); the
    // kernel only reads the message.
    let sent = unsafe {
        let mut head: libc::msghdr = std::mem::zeroed();
        (head.msg_iov, head.msg_iovlen) = (&mut part, 1);
        head.msg_control = control.0.as_mut_ptr().cast();
        head.msg_controllen = libc::CMSG_SPACE(LENGTH) as _;
        let first = libc::CMSG_FIRSTHDR(&head);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(LENGTH) as _;
        libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(passed.as_raw_fd());
        libc::sendmsg(by.as_raw_fd(), &head, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    match sent {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The peer of a connection given by its number, None where it has no address; and the connection, for as long as the
/// caller knows it to be open. Async-signal-safe.
pub fn by_number<'a>(number: RawFd) -> io::Result<(BorrowedFd<'a>, SockAddr)> {
    // SAFETY: the caller knows that the owner keeps the descriptor open meanwhile; a wrong number is reported below.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let peer = SockRef::from(&fd).peer_addr()?;
    Ok((fd, peer))
}

/// A message into `into`, and its descriptor, CLOEXEC; None when the process had no room for another descriptor: it is lost
/// then (recvmsg(2), MSG_CTRUNC).
pub fn receive_descriptor(by: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut parts = [IoSliceMut::new(into)];
    let message = recvmsg::<()>(by.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let passed = match message.flags.contains(MsgFlags::MSG_CTRUNC) {
        true => None,
        false => message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(passed) => passed.first().copied(),
            _ => None,
        }),
    };
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

/// What the kernel knows of a TCP socket (tcp(7), TCP_INFO).
fn tcp_info(fd: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: all of tcp_info's fields are numbers, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let into = std::ptr::from_mut(&mut info).cast();
    // SAFETY: `into` has room for `length` octets, and the kernel writes no more.
    match unsafe { libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &mut length) } {
        0 => Ok(info),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A name in a folder that is held open: the path leads to the same folder whatever becomes of the names above it, and is
/// short, as sun_path (unix(7)) holds no more than a hundred octets.
pub struct InFolder {
    folder: File,
    name: OsString,
}

impl InFolder {
    /// Errors: the path has no name, or its folder cannot be opened.
    pub fn of(path: &Path) -> io::Result<InFolder> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
        Ok(InFolder { folder, name })
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.folder.as_raw_fd().to_string()).join(&self.name)
    }
}

/// A socket that carries messages (SOCK_SEQPACKET), bound or connected at a path of any length.
fn in_folder(path: &Path, call: impl FnOnce(&Socket, &SockAddr) -> io::Result<()>) -> io::Result<Socket> {
    let place = InFolder::of(path)?;
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    call(&socket, &SockAddr::unix(place.path())?)?;
    Ok(socket)
}

/// A non-blocking stream socket with its file, which nobody can connect to before `listen`. An existing file, a link too,
/// is an error (bind(2), EADDRINUSE).
pub fn bind_stream(path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

pub fn listen(socket: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    SockRef::from(&socket).listen(backlog)
}

/// Whether nobody listens at the file of a stream socket any more. Does not wait, though the queue there may be full.
pub fn is_abandoned(path: &Path) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    connect().is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// The user who has connected (unix(7), SO_PEERCRED).
pub fn peer_user(connection: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(getsockopt(&connection, PeerCredentials)?.uid())
}

/// Listens for connections that carry messages.
pub fn listen_for_messages(path: &Path) -> io::Result<OwnedFd> {
    let socket = in_folder(path, Socket::bind)?;
    socket.set_nonblocking(true)?;
    socket.listen(16)?;
    Ok(socket.into())
}

/// Connects to such a listener; the other result is the process that listens (unix(7), SO_PEERCRED).
pub fn connect_for_messages(path: &Path) -> io::Result<(OwnedFd, i32)> {
    let socket = in_folder(path, Socket::connect)?;
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok((socket.into(), peer.pid()))
}

/// How many connections wait at a TCP listener to be accepted (`tcpi_unacked`, which for a listener is the length of its
/// queue).
pub fn backlog(listener: impl AsFd) -> io::Result<u32> {
    Ok(tcp_info(listener.as_fd())?.tcpi_unacked)
}

/// How long ago the last octet came that a TCP connection has received, read or not (`tcpi_last_data_recv`, in milliseconds);
/// of one that has received nothing, how long ago it was made. None for other sockets.
pub fn silent_for(fd: BorrowedFd<'_>) -> Option<Duration> {
    Some(Duration::from_millis(tcp_info(fd).ok()?.tcpi_last_data_recv.into()))
}

/// The first half of a staged close (RFC 9112 §9.6).
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(fd.as_raw_fd(), Shutdown::Write)?)
}

/// The end of a connection for everybody who has a descriptor of it.
pub fn end(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(fd.as_raw_fd(), Shutdown::Both)?)
}

/// `end`, on a connection by its number: for one whose owner is busy and keeps it open.
pub fn end_number(number: RawFd) -> io::Result<()> {
    // SAFETY: the caller knows that the owner keeps the descriptor open meanwhile.
    end(unsafe { BorrowedFd::borrow_raw(number) })
}

/// For whoever waits inside of send(2) and recv(2); of every descriptor of the connection.
pub fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_nonblocking(false)
}

/// A peer of a unix socket cannot send any more from now on: it gets EPIPE. What it has sent is still there to be received
/// (unix(7), shutdown(2)). A peer of a TCP socket is not told.
pub fn shutdown_read(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(fd.as_raw_fd(), Shutdown::Read)?)
}

/// Errors: the number is not that of an open socket.
pub fn check(number: i32) -> io::Result<()> {
    // SAFETY: borrowed for this call only; fstat reports EBADF when it is not open.
    let found = nix::sys::stat::fstat(unsafe { BorrowedFd::borrow_raw(number.max(0)) })?;
    match found.st_mode & libc::S_IFMT {
        libc::S_IFSOCK => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOTSOCK)),
    }
}

/// Takes over a socket inherited under a known number (`fd://N`).
///
/// Errors: it is not open, or no socket, and then perhaps a file of ours that has got the number: it is left alone.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    check(number)?;
    // SAFETY: it is open, and the operator named this socket as ours.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_was_sent_before_the_reading_ended_is_there_and_no_more_can_be_sent() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"in time").unwrap();
        shutdown_read(ours.as_fd()).unwrap();
        assert_eq!(theirs.write(b"late").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut into = [0; 64];
        assert_eq!(receive(ours.as_fd(), &mut into).unwrap(), 7);
        assert_eq!(receive(ours.as_fd(), &mut into).unwrap(), 0);
        (&ours).write_all(b"answer").unwrap();
    }
}
