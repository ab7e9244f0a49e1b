"""The `worker` that hooks are given."""

from rgunicorn.hooks import Worker

__all__ = ["Worker"]
