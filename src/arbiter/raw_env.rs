//! Owns: `raw_env` in the arbiter's own environment, where hooks look for it.
//! Rule: what was there before comes back, before the configuration is read again and when another generation's is set.
//! Never: touches the environment of a process that exists.

use pyo3::prelude::*;

use crate::python::replace_env;

#[derive(Default)]
pub struct RawEnv {
    set: Vec<(String, String)>,
    before: Vec<(String, Option<String>)>,
}

impl RawEnv {
    /// Has these variables set, and those that were set here before as they were.
    pub fn become_that(&mut self, py: Python<'_>, wanted: &[(String, String)]) -> PyResult<()> {
        if self.set == wanted {
            return Ok(());
        }
        self.set.clear();
        while let Some((name, before)) = self.before.pop() {
            replace_env(py, &name, before.as_deref())?;
        }
        for (name, value) in wanted {
            let before = replace_env(py, name, Some(value))?;
            self.before.push((name.clone(), before));
        }
        self.set = wanted.to_vec();
        Ok(())
    }
}
