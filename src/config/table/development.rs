//! Owns: the rows of the table for whoever writes the application: reloading on change, tracing.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};

const DEVELOPMENT: &str = "Development";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "reload",
        long: &["reload"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: DEVELOPMENT,
        help: "Replace the workers when a file changes that they have imported, and answer with \
               the traceback while the application cannot be loaded. For development only.",
        ..ROW
    },
    Opt {
        name: "reload_engine",
        long: &["reload-engine"],
        kind: Kind::Choice(&["auto", "poll", "inotify"]),
        default: "auto",
        section: DEVELOPMENT,
        help: "How --reload learns of changes: inotify, told by the kernel; poll, by looking \
               again and again; auto, by inotify where that works.",
        ..ROW
    },
    Opt {
        name: "reload_extra_files",
        long: &["reload-extra-file"],
        kind: Kind::Texts,
        section: DEVELOPMENT,
        help: "A file that --reload watches too, or a pattern such as 'templates/**/*.html', which \
               files may come to match later. May be repeated.",
        ..ROW
    },
    Opt {
        name: "spew",
        long: &["spew"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: DEVELOPMENT,
        help: "Print every line of Python that the workers run. Slow, and for debugging only.",
        ..ROW
    },
];
