"""A pre-fork WSGI server that takes gunicorn's place. The server itself is the compiled module `_core`."""

from rgunicorn._core import __version__

__all__ = ["__version__"]
