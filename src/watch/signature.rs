//! Owns: what makes a file another one than it was.
//! Rule: time, size and inode: a file that is replaced by renaming differs in the inode, whatever its time says. Of a
//! folder it matters only that it is one: what is written into it changes its time.
//! Never: reads a file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Not there, or not to be seen by us.
    Absent,
    Folder,
    File {
        /// Nanoseconds since the epoch.
        modified: i128,
        size: u64,
        inode: u64,
    },
}

impl Signature {
    /// As it is now; links are followed.
    pub fn of(path: &Path) -> Signature {
        match fs::metadata(path) {
            Err(_) => Signature::Absent,
            Ok(found) if found.is_dir() => Signature::Folder,
            Ok(found) => Signature::File {
                modified: i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
                size: found.size(),
                inode: found.ino(),
            },
        }
    }
}
