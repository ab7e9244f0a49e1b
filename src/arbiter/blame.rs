//! Owns: the line of the configuration file that an error about a setting is shown with.
//! Rule: the file is looked at again only when there is something wrong with it.
//! Never: makes an error out of not finding the line.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyModule};

use crate::config::lines;
use crate::error::{Error, Wrong};

/// The error, with the line where the setting is set; `folder` is the one that the configuration was read from.
pub fn locate(py: Python<'_>, folder: &Path, error: Error) -> Error {
    match error {
        Error::Setting(mut wrong) if wrong.line.is_none() => {
            wrong.line = find(py, folder, &wrong);
            Error::Setting(wrong)
        }
        other => other,
    }
}

fn find(py: Python<'_>, folder: &Path, wrong: &Wrong) -> Option<usize> {
    let file = wrong.file.as_deref()?;
    let path = match file.to_string_lossy().strip_prefix("python:") {
        Some(module) => module_file(py, module).ok()?,
        None => folder.join(file),
    };
    let text = fs::read(&path).ok()?;
    match path.extension() {
        Some(end) if end == "ini" => lines::in_server_section(&String::from_utf8(text).ok()?, wrong.setting),
        Some(end) if end == "toml" => lines::in_toml(&String::from_utf8(text).ok()?, wrong.setting),
        _ => line_of(py, &text, wrong.setting).ok()?,
    }
}

fn module_file(py: Python<'_>, module: &str) -> PyResult<PathBuf> {
    py.import(module)?.getattr("__file__")?.extract()
}

/// The stand-alone binary carries the module itself.
fn line_of(py: Python<'_>, text: &[u8], setting: &str) -> PyResult<Option<usize>> {
    let source = CString::new(include_str!("../../python/rgunicorn/_lines.py"))?;
    let module = PyModule::from_code(py, &source, c"rgunicorn/_lines.py", c"rgunicorn._lines")?;
    module.getattr("line_of")?.call1((PyBytes::new(py, text), setting))?.extract()
}
