//! Owns: the rows of the table about what gunicorn serves beside WSGI over HTTP/1.
//! Rule: read and checked as any other, so that a command line and a file mean what they did; then ignored, with a warning.
//! Never: behaviour.

use super::{Kind, Opt, ANY, ROW};

const UNSERVED: &str = "Not for WSGI";

const NO_ASGI: &str = "only WSGI applications are served";
const NO_HTTP2: &str = "HTTP/1.1 is spoken; HTTP/2 is for the proxy in front";
const NO_DIRTY: &str = "there are no dirty workers; use a task queue";

/// A row that is accepted, and named in a warning when it is changed.
const fn unserved(name: &'static str, long: &'static [&'static str], why: &'static str) -> Opt {
    Opt { name, long, section: UNSERVED, help: "Accepted, and without effect.", ignored: Some(why), ..ROW }
}

const fn number(mut opt: Opt, min: i64, max: i64, default: &'static str) -> Opt {
    opt.kind = Kind::Int { min, max };
    opt.default = default;
    opt
}

const fn word(mut opt: Opt, words: &'static [&'static str]) -> Opt {
    opt.kind = Kind::Choice(words);
    opt.default = words[0];
    opt
}

const fn list(mut opt: Opt, kind: Kind, default: &'static str) -> Opt {
    opt.kind = kind;
    opt.default = default;
    opt
}

const fn hook(name: &'static str) -> Opt {
    Opt { kind: Kind::Hook, ..unserved(name, &[], NO_DIRTY) }
}

pub const ROWS: &[Opt] = &[
    word(unserved("asgi_loop", &["asgi-loop"], NO_ASGI), &["auto", "asyncio", "uvloop"]),
    word(unserved("asgi_lifespan", &["asgi-lifespan"], NO_ASGI), &["auto", "on", "off"]),
    number(unserved("asgi_disconnect_grace_period", &["asgi-disconnect-grace-period"], NO_ASGI), 0, ANY, "3"),
    number(
        unserved("websocket_max_message_size", &["websocket-max-message-size"], NO_ASGI),
        0,
        ANY,
        "16777216",
    ),
    list(unserved("http_protocols", &["http-protocols"], NO_HTTP2), Kind::CommaList, "h1"),
    word(
        unserved("http2_cleartext", &["http2-cleartext"], NO_HTTP2),
        &["off", "prior-knowledge", "upgrade", "both"],
    ),
    number(
        unserved("http2_max_concurrent_streams", &["http2-max-concurrent-streams"], NO_HTTP2),
        1,
        ANY,
        "100",
    ),
    number(
        unserved("http2_initial_window_size", &["http2-initial-window-size"], NO_HTTP2),
        1,
        i32::MAX as i64,
        "65535",
    ),
    number(
        unserved("http2_max_frame_size", &["http2-max-frame-size"], NO_HTTP2),
        16_384,
        16_777_215,
        "16384",
    ),
    number(
        unserved("http2_max_header_list_size", &["http2-max-header-list-size"], NO_HTTP2),
        0,
        ANY,
        "65536",
    ),
    list(unserved("dirty_apps", &["dirty-app"], NO_DIRTY), Kind::Texts, ""),
    number(unserved("dirty_workers", &["dirty-workers"], NO_DIRTY), 0, ANY, "0"),
    number(unserved("dirty_timeout", &["dirty-timeout"], NO_DIRTY), 0, ANY, "300"),
    number(unserved("dirty_threads", &["dirty-threads"], NO_DIRTY), 1, ANY, "1"),
    number(unserved("dirty_graceful_timeout", &["dirty-graceful-timeout"], NO_DIRTY), 0, ANY, "30"),
    hook("on_dirty_starting"),
    hook("dirty_post_fork"),
    hook("dirty_worker_init"),
    hook("dirty_worker_exit"),
];
