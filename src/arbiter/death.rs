//! Owns: why a process of ours ended: the facts, the one sentence for the log, and the kernel's count of OOM kills.
//! Rule: a reason is given only where it is known; where two are possible the sentence says so. The sentence is made by a
//! pure function of the facts.
//! Never: decides what follows a death.

use std::fmt;
use std::fs;

use super::children::Child;
use crate::scoreboard::{InFlight, SelfFault};
use crate::sys::clock::{Nanos, SECOND};
use crate::sys::process::Ending;
use crate::sys::signal;
use crate::worker::{APP_NOT_FOUND, BOOT_FAILED};

/// What is known of a death.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub ending: Ending,
    /// It had been told to end.
    pub told: bool,
    pub has_been_ready: bool,
    /// What it said itself as it crashed.
    pub fault: Option<SelfFault>,
    /// Why this server has killed it, if it has.
    pub killed: Option<&'a str>,
    /// How many processes of the cgroup the kernel has killed for want of memory since the death before; None: it
    /// does not say.
    pub oom_kills: Option<u64>,
    pub age: Nanos,
    pub requests: u64,
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
    Killed(&'a str),
    OutOfMemory(u64),
    /// By SIGKILL, and the kernel has not been short of memory.
    KilledFromOutside,
    /// By SIGKILL, and the kernel does not say whether it was short of memory.
    KilledPerhapsForMemory,
    Panicked,
    StackOverflow,
    /// By a fault of its own.
    Crashed,
    /// By abort(3), which Python calls too.
    Aborted,
    /// By a signal that has come from somewhere.
    Signalled,
}

impl Facts<'_> {
    pub fn reason(&self) -> Reason<'_> {
        match self.ending {
            Ending::Exited(0) if self.told => Reason::Left,
            Ending::Exited(BOOT_FAILED) if !self.has_been_ready => Reason::NotLoaded,
            Ending::Exited(APP_NOT_FOUND) if !self.has_been_ready => Reason::NotFound,
            Ending::Exited(_) => Reason::Exited,
            Ending::Signalled { signal: signal::SIGKILL, .. } => self.killed_by_whom(),
            Ending::Signalled { signal, .. } => self.crashed(signal),
        }
    }

    fn killed_by_whom(&self) -> Reason<'_> {
        match (self.killed, self.oom_kills) {
            (Some(why), _) => Reason::Killed(why),
            (None, Some(0)) => Reason::KilledFromOutside,
            (None, Some(kills)) => Reason::OutOfMemory(kills),
            (None, None) => Reason::KilledPerhapsForMemory,
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
            Reason::NotFound => "The application was not found.",
            Reason::NotLoaded => "The application could not be loaded.",
            Reason::Exited => "Nobody had told it to: something in the application called os._exit or exit.",
            Reason::Killed(why) => return write!(f, "This server killed it, as it {why}."),
            Reason::OutOfMemory(kills) => {
                return write!(
                    f,
                    "It was out of memory: the kernel has killed {kills} process(es) of this cgroup for that \
                     (oom_kill)."
                )
            }
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
        Reason::OutOfMemory(_) | Reason::KilledPerhapsForMemory => {
            "was sent SIGKILL! Perhaps out of memory?".to_string()
        }
        _ => format!("{}.", facts.ending),
    };
    let boots = if facts.has_been_ready { "" } else { " It had not finished booting." };
    let seconds = facts.age / SECOND;
    format!(
        "Worker (pid:{pid}) {what} {reason}{boots} It lived for {seconds} s and took {} request(s).",
        facts.requests
    )
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

/// Who was killed by us and why, and how often the kernel has killed.
pub struct Coroner {
    oom: Option<OomCount>,
    kills: Vec<(i32, &'static str)>,
}

impl Coroner {
    pub fn new() -> Coroner {
        Coroner { oom: OomCount::of_this_cgroup(), kills: Vec::new() }
    }

    pub fn killed(&mut self, pid: i32, why: &'static str) {
        self.kills.push((pid, why));
    }

    /// Of a worker that has been reaped. `now` is when.
    pub fn facts(&mut self, child: &Child, ending: Ending, told: bool, now: Nanos) -> Facts<'static> {
        let killed = self.kills.iter().position(|(pid, _)| *pid == child.pid);
        let killed = killed.map(|at| self.kills.swap_remove(at).1);
        let by_kill = matches!(ending, Ending::Signalled { signal: signal::SIGKILL, .. });
        let oom_kills = match &mut self.oom {
            Some(count) if by_kill && killed.is_none() => count.since_last(),
            _ => None,
        };
        let slot = &child.slot;
        Facts {
            ending,
            told,
            has_been_ready: child.has_been_ready(),
            fault: slot.fault(),
            killed,
            oom_kills,
            age: now.saturating_sub(child.born),
            requests: slot.requests(),
        }
    }
}

