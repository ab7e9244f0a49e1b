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
    failure: Optional[OSError] = None
    for handler in file_handlers():
        try:
            _reopen(handler)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def file_handlers() -> Iterator[logging.FileHandler]:
    """Those of the root logger and of every other one that write to files, each once."""
    module: Any = sys.modules.get("logging")
    if module is None:
        return
    done = set()
    # A name between two loggers is in there too, and has no handlers.
    for logger in [module.root] + list(module.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, module.FileHandler) and id(handler) not in done:
                done.add(id(handler))
                yield handler


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
