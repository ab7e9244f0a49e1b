//! Owns: what this process has open, as /proc/self/fd shows it, and where its connections lead.
//! Rule: looks only; a descriptor that is closed meanwhile is passed over.
//! Never: closes or changes one.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{SockRef, Type};

/// An open descriptor and what the kernel calls it: `socket:[4711]`, `anon_inode:[eventpoll]`, a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub number: RawFd,
    pub link: String,
}

/// The other end of a connected stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Remote {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// A socket without a name, or with an abstract one, of another process.
    Process(i32),
}

/// Every open descriptor but the one that this takes itself.
pub fn list() -> io::Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(number), Ok(link)) = (number, fs::read_link(entry.path())) {
            found.push(Descriptor { number, link: link.to_string_lossy().into_owned() });
        }
    }
    let own = format!("/proc/{}/fd", super::process::id());
    found.retain(|open| open.link != own);
    Ok(found)
}

/// Where a connected stream socket leads; None for any other descriptor, and for a pair of sockets of this process.
pub fn remote(open: &Descriptor) -> Option<Remote> {
    if !open.link.starts_with("socket:") {
        return None;
    }
    // SAFETY: the descriptor is only borrowed for these calls; one that is closed meanwhile makes them fail.
    let fd = unsafe { BorrowedFd::borrow_raw(open.number) };
    let socket = SockRef::from(&fd);
    if !matches!(socket.r#type(), Ok(Type::STREAM | Type::SEQPACKET)) {
        return None;
    }
    let peer = socket.peer_addr().ok()?;
    if let Some(address) = peer.as_socket() {
        return Some(Remote::Tcp(address));
    }
    if let Some(path) = peer.as_pathname() {
        return Some(Remote::Unix(path.to_path_buf()));
    }
    let pid = getsockopt(&fd, sockopt::PeerCredentials).ok()?.pid();
    (pid != super::process::id()).then_some(Remote::Process(pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn remote_of(fd: &impl AsRawFd) -> Option<Remote> {
        let open = list().unwrap().into_iter().find(|open| open.number == fd.as_raw_fd());
        remote(&open.expect("an open descriptor is in the list"))
    }

    #[test]
    fn only_connected_streams_to_elsewhere_have_a_remote() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        assert_eq!(remote_of(&stream), Some(Remote::Tcp(address)));
        assert_eq!(remote_of(&listener), None);
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagram.connect(address).unwrap();
        assert_eq!(remote_of(&datagram), None);
        assert_eq!(remote_of(&UnixStream::pair().unwrap().0), None);
        assert_eq!(remote_of(&std::fs::File::open("/dev/null").unwrap()), None);
    }

    #[test]
    fn a_unix_socket_leads_to_its_path() {
        let path = std::env::temp_dir().join(format!("rgunicorn-remote-{}", std::process::id()));
        let _listener = UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        assert_eq!(remote_of(&stream), Some(Remote::Unix(path.clone())));
        fs::remove_file(&path).unwrap();
    }
}
