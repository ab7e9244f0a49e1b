"""What server hooks are given. The server makes these objects; import them for annotations only."""

from __future__ import annotations

import os
import signal
import sys

# Every arbiter runs this file, hooks or not: it imports nothing that is not there already.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Callable, Dict, List, Optional, Tuple, Union

    Headers = List[Tuple[str, str]]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "critical": 50}


class Log:
    """The error log, with the methods of `logging.Logger` that hooks use, and gunicorn's `extra` for metrics."""

    def __init__(self, write: Callable[[int, str, bool], None], measure: Callable[[str, str, str], None]) -> None:
        self._write = write
        self._measure = measure

    def debug(self, message: Any, *args: Any, **options: Any) -> None:
        self.log(10, message, *args, **options)

    def info(self, message: Any, *args: Any, **options: Any) -> None:
        self.log(20, message, *args, **options)

    def warning(self, message: Any, *args: Any, **options: Any) -> None:
        self.log(30, message, *args, **options)

    warn = warning

    def error(self, message: Any, *args: Any, **options: Any) -> None:
        self.log(40, message, *args, **options)

    def critical(self, message: Any, *args: Any, **options: Any) -> None:
        self.log(50, message, *args, **options)

    def exception(self, message: Any, *args: Any, **options: Any) -> None:
        options.setdefault("exc_info", True)
        self._line(40, message, args, options, True)

    def log(self, level: Union[int, str], message: Any, *args: Any, **options: Any) -> None:
        number = LEVELS.get(level.lower(), 20) if isinstance(level, str) else level
        self._line(number, message, args, options, False)

    def _line(self, level: int, message: Any, args: Any, options: Dict[str, Any], exception: bool) -> None:
        extra = options.get("extra")
        if isinstance(extra, dict) and extra.get("metric") and extra.get("value") is not None:
            self._measure(str(extra["metric"]), str(extra["value"]), str(extra.get("mtype")))
            # A line without a word is there for its metric.
            if not message:
                return
        text = _formatted(message, args)
        error = options.get("exc_info")
        if error:
            text += "\n" + _traceback(error)
        self._write(level, text.rstrip("\n"), exception)


def _formatted(message: Any, args: Tuple[Any, ...]) -> str:
    if not args:
        return str(message)
    values: Any = args[0] if len(args) == 1 and isinstance(args[0], dict) and args[0] else args
    try:
        return str(message) % values
    except Exception:
        # A slip in a log line is not worth more than its beauty.
        return "%s %r" % (message, args)


def _traceback(error: Any) -> str:
    if isinstance(error, BaseException):
        error = (type(error), error, error.__traceback__)
    elif not isinstance(error, tuple):
        error = sys.exc_info()
    import traceback

    return "".join(traceback.format_exception(*error))


class Config:
    """Every setting by its name in a configuration file; None for those of gunicorn's that are not there yet."""

    def __init__(self, settings: Dict[str, Any]) -> None:
        self.__dict__.update(settings)
        try:
            # Numbers, as in gunicorn, whose own Logger calls os.chown with them.
            self.__dict__.update(user=self.uid, group=self.gid)
        except KeyError:
            # There is no such account, which is told in better words when workers are about to become it.
            pass

    def __getattr__(self, name: str) -> Any:
        raise AttributeError("No configuration setting for: %s" % name)

    @property
    def env(self) -> Dict[str, str]:
        """`raw_env` as a dictionary."""
        return dict(pair.split("=", 1) for pair in self.raw_env)

    @property
    def paste_global_conf(self) -> Optional[Dict[str, str]]:
        """`raw_paste_global_conf` as a dictionary; None if nothing is in it."""
        import re

        split = (re.split(r"(?<!\\)=", text, maxsplit=1) for text in self.raw_paste_global_conf)
        return {name.replace("\\=", "="): value.replace("\\=", "=") for name, value in split} or None

    @property
    def is_ssl(self) -> bool:
        return bool(self.certfile or self.keyfile)

    @property
    def uid(self) -> int:
        """Of `user`, or of this process."""
        return _number(self.user, "pwd", "getpwnam", 2, os.geteuid)

    @property
    def gid(self) -> int:
        """Of `group`, or of this process."""
        return _number(self.group, "grp", "getgrnam", 2, os.getegid)


def _number(name: Optional[str], module: str, function: str, field: int, own: Callable[[], int]) -> int:
    if name is None:
        return own()
    if str(name).isdigit():
        return int(name)
    import importlib

    entry: int = getattr(importlib.import_module(module), function)(name)[field]
    return entry


