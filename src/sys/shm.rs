//! Owns: memory shared by a process and the children it forks afterwards.
//! Rule: it is made of atomic words and nothing else, so that no process can leave it half written. A structure for it is
//! declared by `shared_struct!`, which lets nothing else in.
//! Never: locks, pointers or Strings inside.

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::mman::MapFlags;

use super::memory::Mapping;

/// What may lie in shared memory. Implemented for structures by `shared_struct!` only.
///
/// # Safety
/// The type consists of `AtomicU64`s, so that every pattern of bits is a valid value of it, in every process.
// SAFETY: for each implementation to show.
pub unsafe trait Words: Sync {
    fn each_word(&self, visit: &mut impl FnMut(&AtomicU64));

    /// Word by word: other processes may see half of it.
    fn clear(&self) {
        self.each_word(&mut |word| word.store(0, Relaxed));
    }
}

// SAFETY: it is one.
unsafe impl Words for AtomicU64 {
    fn each_word(&self, visit: &mut impl FnMut(&AtomicU64)) {
        visit(self);
    }
}

// SAFETY: an array of them holds nothing else.
unsafe impl<T: Words, const N: usize> Words for [T; N] {
    fn each_word(&self, visit: &mut impl FnMut(&AtomicU64)) {
        self.iter().for_each(|item| item.each_word(visit));
    }
}

/// Declares a structure for shared memory, laid out as in C, that begins at a cache line and fills whole ones.
macro_rules! shared_struct {
    ($(#[$meta:meta])* $name:ident { $($(#[$note:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$meta])*
        #[repr(C, align(64))]
        struct $name {
            $($(#[$note])* $field: $type,)+
        }

        // SAFETY: each field is `Words`, or `each_word` would not compile; padding is neither read nor written.
        #[allow(unsafe_code)]
        unsafe impl $crate::sys::shm::Words for $name {
            fn each_word(&self, visit: &mut impl FnMut(&::std::sync::atomic::AtomicU64)) {
                $($crate::sys::shm::Words::each_word(&self.$field, visit);)+
            }
        }
    };
}
pub(crate) use shared_struct;

/// Zeroed values in an anonymous MAP_SHARED mapping.
pub struct SharedArray<T> {
    mapping: Mapping,
    count: usize,
    holds: PhantomData<T>,
}

impl<T: Words> SharedArray<T> {
    /// Errors: the kernel's; InvalidInput for no values.
    pub fn new(count: usize) -> io::Result<SharedArray<T>> {
        // Of which no page of a system has less.
        const { assert!(align_of::<T>() <= 4096) };
        let size = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::InvalidInput)?;
        let mapping = Mapping::new(size, MapFlags::MAP_SHARED)?;
        Ok(SharedArray { mapping, count, holds: PhantomData })
    }
}

impl<T: Words> Deref for SharedArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds so many values, is page-aligned and lives as long as self. `T` is `Words`: zeros are a
        // valid value, and so is whatever another process writes.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr(), self.count) }
    }
}

// SAFETY: the contents are atomics; the pointer is never changed after `new`.
unsafe impl<T: Words> Sync for SharedArray<T> {}

/// One value in such a mapping.
pub struct Shared<T>(SharedArray<T>);

impl<T: Words> Shared<T> {
    pub fn new() -> io::Result<Shared<T>> {
        Ok(Shared(SharedArray::new(1)?))
    }

    /// For what is not to be read in a dump of a process that crashed.
    pub fn keep_out_of_dumps(&self) {
        self.0.mapping.keep_out_of_dumps();
    }
}

impl<T: Words> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    shared_struct! {
        Sample {
            first: AtomicU64,
            rest: [AtomicU64; 9],
        }
    }

    #[test]
    fn starts_zeroed_and_keeps_what_is_stored() {
        let samples = SharedArray::<Sample>::new(1000).unwrap();
        assert_eq!((samples.len(), size_of::<Sample>()), (1000, 128));
        let sum = |sample: &Sample| {
            let mut sum = 0;
            sample.each_word(&mut |word| sum += word.load(Relaxed));
            sum
        };
        assert!(samples.iter().all(|sample| sum(sample) == 0));
        samples[999].first.store(7, Relaxed);
        samples[999].rest[8].store(1, Relaxed);
        assert_eq!((sum(&samples[999]), sum(&samples[998])), (8, 0));
        samples[999].clear();
        assert_eq!(sum(&samples[999]), 0);
    }

    #[test]
    fn what_a_child_stores_is_seen_here() {
        let one = Shared::<Sample>::new().unwrap();
        // SAFETY: the child stores one word and ends at once.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                one.rest[3].store(42, Relaxed);
                crate::sys::process::exit_now(0);
            }
            nix::unistd::ForkResult::Parent { child } => {
                nix::sys::wait::waitpid(child, None).unwrap();
            }
        }
        assert_eq!(one.rest[3].load(Relaxed), 42);
    }
}
