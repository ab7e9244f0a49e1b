//! Owns: the journal of one generation: which files its workers depend on, and as what they found them.
//! Rule: a file in memory to which every worker appends, an entry with each write; the arbiter alone reads it. Nobody
//! waits: there is no peer that could be slow, gone or full, and what a worker has written stays when it dies.
//! Never: wakes the arbiter; that is done by whoever writes.
//!
//! An entry is `f:MODIFIED:SIZE:INODE:PATH`, `d::::PATH` for a folder or `-::::PATH` for what is not there, and a NUL.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::signature::Signature;
use crate::sys::file;

/// More than an application has files; who writes so much more is in a loop.
const MOST: u64 = 64 << 20;
const CHUNK: usize = 64 << 10;
/// Longer than a path and the numbers before it.
const LONGEST: usize = 8 << 10;

pub struct Journal(OwnedFd);

impl Journal {
    pub fn new() -> io::Result<Journal> {
        Ok(Journal(file::memory_log()?))
    }

    /// By a worker, before it reads the file: as what it finds it now.
    ///
    /// Errors: there is no memory, or the journal is full.
    pub fn note(&self, path: &Path) -> io::Result<()> {
        if file::regular_size(self.0.as_fd())? > MOST {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file::write_all(self.0.as_fd(), &entry(path, Signature::of(path)))
    }
}

/// How far the arbiter has read.
#[derive(Default)]
pub struct Reader {
    offset: u64,
}

impl Reader {
    /// The entries since the last call. Whoever writes may be a hostile application: what is behind `MOST` is not read, and
    /// nothing is waited for that cannot be an entry.
    pub fn read(&mut self, journal: &Journal) -> io::Result<Vec<(PathBuf, Signature)>> {
        let mut bytes = Vec::new();
        let mut chunk = vec![0; CHUNK];
        while self.offset + (bytes.len() as u64) < MOST + CHUNK as u64 {
            match file::read_at(journal.0.as_fd(), &mut chunk, self.offset + bytes.len() as u64)? {
                0 => break,
                count => bytes.extend_from_slice(&chunk[..count]),
            }
        }
        // The last entry may be just being written.
        let whole = memchr::memrchr(0, &bytes).map_or(0, |end| end + 1);
        let is_nonsense = bytes.len() - whole > LONGEST;
        self.offset += if is_nonsense { bytes.len() } else { whole } as u64;
        Ok(bytes[..whole].split(|octet| *octet == 0).filter_map(parse).collect())
    }
}

fn entry(path: &Path, signature: Signature) -> Vec<u8> {
    let mut entry = match signature {
        Signature::Absent => "-::::".to_string(),
        Signature::Folder => "d::::".to_string(),
        Signature::File { modified, size, inode } => format!("f:{modified}:{size}:{inode}:"),
    }
    .into_bytes();
    entry.extend_from_slice(path.as_os_str().as_bytes());
    entry.push(0);
    entry
}

fn parse(entry: &[u8]) -> Option<(PathBuf, Signature)> {
    let mut fields = entry.splitn(5, |octet| *octet == b':');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (kind, modified, size, inode) = (field()?, field()?, field()?, field()?);
    let path = PathBuf::from(OsStr::from_bytes(fields.next()?));
    let signature = match kind {
        "-" => Signature::Absent,
        "d" => Signature::Folder,
        _ => Signature::File {
            modified: modified.parse().ok()?,
            size: size.parse().ok()?,
            inode: inode.parse().ok()?,
        },
    };
    Some((path, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_once() {
        let journal = Journal::new().unwrap();
        let mut reader = Reader::default();
        assert!(reader.read(&journal).unwrap().is_empty());
        let here = std::env::current_exe().unwrap();
        journal.note(&here).unwrap();
        journal.note(Path::new("/no/such:file\n")).unwrap();
        let found = reader.read(&journal).unwrap();
        assert_eq!(found[0], (here.clone(), Signature::of(&here)));
        assert_eq!(found[1], (PathBuf::from("/no/such:file\n"), Signature::Absent));
        assert!(reader.read(&journal).unwrap().is_empty());
        journal.note(Path::new("/")).unwrap();
        assert_eq!(reader.read(&journal).unwrap(), [(PathBuf::from("/"), Signature::Folder)]);
    }

    #[test]
    fn half_an_entry_waits_for_the_other_half() {
        let journal = Journal::new().unwrap();
        let mut reader = Reader::default();
        file::write_all(journal.0.as_fd(), b"-::::/a\0-::::/").unwrap();
        assert_eq!(reader.read(&journal).unwrap(), [(PathBuf::from("/a"), Signature::Absent)]);
        file::write_all(journal.0.as_fd(), b"b\0nonsense\0").unwrap();
        assert_eq!(reader.read(&journal).unwrap(), [(PathBuf::from("/b"), Signature::Absent)]);
    }

    #[test]
    fn who_writes_without_end_is_not_read_without_end() {
        let journal = Journal::new().unwrap();
        let mut reader = Reader::default();
        file::write_all(journal.0.as_fd(), &[b'x'; 3 * CHUNK]).unwrap();
        assert!(reader.read(&journal).unwrap().is_empty());
        assert_eq!(reader.offset, 3 * CHUNK as u64, "it is not read again");
        file::write_all(journal.0.as_fd(), b"\0-::::/a\0").unwrap();
        assert_eq!(reader.read(&journal).unwrap(), [(PathBuf::from("/a"), Signature::Absent)]);
        nix::unistd::ftruncate(&journal.0, 3 * MOST as i64).unwrap();
        while !reader.read(&journal).unwrap().is_empty() {}
        assert!(reader.offset <= MOST + 2 * CHUNK as u64, "{}", reader.offset);
        file::write_all(journal.0.as_fd(), b"\0-::::/b\0").unwrap();
        assert!(reader.read(&journal).unwrap().is_empty());
    }
}
