//! Owns: `start_response` and `write` (PEP 3333, "The start_response() Callable"), and what they were told.
//! Rule: status and fields are checked and serialised at once, before any octet is sent; with `exc_info` an unsent head
//! is replaced and a sent one re-raises. One object a thread, reused while nobody else keeps it.
//! Never: decides framing; that is `exchange::begin`.

use std::sync::Arc;

use pyo3::exceptions::{PyAssertionError, PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use super::ffi::{self, Lease};
use super::release;
use crate::http::date::ServerDate;
use crate::http::response::{self, FieldKind, Malformed};
use crate::sys::clock;

/// What the application said of its response.
#[derive(Default)]
pub struct Started {
    /// Status line, Server and Date, and the application's fields, ready to send.
    pub head: Vec<u8>,
    pub status: u16,
    pub content_length: Option<u64>,
    pub called: bool,
    /// The head has gone to the exchange.
    pub sent: bool,
}

#[pyclass(module = "rgunicorn", name = "StartResponse")]
pub struct Reply {
    pub started: Started,
    /// A request is running; outside of one the callable refuses.
    pub active: bool,
    date: ServerDate,
    lease: Arc<Lease>,
    write: Option<Py<PyAny>>,
}

impl Reply {
    pub fn new(lease: Arc<Lease>) -> Reply {
        Reply { started: Started::default(), active: false, date: ServerDate::new(), lease, write: None }
    }

    /// For the next request.
    pub fn open(&mut self) {
        self.active = true;
        self.clear();
        self.started.sent = false;
    }

    /// Whether the application still has the `write` it was given.
    pub fn is_kept(&self, py: Python<'_>) -> bool {
        self.write.as_ref().is_some_and(|write| ffi::is_shared(write, py))
    }

    fn clear(&mut self) {
        self.started.head.clear();
        self.started.status = 0;
        self.started.content_length = None;
        self.started.called = false;
    }

    fn set(&mut self, status: &Bound<'_, PyAny>, fields: &Bound<'_, PyAny>) -> PyResult<()> {
        self.clear();
        let status = status.cast::<PyString>().map_err(|_| PyTypeError::new_err("status must be a str"))?;
        let head = &mut self.started.head;
        self.started.status = latin1(status, |octets| response::status_line(octets, head))?;
        self.started.head.extend_from_slice(self.date.at(clock::unix_seconds()));
        match fields.cast_exact::<PyList>() {
            Ok(list) => list.iter().try_for_each(|field| self.add(&field))?,
            Err(_) => fields.try_iter()?.try_for_each(|field| self.add(&field?))?,
        }
        self.started.called = true;
        Ok(())
    }

    fn add(&mut self, field: &Bound<'_, PyAny>) -> PyResult<()> {
        let (name, value) = match field.cast_exact::<PyTuple>() {
            Ok(pair) if pair.len() == 2 => (pair.get_item(0)?, pair.get_item(1)?),
            _ => {
                field.extract().map_err(|_| PyTypeError::new_err("a header must be a (name, value) tuple"))?
            }
        };
        let name =
            name.cast::<PyString>().map_err(|_| PyTypeError::new_err("a header name must be a str"))?;
        let value =
            value.cast::<PyString>().map_err(|_| PyTypeError::new_err("a header value must be a str"))?;
        let head = &mut self.started.head;
        let kind = latin1(name, |name| latin1(value, |value| response::field(name, value, head)))?;
        if let FieldKind::ContentLength(length) = kind {
            if self.started.content_length.replace(length).is_some() {
                return Err(PyValueError::new_err("more than one Content-Length in response"));
            }
        }
        Ok(())
    }
}

/// Gives the octets of a native string to `body`; a code point above 255 is an error (PEP 3333, "Unicode Issues").
pub(super) fn latin1<R, E: IntoPyErr>(
    text: &Bound<'_, PyString>,
    body: impl FnOnce(&[u8]) -> Result<R, E>,
) -> PyResult<R> {
    let utf8 = text.to_str()?;
    if utf8.is_ascii() {
        return body(utf8.as_bytes()).map_err(E::into_pyerr);
    }
    let octets: Option<Vec<u8>> = utf8.chars().map(|c| u8::try_from(c).ok()).collect();
    match octets {
        Some(octets) => body(&octets).map_err(E::into_pyerr),
        None => Err(PyValueError::new_err(format!("{utf8:?} cannot be sent: header text is latin-1"))),
    }
}

pub(super) trait IntoPyErr {
    fn into_pyerr(self) -> PyErr;
}

impl IntoPyErr for Malformed {
    fn into_pyerr(self) -> PyErr {
        PyValueError::new_err(self.text())
    }
}

impl IntoPyErr for PyErr {
    fn into_pyerr(self) -> PyErr {
        self
    }
}

/// Re-raises what the application caught after its head was sent (PEP 3333, "Error Handling").
fn reraise(exc_info: &Bound<'_, PyAny>) -> PyErr {
    match exc_info.get_item(1) {
        Ok(value) => PyErr::from_value(value),
        Err(e) => e,
    }
}

#[pymethods]
impl Reply {
    #[pyo3(signature = (status, headers, exc_info = None))]
    fn start_response<'py>(
        slf: &Bound<'py, Self>,
        status: &Bound<'py, PyAny>,
        headers: &Bound<'py, PyAny>,
        exc_info: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let mut reply = slf.try_borrow_mut()?;
        if !reply.active {
            return Err(PyAssertionError::new_err("start_response() called outside of its request"));
        }
        match exc_info.filter(|info| !info.is_none()) {
            Some(info) if reply.started.sent => return Err(reraise(info)),
            Some(_) => {}
            None if reply.started.called => {
                return Err(PyAssertionError::new_err(
                    "start_response() called a second time without exc_info",
                ));
            }
            None => {}
        }
        reply.set(status, headers)?;
        if let Some(write) = &reply.write {
            return Ok(write.clone_ref(py));
        }
        drop(reply);
        let write = slf.getattr(pyo3::intern!(py, "write"))?.unbind();
        slf.try_borrow_mut()?.write = Some(write.clone_ref(py));
        Ok(write)
    }

    /// Sends a block; the head goes before the first (PEP 3333, "The write() Callable").
    fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let py = slf.py();
        let lease = {
            let reply = slf.try_borrow()?;
            if !reply.active || !reply.started.called {
                return Err(PyAssertionError::new_err("write() called outside of its request"));
            }
            reply.lease.clone()
        };
        let sent = lease.with(|exchange| {
            if exchange.is_taken() {
                return Ok(true);
            }
            super::output::begin(&mut slf.try_borrow_mut()?.started, exchange, None);
            Ok::<_, PyErr>(exchange.write(data.as_bytes(), &release(py)).is_ok())
        });
        match sent {
            Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(super::output::disconnected(py)),
            Some(Err(e)) => Err(e),
            None => Err(PyOSError::new_err("write() called outside of its request or in two threads")),
        }
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        visit.call(&self.write)
    }

    fn __clear__(&mut self) {
        self.write = None;
    }
}
