"""The kinds of worker by gunicorn's names: there is one engine, and `threads` decides."""

#: What `worker_class` may be, by its short name.
SUPPORTED_WORKERS = {
    "sync": "rgunicorn.workers.sync.SyncWorker",
    "gthread": "rgunicorn.workers.gthread.ThreadWorker",
}
