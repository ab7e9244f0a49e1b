//! Owns: the hook `ssl_context`: what the operator's function makes of a context becomes the configuration of TLS.
//! Rule: everything that it sets is kept or refused; called once for a generation, in the arbiter, as the certificate is read
//! there.
//! Never: speaks TLS, by OpenSSL or otherwise.

use std::ffi::CString;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule};

use super::{Hook, Hooks};
use crate::config::{Authorities, ClientCertificate, Config, Tls};
use crate::error::Error;
use crate::python::{self, traceback};
use crate::tls::ciphers;

impl Hooks {
    /// How TLS is to be spoken according to the hook; None where it is not set.
    ///
    /// Errors: it raised, or wants what cannot be honoured.
    pub fn ssl_context(&self, py: Python<'_>, config: &Config) -> Result<Option<Tls>, Error> {
        let Some(function) = self.find(Hook::SslContext) else {
            return Ok(None);
        };
        let wrong = |why: String| config.wrong(Hook::SslContext.name(), why);
        if config.tls.is_none() {
            return Err(wrong("there is no certificate to go with it (--certfile)".to_string()));
        }
        let module = module(py).map_err(|e| wrong(e.to_string()))?;
        let asked = module
            .getattr("asked")
            .and_then(|ask| ask.call1((&function.callable, &self.cfg, ciphers::names())));
        python::returned(py, asked.as_ref().err(), || format!("the {} hook", Hook::SslContext.name()));
        let asked = asked
            .and_then(|answer| answer.cast_into::<PyDict>().map_err(PyErr::from))
            .and_then(|answer| tls(&answer));
        asked.map(Some).map_err(|e| wrong(why(py, &module, &e)))
    }
}

/// The stand-alone binary carries the module itself. It imports OpenSSL, so nothing else does.
fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let source = CString::new(include_str!("../../python/rgunicorn/_tls.py"))?;
    PyModule::from_code(py, &source, c"rgunicorn/_tls.py", c"rgunicorn._tls")
}

fn why(py: Python<'_>, module: &Bound<'_, PyModule>, e: &PyErr) -> String {
    let unusable = module.getattr("Unusable");
    match unusable.is_ok_and(|class| e.value(py).is_instance(&class).unwrap_or(false)) {
        true => e.value(py).to_string(),
        false => format!("it raised\n{}", traceback(py, e)),
    }
}

fn tls(answer: &Bound<'_, PyDict>) -> PyResult<Tls> {
    let get = |name: &str| answer.as_any().get_item(name);
    Ok(Tls {
        certfile: get("certfile")?.extract()?,
        keyfile: get("keyfile")?.extract()?,
        authorities: Some(Authorities::Given(get("authorities")?.extract()?)),
        client: ClientCertificate::of(get("client")?.extract()?),
        ciphers: get("ciphers")?.extract()?,
        tls12: get("tls12")?.extract()?,
        tls13: get("tls13")?.extract()?,
    })
}
