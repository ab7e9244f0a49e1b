//! Owns: the command line.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

const HELP: &str = "\
usage: openloop --port PORT --class NAME=WEIGHT:PATH … [options]

  --port PORT             of the server, on 127.0.0.1
  --class NAME=WEIGHT:PATH
                          a kind of request and its share of all; may be repeated
  --connections N         keep-alive connections, each opened and used once before the start (32)
  --rate R                requests per second of the open loop (100)
  --constant              evenly spaced; without it the spacing is that of a Poisson process
  --seconds S             length of the load (10; of a closed loop: no limit)
  --seed N                of arrival times and classes (1)
  --pin                   request i goes to connection i mod N and waits there while that one is busy; without it the
                          next free connection takes it, round robin, and only if none is free it waits, first come first
  --closed                closed loop: each connection sends when its last request was answered
  --requests N            of the closed loop: ends after N requests, or when --seconds are over
  --post OCTETS           POST with a body of that size
  --browser               the header fields of a browser behind Nginx; without it only three
  --idle N                hold N more connections, each used once, while the load runs
  --drain S               how long to wait for the last answers (30)
  --trace FILE            a line per request: at,class,latency,outcome in seconds and ms
  --hold                  print READY before the load and DONE after it, and wait for a line on stdin each time
";

const SECONDS: f64 = 10.0;

#[derive(Clone, Copy)]
pub enum Spacing {
    Poisson,
    Constant,
}

pub enum Drive {
    Open(Spacing),
    Closed { requests: usize },
}

pub struct Class {
    pub name: String,
    pub weight: f64,
    pub path: String,
}

pub struct Options {
    pub server: SocketAddr,
    pub classes: Vec<Class>,
    pub connections: usize,
    pub rate: f64,
    pub seconds: f64,
    pub seed: u64,
    pub drive: Drive,
    pub pin: bool,
    pub post: Option<usize>,
    pub browser: bool,
    pub idle: usize,
    pub drain: Duration,
    pub trace: Option<PathBuf>,
    pub hold: bool,
}

pub fn parse() -> Result<Options, Box<dyn Error>> {
    let mut options = defaults();
    let (mut spacing, mut closed, mut requests) = (Spacing::Poisson, false, usize::MAX);
    let mut seconds = None;
    let mut words = lexopt::Parser::from_env();
    while let Some(word) = words.next()? {
        match word {
            Long("port") => options.server.set_port(words.value()?.parse()?),
            Long("class") => options.classes.push(class(&words.value()?.string()?)?),
            Long("connections") => options.connections = words.value()?.parse()?,
            Long("rate") => options.rate = words.value()?.parse()?,
            Long("constant") => spacing = Spacing::Constant,
            Long("seconds") => seconds = Some(words.value()?.parse()?),
            Long("seed") => options.seed = words.value()?.parse()?,
            Long("pin") => options.pin = true,
            Long("closed") => closed = true,
            Long("requests") => requests = words.value()?.parse()?,
            Long("post") => options.post = Some(words.value()?.parse()?),
            Long("browser") => options.browser = true,
            Long("idle") => options.idle = words.value()?.parse()?,
            Long("drain") => options.drain = Duration::from_secs_f64(words.value()?.parse()?),
            Long("trace") => options.trace = Some(words.value()?.into()),
            Long("hold") => options.hold = true,
            Short('h') | Long("help") => {
                print!("{HELP}");
                std::process::exit(0);
            }
            _ => return Err(word.unexpected().into()),
        }
    }
    options.seconds = seconds.unwrap_or(if closed { f64::INFINITY } else { SECONDS });
    options.drive = if closed { Drive::Closed { requests } } else { Drive::Open(spacing) };
    check(&options)?;
    Ok(options)
}

fn defaults() -> Options {
    Options {
        server: (Ipv4Addr::LOCALHOST, 0).into(),
        classes: Vec::new(),
        connections: 32,
        rate: 100.0,
        seconds: SECONDS,
        seed: 1,
        drive: Drive::Open(Spacing::Poisson),
        pin: false,
        post: None,
        browser: false,
        idle: 0,
        drain: Duration::from_secs(30),
        trace: None,
        hold: false,
    }
}

fn class(text: &str) -> Result<Class, Box<dyn Error>> {
    let wrong = || format!("--class {text}: not NAME=WEIGHT:PATH");
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (weight, path) = rest.split_once(':').ok_or_else(wrong)?;
    Ok(Class { name: name.into(), weight: weight.parse().map_err(|_| wrong())?, path: path.into() })
}

fn check(options: &Options) -> Result<(), Box<dyn Error>> {
    let weights: f64 = options.classes.iter().map(|class| class.weight).sum();
    let wrong = match () {
        _ if options.server.port() == 0 => "--port is missing",
        _ if options.classes.is_empty() || options.classes.len() > 255 => "1 to 255 times --class",
        _ if weights <= 0.0 => "the weights of all --class must add up to more than 0",
        _ if options.connections == 0 => "--connections must be more than 0",
        _ if options.rate <= 0.0 || options.seconds <= 0.0 => "--rate and --seconds must be more than 0",
        _ => return Ok(()),
    };
    Err(wrong.into())
}
