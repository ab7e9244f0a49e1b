"""A logger that sends gunicorn's metrics to statsd or DogStatsD.

With the default logger the server sends them itself; this class is for deriving from, and for `logconfig*` beside
`statsd_host`.
"""

from __future__ import annotations

import logging
import socket
from typing import Any, Union

from rgunicorn.glogging import Logger

METRIC_VAR = "metric"
VALUE_VAR = "value"
MTYPE_VAR = "mtype"
GAUGE_TYPE = "gauge"
COUNTER_TYPE = "counter"
HISTOGRAM_TYPE = "histogram"
TIMER_TYPE = "timer"


class Statsd(Logger):
    """Sends a datagram for each metric and never waits: what is not taken is lost."""

    def __init__(self, cfg: Any) -> None:
        self.sock: Any = None
        self.prefix = ""
        self.dogstatsd_tags = None
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        prefix = (cfg.statsd_prefix or "").rstrip(".")
        self.prefix = prefix + "." if prefix else ""
        self.dogstatsd_tags = cfg.dogstatsd_tags
        self._connect(cfg.statsd_host)

    def _connect(self, host: Any) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        if not host:
            return
        if host.startswith("unix://"):
            family, address = socket.AF_UNIX, host[len("unix://") :]
        else:
            name, _, port = host.rpartition(":")
            family, address = socket.AF_INET, (name.strip("[]"), int(port))
            if ":" in address[0]:
                family = socket.AF_INET6
        connection = socket.socket(family, socket.SOCK_DGRAM)
        try:
            connection.connect(address)
            connection.setblocking(False)
            self.sock = connection
        except OSError as error:
            connection.close()
            Logger.warning(self, "Cannot reach statsd at %s: %s", host, error)

    # A line is counted, and may carry a metric of its own.

    def critical(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().critical(msg, *args, **kwargs)
        self.increment("gunicorn.log.critical", 1)

    def error(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().error(msg, *args, **kwargs)
        self.increment("gunicorn.log.error", 1)

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().warning(msg, *args, **kwargs)
        self.increment("gunicorn.log.warning", 1)

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().exception(msg, *args, **kwargs)
        self.increment("gunicorn.log.exception", 1)

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.log(logging.INFO, msg, *args, **kwargs)

    def debug(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.log(logging.DEBUG, msg, *args, **kwargs)

    def log(self, lvl: Union[int, str], msg: Any, *args: Any, **kwargs: Any) -> None:
        extra = kwargs.get("extra")
        if extra is not None:
            self._measure(extra.get(METRIC_VAR), extra.get(VALUE_VAR), extra.get(MTYPE_VAR))
        if msg:
            super().log(lvl, msg, *args, **kwargs)

    def _measure(self, metric: Any, value: Any, kind: Any) -> None:
        if not metric or value is None:
            return
        if kind == GAUGE_TYPE:
            self.gauge(metric, value)
        elif kind == COUNTER_TYPE:
            self.increment(metric, value)
        elif kind == HISTOGRAM_TYPE:
            self.histogram(metric, value)
        elif kind == TIMER_TYPE:
            self.timer(metric, value)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        super().access(resp, req, environ, request_time)
        status = resp.status
        if isinstance(status, bytes):
            status = status.decode("latin-1")
        if isinstance(status, str):
            status = int(status.split(None, 1)[0])
        self.timer("gunicorn.request.duration", request_time.total_seconds() * 1000)
        self.increment("gunicorn.requests", 1)
        self.increment("gunicorn.request.status.%d" % status, 1)

    def gauge(self, name: str, value: Any) -> None:
        self._sock_send("%s%s:%s|g" % (self.prefix, name, value))

    def increment(self, name: str, value: Any, sampling_rate: float = 1.0) -> None:
        self._sock_send("%s%s:%s|c|@%s" % (self.prefix, name, value, sampling_rate))

    def decrement(self, name: str, value: Any, sampling_rate: float = 1.0) -> None:
        self._sock_send("%s%s:-%s|c|@%s" % (self.prefix, name, value, sampling_rate))

    def timer(self, name: str, value: Any) -> None:
        self._sock_send("%s%s:%s|ms" % (self.prefix, name, value))

    def histogram(self, name: str, value: Any) -> None:
        self._sock_send("%s%s:%s|h" % (self.prefix, name, value))

    def _sock_send(self, msg: Union[str, bytes]) -> None:
        if isinstance(msg, str):
            msg = msg.encode("utf-8")
        if self.dogstatsd_tags:
            msg += b"|#" + self.dogstatsd_tags.encode("utf-8")
        if self.sock is None:
            return
        try:
            self.sock.send(msg)
        except (BlockingIOError, ConnectionRefusedError):
            pass
        except OSError:
            # An agent that was restarted has a new socket under the old name.
            self._connect(self.cfg.statsd_host)
