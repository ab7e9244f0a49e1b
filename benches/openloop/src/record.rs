//! Owns: what is known of one request.

/// Nanoseconds; a moment counts from the start of the load.
pub type Nanos = u64;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Outcome {
    /// No answer yet, or none until the end.
    Open,
    /// Status 200.
    Answered,
    /// Another status, or an answer that is no HTTP.
    Failed,
    /// The connection ended before any octet of the answer.
    Reset,
    /// It ended in the middle of the answer.
    Cut,
    /// There was no connection to be had.
    Refused,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Open => "unanswered",
            Outcome::Answered => "answered",
            Outcome::Failed => "failed",
            Outcome::Reset => "reset",
            Outcome::Cut => "cut",
            Outcome::Refused => "refused",
        }
    }
}

#[derive(Clone, Copy)]
pub struct Record {
    /// When it was due.
    pub at: Nanos,
    /// From `at` to the last octet of the answer.
    pub latency: Nanos,
    /// How late the generator itself took it up.
    pub lag: Nanos,
    pub class: u8,
    pub outcome: Outcome,
}

impl Record {
    pub fn due(at: Nanos, class: u8) -> Self {
        Record { at, latency: 0, lag: 0, class, outcome: Outcome::Open }
    }
}
