//! Owns: `gunicorn.socket`, by which WebSocket libraries speak on the connection themselves.
//! Rule: until it is used it is a name and nothing else. Its first use as a socket makes a real one and takes the connection
//! over for good; questions about the connection's addresses and options are answered without that.
//! Never: speaks on the connection.

use std::ffi::CString;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use pyo3::exceptions::{PyAttributeError, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString, PyTuple};

use super::ffi::Lease;
use crate::exchange::Exchange;

/// The module with the class of the real socket, made when an application first wants one.
static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

fn module(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    let made = MODULE.get_or_try_init(py, || {
        let source = CString::new(include_str!("../../python/rgunicorn/_socket.py"))?;
        PyModule::from_code(py, &source, c"rgunicorn/_socket.py", c"rgunicorn._socket").map(Bound::unbind)
    })?;
    Ok(made.bind(py))
}

#[pyclass(frozen, module = "rgunicorn", name = "Socket")]
pub struct Socket {
    lease: Arc<Lease>,
    real: PyOnceLock<Py<PyAny>>,
}

impl Socket {
    pub fn new(lease: Arc<Lease>) -> Socket {
        Socket { lease, real: PyOnceLock::new() }
    }

    /// It has become a real socket.
    pub fn is_used(&self, py: Python<'_>) -> bool {
        self.real.get(py).is_some()
    }

    /// At the end of the request. Errors are nobody's concern any more.
    pub fn close(&self, py: Python<'_>) {
        if let Some(real) = self.real.get(py) {
            if let Err(e) = real.call_method0(py, intern!(py, "close")) {
                log::debug!("Error closing a connection that was taken over: {e}");
            }
        }
    }

    fn exchange<R>(&self, body: impl FnOnce(&mut Exchange<'_>) -> io::Result<R>) -> PyResult<R> {
        let done = self.lease.with(body).ok_or_else(|| {
            PyOSError::new_err("gunicorn.socket is used outside of its request or in two threads")
        })?;
        Ok(done?)
    }

    /// The real socket; makes it.
    fn real<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(real) = self.real.get(py) {
            return Ok(real.bind(py).clone());
        }
        // Before the connection is taken, so that an error leaves it as it was.
        let make = module(py)?.getattr(intern!(py, "taken_over"))?;
        let taken = self.exchange(|exchange| exchange.take_over())?;
        let unread = PyBytes::new(py, &taken.unread);
        let real = make.call1((taken.fd.into_raw_fd(), unread))?;
        // One thread has taken it over, so nobody else has been here.
        let _ = self.real.set(py, real.clone().unbind());
        Ok(real)
    }

    /// Calls a method of a socket that does not speak.
    fn ask<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyString>,
        arguments: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(real) = self.real.get(py) {
            return real.bind(py).call_method1(name, arguments);
        }
        let ask = module(py)?.getattr(intern!(py, "ask"))?;
        let fd = self.exchange(|exchange| exchange.duplicate())?;
        ask.call1((fd.into_raw_fd(), name, arguments))
    }
}

#[pymethods]
impl Socket {
    /// Everything that a socket has.
    fn __getattr__<'py>(&self, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        let py = name.py();
        if let Some(real) = self.real.get(py) {
            return real.bind(py).getattr(name);
        }
        // Whoever looks for what no socket has, such as a tool that shows an environ, does not want one.
        if name.to_str()?.starts_with('_')
            || !module(py)?.getattr(intern!(py, "Connection"))?.hasattr(name)?
        {
            return Err(PyAttributeError::new_err(format!("'socket' object has no attribute '{name}'")));
        }
        self.real(py)?.getattr(name)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*exc_info))]
    fn __exit__(&self, exc_info: &Bound<'_, PyTuple>) {
        self.close(exc_info.py());
    }

    fn getpeername<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, intern!(py, "getpeername"), PyTuple::empty(py))
    }

    fn getsockname<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.ask(py, intern!(py, "getsockname"), PyTuple::empty(py))
    }

    #[pyo3(signature = (*arguments))]
    fn getsockopt<'py>(&self, arguments: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        let py = arguments.py();
        self.ask(py, intern!(py, "getsockopt"), arguments)
    }

    #[pyo3(signature = (*arguments))]
    fn setsockopt<'py>(&self, arguments: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        let py = arguments.py();
        self.ask(py, intern!(py, "setsockopt"), arguments)
    }
}
