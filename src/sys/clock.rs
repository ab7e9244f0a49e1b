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

/// Microseconds since the epoch, for comparison with what another machine says.
pub fn unix_micros() -> u64 {
    nanos(ClockId::CLOCK_REALTIME) / 1000
}

/// Whole seconds since the epoch, from the coarse clock: good to one tick, made for `Date` and log lines.
pub fn unix_seconds() -> u64 {
    nanos(ClockId::CLOCK_REALTIME_COARSE) / SECOND
}

/// Waking so much later than planned means that the process did not run: it was stopped, its container frozen.
const LATE: Nanos = SECOND / 5;

/// Keeps whoever ends what takes too long from counting the time in which nobody ran.
#[derive(Default)]
pub struct Vigil {
    /// When the last sleep was to end at the latest; 0 is never.
    planned: Nanos,
    held_until: Nanos,
}

impl Vigil {
    /// Notes that it is awake. Returns how long it has overslept; 0 is not at all, or too little to speak of.
    pub fn wake(&mut self, now: Nanos) -> Nanos {
        let planned = std::mem::take(&mut self.planned);
        match planned > 0 && now > planned.saturating_add(LATE) {
            true => now - planned,
            false => 0,
        }
    }

    /// Nothing is to be ended for so long: what was frozen too may finish in that time.
    pub fn hold(&mut self, now: Nanos, mercy: Nanos) {
        self.held_until = self.held_until.max(now.saturating_add(mercy));
    }

    pub fn plan(&mut self, until: Nanos) {
        self.planned = until;
    }

    /// Until when nothing may be ended, if that is still to come.
    pub fn held(&self, now: Nanos) -> Option<Nanos> {
        Some(self.held_until).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_overslept_knows_how_long() {
        let mut vigil = Vigil::default();
        assert_eq!(vigil.wake(5 * SECOND), 0);
        vigil.plan(6 * SECOND);
        assert_eq!(vigil.wake(6 * SECOND + LATE), 0);
        vigil.plan(7 * SECOND);
        assert_eq!(vigil.wake(60 * SECOND), 53 * SECOND);
        assert_eq!(vigil.wake(90 * SECOND), 0, "without a plan");
    }

    #[test]
    fn what_is_held_is_held_until_the_last_word() {
        let mut vigil = Vigil::default();
        assert_eq!(vigil.held(0), None);
        vigil.hold(60 * SECOND, SECOND);
        vigil.hold(60 * SECOND, 0);
        assert_eq!(vigil.held(60 * SECOND + 1), Some(61 * SECOND));
        assert_eq!(vigil.held(61 * SECOND), None);
    }
}
