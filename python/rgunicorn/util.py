"""What published hooks and applications take from gunicorn's `util`."""

from __future__ import annotations

import email.utils
import fcntl
import importlib
import inspect
import os
import socket
import sys
import time
import urllib.parse
from typing import Any, Callable, Optional, Union

from rgunicorn import _core, hooks
from rgunicorn.workers import SUPPORTED_WORKERS

get_arity = hooks.arity


def import_app(module: str) -> Callable[..., Any]:
    """The application that MODULE:NAME names.

    AppImportError: there is none. Whatever importing the module raises.
    """
    return _core.import_app(module)


def load_class(uri: Any, default: str = SUPPORTED_WORKERS["sync"], section: str = "gunicorn.workers") -> Any:
    """The class that a text names: `module.Name`, a short name of a worker, or `egg:DIST#NAME`; a class is itself."""
    if not isinstance(uri, str):
        return uri
    if uri.startswith("egg:"):
        distribution, _, name = uri[len("egg:") :].partition("#")
        return _entry_point(distribution, name or "sync", section)
    path = SUPPORTED_WORKERS.get(uri, uri or default)
    module, _, name = path.rpartition(".")
    if not module:
        raise RuntimeError("class uri %r is not MODULE.NAME" % uri)
    return getattr(importlib.import_module(module), name)


def _entry_point(distribution: str, name: str, group: str) -> Any:
    if distribution in ("gunicorn", "rgunicorn") and name in SUPPORTED_WORKERS:
        return load_class(name)
    import importlib.metadata

    for point in importlib.metadata.distribution(distribution).entry_points:
        if (point.group, point.name) == (group, name):
            return point.load()
    raise RuntimeError("there is no %r of %r in %s" % (name, distribution, group))


def getcwd() -> str:
    """The working folder, by the name that $PWD has for it if that is the same folder."""
    real, shown = os.getcwd(), os.environ.get("PWD", "")
    try:
        return shown if os.path.samefile(shown, real) else real
    except OSError:
        return real


def http_date(timestamp: Optional[float] = None) -> str:
    """RFC 9110 §5.6.7, IMF-fixdate; `timestamp` in seconds since 1970, or now."""
    return email.utils.formatdate(time.time() if timestamp is None else timestamp, usegmt=True)


def parse_address(netloc: str, default_port: Union[str, int] = "8000") -> Any:
    """An address of `bind` as the socket module has it: (host, port), a path, or the number of a descriptor.

    ValueError: it is none.
    """
    try:
        # The port goes where there is none; elsewhere this is no address.
        return _core.parse_address("%s:%s" % (netloc, default_port)) if _is_host(netloc) else _core.parse_address(netloc)
    except ValueError:
        return _core.parse_address(netloc)


def _is_host(netloc: str) -> bool:
    return not netloc.startswith(("unix:", "fd://"))


def is_ipv6(addr: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, addr)
    except (OSError, ValueError):
        return False
    return True


def to_bytestring(value: Union[str, bytes], encoding: str = "utf8") -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise TypeError("%r is not a string" % (value,))
    return value.encode(encoding)


def bytes_to_str(value: Union[str, bytes]) -> str:
    return value if isinstance(value, str) else value.decode("latin1")


def unquote_to_wsgi_str(string: str) -> str:
    """PEP 3333, "A Note on String Types": percent-decoded octets as latin-1 text."""
    return urllib.parse.unquote_to_bytes(string).decode("latin-1")


def split_request_uri(uri: str) -> urllib.parse.SplitResult:
    """A path that begins with two slashes is a path, not a host."""
    if not uri.startswith("//"):
        return urllib.parse.urlsplit(uri)
    parts = urllib.parse.urlsplit("." + uri)
    return parts._replace(path=parts.path[1:])


def close_on_exec(fd: int) -> None:
    os.set_inheritable(fd, False)


def set_non_blocking(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def close(sock: socket.socket) -> None:
    try:
        sock.close()
    except OSError:
        pass


def unlink(filename: str) -> None:
    """Removes a file, where there is one."""
    try:
        os.unlink(filename)
    except (FileNotFoundError, NotADirectoryError):
        pass


def chown(path: str, uid: int, gid: int) -> None:
    os.chown(path, uid, gid)


def check_is_writable(path: str) -> None:
    """RuntimeError: the file cannot be appended to."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise RuntimeError("Error: '%s' isn't writable [%r]" % (path, error)) from error


def has_fileno(obj: Any) -> bool:
    """Whether it stands for an open descriptor."""
    try:
        return isinstance(obj.fileno(), int)
    except (AttributeError, OSError, ValueError):
        return False


def is_hoppish(header: str) -> bool:
    """RFC 2616 §13.5.1: whether a field is about the connection and not about the message."""
    return header.strip().lower() in _HOP_BY_HOP


_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailers transfer-encoding upgrade server date".split()
)


def warn(message: str) -> None:
    print("\nWARNING: %s\n" % inspect.cleandoc(message), file=sys.stderr, flush=True)
