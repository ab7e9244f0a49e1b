//! Owns: the configuration in the terms of the event loop and of the application: nanoseconds, trust that has been parsed,
//! logs that are open.
//! Rule: a limit of zero, which the configuration has for none, becomes a deadline that is never reached.
//! Never: starts anything.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::running::OverrunPolicy;
use super::Heritage;
use crate::access_sink::{AccessLog, Recipients, Witness};
use crate::body_buffer::BodyStore;
use crate::config::Config;
use crate::conn::Settings;
use crate::event_loop::Plan;
use crate::hooks::{AccessHook, WorkerHooks};
use crate::log::{routes, LogFile, Routes};
use crate::proxy::{Introductions, Trust};
use crate::scoreboard::Slot;
use crate::sys::clock::{Nanos, SECOND};
use crate::wsgi::{Circumstances, Surroundings};

/// What this worker has that its siblings have not.
pub(super) struct Post {
    pub(super) slot: Slot,
    pub(super) hooks: Arc<WorkerHooks>,
    pub(super) most_requests: u64,
    /// From the start, how long nothing is accepted.
    pub(super) quiet: Nanos,
}

/// Where lines go: those of requests, and the application's own.
pub(super) struct Logs {
    /// None: no access log, or one that a logger in Python writes.
    pub(super) access: Option<Arc<AccessLog>>,
    hook: Option<Arc<AccessHook>>,
    errors: Option<Py<PyAny>>,
}

impl Logs {
    pub(super) fn of(py: Python<'_>, hooks: &WorkerHooks, heritage: &Heritage) -> PyResult<Logs> {
        let hook = hooks.of_access(py)?;
        let errors = hooks.logger().map(|logger| logger.error_stream(py)).transpose()?;
        let witness = hooks.logger().map(|logger| logger.take_lines_queued(py)).transpose()?;
        let witness = witness.filter(|_| hook.is_some());
        let access = access_log(&heritage.config, heritage.access.clone(), witness);
        Ok(Logs { access, hook, errors })
    }
}

/// What the application can notice.
pub(super) fn circumstances(
    py: Python<'_>,
    hooks: &WorkerHooks,
    heritage: &Heritage,
    logs: &Logs,
    trust: Trust,
) -> PyResult<Circumstances> {
    let errors = logs.errors.as_ref().map(|stream| stream.clone_ref(py));
    Ok(Circumstances {
        surroundings: surroundings(heritage, trust, errors),
        sendfile: heritage.config.sendfile,
        interrupts: heritage.interrupts.clone(),
        hooks: hooks.of_requests(py)?,
        access: logs.hook.clone(),
    })
}

pub(super) fn surroundings(heritage: &Heritage, trust: Trust, errors: Option<Py<PyAny>>) -> Surroundings {
    let config = &heritage.config;
    Surroundings {
        threads: config.threads,
        workers: config.workers,
        trust,
        root_path: config.root_path.clone(),
        locals: heritage.listeners.iter().map(|listener| listener.local().clone()).collect(),
        errors,
    }
}

pub(super) fn plan(
    heritage: &Heritage,
    post: Post,
    logs: &Logs,
    trust: Trust,
    parallel: bool,
) -> PyResult<Plan> {
    let config = &heritage.config;
    Ok(Plan {
        settings: settings(config, trust),
        introductions: introductions(config)?,
        access: logs.access.clone(),
        tls: heritage.tls.clone(),
        listeners: heritage.listeners.clone(),
        mailbox: heritage.mailbox.clone(),
        notice: heritage.notice.clone(),
        slot: post.slot,
        threads: config.threads,
        parallel,
        workers: config.workers,
        most_connections: config.worker_connections,
        most_requests: post.most_requests,
        quiet: post.quiet,
        timeout: limit(config.timeout),
        queue_timeout: Some(nanos(config.queue_timeout)).filter(|limit| *limit > 0),
        graceful_timeout: nanos(config.graceful_timeout),
        response_buffer: config.response_buffer,
        overrun: Box::new(OverrunPolicy {
            interrupts: heritage.interrupts.clone(),
            hooks: Arc::downgrade(&post.hooks),
        }),
    })
}

pub(super) fn trust(config: &Config) -> PyResult<Trust> {
    Trust::new(&config.forwarded_allow_ips, config.secure_scheme_headers.clone())
        .map_err(|bad| PyValueError::new_err(format!("{} (--forwarded-allow-ips)", bad.0)))
}

fn introductions(config: &Config) -> PyResult<Option<Introductions>> {
    let Some(mode) = config.proxy_protocol else {
        return Ok(None);
    };
    Introductions::new(mode, &config.proxy_allow_ips)
        .map(Some)
        .map_err(|bad| PyValueError::new_err(format!("{} (--proxy-allow-from)", bad.0)))
}

fn access_log(
    config: &Config,
    file: Option<Arc<LogFile>>,
    witness: Option<Arc<dyn Witness>>,
) -> Option<Arc<AccessLog>> {
    let Routes { syslog, statsd, .. } = routes();
    let to = Recipients {
        // A logger in Python has a file of its own.
        file: file.zip(config.accesslog.clone()).filter(|_| routes().outlet.is_none()),
        syslog: syslog.filter(|syslog| syslog.access),
        statsd,
        witness,
    };
    AccessLog::new(to, &config.access_log_format).map(Arc::new)
}

fn settings(config: &Config, trust: Trust) -> Settings {
    let folder = config.worker_tmp_dir.clone().unwrap_or_else(std::env::temp_dir);
    Settings {
        policy: config.http.clone(),
        trust,
        keepalive: nanos(config.keepalive),
        header_timeout: limit(config.header_timeout),
        body_timeout: limit(config.body_timeout),
        write_timeout: limit(config.write_timeout),
        body_limit: config.limit_request_body.unwrap_or(u64::MAX),
        buffering: config.request_buffering,
        bodies: Arc::new(BodyStore::new(folder)),
        lingering: Arc::default(),
    }
}

fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX / 4)
}

/// In the configuration zero means no limit; a deadline a century away is none.
fn limit(duration: Duration) -> Nanos {
    match nanos(duration) {
        0 => 100 * 365 * 86_400 * SECOND,
        nanos => nanos,
    }
}
