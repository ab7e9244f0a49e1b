//! Owns: the two clocks. Every decision is taken on CLOCK_MONOTONIC; wall time is only ever shown.
//! Rule: a moment is a `Nanos`, nanoseconds of CLOCK_MONOTONIC, comparable between processes of one machine.
//! Never: caches; whoever wants a cheaper clock keeps a moment.

use nix::time::{clock_gettime, ClockId};

/// Nanoseconds of CLOCK_MONOTONIC; as a length of time, nanoseconds.
pub type Nanos = u64;

pub const SECOND: Nanos = 1_000_000_000;

fn nanos(id: ClockId) -> Nanos {
    // clock_gettime(2) fails only for an unknown clock or a bad pointer; neither can be here.
    clock_gettime(id).map_or(0, |t| t.tv_sec() as u64 * SECOND + t.tv_nsec() as u64)
}

pub fn monotonic() -> Nanos {
    nanos(ClockId::CLOCK_MONOTONIC)
}

/// Whole seconds since the epoch, from the coarse clock: good to one tick, made for `Date` and log lines.
pub fn unix_seconds() -> u64 {
    nanos(ClockId::CLOCK_REALTIME_COARSE) / SECOND
}
