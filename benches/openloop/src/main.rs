//! An HTTP load generator. Open loop: when a request leaves is fixed beforehand, and its latency counts from that moment,
//! so that a server which stalls cannot slow down the very clients that measure it. `openloop --help` has the options.
//!
//! Owns: the order of a run: idle connections, warm-up, `READY`, the load, `DONE`, the result as JSON.

mod args;
mod connection;
mod load;
mod poller;
mod record;
mod report;
mod request;
mod response;
mod schedule;

use std::io::{self, Write};
use std::process::ExitCode;

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use args::{Drive, Options};
use load::Load;
use record::Record;

/// How many of the idle connections are opened at the same time: fewer than any server's backlog.
const OPENED_AT_ONCE: usize = 64;
/// Of 127.0.0.0/8, so that no address runs out of ports.
const IDLE_PER_SOURCE: usize = 8000;

fn main() -> ExitCode {
    let options = match args::parse() {
        Ok(options) => options,
        Err(e) => return fail(&e.to_string(), 2),
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e.to_string(), 1),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    eprintln!("openloop: {text}");
    ExitCode::from(code)
}

fn run(options: &Options) -> io::Result<()> {
    allow_descriptors()?;
    let mut idle = Load::new(options, options.idle, Some(IDLE_PER_SOURCE))?;
    idle.warm(OPENED_AT_ONCE)?;
    let mut load = Load::new(options, options.connections, None)?;
    load.warm(options.connections)?;
    let kept = idle.count_open()?;
    pause(options, "READY")?;
    let records = drive(options, &mut load)?;
    let left = idle.count_open()?;
    pause(options, "DONE")?;
    if let Some(path) = &options.trace {
        report::write_trace(path, &options.classes, &records)?;
    }
    let held = (options.idle > 0).then_some(report::Idle { kept, left });
    println!("{}", report::json(&options.classes, &records, &load, held));
    Ok(())
}

fn drive(options: &Options, load: &mut Load) -> io::Result<Vec<Record>> {
    match options.drive {
        Drive::Open(spacing) => load.open(schedule::arrivals(options, spacing), options.pin),
        Drive::Closed { requests } => load.closed(requests, options.seconds),
    }
}

/// With `--hold`: says how far it is and goes on when told to by a line on stdin, or by its end.
fn pause(options: &Options, word: &str) -> io::Result<()> {
    if options.hold {
        println!("{word}");
        io::stdout().flush()?;
        io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}

fn allow_descriptors() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
