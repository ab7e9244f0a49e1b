//! Owns: memory shared by a process and the children it forks afterwards.
//! Rule: it is an array of atomic words and nothing else, so that no process can leave it half written.
//! Never: locks, pointers or Strings inside.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{mmap_anonymous, munmap, MapFlags, ProtFlags};

/// Zeroed words in an anonymous MAP_SHARED mapping.
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

impl SharedWords {
    pub fn new(count: usize) -> io::Result<SharedWords> {
        let size = NonZeroUsize::new(count * size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address the kernel picks aliases nothing.
        let start = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED)? };
        Ok(SharedWords { start: start.cast(), count })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `count` words, is page-aligned, zeroed (a valid AtomicU64) and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size and no reference outlives self.
        let _ = unsafe { munmap(self.start.cast(), self.count * size_of::<AtomicU64>()) };
    }
}

// SAFETY: the contents are atomics; the pointer is never changed after `new`.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
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
