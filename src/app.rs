//! Owns: what the loop knows of an application: that it can be called, and that it holds a lock while it is not waiting.
//! Rule: a `Caller` belongs to one thread and answers one exchange at a time, completely, before it returns.
//! Never: names Python; an application in Rust serves the tests of the layers below.

use crate::exchange::Exchange;

pub trait App: Send + Sync {
    /// For the thread that calls it, which becomes thread number `thread` of the worker.
    fn caller(&self, thread: usize) -> Box<dyn Caller>;
}

/// What a call means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    GoOn,
    /// A signal broke the request off: no other is to begin.
    Stop,
}

pub trait Caller {
    /// Runs the application for one request and gives the whole response to `exchange`.
    fn call(&mut self, exchange: &mut Exchange<'_>) -> Verdict;

    /// Returns when this thread could call the application at once; the interpreter may be stuck in another one.
    fn make_sure(&mut self);

    /// Lets others have the interpreter while `wait` blocks.
    fn unlocked(&mut self, wait: &mut (dyn FnMut() + Send));
}
