//! Owns: what ties a process to its machine: the pid file, the working folder, detaching from the terminal.
//! Rule: a pid file appears whole (written aside, then renamed), is locked by the process it names for as long as that
//! lives, and is removed by nobody else. No link is followed.
//! Never: runs after workers exist, but for the pid file's end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use crate::error::{reason, Error};
use crate::python::{self, Fork};
use crate::sys::child::Handle;
use crate::sys::{file, process};

pub struct PidFile {
    path: PathBuf,
    /// Where it is to be once the server that has its place is gone.
    place: PathBuf,
    pid: i32,
    /// Locked.
    file: File,
}

impl PidFile {
    /// Errors: the server that wrote the file is alive; the file cannot be written.
    pub fn create(path: &Path) -> Result<PidFile, Error> {
        let pid = process::id();
        if let Some(other) = keeper(path).filter(|other| *other != pid) {
            let shown = path.display();
            return Err(Error::Other(format!(
                "Already running on PID {other} (or pid file '{shown}' is stale) (--pid)"
            )));
        }
        let file = write(path, pid)
            .map_err(|e| Error::system(&format!("pid file {}", path.display()), &e, "--pid"))?;
        Ok(PidFile { path: path.to_path_buf(), place: path.to_path_buf(), pid, file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a server that is to replace the one whose file this is.
    pub fn create_second(path: &Path) -> Result<PidFile, Error> {
        Ok(PidFile { place: path.to_path_buf(), ..PidFile::create(&second(path))? })
    }

    /// The second server has become the first, and its file takes the first one's place, unless that is somebody's.
    ///
    /// Errors: a sentence.
    pub fn promote(&mut self) -> Result<(), String> {
        let path = &self.place;
        if let Some(other) = keeper(path).filter(|other| *other != self.pid) {
            return Err(format!("pid file {} is that of {other}", path.display()));
        }
        if !self.is_ours() {
            return Err(format!("pid file {} is not ours any more", self.path.display()));
        }
        fs::rename(&self.path, path).map_err(|e| format!("pid file {}: {e}", path.display()))?;
        self.path.clone_from(path);
        Ok(())
    }

    pub fn remove(&self) {
        if self.is_ours() {
            if let Err(e) = fs::remove_file(&self.path) {
                log::warn!("Cannot remove pid file {}: {e}", self.path.display());
            }
        }
    }

    fn is_ours(&self) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let here = fs::symlink_metadata(&self.path).map(identity);
        let ours = self.file.metadata().map(identity);
        matches!((here, ours), (Ok(here), Ok(ours)) if here == ours)
            && file::open_no_link(&self.path).ok().and_then(read) == Some(self.pid)
    }
}

/// Of a pid file; what is longer is none.
const MOST_DIGITS: u64 = 32;

fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".2");
    name.into()
}

fn read(file: File) -> Option<i32> {
    let text = file::read_little(&file, MOST_DIGITS).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

/// The server that runs with this pid file, so certainly that it may be signalled by whoever may signal everybody: the file
/// may be anybody's, and say anything. What it names is that server when it has locked the file, acts as the file's owner
/// and no other, and is older than the file. All of it is asked after the process is in hand.
///
/// Errors: a sentence.
pub fn server_of(path: &Path) -> Result<Handle, String> {
    let wrong = |why: String| format!("pid file {}: {why}", path.display());
    let (file, found, pid) = examine(path).map_err(wrong)?;
    let gone = || wrong(format!("there is no process {pid}: it is not that of a running server"));
    let process = match Handle::open(pid) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)) => return Err(gone()),
        // Without pidfds; or it is not ours to signal, and so whoever tries will hear.
        opened => opened.unwrap_or_else(|_| Handle::by_number(pid)),
    };
    is_server(pid, &file, &found).map_err(wrong)?;
    match process.signal(0) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(gone()),
        _ => Ok(process),
    }
}

/// Errors: it cannot be a pid file.
fn examine(path: &Path) -> Result<(File, fs::Metadata, i32), String> {
    let file = file::open_no_link(path).map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => "it is a link, which is not followed".to_string(),
        _ => reason(&e),
    })?;
    let found = file.metadata().map_err(|e| reason(&e))?;
    if !found.is_file() {
        return Err("it is not a regular file".into());
    }
    file::trust(path, &found).map_err(|e| reason(&e))?;
    let text = file::read_little(&file, MOST_DIGITS + 1).unwrap_or_default();
    let number = text.trim().parse().ok().filter(|pid| *pid > 0 && text.len() as u64 <= MOST_DIGITS);
    let pid = number.ok_or("there is no process number in it, and nothing else")?;
    Ok((file, found, pid))
}

/// Errors: what says that the process is not the server whose file this is.
fn is_server(pid: i32, file: &File, found: &fs::Metadata) -> Result<(), String> {
    let began = process::began(pid).and_then(|began| i64::try_from(began).ok());
    let wrote_it = began.is_some_and(|began| began <= found.mtime() + 1);
    let (locked, owner) = (process::has_locked(pid, file, found.ino()), found.uid());
    match (locked, process::acts_as(pid, owner), wrote_it && process::runs_python(pid)) {
        (false, ..) => Err(format!("process {pid} has not locked it: it is not that of a running server")),
        (_, false, _) => Err(format!("it belongs to user {owner}, and process {pid} acts as another one")),
        (.., false) => Err(format!("process {pid} is not a server that has written it")),
        (true, true, true) => Ok(()),
    }
}

