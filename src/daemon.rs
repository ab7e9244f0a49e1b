//! Owns: what ties a process to its machine: the pid file, the working folder, detaching from the terminal.
//! Rule: a pid file appears whole (written aside, then renamed) and is removed only by the process it names.
//! Never: runs after workers exist, but for the pid file's end.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use crate::error::Error;
use crate::python::{self, Fork};
use crate::sys::{file, process};

pub struct PidFile {
    path: PathBuf,
    pid: i32,
}

impl PidFile {
    /// Errors: a process with the number in the file is alive; the file cannot be written.
    pub fn create(path: &Path) -> Result<PidFile, Error> {
        let pid = process::id();
        if let Some(other) = read(path).filter(|other| *other != pid && process::exists(*other)) {
            let shown = path.display();
            return Err(Error::Other(format!(
                "Already running on PID {other} (or pid file '{shown}' is stale) (--pid)"
            )));
        }
        write(path, pid).map_err(|e| Error::system(&format!("pid file {}", path.display()), &e, "--pid"))?;
        Ok(PidFile { path: path.to_path_buf(), pid })
    }

    pub fn remove(&self) {
        if read(&self.path) == Some(self.pid) {
            if let Err(e) = fs::remove_file(&self.path) {
                log::warn!("Cannot remove pid file {}: {e}", self.path.display());
            }
        }
    }
}

fn read(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// `create_new` follows no link and opens nothing that somebody else prepared.
fn write(path: &Path, pid: i32) -> io::Result<()> {
    let aside = path.with_extension(format!("{pid}.tmp"));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&aside)?;
    let written = writeln!(file, "{pid}").and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

/// The folder we were started in, by the name the operator used for it if `PWD` still leads there: a deployment's
/// `current` link must be read anew at a reload.
pub fn start_folder() -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let real = std::env::current_dir()?;
    let named = std::env::var_os("PWD").map(PathBuf::from).filter(|path| path.is_absolute());
    let same = |path: &PathBuf| match (fs::metadata(path), fs::metadata(&real)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    Ok(named.filter(same).unwrap_or(real))
}

/// Detaches: the caller goes on in a new session without a terminal; the processes in between end here.
pub fn detach(py: Python<'_>) -> Result<(), Error> {
    leave_parent(py)?;
    process::new_session().map_err(|e| Error::system("new session", &e, "--daemon"))?;
    leave_parent(py)?;
    file::silence_stdio().map_err(|e| Error::system("/dev/null", &e, "--daemon"))
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
    fn a_living_process_in_the_file_is_respected_and_a_dead_one_is_not() {
        let path = path("other");
        fs::write(&path, format!("{}\n", std::os::unix::process::parent_id())).unwrap();
        assert!(PidFile::create(&path).is_err());
        fs::write(&path, "999999999\n").unwrap();
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        file.remove();
        assert!(path.exists(), "another server's pid file was removed");
        fs::remove_file(&path).unwrap();
    }
}
