//! Owns: a generation: one configuration, its TLS, its listeners, its scoreboard, and (with `preload_app`) its mold.
//! Rule: a generation is complete before any worker of it exists; what fails here leaves nothing behind.
//! Never: knows workers.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{recv, MsgFlags};

use super::code;
use super::death::printable;
use crate::config::{Address, Config};
use crate::error::Error;
use crate::hooks::Hooks;
use crate::identity::Identity;
use crate::listener::{Listener, Manner};
use crate::mold::Mold;
use crate::scoreboard::Scoreboard;
use crate::sys::child::Ending;
use crate::sys::process;
use crate::tls::tickets::TicketKeys;
use crate::tls::Context;
use crate::watch::Watch;

/// gunicorn's patience with a port that a dying server still holds.
const BIND_TRIES: usize = 5;
const BIND_PAUSE: Duration = Duration::from_secs(1);

/// Slots beyond twice the configured workers, for TTIN and for workers that are on their way out.
const SPARE_SLOTS: usize = 64;

/// What the operator wants: the settings, and the functions that some of them are.
pub struct Setup {
    pub config: Arc<Config>,
    pub hooks: Arc<Hooks>,
    /// What the operator should be told about them.
    pub warnings: Vec<String>,
}

pub struct Generation {
    pub number: u64,
    pub config: Arc<Config>,
    pub hooks: Arc<Hooks>,
    /// Made from the files as they were when the generation was.
    pub tls: Option<Context>,
    pub listeners: Vec<Arc<Listener>>,
    /// Shared with the generation before where it is large enough; a mold keeps the one that it was forked with.
    pub board: Arc<Scoreboard>,
    pub mold: Option<Mold>,
    /// Where its processes say why they could not load the application.
    pub report: Arc<OwnedFd>,
    reports: OwnedFd,
    /// With `reload`: what its code depends on.
    pub watch: Option<Watch>,
}

/// What every generation stands on, from the start to the end of the server.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    pub passed: &'a [RawFd],
    /// From the server that this one is to replace; for the first generation.
    pub inherited: &'a [Arc<Listener>],
    pub identity: Option<&'a Identity>,
    pub start_folder: &'a Path,
    pub tickets: &'a Arc<TicketKeys>,
}

impl Ground<'_> {
    pub fn manner(&self, config: &Config) -> Manner {
        Manner {
            backlog: config.backlog,
            umask: config.umask,
            owner: self.identity.map(Identity::owner),
            reuse_port: config.reuse_port,
            only_v6: false,
        }
    }
}

impl Generation {
    /// Binds what `before` does not have bound.
    ///
    /// Errors: an address that cannot be bound, a certificate that cannot be used, named.
    pub fn new(
        number: u64,
        setup: Setup,
        ground: &Ground<'_>,
        before: Option<&Generation>,
        tries: Tries,
    ) -> Result<Generation, Error> {
        let Setup { config, hooks, .. } = setup;
        let watch = code::watch(&config, ground.start_folder)?;
        let tls = config.tls.as_ref().map(|tls| Context::load(tls, ground.tickets)).transpose()?;
        let bound = before.map_or(ground.inherited, |before| &before.listeners);
        let manner = ground.manner(&config);
        let mut listeners: Vec<Arc<Listener>> = Vec::new();
        for address in addresses(&config, ground.passed) {
            // Of two that ask for any port each has its own.
            let is_free = |one: &&Arc<Listener>| !listeners.iter().any(|taken| Arc::ptr_eq(taken, one));
            let kept = bound.iter().filter(is_free).find(|listener| *listener.address() == address);
            listeners.push(match kept {
                Some(listener) => listener.clone(),
                None => {
                    let only_v6 = has_v4_beside(&address, &config.bind);
                    Arc::new(bind(&address, &Manner { only_v6, ..manner }, tries)?)
                }
            });
        }
        let board = board(&config, before).map_err(|e| Error::system("scoreboard", &e, "--workers"))?;
        let (reports, report) =
            process::message_pair().map_err(|e| Error::system("socket pair", &e, "the system's limits"))?;
        let report = Arc::new(report);
        Ok(Generation { number, config, hooks, tls, listeners, board, mold: None, report, reports, watch })
    }

