//! Owns: the language of the control socket: frames, requests, commands, answers. It is gunicorn's, so that gunicornc can
//! speak to this server: a length of four octets, big-endian, then JSON.
//! Rule: pure and bounded. What cannot be understood ends the conversation, for where the next frame begins is not known.
//! Never: reads, writes, carries a command out.

use std::fmt;

use serde::Deserialize;
use serde_json::{json, Map, Value};

/// Octets of one request, its length included.
pub const MOST_OCTETS: usize = 64 * 1024;
const LENGTH: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Show(Topic),
    /// So many workers more.
    Add(usize),
    Remove(usize),
    /// The worker with this pid is to finish and go.
    Kill(i32),
    Reload,
    Reopen,
    Shutdown {
        quick: bool,
    },
    Help,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    All,
    Workers,
    Config,
    Stats,
    Listeners,
}

const TOPICS: [(&str, Topic); 5] = [
    ("all", Topic::All),
    ("workers", Topic::Workers),
    ("config", Topic::Config),
    ("stats", Topic::Stats),
    ("listeners", Topic::Listeners),
];

const HELP: [(&str, &str); 12] = [
    ("show all", "The arbiter and its workers"),
    ("show workers", "Each worker: age, generation, state, requests, what it is running"),
    ("show config", "Every setting with its value; of raw_env the names only"),
    ("show stats", "Uptime and counts"),
    ("show listeners", "The addresses that are served"),
    ("worker add [N]", "N more workers (1), as TTIN"),
    ("worker remove [N]", "N fewer workers (1), as TTOU; the oldest finish and go"),
    ("worker kill PID", "Let this worker finish, and replace it"),
    ("reload", "Read the configuration anew and replace all workers, as HUP"),
    ("reopen", "Reopen the logs, as USR1"),
    ("shutdown [graceful|quick]", "Stop the server, as TERM or INT"),
    ("help", "This list"),
];

pub fn help() -> Value {
    let commands: Map<_, _> = HELP.iter().map(|(name, text)| (name.to_string(), json!(text))).collect();
    json!({ "commands": commands })
}

impl Command {
    /// Whether the server is another one afterwards.
    pub fn changes(self) -> bool {
        !matches!(self, Command::Show(_) | Command::Help)
    }
}

/// As an operator would write it.
impl fmt::Display for Command {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Show(topic) => {
                let name = TOPICS.iter().find(|(_, other)| other == topic).map_or("", |(name, _)| name);
                write!(out, "show {name}")
            }
            Command::Add(count) => write!(out, "worker add {count}"),
            Command::Remove(count) => write!(out, "worker remove {count}"),
            Command::Kill(pid) => write!(out, "worker kill {pid}"),
            Command::Reload => out.write_str("reload"),
            Command::Reopen => out.write_str("reopen"),
            Command::Shutdown { quick: false } => out.write_str("shutdown graceful"),
            Command::Shutdown { quick: true } => out.write_str("shutdown quick"),
            Command::Help => out.write_str("help"),
        }
    }
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    id: Value,
    command: String,
    /// Further words of the command.
    #[serde(default)]
    args: Option<Vec<Value>>,
}

/// What a client asks, to be answered under its id.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub id: Value,
    pub command: Result<Command, String>,
}

/// Takes the first request out of what a client has sent; None when it is not complete yet.
///
/// Errors: what cannot be a request, as a sentence for the client.
pub fn take_request(input: &mut Vec<u8>) -> Result<Option<Request>, String> {
    let Some(length) = input.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let end = LENGTH.saturating_add(u32::from_be_bytes(*length) as usize);
    if end > MOST_OCTETS {
        return Err(format!("a request has at most {MOST_OCTETS} octets"));
    }
    if input.len() < end {
        return Ok(None);
    }
    let read = serde_json::from_slice::<Message>(&input[LENGTH..end]);
    input.drain(..end);
    let message = read.map_err(|e| format!("the request is not understood: {e}"))?;
    let command = command(&message);
    Ok(Some(Request { id: message.id, command }))
}

