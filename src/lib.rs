//! rgunicorn: a pre-fork WSGI server that takes gunicorn's place.
//!
//! # The code in eight stops
//!
//! One request, in the order in which it meets the files:
//!
//! 1. `lib`: `run` reads the command line and starts the arbiter.
//! 2. `arbiter`: binds, forks workers, watches them. `Arbiter::turn` is its whole policy.
//! 3. `worker`: loads the application, reports ready, runs the loop in its threads.
//! 4. `event_loop`: waits, accepts, and serves each complete request in the thread that read it; `event_loop::helper`
//!    watches from beside it for those that take long.
//! 5. `conn`: one connection's states, from the first octet to the close.
//! 6. `http`: what the octets mean, one function a rule.
//! 7. `wsgi`: environ, the call, the response; one file a section of PEP 3333.
//! 8. `exchange`, `http::response` and `access_log`: what goes out, and the line that is written about it.
//!
//! # Layers
//!
//! A file imports only from lower layers, of which there are seven: system, pure rules, shared parts, one connection, loops
//! and Python, roles, entry. `tests/layers.rs` says which file is in which, and checks it.
#![deny(unsafe_code, clippy::undocumented_unsafe_blocks)]

pub mod access_log;
pub mod access_sink;
pub mod app;
pub mod arbiter;
pub mod body_buffer;
pub mod buffer;
pub mod cli;
pub mod config;
pub mod conn;
pub mod control;
mod crash_report;
pub mod daemon;
pub mod defect;
pub mod development;
pub mod error;
pub mod event_loop;
pub mod exchange;
pub mod fork_doctor;
pub mod handoff;
pub mod hooks;
pub mod http;
pub mod identity;
pub mod launch;
pub mod listener;
pub mod log;
pub mod log_file;
pub mod log_text;
pub mod logger;
pub mod mold;
pub mod panic;
pub mod proxy;
pub mod proxy_protocol;
pub mod python;
pub mod reload;
pub mod remote;
pub mod scoreboard;
pub mod statsd;
pub mod surface;
pub mod sys;
pub mod syslog;
pub mod systemd;
pub mod timers;
pub mod tls;
pub mod transport;
pub mod version;
pub mod watch;
pub mod worker;
pub mod wsgi;

use pyo3::prelude::*;

use crate::arbiter::Outcome;
use crate::cli::Command;
use crate::error::Error;
use crate::launch::Launch;
use crate::mold::MoldOutcome;

/// Runs the command line `argv` (with the program's name first) and returns the exit code, in each process that it forks too:
/// the caller is to end with it.
pub fn run(py: Python<'_>, argv: &[String]) -> i32 {
    let args = argv.get(1..).unwrap_or_default();
    match cli::parse(args) {
        Ok(Command::Help(text) | Command::Version(text)) => {
            print!("{text}");
            0
        }
        Ok(Command::Reload(order)) => reload::run(py, &order),
        Ok(Command::Run { args }) => serve(py, Launch::Command(args)),
        Err(e) => refuse(&e),
    }
}

fn refuse(e: &Error) -> i32 {
    eprintln!("rgunicorn: {e}");
    e.exit_code()
}

/// Runs the server that was asked for and returns the exit code, as `run` does.
pub fn serve(py: Python<'_>, launch: Launch) -> i32 {
    // What is still in the buffers would be written by every forked process once more.
    python::flush(py);
    match arbiter::run(py, launch) {
        Ok(Outcome::Exit(code)) => code,
        Ok(Outcome::Worker(seed)) => worker::run(py, *seed, None),
        Ok(Outcome::Mold(seed)) => match mold::run(py, *seed) {
            MoldOutcome::Exit(code) => worker::leave_mold(py, code),
            MoldOutcome::Worker(seed, app) => worker::run(py, *seed, Some(app)),
        },
        Err(e) => refuse(&e),
    }
}

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    use crate::launch::{Launch, Program};
    use crate::surface;

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = crate::version::VERSION;

    /// The table of options, a dictionary for each.
    #[pyfunction]
    fn settings(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
        surface::settings(py)
    }

    /// Runs the command line and returns the exit code.
    #[pyfunction]
    fn main(py: Python<'_>, argv: Vec<String>) -> i32 {
        super::run(py, &argv)
    }

    #[pymodule_export]
    use crate::surface::ConfigError;
    #[pymodule_export]
    use crate::wsgi::load::AppImportError;

    /// Runs the server of an application object and returns the exit code.
    #[pyfunction]
    fn serve(py: Python<'_>, app: Py<PyAny>) -> i32 {
        super::serve(py, Launch::Program(Program::new(app)))
    }

    #[pyfunction]
    fn check_setting<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        surface::check(name, value)
    }

    #[pyfunction]
    fn parse_command_line(py: Python<'_>, words: Vec<String>) -> PyResult<Option<surface::Words<'_>>> {
        surface::parse_command_line(py, &words)
    }

    #[pyfunction]
    fn read_command_line<'py>(
        py: Python<'py>,
        words: Vec<String>,
        base: &Bound<'py, PyDict>,
    ) -> PyResult<surface::CommandLine<'py>> {
        surface::read_command_line(py, &words, base)
    }

    #[pyfunction]
    fn run_config_file<'py>(py: Python<'py>, location: &str) -> PyResult<Bound<'py, PyDict>> {
        surface::run_config_file(py, location)
    }

    #[pyfunction]
    fn parse_address<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
        surface::parse_address(py, text)
    }

    #[pyfunction]
    fn import_app<'py>(py: Python<'py>, spec: &str) -> PyResult<Bound<'py, PyAny>> {
        crate::wsgi::load::import_app(py, spec)
    }
}
