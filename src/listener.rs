//! Owns: listening sockets: from a configured address to a descriptor, and the unix socket's file.
//! Rule: a listener is made once, by the arbiter, and shared by every worker; it closes last. A unix socket's file is
//! removed by whoever made it, and only if it still is that socket.
//! Never: accepts.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::config::values::Address;
use crate::sys::file::{self, Owner};
use crate::sys::{process, socket};

/// Where a listener really listens, as `getsockname` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    Tcp(SocketAddr),
    /// The name as bound, an abstract one with its NUL; empty for an unnamed socket that was inherited.
    Unix(PathBuf),
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Local::Tcp(address) => write!(f, "{address}"),
            Local::Unix(path) => Address::Unix(path.clone()).fmt(f),
        }
    }
}

impl Local {
    /// What a client would be told to connect to.
    pub fn url(&self, secure: bool) -> String {
        match self {
            Local::Tcp(address) if secure => format!("https://{address}"),
            Local::Tcp(address) => format!("http://{address}"),
            Local::Unix(_) => self.to_string(),
        }
    }
}

/// How a listener is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    pub backlog: i32,
    /// Of a unix socket's file.
    pub umask: u32,
    /// The same; without one it is ours.
    pub owner: Option<Owner>,
    /// Others may bind the same TCP port, if they do likewise.
    pub reuse_port: bool,
    /// An IPv6 listener leaves the IPv4 addresses of its port to another one.
    pub only_v6: bool,
}

pub struct Listener {
    id: u64,
    socket: OwnedFd,
    address: Address,
    local: Local,
    /// Device and inode of the file that `bind` made.
    made: Option<(u64, u64)>,
    /// By the server that this one is to replace, which may be using it still.
    shared: bool,
}

impl Listener {
    /// Binds and listens.
    ///
    /// Errors: what the kernel says; resolving a host name may block.
    pub fn bind(address: &Address, manner: &Manner) -> io::Result<Listener> {
        let socket = match address {
            Address::Tcp { host, port } => bind_tcp(host, *port, manner)?,
            Address::Unix(path) => bind_unix(path, manner)?,
            Address::Fd(number) => Socket::from(socket::inherited(*number)?),
        };
        Listener::of(socket, address, manner, false)
    }

    /// Takes over the socket with which the server before this one serves the address.
    ///
    /// Errors: it is no listening socket.
    pub fn adopt(socket: OwnedFd, address: &Address, manner: &Manner) -> io::Result<Listener> {
        Listener::of(Socket::from(socket), address, manner, true)
    }