/// The frame of an answer.
pub fn reply(id: &Value, answer: Result<Value, String>) -> Vec<u8> {
    let message = match answer {
        Ok(data) => json!({ "id": id, "status": "ok", "data": data }),
        Err(error) => json!({ "id": id, "status": "error", "error": error }),
    };
    let text = message.to_string();
    let mut frame = (text.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn command(message: &Message) -> Result<Command, String> {
    let args = message.args.iter().flatten();
    let args = args.map(|arg| arg.as_str().map_or_else(|| arg.to_string(), str::to_string));
    let mut words: Vec<String> = message.command.split_whitespace().map(str::to_string).collect();
    words.extend(args);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    parse(&words)
}

fn parse(words: &[&str]) -> Result<Command, String> {
    match words {
        [] => Err("there is no command (try: help)".to_string()),
        ["dirty", ..] | ["show", "dirty"] => Err("there are no dirty workers".to_string()),
        ["show", topic] => show(topic),
        ["worker", "add"] => Ok(Command::Add(1)),
        ["worker", "add", count] => number(count).map(|count| Command::Add(count as usize)),
        ["worker", "remove"] => Ok(Command::Remove(1)),
        ["worker", "remove", count] => number(count).map(|count| Command::Remove(count as usize)),
        ["worker", "kill", pid] => number(pid).map(Command::Kill),
        ["reload"] => Ok(Command::Reload),
        ["reopen"] => Ok(Command::Reopen),
        ["shutdown"] | ["shutdown", "graceful"] => Ok(Command::Shutdown { quick: false }),
        ["shutdown", "quick"] => Ok(Command::Shutdown { quick: true }),
        ["help"] => Ok(Command::Help),
        _ => Err(format!("'{}' is no command (try: help)", shown(&words.join(" ")))),
    }
}

fn show(word: &str) -> Result<Command, String> {
    let found = TOPICS.iter().find(|(name, _)| *name == word);
    found.map(|(_, topic)| Command::Show(*topic)).ok_or_else(|| {
        format!("'{}' is not one of: all, workers, config, stats, listeners (show)", shown(word))
    })
}

fn number(word: &str) -> Result<i32, String> {
    let number = word.parse::<i32>().ok().filter(|number| *number >= 1);
    number.ok_or_else(|| format!("'{}' is not a whole number ≥ 1", shown(word)))
}

/// What a client has sent, cut to what a sentence can hold.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
    }

    fn parsed(line: &str) -> Result<Command, String> {
        parse(&line.split_whitespace().collect::<Vec<_>>())
    }

    #[test]
    fn commands() {
        assert_eq!(parsed("show workers"), Ok(Command::Show(Topic::Workers)));
        assert_eq!(parsed(" worker  add 3 "), Ok(Command::Add(3)));
        assert_eq!(parsed("worker remove"), Ok(Command::Remove(1)));
        assert_eq!(parsed("shutdown quick"), Ok(Command::Shutdown { quick: true }));
        for wrong in [
            "",
            "show",
            "worker add 0",
            "worker add -1",
            "worker kill x",
            "worker kill 99999999999",
            "reload now",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parsed("dirty add 1"), Err("there are no dirty workers".to_string()));
        assert_eq!(parsed("show dirty"), Err("there are no dirty workers".to_string()));
    }

    #[test]
    fn every_command_of_the_help_is_one_and_is_shown_as_such() {
        for (name, _) in HELP {
            let line = name.split(" [").next().unwrap().replace("PID", "7");
            let command = parsed(&line).unwrap();
            assert!(command.to_string().starts_with(&line), "{line}: {command}");
            assert_eq!(parsed(&command.to_string()), Ok(command));
        }
    }

    #[test]
    fn requests_come_in_pieces_and_several_at_once() {
        let first = framed(r#"{"id": 7, "command": "worker kill", "args": [12]}"#);
        for end in 0..first.len() {
            let mut part = first[..end].to_vec();
            assert_eq!(take_request(&mut part), Ok(None));
            assert_eq!(part.len(), end);
        }
        let mut both = [first, framed(r#"{"command": "show", "args": ["stats"]}"#)].concat();
        let next = take_request(&mut both).unwrap().unwrap();
        assert_eq!(next, Request { id: json!(7), command: Ok(Command::Kill(12)) });
        let next = take_request(&mut both).unwrap().unwrap();
        assert_eq!(next, Request { id: Value::Null, command: Ok(Command::Show(Topic::Stats)) });
        assert!(both.is_empty());
    }

    #[test]
    fn what_is_no_request() {
        for text in [
            "",
            "[]",
            "{}",
            "{\"command\": 5}",
            "{\"command\": \"help\", \"args\": 5}",
            "{\"command\": \"\u{1}",
        ] {
            assert!(take_request(&mut framed(text)).is_err(), "{text}");
        }
        assert!(take_request(&mut framed(&"[".repeat(60_000))).is_err(), "deep");
        let longest = (MOST_OCTETS - LENGTH) as u32;
        assert_eq!(take_request(&mut longest.to_be_bytes().to_vec()), Ok(None));
        assert!(take_request(&mut (longest + 1).to_be_bytes().to_vec()).is_err());
        assert!(take_request(&mut vec![0xff; 4]).is_err());
    }

    #[test]
    fn answers_carry_the_id() {
        let frame = reply(&json!("a"), Err("no".to_string()));
        assert_eq!(frame[..4], (frame.len() as u32 - 4).to_be_bytes());
        let answer: Value = serde_json::from_slice(&frame[4..]).unwrap();
        assert_eq!(answer, json!({ "id": "a", "status": "error", "error": "no" }));
        let answer: Value = serde_json::from_slice(&reply(&json!(1), Ok(json!({})))[4..]).unwrap();
        assert_eq!(answer, json!({ "id": 1, "status": "ok", "data": {} }));
    }
}
