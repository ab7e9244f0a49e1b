//! Owns: processes: this one, its session, its parent, its forks; what can be known of another one by its number.
//! Rule: a number may be somebody else's by now. Children are signalled through `child`.
//! Never: forks; that is Python's own `os.fork`, called from `python`.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A thread as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    pub id: i32,
    pub name: String,
}

/// The threads of this process but its first (proc(5), `/proc/self/task`).
pub fn other_threads() -> io::Result<Vec<Thread>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // One that has ended meanwhile has no name any more.
        if let (Some(thread), Ok(name)) = (number, fs::read_to_string(entry.path().join("comm"))) {
            found.push(Thread { id: thread, name: name.trim_end().to_string() });
        }
    }
    found.retain(|thread| thread.id != id());
    Ok(found)
}

/// The files that are mapped into this process (proc(5), `/proc/self/maps`).
pub fn loaded_files() -> io::Result<Vec<String>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    Ok(maps.lines().filter_map(|line| line.split_once('/')).map(|(_, path)| path.to_string()).collect())
}

/// Gives the memory that the C library keeps for later back to the system (malloc_trim(3)).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sends a signal to a process by its number, which must not be anybody else's by now.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // 0 and below mean groups of processes to kill(2).
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // nix has no names for real-time signals.
    // SAFETY: kill(2) has no precondition on memory.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to this process.
pub fn signal_self(number: i32) {
    // It exists, and may signal itself (kill(2)).
    let _ = signal(id(), number);
}

pub fn exists(pid: i32) -> bool {
    !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

/// When a process began, in seconds since the epoch (proc(5): `starttime`, `btime`).
pub fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    // SAFETY: sysconf(3) has no precondition.
    let rate = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(boot + ticks / u64::try_from(rate).ok().filter(|rate| *rate > 0)?)
}

/// Whether a process acts as this user and no other: real, effective, saved, and for files (proc(5): `Uid`).
pub fn acts_as(pid: i32, uid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let mut users = users.split_whitespace().map(|user| user.parse() == Ok(uid)).peekable();
    users.peek().is_some() && users.all(|is_it| is_it)
}

/// Whether a process has locked a file (flock(2)) that is open here: by the kernel's list of locks, or by what the process has
/// open where file systems number files in another way there (overlayfs, btrfs).
pub fn has_locked(pid: i32, file: &fs::File, inode: u64) -> bool {
    let word = pid.to_string();
    // proc(5): `1: FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF`.
    let is_theirs = |line: &str, inode: Option<&str>| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "FLOCK");
        at.is_some_and(|at| {
            let place = words.get(at + 4).and_then(|place| place.rsplit(':').next());
            words.get(at + 3) == Some(&word.as_str()) && inode.is_none_or(|inode| place == Some(inode))
        })
    };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = inode.to_string();
    let Ok(here) = file.metadata().map(|found| (found.dev(), found.ino())) else {
        return false;
    };
    locks.lines().any(|line| is_theirs(line, Some(&inode))) || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let same = open.filter(|one| fs::metadata(one.path()).is_ok_and(|f| (f.dev(), f.ino()) == here));
        let facts = same.filter_map(|one| {
            let number = one.file_name().into_string().ok()?;
            fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()
        });
        facts.into_iter().any(|facts| facts.lines().any(|line| is_theirs(line, None)))
    }
}

/// Whether the program of a process may be a Python or ours; what cannot be seen (ptrace(2), "access mode checking") may be.
pub fn runs_python(pid: i32) -> bool {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe"));
    let Ok(theirs) = program(&pid.to_string()) else {
        return true;
    };
    let name = theirs.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_known = ["python", "pypy", "rgunicorn"].iter().any(|known| name.starts_with(known));
    is_known || program("self").is_ok_and(|ours| ours == theirs)
}

/// The command line of a process, its words ended by NULs.
pub fn command_line(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/cmdline")).ok()
}

pub fn id() -> i32 {
    nix::unistd::getpid().as_raw()
}

/// Our parent, or whoever took its place when it ended.
pub fn parent() -> i32 {
    nix::unistd::getppid().as_raw()
}

/// Runs another program in this process (execve(2)): with the signals blocked that are blocked now, and with those
/// descriptors that are not CLOEXEC. Unlike `Command::exec`, which would let pending signals in on the way.
///
/// Errors: it cannot be run; this process goes on.
pub fn replace(program: &Path, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    use std::os::unix::ffi::OsStrExt;
    let program = CString::new(program.as_os_str().as_bytes())?;
    Ok(nix::unistd::execve(&program, args, env)?)
}

/// The user in whose name this thread opens files (setfsuid(2)).
pub fn file_user() -> u32 {
    // An impossible user changes nothing; the answer is who it was.
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(u32::MAX)).as_raw()
}

/// As whom this process acts.
pub fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

pub fn new_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// Descendants whose parent dies become our children (prctl(2), PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

pub fn set_umask(mask: u32) -> u32 {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask as libc::mode_t)).bits() as u32
}

/// A CLOEXEC pipe: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// A pair of connected SOCK_SEQPACKET sockets, CLOEXEC: messages keep their borders and a dead peer reads as end.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Ends the process at once: no destructor, no exit handler.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(code) }
}
