//! Owns: systemd's two protocols: listeners that it has opened for us (sd_listen_fds(3)), and what it is told of us
//! (sd_notify(3)).
//! Rule: the environment is read once; READY=1 says that requests are served, and every RELOADING=1 has its READY=1.
//! A supervisor that does not listen costs a log line, never the service.
//! Never: opens or closes a listener, decides when to stop.

use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::sys::clock::{Nanos, SECOND};

/// What systemd tells a service; nothing of it is meant for our children.
pub const VARIABLES: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// SD_LISTEN_FDS_START
const FIRST: RawFd = 3;
const MOST: usize = 1024;
/// A manager that does not read must not stop supervision.
const PATIENCE: Duration = Duration::from_secs(1);

type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The descriptors that were opened for the process `pid`, in the unit's order.
pub fn listeners(env: &Environment, pid: i32) -> Vec<RawFd> {
    let number = |name| env(name)?.trim().parse::<usize>().ok();
    let ours = number("LISTEN_PID") == usize::try_from(pid).ok();
    let count = number("LISTEN_FDS").filter(|count| ours && *count <= MOST).unwrap_or(0);
    (FIRST..).take(count).collect()
}

/// Where a notice goes; none without a NOTIFY_SOCKET.
struct Wire {
    socket: UnixDatagram,
    to: SocketAddr,
}

impl Wire {
    fn new(address: &str) -> io::Result<Wire> {
        let to = match address.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire { socket, to })
    }

    fn tell(&self, lines: &str) {
        if let Err(e) = self.socket.send_to_addr(lines.as_bytes(), &self.to) {
            log::warn!("Cannot notify the service manager: {e} (NOTIFY_SOCKET)");
        }
    }
}

/// What the manager believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Serving { ready: usize, wanted: usize },
    Reloading,
    Stopping,
}

/// The service as its manager sees it.
pub struct Service {
    wire: Option<Wire>,
    state: State,
    /// Between two signs of life.
    pulse: Option<Nanos>,
    next_pulse: Nanos,
    /// Another process speaks for the service.
    quiet: bool,
}

impl Service {
    pub fn new(env: &Environment, pid: i32) -> Service {
        let address = env("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        let wire = address.and_then(|address| match Wire::new(&address) {
            Ok(wire) => Some(wire),
            Err(e) => {
                log::warn!("Cannot reach the service manager at {address}: {e} (NOTIFY_SOCKET)");
                None
            }
        });
        let pulse = wire.as_ref().and_then(|_| pulse(env, pid));
        Service { wire, state: State::Starting, pulse, next_pulse: 0, quiet: false }
    }

    fn tell(&self, lines: &str) {
        if let Some(wire) = self.wire.as_ref().filter(|_| !self.quiet) {
            wire.tell(lines);
        }
    }

    /// Until `speak`, another process speaks for the service; ours are signs of life only.
    pub fn hush(&mut self) {
        self.quiet = true;
    }

    /// From here on `pid`, this process, is the service, and what state it is in is told afresh.
    pub fn speak(&mut self, pid: i32) {
        self.quiet = false;
        self.tell(&format!("MAINPID={pid}"));
        self.state = State::Starting;
    }

    /// From here on `pid` is the service, which has another process and no end.
    pub fn hand_over(&mut self, pid: i32) {
        self.tell(&format!("MAINPID={pid}"));
        self.quiet = true;
    }

    /// So many workers are ready of those wanted. The first one is the service's readiness.
    pub fn serves(&mut self, ready: usize, wanted: usize) {
        let now = State::Serving { ready, wanted };
        let status = format!("STATUS={ready} of {wanted} worker(s) ready");
        match self.state {
            State::Starting if ready > 0 => self.tell(&format!("READY=1\n{status}")),
            State::Serving { .. } if self.state != now => self.tell(&status),
            _ => return,
        }
        self.state = now;
    }

    /// A reload begins. Before the service was ready it is a part of its start.
    pub fn reloads(&mut self, now: Nanos) {
        if matches!(self.state, State::Serving { .. } | State::Reloading) {
            let microseconds = now / 1000;
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=Reloading"));
            self.state = State::Reloading;
        }
    }

    /// A reload is over, one way or the other.
    pub fn has_reloaded(&mut self, status: &str, ready: usize, wanted: usize) {
        if self.state == State::Reloading {
            self.tell(&format!("READY=1\nSTATUS={status}"));
            self.state = State::Serving { ready, wanted };
        }
    }

    pub fn stops(&mut self) {
        if self.state != State::Stopping {
            self.tell("STOPPING=1\nSTATUS=Stopping");
            self.state = State::Stopping;
        }
    }

    /// Gives a sign of life when one is due.
    pub fn live(&mut self, now: Nanos) {
        if let Some(pulse) = self.pulse.filter(|_| now >= self.next_pulse) {
            self.wire.iter().for_each(|wire| wire.tell("WATCHDOG=1"));
            self.next_pulse = now + pulse;
        }
    }

    /// When the next sign of life is due.
    pub fn deadline(&self) -> Option<Nanos> {
        self.pulse.map(|_| self.next_pulse)
    }
}

