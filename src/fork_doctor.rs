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
    let (ours, native): (Vec<Thread>, Vec<Thread>) =
        staying_threads(py, &known).into_iter().partition(|thread| known.contains_key(&thread.id));
    for name in ours.iter().filter_map(|thread| known.get(&thread.id)) {
        log::warn!(
            "The application started the thread '{}' while it was loaded: it does not exist in workers, and a lock that it \
             holds at a fork stays locked in them; start it {REMEDY}",
            name.escape_debug()
        );
    }
    let mut names: Vec<&str> = native.iter().map(|thread| thread.name.as_str()).collect();
    names.sort_unstable();
    for same in names.chunk_by(|a, b| a == b) {
        log::warn!("{}", native_threads(same[0], same.len(), &pools()));
    }
}

/// A library that keeps a pool of threads, by a part of its file's name, and the variable that keeps it from having one.
const POOLS: [(&str, &str, &str); 6] = [
    ("openblas", "OpenBLAS", "OPENBLAS_NUM_THREADS"),
    ("mkl_", "MKL", "MKL_NUM_THREADS"),
    ("libblis", "BLIS", "BLIS_NUM_THREADS"),
    ("libgomp", "OpenMP", "OMP_NUM_THREADS"),
    ("libiomp", "OpenMP", "OMP_NUM_THREADS"),
    ("libomp", "OpenMP", "OMP_NUM_THREADS"),
];

/// Those of `POOLS` that are loaded.
fn pools() -> Vec<(&'static str, &'static str)> {
    let files = process::loaded_files().unwrap_or_default();
    let is_loaded = |part: &str| files.iter().any(|file| file.contains(part));
    let mut found: Vec<_> = POOLS
        .iter()
        .filter(|(part, ..)| is_loaded(part))
        .map(|(_, name, variable)| (*name, *variable))
        .collect();
    found.dedup();
    found
}

/// Python does not know them: who started them is a guess.
fn native_threads(name: &str, count: usize, pools: &[(&str, &str)]) -> String {
    let (are, them) = if count == 1 { ("a thread", "it") } else { ("threads", "them") };
    let number = if count == 1 { String::new() } else { format!("{count} ") };
    let name = name.escape_debug();
    let names = |part: fn(&(&str, &str)) -> String| pools.iter().map(part).collect::<Vec<_>>().join(" ");
    let advice = match pools {
        [] => format!("Load that library {REMEDY}, or have it start no threads"),
        _ => format!(
            "Loaded is {}: set {} in the environment or in raw_env, or import what needs it {REMEDY}",
            names(|(library, _)| library.to_string()).replace(' ', " and "),
            names(|(_, variable)| format!("{variable}=1")),
        ),
    };
    format!(
        "A library has started {number}{are} named '{name}', unknown to Python, while the application was loaded: workers are \
         without {them}, and a pool of such threads may wait for them for ever. {advice}"
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_names_the_variable_of_what_is_loaded() {
        let text = native_threads(
            "python",
            3,
            &[("OpenBLAS", "OPENBLAS_NUM_THREADS"), ("OpenMP", "OMP_NUM_THREADS")],
        );
        assert!(text.contains("3 threads named 'python', unknown to Python"), "{text}");
        assert!(
            text.contains("Loaded is OpenBLAS and OpenMP: set OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 in"),
            "{text}"
        );
        let text = native_threads("a\nb", 1, &[]);
        assert!(text.contains("started a thread named 'a\\nb', unknown"), "{text}");
        assert!(
            text.contains("Load that library in post_fork or post_worker_init (--preload), or"),
            "{text}"
        );
    }
}
