//! Owns: the requests that the server itself makes of an application it has just loaded (`warm_up`).
//! Rule: each is whole by PEP 3333: the response is iterated to its end and closed. It has failed when it raises or its
//! status is 500 or more.
//! Never: a socket, the access log, or a hook of requests; what a failure means is `worker`'s to say.

use pyo3::exceptions::{PyAssertionError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::environ::Refusal;
use super::{output, Surroundings};
use crate::config::WarmUp;
use crate::logger;
use crate::python;
use crate::sys::clock;

/// Why the application is not warm; it has been logged unless it is a stop.
pub enum Cold {
    /// A sentence.
    Failed(String),
    Stopped(PyErr),
}

/// Stands for `start_response` and `write`.
#[pyclass(module = "rgunicorn", name = "WarmUpResponse")]
struct Ear {
    status: Option<u16>,
}

#[pymethods]
impl Ear {
    #[pyo3(signature = (status, headers, exc_info = None))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        status: &Bound<'py, PyString>,
        headers: &Bound<'py, PyAny>,
        exc_info: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (_, _) = (headers, exc_info);
        let code = status.to_str()?.get(..3).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| PyValueError::new_err(format!("{status} is not a status")))?;
        slf.try_borrow_mut()?.status = Some(code);
        slf.getattr(intern!(slf.py(), "write"))
    }

    fn write(&self, data: &Bound<'_, PyAny>) {
        let _ = data;
    }
}

/// Makes the requests in turn; all of them, whatever becomes of one.
///
/// Errors: the first that failed, or an exception that is to end the process.
pub fn warm_up(app: &Bound<'_, PyAny>, surroundings: &Surroundings, requests: &[WarmUp]) -> Result<(), Cold> {
    let mut first = Ok(());
    for request in requests {
        let began = clock::monotonic();
        let outcome = ask(app, surroundings, request);
        python::returned(app.py(), outcome.as_ref().err(), || format!("warm-up request {request}"));
        let milliseconds = (clock::monotonic() - began) / 1_000_000;
        let failed = match outcome {
            Ok(status) if status < 500 => {
                log::info!("Warm-up request {request}: {status} after {milliseconds} ms");
                continue;
            }
            Ok(status) => {
                log::warn!("Warm-up request {request}: {status} after {milliseconds} ms (--warm-up)");
                format!("warm-up request {request}: {status} (--warm-up)")
            }
            Err(e) if python::is_stop(app.py(), &e) => return Err(Cold::Stopped(e)),
            Err(e) => {
                logger::exception(
                    app.py(),
                    &format!("Error handling warm-up request {request} (--warm-up)"),
                    &e,
                );
                format!("warm-up request {request}: {e} (--warm-up)")
            }
        };
        first = first.and(Err(Cold::Failed(failed)));
    }
    first
}

fn ask(app: &Bound<'_, PyAny>, surroundings: &Surroundings, request: &WarmUp) -> PyResult<u16> {
    let py = app.py();
    let environ = environ(py, surroundings, request)?;
    let ear = Bound::new(py, Ear { status: None })?;
    let result = app.call1((environ, &ear))?;
    let read = result.try_iter().and_then(|mut blocks| blocks.try_for_each(|block| block.map(drop)));
    output::close(&result);
    read?;
    let status = ear.try_borrow()?.status;
    status.ok_or_else(|| PyAssertionError::new_err("the application did not call start_response()"))
}

fn environ<'py>(
    py: Python<'py>,
    surroundings: &Surroundings,
    request: &WarmUp,
) -> PyResult<Bound<'py, PyDict>> {
    let made = surroundings.environ(&surroundings.base(py)?)?.of_warm_up(py, request);
    let environ = made.map_err(|refusal| match refusal {
        Refusal::Reject(reject) => PyValueError::new_err(reject.text()),
        Refusal::Raised(e) => e,
    })?;
    let body = py.import(intern!(py, "io"))?.call_method0(intern!(py, "BytesIO"))?;
    environ.set_item(intern!(py, "wsgi.input"), body)?;
    environ.set_item(intern!(py, "rgunicorn.warm_up"), true)?;
    Ok(environ)
}
