//! Owns: as whom workers run: `user`, `group` and `initgroups`, looked up once, and the change itself.
//! Rule: groups, then gid, then uid, each in all its forms, then capabilities; then it is verified that there is no way
//! back. What the user could have put in our way is touched with the user's rights to files, never with root's.
//! Never: changes HOME.

use std::ffi::{CString, OsString};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, AT_FDCWD};
use nix::unistd::{
    faccessat, getegid, geteuid, getgrouplist, getgroups, getresgid, getresuid, setgroups, setresgid,
    setresuid, setuid, AccessFlags, Gid, Group, Uid, User,
};

use crate::config::Config;
use crate::error::Error;
use crate::sys::file::Owner;
use crate::sys::privileges::{self, Capabilities};
use crate::sys::process;

#[derive(Clone, Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// The supplementary groups.
    groups: Vec<Gid>,
}

/// A user, by name or by number; a number needs no entry in the system's list.
struct Account {
    uid: Uid,
    entry: Option<User>,
}

impl Identity {
    /// As whom the configuration wants workers to run; None when that is who we are.
    ///
    /// Errors: there is no such user or group.
    pub fn wanted(config: &Config) -> Result<Option<Identity>, Error> {
        let account = config.user.as_deref().map(|text| find_user(config, text)).transpose()?;
        let named = config.group.as_deref().map(|text| find_group(config, text)).transpose()?;
        let uid = account.as_ref().map_or(geteuid(), |account| account.uid);
        let entry = account.and_then(|account| account.entry);
        let own = entry.as_ref().filter(|_| uid != geteuid()).map(|user| user.gid);
        let gid = named.or(own).unwrap_or(getegid());
        let name = entry.filter(|_| config.initgroups).map(|user| user.name);
        if (uid, gid) == (geteuid(), getegid()) {
            return Ok(None);
        }
        let groups = name.map_or(Ok(Vec::new()), |name| groups_of(config, &name, gid))?;
        Ok(Some(Identity { uid, gid, groups }))
    }

    /// Errors: only root may become somebody else.
    pub fn permit(&self, config: &Config) -> Result<(), Error> {
        if geteuid().is_root() {
            return Ok(());
        }
        let setting = if self.uid == geteuid() { "group" } else { "user" };
        let why = format!(
            "workers cannot run as {self}: only root may change that, and this is user {}",
            geteuid()
        );
        Err(config.wrong(setting, why))
    }

    pub fn owner(&self) -> Owner {
        Owner { uid: self.uid.as_raw(), gid: self.gid.as_raw() }
    }

    /// Becomes it, for good, and leaves the terminal of whoever has started the server: what is typed there (by
    /// ioctl(TIOCSTI) too) is obeyed by their shell.
    ///
    /// Errors: the kernel refused, or did not do what it said; the process must not go on.
    pub fn assume(&self) -> io::Result<()> {
        if !self.uid.is_root() {
            process::new_session()?;
        }
        setgroups(&self.groups)?;
        setresgid(self.gid, self.gid, self.gid)?;
        setresuid(self.uid, self.uid, self.uid)?;
        if !self.uid.is_root() {
            privileges::drop_all()?;
        }
        self.verify()
    }

    fn verify(&self) -> io::Result<()> {
        let (users, groups) = (getresuid()?, getresgid()?);
        let is_user = [users.real, users.effective, users.saved].iter().all(|uid| *uid == self.uid);
        let is_group = [groups.real, groups.effective, groups.saved].iter().all(|gid| *gid == self.gid);
        let is_member = sorted(getgroups()?) == sorted(self.groups.clone());
        let has_way_back =
            !self.uid.is_root() && (setuid(Uid::from_raw(0)) != Err(Errno::EPERM) || privileges::has_any()?);
        match is_user && is_group && is_member && !has_way_back {
            true => Ok(()),
            false => Err(io::Error::other("privileges are left")),
        }
    }
}

/// What the arbiter goes on with when its workers are somebody else: enough to make and end workers, to bind and to
/// open files anew at a reload, to raise limits and priorities in hooks.
fn arbiters() -> Capabilities {
    Capabilities::SETUID
        | Capabilities::SETGID
        | Capabilities::KILL
        | Capabilities::CHOWN
        | Capabilities::FOWNER
        | Capabilities::DAC_OVERRIDE
        | Capabilities::DAC_READ_SEARCH
        | Capabilities::NET_BIND_SERVICE
        | Capabilities::SYS_RESOURCE
        | Capabilities::SYS_NICE
}

impl Identity {
    /// Gives up, in the arbiter, what of root's power it does not need.
    pub fn limit_ourselves(&self) -> io::Result<()> {
        match self.uid.is_root() {
            true => Ok(()),
            false => privileges::keep(arbiters()),
        }
    }

    fn with_its_rights<R>(&self, body: impl FnOnce() -> R) -> io::Result<R> {
        privileges::with_file_rights_of(self.uid, self.gid, &self.groups, body)
    }

    /// Whether the user could put something else at this path, or lead it elsewhere.
    pub fn controls(&self, path: &Path) -> io::Result<bool> {
        if self.uid.is_root() || !geteuid().is_root() {
            return Ok(false);
        }
        let path = std::path::absolute(path)?;
        self.with_its_rights(|| controls(self.uid.as_raw(), &path))
    }
}

/// Opens a file that workers write to, by `open`. With their rights, as what is at its name may have been put there by
/// one of them; with ours only where they have none, nor could put anything.
pub fn open_for<T>(
    identity: Option<&Identity>,
    path: &Path,
    open: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    let Some(identity) = identity.filter(|one| !one.uid.is_root() && geteuid().is_root()) else {
        return open();
    };
    match identity.with_its_rights(&open)? {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => match identity.controls(path)? {
            true => Err(io::Error::new(e.kind(), format!("{e}, for {identity}"))),
            false => open(),
        },
        opened => opened,
    }
}