/// The living server whose pid file this is. The number alone says little: after a reboot, or in a new container, it may
/// be anybody's.
fn keeper(path: &Path) -> Option<i32> {
    let file = file::open_no_link(path).ok()?;
    let found = file.metadata().ok()?;
    // In a folder for everybody somebody else may have put it there to keep us from starting.
    file::trust(path, &found).ok()?;
    let written = found.mtime();
    let locked = matches!(file::try_lock(&file), Ok(false));
    let pid = read(file).filter(|pid| process::exists(*pid))?;
    (locked || is_gunicorn(pid, written)).then_some(pid)
}

/// gunicorn does not lock its file, and is known by its name; one that began after the file was written did not write it.
fn is_gunicorn(pid: i32, written: i64) -> bool {
    const NAME: &[u8] = b"gunicorn";
    let named = |line: Vec<u8>| line.windows(NAME.len()).any(|part| part == NAME);
    let began = process::began(pid).and_then(|began| i64::try_from(began).ok());
    process::command_line(pid).is_some_and(named) && began.is_none_or(|began| began <= written + 1)
}

/// `create_new` follows no link and opens nothing that somebody else prepared.
fn write(path: &Path, pid: i32) -> io::Result<File> {
    let aside = path.with_extension(format!("{pid}.tmp"));
    // Left by one with our number that was killed at this point.
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&aside)?;
    let locked = file::try_lock(&file);
    let written = locked.and_then(|_| writeln!(file, "{pid}")).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.map(|()| file)
}

/// The folder we were started in, by the name the operator used for it if `PWD` still leads there: a deployment's
/// `current` link must be read anew at a reload.
pub fn start_folder() -> io::Result<PathBuf> {
    let real = std::env::current_dir()?;
    let named = std::env::var_os("PWD").map(PathBuf::from).filter(|path| path.is_absolute());
    let same = |path: &PathBuf| match (fs::metadata(path), fs::metadata(&real)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    Ok(named.filter(same).unwrap_or(real))
}

/// Detaches: the caller goes on in a new session without a terminal; the processes in between end here. Standard output
/// and error, unless they are the terminal, may be kept.
pub fn detach(py: Python<'_>, keeps_stdio: bool) -> Result<(), Error> {
    leave_parent(py)?;
    process::new_session().map_err(|e| Error::system("new session", &e, "--daemon"))?;
    leave_parent(py)?;
    file::silence_stdio(keeps_stdio).map_err(|e| Error::system("/dev/null", &e, "--daemon"))
}

fn leave_parent(py: Python<'_>) -> Result<(), Error> {
    match python::fork(py) {
        Ok(Fork::Child) => Ok(()),
        Ok(Fork::Parent(_)) => process::exit_now(0),
        Err(e) => Err(Error::Other(format!("cannot fork: {e} (--daemon)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("rgunicorn-{name}-{}.pid", process::id()))
    }

    #[test]
    fn a_pid_file_names_us_and_goes_with_us() {
        let path = path("own");
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        file.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_replaced_and_what_it_leads_to_is_not() {
        let (path, precious) = (path("link"), path("precious"));
        fs::write(&precious, "1\n").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "1\n");
        file.remove();
        assert!(!path.exists());
        fs::remove_file(&precious).unwrap();
    }

    #[test]
    fn the_second_file_takes_the_place_of_the_first() {
        let path = path("promote");
        fs::write(&path, "999999999\n").unwrap();
        let mut file = PidFile::create_second(&path).unwrap();
        assert!(second(&path).exists());
        file.promote().unwrap();
        assert!(!second(&path).exists());
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        assert!(!file::try_lock(File::open(&path).unwrap()).unwrap(), "the lock was lost");
        file.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_process_that_began_later_did_not_write_the_file() {
        let began = process::began(process::id()).unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(now.abs_diff(began) < 24 * 3600);
        assert!(!is_gunicorn(process::id(), 0));
    }

    /// The server of a file that says this, as it would be signalled.
    fn named(path: &Path, text: &str) -> Result<i32, String> {
        fs::write(path, text).unwrap();
        server_of(path).map(|server| server.pid())
    }

    #[test]
    fn only_who_has_locked_the_file_is_its_server() {
        let path = path("locked");
        let file = PidFile::create(&path).unwrap();
        assert_eq!(server_of(&path).unwrap().pid(), process::id());
        // The lock is ours, the number somebody else's.
        let other = std::os::unix::process::parent_id();
        assert!(named(&path, &format!("{other}\n")).unwrap_err().contains("has not locked it"));
        for nonsense in
            ["", "x", "-1", "0", "1 2", "99999999999", &format!("{}{}", " ".repeat(40), process::id())]
        {
            assert!(named(&path, nonsense).unwrap_err().contains("no process number"), "{nonsense:?}");
        }
        assert!(named(&path, "2147483647").unwrap_err().contains("there is no process"));
        fs::write(&path, format!("{}\n", process::id())).unwrap();
        file.file.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(server_of(&path).err().unwrap().contains("is not a server that has written it"));
        fs::remove_file(&path).unwrap();
        drop(file);
        assert!(named(&path, &format!("{}\n", process::id())).unwrap_err().contains("has not locked it"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_living_server_in_the_file_is_respected_and_anybody_else_is_not() {
        let path = path("other");
        fs::write(&path, format!("{}\n", std::os::unix::process::parent_id())).unwrap();
        let theirs = File::open(&path).unwrap();
        assert!(file::try_lock(&theirs).unwrap());
        assert!(PidFile::create(&path).is_err());
        drop(theirs);
        PidFile::create(&path).unwrap().remove();
        fs::write(&path, "999999999\n").unwrap();
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        file.remove();
        assert!(path.exists(), "another server's pid file was removed");
        fs::remove_file(&path).unwrap();
    }
}
