//! Owns: why a process of ours ended: the facts, and the one sentence for the log.
//! Rule: a reason is given only where it is known; where two are possible the sentence says so. The sentence is made by a
//! pure function of the facts.
//! Never: decides what follows a death.

use std::fmt;
use std::os::fd::BorrowedFd;

use super::oom::{Oom, OomKills};
use crate::scoreboard::{InFlight, SelfFault, Slot};
use crate::sys::child::Ending;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::signal;
use crate::worker::{APP_NOT_FOUND, BOOT_FAILED};

/// What it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Worker,
    Mold,
}

/// What is known of a death.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub role: Role,
    pub ending: Ending,
    /// It had been told to end.
    pub told: bool,
    pub has_been_ready: bool,
    /// What it said itself as it crashed.
    pub fault: Option<SelfFault>,
    /// Why this server has killed it, if it has.
    pub killed: Option<&'a str>,
    /// This server may have killed it, as it did not answer; or that was because it had ended.
    pub given_up: bool,
    /// Whether the kernel has killed for want of memory.
    pub oom: Oom,
    pub age: Nanos,
    /// Of a worker.
    pub requests: Option<u64>,
}

/// Why it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'a> {
    /// As it was told.
    Left,
    /// By a code that we give to it.
    NotFound,
    NotLoaded,
    /// Something in it has called exit(3) or _exit(2).
    Exited,
    /// The same, while it went as it was told.
    ExitedOnItsWay,
    Killed(&'a str),
    OutOfMemory(u64),
    /// It or another, in so many seconds.
    PerhapsOutOfMemory(u64, u64),
    /// By SIGKILL, and the kernel has not been short of memory.
    KilledFromOutside,
    /// By SIGKILL, and the kernel does not say whether it was short of memory.
    KilledPerhapsForMemory,
    KilledOrGivenUp,
    Panicked,
    StackOverflow,
    /// By a fault of its own.
    Crashed,
    /// By abort(3), which Python calls too.
    Aborted,
    /// By a signal that has come from somewhere.
    Signalled,
    /// Something else has taken its status.
    Unknown,
}

impl Facts<'_> {
    pub fn reason(&self) -> Reason<'_> {
        match self.ending {
            Ending::Exited(0) if self.told => Reason::Left,
            Ending::Exited(BOOT_FAILED) if !self.has_been_ready => Reason::NotLoaded,
            Ending::Exited(APP_NOT_FOUND) if !self.has_been_ready => Reason::NotFound,
            Ending::Exited(_) if self.told => Reason::ExitedOnItsWay,
            Ending::Exited(_) => Reason::Exited,
            Ending::Signalled { signal: signal::SIGKILL, .. } => self.killed_by_whom(),
            Ending::Signalled { signal, .. } => self.crashed(signal),
            Ending::Unknown => Reason::Unknown,
        }
    }

    fn killed_by_whom(&self) -> Reason<'_> {
        match (self.killed, self.oom) {
            (Some(why), _) => Reason::Killed(why),
            (None, Oom::Now(kills)) => Reason::OutOfMemory(kills),
            (None, Oom::Within(kills, seconds)) => Reason::PerhapsOutOfMemory(kills, seconds),
            (None, _) if self.given_up => Reason::KilledOrGivenUp,
            (None, Oom::No) => Reason::KilledFromOutside,
            (None, Oom::Unknown) => Reason::KilledPerhapsForMemory,
        }
    }

    fn crashed(&self, signal: i32) -> Reason<'_> {
        let own = self.fault.filter(|fault| fault.signal == signal || fault.panic);
        match signal {
            signal::SIGABRT if own.is_some_and(|fault| fault.panic) => Reason::Panicked,
            signal::SIGABRT => Reason::Aborted,
            _ if own.is_some_and(|fault| fault.stack_overflow) => Reason::StackOverflow,
            libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGILL => Reason::Crashed,
            _ => Reason::Signalled,
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Left => "It was told to.",
            Reason::NotFound => "The application was not found or cannot be called, for the reason above.",
            Reason::NotLoaded => "It could not boot, for the reason above.",
            Reason::Exited => "Nobody had told it to: something in the application called os._exit or exit.",
            Reason::ExitedOnItsWay => {
                "It was told to end, and on its way something in the application called os._exit or exit."
            }
            Reason::Killed(why) => return write!(f, "This server killed it, as it {why}."),
            Reason::OutOfMemory(kills) => {
                return write!(
                    f,
                    "It was out of memory: the kernel has killed {kills} process(es) of this cgroup for that \
                     (oom_kill)."
                )
            }
            Reason::PerhapsOutOfMemory(kills, seconds) => {
                return write!(
                    f,
                    "Not by this server; the kernel has killed {kills} process(es) of this cgroup for want of memory in the \
                     last {seconds} s (oom_kill), this one or others."
                )
            }
            Reason::KilledOrGivenUp => "From outside, or by this server, as it did not answer any more.",
            Reason::KilledFromOutside => {
                "Not by this server, and the kernel has killed nothing in this cgroup for want of memory."
            }
            Reason::KilledPerhapsForMemory => {
                "Not by this server; whether for want of memory, the kernel does not say here."
            }
            Reason::Panicked => "It panicked: a defect of the server, not of the application.",
            Reason::StackOverflow => "A thread's C stack was full: recursion in C code without an end.",
            Reason::Crashed => "It crashed in C code of Python, of an extension or of a library.",
            Reason::Aborted => {
                "It was aborted: by Python's own checks, by C code of an extension or library, or os.abort."
            }
            Reason::Unknown => {
                "A hook or a library in the arbiter has waited for it (os.waitpid, signal.SIGCHLD), and knows."
            }
            Reason::Signalled => {
                "The signal came from outside or from the application itself, not from this server."
            }
        })
    }
}

