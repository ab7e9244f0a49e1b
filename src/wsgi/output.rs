//! Owns: from what the application returned to blocks on the exchange (PEP 3333, "The Server/Gateway Side").
//! Rule: what is all there (a list or tuple of bytes, a file) is handed over at once and the application is done with;
//! anything else is iterated, each block sent, or kept within bounds, before the next is asked for. `close()` is called exactly once on
//! every path, in the thread that iterated.
//! Never: frames or cuts; that is `exchange`.

use pyo3::exceptions::{PyAssertionError, PyConnectionResetError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::ffi::{KeptBytes, Lease};
use super::file_wrapper::FileWrapper;
use super::release;
use super::start_response::{Reply, Started};
use crate::buffer::Shared;
use crate::exchange::{Exchange, Gone};
use crate::python;

/// What the application raises, or the peer's leaving, which nobody is to blame for.
#[derive(Debug)]
pub enum Broken {
    Raised(PyErr),
    Gone,
}

impl Broken {
    pub fn raised(&self) -> Option<&PyErr> {
        match self {
            Broken::Raised(e) => Some(e),
            Broken::Gone => None,
        }
    }
}

impl From<PyErr> for Broken {
    fn from(e: PyErr) -> Broken {
        Broken::Raised(e)
    }
}

/// `Gone` after a wait that an exception ended is that exception.
fn gone(py: Python<'_>) -> Broken {
    match PyErr::take(py) {
        Some(e) => Broken::Raised(e),
        None => Broken::Gone,
    }
}

/// For `write()`, which has no other way to tell the application.
pub fn disconnected(py: Python<'_>) -> PyErr {
    match gone(py) {
        Broken::Raised(e) => e,
        Broken::Gone => PyConnectionResetError::new_err("client left before the response was complete"),
    }
}

/// Hands the head over, before the first block. `known` is the length of a body that is all there.
pub fn begin(started: &mut Started, exchange: &mut Exchange<'_>, known: Option<u64>) {
    if started.sent {
        return;
    }
    started.sent = true;
    std::mem::swap(&mut started.head, exchange.out());
    exchange.begin(started.status, started.content_length, known);
}

/// `begin` with what the application told `start_response`; an error when it was not called.
fn begin_with(reply: &Bound<'_, Reply>, exchange: &mut Exchange<'_>, known: Option<u64>) -> PyResult<()> {
    let mut inner = reply.try_borrow_mut()?;
    check_started(&inner.started)?;
    begin(&mut inner.started, exchange, known);
    Ok(())
}

fn check_started(started: &Started) -> PyResult<()> {
    if started.called {
        return Ok(());
    }
    Err(PyAssertionError::new_err("the application returned a body without calling start_response()"))
}

/// Sends the response that `result` is; `close` has to follow, whatever comes of it.
pub fn respond(
    exchange: &mut Exchange<'_>,
    lease: &Lease,
    reply: &Bound<'_, Reply>,
    result: &Bound<'_, PyAny>,
    use_sendfile: bool,
) -> Result<(), Broken> {
    if exchange.is_taken() {
        return discard(result);
    }
    if let Ok(list) = result.cast_exact::<PyList>() {
        return match list.len() {
            1 => send_one(exchange, reply, &list.get_item(0)?),
            _ => send_all(exchange, reply, &list.to_tuple()),
        };
    }
    if let Ok(tuple) = result.cast_exact::<PyTuple>() {
        return send_all(exchange, reply, tuple);
    }
    respond_with(exchange, lease, reply, result, use_sendfile)
}

/// The usual response: one block, nothing to close.
fn send_one(
    exchange: &mut Exchange<'_>,
    reply: &Bound<'_, Reply>,
    block: &Bound<'_, PyAny>,
) -> Result<(), Broken> {
    let block = bytes(block)?;
    let octets = block.as_bytes();
    begin_with(reply, exchange, Some(octets.len() as u64))?;
    exchange.post(octets, true, &mut || keep(block)).map_err(|Gone| gone(reply.py()))
}

fn send_all(
    exchange: &mut Exchange<'_>,
    reply: &Bound<'_, Reply>,
    blocks: &Bound<'_, PyTuple>,
) -> Result<(), Broken> {
    check_started(&reply.try_borrow().map_err(PyErr::from)?.started)?;
    let mut total = 0;
    for block in blocks.iter_borrowed() {
        total += bytes(&block)?.as_bytes().len() as u64;
    }
    begin_with(reply, exchange, Some(total))?;
    for block in blocks.iter_borrowed() {
        let block = bytes(&block)?;
        exchange.post(block.as_bytes(), false, &mut || keep(block)).map_err(|Gone| gone(reply.py()))?;
    }
    exchange.finish().map_err(|Gone| gone(reply.py()))
}

fn bytes<'a, 'py>(block: &'a Bound<'py, PyAny>) -> PyResult<&'a Bound<'py, PyBytes>> {
    block.cast::<PyBytes>().map_err(|_| {
        let kind = block.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        PyTypeError::new_err(format!("response blocks must be bytes, not {kind}"))
    })
}

fn keep(block: &Bound<'_, PyBytes>) -> Shared {
    Box::new(KeptBytes::new(block))
}

fn respond_with(
    exchange: &mut Exchange<'_>,
    lease: &Lease,
    reply: &Bound<'_, Reply>,
    result: &Bound<'_, PyAny>,
    use_sendfile: bool,
) -> Result<(), Broken> {
    if use_sendfile {
        if let Ok(wrapper) = result.cast_exact::<FileWrapper>() {
            if let Some(file) = wrapper.try_borrow().map_err(PyErr::from)?.sendable(result.py()) {
                begin_with(reply, exchange, Some(file.length))?;
                let sent = exchange.post_file(file.file, file.offset, file.length);
                return sent.map_err(|Gone| gone(result.py()));
            }
        }
    }
    lease.lend(exchange, || iterate(lease, reply, result))
}

/// The application has spoken for itself, and may go on while it is iterated.
fn discard(result: &Bound<'_, PyAny>) -> Result<(), Broken> {
    if !result.is_exact_instance_of::<PyList>()
        && !result.is_exact_instance_of::<PyTuple>()
        && !result.is_none()
    {
        result.try_iter()?.try_for_each(|block| block.map(drop))?;
    }
    Ok(())
}

/// Under the lease, so that the application may read its input and call `write()` while it is iterated.
fn iterate(lease: &Lease, reply: &Bound<'_, Reply>, result: &Bound<'_, PyAny>) -> Result<(), Broken> {
    let py = result.py();
    for block in result.try_iter()? {
        let place = || lease.with(|exchange| exchange.request_line()).unwrap_or_default();
        python::returned(py, block.as_ref().err(), place);
        let block = block?;
        let octets = bytes(&block)?.as_bytes();
        if octets.is_empty() {
            continue;
        }
        let satisfied = with(lease, |exchange| {
            if exchange.is_taken() {
                return Ok(false);
            }
            begin_with(reply, exchange, None)?;
            exchange.write(octets, &release(py)).map_err(|Gone| gone(py))?;
            Ok(exchange.is_satisfied())
        })?;
        if satisfied {
            break;
        }
    }
    with(lease, |exchange| {
        if exchange.is_taken() {
            return Ok(());
        }
        begin_with(reply, exchange, Some(0))?;
        exchange.finish().map_err(|Gone| gone(py))
    })
}

fn with<R>(lease: &Lease, body: impl FnOnce(&mut Exchange<'_>) -> Result<R, Broken>) -> Result<R, Broken> {
    match lease.with(body) {
        Some(outcome) => outcome,
        None => Err(Broken::Raised(PyAssertionError::new_err("another thread is writing this response"))),
    }
}

/// PEP 3333: "the server must call that method upon completion of the current request"; what it raises cannot change a
/// response that is made.
pub fn close(result: &Bound<'_, PyAny>) {
    if result.is_exact_instance_of::<PyList>() || result.is_exact_instance_of::<PyTuple>() {
        return;
    }
    let py = result.py();
    let closed = match result.getattr_opt(intern!(py, "close")) {
        Ok(Some(close)) => close.call0().map(|_| ()),
        Ok(None) => Ok(()),
        Err(e) => Err(e),
    };
    if let Err(e) = closed {
        log::error!("Error closing a response\n{}", python::traceback(py, &e));
    }
}
