//! Owns: what the program calls itself.
//! Rule: the version is the package's. The name may be another one in a worker, decided once, before its first response.
//! Never: anything else.

use std::sync::OnceLock;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// SERVER_SOFTWARE in every environ.
pub const SERVER_SOFTWARE: &str = concat!("rgunicorn/", env!("CARGO_PKG_VERSION"));
/// The name in the Server field.
pub const SERVER: &str = "rgunicorn";

static LINE: OnceLock<String> = OnceLock::new();

/// The Server field (RFC 9110 §10.2.4) with its line end; nothing where the name is empty.
pub fn server_line() -> &'static str {
    LINE.get().map_or("Server: rgunicorn\r\n", String::as_str)
}

/// Has responses of this process bear another name, in visible ASCII. Only the first call has an effect.
pub fn set_server(name: &str) {
    let line = match name.is_empty() {
        true => String::new(),
        false => format!("Server: {name}\r\n"),
    };
    let _ = LINE.set(line);
}