class Listener:
    """A listening socket."""

    def __init__(self, fd: int, name: str, cfg_addr: Any) -> None:
        self._fd = fd
        self._name = name
        self._socket: Optional[socket.socket] = None
        self.cfg_addr = cfg_addr

    def fileno(self) -> int:
        return self._fd

    @property
    def sock(self) -> socket.socket:
        import socket

        if self._socket is None:
            self._socket = socket.socket(fileno=os.dup(self._fd))
        return self._socket

    def getsockname(self) -> Any:
        return self.sock.getsockname()

    def __str__(self) -> str:
        return self._name


class Server:
    """The arbiter; in a worker, what was known of it at the fork."""

    def __init__(self, log: Any, app: Any = None) -> None:
        #: The application object of whoever started the server by one.
        self.app = app
        self.pid = os.getpid()
        self.master_pid = 0
        self.reexec_pid = 0
        self.log = log
        self.cfg: Any = None
        self.num_workers = 0
        self.worker_age = 0
        self.WORKERS: Dict[int, Worker] = {}
        self.LISTENERS: List[Listener] = []

    @property
    def address(self) -> List[Any]:
        return self.cfg.address

    @property
    def proc_name(self) -> str:
        return self.cfg.proc_name + (".2" if self.master_pid else "")

    @property
    def timeout(self) -> float:
        return self.cfg.timeout


class App:
    """The application, once it is loaded."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.callable: Optional[Callable[..., Any]] = None

    def wsgi(self) -> Optional[Callable[..., Any]]:
        return self.callable


class Worker:
    """A worker, in the arbiter or in its own process."""

    def __init__(
        self, server: Server, age: int, max_requests: int, served: Callable[[], int], drains: Callable[[], bool]
    ) -> None:
        self.pid: Union[int, str] = "[booting]"
        self.age = age
        self.ppid = server.pid
        self.cfg = server.cfg
        self.log = server.log
        self.sockets = list(server.LISTENERS)
        self.app = server.app or App(server.cfg)
        self.wsgi: Optional[Callable[..., Any]] = None
        # gunicorn gives its workers half of it.
        self.timeout = server.cfg.timeout / 2
        self.max_requests = max_requests or sys.maxsize
        self.booted = False
        self.aborted = False
        self._served = served
        self._drains = drains
        self._gone = False

    @property
    def nr(self) -> int:
        """How many requests it has been given."""
        return self._served()

    @property
    def alive(self) -> bool:
        """Whether it serves; set to False, it finishes what it has and is replaced."""
        return not (self._gone or self._drains())

    @alive.setter
    def alive(self, value: bool) -> None:
        if not value and self.pid == os.getpid() and self.alive:
            os.kill(os.getpid(), signal.SIGTERM)

    def __str__(self) -> str:
        return "<Worker %s>" % self.pid

    def _loaded(self, application: Callable[..., Any]) -> None:
        self.wsgi = self.app.callable = application


class Request:
    """A request, before the application has it."""

    fragment = ""

    def __init__(
        self,
        method: str,
        uri: str,
        path: str,
        query: str,
        version: Tuple[int, int],
        headers: Headers,
        peer: Any,
        client: Any,
        proxy_protocol_info: Optional[Dict[str, Any]],
        scheme: str,
        body: Any,
    ) -> None:
        self.method = method
        self.uri = uri
        self.path = path
        self.query = query
        self.version = version
        self.headers = headers
        self.trailers: Headers = []
        self.peer_addr = peer
        # Another than the peer where a PROXY header has named it.
        self.remote_addr = client
        self.proxy_protocol_info = proxy_protocol_info
        self.scheme = scheme
        self.body = body


class Response:
    """What the client was answered."""

    def __init__(self, head: str, status_code: int, length: Optional[int], sent: int, chunked: bool) -> None:
        lines = head.partition("\r\n\r\n")[0].rstrip("\r\n").split("\r\n")
        self.status: Optional[str] = lines[0].partition(" ")[2] or str(status_code or "") or None
        self.status_code: Optional[int] = status_code or None
        self.headers_sent = bool(status_code)
        # The first two are the server's own: Server and Date.
        self.headers: Headers = [_field(line) for line in lines[3:]]
        self.response_length = length
        self.sent = sent
        self.chunked = chunked
        if length is not None:
            self.headers.append(("Content-Length", str(length)))

    def is_chunked(self) -> bool:
        return self.chunked


def _field(line: str) -> Tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def arity(function: Callable[..., Any]) -> int:
    """The arguments of a function as gunicorn counts them: those that can be given by position and by name."""
    import inspect

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return sum(parameter.kind == kind for parameter in inspect.signature(function).parameters.values())
