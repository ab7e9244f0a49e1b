//! Owns: the configuration in the terms of the event loop: nanoseconds, trust that has been parsed, logs that are open.
//! Rule: a limit of zero, which the configuration has for none, becomes a deadline that is never reached.
//! Never: knows which worker it is for.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use crate::access_sink::{AccessLog, Recipients, Witness};
use crate::config::Config;
use crate::conn::Settings;
use crate::log::{routes, LogFile, Routes};
use crate::proxy::{Introductions, Trust};
use crate::sys::clock::{Nanos, SECOND};

pub(super) fn trust(config: &Config) -> PyResult<Trust> {
    Trust::new(&config.forwarded_allow_ips, config.secure_scheme_headers.clone())
        .map_err(|bad| pyo3::exceptions::PyValueError::new_err(format!("{} (--forwarded-allow-ips)", bad.0)))
}

pub(super) fn introductions(config: &Config) -> PyResult<Option<Introductions>> {
    let Some(mode) = config.proxy_protocol else {
        return Ok(None);
    };
    Introductions::new(mode, &config.proxy_allow_ips)
        .map(Some)
        .map_err(|bad| pyo3::exceptions::PyValueError::new_err(format!("{} (--proxy-allow-from)", bad.0)))
}

pub(super) fn access_log(
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

pub(super) fn settings(config: &Config) -> Settings {
    Settings {
        policy: config.http.clone(),
        keepalive: nanos(config.keepalive),
        header_timeout: limit(config.header_timeout),
        body_timeout: limit(config.body_timeout),
        write_timeout: limit(config.write_timeout),
    }
}

pub(super) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX / 4)
}

/// In the configuration zero means no limit; a deadline a century away is none.
pub(super) fn limit(duration: Duration) -> Nanos {
    match nanos(duration) {
        0 => 100 * 365 * 86_400 * SECOND,
        nanos => nanos,
    }
}
