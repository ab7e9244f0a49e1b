//! Owns: the primitives that `baton`, `exchange::claim` and `event_loop::roll` are made of. `tests/interleavings.rs` compiles those files
//! with loom's primitives under the same names and runs them through every order of their steps.
//! Rule: nothing but names; behaviour is the standard library's.
//! Never: used where a plain `std::sync` type does.

use std::cell::UnsafeCell;

pub use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub use std::sync::{Condvar, Mutex, MutexGuard};
pub use std::thread::yield_now;

/// A value that one thread at a time may use; who, is decided by whoever owns the cell.
pub struct Cell<T>(UnsafeCell<T>);

impl<T> Cell<T> {
    pub fn new(value: T) -> Cell<T> {
        Cell(UnsafeCell::new(value))
    }

    pub fn pointer(&self) -> *mut T {
        self.0.get()
    }
}
