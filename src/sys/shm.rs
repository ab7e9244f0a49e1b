//! Owns: memory shared by a process and the children it forks afterwards.
//! Rule: it is an array of atomic words and nothing else, so that no process can leave it half written.
//! Never: locks, pointers or Strings inside.

use std::io;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::MapFlags;

use super::memory::Mapping;

/// Zeroed words in an anonymous MAP_SHARED mapping.
pub struct SharedWords(Mapping);

impl SharedWords {
    pub fn new(count: usize) -> io::Result<SharedWords> {
        Ok(SharedWords(Mapping::new(count * size_of::<AtomicU64>(), MapFlags::MAP_SHARED)?))
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let count = self.0.size() / size_of::<AtomicU64>();
        // SAFETY: the mapping holds so many words, is page-aligned, zeroed (a valid AtomicU64) and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.0.start().as_ptr(), count) }
    }
}

// SAFETY: the contents are atomics; the pointer is never changed after `new`.
unsafe impl Sync for SharedWords {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn starts_zeroed_and_keeps_what_is_stored() {
        let words = SharedWords::new(1000).unwrap();
        assert_eq!(words.len(), 1000);
        assert!(words.iter().all(|w| w.load(Relaxed) == 0));
        words[999].store(7, Relaxed);
        assert_eq!(words[999].load(Relaxed), 7);
    }
}
