//! The server's pure rules, without the server: what its fuzz targets call, and what they share.
#![allow(dead_code)]

#[path = "../../src/http/mod.rs"]
pub mod http;
#[path = "../../src/proxy.rs"]
pub mod proxy;
#[path = "../../src/proxy_protocol.rs"]
pub mod proxy_protocol;
#[path = "../../src/version.rs"]
pub mod version;

pub mod oracles;
