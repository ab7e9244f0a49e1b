//! Owns: `wsgi.file_wrapper` (PEP 3333, "Optional Platform-Specific File Handling").
//! Rule: it always works as an iterable of blocks; only when the application returns the wrapper itself, and what it
//! wraps is a regular file, does the kernel send it.
//! Never: sends; that is `output`.

use std::os::fd::OwnedFd;

use pyo3::intern;
use pyo3::prelude::*;

use crate::sys::file;

#[pyclass(module = "rgunicorn", name = "FileWrapper", dict)]
pub struct FileWrapper {
    #[pyo3(get)]
    filelike: Py<PyAny>,
    #[pyo3(get, set)]
    blksize: usize,
}

#[pymethods]
impl FileWrapper {
    #[new]
    #[pyo3(signature = (filelike, blksize = 8192))]
    fn new(filelike: &Bound<'_, PyAny>, blksize: usize) -> FileWrapper {
        FileWrapper { filelike: filelike.clone().unbind(), blksize: blksize.max(1) }
    }

    /// Closes what is wrapped, if that can be closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.filelike.bind(py).getattr_opt(intern!(py, "close"))? {
            Some(close) => close.call0().map(|_| ()),
            None => Ok(()),
        }
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let block = self.filelike.bind(py).call_method1(intern!(py, "read"), (self.blksize,))?;
        Ok(if block.is_truthy()? { Some(block) } else { None })
    }

    /// Blocks by index, for code that treats the wrapper as gunicorn's; raises IndexError at the end.
    fn __getitem__<'py>(&self, py: Python<'py>, _index: usize) -> PyResult<Bound<'py, PyAny>> {
        self.__next__(py)?.ok_or_else(|| pyo3::exceptions::PyIndexError::new_err(()))
    }
}

/// A file that the kernel can send from where the application left it: its own descriptor, offset and octets to go.
pub struct Sendable {
    pub file: OwnedFd,
    pub offset: u64,
    pub length: u64,
}

impl FileWrapper {
    /// None when it wraps anything that cannot be sent by descriptor: then it is iterated.
    pub fn sendable(&self, py: Python<'_>) -> Option<Sendable> {
        let filelike = self.filelike.bind(py);
        let number: i32 = filelike.call_method0(intern!(py, "fileno")).ok()?.extract().ok()?;
        // A text or otherwise decoded stream has a descriptor too, but its blocks are not the file's octets.
        if !is_raw_octets(filelike) {
            return None;
        }
        let offset: u64 = filelike.call_method0(intern!(py, "tell")).ok()?.extract().ok()?;
        let file = file::duplicate_number(number).ok()?;
        let size = file::regular_size(std::os::fd::AsFd::as_fd(&file)).ok()?;
        Some(Sendable { file, offset, length: size.saturating_sub(offset) })
    }
}

/// Whether `read` gives the file's own octets: CPython's raw or buffered binary files, or a wrapper that shows one.
fn is_raw_octets(filelike: &Bound<'_, PyAny>) -> bool {
    let py = filelike.py();
    let check = || -> PyResult<bool> {
        let io = py.import(intern!(py, "io"))?;
        let kinds = (
            io.getattr(intern!(py, "FileIO"))?,
            io.getattr(intern!(py, "BufferedReader"))?,
            io.getattr(intern!(py, "BufferedRandom"))?,
        );
        let kinds = kinds.into_pyobject(py)?;
        if filelike.is_instance(kinds.as_any())? {
            return Ok(true);
        }
        // tempfile's wrapper and Django's File keep the real file under `file`.
        match filelike.getattr_opt(intern!(py, "file"))? {
            Some(inner) => inner.is_instance(kinds.as_any()),
            None => Ok(false),
        }
    };
    check().unwrap_or(false)
}
