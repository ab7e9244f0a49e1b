//! Owns: the few places where the Python C-API or a bare pointer is used directly, each behind a safe function.
//! Rule: a block here is short and says why it holds; everything else in `wsgi/` uses safe PyO3.
//! Never: policy.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, TryLockError};

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::exchange::Exchange;

extern "C" {
    /// Of the documented C-API; pyo3's bindings are without it.
    fn _PyBytes_Resize(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

/// A str of the same code points as the octets (PEP 3333, "Unicode Issues": native strings are latin-1).
pub fn latin1<'py>(py: Python<'py>, octets: &[u8]) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: pointer and length are of one slice; the call returns a new reference to an exact str, or NULL with an error.
    unsafe {
        let text = ffi::PyUnicode_DecodeLatin1(
            octets.as_ptr().cast(),
            octets.len() as ffi::Py_ssize_t,
            std::ptr::null(),
        );
        Bound::from_owned_ptr_or_err(py, text).map(|text| text.cast_into_unchecked())
    }
}

/// A bytes object of up to `most` bytes that `fill` writes into; its memory is not cleared first. It begins with room for
/// `first`, and grows as that is filled. `fill` returns how many bytes it wrote, from the start of what it was given; fewer
/// than that has room for are the last.
pub fn bytes_with<'py, E: From<PyErr>>(
    py: Python<'py>,
    first: usize,
    most: usize,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Bound<'py, PyBytes>, E> {
    let mut room = first.min(most);
    let mut filled = 0;
    // SAFETY: with a NULL source the call returns a new, unshared exact bytes object of that length, or NULL with an error.
    let mut object = unsafe {
        let object = ffi::PyBytes_FromStringAndSize(std::ptr::null(), length(room)?);
        Bound::from_owned_ptr_or_err(py, object)?
    };
    loop {
        // SAFETY: the object's buffer has `room` bytes and nobody else has seen the object. Bytes of any value are valid
        // u8, and `fill` only hands the buffer to what writes before it reads (recv, pread, copy_from_slice).
        let buffer = unsafe {
            std::slice::from_raw_parts_mut(ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>(), room)
        };
        filled += fill(&mut buffer[filled..])?;
        if filled < room {
            return Ok(resized(object, filled)?);
        }
        if room == most {
            // SAFETY: it is the exact bytes object made above.
            return Ok(unsafe { object.cast_into_unchecked() });
        }
        room = room.saturating_mul(2).min(most);
        object = resized(object, room)?.into_any();
    }
}

/// Errors: Python has no object of that length.
fn length(bytes: usize) -> PyResult<ffi::Py_ssize_t> {
    ffi::Py_ssize_t::try_from(bytes).map_err(|_| PyMemoryError::new_err(()))
}

/// A bytes object that nobody else has seen, with another length; bytes that it gets are not cleared.
fn resized(object: Bound<'_, PyAny>, bytes: usize) -> PyResult<Bound<'_, PyBytes>> {
    let py = object.py();
    let size = length(bytes)?;
    let mut pointer = object.into_ptr();
    // SAFETY: the only reference to a bytes object is given to the call, which leaves one to an object of that length, or
    // NULL with an error.
    unsafe {
        _PyBytes_Resize(&mut pointer, size);
        Bound::from_owned_ptr_or_err(py, pointer).map(|object| object.cast_into_unchecked())
    }
}

/// Whether anybody but the holder of this reference has one too.
pub fn is_shared<T>(object: &Py<T>, _py: Python<'_>) -> bool {
    // Without a GIL the count is two fields that other threads change while they are read.
    // SAFETY: the object is alive, as we hold a reference.
    #[cfg(all(Py_GIL_DISABLED, Py_3_14))]
    return unsafe { ffi::PyUnstable_Object_IsUniquelyReferenced(object.as_ptr()) == 0 };
    // SAFETY: the object is alive, as we hold a reference, and the interpreter is ours while the count is read.
    #[cfg(not(all(Py_GIL_DISABLED, Py_3_14)))]
    unsafe {
        ffi::Py_REFCNT(object.as_ptr()) > 1
    }
}

/// How Python objects of a request reach its exchange: lent for the time of a call into the application, gone after it.
///
/// An object that outlives its request finds nothing here; two threads that use it at once are told apart by the lock.
#[derive(Default)]
pub struct Lease(Mutex<Option<Lent>>);

struct Lent(NonNull<Exchange<'static>>);

// SAFETY: an Exchange may move between threads (it owns no Python object and no thread-bound state); the pointer is only
// followed under the lease's lock.
unsafe impl Send for Lent {}

impl Lease {
    /// Runs `body` while `with` finds `exchange`.
    pub fn lend<R>(&self, exchange: &mut Exchange<'_>, body: impl FnOnce() -> R) -> R {
        let lent = Lent(NonNull::from(exchange).cast());
        *self.lock() = Some(lent);
        let _revoke = Revoke(self);
        body()
    }

    /// None when no request is running or another thread is in the middle of a call like this.
    pub fn with<R>(&self, body: impl FnOnce(&mut Exchange<'_>) -> R) -> Option<R> {
        let mut lent = match self.0.try_lock() {
            Ok(lent) => lent,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let pointer = lent.as_mut()?.0.as_ptr();
        // SAFETY: `lend` put the pointer here from a `&mut Exchange` that stays borrowed until `Revoke` has taken it out,
        // which waits for this lock; so the exchange is alive and nobody else refers to it. Its lifetime is shortened to
        // this call by the signature of `body`.
        Some(body(unsafe { &mut *pointer }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lent>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

struct Revoke<'l>(&'l Lease);

impl Drop for Revoke<'_> {
    fn drop(&mut self) {
        if let Ok(mut lent) = self.0 .0.try_lock() {
            *lent = None;
            return;
        }
        // Another thread of the application is still reading or writing; it may need the interpreter to finish.
        let lease = self.0;
        Python::attach(|py| py.detach(|| *lease.lock() = None));
    }
}

/// A bytes object kept alive until the peer has taken it; read without the interpreter.
pub struct KeptBytes {
    object: Py<PyBytes>,
    start: NonNull<u8>,
    length: usize,
}

impl KeptBytes {
    pub fn new(object: &Bound<'_, PyBytes>) -> KeptBytes {
        let octets = object.as_bytes();
        KeptBytes {
            object: object.clone().unbind(),
            start: NonNull::from(octets).cast(),
            length: octets.len(),
        }
    }
}

impl AsRef<[u8]> for KeptBytes {
    fn as_ref(&self) -> &[u8] {
        let _kept = &self.object;
        // SAFETY: bytes objects never move or change, and the reference held here keeps this one alive.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

// SAFETY: the octets are immutable and only read; the reference is given back by PyO3 with or without the interpreter.
unsafe impl Send for KeptBytes {}