/// The line of the log: what ended it, in gunicorn's words where they are true; why; what it had done.
pub fn sentence(pid: i32, facts: &Facts<'_>) -> String {
    let reason = facts.reason();
    let what = match reason {
        Reason::OutOfMemory(_) | Reason::PerhapsOutOfMemory(..) | Reason::KilledPerhapsForMemory => {
            "was sent SIGKILL! Perhaps out of memory?".to_string()
        }
        _ => format!("{}.", facts.ending),
    };
    let role = facts.role;
    let boots = match role {
        _ if facts.has_been_ready => "",
        Role::Worker => " It had not finished booting.",
        Role::Mold => " It had not loaded the application.",
    };
    let served = facts.requests.map_or(String::new(), |requests| format!(" and took {requests} request(s)"));
    let seconds = facts.age / SECOND;
    format!("{role:?} (pid:{pid}) {what} {reason}{boots} It lived for {seconds} s{served}.")
}

/// A request that died with its worker, as one line whatever its octets are.
pub fn victim(request: &InFlight, now: Nanos) -> String {
    let seconds = now.saturating_sub(request.since) / SECOND;
    let (method, target) = (printable(&request.method), printable(&request.target));
    format!("It was running {method} {target} for {seconds} s")
}

/// What somebody else has said, as part of a line, which may be read at a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

// ---- what has to be remembered from one death to the next

/// A process of ours that has been reaped.
pub struct Deceased<'a> {
    pub role: Role,
    pub pid: i32,
    pub born: Nanos,
    pub ending: Ending,
    /// It had been told to end.
    pub told: bool,
    pub has_been_ready: bool,
    /// It had been given up by us: whether that was its end, nobody knows.
    pub given_up: bool,
    /// Of a worker.
    pub slot: Option<&'a Slot>,
}

/// Who was killed by us and why, and how often the kernel has killed.
pub struct Coroner {
    oom: Option<OomKills>,
    kills: Vec<(i32, &'static str)>,
}

impl Coroner {
    pub fn new() -> Coroner {
        Coroner { oom: OomKills::of_this_cgroup(clock::monotonic()), kills: Vec::new() }
    }

    pub fn killed(&mut self, pid: i32, why: &'static str) {
        self.kills.push((pid, why));
    }

    /// Readable when there is something to follow.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        self.oom.as_ref().and_then(OomKills::waits)
    }

    pub fn follow(&mut self, now: Nanos) {
        self.oom.iter_mut().for_each(|oom| oom.follow(now));
    }

