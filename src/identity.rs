//! Owns: as whom workers run: `user`, `group` and `initgroups`, looked up once, and the change itself.
//! Rule: groups, then gid, then uid, each in all its forms; then it is verified that there is no way back.
//! Never: changes the arbiter, or HOME.

use std::ffi::CString;
use std::io;

use nix::errno::Errno;
use nix::unistd::{
    getegid, geteuid, getgroups, getresgid, getresuid, initgroups, setgroups, setresgid, setresuid, setuid,
    Gid, Group, Uid, User,
};

use crate::config::Config;
use crate::error::Error;
use crate::sys::file::Owner;

#[derive(Clone, Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// Whose supplementary groups are taken over; without a name there are none.
    member: Option<CString>,
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
        let member = name.and_then(|name| CString::new(name).ok());
        Ok(((uid, gid) != (geteuid(), getegid())).then_some(Identity { uid, gid, member }))
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

    /// Becomes it, for good.
    ///
    /// Errors: the kernel refused, or did not do what it said; the process must not go on.
    pub fn assume(&self) -> io::Result<()> {
        match &self.member {
            Some(name) => initgroups(name, self.gid)?,
            None => setgroups(&[])?,
        }
        setresgid(self.gid, self.gid, self.gid)?;
        setresuid(self.uid, self.uid, self.uid)?;
        self.verify()
    }

    fn verify(&self) -> io::Result<()> {
        let (users, groups) = (getresuid()?, getresgid()?);
        let is_user = [users.real, users.effective, users.saved].iter().all(|uid| *uid == self.uid);
        let is_group = [groups.real, groups.effective, groups.saved].iter().all(|gid| *gid == self.gid);
        let is_alone = self.member.is_some() || getgroups()?.iter().all(|gid| *gid == self.gid);
        let returns = !self.uid.is_root() && setuid(Uid::from_raw(0)) != Err(Errno::EPERM);
        match is_user && is_group && is_alone && !returns {
            true => Ok(()),
            false => Err(io::Error::other("privileges are left")),
        }
    }
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
