//! Owns: the rows of the table about processes, threads, time-outs and limits.
//! Rule: a row says all there is to say about a setting; its value is read by `config::Config`.
//! Never: behaviour.

use super::{Env, Kind, Opt, ANY, ROW};

const WORKERS: &str = "Workers";
const TIMEOUTS: &str = "Timeouts";
const LIMITS: &str = "Request limits";

pub const ROWS: &[Opt] = &[
    Opt {
        name: "workers",
        short: Some('w'),
        long: &["workers"],
        env: Some(Env { name: "WEB_CONCURRENCY", prefix: "" }),
        kind: Kind::Int { min: 1, max: 65_535 },
        default: "1",
        section: WORKERS,
        help: "Processes that serve requests. Start with one per core; more only if the \
               application waits a lot and is not thread-safe.",
        ..ROW
    },
    Opt {
        name: "threads",
        long: &["threads"],
        kind: Kind::Int { min: 1, max: 65_535 },
        default: "1",
        section: WORKERS,
        help: "Requests that one worker may have in the application at once. Raise it when the \
               application waits for databases or other services.",
        ..ROW
    },
    Opt {
        name: "worker_class",
        short: Some('k'),
        long: &["worker-class"],
        kind: Kind::Worker,
        default: "sync",
        section: WORKERS,
        help: "sync or gthread, for compatibility: both are the one engine, and --threads decides.",
        ..ROW
    },
    Opt {
        name: "worker_connections",
        long: &["worker-connections"],
        kind: Kind::Int { min: 1, max: 1_000_000 },
        default: "1000",
        section: WORKERS,
        help: "Connections that one worker holds open. At so many, the one that has been idle \
               longest makes room for a new one; none is accepted while all are busy.",
        ..ROW
    },
    Opt {
        name: "max_requests",
        long: &["max-requests"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "0",
        section: WORKERS,
        help: "Replace a worker after this many requests, to bound a leak. 0 = never.",
        ..ROW
    },
    Opt {
        name: "max_requests_jitter",
        long: &["max-requests-jitter"],
        kind: Kind::Int { min: 0, max: u32::MAX as i64 },
        default: "0",
        section: WORKERS,
        help: "Add up to this many, at random, to --max-requests, so that workers are not all \
               replaced together.",
        ..ROW
    },
    Opt {
        name: "timeout",
        short: Some('t'),
        long: &["timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "How long the application may be silent in one request: until its first block, between two \
               blocks, or between two reads of the body. Waiting for the client does not count. Past it, the \
               client is answered 504, the request and every thread's stack are logged, and the worker is \
               replaced. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "boot_timeout",
        long: &["boot-timeout"],
        kind: Kind::Seconds,
        default: "300",
        section: TIMEOUTS,
        help: "How long the new workers of a reload may take until all are ready; then the reload has \
               failed, and the old workers serve on. 0 = no limit. The first start has none.",
        ..ROW
    },
    Opt {
        name: "graceful_timeout",
        long: &["graceful-timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "On stop or reload, how long requests already begun may take to finish; then they are \
               answered 504.",
        ..ROW
    },
    Opt {
        name: "keepalive",
        long: &["keep-alive"],
        kind: Kind::Seconds,
        default: "75",
        section: TIMEOUTS,
        help: "How long an idle connection is kept for its next request. Behind a proxy, make it \
               longer than the proxy's own (Nginx: 60 seconds). 0 = close after each response.",
        ..ROW
    },
    Opt {
        name: "header_timeout",
        long: &["header-timeout"],
        kind: Kind::Seconds,
        default: "10",
        section: TIMEOUTS,
        help: "Total time in which a client must send the head of a request. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "body_timeout",
        long: &["body-timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "Longest pause of a client while it sends a request body, which has to come with 500 bytes a second on \
               average. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "write_timeout",
        long: &["write-timeout"],
        kind: Kind::Seconds,
        default: "30",
        section: TIMEOUTS,
        help: "Longest time in which a client takes nothing of its response. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "queue_timeout",
        long: &["queue-timeout"],
        kind: Kind::Seconds,
        default: "0",
        section: TIMEOUTS,
        help: "How long a complete request may wait for a thread; one that has waited longer is answered 503 with \
               Retry-After, and the application is not called. 0 = no limit.",
        ..ROW
    },
    Opt {
        name: "response_buffer",
        long: &["response-buffer"],
        kind: Kind::Int { min: 0, max: u32::MAX as i64 },
        default: "262144",
        section: WORKERS,
        help: "Bytes of a response that are kept for a client that is slow to take them, so that the application can go \
               on; all connections of a worker together keep 128 times as much. Beyond either, and with 0, the \
               application waits for the client.",
        ..ROW
    },
    Opt {
        name: "limit_request_line",
        long: &["limit-request-line"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "8190",
        section: LIMITS,
        help: "Bytes in the request line. 0 = no limit but that of the whole head.",
        ..ROW
    },
    Opt {
        name: "limit_request_fields",
        long: &["limit-request-fields"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "100",
        section: LIMITS,
        help: "Header fields in one request. 0 = as many as possible, 32768.",
        ..ROW
    },
    Opt {
        name: "limit_request_field_size",
        // gunicorn's own spelling has the underscore; scripts in the field carry it.
        long: &["limit-request-field_size", "limit-request-field-size"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "8190",
        section: LIMITS,
        help: "Bytes in one header field, name and value. 0 = no limit but that of the whole head.",
        ..ROW
    },
    Opt {
        name: "limit_request_head",
        long: &["limit-request-head"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "65536",
        section: LIMITS,
        help: "Bytes in the request line and all header fields together, whatever the other limits allow. A connection \
               whose head has not ended keeps them in memory. 0 = as many as possible, 16 MiB.",
        ..ROW
    },
    Opt {
        name: "limit_request_body",
        long: &["limit-request-body"],
        kind: Kind::Int { min: 0, max: ANY },
        default: "0",
        section: LIMITS,
        help: "Bytes in a request body, without the framing of chunks. A longer one is answered 413. 0 = no \
               limit.",
        ..ROW
    },
    Opt {
        name: "request_buffering",
        long: &["request-buffering"],
        kind: Kind::Choice(&["auto", "on", "off"]),
        default: "auto",
        section: LIMITS,
        help: "on: the application is called when the whole body has come; what does not fit in memory waits \
               in a file (--worker-tmp-dir). auto: the same, but a body of known length from a peer that \
               --forwarded-allow-ips names, or of a unix socket, is streamed to the application once 128 KiB of \
               it have come; * names nobody. off: the application is called at once and reads the body from \
               the client.",
        ..ROW
    },
];
