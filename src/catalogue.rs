//! Owns: the table of options as Python sees it: what the documentation and the tests of all settings are made from.
//! Rule: what is in the table, and nothing else.
//! Never: runs in a server.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::config::kinds::Kind;
use crate::config::table::{options, Opt};

/// Every row, in the order of the help.
pub fn settings(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    options().map(|opt| row(py, opt)).collect()
}

fn row<'py>(py: Python<'py>, opt: &Opt) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    row.set_item("name", opt.name)?;
    row.set_item("flags", opt.flags())?;
    row.set_item("env", opt.env.map(|env| env.name))?;
    row.set_item("kind", opt.kind.word())?;
    row.set_item("allowed", opt.kind.allowed())?;
    row.set_item("bounds", bounds(opt.kind))?;
    row.set_item("default", opt.default)?;
    row.set_item("reloadable", opt.reloadable)?;
    row.set_item("section", opt.section)?;
    row.set_item("help", opt.help)?;
    row.set_item("ignored", opt.ignored)?;
    Ok(row)
}

fn bounds(kind: Kind) -> Option<(i64, i64)> {
    match kind {
        Kind::Int { min, max } => Some((min, max)),
        _ => None,
    }
}
