"""A logger in Python, with gunicorn's contract: for `logconfig`, `logconfig_dict`, `logconfig_json` and `logger_class`.

Without one of these settings the server writes its logs itself and nothing here is imported.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import fcntl
import json
import logging
import logging.config
import logging.handlers
import os
import re
import socket
import sys
import threading
import time
import traceback
from typing import Any, Dict, Iterable, Iterator, List, Optional, TextIO, Tuple, Type, Union

from rgunicorn._files import file_handlers, reopen

SYSLOG_FACILITIES: Dict[str, int] = dict(logging.handlers.SysLogHandler.facility_names)

# What a configuration is laid over, key by key of the top level: one that has `handlers` has all the handlers it needs.
CONFIG_DEFAULTS: Dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {
            "level": "INFO",
            "handlers": ["error_console"],
            "propagate": True,
            "qualname": "gunicorn.error",
        },
        "gunicorn.access": {
            "level": "INFO",
            "handlers": ["console"],
            "propagate": True,
            "qualname": "gunicorn.access",
        },
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stdout"},
        "error_console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stderr"},
    },
    "formatters": {
        "generic": {
            "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
            "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
            "class": "logging.Formatter",
        }
    },
}


def loggers() -> List[logging.Logger]:
    """The root logger and every other one: for classes derived from `Logger`."""
    manager = logging.root.manager
    return [logging.root] + [logging.getLogger(name) for name in list(manager.loggerDict)]


class SafeAtoms(Dict[str, Any]):
    """The atoms of an access log line: a missing one is a dash, names in braces are found in any case, and nothing that
    a client sent ends the line or a quoted part of it."""

    def __init__(self, atoms: Dict[str, Any]) -> None:
        super().__init__()
        for name, value in atoms.items():
            self[name] = _escaped(value) if isinstance(value, str) else value

    def __getitem__(self, name: str) -> Any:
        if name.startswith("{"):
            name = name.lower()
        return super().__getitem__(name) if name in self else "-"


def _escaped(value: str) -> str:
    if value.isprintable() and '"' not in value and "\\" not in value:
        return value
    return "".join(map(_escaped_letter, value))


def _escaped_letter(letter: str) -> str:
    if letter in '"\\':
        return "\\" + letter
    if letter.isprintable():
        return letter
    return "".join("\\x%02X" % octet for octet in letter.encode("utf-8", "surrogatepass"))


# Line ends for somebody, and what makes a terminal show something else; line feeds and tabs stay.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def unforgeable(text: str, start: bool = False) -> str:
    """Text of others that cannot pass for a line of the server's, which begins with `[`; `start` where it begins a line."""
    text = _HARMFUL.sub(lambda found: ascii(found.group())[1:-1], text).replace("\n[", "\n  [")
    return "  " + text if start and text.startswith("[") else text


class ErrorFormatter(logging.Formatter):
    """Of the error log: no message and no traceback begins a line as the server does."""

    def format(self, record: logging.LogRecord) -> str:
        return unforgeable(super().format(record))


