"""`worker_class = ThreadWorker`: as many requests at once as `threads` says."""

from rgunicorn.workers.base import Worker

__all__ = ["ThreadWorker"]


class ThreadWorker(Worker):
    """A name for the engine. Requests are handled by it, so a subclass is refused as a `worker_class`."""
