//! Owns: the Python objects that stand for what Rust knows: configuration, listeners, log.
//! Rule: gunicorn's names and types; the classes are in `python/rgunicorn/hooks.py`.
//! Never: calls a hook.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyModule};

use super::Function;
use crate::config::{self, Address, Config, LogTarget, Value};
use crate::listener::Listener;

const MODULE: &str = "rgunicorn.hooks";

/// The classes of the objects. The stand-alone binary carries them itself.
pub fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let modules = py.import("sys")?.getattr("modules")?;
    if modules.contains("rgunicorn")? || modules.contains(MODULE)? {
        return py.import(MODULE);
    }
    let source = CString::new(include_str!("../../python/rgunicorn/hooks.py"))?;
    PyModule::from_code(py, &source, c"rgunicorn/hooks.py", c"rgunicorn.hooks")
}

/// The configuration with gunicorn's names and types.
pub fn cfg<'py>(
    module: &Bound<'py, PyModule>,
    config: &Config,
    functions: &[Function],
) -> PyResult<Bound<'py, PyAny>> {
    let py = module.py();
    let settings = PyDict::new(py);
    for name in config::unsupported() {
        settings.set_item(name, py.None())?;
    }
    for (name, value) in config.settings() {
        settings.set_item(name, python_value(py, name, value)?)?;
    }
    for function in functions {
        settings.set_item(function.hook.name(), &function.callable)?;
    }
    settings.set_item("config", config.config_file.as_ref().map(|path| path.display().to_string()))?;
    settings.set_item("proc_name", &config.proc_name)?;
    let folder = std::env::current_dir().map(|folder| folder.display().to_string());
    settings.set_item("chdir", folder.ok())?;
    let addresses: PyResult<Vec<_>> = config.bind.iter().map(|address| address_value(py, address)).collect();
    settings.set_item("address", addresses?)?;
    module.getattr("Config")?.call1((settings,))
}

/// A setting's value with gunicorn's type; a function that it names is None.
pub fn python_value<'py>(py: Python<'py>, name: &str, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Unset | Value::Hook(_) => py.None().into_bound(py),
        Value::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Value::Int(value) => value.into_pyobject(py)?.into_any(),
        Value::Seconds(value) => seconds(py, *value)?,
        Value::Text(value) => value.into_pyobject(py)?.into_any(),
        Value::Texts(value) => value.into_pyobject(py)?.into_any(),
        Value::Pairs(pairs) if name == "raw_env" => {
            PyList::new(py, pairs.iter().map(|(name, value)| format!("{name}={value}")))?.into_any()
        }
        Value::Pairs(pairs) => {
            let map = PyDict::new(py);
            pairs.iter().try_for_each(|(name, value)| map.set_item(name, value))?;
            map.into_any()
        }
        Value::Path(path) => path.display().to_string().into_pyobject(py)?.into_any(),
        Value::Log(LogTarget::Dash) => "-".into_pyobject(py)?.into_any(),
        Value::Log(LogTarget::File(path)) => path.display().to_string().into_pyobject(py)?.into_any(),
        Value::Addresses(list) => PyList::new(py, list.iter().map(Address::to_string))?.into_any(),
    })
}

/// Whole seconds are an int, as they are in gunicorn.
fn seconds(py: Python<'_>, value: Duration) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value.subsec_nanos() {
        0 => value.as_secs().into_pyobject(py)?.into_any(),
        _ => value.as_secs_f64().into_pyobject(py)?.into_any(),
    })
}

pub fn address_value<'py>(py: Python<'py>, address: &Address) -> PyResult<Bound<'py, PyAny>> {
    Ok(match address {
        Address::Tcp { host, port } => (host, *port).into_pyobject(py)?.into_any(),
        Address::Unix(path) => path.to_string_lossy().into_pyobject(py)?.into_any(),
        Address::Fd(number) => number.into_pyobject(py)?.into_any(),
    })
}

pub fn listener<'py>(
    module: &Bound<'py, PyModule>,
    listener: &Listener,
    secure: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let address = address_value(module.py(), listener.address())?;
    let arguments = (listener.as_fd().as_raw_fd(), listener.local().url(secure), address);
    module.getattr("Listener")?.call1(arguments)
}

/// `server.log`, `worker.log`: lines for the error log.
pub fn log<'py>(module: &Bound<'py, PyModule>) -> PyResult<Bound<'py, PyAny>> {
    let write =
        PyCFunction::new_closure(module.py(), Some(c"write"), None, |arguments, _| -> PyResult<()> {
            let (level, text): (i32, String) = arguments.extract()?;
            write_line(level, &text);
            Ok(())
        })?;
    module.getattr("Log")?.call1((write,))
}

/// Levels are those of Python's `logging`.
fn write_line(level: i32, text: &str) {
    match level {
        50.. => crate::log::critical(format_args!("{text}")),
        40.. => log::error!("{text}"),
        30.. => log::warn!("{text}"),
        20.. => log::info!("{text}"),
        _ => log::debug!("{text}"),
    }
}
