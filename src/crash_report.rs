//! Owns: what a process says of its own crash in the handler of the signal that ends it, and the scene of one that has no
//! connections: a worker that boots, a mold.
//! Rule: async-signal-safe, as everything that is called there; a log whose reader would have to be waited for is told
//! nothing.
//! Never: knows connections; those are the event loop's.

use std::fmt;
use std::io::Write;
use std::os::fd::AsRawFd;

use crate::log;
use crate::scoreboard::Slot;
use crate::sys::crash::{self, Fault, Scene};
use crate::sys::{process, signal};

/// One line for the error log, above the stacks. False when those are not to be written either.
pub fn announce(fault: Fault, role: &str, more: fmt::Arguments<'_>) -> bool {
    let Some(log) = log::descriptor() else { return false };
    let overflow = if fault.stack_overflow { ", its C stack is full" } else { "" };
    let name = signal::full_name(fault.signal).unwrap_or("a signal");
    let mut text = [0; 512];
    let mut rest = &mut text[..];
    // It fits.
    let _ = writeln!(
        rest,
        "Fatal error: {name} in {role} (pid:{}){overflow}. {more}Stacks of all threads:",
        process::id()
    );
    let unused = rest.len();
    crash::note(log.as_raw_fd(), &text[..text.len() - unused])
}

/// A worker before it serves. It takes the place of its mold's scene.
struct Booting(Slot);

impl Scene for Booting {
    fn last_acts(&self, fault: Fault) -> bool {
        self.0.set_fault(fault.signal, fault.stack_overflow);
        announce(fault, "worker", format_args!("It had not finished booting. "))
    }
}

struct Mold;

impl Scene for Mold {
    fn last_acts(&self, fault: Fault) -> bool {
        announce(fault, "mold", format_args!(""))
    }
}

/// By a worker that boots; lives as long as the process.
pub fn worker_boots(slot: Slot) {
    crash::set_scene(Box::leak(Box::new(Booting(slot))));
}

pub fn this_is_a_mold() {
    crash::set_scene(&Mold);
}
