//! Owns: `wsgi.errors` (PEP 3333, "Input and Error Streams"): a text stream onto the error log.
//! Rule: what the application writes goes to the log at once, in no form but one that cannot be taken for the server's; `flush` has nothing to do. That a log cannot be written
//! is no exception of the application's: what is lost is counted, and said when there is room again.
//! Never: formats or levels it.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::log;

#[pyclass(frozen, module = "rgunicorn")]
pub struct ErrorStream;

#[pymethods]
impl ErrorStream {
    /// Writes a str; returns its length in characters.
    fn write(&self, text: &Bound<'_, PyString>) -> PyResult<usize> {
        log::raw(&text.to_string_lossy());
        text.len()
    }

    fn writelines(&self, lines: &Bound<'_, PyAny>) -> PyResult<()> {
        for line in lines.try_iter()? {
            self.write(line?.cast::<PyString>()?)?;
        }
        Ok(())
    }

    fn flush(&self) {}
}
