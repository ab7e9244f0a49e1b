//! Owns: the fork doctor: what an application left open while it was loaded (`preload_app`) that a fork breaks.
//! Rule: it looks once, before the first fork, and says in one line each what it found, why that is unsafe and what to do.
//! Never: changes anything, or keeps anybody from forking.

use std::collections::HashMap;
use std::time::Duration;

use pyo3::prelude::*;

use crate::python;
use crate::sys::descriptors::{self, Descriptor, Remote};
use crate::sys::process::{self, Thread};

const REMEDY: &str = "in post_fork or post_worker_init (--preload)";
/// A thread that was joined just now is still listed for a moment.
const LEAVING: Duration = Duration::from_millis(1);
const LOOKS: usize = 50;

/// What was open before the application was loaded.
pub struct Doctor {
    before: Vec<Descriptor>,
}

impl Doctor {
    pub fn before_load() -> Doctor {
        Doctor { before: open_now() }
    }

    /// Warns of threads, connections and event loops that came since.
    pub fn examine(&self, py: Python<'_>) {
        warn_about_threads(py);
        for open in open_now().iter().filter(|open| !self.before.contains(open)) {
            if let Some(words) = hazard(open) {
                log::warn!("The application {words} {REMEDY}");
            }
        }
    }
}

fn open_now() -> Vec<Descriptor> {
    descriptors::list().unwrap_or_else(|e| {
        log::debug!("The fork doctor cannot see what is open: {e}");
        Vec::new()
    })
}

fn hazard(open: &Descriptor) -> Option<String> {
    let number = open.number;
    if open.link == "anon_inode:[eventpoll]" {
        return Some(format!(
            "made an event loop (epoll, descriptor {number}) while it was loaded: all workers would share it and be told \
             of each other's events; make it"
        ));
    }
    let to = match descriptors::remote(open)? {
        Remote::Tcp(address) => format!("{address} (TCP"),
        Remote::Unix(path) => format!("{} (unix socket", path.display()),
        Remote::Process(pid) => format!("process {pid} (unix socket"),
    };
    Some(format!(
        "connected to {to}, descriptor {number}) while it was loaded: all workers would write to this one connection and \
         read each other's answers; open it"
    ))
}

fn warn_about_threads(py: Python<'_>) {
    let known: HashMap<i32, String> = match python::threads(py) {
        Ok(threads) => threads.into_iter().collect(),
        Err(e) => {
            log::debug!("The fork doctor cannot ask Python for its threads: {e}");
            HashMap::new()
        }
    };
    for Thread { id, name } in staying_threads(py, &known) {
        let what = match known.get(&id) {
            Some(name) => format!("thread '{}'", name.escape_debug()),
            None => format!("thread '{}', which is not Python's,", name.escape_debug()),
        };
        log::warn!(
            "The application started the {what} while it was loaded: it does not exist in workers, and a lock that it holds \
             at a fork stays locked in them; start it {REMEDY}"
        );
    }
}

fn staying_threads(py: Python<'_>, known: &HashMap<i32, String>) -> Vec<Thread> {
    let look = || process::other_threads().unwrap_or_default();
    let mut found = look();
    for _ in 0..LOOKS {
        if found.iter().all(|thread| known.contains_key(&thread.id)) {
            break;
        }
        py.detach(|| std::thread::sleep(LEAVING));
        found = look();
    }
    found
}
