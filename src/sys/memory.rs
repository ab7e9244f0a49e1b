//! Owns: memory mapped from the kernel, which gives it page by page as it is touched.
//! Rule: a page that nothing was written to costs nothing, which a zeroed `Vec` cannot promise.
//! Never: given back before its owner goes.

use std::alloc::{handle_alloc_error, Layout};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use nix::sys::mman::{madvise, mmap_anonymous, munmap, MapFlags, MmapAdvise, ProtFlags};

/// Zeroed octets, aligned to a page, at an address that stays.
pub(super) struct Mapping {
    start: NonNull<c_void>,
    size: NonZeroUsize,
}

impl Mapping {
    /// `sharing`: MAP_PRIVATE or MAP_SHARED.
    ///
    /// Errors: the kernel's; InvalidInput for no octets.
    pub(super) fn new(size: usize, sharing: MapFlags) -> io::Result<Mapping> {
        let size = NonZeroUsize::new(size).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address the kernel picks aliases nothing.
        let start = unsafe { mmap_anonymous(None, size, access, sharing)? };
        Ok(Mapping { start, size })
    }

    /// Where the kernel knows how (madvise(2), MADV_DONTDUMP); otherwise it stays in the dump.
    pub(super) fn keep_out_of_dumps(&self) {
        // SAFETY: the advice changes no contents, and the mapping is ours.
        let _ = unsafe { madvise(self.start, self.size.get(), MmapAdvise::MADV_DONTDUMP) };
    }

    pub(super) fn start<T>(&self) -> NonNull<T> {
        self.start.cast()
    }

    pub(super) fn size(&self) -> usize {
        self.size.get()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size and no reference outlives self.
        let _ = unsafe { munmap(self.start, self.size.get()) };
    }
}

// SAFETY: the octets belong to self alone, as those of a Vec; what is done with them is up to the types that have one.
unsafe impl Send for Mapping {}

/// Octets of one process, which a child would copy.
pub struct Pages(Mapping);

impl Pages {
    /// Ends the process where there is no memory, as every allocation does. `size`: at least 1.
    pub fn new(size: usize) -> Pages {
        let failed = |_| handle_alloc_error(Layout::array::<u8>(size).unwrap_or(Layout::new::<u8>()));
        Pages(Mapping::new(size, MapFlags::MAP_PRIVATE).unwrap_or_else(failed))
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping holds so many octets, zeroed or written, and lives as long as self.
        unsafe { slice::from_raw_parts(self.0.start().as_ptr(), self.0.size()) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; nothing else knows the mapping, and self is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.0.start().as_ptr(), self.0.size()) }
    }
}

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