/// Half of what the manager waits for, as sd_watchdog_enabled(3) advises.
fn pulse(env: &Environment, pid: i32) -> Option<Nanos> {
    let meant = env("WATCHDOG_PID").is_none_or(|number| number.trim().parse() == Ok(pid));
    let microseconds = env("WATCHDOG_USEC")?.trim().parse::<u64>().ok()?;
    (meant && microseconds > 0)
        .then(|| (microseconds.saturating_mul(1000) / 2).min(u64::from(u32::MAX) * SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
    }

    #[test]
    fn listeners_are_for_the_process_they_were_opened_for() {
        assert_eq!(listeners(&env(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2")]), 7), [3, 4]);
        assert!(listeners(&env(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "2")]), 7).is_empty());
        assert!(listeners(&env(&[("LISTEN_FDS", "2")]), 7).is_empty());
        assert!(listeners(&env(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "-1")]), 7).is_empty());
        assert!(listeners(&env(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "99999999")]), 7).is_empty());
    }

    #[test]
    fn the_pulse_is_half_of_the_watchdogs_time() {
        assert_eq!(pulse(&env(&[("WATCHDOG_USEC", "3000000")]), 7), Some(1_500_000_000));
        assert_eq!(pulse(&env(&[("WATCHDOG_USEC", "2"), ("WATCHDOG_PID", "7")]), 7), Some(1000));
        assert_eq!(pulse(&env(&[("WATCHDOG_USEC", "2"), ("WATCHDOG_PID", "8")]), 7), None);
        assert_eq!(pulse(&env(&[("WATCHDOG_USEC", "0")]), 7), None);
        assert_eq!(pulse(&env(&[]), 7), None);
    }

    /// A manager and a service in its hands.
    fn pair(name: &str) -> (UnixDatagram, Service) {
        let name = format!("rgunicorn-{name}-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let answer = move |asked: &str| (asked == "NOTIFY_SOCKET").then(|| format!("@{name}"));
        (manager, Service::new(&answer, 1))
    }

    fn told(manager: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 256];
        let mut next =
            || manager.recv(&mut bytes).ok().map(|n| String::from_utf8_lossy(&bytes[..n]).into_owned());
        std::iter::from_fn(&mut next).collect()
    }

    #[test]
    fn a_service_is_ready_with_its_first_worker() {
        let (manager, mut service) = pair("ready");
        service.reloads(1);
        service.serves(0, 2);
        service.has_reloaded("x", 0, 2);
        assert!(told(&manager).is_empty());
        service.serves(1, 2);
        service.serves(1, 2);
        service.serves(2, 2);
        assert_eq!(
            told(&manager),
            ["READY=1\nSTATUS=1 of 2 worker(s) ready", "STATUS=2 of 2 worker(s) ready"]
        );
    }

    #[test]
    fn every_reload_ends_in_ready() {
        let (manager, mut service) = pair("reload");
        service.serves(1, 1);
        service.reloads(5_000_000);
        service.serves(0, 1);
        service.has_reloaded("Reloaded", 1, 1);
        service.has_reloaded("Reloaded", 1, 1);
        service.serves(1, 1);
        let told = told(&manager);
        assert_eq!(
            told[1..],
            ["RELOADING=1\nMONOTONIC_USEC=5000\nSTATUS=Reloading", "READY=1\nSTATUS=Reloaded"]
        );
    }

    #[test]
    fn the_end_is_said_once_and_nothing_after_it() {
        let (manager, mut service) = pair("stop");
        service.stops();
        service.stops();
        service.serves(1, 1);
        service.reloads(1);
        assert_eq!(told(&manager), ["STOPPING=1\nSTATUS=Stopping"]);
    }

    #[test]
    fn one_process_at_a_time_speaks_for_the_service() {
        let (manager, mut new) = pair("succession");
        new.hush();
        new.serves(1, 1);
        new.reloads(1);
        assert!(told(&manager).is_empty());
        new.speak(7);
        new.serves(2, 2);
        new.hand_over(8);
        new.stops();
        assert_eq!(told(&manager), ["MAINPID=7", "READY=1\nSTATUS=2 of 2 worker(s) ready", "MAINPID=8"]);
    }

    #[test]
    fn signs_of_life_are_given_when_due() {
        let (manager, mut service) = pair("watchdog");
        assert_eq!(service.deadline(), None);
        service.pulse = Some(10);
        for now in [100, 105, 110] {
            service.live(now);
        }
        assert_eq!(told(&manager).len(), 2);
        assert_eq!(service.deadline(), Some(120));
    }

    #[test]
    fn nobody_to_tell_is_no_error() {
        let mut service = Service::new(&env(&[("NOTIFY_SOCKET", "")]), 1);
        service.serves(1, 1);
        let mut service =
            Service::new(&env(&[("NOTIFY_SOCKET", "/nonexistent/x"), ("WATCHDOG_USEC", "5")]), 1);
        service.serves(1, 1);
        assert!(service.deadline().is_some());
    }
}
