"""How each server is started. One function per server makes its command line; `PEERS` says what else is known of it.

The rules of a fair start: one worker unless the workload says otherwise, access log off unless the workload says otherwise,
TCP_NODELAY where there is a choice, everything else as the server's own documentation starts it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

from environment import BENCHES

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Start:
    """What a workload asks of a server."""

    app: str
    port: int = 0
    unix: Optional[Path] = None
    workers: int = 1
    access_log: Optional[Path] = None
    close: bool = False
    threads: Optional[int] = None       # None: as many as the server is usually measured with
    keepalive: Optional[int] = None     # seconds an idle connection is kept, where that can be set
    connections: Optional[int] = None   # that one worker must be able to hold
    background: bool = False            # the application has a thread of its own
    preload: bool = False               # workers are forked from the loaded application
    warm_up: tuple = ()                 # paths that rgunicorn asks the new application for
    upstream_kept: bool = False         # Nginx in front keeps its connections

    @property
    def address(self):
        """In the form of gunicorn's --bind."""
        return f"unix:{self.unix}" if self.unix else f"{HOST}:{self.port}"

    @property
    def plain_address(self):
        """In the form of uWSGI's sockets."""
        return str(self.unix) if self.unix else f"{HOST}:{self.port}"


@dataclass(frozen=True)
class Peer:
    label: str
    needs: str
    command: Callable
    keeps: bool = True


def floor(env, start):
    return [env.program("floor"), str(start.port), "close" if start.close else "keep"]


def bjoern(env, start):
    place = str(start.unix or start.port)
    return [env.python, str(BENCHES / "serve.py"), "bjoern", start.app, place, str(start.workers)]


def fastpysgi(env, start):
    return [env.python, str(BENCHES / "serve.py"), "fastpysgi", start.app, str(start.port)]


def freastal(env, start):
    return [env.python, str(BENCHES / "serve.py"), "freastal", start.app, str(start.port)]


def peregrine(env, start):
    place = ["--unix", str(start.unix)] if start.unix else ["--host", HOST, "--port", str(start.port)]
    options = ["--protocol", "wsgi", "--workers", str(start.workers), "--keep-alive", "75000"]
    return [env.bin("peregrine"), *options, *place, start.app]


def granian(env, start):
    """One blocking thread, as in granian's own benchmarks: with the GIL, more of them only take turns."""
    options = "--interface wsgi --http 1 --no-ws --log-level error --blocking-threads".split()
    options += [str(start.threads or 1)]
    options += ["--http1-header-read-timeout", str(min(start.keepalive * 1000, 60_000))] if start.keepalive else []
    # What it calls concurrent requests are connections, idle ones too.
    options += ["--backpressure", str(start.connections)] if start.connections else []
    address = ["--host", HOST, "--port", str(start.port), "--workers", str(start.workers)]
    return [env.bin("granian"), *options, *address, start.app]


def gunicorn_sync(env, start):
    return [env.bin("gunicorn"), *gunicorn_options(start)]


def gunicorn_gthread(env, start):
    return [env.bin("gunicorn"), "-k", "gthread", "--threads", str(start.threads or 4), *gunicorn_options(start)]


def rgunicorn(env, start):
    threads = ["--threads", str(start.threads)] if start.threads else []
    warm_up = [option for path in start.warm_up for option in ("--warm-up", path)]
    return [*env.rgunicorn, *threads, *warm_up, *gunicorn_options(start)]


def rgunicorn_one(env, start):
    return rgunicorn(env, replace(start, workers=1))


def gunicorn_options(start):
    log = ["--access-logfile", str(start.access_log)] if start.access_log else []
    keep = ["--keep-alive", str(start.keepalive)] if start.keepalive else []
    early = ["--preload"] if start.preload else []
    most = ["--worker-connections", str(start.connections)] if start.connections else []
    return ["-w", str(start.workers), "-b", start.address, *log, *keep, *most, *early, start.app]


def uwsgi(env, start, protocol):
    options = "--master --single-interpreter --need-app --die-on-term --tcp-nodelay".split()
    log = ["--logto2", str(start.access_log)] if start.access_log else ["--disable-logging"]
    options += ["--threads", str(start.threads)] if (start.threads or 1) > 1 else []
    options += ["--enable-threads", "--lazy-apps"] if start.background else []
    place = ["--virtualenv", str(env.venv), "--processes", str(start.workers), "--module", start.app]
    return [env.bin("uwsgi"), f"--{protocol}", start.plain_address, *options, *log, *place]


def uwsgi_http(env, start):
    """http-socket closes after each answer without saying so, which every client takes for an error: the header says so.
    (http11-socket keeps a connection, but serves no other one meanwhile: nothing to compare with.)"""
    return uwsgi(env, start, "http-socket") + ["--add-header", "Connection: close"]


def uwsgi_router(env, start):
    """The process in front that keeps connections and asks whichever worker is free: the only keep-alive of uWSGI that does
    not hold a worker."""
    return uwsgi(env, start, "http") + [f"--http-keepalive={start.keepalive or 75}"]


def uwsgi_native(env, start):
    return uwsgi(env, start, "socket") + ["--chmod-socket=666"]


PEERS = {
    "floor": Peer("raw epoll floor", "floor", floor),
    "bjoern": Peer("bjoern", "bjoern", bjoern),
    "fastpysgi": Peer("FastPySGI", "fastpysgi", fastpysgi),
    "freastal": Peer("freastal", "freastal", freastal),
    "peregrine": Peer("peregrine", "peregrine-server", peregrine),
    "granian": Peer("granian", "granian", granian),
    "gunicorn-sync": Peer("gunicorn sync", "gunicorn", gunicorn_sync, keeps=False),
    "gunicorn-gthread": Peer("gunicorn gthread", "gunicorn", gunicorn_gthread),
    "uwsgi": Peer("uWSGI http-socket", "uwsgi", uwsgi_http, keeps=False),
    "uwsgi-router": Peer("uWSGI http router", "uwsgi", uwsgi_router),
    "uwsgi-native": Peer("uWSGI uwsgi protocol", "uwsgi", uwsgi_native, keeps=False),
    "rgunicorn": Peer("rgunicorn", "rgunicorn", rgunicorn),
    "rgunicorn-one": Peer("rgunicorn, 1 worker", "rgunicorn", rgunicorn_one),
}


def missing(env, name):
    """Why this server cannot run here, or None."""
    needs = PEERS[name].needs
    if needs == "rgunicorn":
        return None if env.rgunicorn else "not given: --wheel or --rgunicorn"
    if needs == "floor":
        return None if "floor" in env.built else "not compiled: no cc"
    return None if needs in env.versions else "not installed"
