//! Owns: what the program calls itself.
//! Rule: the version is the package's.
//! Never: anything else.

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// SERVER_SOFTWARE in every environ.
pub const SERVER_SOFTWARE: &str = concat!("rgunicorn/", env!("CARGO_PKG_VERSION"));