/// The kernel's count of the processes of our cgroup that it has killed for want of memory.
struct OomCount {
    path: String,
    last: u64,
}

impl OomCount {
    fn of_this_cgroup() -> Option<OomCount> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = counters(&groups).into_iter().find(|path| read_count(path).is_some())?;
        let last = read_count(&path)?;
        Some(OomCount { path, last })
    }

    fn since_last(&mut self) -> Option<u64> {
        let count = read_count(&self.path)?;
        let before = std::mem::replace(&mut self.last, count);
        Some(count.saturating_sub(before))
    }
}

fn read_count(path: &str) -> Option<u64> {
    oom_kills(&fs::read_to_string(path).ok()?)
}

/// `oom_kill` in memory.events (cgroup v2) or memory.oom_control (v1).
fn oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Where the count may be, by what /proc/self/cgroup says: a container may see its own cgroup as the root of the mount.
fn counters(groups: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_end_matches('/');
        if controllers.split(',').any(|controller| controller == "memory") {
            let folder = "/sys/fs/cgroup/memory";
            found.extend([
                format!("{folder}{path}/memory.oom_control"),
                format!("{folder}/memory.oom_control"),
            ]);
        } else if id == "0" && controllers.is_empty() {
            let folder = "/sys/fs/cgroup";
            found.extend([format!("{folder}{path}/memory.events"), format!("{folder}/memory.events")]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: Facts<'static> = Facts {
        ending: Ending::Exited(0),
        told: false,
        has_been_ready: true,
        fault: None,
        killed: None,
        oom_kills: None,
        age: 0,
        requests: 0,
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
            (Facts { ending: exited(7), told: true, ..ALIVE }, Reason::Exited),
            (Facts { ending: exited(BOOT_FAILED), ..booting }, Reason::NotLoaded),
            (Facts { ending: exited(APP_NOT_FOUND), ..booting }, Reason::NotFound),
            (Facts { ending: exited(BOOT_FAILED), ..ALIVE }, Reason::Exited),
            (Facts { ending: exited(9), ..booting }, Reason::Exited),
            (Facts { killed: Some("x"), oom_kills: Some(1), ..kill }, Reason::Killed("x")),
            (Facts { oom_kills: Some(2), ..kill }, Reason::OutOfMemory(2)),
            (Facts { oom_kills: Some(0), ..kill }, Reason::KilledFromOutside),
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
        assert!(says(Facts { oom_kills: Some(1), ..kill }).starts_with(perhaps));
        assert!(
            says(Facts { oom_kills: Some(0), ..kill }).starts_with("Worker (pid:7) was killed by SIGKILL.")
        );
        let late = Facts { killed: Some("did not finish in time (--graceful-timeout)"), ..kill };
        assert!(!says(late).contains("memory") && says(late).contains("(--graceful-timeout)"));
        assert!(says(Facts { ending: Ending::Exited(7), ..ALIVE })
            .starts_with("Worker (pid:7) exited with code 7."));
    }

    #[test]
    fn the_count_is_found_in_either_version_of_cgroups() {
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"), Some(5));
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\n"), None);
        assert_eq!(oom_kills(""), None);
    }

    #[test]
    fn the_count_is_where_the_cgroup_is() {
        let v2 = counters("0::/system.slice/web.service\n");
        assert_eq!(v2[0], "/sys/fs/cgroup/system.slice/web.service/memory.events");
        assert_eq!(counters("0::/\n"), ["/sys/fs/cgroup/memory.events"; 2]);
        let hybrid = counters("9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n");
        assert_eq!(
            hybrid[..2],
            [
                "/sys/fs/cgroup/memory/docker/abc/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control"
            ]
        );
        assert!(counters("").is_empty() && counters("nonsense\n").is_empty());
    }

    #[test]
    fn what_a_client_has_sent_makes_no_line_of_its_own() {
        let request =
            InFlight { since: SECOND, method: "GET".into(), target: "/a\n[CRITICAL] b\u{7f}".into() };
        let line = victim(&request, 4 * SECOND);
        assert_eq!(line, "It was running GET /a\u{fffd}[CRITICAL] b\u{fffd} for 3 s");
    }
}
