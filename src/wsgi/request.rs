//! Owns: `req` and `resp`, the request and its response as hooks see them.
//! Rule: gunicorn's attributes; made only where a hook asks for them.
//! Never: calls a hook.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::ffi::latin1;
use super::input::Input;
use crate::exchange::{Answer, Exchange};
use crate::http::Version;
use crate::proxy::{Scheme, Trust};
use crate::proxy_protocol::Origin;
use crate::transport::Peer;

/// `class` is `rgunicorn.hooks.Request`.
pub fn request<'py>(
    class: &Bound<'py, PyAny>,
    exchange: &Exchange<'_>,
    trust: &Trust,
    input: &Bound<'py, Input>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = class.py();
    let octets = exchange.head_octets();
    let start = &exchange.head().start;
    let version = match start.version {
        Version::Http10 => (1, 0),
        Version::Http11 => (1, 1),
    };
    class.call1((
        latin1(py, start.method.of(octets))?,
        latin1(py, start.target.of(octets))?,
        latin1(py, start.path.of(octets))?,
        latin1(py, start.query.of(octets))?,
        version,
        fields(py, exchange)?,
        peer(py, exchange.peer())?,
        peer(py, exchange.client())?,
        exchange.origin().map(|origin| proxy_protocol_info(py, origin)).transpose()?,
        scheme(exchange, trust),
        input,
    ))
}

/// Names in upper case.
fn fields<'py>(py: Python<'py>, exchange: &Exchange<'_>) -> PyResult<Bound<'py, PyList>> {
    let block = exchange.field_block();
    let list = PyList::empty(py);
    for field in &exchange.head().fields.list {
        let name = field.name.of(block).to_ascii_uppercase();
        list.append((latin1(py, &name)?, latin1(py, field.value.of(block))?))?;
    }
    Ok(list)
}

/// An address and a port; a unix socket's peer has no name.
fn peer(py: Python<'_>, peer: Peer) -> PyResult<Bound<'_, PyAny>> {
    match peer {
        Peer::Tcp(address) => Ok((address.ip().to_string(), address.port()).into_pyobject(py)?.into_any()),
        Peer::Unix | Peer::Other => Ok("".into_pyobject(py)?.into_any()),
    }
}

/// With gunicorn's keys.
fn proxy_protocol_info<'py>(py: Python<'py>, origin: &Origin) -> PyResult<Bound<'py, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("proxy_protocol", origin.protocol())?;
    info.set_item("client_addr", origin.client.ip().to_string())?;
    info.set_item("client_port", origin.client.port())?;
    info.set_item("proxy_addr", origin.proxy.ip().to_string())?;
    info.set_item("proxy_port", origin.proxy.port())?;
    Ok(info)
}

/// Fields that contradict each other are refused when the environ is made.
fn scheme(exchange: &Exchange<'_>, trust: &Trust) -> &'static str {
    let said = exchange.is_trusted().then(|| trust.scheme(&exchange.head().fields, exchange.field_block()));
    match said {
        Some(Ok(Some(said))) => said.as_str(),
        _ if exchange.is_secure() => Scheme::Https.as_str(),
        _ => Scheme::Http.as_str(),
    }
}

/// What an access log may ask of a request that has no environ, as it was refused.
pub fn environ<'py>(py: Python<'py>, exchange: &Exchange<'_>) -> PyResult<Bound<'py, PyDict>> {
    let octets = exchange.head_octets();
    let start = &exchange.head().start;
    let environ = PyDict::new(py);
    environ.set_item("REQUEST_METHOD", latin1(py, start.method.of(octets))?)?;
    environ.set_item("RAW_URI", latin1(py, start.target.of(octets))?)?;
    environ.set_item("PATH_INFO", latin1(py, start.path.of(octets))?)?;
    environ.set_item("QUERY_STRING", latin1(py, start.query.of(octets))?)?;
    environ.set_item("SCRIPT_NAME", "")?;
    environ.set_item("SERVER_PROTOCOL", start.version.as_str())?;
    environ.set_item("REMOTE_ADDR", exchange.client().to_string())?;
    environ.set_item("wsgi.url_scheme", "http")?;
    Ok(environ)
}

/// `class` is `rgunicorn.hooks.Response`.
pub fn response<'py>(class: &Bound<'py, PyAny>, answer: &Answer<'_>) -> PyResult<Bound<'py, PyAny>> {
    let head = latin1(class.py(), answer.head)?;
    class.call1((head, answer.status, answer.length, answer.sent, answer.chunked))
}