class Logger:
    """The server's logger. Derive from it and name the class in `logger_class`.

    `cfg` has every setting by its name. Lines of the server itself go through critical(), error(), warning(), info() and
    debug(), an exception of the application through exception(), each request through access().
    """

    LOG_LEVELS = {
        "critical": logging.CRITICAL,
        "error": logging.ERROR,
        "warning": logging.WARNING,
        "info": logging.INFO,
        "debug": logging.DEBUG,
    }
    loglevel = logging.INFO

    error_fmt = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
    datefmt = "[%Y-%m-%d %H:%M:%S %z]"
    access_fmt = "%(message)s"
    syslog_fmt = "[%(process)d] %(message)s"

    atoms_wrapper_class = SafeAtoms

    def __init__(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.error_log.propagate = False
        self.access_log = logging.getLogger("gunicorn.access")
        self.access_log.propagate = False
        self.error_handlers: List[logging.Handler] = []
        self.access_handlers: List[logging.Handler] = []
        self.logfile: Optional[TextIO] = None
        self.lock = threading.Lock()
        self.cfg = cfg
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        """Configures the two loggers, also again at a reload.

        Raises RuntimeError when the configuration of logging cannot be used.
        """
        self.cfg = cfg
        self.loglevel = self.LOG_LEVELS.get(str(cfg.loglevel).lower(), logging.INFO)
        self.error_log.setLevel(self.loglevel)
        self.access_log.setLevel(logging.INFO)
        # It led to the logs that Rust wrote before.
        self._drop_handlers(self.error_log, "_rgunicorn")
        self._set_handler(self.error_log, cfg.errorlog, ErrorFormatter(self.error_fmt, self.datefmt))
        self._set_handler(
            self.access_log, cfg.accesslog, logging.Formatter(self.access_fmt), stream=sys.stdout
        )
        self._drop_handlers(self.error_log, "_gunicorn_syslog")
        self._drop_handlers(self.access_log, "_gunicorn_syslog")
        if cfg.syslog:
            self._set_syslog_handler(self.error_log, cfg, self.syslog_fmt, "error")
            if not cfg.disable_redirect_access_to_syslog:
                self._set_syslog_handler(self.access_log, cfg, self.syslog_fmt, "access")
        if cfg.logconfig_dict:
            self._configure(cfg.logconfig_dict, "")
        elif cfg.logconfig_json:
            self._configure(_read_json(cfg.logconfig_json), "log config '%s': " % cfg.logconfig_json)
        elif cfg.logconfig:
            _configure_by_file(cfg.logconfig)

    def _configure(self, given: Dict[str, Any], what: str) -> None:
        config = CONFIG_DEFAULTS.copy()
        config.update(given)
        try:
            logging.config.dictConfig(config)
        except Exception as error:
            raise RuntimeError(what + _reason(error)) from error

    # The levels.

    def critical(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.critical(msg, *args, **kwargs)

    def error(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.error(msg, *args, **kwargs)

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.warning(msg, *args, **kwargs)

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.info(msg, *args, **kwargs)

    def debug(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.debug(msg, *args, **kwargs)

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("exc_info", True)
        self.error_log.error(msg, *args, **kwargs)

    def log(self, lvl: Union[int, str], msg: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(lvl, str):
            lvl = self.LOG_LEVELS.get(lvl.lower(), logging.INFO)
        self.error_log.log(lvl, msg, *args, **kwargs)

    # The requests.

    def atoms(self, resp: Any, req: Any, environ: Dict[str, Any], request_time: datetime.timedelta) -> Dict[str, Any]:
        """What `access_log_format` can show of a request."""
        status = resp.status
        if isinstance(status, bytes):
            status = status.decode("latin-1")
        if isinstance(status, str):
            status = status.split(None, 1)[0] if status.strip() else "-"
        micros = request_time // datetime.timedelta(microseconds=1)
        sent = getattr(resp, "sent", None)
        atoms: Dict[str, Any] = {
            "h": environ.get("REMOTE_ADDR", "-"),
            "l": "-",
            "u": self._get_user(environ) or "-",
            "t": self.now(),
            "r": "%s %s %s"
            % (
                environ.get("REQUEST_METHOD", "-"),
                environ.get("RAW_URI", "-"),
                environ.get("SERVER_PROTOCOL", "-"),
            ),
            "s": status,
            "m": environ.get("REQUEST_METHOD"),
            "U": environ.get("PATH_INFO"),
            "q": environ.get("QUERY_STRING"),
            "H": environ.get("SERVER_PROTOCOL"),
            "b": str(sent) if sent is not None else "-",
            "B": sent,
            "f": environ.get("HTTP_REFERER", "-"),
            "a": environ.get("HTTP_USER_AGENT", "-"),
            "T": micros // 1000000,
            "D": micros,
            "M": micros // 1000,
            "L": "%d.%06d" % divmod(micros, 1000000),
            "p": "<%s>" % os.getpid(),
        }
        headers = req.headers if hasattr(req, "headers") else req
        atoms.update(("{%s}i" % name.lower(), value) for name, value in _pairs(headers))
        headers = resp.headers
        atoms.update(("{%s}o" % name.lower(), value) for name, value in _pairs(headers))
        atoms.update(("{%s}e" % name.lower(), value) for name, value in list(environ.items()))
        return atoms

    @property
    def access_log_enabled(self) -> bool:
        cfg = self.cfg
        return bool(
            cfg.accesslog
            or cfg.logconfig
            or cfg.logconfig_dict
            or cfg.logconfig_json
            or (cfg.syslog and not cfg.disable_redirect_access_to_syslog)
        )

    def access(self, resp: Any, req: Any, environ: Dict[str, Any], request_time: datetime.timedelta) -> None:
        """Writes the line about a request."""
        if not self.access_log_enabled:
            return
        atoms = self.atoms_wrapper_class(self.atoms(resp, req, environ, request_time))
        try:
            self.access_log.info(self.cfg.access_log_format, atoms)
        except Exception:
            self.error(traceback.format_exc())

    def now(self) -> str:
        """The time as access log lines have it."""
        return time.strftime("[%d/%b/%Y:%H:%M:%S %z]")

    def _get_user(self, environ: Dict[str, Any]) -> Optional[str]:
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            decoded = base64.b64decode(credentials.strip().encode("utf-8"), validate=True)
            return decoded.partition(b":")[0].decode("utf-8")
        except (binascii.Error, UnicodeError) as error:
            self.debug("Couldn't get username: %s", error)
            return None

    # The files.

    def reopen_files(self) -> None:
        """Goes on in the files that now have the names, for every logger there is."""
        reopen()

    def close_on_exec(self) -> None:
        for handler in file_handlers():
            if handler.stream is not None:
                flags = fcntl.fcntl(handler.stream.fileno(), fcntl.F_GETFD)
                fcntl.fcntl(handler.stream.fileno(), fcntl.F_SETFD, flags | fcntl.FD_CLOEXEC)

    def _get_gunicorn_handler(self, log: logging.Logger) -> Optional[logging.Handler]:
        return next((handler for handler in log.handlers if getattr(handler, "_gunicorn", False)), None)

    def _drop_handlers(self, log: logging.Logger, mark: str) -> None:
        for handler in [handler for handler in log.handlers if getattr(handler, mark, False)]:
            log.removeHandler(handler)
            handler.close()

    def _set_handler(
        self,
        log: logging.Logger,
        output: Optional[str],
        fmt: logging.Formatter,
        stream: Optional[TextIO] = None,
    ) -> None:
        self._drop_handlers(log, "_gunicorn")
        if output is None:
            return
        handler: logging.Handler
        if output == "-":
            handler = logging.StreamHandler(stream)
        else:
            try:
                handler = logging.FileHandler(output)
            except OSError as error:
                raise RuntimeError("'%s' isn't writable [%s]" % (output, error)) from error
        handler.setFormatter(fmt)
        handler._gunicorn = True  # type: ignore[attr-defined]
        log.addHandler(handler)

    def _set_syslog_handler(self, log: logging.Logger, cfg: Any, fmt: str, name: str) -> None:
        prefix = "gunicorn.%s.%s" % (cfg.syslog_prefix or cfg.proc_name, name)
        handler = SyslogHandler(cfg.syslog_addr, SYSLOG_FACILITIES[cfg.syslog_facility.lower()])
        handler.setFormatter(ErrorFormatter("%s: %s" % (prefix, fmt)))
        handler._gunicorn_syslog = True  # type: ignore[attr-defined]
        log.addHandler(handler)


class ErrorStream:
    """`wsgi.errors`: writes where the handlers of gunicorn.error do, in no form but one that cannot be forged."""

    def __init__(self, logger: Any) -> None:
        self.log: Any = getattr(logger, "error_log", None)

    def _streams(self) -> List[Any]:
        streams = [getattr(handler, "stream", None) for handler in getattr(self.log, "handlers", ())]
        return [stream for stream in streams if stream is not None] or [sys.stderr]

    def write(self, text: str) -> int:
        for stream in self._streams():
            stream.write(unforgeable(text, start=True))
            stream.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing waits."""


class SyslogHandler(logging.Handler):
    """Sends lines to syslog and never waits for it: what it does not take is lost."""

    def __init__(self, address: str, facility: int) -> None:
        super().__init__()
        self.address = address
        self.facility = facility
        self.socket: Optional[socket.socket] = None
        self.stream = False
        self.pid = 0
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        levels = logging.handlers.SysLogHandler.priority_names
        name = logging.handlers.SysLogHandler.priority_map.get(record.levelname, "warning")
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        line = "<%d>%s" % (self.facility * 8 + levels[name], text)
        for _ in range(2):
            try:
                self._send(line)
                return
            except BlockingIOError:
                break
            except OSError:
                self.socket = None
        self.lost += 1

    def _send(self, line: str) -> None:
        if self.socket is None or (self.stream and self.pid != os.getpid()):
            self.socket, self.stream = _connected(self.address)
            self.pid = os.getpid()
        if not self.stream:
            self.socket.send(line.encode("utf-8", "backslashreplace")[:61440])
            return
        octets = line.replace("\n", "#012").encode("utf-8", "backslashreplace") + b"\n"
        if self.socket.send(octets) < len(octets):
            # The rest would be the beginning of the next line.
            raise ConnectionError("syslog takes too little")

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        super().close()


def _connected(address: str) -> Tuple[socket.socket, bool]:
    error: OSError = OSError("no address: %s" % address)
    for family, kind, where in _ways(address):
        connection = socket.socket(family, kind)
        try:
            # Long enough for a server that is there.
            connection.settimeout(0.5)
            connection.connect(where)
            connection.setblocking(False)
            return connection, kind == socket.SOCK_STREAM
        except OSError as failure:
            connection.close()
            error = failure
    raise error


def _ways(address: str) -> Iterator[Tuple[int, int, Any]]:
    if address.startswith("unix://"):
        path, _, kind = address[len("unix://") :].partition("#")
        if kind != "stream":
            yield socket.AF_UNIX, socket.SOCK_DGRAM, path
        if kind != "dgram":
            yield socket.AF_UNIX, socket.SOCK_STREAM, path
        return
    scheme, _, rest = address.partition("://")
    host, port = rest, "514"
    if rest.startswith("["):
        host, _, tail = rest[1:].partition("]")
        port = tail[1:] or port
    elif ":" in rest:
        host, _, port = rest.partition(":")
    kind = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    for family, found, _, _, where in socket.getaddrinfo(host or "localhost", int(port), 0, kind):
        yield family, found, where


def _pairs(headers: Any) -> Any:
    return list(headers.items() if hasattr(headers, "items") else headers)


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    text = str(error) or type(error).__name__
    return "%s: %s" % (text, _reason(cause)) if cause is not None else text


def _read_json(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RuntimeError("log config '%s': %s" % (path, reason)) from error
    if not isinstance(config, dict):
        raise RuntimeError("log config '%s': it is not a dictionary" % path)
    return config


def _configure_by_file(path: str) -> None:
    if not os.path.exists(path):
        raise RuntimeError("log config '%s': No such file or directory" % path)
    # A parser that interpolates takes `%` for the beginning of a name.
    defaults = {"__file__": path.replace("%", "%%"), "here": os.path.dirname(path).replace("%", "%%")}
    try:
        logging.config.fileConfig(path, defaults=defaults, disable_existing_loggers=False)
    except Exception as error:
        text = " ".join(_reason(error).split())
        if isinstance(error, KeyError):
            text = "the section or entry %s is missing" % text
        raise RuntimeError("log config '%s': %s" % (path, text)) from error


# --- for the server ---


def find_class(name: str, statsd: bool) -> Type[Any]:
    """The class that `logger_class` names; the built-in ones are ours, whatever package they are named in.

    Raises ImportError or AttributeError where there is none.
    """
    if name.startswith("egg:"):
        return _entry_point(name)
    module, _, attribute = name.rpartition(".")
    package, _, inner = name.partition(".")
    if package in ("gunicorn", "rgunicorn") and inner in ("glogging.Logger", "instrument.statsd.Statsd") or not module:
        if not module and name != "simple":
            raise ImportError("'%s' is not MODULE.NAME" % name)
        if statsd or inner == "instrument.statsd.Statsd":
            from rgunicorn.instrument.statsd import Statsd

            return Statsd
        return Logger
    import importlib

    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]


def _entry_point(name: str) -> Type[Any]:
    from importlib import metadata

    distribution, _, entry = name[len("egg:") :].partition("#")
    if distribution in ("gunicorn", "rgunicorn") and entry in ("", "main", "simple"):
        return Logger
    for point in metadata.distribution(distribution).entry_points:
        if point.group == "gunicorn.loggers" and point.name == (entry or "main"):
            return point.load()  # type: ignore[no-any-return]
    raise ImportError("'%s' is no entry point of gunicorn.loggers" % name)


def least_level(logger: Any) -> int:
    """The least level that a line needs to be of any use to the logger."""
    own = ("critical", "error", "warning", "info", "debug", "log")
    if not isinstance(logger, Logger) or any(getattr(type(logger), name) is not getattr(Logger, name) for name in own):
        return logging.DEBUG
    return logger.error_log.getEffectiveLevel()


def wants_access(logger: Any) -> bool:
    """Whether the logger is to hear of requests."""
    overridden = not isinstance(logger, Logger) or type(logger).access is not Logger.access
    return overridden or logger.access_log_enabled


def answered(
    logger: Any, peer: Tuple[str, str], method: str, target: str, status: int, sent: int, seconds: float
) -> None:
    """Tells of a request that the server has answered itself: of its parts only these are known."""
    from rgunicorn.hooks import Request, Response

    path, _, query = target.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SCRIPT_NAME": "",
        "SERVER_PROTOCOL": "-",
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": peer[1],
        "wsgi.url_scheme": "http",
    }
    request = Request(method, target, path, query, (1, 1), [], peer, peer, None, "http", None)
    response = Response("", status, None, sent, False)
    logger.access(response, request, environ, datetime.timedelta(seconds=seconds))
