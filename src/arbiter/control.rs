//! Owns: what the commands of the control socket do, and what they tell of the arbiter and its workers.
//! Rule: a command does what the signal for it does. The socket is a convenience: where it cannot be made, the log says so
//! and the server serves.
//! Never: waits for a client; tells the values of `raw_env`.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use pyo3::prelude::*;
use serde_json::{json, Map, Value as Json};

use super::children::{Child, Stage};
use super::operators::{Asked, Operators};
use super::setup::folder;
use super::stop::Manner;
use super::{Arbiter, Flow};
use crate::config::{Config, Value};
use crate::control::{help, Command, Topic};
use crate::listener::{Listener, Local};
use crate::scoreboard::{InFlight, Phase};
use crate::sys::clock::{self, Nanos};
use crate::sys::poll::Interest;
use crate::sys::process;

/// Commands in one turn, between which workers are looked after.
const MOST_COMMANDS: usize = 16;
/// Requests that are told of each worker: an answer is bounded too.
const MOST_RUNNING: usize = 16;

/// The socket, where one is wanted, and what is counted for it.
pub(super) struct Control {
    operators: Option<Operators>,
    born: Nanos,
    killed: u64,
    reloads: u64,
    /// Of workers that have ended.
    requests: u64,
}

impl Control {
    pub fn new() -> Control {
        Control { operators: None, born: clock::monotonic(), killed: 0, reloads: 0, requests: 0 }
    }

    pub fn waits(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        self.operators.iter().flat_map(Operators::waits)
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.operators.as_ref().and_then(Operators::deadline)
    }

    pub fn close(&mut self) {
        if let Some(operators) = self.operators.take() {
            operators.remove();
        }
    }

    pub fn count_killed(&mut self) {
        self.killed += 1;
    }

    pub fn count_reload(&mut self) {
        self.reloads += 1;
    }

    pub fn count_ended(&mut self, child: &Child) {
        self.requests = self.requests.saturating_add(child.slot.requests());
    }
}

impl Arbiter {
    /// Makes the control socket what the configuration wants. While there is a server that this one is to replace, the
    /// socket is that one's.
    pub(super) fn open_control(&mut self) {
        let wanted = self.control_path().filter(|_| !self.beside.is_old());
        let mode = self.current.config.control_socket_mode;
        let is_there =
            |operators: &Operators| wanted.as_ref().is_some_and(|path| operators.is_at(path, mode));
        if self.control.operators.as_ref().is_some_and(is_there) {
            return;
        }
        self.control.close();
        let Some(path) = wanted else {
            return;
        };
        let shown = path.display();
        match Operators::listen(&path, mode) {
            Ok(operators) => {
                log::info!("Control socket listening at {shown}");
                self.control.operators = Some(operators);
            }
            Err(e) => {
                let why = crate::error::reason(&e);
                log::warn!("There is no control socket: {shown}: {why} (--control-socket)");
            }
        }
    }

    fn control_path(&self) -> Option<PathBuf> {
        let config = &self.current.config;
        let path = config.control_socket.as_ref()?;
        Some(folder(config, &self.start_folder).join(path))
    }

    /// Hears operators and does what they want.
    pub(super) fn serve_control(&mut self, py: Python<'_>, now: Nanos) -> Flow {
        if let Some(operators) = &mut self.control.operators {
            operators.hear(now);
        }
        for _ in 0..MOST_COMMANDS {
            let Some(asked) = self.control.operators.as_mut().and_then(Operators::next) else {
                if let Some(operators) = &mut self.control.operators {
                    operators.dismiss(now);
                }
                return ControlFlow::Continue(());
            };
            self.serve_operator(py, &asked, now)?;
        }
        // There may be more.
        self.hurry = true;
        ControlFlow::Continue(())
    }

