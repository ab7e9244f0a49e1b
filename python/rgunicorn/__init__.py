"""A pre-fork WSGI server that takes gunicorn's place. The server itself is the compiled module `_core`."""

from rgunicorn._core import __version__

#: The name in the Server field of every response, and the environ's SERVER_SOFTWARE. Workers read them when they start.
SERVER = "rgunicorn"
SERVER_SOFTWARE = "rgunicorn/" + __version__

version_info = tuple(int(part) for part in __version__.split("-")[0].split("."))

__all__ = ["SERVER", "SERVER_SOFTWARE", "__version__", "version_info"]
