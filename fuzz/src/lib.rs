//! The server up to one connection, without loops, Python and processes: what its fuzz targets call, and what they share.
#![allow(dead_code, unused_imports)]

#[path = "../../src/access_log.rs"]
pub mod access_log;
#[path = "../../src/access_sink.rs"]
pub mod access_sink;
#[path = "../../src/body_buffer.rs"]
pub mod body_buffer;
#[path = "../../src/buffer.rs"]
pub mod buffer;
#[path = "../../src/config/mod.rs"]
pub mod config;
#[path = "../../src/conn/mod.rs"]
pub mod conn;
#[path = "../../src/control.rs"]
pub mod control;
#[path = "../../src/defect.rs"]
pub mod defect;
#[path = "../../src/error.rs"]
pub mod error;
#[path = "../../src/exchange/mod.rs"]
pub mod exchange;
#[path = "../../src/handoff.rs"]
pub mod handoff;
#[path = "../../src/http/mod.rs"]
pub mod http;
#[path = "../../src/identity.rs"]
pub mod identity;
#[path = "../../src/log.rs"]
pub mod log;
#[path = "../../src/log_file.rs"]
pub mod log_file;
#[path = "../../src/log_text.rs"]
pub mod log_text;
#[path = "../../src/proxy.rs"]
pub mod proxy;
#[path = "../../src/proxy_protocol.rs"]
pub mod proxy_protocol;
#[path = "../../src/remote.rs"]
pub mod remote;
#[path = "../../src/scoreboard.rs"]
pub mod scoreboard;
#[path = "../../src/statsd.rs"]
pub mod statsd;
#[path = "../../src/sys/mod.rs"]
pub mod sys;
#[path = "../../src/syslog.rs"]
pub mod syslog;
#[path = "../../src/timers.rs"]
pub mod timers;
#[path = "../../src/tls/mod.rs"]
pub mod tls;
#[path = "../../src/transport.rs"]
pub mod transport;
#[path = "../../src/version.rs"]
pub mod version;

pub mod connections;
pub mod driver;
pub mod messages;
pub mod oracles;
pub mod responses;
pub mod sessions;

/// The folder of this crate.
pub const FUZZ: &str = env!("CARGO_MANIFEST_DIR");
