//! Owns: files as descriptors: append-only logs that can be replaced under a running writer, sendfile, pidfiles' links.
//! Rule: everything opened here is CLOEXEC.
//! Never: decides where a log goes or what a line looks like.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

pub fn open_append(path: &Path) -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().append(true).create(true).mode(0o644).open(path)?.into())
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Makes a regular file somebody else's, and makes it if it is not there. A link is left alone: where it leads may have
/// been chosen by whoever owns the folder.
pub fn give(path: &Path, owner: Owner) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(flags).open(path);
    let file = match opened {
        // A link, or a fifo that nobody reads.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Ok(()),
        opened => opened?,
    };
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// Takes the lock of an open file (flock(2)), which ends with the last descriptor of it; false when somebody has it.
pub fn try_lock(fd: impl AsFd) -> io::Result<bool> {
    // SAFETY: flock(2) has no precondition on memory. (nix's guard would unlock in a forked child that drops it.)
    match unsafe { libc::flock(fd.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            e => Err(e),
        },
    }
}

/// Opens for reading, unless the last part of the path is a link.
pub fn open_no_link(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// A second descriptor of the same open file, CLOEXEC.
pub fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    fd.try_clone_to_owned()
}

/// A second descriptor for a number that somebody else owns, such as one the application returned from `fileno()`.
pub fn duplicate_number(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is only borrowed for this call; fcntl(F_DUPFD_CLOEXEC) reports EBADF when it is not open.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

pub fn stderr() -> BorrowedFd<'static> {
    // SAFETY: 2 is open from the start of the process (std sees to it) and is never closed by us.
    unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) }
}

pub fn stdout() -> BorrowedFd<'static> {
    // SAFETY: as for stderr.
    unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) }
}

/// Makes `old` refer to the file of `new` (dup3): whoever writes to `old` goes on, in the new file.
pub fn replace(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    if old.as_raw_fd() == new.as_raw_fd() {
        return Ok(());
    }
    // SAFETY: both are open descriptors; dup3 replaces `old` atomically and its owner keeps owning the number.
    let done = unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives up the file of a descriptor, and keeps its number from meaning another one.
pub fn vacate(fd: BorrowedFd<'_>) -> io::Result<()> {
    replace(fd, File::open("/dev/null")?.as_fd())
}

/// Makes standard output another file, for child processes too.
pub fn become_stdout(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::unistd::dup2_stdout(fd)?)
}

pub fn become_stderr(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::unistd::dup2_stderr(fd)?)
}

/// Points stdin, stdout and stderr at /dev/null, for a process that detaches from its terminal; or only those that are
/// the terminal, and stdin.
pub fn silence_stdio(terminals_only: bool) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let keeps = |fd: BorrowedFd<'_>| terminals_only && !fd.is_terminal();
    nix::unistd::dup2_stdin(&null)?;
    if !keeps(stdout()) {
        become_stdout(null.as_fd())?;
    }
    if !keeps(stderr()) {
        become_stderr(null.as_fd())?;
    }
    Ok(())
}

/// Lets a program that replaces this one have the descriptor. For a process that is about to do that, and nobody else.
pub fn let_inherit(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{fcntl, FcntlArg, FdFlag};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// The number of the file behind the descriptor, whoever has it open and under which number; a socket has one too.
pub fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(fd)?.st_ino)
}

/// What a path names, links not followed; another file that takes its place has another number.
pub fn identity(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// One write(2); what a full disk or a closed pipe did not take is the caller's loss to count.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::write(fd, bytes) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => return Ok(other?),
        }
    }
}

/// All of `bytes`, in as few write(2) as the kernel needs; one for a regular file.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

/// Size in octets of a regular file; an error for anything that sendfile(2) cannot read from.
pub fn regular_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let stat = nix::sys::stat::fstat(fd)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(stat.st_size as u64)
}

/// One pread(2); 0 is the end of the file.
pub fn read_at(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> io::Result<usize> {
    Ok(nix::sys::uio::pread(fd, into, offset as libc::off_t)?)
}

/// sendfile(2) from `offset`; moves `offset` and returns the octets taken, 0 at the end of the file.
pub fn send_file(out: impl AsFd, file: impl AsFd, offset: &mut u64, most: usize) -> io::Result<usize> {
    let mut at = *offset as libc::off_t;
    let sent = nix::sys::sendfile::sendfile(out, file, Some(&mut at), most)?;
    *offset = at as u64;
    Ok(sent)
}
