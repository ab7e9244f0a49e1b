//! Owns: what the worker's connections are told when the process crashes; how each stands is in the `roll`.
//! Rule: nobody is told twice and nothing is run twice. A request that is with the application gets a 500, one that is not
//! a 503; a response that has begun ends after what was sent, by a reset where it would look whole; a connection of which nothing has been read goes to
//! another worker. All of it happens in a signal handler: atomics, and system calls on numbers that were noted before.
//! Never: allocates, locks, reads a connection from the table.

use std::os::fd::{AsFd, AsRawFd};

use super::roll::{Expected, Place, Roll, Standing};
use super::EventLoop;
use crate::conn::{Conn, State};
use crate::crash_report::announce;
use crate::exchange::claim::{Claim, Overrun, Stage};
use crate::handoff::Papers;
use crate::http::reject::without_body;
use crate::http::Reject;
use crate::proxy_protocol::Preface;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::crash::{self, Fault, Scene};
use crate::sys::socket;
use crate::transport::Peer;
use crate::version;

/// Milliseconds that the handler may wait, in all: for other threads, for room in the mailbox.
const MOST_WAITS: u32 = 100;

fn place(conn: &Conn, fd: i32) -> Place {
    Place::new(fd, conn.listener, conn.is_bound(), conn.is_bare())
}

fn standing(state: State) -> Standing {
    match state {
        State::Idle => Standing::Idle,
        State::Head | State::Body | State::Ready => Standing::Begun,
        State::Call => Standing::Held,
        State::Reply => Standing::Replying,
        State::Linger | State::Closed => Standing::Ended,
    }
}

/// What threads of the loop do with the roll. Where a crash has what they want, they go no further.
impl Roll {
    /// A new connection, in the hands of the thread that took it. One that has come while the process crashes stays as it
    /// came: the thread goes no further.
    pub(super) fn enter(&self, key: usize, conn: &Conn, fd: i32, expected: Expected<'_>) {
        self.write(key, place(conn, fd));
        if crash::is_near() {
            self.wait(key, conn.state());
            drop(expected);
            crash::wait_for_the_end();
        }
    }

    /// A thread takes the connection into its hands.
    pub(super) fn hold(&self, key: usize) {
        if !self.try_move(key, Standing::Held) {
            crash::wait_for_the_end();
        }
    }

    /// The thread that has it leaves it to another worker: `leave` follows, or `stay`.
    pub(super) fn part(&self, key: usize) {
        if !self.try_move(key, Standing::Parting) {
            crash::wait_for_the_end();
        }
    }

    /// No other worker has it, and the thread goes on with it.
    pub(super) fn stay(&self, key: usize) {
        self.put(key, Standing::Held);
    }

    /// It is back, and waits.
    pub(super) fn wait(&self, key: usize, state: State) {
        self.put(key, standing(state));
    }

    /// By a crash, when nothing can be taken from where it waits any more: gives those a moment who just have.
    fn await_arrivals(&self, waits: &mut u32) {
        while self.is_expecting() && *waits > 0 {
            *waits -= 1;
            crash::pause_briefly();
        }
    }
}

/// What is said in a crash, made beforehand.
pub(super) struct Pages {
    failed: Vec<u8>,
    failed_head: Vec<u8>,
    unavailable: Vec<u8>,
}

impl Pages {
    pub(super) fn unavailable(&self) -> &[u8] {
        &self.unavailable
    }

    pub(super) fn new() -> Pages {
        let page = |reject: Reject, fields: &str| {
            let mut page = Vec::new();
            reject.page(fields.as_bytes(), &mut page);
            page
        };
        let failed = page(Reject::InternalError, version::server_line());
        let mut failed_head = failed.clone();
        without_body(&mut failed_head);
        let unavailable = page(Reject::Unavailable, version::server_line());
        Pages { failed, failed_head, unavailable }
    }
}

/// What became of the connections.
#[derive(Default)]
struct Toll {
    failed: u64,
    unavailable: u64,
    reset: u64,
    passed: u64,
    closed: u64,
}

impl Scene for EventLoop {
    fn last_acts(&self, fault: Fault) -> bool {
        self.plan.slot.set_fault(fault.signal, fault.stack_overflow);
        let mut toll = Toll::default();
        let mut waits = MOST_WAITS;
        // Before anybody is told: a client that knows may ask again at once, and the other threads run on.
        for number in self.plan.listeners.iter().map(|l| l.as_fd()).chain([self.plan.mailbox.as_fd()]) {
            crash::blind(number.as_raw_fd(), self.nudge.as_fd().as_raw_fd());
        }
        self.calls.iter().for_each(|claim| _ = claim.crash());
        self.roll.take_all();
        self.roll.await_arrivals(&mut waits);
        for key in self.roll.keys() {
            let Some(place) = self.settled(key, &mut waits) else { continue };
            match place.standing() {
                Standing::Held => self.end_held(place, &mut waits, &mut toll),
                Standing::Idle => self.end_idle(place, &mut waits, &mut toll),
                Standing::Begun => self.turn_away(place, &mut toll),
                Standing::Replying => cut(place, &mut toll),
                // Another worker has it, or nobody: to say anything could be to answer beside that one.
                Standing::Parting => {}
                Standing::Ended | Standing::Absent => {}
            }
        }
        report(fault, &toll)
    }
}

