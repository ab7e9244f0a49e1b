//! Owns: the rows of the table about the control socket.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Kind, Opt, ROW};

const CONTROL: &str = "Control socket";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "control_socket",
        long: &["control-socket"],
        kind: Kind::Path,
        section: CONTROL,
        help: "Unix socket on which rgunicornc shows and steers the server, from the working folder if it does not \
               begin with a slash; without it there is none.",
        ..ROW
    },
    Opt {
        name: "control_socket_mode",
        long: &["control-socket-mode"],
        kind: Kind::Mode,
        default: "0600",
        section: CONTROL,
        help: "Permissions of the control socket's file; whatever they are, only root and the user of the arbiter \
               are obeyed.",
        ..ROW
    },
    Opt {
        name: "control_socket_disable",
        long: &["no-control-socket"],
        kind: Kind::Flag { given: true },
        default: "false",
        section: CONTROL,
        help: "Make no control socket, whatever --control-socket says.",
        ..ROW
    },
];
