"""gunicorn's two loggers while Rust writes the logs: they lead there too, and whoever changes them is noticed.

Every arbiter runs this file: it imports nothing that is not there already, `logging` least of all.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List

    Write = Callable[[int, str], None]

NAMES = ("gunicorn.error", "gunicorn.access")

#: Handlers and filters of theirs that a logger of the server's has been made with.
_known: List[Any] = []


def _parts() -> List[Any]:
    logging = sys.modules.get("logging")
    manager = getattr(getattr(logging, "root", None), "manager", None)
    found: List[Any] = []
    for name in NAMES:
        logger = getattr(manager, "loggerDict", {}).get(name)
        parts = list(getattr(logger, "handlers", ())) + list(getattr(logger, "filters", ()))
        found += [part for part in parts if not getattr(part, "_rgunicorn", False)]
    return found


def touched() -> bool:
    """Whether somebody has given them handlers or filters, who expects the server's lines to pass there."""
    return any(all(part is not known for known in _known) for part in _parts())


def know() -> None:
    """What they have now is no news."""
    _known[:] = _parts()


def bridge(write: Write, level: int) -> None:
    """Makes `gunicorn.error` lead to `write`, as soon as somebody imports `logging`."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Finder)]:
        sys.meta_path.remove(finder)
    logging = sys.modules.get("logging")
    if logging is None:
        sys.meta_path.insert(0, _Finder(write, level))
    else:
        _lead(logging, write, level)


class _Finder:
    """Finds `logging` once, in everybody's place."""

    def __init__(self, write: Write, level: int) -> None:
        self.write = write
        self.level = level

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "logging":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        loader: Any = getattr(spec, "loader", None)
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _lead(module, self.write, self.level)

            loader.exec_module = exec_module
        return spec


def _lead(logging: Any, write: Write, level: int) -> None:
    logger = logging.getLogger(NAMES[0])
    logger.setLevel(level)
    logger.propagate = False
    # What a logger in Python had before a reload.
    for handler in [handler for handler in logger.handlers if getattr(handler, "_gunicorn", False)]:
        logger.removeHandler(handler)
    if any(getattr(handler, "_rgunicorn", False) for handler in logger.handlers):
        return

    class Handler(logging.Handler):  # type: ignore[misc]
        _rgunicorn = True

        def emit(self, record: Any) -> None:
            try:
                text = self.format(record)
            except Exception:
                self.handleError(record)
                return
            write(record.levelno, text)

    logger.addHandler(Handler())
