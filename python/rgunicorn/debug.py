"""Aids for whoever writes the application: every line that runs (`--spew`), and a page that says why nothing does."""

from __future__ import annotations

import html
import linecache
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Dict, Iterable, List, Optional

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>%(title)s</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:2em}pre{background:#f4f4f4;padding:1em;overflow:auto}</style>
</head>
<body>
<h1>%(title)s</h1>
<pre>%(text)s</pre>
<p>The next save starts it again. This page is shown because the server runs with <code>--reload</code>.</p>
</body>
</html>
"""


class Spew:
    """A trace function (`sys.settrace`) that prints each line before it runs."""

    def __init__(self, trace_names: Optional[Iterable[str]] = None) -> None:
        self.trace_names = None if trace_names is None else frozenset(trace_names)

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Optional[Spew]:
        if event == "line":
            name = frame.f_globals.get("__name__") or "[unknown]"
            if self.trace_names is None or name in self.trace_names:
                path = frame.f_code.co_filename
                line = linecache.getline(path, frame.f_lineno, frame.f_globals).rstrip()
                print("%s:%d: %s" % (name, frame.f_lineno, line))
        return self


def spew(trace_names: Optional[Iterable[str]] = None) -> None:
    """From here on each line that this thread, or one that it starts, runs is printed; of these modules only, if given."""
    trace = Spew(trace_names)
    threading.settrace(trace)
    sys.settrace(trace)


def unspew() -> None:
    """Ends it in this thread, and for threads that are started later."""
    threading.settrace(None)  # type: ignore[arg-type]
    sys.settrace(None)


def failure(text: str) -> Callable[[Dict[str, Any], Callable[..., Any]], List[bytes]]:
    """An application that answers every request with 500 and this traceback."""
    values = {"title": "The application cannot be loaded", "text": html.escape(text)}
    body = (_PAGE % values).encode("utf-8", "replace")

    def application(environ: Dict[str, Any], start_response: Callable[..., Any]) -> List[bytes]:
        fields = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
        ]
        start_response("500 Internal Server Error", fields)
        return [body]

    return application