    /// How a process of it ended that was to boot, and why as far as that has been said.
    pub fn why(&self, ending: Ending) -> String {
        let mut bytes = [0; 1024];
        let said = recv(self.reports.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
        match String::from_utf8_lossy(&bytes[..said]) {
            nothing if nothing.is_empty() => ending.to_string(),
            said => format!("{ending}: {}", printable(&said)),
        }
    }

    /// "http://127.0.0.1:8000,unix:/run/app.sock"
    pub fn addresses(&self) -> String {
        let secure = self.tls.is_some();
        self.listeners.iter().map(|listener| listener.local().url(secure)).collect::<Vec<_>>().join(",")
    }

    /// Removes the files of listeners, but for those that are still used.
    pub fn unlink(&self, is_used: impl Fn(&Arc<Listener>) -> bool) {
        self.listeners.iter().filter(|listener| !is_used(listener)).for_each(|listener| listener.unlink());
    }
}

/// Listeners that were opened for us replace all addresses but those of others that were, as in gunicorn.
fn addresses(config: &Config, passed: &[RawFd]) -> Vec<Address> {
    if passed.is_empty() {
        return config.bind.clone();
    }
    let named =
        config.bind.iter().filter(|address| matches!(address, Address::Fd(fd) if !passed.contains(fd)));
    passed.iter().map(|fd| Address::Fd(*fd)).chain(named.cloned()).collect()
}

/// Whether the IPv4 side of `[::]:PORT` is an address of its own, which the kernel would refuse otherwise.
fn has_v4_beside(address: &Address, all: &[Address]) -> bool {
    let is_any = |address: &Address, any: &str| matches!(address, Address::Tcp { host, .. } if host == any);
    let port = |address: &Address| match address {
        Address::Tcp { port, .. } if *port > 0 => Some(*port),
        _ => None,
    };
    let beside = |other: &Address| is_any(other, "0.0.0.0") && port(other) == port(address);
    is_any(address, "::") && port(address).is_some() && all.iter().any(beside)
}

/// Whether an address in use is waited for: at the start it is, in a reload it would stop supervision.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    Once,
    Several,
}

fn board(config: &Config, before: Option<&Generation>) -> std::io::Result<Arc<Scoreboard>> {
    let fits =
        |board: &&Arc<Scoreboard>| config.threads <= board.threads() && 2 * config.workers <= board.slots();
    match before.map(|before| &before.board).filter(fits) {
        Some(board) => Ok(board.clone()),
        None => Scoreboard::new(2 * config.workers + SPARE_SLOTS, config.threads),
    }
}

fn bind(address: &Address, manner: &Manner, tries: Tries) -> Result<Listener, Error> {
    let mut left = if tries == Tries::Several { BIND_TRIES } else { 1 };
    loop {
        left -= 1;
        match Listener::bind(address, manner) {
            Ok(listener) => return Ok(listener),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && left > 0 => {
                log::error!(
                    "Connection in use: {address}, retrying in {} second (--bind)",
                    BIND_PAUSE.as_secs()
                );
                std::thread::sleep(BIND_PAUSE);
            }
            Err(e) => return Err(Error::system(&format!("bind {address}"), &e, "--bind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ipv6_leaves_ipv4_to_whoever_has_it() {
        let beside = |texts: &[&str]| has_v4_beside(&parsed(texts)[0], &parsed(texts));
        assert!(beside(&["[::]:80", "0.0.0.0:80"]));
        assert!(beside(&["[::]:80", ":80"]));
        assert!(!beside(&["[::]:80"]));
        assert!(!beside(&["[::]:80", "0.0.0.0:81"]));
        assert!(!beside(&["[::]:0", "0.0.0.0:0"]));
        assert!(!beside(&["0.0.0.0:80", "[::]:80"]));
    }

    #[test]
    fn passed_listeners_take_the_place_of_those_to_be_bound() {
        let mut config = Config::default();
        config.bind = parsed(&["fd://3", "fd://9", ":80"]);
        assert_eq!(addresses(&config, &[]), config.bind);
        assert_eq!(addresses(&config, &[3, 4]), parsed(&["fd://3", "fd://4", "fd://9"]));
    }
}
