//! Owns: what a server does with its configuration before it serves by it: reading it, folder, import path, error log.
//! Rule: the same at the start and at every reload.
//! Never: keeps anything; what is read is a `Setup`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::blame;
use super::generation::Setup;
use crate::config::{self, Config, Loaded};
use crate::error::{self, Error};
use crate::hooks::Hooks;
use crate::identity::Identity;
use crate::launch::Launch;
use crate::python;

/// Whether a program has read its configuration already: it does when its object is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    First,
    Again,
}

/// Reads the configuration from the folder we were started in, then takes over what it says of the process: folder,
/// import path, error log.
pub(super) fn read_config(
    py: Python<'_>,
    launch: &Launch,
    reading: Reading,
    start_folder: &Path,
) -> Result<Setup, Error> {
    take_config(py, launch, reading, start_folder).map_err(|error| blame::locate(py, start_folder, error))
}

fn take_config(
    py: Python<'_>,
    launch: &Launch,
    reading: Reading,
    start_folder: &Path,
) -> Result<Setup, Error> {
    enter(py, start_folder)?;
    let (loaded, given) = load_config(py, launch, reading)?;
    let mut config = loaded.config;
    let here = folder(&config, start_folder);
    enter(py, &here)?;
    for folder in &config.pythonpath {
        let full = here.join(folder);
        python::add_path(py, &full.display().to_string())
            .map_err(|e| Error::Other(format!("{folder}: {e} (--pythonpath)")))?;
    }
    crate::log::belong_to(Identity::wanted(&config)?);
    init_log(&config)?;
    let hooks = Arc::new(Hooks::resolve(py, &config, given.as_ref())?);
    if let Some(tls) = hooks.ssl_context(py, &config)? {
        config.tls = Some(tls);
    }
    Ok(Setup { config: Arc::new(config), hooks, warnings: loaded.warnings })
}

/// The configuration, and the names that it was made from where there are Python objects among them.
fn load_config<'py>(
    py: Python<'py>,
    launch: &Launch,
    reading: Reading,
) -> Result<(Loaded, Option<Bound<'py, PyDict>>), Error> {
    let env = |name: &str| std::env::var(name).ok();
    match launch {
        Launch::Command(args) => {
            let mut given = None;
            let loaded = config::load(args, &env, &mut python::config_reader(py, &mut given))?;
            Ok((loaded, given))
        }
        Launch::Program(program) => {
            if reading == Reading::Again {
                program.reload(py)?;
            }
            let (given, warnings) = program.settings(py)?;
            let mut loaded = config::load_set(python::values(&given), &env)?;
            loaded.warnings.splice(..0, warnings);
            Ok((loaded, Some(given)))
        }
    }
}

pub(super) fn init_log(config: &Config) -> Result<(), Error> {
    crate::log::init(config).map_err(|e| {
        let file =
            config.settings().find(|(name, _)| *name == "errorlog").map(|(_, value)| value.to_string());
        config.wrong(
            "errorlog",
            format!("'{}' cannot be written: {}", file.unwrap_or_default(), error::reason(&e)),
        )
    })
}

/// Workers that are somebody else will have to reopen what was made here.
pub(super) fn hand_over_logs(config: &Config, identity: Option<&Identity>) {
    if let Some(identity) = identity {
        let targets = config.accesslog.iter().chain([&config.errorlog]);
        targets.for_each(|target| crate::log::hand_over(target, identity));
    }
}

/// Where the server is at home: by the name that the operator has given it, so that a link is read anew at a reload.
pub(super) fn folder(config: &Config, start_folder: &Path) -> PathBuf {
    config.chdir.as_ref().map_or(start_folder.to_path_buf(), |folder| start_folder.join(folder))
}

pub(super) fn enter(py: Python<'_>, folder: &Path) -> Result<(), Error> {
    let shown = folder.display().to_string();
    std::env::set_current_dir(folder)
        .map_err(|e| Error::system(&format!("folder {shown}"), &e, "--chdir"))?;
    python::add_path(py, &shown).map_err(|e| Error::Other(format!("{shown}: {e} (--chdir)")))
}
