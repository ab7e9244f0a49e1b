//! Owns: capabilities(7): what of root's power this thread has, giving it up, and lending files' permissions to a user.
//! Rule: what is given up here is gone for good; what is lent is taken back before the call returns.
//! Never: decides what a role needs.

use std::io;

use nix::unistd::{getegid, geteuid, getgroups, setfsgid, setfsuid, setgroups, Gid, Uid};
use rustix::thread::{
    capabilities, clear_ambient_capability_set, set_capabilities, CapabilitySet, CapabilitySets,
};

pub use rustix::thread::CapabilitySet as Capabilities;

/// Gives up every capability that is not in `kept`, of this thread. Programs that root executes have them again.
pub fn keep(kept: Capabilities) -> io::Result<()> {
    let now = capabilities(None)?;
    let permitted = now.permitted & kept;
    let effective = now.effective & kept;
    set_capabilities(None, CapabilitySets { permitted, effective, inheritable: now.inheritable & kept })?;
    Ok(())
}

/// Gives up all of them, those that programs would inherit too.
pub fn drop_all() -> io::Result<()> {
    // Kernels before 4.3 have no ambient set.
    match clear_ambient_capability_set() {
        Err(rustix::io::Errno::INVAL) => {}
        cleared => cleared?,
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { permitted: none, effective: none, inheritable: none })?;
    Ok(())
}

/// Whether this thread has any capability, or could take one.
pub fn has_any() -> io::Result<bool> {
    let now = capabilities(None)?;
    Ok(!(now.permitted | now.effective | now.inheritable).is_empty())
}

/// Runs `body` with the rights to files of this user alone (credentials(7): the file system user, group and groups).
///
/// Errors: the rights could not be taken, and nothing ran; or not given back.
pub fn with_file_rights_of<R>(uid: Uid, gid: Gid, groups: &[Gid], body: impl FnOnce() -> R) -> io::Result<R> {
    let lent = Lent { groups: getgroups()? };
    setgroups(groups)?;
    setfsgid(gid);
    setfsuid(uid);
    if super::process::file_user() != uid.as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let result = body();
    drop(lent);
    match super::process::file_user() == geteuid().as_raw() {
        true => Ok(result),
        false => Err(io::Error::other("the rights to files did not come back")),
    }
}

/// Ours are back when it is dropped.
struct Lent {
    groups: Vec<Gid>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        setfsuid(geteuid());
        setfsgid(getegid());
        // We were allowed to change them a moment ago.
        let _ = setgroups(&self.groups);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    /// Threads have capabilities and rights to files of their own, but groups are the process's.
    #[test]
    fn files_are_opened_as_the_user_and_then_as_ourselves_again() {
        if !geteuid().is_root() {
            return;
        }
        let folder = std::env::temp_dir().join(format!("rgunicorn-rights-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(folder.join("root"), "").unwrap();
        fs::set_permissions(folder.join("root"), fs::Permissions::from_mode(0o600)).unwrap();
        let groups = getgroups().unwrap();
        let as_user = || (fs::read(folder.join("root")).is_err(), fs::write(folder.join("user"), "").is_ok());
        let (uid, gid) = (Uid::from_raw(4_000_000), Gid::from_raw(4_000_001));
        assert_eq!(with_file_rights_of(uid, gid, &[], as_user).unwrap(), (true, true));
        let made = fs::metadata(folder.join("user")).unwrap();
        assert_eq!((made.uid(), made.gid()), (4_000_000, 4_000_001));
        assert!(fs::read(folder.join("root")).is_ok());
        assert_eq!(getgroups().unwrap(), groups);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_capability_that_is_given_up_is_gone() {
        if !geteuid().is_root() {
            return;
        }
        let given_up = || {
            keep(Capabilities::CHOWN)?;
            let kept = capabilities(None)?.permitted;
            drop_all()?;
            Ok::<_, io::Error>((kept, has_any()?, set_all().is_err()))
        };
        let (kept, any, lost) = std::thread::spawn(given_up).join().unwrap().unwrap();
        assert!(Capabilities::CHOWN.contains(kept) && !any && lost);
    }

    fn set_all() -> io::Result<()> {
        let (permitted, inheritable) = (Capabilities::CHOWN, Capabilities::empty());
        Ok(set_capabilities(None, CapabilitySets { permitted, effective: permitted, inheritable })?)
    }
}
