//! Owns: the rows of the table about what the processes are and run as.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Env, Kind, Opt, ROW};

const PROCESS: &str = "Process";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "daemon",
        short: Some('D'),
        long: &["daemon"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: PROCESS,
        help: "Detach from the terminal. Leave it out under systemd, a container or a supervisor.",
        ..ROW
    },
    Opt {
        name: "pidfile",
        short: Some('p'),
        long: &["pid"],
        kind: Kind::NewFile,
        reloadable: false,
        section: PROCESS,
        help: "File to keep the process id in, for as long as the server runs.",
        ..ROW
    },
    Opt {
        name: "user",
        short: Some('u'),
        long: &["user"],
        kind: Kind::Account,
        reloadable: false,
        section: PROCESS,
        help: "Run the workers as this user, by name or number; the arbiter stays root.",
        ..ROW
    },
    Opt {
        name: "group",
        short: Some('g'),
        long: &["group"],
        kind: Kind::Account,
        reloadable: false,
        section: PROCESS,
        help: "Run the workers with this group, by name or number; without it, with the one \
               that --user has.",
        ..ROW
    },
    Opt {
        name: "initgroups",
        long: &["initgroups"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: PROCESS,
        help: "Give the workers all groups of --user; otherwise they are in --group only.",
        ..ROW
    },
    Opt {
        name: "proc_name",
        short: Some('n'),
        long: &["name"],
        section: PROCESS,
        help: "The name that ps shows, where the Python package setproctitle is installed; \
               without it, the application's.",
        ..ROW
    },
    Opt {
        name: "default_proc_name",
        section: PROCESS,
        help: "The name that is shown when --name is not given.",
        ..ROW
    },
    Opt {
        name: "umask",
        short: Some('m'),
        long: &["umask"],
        kind: Kind::Mode,
        default: "0",
        reloadable: false,
        section: PROCESS,
        help: "Permission bits taken from unix sockets that are made; 0 leaves them open to all.",
        ..ROW
    },
    Opt {
        name: "worker_tmp_dir",
        long: &["worker-tmp-dir"],
        kind: Kind::Folder,
        section: PROCESS,
        help: "The folder for request bodies that do not fit in memory, as files without a name. Unset: TMPDIR, \
               or /tmp.",
        ..ROW
    },
    Opt {
        name: "tmp_upload_dir",
        kind: Kind::Folder,
        section: PROCESS,
        help: "Accepted, and without effect, as in gunicorn.",
        ..ROW
    },
    Opt {
        name: "sendfile",
        long: &["no-sendfile"],
        env: Some(Env { name: "SENDFILE", prefix: "" }),
        kind: Kind::Flag { given: false },
        default: "true",
        section: PROCESS,
        help: "Copy files into the socket instead of using sendfile(2), which some network file \
               systems do badly.",
        ..ROW
    },
];
