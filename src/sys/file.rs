//! Owns: files as descriptors: append-only logs that can be replaced under a running writer, sendfile, pidfiles' links.
//! Rule: everything opened here is CLOEXEC.
//! Never: decides where a log goes or what a line looks like.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens a log for appending, and makes it if it is not there. Nobody else chooses where it goes: a link is followed only
/// when it belongs to root or to us, and in a folder that everybody may write to so must the file itself (as under the
/// kernel's fs.protected_symlinks, _regular and _fifos, which may be off). A fifo that nobody reads is an error, not a wait.
pub fn open_append(path: &Path) -> io::Result<OwnedFd> {
    match open_log(path, libc::O_NOFOLLOW) {
        Ok(file) => {
            trust(path, &file.metadata()?)?;
            Ok(file.into())
        }
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            let link = std::fs::symlink_metadata(path)?;
            match is_ours(link.uid()) {
                true => Ok(open_log(path, 0)?.into()),
                false => Err(untrusted("a link", link.uid())),
            }
        }
        Err(e) => Err(e),
    }
}

fn open_log(path: &Path, flags: i32) -> io::Result<File> {
    let flags = flags | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(flags).open(path)?;
    // It was only to keep the open itself from waiting.
    nix::fcntl::fcntl(&file, nix::fcntl::F_SETFL(nix::fcntl::OFlag::O_APPEND))?;
    Ok(file)
}

/// Errors: in this folder everybody may put something, and this file is neither ours nor root's nor the folder owner's; or
/// a stranger may, and the file is at home elsewhere too (as fs.protected_hardlinks would keep a stranger from doing).
pub fn trust(path: &Path, found: &std::fs::Metadata) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::metadata(folder)?;
    let is_device = !found.is_file() && !found.file_type().is_fifo();
    let owner = found.uid();
    let is_known = is_device || !is_shared(&folder) || is_ours(owner) || owner == folder.uid();
    match is_known {
        true if found.is_file() && found.nlink() > 1 && is_open_to_strangers(&folder) => {
            Err(untrusted("a second name of a file", owner))
        }
        true => Ok(()),
        false => Err(untrusted("a file in a folder for everybody", owner)),
    }
}

fn is_open_to_strangers(folder: &std::fs::Metadata) -> bool {
    !is_ours(folder.uid()) || folder.mode() & libc::S_IWOTH != 0
}

/// Everybody may put something there, and only owners may take theirs away.
fn is_shared(folder: &std::fs::Metadata) -> bool {
    const EVERYBODY: u32 = libc::S_ISVTX | libc::S_IWOTH;
    folder.mode() & EVERYBODY == EVERYBODY
}

/// Root's, ours, or theirs in whose name files are opened now.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw() || uid == super::process::file_user()
}

fn untrusted(what: &str, owner: u32) -> io::Error {
    let words = format!("it is {what} that belongs to user {owner}");
    io::Error::new(io::ErrorKind::PermissionDenied, words)
}

/// Makes the file of a socket somebody else's. Who may write to the folder may have put something else there meanwhile:
/// what is not a socket of ours under this name alone is left as it is.
pub fn give_socket(path: &Path, owner: Owner) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw();
    if !(found.file_type().is_socket() && found.nlink() == 1 && is_ours) {
        return Err(io::Error::other("somebody has replaced it meanwhile"));
    }
    let (uid, gid) = (Some(owner.uid.into()), Some(owner.gid.into()));
    Ok(nix::unistd::fchownat(&file, "", uid, gid, nix::fcntl::AtFlags::AT_EMPTY_PATH)?)
}

