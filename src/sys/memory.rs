//! Owns: memory that a process takes from the kernel as it is touched.
//! Rule: a page that nothing was written to costs nothing, which a zeroed `Vec` cannot promise.
//! Never: shared with a child; given back before its owner goes.

use std::alloc::{handle_alloc_error, Layout};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use nix::sys::mman::{mmap_anonymous, munmap, MapFlags, ProtFlags};

/// Zeroed octets in an anonymous MAP_PRIVATE mapping.
pub struct Pages {
    start: NonNull<u8>,
    size: usize,
}

impl Pages {
    /// Ends the process where there is no memory, as every allocation does.
    pub fn new(size: usize) -> Pages {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address the kernel picks aliases nothing.
        match unsafe { mmap_anonymous(None, mapped(size), access, MapFlags::MAP_PRIVATE) } {
            Ok(start) => Pages { start: start.cast(), size },
            Err(_) => handle_alloc_error(Layout::array::<u8>(size).unwrap_or(Layout::new::<u8>())),
        }
    }
}

/// Of no octets there is no mapping.
fn mapped(size: usize) -> NonZeroUsize {
    NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN)
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping holds `size` octets, zeroed or written, and lives as long as self.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; nothing else knows the mapping, and self is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size and no reference outlives self.
        let _ = unsafe { munmap(self.start.cast(), mapped(self.size).get()) };
    }
}

// SAFETY: the octets belong to self alone, as those of a Vec.
unsafe impl Send for Pages {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_zeroed_and_keeps_what_is_written() {
        let mut pages = Pages::new(100_000);
        assert_eq!(pages.len(), 100_000);
        assert!(pages.iter().all(|octet| *octet == 0));
        pages[99_999] = 7;
        assert_eq!(pages.last(), Some(&7));
    }

    #[test]
    fn takes_no_memory_before_it_is_touched() {
        let resident = || -> usize {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        let mut large = Pages::new(64 << 20);
        large[0] = 1;
        // Of 16 384 pages; other tests of this process take a few meanwhile.
        assert!(resident() < before + 8192);
    }
}