    fn of(socket: Socket, address: &Address, manner: &Manner, shared: bool) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        // Whoever opened it has chosen its backlog.
        if !socket.is_listener()? {
            socket.listen(manner.backlog)?;
        }
        let local = local_of(&socket)?;
        if let Local::Tcp(_) = local {
            // Accepted connections inherit it; without it a response in two sends waits for a delayed ACK.
            socket.set_tcp_nodelay(true)?;
        }
        let made = match address {
            Address::Unix(path) => identity(path),
            _ => None,
        };
        let socket: OwnedFd = socket.into();
        let id = file::inode(socket.as_fd())?;
        Ok(Listener { id, socket, address: address.clone(), local, made, shared })
    }

    /// The same in every process that has this listener, and no other listener's.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Whether it came from the server that this one is to replace.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Gives up this process's part of it; the kernel refuses who comes after the last. It keeps its number, which may be
    /// known elsewhere.
    pub fn close(&self) {
        if let Err(e) = file::vacate(self.socket.as_fd()) {
            log::warn!("Cannot close the listener {}: {e}", self.local);
        }
    }

    /// Removes the file of a unix socket, when it is still ours.
    pub fn unlink(&self) {
        if let (Address::Unix(path), Some(made)) = (&self.address, self.made) {
            if identity(path) == Some(made) {
                if let Err(e) = fs::remove_file(path) {
                    log::warn!("Cannot remove {}: {e}", path.display());
                }
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind_tcp(host: &str, port: u16, manner: &Manner) -> io::Result<Socket> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        match try_tcp(address, manner) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn try_tcp(address: SocketAddr, manner: &Manner) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if manner.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if manner.only_v6 && address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_unix(path: &Path, manner: &Manner) -> io::Result<Socket> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let before = process::set_umask(manner.umask);
    let bound = SockAddr::unix(path).and_then(|address| socket.bind(&address));
    process::set_umask(before);
    bound?;
    if let Some(owner) = manner.owner.filter(|_| identity(path).is_some()) {
        file::give_socket(path, owner)?;
    }
    Ok(socket)
}

/// A socket file left by a server that was killed is in the way; anything else at that path is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket")),
        Err(_) => Ok(()),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Where an inherited socket listens.
///
/// Errors: it is not open, or no listening socket.
pub fn locate(socket: BorrowedFd<'_>) -> io::Result<Local> {
    let socket = SockRef::from(&socket);
    match socket.is_listener()? {
        true => local_of(&socket),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen")),
    }
}

/// Whether a socket that listens there is what the address asks for. May block to resolve a host name.
pub fn serves(local: &Local, address: &Address) -> bool {
    match (local, address) {
        (Local::Unix(bound), Address::Unix(path)) => bound == path,
        (Local::Tcp(bound), Address::Tcp { host, port }) => {
            let fits = |wanted: SocketAddr| wanted.ip() == bound.ip() && [0, bound.port()].contains(port);
            (host.as_str(), *port).to_socket_addrs().is_ok_and(|mut wanted| wanted.any(fits))
        }
        _ => false,
    }
}

fn local_of(socket: &Socket) -> io::Result<Local> {
    let address = socket.local_addr()?;
    Ok(match address.as_socket() {
        Some(tcp) => Local::Tcp(tcp),
        None => Local::Unix(unix_name(&address)),
    })
}

fn unix_name(address: &SockAddr) -> PathBuf {
    let hidden = address.as_abstract_namespace().map(|name| OsString::from_vec([b"\0", name].concat()));
    hidden.map(PathBuf::from).or(address.as_pathname().map(Path::to_path_buf)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNER: Manner = Manner { backlog: 8, umask: 0, owner: None, reuse_port: false, only_v6: false };

    #[test]
    fn port_0_is_answered_with_the_port_the_kernel_chose() {
        let address = Address::Tcp { host: "127.0.0.1".into(), port: 0 };
        let listener = Listener::bind(&address, &MANNER).unwrap();
        let Local::Tcp(local) = listener.local() else { panic!("{:?}", listener.local()) };
        assert_ne!(local.port(), 0);
        assert_eq!(listener.local().url(false), format!("http://{local}"));
        assert_eq!(listener.local().url(true), format!("https://{local}"));
        std::net::TcpStream::connect(local).unwrap();
    }

    #[test]
    fn an_abstract_name_has_no_file() {
        let name = format!("rgunicorn-listener-{}", std::process::id());
        let listener = Listener::bind(&format!("unix:@{name}").parse().unwrap(), &MANNER).unwrap();
        assert_eq!(listener.local().to_string(), format!("unix:@{name}"));
        assert_eq!(listener.made, None);
    }

    #[test]
    fn a_port_is_shared_by_those_who_all_want_to() {
        let manner = Manner { reuse_port: true, ..MANNER };
        let bind = |port, manner| Listener::bind(&Address::Tcp { host: "127.0.0.1".into(), port }, manner);
        let first = bind(0, &manner).unwrap();
        let Local::Tcp(local) = first.local() else { panic!("{:?}", first.local()) };
        assert!(bind(local.port(), &manner).is_ok());
        assert!(bind(local.port(), &MANNER).is_err());
    }

    #[test]
    fn an_inherited_socket_is_known_by_where_it_listens() {
        let listener = Listener::bind(&Address::Tcp { host: "127.0.0.1".into(), port: 0 }, &MANNER).unwrap();
        let local = locate(listener.as_fd()).unwrap();
        assert_eq!(local, *listener.local());
        let Local::Tcp(SocketAddr::V4(bound)) = local else { panic!("{local:?}") };
        let port = bound.port();
        for (text, wanted) in [
            (format!("127.0.0.1:{port}"), true),
            ("127.0.0.1:0".into(), true),
            (format!("127.0.0.2:{port}"), false),
            (format!("127.0.0.1:{}", port ^ 1), false),
            ("unix:/x".into(), false),
        ] {
            assert_eq!(serves(&local, &text.parse().unwrap()), wanted, "{text}");
        }
        let adopted = listener.socket.try_clone().unwrap();
        let adopted = Listener::adopt(adopted, listener.address(), &MANNER).unwrap();
        assert_eq!((adopted.id(), adopted.is_shared()), (listener.id(), true));
        let other = Listener::bind(listener.address(), &MANNER).unwrap();
        assert_ne!(other.id(), listener.id());
        assert!(locate(std::io::stderr().as_fd()).is_err());
    }

    #[test]
    fn a_stale_unix_socket_is_replaced_and_ours_is_removed() {
        let path = std::env::temp_dir().join(format!("rgunicorn-listener-{}", std::process::id()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener =
            Listener::bind(&Address::Unix(path.clone()), &Manner { umask: 0o077, ..MANNER }).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        listener.unlink();
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert!(Listener::bind(&Address::Unix(path.clone()), &MANNER).is_err());
        listener.unlink();
        assert!(path.exists(), "a file that is not ours was removed");
        fs::remove_file(&path).unwrap();
    }
}
