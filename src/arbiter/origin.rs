//! Owns: how this process was started: by which program, with which words, in which environment.
//! Rule: read before anything has changed them; a program is kept by its name, as another release may be where that leads.
//! Never: runs it.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::bequest::{Given, VARIABLES};
use crate::python;
use crate::sys::process;

/// What has to be run to have this server again.
pub(super) struct Origin {
    pub(super) program: Option<PathBuf>,
    pub(super) args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Origin {
    /// Before anything has changed the process's title or environment.
    pub(super) fn of_this_process(py: Python<'_>) -> Origin {
        let line = process::command_line(process::id()).unwrap_or_default();
        let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
        let mut args: Vec<OsString> = words.map(|word| OsStr::from_bytes(word).to_os_string()).collect();
        let python = python::executable(py).filter(|path| is_this_program(path));
        let program = match python {
            Some(python) => {
                args[0] = python.clone().into();
                Some(python)
            }
            // The interpreter is part of the program.
            None => args.first().and_then(|name| find_program(name)),
        };
        Origin { program, args, env: std::env::vars_os().collect() }
    }

    /// The variables as they were, for a new server with these descriptors.
    pub(super) fn env(&self, given: &Given<'_>) -> Vec<CString> {
        let ours = VARIABLES.iter().chain(&["LISTEN_PID", "LISTEN_FDS"]);
        let gone: Vec<&OsStr> = ours.map(OsStr::new).collect();
        let mut env: Vec<_> =
            self.env.iter().filter(|(name, _)| !gone.contains(&name.as_os_str())).cloned().collect();
        // It is the process that it names, and now another one.
        for (_, value) in env.iter_mut().filter(|(name, _)| name == "WATCHDOG_PID") {
            *value = process::id().to_string().into();
        }
        env.extend(given.variables().into_iter().map(|(name, value)| (name.into(), value.into())));
        words(env)
    }
}

fn is_this_program(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((identity(path), identity(Path::new("/proc/self/exe"))), (Ok(a), Ok(b)) if a == b)
}

/// As a shell finds it, with links as they are: a new release may be where they lead then.
fn find_program(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| is_this_program(path))
}

fn words(env: Vec<(OsString, OsString)>) -> Vec<CString> {
    let word = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    // Neither had a NUL in it where it comes from.
    env.into_iter().filter_map(|pair| CString::new(word(pair)).ok()).collect()
}
