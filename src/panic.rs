//! Owns: what a panic comes to in a process of the server: its end.
//! Rule: no stack is unwound. A thread that has panicked leaves things in a state that nobody knows, and a process that
//! goes on beside it looks healthy and is not; one that unwinds meets Python, where an application may swallow it. The line
//! about it is written without a lock, as whoever panicked may hold the log's.
//! Never: in a program that only uses the library: there Python hears of it.

use std::panic::PanicHookInfo;

use chrono::Local;

use crate::log;
use crate::sys::{file, process};

/// From now on. `who` is for the log; `before` comes first, and must not wait.
pub fn ends(who: &'static str, before: impl Fn() + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        before();
        let line = line(who, panic);
        let log = log::descriptor().unwrap_or_else(file::stderr);
        // Nobody is left to be told that it cannot be written.
        let _ = file::write_now(log, file::kind(log), line.as_bytes());
        std::process::abort();
    }));
}

fn line(who: &str, panic: &PanicHookInfo<'_>) -> String {
    let time = Local::now().format("%Y-%m-%d %H:%M:%S %z");
    format!("[{time}] [{}] [CRITICAL] The {who} {}\n", process::id(), one_line(&panic.to_string()))
}

/// It may quote what a client has sent.
fn one_line(text: &str) -> String {
    text.replace(":\n", ": ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_it_says_is_one_line() {
        assert_eq!(
            one_line("panicked at src/a.rs:1:2:\nno\n[CRITICAL] \u{1b}"),
            "panicked at src/a.rs:1:2: no\u{fffd}[CRITICAL] \u{fffd}"
        );
    }
}