/// What is read of a small file, such as a number in a pid file, whoever wrote it.
pub fn read_little(file: &File, most: u64) -> io::Result<String> {
    let mut text = String::new();
    file.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// A file in memory that is written at its end only, by whoever has it.
pub fn memory_log() -> io::Result<OwnedFd> {
    use nix::fcntl::{fcntl, FcntlArg, OFlag};
    use nix::sys::memfd::{memfd_create, MFdFlags};
    let fd = memfd_create(c"rgunicorn", MFdFlags::MFD_CLOEXEC)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(fd)
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Makes a regular file somebody else's, and makes it if it is not there. A link is left alone, and so is a file that has
/// another name beside. The folder must be one in which nobody but root can put anything.
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

/// What a log is written to, as far as it matters for waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file or a device: a write takes as long as it takes.
    File,
    /// A pipe or a terminal: a write waits for its reader.
    Pipe,
    Socket,
}

pub fn kind(fd: BorrowedFd<'_>) -> Kind {
    match nix::sys::stat::fstat(fd).map(|found| found.st_mode & libc::S_IFMT) {
        Ok(libc::S_IFIFO) => Kind::Pipe,
        Ok(libc::S_IFSOCK) => Kind::Socket,
        Ok(libc::S_IFCHR) if fd.is_terminal() => Kind::Pipe,
        _ => Kind::File,
    }
}

/// The same pipe or terminal, opened anew: whoever has it open under another descriptor goes on waiting, this one does not.
///
/// Errors: the process may not open it, although it has it; nobody reads it (ENXIO).
pub fn reopen_without_waiting(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(OpenOptions::new().append(true).custom_flags(flags).open(path)?.into())
}

/// What can be written without waiting; to a pipe, by a descriptor that does not wait.
///
/// Errors: WouldBlock, when that is nothing.
pub fn write_now(fd: BorrowedFd<'_>, kind: Kind, bytes: &[u8]) -> io::Result<usize> {
    use nix::sys::socket::{send, MsgFlags};
    match kind {
        Kind::Socket => Ok(send(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?),
        Kind::File | Kind::Pipe => write(fd, bytes),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, symlink, PermissionsExt};
    use std::path::PathBuf;

    const STRANGER: u32 = 4_000_000;

    /// A folder of this test's own.
    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rgunicorn-file-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    fn shared(folder: &Path) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o1777)).unwrap();
    }

    #[test]
    fn a_link_of_ours_is_followed_and_a_strangers_is_not() {
        let folder = folder("link");
        let (link, target) = (folder.join("log"), folder.join("target"));
        symlink(&target, &link).unwrap();
        write_all(open_append(&link).unwrap().as_fd(), b"a line").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"a line");
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(STRANGER), None).unwrap();
            let refusal = open_append(&link).unwrap_err();
            assert_eq!(refusal.kind(), io::ErrorKind::PermissionDenied);
            assert_eq!(refusal.to_string(), "it is a link that belongs to user 4000000");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn in_a_folder_for_everybody_the_file_is_ours() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = folder("shared");
        let log = folder.join("log");
        fs::write(&log, "").unwrap();
        chown(&log, Some(STRANGER), None).unwrap();
        assert!(open_append(&log).is_ok(), "a folder of one owner");
        shared(&folder);
        assert!(open_append(&log).is_err());
        fs::remove_file(&log).unwrap();
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
        chown(&log, Some(STRANGER), None).unwrap();
        let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&log).unwrap();
        assert!(open_append(&log).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_second_name_is_nobodys_but_ours_to_give() {
        let folder = folder("names");
        let (precious, log) = (folder.join("precious"), folder.join("log"));
        fs::write(&precious, "").unwrap();
        fs::hard_link(&precious, &log).unwrap();
        assert!(open_append(&log).is_ok(), "a folder of ours alone");
        shared(&folder);
        let refusal = open_append(&log).unwrap_err().to_string();
        assert!(refusal.starts_with("it is a second name of a file"), "{refusal}");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(&folder, Some(STRANGER), None).unwrap();
            assert!(open_append(&log).is_err(), "a stranger's folder");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_fifo_without_a_reader_is_an_error_and_no_wait() {
        let folder = folder("fifo");
        let fifo = folder.join("log");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(open_append(&fifo).unwrap_err().raw_os_error(), Some(libc::ENXIO));
        let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        let log = open_append(&fifo).unwrap();
        let flags = nix::fcntl::fcntl(&log, nix::fcntl::F_GETFL).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn only_a_socket_of_ours_is_given_away() {
        let folder = folder("socket");
        let (path, other) = (folder.join("socket"), folder.join("other"));
        let owner = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        give_socket(&path, owner).unwrap();
        fs::hard_link(&path, &other).unwrap();
        assert!(give_socket(&path, owner).is_err(), "it has two names");
        fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert!(give_socket(&path, owner).is_err(), "a link");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(give_socket(&path, owner).is_err(), "a file");
        fs::remove_dir_all(&folder).unwrap();
    }
}
