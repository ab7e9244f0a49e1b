//! Owns: getting the application: found, imported and called for; with `reload`, one in its place that shows why it cannot be.
//! Rule: what goes wrong is logged once, here, and becomes the exit code and the sentence that the arbiter is told.
//! Never: ends the process.

use pyo3::prelude::*;

use super::plan::{surroundings, trust};
use super::{boot_failed, Failure, Heritage, APP_NOT_FOUND, BOOT_FAILED};
use crate::config::{AppSpec, Config};
use crate::development::{self, Observer};
use crate::hooks::{report, Hook, WorkerHooks};
use crate::launch::Launch;
use crate::python;
use crate::wsgi::load::{self, LoadError};
use crate::wsgi::warm_up::{warm_up, Cold};

/// The application for a worker or a mold; with `reload`, one that shows why it cannot be loaded.
pub fn load<'py>(py: Python<'py>, heritage: &Heritage) -> Result<Bound<'py, PyAny>, Failure> {
    let config = &heritage.config;
    if config.spew {
        development::spew(py).map_err(|e| load_failed(py, e.into()))?;
    }
    let Some(journal) = heritage.imports.clone() else {
        let app = load_app(py, &heritage.launch, config)?;
        return warm(py, heritage, &app).map(|()| app);
    };
    let observer =
        Observer::start(py, journal, heritage.arbiter.clone()).map_err(|e| load_failed(py, e.into()))?;
    let loaded = find_app(py, &heritage.launch, config);
    if let Ok(app) = &loaded {
        warm(py, heritage, app)?;
    }
    observer.tell_of_all(py).map_err(|e| load_failed(py, e.into()))?;
    loaded.or_else(|e| explain(py, e))
}

/// Makes the warm-up requests. That one of them fails may be an accident of the moment, which must not keep a worker from
/// being replaced; a reload has old workers that can go on.
fn warm(py: Python<'_>, heritage: &Heritage, app: &Bound<'_, PyAny>) -> Result<(), Failure> {
    let requests = &heritage.config.warm_up;
    if requests.is_empty() {
        return Ok(());
    }
    let trust = trust(&heritage.config).map_err(|e| load_failed(py, e.into()))?;
    let warm = warm_up(app, &surroundings(heritage, trust, None), requests);
    python::flush(py);
    match warm {
        Err(Cold::Stopped(e)) => Err(load_failed(py, e.into())),
        Err(Cold::Failed(sentence)) if heritage.is_on_trial() => Err(Failure { code: BOOT_FAILED, sentence }),
        Err(Cold::Failed(_)) | Ok(()) => Ok(()),
    }
}

/// As the application for a worker that goes on, unless it is told to stop.
fn explain(py: Python<'_>, e: LoadError) -> Result<Bound<'_, PyAny>, Failure> {
    let text = match &e {
        LoadError::Raised(stop) if python::comes_of_stop(py, stop) => return Err(load_failed(py, e)),
        LoadError::Raised(raised) => python::traceback(py, raised),
        LoadError::NotFound(sentence) | LoadError::NoModule(sentence) => sentence.clone(),
    };
    load_failed(py, e);
    log::info!("Every request is answered with this until a file changes (--reload)");
    development::failure(py, &text).map_err(|e| load_failed(py, e.into()))
}

/// After `post_worker_init`, which fails like the application.
pub(super) fn initialised<'py>(
    py: Python<'py>,
    hooks: &WorkerHooks,
    app: Bound<'py, PyAny>,
    config: &Config,
) -> Result<Bound<'py, PyAny>, i32> {
    match hooks.post_worker_init(py, &app) {
        Ok(()) => Ok(app),
        Err(e) if development::is_failure(&app) && !python::is_stop(py, &e) => {
            report(py, Hook::PostWorkerInit, Err(e));
            Ok(app)
        }
        Err(e) if config.reload.is_some() => explain(py, e.into()).map_err(|failure| failure.code),
        Err(e) => Err(boot_failed(py, &e)),
    }
}

pub fn load_app<'py>(
    py: Python<'py>,
    launch: &Launch,
    config: &Config,
) -> Result<Bound<'py, PyAny>, Failure> {
    find_app(py, launch, config).map_err(|e| load_failed(py, e))
}

fn find_app<'py>(py: Python<'py>, launch: &Launch, config: &Config) -> Result<Bound<'py, PyAny>, LoadError> {
    let prepared = config.raw_env.iter().try_for_each(|(name, value)| python::set_env(py, name, value));
    let found = prepared.map_err(LoadError::Raised).and_then(|()| match launch {
        Launch::Program(program) => load::ask(py, program),
        Launch::Command(_) => match &config.app {
            Some(AppSpec::Paste(file)) => load::paste(py, file),
            Some(AppSpec::Module(spec)) => load::load(py, spec),
            // `Launch::check` has seen to it that there is one.
            None => load::load(py, ""),
        },
    });
    let raised = match &found {
        Err(LoadError::Raised(e)) => Some(e),
        _ => None,
    };
    python::returned(py, raised, || "loading the application".into());
    python::flush(py);
    found
}

/// Logs what kept the application from being loaded.
fn load_failed(py: Python<'_>, e: LoadError) -> Failure {
    match e {
        LoadError::NotFound(sentence) => {
            log::error!("{sentence}");
            Failure { code: APP_NOT_FOUND, sentence }
        }
        LoadError::NoModule(sentence) => {
            log::error!("{sentence}");
            Failure { code: BOOT_FAILED, sentence }
        }
        LoadError::Raised(e) => match boot_failed(py, &e) {
            // Another signal may wait, and Python would raise it in whatever describes the exception of this one.
            0 => Failure { code: 0, sentence: String::new() },
            code => Failure { code, sentence: e.to_string() },
        },
    }
}
