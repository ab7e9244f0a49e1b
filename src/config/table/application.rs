//! Owns: the rows of the table about what is served, and where the settings come from.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};

const APPLICATION: &str = "Application";
pub const CONFIGURATION: &str = "Configuration";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "wsgi_app",
        section: APPLICATION,
        help: "The application, MODULE:NAME, when the command line names none.",
        ..ROW
    },
    Opt {
        name: "paste",
        long: &["paste", "paster"],
        section: APPLICATION,
        help: "Serve the application that a PasteDeploy file describes, FILE.ini or \
               FILE.ini#NAME, in place of MODULE:NAME.",
        ..ROW
    },
    Opt {
        name: "raw_paste_global_conf",
        long: &["paste-global"],
        kind: Kind::Variables,
        section: APPLICATION,
        help: "Give the --paste file a variable, NAME=value, that its [DEFAULT] does not have. \
               \\= is a = in the name or the value. May be repeated.",
        ..ROW
    },
    Opt {
        name: "pythonpath",
        long: &["pythonpath"],
        kind: Kind::CommaList,
        section: APPLICATION,
        help: "Directories to import from before all others, separated by commas.",
        ..ROW
    },
    Opt {
        name: "chdir",
        long: &["chdir"],
        kind: Kind::Folder,
        reloadable: true,
        section: APPLICATION,
        help: "Go to this directory before anything is imported.",
        ..ROW
    },
    Opt {
        name: "raw_env",
        short: Some('e'),
        long: &["env"],
        kind: Kind::Env,
        section: APPLICATION,
        help: "Set NAME=value in the environment of the application. May be repeated.",
        ..ROW
    },
    Opt {
        name: "preload_app",
        long: &["preload"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: true,
        section: APPLICATION,
        help: "Import the application once and fork the workers from there: less memory and a \
               quicker start, but connections and threads that the import opens are not carried \
               over.",
        ..ROW
    },
    Opt {
        name: "warm_up",
        long: &["warm-up"],
        kind: Kind::WarmUps,
        section: APPLICATION,
        help: "Before anybody else is served, have the application answer a GET of this path, or of \
               a URL where host and scheme matter to it. It then has loaded what it loads at its first \
               request; with --preload once for all workers, which share it. One that raises or is \
               answered 5xx is a warning, and fails a reload. May be repeated.",
        ..ROW
    },
    Opt {
        name: "config",
        short: Some('c'),
        long: &["config"],
        kind: Kind::Path,
        reloadable: false,
        section: CONFIGURATION,
        help: "The config file: Python, or TOML when it is named *.toml; python:MODULE imports \
               one. Without it, ./gunicorn.conf.py or ./rgunicorn.toml is read if there is one, or \
               [tool.rgunicorn] in ./pyproject.toml.",
        ..ROW
    },
    Opt {
        name: "check_config",
        long: &["check-config"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: CONFIGURATION,
        help: "Read the configuration, import the application, then exit: 0 if all is well.",
        ..ROW
    },
    Opt {
        name: "print_config",
        long: &["print-config"],
        kind: Kind::Flag { given: true },
        default: "false",
        reloadable: false,
        section: CONFIGURATION,
        help: "Print every setting with its value, then do as --check-config does.",
        ..ROW
    },
];