impl EventLoop {
    /// Another thread may be about to put it back, to leave it to another worker or to open its claim: it is given a moment.
    fn settled(&self, key: usize, waits: &mut u32) -> Option<Place> {
        loop {
            let place = self.roll.look(key)?;
            let passes = match place.standing() {
                Standing::Held => self.claim(place).is_none(),
                Standing::Parting => true,
                _ => false,
            };
            if !passes || *waits == 0 {
                return Some(place);
            }
            *waits -= 1;
            crash::pause_briefly();
        }
    }

    /// Of the call that has the connection.
    fn claim(&self, place: Place) -> Option<(usize, &Claim)> {
        let serves = |claim: &Claim| claim.fd() == place.fd() && claim.look().stage() != Stage::Idle;
        self.calls.iter().enumerate().find(|(_, claim)| serves(claim))
    }

    /// Whose claim is open for a connection has the application's word for it.
    fn end_held(&self, place: Place, waits: &mut u32, toll: &mut Toll) {
        let (thread, outcome) = match self.claim(place) {
            Some((thread, claim)) => (Some(thread), claim.crash()),
            // Between two steps of ours: nobody can say whether it has been run.
            None => (None, Overrun::Answer(place.fd())),
        };
        match outcome {
            Overrun::Answer(_) if place.is_secure() => close(place, toll),
            Overrun::Answer(fd) => {
                let is_head = thread.is_some_and(|thread| self.plan.slot.is_head(thread));
                let page = if is_head { &self.pages.failed_head } else { &self.pages.failed };
                toll.failed += u64::from(crash::say(fd, page));
            }
            Overrun::TooLate(_) => cut(place, toll),
            Overrun::Replied { persists: true, .. } => self.end_idle(place, waits, toll),
            // In order, as the client may not have taken all of it yet.
            Overrun::Replied { persists: false, .. } => close(place, toll),
            Overrun::Gone => {}
        }
    }

    /// Nothing has been read: whoever goes on with it serves what comes.
    fn end_idle(&self, place: Place, waits: &mut u32, toll: &mut Toll) {
        if place.is_secure() {
            return close(place, toll);
        }
        if self.passes(place, waits) {
            toll.passed += 1;
        } else if crash::has_input(place.fd()) {
            self.turn_away(place, toll);
        } else {
            close(place, toll);
        }
    }

    fn passes(&self, place: Place, waits: &mut u32) -> bool {
        if self.is_last() || !place.is_bare() {
            return false;
        }
        let (Some(listener), Ok((fd, peer))) =
            (self.plan.listeners.get(place.listener()), socket::by_number(place.fd()))
        else {
            return false;
        };
        let deadline = clock::monotonic() + self.plan.settings.keepalive.max(GRACE);
        let papers = Papers {
            peer: Peer::at(&peer),
            listener: listener.id(),
            requests: 1,
            deadline,
            secure: false,
            preface: Preface::None,
            origin: None,
        };
        loop {
            match self.plan.mailbox.send_untouched(fd, papers) {
                Ok(()) => return true,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && *waits > 0 => {
                    *waits -= 1;
                    crash::pause_briefly();
                }
                Err(_) => return false,
            }
        }
    }

    /// The application has not been called for it.
    fn turn_away(&self, place: Place, toll: &mut Toll) {
        match place.is_secure() {
            true => close(place, toll),
            false => toll.unavailable += u64::from(crash::say(place.fd(), &self.pages.unavailable)),
        }
    }
}

/// How long whoever goes on with a connection waits for its next request at the least.
const GRACE: Nanos = 2 * SECOND;

/// The rest of the response will not come. Its framing tells the client so, where it has one.
fn cut(place: Place, toll: &mut Toll) {
    if crash::resets_on_close(place.fd()) {
        crash::reset(place.fd());
        toll.reset += 1;
    } else {
        close(place, toll);
    }
}

fn close(place: Place, toll: &mut Toll) {
    crash::end(place.fd());
    toll.closed += 1;
}

fn report(fault: Fault, toll: &Toll) -> bool {
    let Toll { failed, unavailable, reset, passed, closed } = toll;
    announce(
        fault,
        "worker",
        format_args!(
            "Connections: {failed} answered 500, {unavailable} answered 503, {reset} reset, {passed} left to other \
             workers, {closed} closed. "
        ),
    )
}
