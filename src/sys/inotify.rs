//! Owns: inotify(7): folders whose changes the kernel tells of, and which file systems it cannot tell of.
//! Rule: folders are watched, not files: a file that is replaced by renaming another one is a new file. But for the kernel's
//! own files, which nobody replaces.
//! Never: knows which names matter.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, InotifyEvent};

pub use nix::sys::inotify::WatchDescriptor as FolderId;

pub struct Inotify(nix::sys::inotify::Inotify);

#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Something happened to this name in the folder.
    Name(FolderId, OsString),
    /// The folder itself is gone, or elsewhere; nothing more is told of it.
    Folder(FolderId),
    /// More happened than the queue could hold.
    Overflow,
}

impl Inotify {
    pub fn new() -> io::Result<Inotify> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        Ok(Inotify(nix::sys::inotify::Inotify::init(flags)?))
    }

    /// Errors: ENOSPC, no more watches for this user (`fs.inotify.max_user_watches`); ENOTDIR; what open(2) would say.
    pub fn watch(&self, folder: &Path) -> io::Result<FolderId> {
        // Not IN_MODIFY: of a file that is being written it is the end that counts.
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        Ok(self.0.add_watch(folder, mask)?)
    }

    /// Only that its contents change; for a file that the kernel writes.
    pub fn watch_file(&self, file: &Path) -> io::Result<()> {
        self.0.add_watch(file, AddWatchFlags::IN_MODIFY)?;
        Ok(())
    }

    /// Whether anything has been told, which is forgotten.
    pub fn stirs(&self) -> bool {
        let mut stirs = false;
        while self.0.read_events().is_ok() {
            stirs = true;
        }
        stirs
    }

    /// All that has been told, without waiting, and each thing once.
    pub fn pending(&self) -> io::Result<HashSet<Told>> {
        let mut told = HashSet::new();
        loop {
            match self.0.read_events() {
                Ok(events) => told.extend(events.into_iter().filter_map(|event| self.understand(event))),
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(told),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn understand(&self, event: InotifyEvent) -> Option<Told> {
        let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_UNMOUNT;
        let is = |mask| event.mask.intersects(mask);
        if is(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Told::Overflow);
        }
        if is(AddWatchFlags::IN_MOVE_SELF) {
            // It would go on telling of the folder under its new name. Fails only when that is gone already.
            let _ = self.0.rm_watch(event.wd);
            return Some(Told::Folder(event.wd));
        }
        match event.name {
            _ if is(gone) => Some(Told::Folder(event.wd)),
            Some(name) => Some(Told::Name(event.wd, name)),
            // About the folder's own attributes.
            None => None,
        }
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The magic numbers (statfs(2)) of file systems on which somebody else may write, of which this kernel does not tell.
const BLIND: [(u32, &str); 14] = [
    (0x6969, "nfs"),
    (0x517b, "smb"),
    (0xfe53_4d42, "smb2"),
    (0xff53_4d42, "cifs"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0x786f_4256, "vboxsf"),
    (0xbacb_acbc, "vmhgfs"),
    (0x7c7c_6673, "prl_fs"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x7375_7245, "coda"),
    (0x0bd0_0bd0, "lustre"),
    (0x7461_636f, "ocfs2"),
];

/// The file system of a folder, if it is one of which not all changes are told.
pub fn blind_file_system(folder: &Path) -> Option<&'static str> {
    let found = nix::sys::statfs::statfs(folder).ok()?.filesystem_type();
    blind(found.0 as u32)
}

fn blind(magic: u32) -> Option<&'static str> {
    BLIND.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_are_told_once_and_the_end_of_a_folder_too() {
        let folder = std::env::temp_dir().join(format!("rgunicorn-inotify-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let inotify = Inotify::new().unwrap();
        let id = inotify.watch(&folder).unwrap();
        assert!(inotify.pending().unwrap().is_empty());
        fs::write(folder.join("a"), "1").unwrap();
        fs::write(folder.join("a"), "2").unwrap();
        assert_eq!(inotify.pending().unwrap(), HashSet::from([Told::Name(id, "a".into())]));
        fs::remove_dir_all(&folder).unwrap();
        assert!(inotify.pending().unwrap().contains(&Told::Folder(id)));
        assert!(inotify.watch(&folder).is_err());
    }

    #[test]
    fn network_file_systems_are_known() {
        assert_eq!(blind(0x6573_5546), Some("fuse"));
        assert_eq!(blind(0xff53_4d42), Some("cifs"));
        assert_eq!(blind(0xef53), None, "ext4");
    }
}