    /// `now` is when it was reaped.
    pub fn facts(&mut self, dead: &Deceased<'_>, now: Nanos) -> Facts<'static> {
        let killed = self.kills.iter().position(|(pid, _)| *pid == dead.pid);
        let killed = killed.map(|at| self.kills.swap_remove(at).1);
        let by_kill = matches!(dead.ending, Ending::Signalled { signal: signal::SIGKILL, .. });
        let oom = match &mut self.oom {
            Some(oom) if by_kill && killed.is_none() => oom.claim(now),
            _ => Oom::Unknown,
        };
        Facts {
            role: dead.role,
            ending: dead.ending,
            told: dead.told,
            has_been_ready: dead.has_been_ready,
            fault: dead.slot.and_then(Slot::fault),
            killed,
            given_up: dead.given_up,
            oom,
            age: now.saturating_sub(dead.born),
            requests: dead.slot.map(Slot::requests),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: Facts<'static> = Facts {
        role: Role::Worker,
        ending: Ending::Exited(0),
        told: false,
        has_been_ready: true,
        fault: None,
        killed: None,
        given_up: false,
        oom: Oom::Unknown,
        age: 0,
        requests: Some(0),
    };

    fn signalled(signal: i32) -> Facts<'static> {
        Facts { ending: Ending::Signalled { signal, core: false }, ..ALIVE }
    }

    #[test]
    fn every_death_has_its_reason() {
        let own = |signal, stack_overflow, panic| Some(SelfFault { signal, stack_overflow, panic });
        let booting = Facts { has_been_ready: false, ..ALIVE };
        let kill = signalled(signal::SIGKILL);
        let exited = |code| Ending::Exited(code);
        let table = [
            (Facts { told: true, ..ALIVE }, Reason::Left),
            (ALIVE, Reason::Exited),
            (Facts { ending: exited(7), told: true, ..ALIVE }, Reason::ExitedOnItsWay),
            (Facts { ending: exited(BOOT_FAILED), ..booting }, Reason::NotLoaded),
            (Facts { ending: exited(APP_NOT_FOUND), ..booting }, Reason::NotFound),
            (Facts { ending: exited(BOOT_FAILED), ..ALIVE }, Reason::Exited),
            (Facts { ending: exited(9), ..booting }, Reason::Exited),
            (Facts { killed: Some("x"), oom: Oom::Now(1), ..kill }, Reason::Killed("x")),
            (Facts { oom: Oom::Now(2), ..kill }, Reason::OutOfMemory(2)),
            (Facts { oom: Oom::Within(2, 9), ..kill }, Reason::PerhapsOutOfMemory(2, 9)),
            (Facts { oom: Oom::No, ..kill }, Reason::KilledFromOutside),
            (Facts { oom: Oom::No, given_up: true, ..kill }, Reason::KilledOrGivenUp),
            (Facts { oom: Oom::Now(1), given_up: true, ..kill }, Reason::OutOfMemory(1)),
            (kill, Reason::KilledPerhapsForMemory),
            (signalled(libc::SIGSEGV), Reason::Crashed),
            (
                Facts { fault: own(libc::SIGSEGV, true, false), ..signalled(libc::SIGSEGV) },
                Reason::StackOverflow,
            ),
            (Facts { fault: own(libc::SIGSEGV, false, false), ..signalled(libc::SIGSEGV) }, Reason::Crashed),
            (signalled(libc::SIGBUS), Reason::Crashed),
            (signalled(libc::SIGFPE), Reason::Crashed),
            (signalled(libc::SIGILL), Reason::Crashed),
            (signalled(signal::SIGABRT), Reason::Aborted),
            (
                Facts { fault: own(signal::SIGABRT, false, true), ..signalled(signal::SIGABRT) },
                Reason::Panicked,
            ),
            (signalled(libc::SIGALRM), Reason::Signalled),
            (signalled(signal::SIGTERM), Reason::Signalled),
            (signalled(64), Reason::Signalled),
            (Facts { ending: Ending::Unknown, ..ALIVE }, Reason::Unknown),
            (Facts { ending: Ending::Unknown, told: true, ..ALIVE }, Reason::Unknown),
        ];
        for (facts, reason) in table {
            assert_eq!(facts.reason(), reason, "{facts:?}");
        }
    }

    #[test]
    fn gunicorns_words_stand_where_they_are_true() {
        let kill = signalled(signal::SIGKILL);
        let says = |facts: Facts<'_>| sentence(7, &facts);
        let perhaps = "Worker (pid:7) was sent SIGKILL! Perhaps out of memory?";
        assert!(says(kill).starts_with(perhaps));
        assert!(says(Facts { oom: Oom::Now(1), ..kill }).starts_with(perhaps));
        let shared = says(Facts { oom: Oom::Within(1, 40), ..kill });
        assert!(
            shared.starts_with(perhaps)
                && shared.contains("in the last 40 s (oom_kill), this one or others.")
        );
        assert!(says(Facts { oom: Oom::No, ..kill }).starts_with("Worker (pid:7) was killed by SIGKILL."));
        let late = Facts { killed: Some("did not finish in time (--graceful-timeout)"), ..kill };
        assert!(!says(late).contains("memory") && says(late).contains("(--graceful-timeout)"));
        assert!(says(Facts { ending: Ending::Exited(7), ..ALIVE })
            .starts_with("Worker (pid:7) exited with code 7."));
        let mold =
            Facts { role: Role::Mold, requests: None, has_been_ready: false, ..signalled(libc::SIGSEGV) };
        assert!(says(mold).starts_with("Mold (pid:7) was killed by SIGSEGV. It crashed in C code"));
        assert!(says(mold).ends_with("It had not loaded the application. It lived for 0 s."));
    }

    #[test]
    fn what_a_client_has_sent_makes_no_line_of_its_own() {
        let request =
            InFlight { since: SECOND, method: "GET".into(), target: "/a\n[CRITICAL] b\u{7f}".into() };
        let line = victim(&request, 4 * SECOND);
        assert_eq!(line, "It was running GET /a\u{fffd}[CRITICAL] b\u{fffd} for 3 s");
    }
}