/// With the user's rights: walks down to the file, through links, and looks for a step that the user could change.
fn controls(uid: u32, path: &Path) -> bool {
    let mut ahead: Vec<OsString> = path.iter().rev().map(OsString::from).collect();
    let (mut here, mut links) = (PathBuf::new(), 0);
    while let Some(step) = ahead.pop() {
        if step == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&step);
        // Nobody can put anything there; a descriptor of ours is what it is (/dev/stdout).
        if here == Path::new("/proc") {
            return false;
        }
        // Where the user cannot even look, it can change nothing; where nothing is, only the folder counts.
        let found = match std::fs::symlink_metadata(&next) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return is_writable(uid, &here),
            Err(_) => return false,
            Ok(found) => found,
        };
        if can_replace(uid, &here, &found, ahead.is_empty()) {
            return true;
        }
        if !found.is_symlink() {
            here = next;
            continue;
        }
        links += 1;
        match std::fs::read_link(&next) {
            Ok(target) if links <= MOST_LINKS => ahead.extend(target.iter().rev().map(OsString::from)),
            _ => return true,
        }
    }
    false
}

/// As the kernel's own (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// In a folder with the sticky bit it takes the owner to replace something; but a last name may be a second name for
/// another's file.
fn can_replace(uid: u32, folder: &Path, found: &Metadata, is_last: bool) -> bool {
    let is_sticky = std::fs::metadata(folder).is_ok_and(|folder| folder.mode() & libc::S_ISVTX != 0);
    let is_theirs = !found.is_file() && found.uid() == uid;
    is_theirs || is_writable(uid, folder) && (is_last || !is_sticky)
}

/// An owner can make it so.
fn is_writable(uid: u32, folder: &Path) -> bool {
    if folder.as_os_str().is_empty() {
        return false;
    }
    let is_owner = std::fs::metadata(folder).is_ok_and(|found| found.uid() == uid);
    is_owner || faccessat(AT_FDCWD, folder, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
}

fn sorted(mut groups: Vec<Gid>) -> Vec<u32> {
    groups.sort_by_key(|gid| gid.as_raw());
    groups.dedup();
    groups.into_iter().map(Gid::as_raw).collect()
}

fn groups_of(config: &Config, name: &str, gid: Gid) -> Result<Vec<Gid>, Error> {
    let name = CString::new(name).map_err(|_| unknown(config, "user", name))?;
    getgrouplist(&name, gid).map_err(|e| Error::system("the user's groups", &e.into(), "--initgroups"))
}

impl std::fmt::Display for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "user {}, group {}", self.uid, self.gid)
    }
}

fn find_user(config: &Config, text: &str) -> Result<Account, Error> {
    let found = match number(text) {
        Some(uid) => {
            return Ok(Account {
                uid: Uid::from_raw(uid),
                entry: look_up(User::from_uid(uid.into()), "user")?,
            })
        }
        None => look_up(User::from_name(text), "user")?,
    };
    found
        .map(|user| Account { uid: user.uid, entry: Some(user) })
        .ok_or_else(|| unknown(config, "user", text))
}

fn find_group(config: &Config, text: &str) -> Result<Gid, Error> {
    match number(text) {
        Some(gid) => Ok(Gid::from_raw(gid)),
        None => look_up(Group::from_name(text), "group")?
            .map(|group| group.gid)
            .ok_or_else(|| unknown(config, "group", text)),
    }
}

/// The highest number means "no change" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn look_up<T>(found: nix::Result<Option<T>>, what: &str) -> Result<Option<T>, Error> {
    found.map_err(|e| Error::system(&format!("the system's {what}s"), &e.into(), &format!("--{what}")))
}

fn unknown(config: &Config, what: &str, text: &str) -> Error {
    config.wrong(what, format!("there is no {what} '{}'", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(user: Option<&str>, group: Option<&str>) -> Config {
        let text = |text: &str| text.to_string();
        let mut config = Config::default();
        (config.user, config.group) = (user.map(text), group.map(text));
        config
    }

    #[test]
    fn who_we_are_needs_no_change() {
        assert!(Identity::wanted(&config(None, None)).unwrap().is_none());
        let (uid, gid) = (geteuid().to_string(), getegid().to_string());
        assert!(Identity::wanted(&config(Some(&uid), Some(&gid))).unwrap().is_none());
        assert!(Identity::wanted(&config(Some(&uid), None)).unwrap().is_none());
    }

    #[test]
    fn numbers_need_no_entry() {
        let wanted = Identity::wanted(&config(Some("4000000000"), Some("4000000001"))).unwrap().unwrap();
        assert_eq!((wanted.owner().uid, wanted.owner().gid), (4_000_000_000, 4_000_000_001));
        let group = Identity::wanted(&config(None, Some("4000000001"))).unwrap().unwrap();
        assert_eq!(group.owner().uid, geteuid().as_raw());
    }

    #[test]
    fn a_user_brings_the_group() {
        if let (Some(nobody), true) = (User::from_name("nobody").unwrap(), geteuid().is_root()) {
            let wanted = Identity::wanted(&config(Some("nobody"), None)).unwrap().unwrap();
            assert_eq!(wanted.owner().gid, nobody.gid.as_raw());
        }
    }

    #[test]
    fn unknown_names_are_named() {
        let refused = |user, group| Identity::wanted(&config(user, group)).unwrap_err().to_string();
        assert_eq!(refused(Some("no such"), None), "--user: there is no user 'no such'");
        assert_eq!(refused(Some("4294967295"), None), "--user: there is no user '4294967295'");
        assert_eq!(refused(None, Some("no such")), "--group: there is no group 'no such'");
    }
}
