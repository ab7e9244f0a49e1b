//! Owns: what the Python modules of the package ask of the server: its table of options, a value checked, the command line
//! read, an address or an application found, a program's server started.
//! Rule: thin; the answers are those that the command itself goes by. What is refused is raised as `ConfigError`.
//! Never: decides anything.

use std::path::Path;

use pyo3::exceptions::{PyAttributeError, PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::arguments::{self, Parsed};
use crate::config::kinds::Kind;
use crate::config::table::{self, Opt};
use crate::config::{self, Address, AppSpec, Config, HookSpec, Raw, Value};
use crate::error::Error;
use crate::hooks;
use crate::python;

pyo3::create_exception!(
    rgunicorn.errors,
    ConfigError,
    PyException,
    "The configuration cannot be used; `exit_code` is what the command ends with."
);

fn refused(py: Python<'_>, e: Error) -> PyErr {
    let raised = ConfigError::new_err(e.to_string());
    match raised.value(py).setattr("exit_code", e.exit_code()) {
        Ok(()) => raised,
        Err(e) => e,
    }
}

/// Every setting as a dictionary, in the order of the help.
pub fn settings(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    // What is wrong with the environment is said when the server starts.
    let defaults =
        config::load_set(Vec::new(), &environment).map_or_else(|_| Config::default(), |set| set.config);
    defaults.settings().filter_map(|(name, value)| Some(row(py, table::find(name)?, value))).collect()
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// `value` is its default as a value, or the environment's.
fn row<'py>(py: Python<'py>, opt: &Opt, value: &Value) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    row.set_item("name", opt.name)?;
    row.set_item("flags", opt.flags())?;
    row.set_item("env", opt.env.map(|env| env.name))?;
    row.set_item("kind", opt.kind.word())?;
    row.set_item("allowed", opt.kind.allowed())?;
    row.set_item("bounds", bounds(opt.kind))?;
    row.set_item("default", opt.default)?;
    row.set_item("value", hooks::python_value(py, opt.name, value)?)?;
    row.set_item("reloadable", opt.reloadable)?;
    row.set_item("section", opt.section)?;
    row.set_item("help", opt.help)?;
    row.set_item("ignored", opt.ignored)?;
    row.set_item("meta", Some(opt.kind.meta()).filter(|meta| !meta.is_empty()))?;
    row.set_item("action", action(opt.kind))?;
    Ok(row)
}

fn bounds(kind: Kind) -> Option<(i64, i64)> {
    match kind {
        Kind::Int { min, max } => Some((min, max)),
        _ => None,
    }
}

/// In argparse's words.
fn action(kind: Kind) -> &'static str {
    match kind {
        Kind::Flag { given: true } => "store_true",
        Kind::Flag { given: false } => "store_false",
        kind if kind.repeats() => "append",
        _ => "store",
    }
}

/// A value as the setting takes it; functions and classes stay what they are.
///
/// Errors: AttributeError for no setting, ValueError for a value that it does not take.
pub fn check<'py>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    let Some(opt) = table::find(name) else {
        return Err(PyAttributeError::new_err(no_setting(name)));
    };
    let raw = python::raw(value);
    let checked = opt.read(&raw).map_err(|why| PyValueError::new_err(format!("{name}: {why}")))?;
    match (raw, checked) {
        (Raw::Callable(_) | Raw::Other(_), _) => Ok(value.clone()),
        (_, checked) => python_object(py, name, &checked, None),
    }
}

fn no_setting(name: &str) -> String {
    match table::closest_name(name) {
        Some(known) => format!("No configuration setting for: {name} (did you mean '{known}'?)"),
        None => format!("No configuration setting for: {name}"),
    }
}

/// A setting's value as one would write it in a configuration file.
fn python_object<'py>(
    py: Python<'py>,
    name: &str,
    value: &Value,
    given: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    match (value, given) {
        (Value::Hook(HookSpec::Import { module, name }), _) => {
            Ok(format!("{module}.{name}").into_pyobject(py)?.into_any())
        }
        (Value::Hook(HookSpec::Given), Some(given)) => {
            Ok(given.get_item(name)?.unwrap_or_else(|| py.None().into_bound(py)))
        }
        _ => hooks::python_value(py, name, value),
    }
}

/// The options given among words, and the words that belong to none.
pub type Words<'py> = (Bound<'py, PyDict>, Vec<String>);

/// None where the words ask for help or for the version.
pub fn parse_command_line<'py>(py: Python<'py>, words: &[String]) -> PyResult<Option<Words<'py>>> {
    let args = match arguments::parse(words).map_err(|e| refused(py, e))? {
        Parsed::Args(args) => args,
        Parsed::Help(_) | Parsed::Version => return Ok(None),
    };
    let values = PyDict::new(py);
    for (opt, value) in args.values().map_err(|e| refused(py, e))? {
        values.set_item(opt.name, hooks::python_value(py, opt.name, &value)?)?;
    }
    Ok(Some((values, args.positional())))
}

/// What all sources say of every setting, the application that they name, and the warnings.
pub type CommandLine<'py> = (Bound<'py, PyDict>, Option<String>, Vec<String>);

/// Reads the command line, GUNICORN_CMD_ARGS and the config file that they name; `base` goes before that.
pub fn read_command_line<'py>(
    py: Python<'py>,
    words: &[String],
    base: &Bound<'py, PyDict>,
) -> PyResult<CommandLine<'py>> {
    let mut given = None;
    let mut read = python::config_reader(py, &mut given);
    let loaded = config::load_over(python::values(base), words, &environment, &mut read);
    drop(read);
    let loaded = loaded.map_err(|e| refused(py, e))?;
    let given = given.unwrap_or_else(|| base.clone());
    let values = every_value(&loaded.config, &given)?;
    Ok((values, loaded.config.app.as_ref().map(AppSpec::name), loaded.warnings))
}

fn every_value<'py>(config: &Config, given: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyDict>> {
    let values = PyDict::new(given.py());
    for (name, value) in config.settings() {
        values.set_item(name, python_object(given.py(), name, value, Some(given))?)?;
    }
    values.set_item("config", config.config_file.as_ref().map(|path| path.display().to_string()))?;
    Ok(values)
}

/// The names in a Python config file.
pub fn run_config_file<'py>(py: Python<'py>, location: &str) -> PyResult<Bound<'py, PyDict>> {
    python::run_config(py, Path::new(location)).map_err(|e| refused(py, e))
}

/// An address as the socket module has it.
pub fn parse_address<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    let address: Address = text.parse().map_err(PyValueError::new_err)?;
    hooks::address_value(py, &address)
}