    fn serve_operator(&mut self, py: Python<'_>, asked: &Asked, now: Nanos) -> Flow {
        let command = asked.request.command.clone();
        if let Some(command) = command.as_ref().ok().filter(|command| command.changes()) {
            log::info!("Control socket: {command} (user {})", asked.user);
        }
        let answer = command.clone().and_then(|command| self.execute(py, command, now));
        if let Some(operators) = &mut self.control.operators {
            operators.answer(asked, answer, now);
        }
        // Not before the answer is out.
        match command {
            Ok(Command::Shutdown { quick: true }) => ControlFlow::Break(self.stop(py, Manner::Quick)),
            Ok(Command::Shutdown { quick: false }) if !self.puts_off_stop(now) => {
                ControlFlow::Break(self.stop(py, Manner::Graceful))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn execute(&mut self, py: Python<'_>, command: Command, now: Nanos) -> Result<Json, String> {
        match command {
            Command::Show(topic) => Ok(self.show(topic, now)),
            Command::Add(count) => self.add_workers(py, count),
            Command::Remove(count) => self.remove_workers(py, count),
            Command::Kill(pid) => self.let_go(pid),
            Command::Reload => {
                self.start_reload(py);
                Ok(json!({ "status": "reloading" }))
            }
            Command::Reopen => {
                self.reopen_logs(py);
                Ok(json!({ "status": "reopening" }))
            }
            Command::Shutdown { quick } => {
                Ok(json!({ "status": "shutting_down", "mode": if quick { "quick" } else { "graceful" } }))
            }
            Command::Help => Ok(help()),
        }
    }

    fn add_workers(&mut self, py: Python<'_>, count: usize) -> Result<Json, String> {
        let (before, most) = (self.wanted, self.most_workers());
        let wanted = before.saturating_add(count);
        if wanted > most {
            return Err(format!("{most} workers are the most that this server was started for"));
        }
        self.resize(py, wanted);
        Ok(json!({ "added": count, "previous": before, "total": wanted }))
    }

    fn remove_workers(&mut self, py: Python<'_>, count: usize) -> Result<Json, String> {
        let before = self.wanted;
        // None are left after WINCH, and then none are to come back by this.
        let wanted = before.saturating_sub(count).max(before.min(1));
        self.resize(py, wanted);
        Ok(json!({ "removed": before - wanted, "previous": before, "total": wanted }))
    }

    fn let_go(&mut self, pid: i32) -> Result<Json, String> {
        let stage = self.children.iter().find(|child| child.pid == pid).map(|child| child.stage);
        match stage {
            None => Err(format!("{pid} is not a worker of this server")),
            Some(Stage::Draining { .. } | Stage::Killed) => Err(format!("worker {pid} is leaving already")),
            Some(Stage::Booting | Stage::Ready | Stage::Retiring) => {
                self.drain(pid);
                Ok(json!({ "success": true, "killed": pid }))
            }
        }
    }

    // ---- what is shown

    fn show(&self, topic: Topic, now: Nanos) -> Json {
        match topic {
            Topic::All => self.show_all(now),
            Topic::Workers => {
                json!({ "count": self.children.iter().count(), "workers": self.show_workers(now) })
            }
            Topic::Config => show_config(&self.current.config),
            Topic::Stats => self.show_stats(now),
            Topic::Listeners => self.show_listeners(),
        }
    }

    /// With the names that gunicornc looks for.
    fn show_all(&self, now: Nanos) -> Json {
        json!({
            "arbiter": { "pid": process::id(), "type": "arbiter", "role": "master" },
            "web_workers": self.show_workers(now),
            "web_worker_count": self.children.iter().count(),
            "dirty_arbiter": null,
            "dirty_workers": [],
            "dirty_worker_count": 0,
        })
    }

    fn show_workers(&self, now: Nanos) -> Vec<Json> {
        let mut children: Vec<&Child> = self.children.iter().collect();
        children.sort_by_key(|child| child.age);
        children.into_iter().map(|child| show_worker(child, now)).collect()
    }

    fn show_stats(&self, now: Nanos) -> Json {
        // What workers say of themselves may be anything.
        let sum = |of: fn(&Child) -> u64| self.children.iter().map(of).fold(0, u64::saturating_add);
        json!({
            "pid": process::id(),
            "uptime": seconds(self.control.born, now),
            "workers_current": self.children.iter().count(),
            "workers_ready": self.children.ready(self.current.number),
            "workers_target": self.wanted,
            "workers_spawned": self.next_age - 1,
            "workers_killed": self.control.killed,
            "reloads": self.control.reloads,
            "reloading": self.reload.is_some(),
            "generation": self.current.number,
            "requests": self.control.requests.saturating_add(sum(|child| child.slot.requests())),
            "connections": sum(|child| child.slot.connections()),
            "busy_threads": sum(|child| child.slot.in_flight().len() as u64),
            "dirty_arbiter_pid": null,
        })
    }

    fn show_listeners(&self) -> Json {
        let secure = self.current.tls.is_some();
        let listeners: Vec<_> =
            self.current.listeners.iter().map(|listener| show_listener(listener, secure)).collect();
        json!({ "count": listeners.len(), "listeners": listeners })
    }
}

fn seconds(since: Nanos, now: Nanos) -> f64 {
    (now.saturating_sub(since) / 1_000_000) as f64 / 1000.0
}

fn show_listener(listener: &Listener, secure: bool) -> Json {
    let kind = match listener.local() {
        Local::Tcp(address) if address.is_ipv6() => "tcp6",
        Local::Tcp(_) => "tcp",
        Local::Unix(_) => "unix",
    };
    json!({ "address": listener.local().url(secure), "type": kind, "fd": listener.as_fd().as_raw_fd() })
}

fn show_worker(child: &Child, now: Nanos) -> Json {
    let in_flight = child.slot.in_flight();
    let running = |request: &InFlight| {
        let (method, path) = (&request.method, &request.target);
        json!({ "method": method, "path": path, "seconds": seconds(request.since, now) })
    };
    json!({
        "pid": child.pid,
        "type": "web",
        "age": child.age,
        "generation": child.generation,
        "state": state(child),
        "uptime": seconds(child.born, now),
        "requests": child.slot.requests(),
        "connections": child.slot.connections(),
        "busy_threads": in_flight.len(),
        "running": in_flight.iter().take(MOST_RUNNING).map(running).collect::<Vec<_>>(),
        "booted": child.has_been_ready(),
        // Workers have no heartbeat; gunicornc shows n/a.
        "last_heartbeat": null,
    })
}

fn state(child: &Child) -> &'static str {
    match (child.stage, child.slot.phase()) {
        (Stage::Killed, _) => "killed",
        (Stage::Draining { .. }, _) | (_, Phase::Draining) => "draining",
        (Stage::Retiring, _) => "retiring",
        (Stage::Ready, _) => "ready",
        (Stage::Booting, _) => "booting",
    }
}

fn show_config(config: &Config) -> Json {
    Json::Object(
        config.settings().map(|(name, value)| (name.to_string(), show_setting(name, value))).collect(),
    )
}

fn show_setting(name: &str, value: &Value) -> Json {
    match value {
        // Applications are given their passwords there.
        Value::Pairs(pairs) if name == "raw_env" => {
            json!(pairs.iter().map(|(name, _)| format!("{name}=***")).collect::<Vec<_>>())
        }
        Value::Pairs(pairs) => Json::Object(
            pairs.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>(),
        ),
        Value::Unset => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Seconds(value) => json!(value.as_secs_f64()),
        Value::Texts(values) => json!(values),
        Value::Addresses(all) => json!(all.iter().map(ToString::to_string).collect::<Vec<_>>()),
        other => json!(other.to_string()),
    }
}
