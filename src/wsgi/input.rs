//! Owns: `wsgi.input` (PEP 3333, "Input and Error Streams"): read, readline, readlines and iteration over a body.
//! Rule: it ends where the framing says and never blocks without a body; a body that cannot be had whole raises, and
//! never looks like a shorter one. Bounded: it holds no octets of its own.
//! Never: knows sockets; waits happen in `exchange`, with the interpreter released.

use std::io;
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::ffi::{self, Lease};
use super::release;
use crate::defect;
use crate::exchange::{BodyFault, Exchange};

/// Of a body that has not come, so much is read into memory reserved at once; beyond it memory grows with what comes.
const EAGER: usize = 1 << 20;

#[pyclass(frozen, module = "rgunicorn", name = "Input")]
pub struct Input {
    lease: Arc<Lease>,
}

impl Input {
    pub fn new(lease: Arc<Lease>) -> Input {
        Input { lease }
    }

    /// Runs `body` on the exchange. After the request there is nothing to read; in two threads at once it is an error.
    fn with<R>(&self, body: impl FnOnce(&mut Exchange<'_>) -> PyResult<R>) -> PyResult<R> {
        self.lease.with(body).unwrap_or_else(|| {
            Err(PyValueError::new_err("wsgi.input is used outside of its request or in two threads"))
        })
    }
}

#[pymethods]
impl Input {
    /// Up to `size` octets, fewer only at the end of the body; all that is left without a size or with a negative one.
    #[pyo3(signature = (size = None))]
    fn read<'py>(&self, py: Python<'py>, size: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyBytes>> {
        let limit = limit(size)?;
        self.with(|exchange| read(py, exchange, limit))
    }

    /// A line with its end, cut at `size` octets.
    #[pyo3(signature = (size = None))]
    fn readline<'py>(
        &self,
        py: Python<'py>,
        size: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let limit = limit(size)?;
        self.with(|exchange| read_line(py, exchange, limit))
    }

    /// Lines until about `hint` octets have been read; all of them without a hint or with one that is not positive.
    #[pyo3(signature = (hint = None))]
    fn readlines<'py>(
        &self,
        py: Python<'py>,
        hint: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let enough = limit(hint)?.filter(|hint| *hint > 0).unwrap_or(usize::MAX);
        let lines = PyList::empty(py);
        let mut octets = 0;
        while octets < enough {
            let line = self.with(|exchange| read_line(py, exchange, None))?;
            if line.as_bytes().is_empty() {
                break;
            }
            octets += line.as_bytes().len();
            lines.append(line)?;
        }
        Ok(lines)
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.with(|exchange| read_line(py, exchange, None))?;
        Ok(Some(line).filter(|line| !line.as_bytes().is_empty()))
    }
}

/// A size argument: None and negative numbers mean no limit; anything but an integer is a TypeError.
fn limit(size: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    match size {
        None => Ok(None),
        Some(size) if size.is_none() => Ok(None),
        Some(size) => match size.extract::<i64>() {
            Ok(number) => Ok(usize::try_from(number).ok()),
            Err(_) => Err(PyTypeError::new_err("size must be an integer or None")),
        },
    }
}

fn fault(py: Python<'_>, fault: BodyFault) -> PyErr {
    match fault {
        // The exception that interrupted the wait is the one to raise.
        BodyFault::Interrupted if PyErr::occurred(py) => PyErr::fetch(py),
        BodyFault::TimedOut => PyErr::from(io::Error::new(io::ErrorKind::TimedOut, fault.to_string())),
        BodyFault::Incomplete => {
            PyErr::from(io::Error::new(io::ErrorKind::ConnectionReset, fault.to_string()))
        }
        BodyFault::Invalid(_) | BodyFault::Unreadable | BodyFault::Interrupted => {
            PyOSError::new_err(fault.to_string())
        }
    }
}

fn read<'py>(
    py: Python<'py>,
    exchange: &mut Exchange<'_>,
    limit: Option<usize>,
) -> PyResult<Bound<'py, PyBytes>> {
    let most = limit.unwrap_or(usize::MAX);
    let most = usize::try_from(exchange.body_left().unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(most);
    // What a client has announced, or the application asks for, may never come.
    let at_hand = usize::try_from(exchange.body_at_hand()).unwrap_or(usize::MAX);
    let first = most.min(at_hand.max(EAGER));
    ffi::bytes_with(py, first, most, |buffer| fill(py, exchange, buffer))
}

/// Fills `buffer` from the body; fewer octets only at its end.
fn fill(py: Python<'_>, exchange: &mut Exchange<'_>, buffer: &mut [u8]) -> PyResult<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let direct =
            exchange.body_read_direct(&mut buffer[filled..], &release(py)).map_err(|f| fault(py, f))?;
        if direct > 0 {
            filled += direct;
            continue;
        }
        let run = exchange.body_run(&release(py)).map_err(|f| fault(py, f))?;
        if run.is_empty() {
            break;
        }
        let taken = run.len().min(buffer.len() - filled);
        buffer[filled..filled + taken].copy_from_slice(&run[..taken]);
        exchange.consume(taken);
        filled += taken;
    }
    Ok(filled)
}

fn read_line<'py>(
    py: Python<'py>,
    exchange: &mut Exchange<'_>,
    limit: Option<usize>,
) -> PyResult<Bound<'py, PyBytes>> {
    defect::planted("input");
    let most = limit.unwrap_or(usize::MAX);
    let mut line = Vec::new();
    while line.len() < most {
        let run = exchange.body_run(&release(py)).map_err(|f| fault(py, f))?;
        let run = &run[..run.len().min(most - line.len())];
        if run.is_empty() {
            break;
        }
        let end = memchr::memchr(b'\n', run).map(|at| at + 1);
        let taken = end.unwrap_or(run.len());
        line.extend_from_slice(&run[..taken]);
        exchange.consume(taken);
        if end.is_some() {
            break;
        }
    }
    Ok(PyBytes::new(py, &line))
}
