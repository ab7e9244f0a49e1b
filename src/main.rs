//! Owns: the stand-alone binary: an embedded interpreter around the same `main` as the wheel's command.
//! Rule: VIRTUAL_ENV is honoured as an activated environment is.
//! Never: logic of its own.

use std::process::exit;

use pyo3::prelude::*;

fn main() {
    let argv: Vec<String> = std::env::args().collect();
    Python::initialize();
    Python::attach(|py| {
        if let Err(e) = _core::python::activate(py, std::env::var("VIRTUAL_ENV").ok().as_deref()) {
            eprintln!("rgunicorn: VIRTUAL_ENV cannot be used: {e}");
            exit(1);
        }
        let code = _core::run(py, &argv);
        _core::python::end_with(py, code)
    });
}
