//! Owns: the configuration as Python has it: a file is run or a module imported, and its names become `Raw` values.
//! Rule: a file is run afresh each time, in the module `__config__`, so that a reload sees what it says now.
//! Never: knows a setting; what the names mean is the business of `config`.

use std::fs;
use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyModule, PyString, PyTuple};

use super::{module, returned, traceback};
use crate::config::sources::Script;
use crate::config::{PasteFile, Raw};
use crate::error::Error;
use crate::sys::fork;

/// Runs a configuration file, or imports `python:MODULE`, and gives its names.
///
/// Errors: it cannot be read, or it raised; the sentence carries the traceback.
pub fn run_config<'py>(py: Python<'py>, path: &Path) -> Result<Bound<'py, PyDict>, Error> {
    let text = path.to_string_lossy();
    // A process that the application has forked may well read a file.
    let is_foreign = fork::is_foreign();
    let names = match text.strip_prefix("python:") {
        Some(module) => py.import(module).map(|module| module.dict()),
        None => execute(py, path)?,
    };
    if !is_foreign {
        returned(py, names.as_ref().err(), || format!("config file {text}"));
    }
    names.map_err(|e| {
        let trace = traceback(py, &e);
        Error::Other(format!("Failed to read config file: {text} (--config)\n{trace}"))
    })
}

/// What is asked of PasteDeploy; the stand-alone binary carries it itself.
pub fn paste(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    module(py, "rgunicorn._paste", include_str!("../../python/rgunicorn/_paste.py"))
}

/// Errors: the predicate of a sentence about the file.
fn server_section(py: Python<'_>, file: &PasteFile) -> Result<Vec<(String, Raw)>, Error> {
    let read = || -> PyResult<_> {
        let variables = file.variables.clone().into_py_dict(py)?;
        let found =
            paste(py)?.call_method1("server_settings", (file.path.display().to_string(), variables))?;
        Ok(values(&found.cast_into::<PyDict>()?))
    };
    read().map_err(|e| Error::Other(e.value(py).to_string()))
}

/// Runs configuration files as `run_config` does, for their values; `given` keeps the names of the last one.
pub fn config_reader<'a, 'py>(
    py: Python<'py>,
    given: &'a mut Option<Bound<'py, PyDict>>,
) -> impl FnMut(Script) -> Result<Vec<(String, Raw)>, Error> + use<'a, 'py> {
    move |script| {
        let path = match script {
            Script::File(path) => path,
            Script::Server(file) => return server_section(py, file),
        };
        let names = run_config(py, path)?;
        let values = values(&names);
        *given = Some(names);
        Ok(values)
    }
}

/// What the names stand for, as the configuration takes it.
pub fn values(names: &Bound<'_, PyDict>) -> Vec<(String, Raw)> {
    names.iter().map(|(name, value)| (name.to_string(), raw(&value))).collect()
}

/// As the module `__config__`, afresh each time, so that a reload sees what the file says now. The module's `__file__` is
/// good in whatever folder the server goes to.
fn execute<'py>(py: Python<'py>, path: &Path) -> Result<PyResult<Bound<'py, PyDict>>, Error> {
    let shown = path.display();
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    if path.extension().is_some_and(|end| end == "pyc") {
        return Ok(compiled(py, &full).and_then(|code| run_as_module(py, code, &full)));
    }
    let code = fs::read(path).map_err(|e| Error::system(&format!("config file {shown}"), &e, "--config"))?;
    if code.contains(&0) {
        return Err(Error::Other(format!("config file {shown} contains a NUL byte (--config)")));
    }
    let compiled = py.import("builtins").and_then(|builtins| {
        let source = PyBytes::new(py, &code);
        builtins.call_method1("compile", (source, &full, "exec"))
    });
    Ok(compiled.and_then(|code| run_as_module(py, code, &full)))
}

fn compiled<'py>(py: Python<'py>, file: &Path) -> PyResult<Bound<'py, PyAny>> {
    let loader = py.import("importlib.machinery")?.getattr("SourcelessFileLoader")?;
    loader.call1(("__config__", file))?.call_method1("get_code", ("__config__",))
}

fn run_as_module<'py>(py: Python<'py>, code: Bound<'py, PyAny>, file: &Path) -> PyResult<Bound<'py, PyDict>> {
    let module = PyModule::new(py, "__config__")?;
    module.setattr("__file__", file.display().to_string())?;
    py.import("sys")?.getattr("modules")?.set_item("__config__", &module)?;
    let names = module.dict();
    let builtins = py.import("builtins")?;
    names.set_item("__builtins__", &builtins)?;
    builtins.call_method1("exec", (code, &names))?;
    Ok(names)
}

/// As the configuration takes it.
pub fn raw(value: &Bound<'_, PyAny>) -> Raw {
    if value.is_none() {
        return Raw::None;
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Raw::Bool(flag.is_true());
    }
    if let (Ok(_), Ok(number)) = (value.cast::<PyInt>(), value.extract::<i64>()) {
        return Raw::Int(number);
    }
    if let Ok(number) = value.cast::<PyFloat>() {
        return Raw::Float(number.value());
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Raw::Text(text.to_string_lossy().into_owned());
    }
    let shown = || value.repr().map_or_else(|_| "?".into(), |text| text.to_string());
    match value.is_callable() {
        true => Raw::Callable(shown()),
        false => raw_container(value).unwrap_or_else(|| Raw::Other(shown())),
    }
}

fn raw_container(value: &Bound<'_, PyAny>) -> Option<Raw> {
    if let Ok(list) = value.cast::<PyList>() {
        return Some(Raw::List(list.iter().map(|item| raw(&item)).collect()));
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return Some(Raw::List(tuple.iter().map(|item| raw(&item)).collect()));
    }
    let map = value.cast::<PyDict>().ok()?;
    Some(Raw::Map(map.iter().map(|(name, value)| (name.to_string(), raw(&value))).collect()))
}
