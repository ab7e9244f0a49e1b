"""The files that Python's `logging` writes to, after somebody has moved them.

Every worker runs this file: it imports nothing that is not there already, `logging` least of all.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import Any, Iterator, Optional


def reopen() -> None:
    """Goes on in the files that now have the names of what any logger writes to; where nothing has imported `logging`
    there are none.

    Raises OSError when one could not be opened, once all others have been.
    """
    module: Any = sys.modules.get("logging")
    if module is None:
        return
    done = set()
    failure: Optional[OSError] = None
    for handler in _handlers(module):
        if isinstance(handler, module.FileHandler) and id(handler) not in done:
            done.add(id(handler))
            try:
                _reopen(handler)
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure


def _handlers(module: Any) -> Iterator[Any]:
    """Of the root logger and every other one; a name between two loggers has none."""
    loggers = [module.root] + list(module.root.manager.loggerDict.values())
    for logger in loggers:
        yield from getattr(logger, "handlers", ())


def _reopen(handler: logging.FileHandler) -> None:
    handler.acquire()
    try:
        before = handler.stream
        # Without its old file only once it has a new one.
        if before is not None:
            handler.stream = handler._open()
            before.close()
    finally:
        handler.release()
