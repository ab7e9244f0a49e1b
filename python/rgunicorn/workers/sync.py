"""`worker_class = SyncWorker`: one request at a time unless `threads` says otherwise."""

from rgunicorn.workers.base import Worker

__all__ = ["SyncWorker"]


class SyncWorker(Worker):
    """A name for the engine. Requests are handled by it, so a subclass is refused as a `worker_class`."""
