//! Owns: the rows of the table about functions of the operator's.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};

const HOOKS: &str = "Hooks";

/// A row for a function of the operator's, which has no flag.
const fn hook(name: &'static str, help: &'static str) -> Opt {
    Opt { name, kind: Kind::Hook, section: HOOKS, help, ..ROW }
}

pub const ROWS: &[Opt] = &[
    hook("on_starting", "Called as on_starting(server) in the arbiter, before it listens."),
    hook("on_reload", "Called as on_reload(server) in the arbiter on a reload, before new workers start."),
    hook("when_ready", "Called as when_ready(server) in the arbiter once it listens, before the first fork."),
    hook("pre_fork", "Called as pre_fork(server, worker) in the arbiter before each worker is forked."),
    hook("post_fork", "Called as post_fork(server, worker) in the new worker, before the application is loaded."),
    hook("post_worker_init", "Called as post_worker_init(worker) in the worker once the application is loaded."),
    hook("worker_int", "Called as worker_int(worker) in a worker that INT or QUIT ends."),
    hook("worker_abort", "Called as worker_abort(worker) in a worker on ABRT, also when --timeout breaks off a request."),
    hook("pre_exec", "In the process that is about to become the new server (USR2): pre_exec(server)."),
    hook("pre_request", "Called as pre_request(worker, req) in the worker before each request."),
    hook("post_request", "Called as post_request(worker, req, environ, resp) in the worker after each request; the last two may be left out."),
    hook("child_exit", "Called as child_exit(server, worker) in the arbiter when a worker has ended."),
    hook("worker_exit", "Called as worker_exit(server, worker) in a worker on its way out."),
    hook("nworkers_changed", "Called as nworkers_changed(server, new, old) in the arbiter when the number of workers wanted is set; old is None at the start."),
    hook("on_exit", "Called as on_exit(server) in the arbiter, last of all."),
    hook("ssl_context", "Called as ssl_context(config, default_factory) in the arbiter when the certificate is read; it changes what default_factory() gives and returns that."),
];
