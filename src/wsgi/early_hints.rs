//! Owns: `wsgi.early_hints`, by which an application has a 103 sent before its response, as in gunicorn.
//! Rule: what a hint may look like is what a response may, and it is checked whole before any of it is sent. A hint that
//! cannot help any more, or not this client, is passed over in silence.
//! Never: fails a request because of its client.

use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::ffi::Lease;
use super::release;
use super::start_response::latin1;
use crate::http::octets;
use crate::http::response::{self, FieldKind, Malformed, EARLY_HINTS};

#[pyclass(frozen, module = "rgunicorn", name = "EarlyHints")]
pub struct EarlyHints {
    lease: Arc<Lease>,
}

impl EarlyHints {
    pub fn new(lease: Arc<Lease>) -> EarlyHints {
        EarlyHints { lease }
    }
}

#[pymethods]
impl EarlyHints {
    /// Sends the (name, value) pairs as a 103 (Early Hints).
    #[pyo3(signature = (headers))]
    fn __call__(&self, py: Python<'_>, headers: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.lease.with(|exchange| exchange.takes_interim()) != Some(true) {
            return Ok(());
        }
        let mut head = EARLY_HINTS.to_vec();
        headers.try_iter()?.try_for_each(|pair| add(&pair?, &mut head))?;
        head.extend_from_slice(b"\r\n");
        // The pairs may have come from code that began the response.
        let sent = self.lease.with(|exchange| match exchange.takes_interim() {
            true => exchange.send_interim(&head, &release(py)),
            false => Ok(()),
        });
        match sent.filter(Result::is_err).and_then(|_| PyErr::take(py)) {
            // A signal has ended the wait.
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}

fn add(pair: &Bound<'_, PyAny>, head: &mut Vec<u8>) -> PyResult<()> {
    let (name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) =
        pair.extract().map_err(|_| PyTypeError::new_err("a header must be a (name, value) pair"))?;
    octets_of(&name, |name| octets_of(&value, |value| write(name, octets::trim(value), head)))
}

/// A length belongs to a final response alone (RFC 9110 §8.6); fields of the connection are left out as from that.
fn write(name: &[u8], value: &[u8], head: &mut Vec<u8>) -> PyResult<()> {
    match response::field(name, value, head) {
        Ok(FieldKind::Plain | FieldKind::Dropped | FieldKind::ContentLength(_)) => Ok(()),
        Err(malformed) => Err(refused(name, malformed)),
    }
}

/// Names the field, as gunicorn does; its value may be a secret.
fn refused(name: &[u8], malformed: Malformed) -> PyErr {
    let name = name.escape_ascii();
    pyo3::exceptions::PyValueError::new_err(format!("wsgi.early_hints: {}: {name}", malformed.text()))
}

/// Gives the octets of a str or bytes to `body`.
fn octets_of(text: &Bound<'_, PyAny>, body: impl FnOnce(&[u8]) -> PyResult<()>) -> PyResult<()> {
    if let Ok(octets) = text.cast::<PyBytes>() {
        return body(octets.as_bytes());
    }
    match text.cast::<PyString>() {
        Ok(text) => latin1(text, body),
        Err(_) => Err(PyTypeError::new_err("header names and values must be str or bytes")),
    }
}
