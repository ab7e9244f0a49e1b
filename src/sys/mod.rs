//! Owns: the kernel, one idea a file, on nix, socket2 and signal-hook.
//! Rule: every function here is safe to call and returns `io::Result`; `unsafe` in this crate lives here and in
//! `wsgi/ffi.rs` only, each block with its proof.
//! Never: knows "worker", logs, retries, imports the rest of the crate.
#![allow(unsafe_code)]

pub mod atomics;
pub mod baton;
pub mod child;
pub mod clock;
pub mod crash;
pub mod descriptors;
pub mod file;
pub mod fork;
pub mod inotify;
pub mod memory;
pub mod poll;
pub mod privileges;
pub mod process;
pub mod shm;
pub mod signal;
pub mod socket;
