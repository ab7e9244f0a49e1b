//! Owns: the kernel's count of the processes of our cgroup that it has killed for want of memory, and when it rose.
//! Rule: a kill explains a death only if it can have come with it; an older one was somebody else's. Where the kernel does
//! not tell of a kill when it comes, the answer says in how long a time it may have been.
//! Never: decides why anybody died.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::sys::clock::{Nanos, SECOND};
use crate::sys::inotify::Inotify;

/// So long a killed process may take to end, as its memory is given back first.
const CLOSE: Nanos = 10 * SECOND;
/// How often the count is looked at where nobody tells of it, when there is something to do anyway.
const LOOK: Nanos = CLOSE / 2;

/// Whether the kernel has killed for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oom {
    /// It does not say.
    Unknown,
    No,
    /// So many just now.
    Now(u64),
    /// So many in the last so many seconds: it may have been another process.
    Within(u64, u64),
}

pub struct OomKills {
    path: String,
    /// The count, and when it was read.
    seen: u64,
    at: Nanos,
    rise: Option<Rise>,
    /// Tells when it changes (cgroup v2).
    told: Option<Inotify>,
}

/// Kills of which no death has been heard; they came between two moments.
#[derive(Clone, Copy)]
struct Rise {
    kills: u64,
    since: Nanos,
    until: Nanos,
}

impl OomKills {
    pub fn of_this_cgroup(now: Nanos) -> Option<OomKills> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        counters(&groups).into_iter().find_map(|path| OomKills::at(path, now))
    }

    fn at(path: String, now: Nanos) -> Option<OomKills> {
        let seen = read_count(&path)?;
        let told = if path.contains("/memory.events") { watch(&path) } else { None };
        Some(OomKills { path, seen, at: now, rise: None, told })
    }

    /// Readable when the count may have changed.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        self.told.as_ref().map(AsFd::as_fd)
    }

    /// Notes when the count rises; to be called whenever there is something to do.
    pub fn follow(&mut self, now: Nanos) {
        let is_due = match &self.told {
            Some(told) => told.stirs(),
            None => now.saturating_sub(self.at) >= LOOK,
        };
        if is_due {
            self.look(now);
        }
    }

    fn look(&mut self, now: Nanos) {
        let Some(count) = read_count(&self.path) else { return };
        let kills = count.saturating_sub(std::mem::replace(&mut self.seen, count));
        let before = std::mem::replace(&mut self.at, now);
        if kills == 0 {
            return;
        }
        let since = if self.told.is_some() { now } else { before };
        self.rise = Some(match self.rise.filter(|old| is_close(old.until, now)) {
            Some(old) => Rise { kills: old.kills + kills, since: old.since, until: now },
            None => Rise { kills, since, until: now },
        });
    }

    /// Whether a process of ours that has ended just now may have been killed so. A kill explains one death.
    pub fn claim(&mut self, now: Nanos) -> Oom {
        self.look(now);
        let Some(rise) = self.rise.take().filter(|rise| is_close(rise.until, now)) else { return Oom::No };
        self.rise = Some(Rise { kills: rise.kills - 1, ..rise }).filter(|left| left.kills > 0);
        match is_close(rise.since, now) {
            true => Oom::Now(rise.kills),
            false => Oom::Within(rise.kills, now.saturating_sub(rise.since) / SECOND),
        }
    }
}

fn is_close(moment: Nanos, now: Nanos) -> bool {
    now.saturating_sub(moment) <= CLOSE
}

fn watch(path: &str) -> Option<Inotify> {
    let inotify = Inotify::new().ok()?;
    inotify.watch_file(Path::new(path)).ok()?;
    Some(inotify)
}

fn read_count(path: &str) -> Option<u64> {
    oom_kills(&fs::read_to_string(path).ok()?)
}

/// `oom_kill` in memory.events (cgroup v2) or memory.oom_control (v1).
fn oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Where the count may be, by what /proc/self/cgroup says: a container may see its own cgroup as the root of the mount.
/// That of the cgroup alone, without those below it, is the better one.
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
            found.extend([path, ""].map(|path| format!("{folder}{path}/memory.oom_control")));
        } else if id == "0" && controllers.is_empty() {
            for path in [path, ""] {
                let file = format!("/sys/fs/cgroup{path}/memory.events");
                found.extend([format!("{file}.local"), file]);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    /// A count that the test sets, with or without somebody who tells of it.
    struct Kernel {
        path: String,
    }

    impl Kernel {
        fn new(name: &str) -> Kernel {
            let folder = std::env::temp_dir();
            let path = format!("{}/rgunicorn-oom-{name}-{}/memory.events", folder.display(), process::id());
            fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
            let kernel = Kernel { path };
            kernel.set(3);
            kernel
        }

        fn set(&self, kills: u64) {
            fs::write(&self.path, format!("oom 9\noom_kill {kills}\n")).unwrap();
        }

        fn kills(&self, tells: bool) -> OomKills {
            let kills = OomKills::at(self.path.clone(), 0).unwrap();
            assert!(kills.waits().is_some());
            OomKills { told: kills.told.filter(|_| tells), ..kills }
        }
    }

    impl Drop for Kernel {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(Path::new(&self.path).parent().unwrap());
        }
    }

    const DAY: Nanos = 86_400 * SECOND;

    #[test]
    fn a_kill_explains_the_death_that_comes_with_it_and_no_other() {
        for tells in [true, false] {
            let kernel = Kernel::new(if tells { "with" } else { "without" });
            let mut kills = kernel.kills(tells);
            assert_eq!(kills.claim(SECOND), Oom::No, "those before us");
            kernel.set(5);
            assert_eq!(kills.claim(2 * SECOND), Oom::Now(2));
            assert_eq!(kills.claim(3 * SECOND), Oom::Now(1));
            assert_eq!(kills.claim(4 * SECOND), Oom::No);
        }
    }

    #[test]
    fn a_death_long_after_the_kill_of_another_process_is_not_explained_by_it() {
        let kernel = Kernel::new("told");
        let mut kills = kernel.kills(true);
        kernel.set(4);
        kills.follow(DAY);
        assert_eq!(kills.claim(DAY + CLOSE + 1), Oom::No);
        kernel.set(5);
        kills.follow(2 * DAY);
        assert_eq!(kills.claim(2 * DAY + SECOND), Oom::Now(1));
    }

    #[test]
    fn where_nobody_tells_the_answer_says_how_sure_it_is() {
        let kernel = Kernel::new("untold");
        let mut kills = kernel.kills(false);
        kernel.set(4);
        assert_eq!(kills.claim(DAY), Oom::Within(1, 86_400));
        kernel.set(5);
        // Nothing has happened for so long; by now the kill is an old one.
        kills.follow(2 * DAY);
        assert_eq!(kills.claim(2 * DAY + CLOSE + 1), Oom::No);
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
        assert_eq!(v2[0], "/sys/fs/cgroup/system.slice/web.service/memory.events.local");
        assert_eq!(v2[1], "/sys/fs/cgroup/system.slice/web.service/memory.events");
        assert_eq!(counters("0::/\n")[..2], counters("0::/\n")[2..]);
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
}
