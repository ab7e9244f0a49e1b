//! Owns: the Python objects that stand for what Rust knows: configuration, listeners, log.
//! Rule: gunicorn's names and types; the classes are in `python/rgunicorn/hooks.py`.
//! Never: calls a hook.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyModule};

use super::Function;
use crate::config::{Address, Config, LogTarget, Raw, Value};
use crate::listener::Listener;
use crate::python;

/// The classes of the objects. The stand-alone binary carries them itself.
pub fn module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    python::module(py, "rgunicorn.hooks", include_str!("../../python/rgunicorn/hooks.py"))
}

/// The configuration with gunicorn's names and types. `given` are the names of its file, where that is Python.
pub fn cfg<'py>(
    module: &Bound<'py, PyModule>,
    config: &Config,
    functions: &[Function],
    given: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = module.py();
    let settings = PyDict::new(py);
    for (name, value) in config.settings() {
        let object = match value {
            Value::Given(_) | Value::Tree(_) => {
                given.map(|names| names.get_item(name)).transpose()?.flatten()
            }
            _ => None,
        };
        settings.set_item(name, object.map_or_else(|| python_value(py, name, value), Ok)?)?;
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
        Value::Unset if name == "logconfig_dict" => PyDict::new(py).into_any(),
        Value::Tree(raw) => tree(py, raw)?,
        Value::Unset | Value::Hook(_) | Value::Given(_) => py.None().into_bound(py),
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

/// A value of a TOML file, as Python would have it.
fn tree<'py>(py: Python<'py>, raw: &Raw) -> PyResult<Bound<'py, PyAny>> {
    Ok(match raw {
        Raw::None => py.None().into_bound(py),
        Raw::Bool(value) => value.into_pyobject(py)?.to_owned().into_any(),
        Raw::Int(value) => value.into_pyobject(py)?.into_any(),
        Raw::Float(value) => value.into_pyobject(py)?.into_any(),
        Raw::Text(value) | Raw::Callable(value) | Raw::Other(value) => value.into_pyobject(py)?.into_any(),
        Raw::List(items) => {
            let items: PyResult<Vec<_>> = items.iter().map(|item| tree(py, item)).collect();
            PyList::new(py, items?)?.into_any()
        }
        Raw::Map(pairs) => {
            let map = PyDict::new(py);
            pairs.iter().try_for_each(|(name, value)| map.set_item(name, tree(py, value)?))?;
            map.into_any()
        }
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

/// `server.log`, `worker.log`, where Rust writes the logs: lines for the error log, and metrics.
pub fn log<'py>(module: &Bound<'py, PyModule>) -> PyResult<Bound<'py, PyAny>> {
    let py = module.py();
    let write = PyCFunction::new_closure(py, Some(c"write"), None, |arguments, _| -> PyResult<()> {
        let (level, text, exception): (i32, String, bool) = arguments.extract()?;
        write_line(level, &text, exception);
        Ok(())
    })?;
    let measure = PyCFunction::new_closure(py, Some(c"measure"), None, |arguments, _| -> PyResult<()> {
        let (name, value, kind): (String, String, String) = arguments.extract()?;
        if let Some(statsd) = crate::log::routes().statsd {
            statsd.metric(&name, &value, &kind);
        }
        Ok(())
    })?;
    module.getattr("Log")?.call1((write, measure))
}

/// Levels are those of Python's `logging`.
fn write_line(level: i32, text: &str, exception: bool) {
    match level {
        _ if exception => crate::log::exception(format_args!("{text}")),
        50.. => crate::log::critical(format_args!("{text}")),
        40.. => log::error!("{text}"),
        30.. => log::warn!("{text}"),
        20.. => log::info!("{text}"),
        _ => log::debug!("{text}"),
    }
}
