"""The workloads: what is asked, of which servers, and which figures are to be reached."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

from environment import BENCHES, FILE_SIZE, PROJECT

APPS = BENCHES / "apps"
SITE = APPS / "djangosite"
GUESTBOOK = PROJECT / "examples" / "django"
UPLOAD_SIZE = 10_000_000

BEST = "best peer"
ALL = ("floor", "bjoern", "fastpysgi", "freastal", "granian", "uwsgi", "gunicorn-sync", "gunicorn-gthread", "rgunicorn")
LARGE = ("bjoern", "fastpysgi", "granian", "uwsgi", "gunicorn-sync", "rgunicorn")
PAGE = ("alone", "bjoern", "granian", "uwsgi", "gunicorn-sync", "rgunicorn")
FRONT = ("alone", "bjoern", "uwsgi", "uwsgi-native", "gunicorn-sync", "rgunicorn")
# Behind Nginx on two cores, and with many workers: the servers that can take part.
DEPLOYED = ("bjoern", "uwsgi", "uwsgi-native", "gunicorn-sync", "rgunicorn")
DEPLOYED_KEPT = ("bjoern", "gunicorn-gthread", "rgunicorn")
MANY = ("peregrine", "uwsgi", "rgunicorn-one", "rgunicorn")
MANY_KEPT = ("peregrine", "rgunicorn-one", "rgunicorn")
MEMORY = ("uwsgi", "gunicorn-sync", "rgunicorn")
LOG = "+log"


@dataclass(frozen=True)
class Target:
    """`value` of rgunicorn against `baseline`: a ratio, or for `difference` rgunicorn's row `row` less its plain row. With
    `own_share` both count without what the application alone costs."""

    baseline: str
    limit: float
    value: str = "cpu"
    row: str = "rgunicorn"
    at_least: bool = False
    difference: bool = False
    own_share: bool = False


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    rows: tuple
    app: str
    right: Callable
    targets: tuple = ()
    folder: Path = APPS
    kind: str = "wrk"          # wrk, get, put or pss
    path: str = "/"
    connections: int = 32
    workers: int = 1
    close: bool = False
    front: str = ""            # unix or tcp: how Nginx in front reaches the server
    upstream_kept: bool = False
    size: int = 0
    count: int = 0
    environ: dict = field(default_factory=dict)
    prepare: Optional[tuple] = None


def is_hello(body):
    return body == b"Hello, world!"


def has_size(size):
    return lambda body: len(body) == size


def is_upload(body):
    return body == b"5"


def has_title(title):
    return lambda body: title in body


def build(env):
    """All workloads by name, in the order they run."""
    every = [*deployed(), *pages(env), *small(), *many(), *large(env), memory()]
    return {workload.name: workload for workload in every}


def deployed():
    """Hello world where people deploy it: two workers behind Nginx."""
    hello = dict(app="hello:application", right=is_hello, workers=2)
    least = {
        ("unix", False): (Target("bjoern", 0.90), Target("uwsgi-native", 0.85)),
        ("tcp", False): (Target("bjoern", 0.90), Target("uwsgi-native", 0.90), Target("uwsgi", 0.90)),
        ("unix", True): (Target("bjoern", 0.85),),
        ("tcp", True): (Target("bjoern", 0.75),),
    }
    names = {"unix": "a unix socket", "tcp": "TCP"}
    ways = {False: "a connection per request", True: "kept connections"}
    return [
        Workload(
            f"nginx-{front}-{'kept' if kept else 'close'}",
            f"Hello world behind Nginx over {names[front]}, {ways[kept]}, 2 workers",
            DEPLOYED_KEPT if kept else DEPLOYED,
            targets=targets,
            front=front,
            upstream_kept=kept,
            **hello,
        )
        for (front, kept), targets in least.items()
    ]


def many():
    """As many workers as people run, 32 clients, no front; `rgunicorn-one` is this server with one worker in the same run."""
    hello = dict(app="hello:application", right=is_hello)
    of_one = {False: {4: 1.25, 16: 1.5, 64: 2.0}, True: {4: 1.3, 16: 1.6, 64: 2.0}}
    return [
        Workload(
            f"workers-{count}-{'kept' if kept else 'close'}",
            f"Hello world, {'kept connections' if kept else 'a connection per request'}, 32 at once, {count} workers",
            MANY_KEPT if kept else MANY,
            targets=(Target("rgunicorn-one", limit), *(() if kept else (Target("peregrine", 0.85),))),
            workers=count,
            close=not kept,
            **hello,
        )
        for kept, limits in of_one.items()
        for count, limit in limits.items()
    ]


def small():
    hello = dict(app="hello:application", right=is_hello)
    logged = ("gunicorn-sync", "gunicorn-sync" + LOG, "rgunicorn", "rgunicorn" + LOG)
    return [
        Workload(
            "hello",
            "Hello world, keep-alive, 32 connections, 1 worker",
            ALL,
            targets=(Target("freastal", 0.90), Target("bjoern", 0.80), Target("floor", 1.22), Target("gunicorn-sync", 1 / 30)),
            **hello,
        ),
        Workload(
            "hello-log",
            "Hello world, keep-alive, with and without the access log to a file",
            logged,
            targets=(Target("rgunicorn", 0.8, row="rgunicorn" + LOG, difference=True),),
            **hello,
        ),
        Workload(
            "hello-close",
            "Hello world, a connection per request, 32 at once, 1 worker",
            ALL,
            targets=(Target("freastal", 0.97), Target("bjoern", 0.85), Target("floor", 1.10)),
            close=True,
            **hello,
        ),
    ]


def large(env):
    best = (Target(BEST, 1.0),)
    return [
        Workload(
            "response-1mb",
            "1 MB response, bytes in a list, 8 connections, 1 worker",
            LARGE,
            "megabyte:application",
            has_size(1_000_000),
            best,
            connections=8,
        ),
        Workload(
            "file-100mb",
            "100 MB file through wsgi.file_wrapper, one connection, 1 worker",
            LARGE,
            "download:application",
            has_size(FILE_SIZE),
            best,
            kind="get",
            size=FILE_SIZE,
            count=100,
            environ={"BENCH_FILE": str(env.download)},
        ),
        Workload(
            "upload-10mb",
            "10 MB upload read by the application in 64 KiB blocks, one connection, 1 worker",
            LARGE,
            "upload:application",
            is_upload,
            best,
            kind="put",
            size=UPLOAD_SIZE,
            count=1000,
        ),
    ]


def pages(env):
    """The project's own example, and a lighter page on which more of the time is the server's."""
    example = dict(
        app="mysite.wsgi:application",
        right=has_title(b"<h1"),
        folder=GUESTBOOK,
        environ={"GUESTBOOK_DB": str(env.home / "guestbook.sqlite3"), "PYTHONWARNINGS": "ignore"},
        prepare=("manage.py", "migrate", "--verbosity", "0"),
    )
    light = dict(
        app="wsgi:application",
        right=has_title(b"<li><b>name 99</b>"),
        folder=SITE,
        environ={"BENCH_DB": str(env.home / "entries.sqlite3")},
        prepare=("prepare.py",),
    )
    direct = (Target("bjoern", 1.0, own_share=True), Target("uwsgi", 0.35, own_share=True))
    behind = (Target("bjoern", 0.85, own_share=True), Target("uwsgi-native", 0.85, own_share=True))
    nginx = dict(rows=FRONT, targets=behind, workers=2, front="unix")
    return [
        Workload("django", "Django example page, direct, 1 worker", PAGE, targets=direct, **example),
        Workload("django-light", "Light Django page, direct, 1 worker", PAGE, targets=direct, **light),
        Workload("django-nginx", "Django example page behind Nginx, 2 workers", **nginx, **example),
        Workload("django-light-nginx", "Light Django page behind Nginx, 2 workers", **nginx, **light),
    ]


def memory():
    return Workload(
        "pss",
        "PSS of the arbiter and 4 workers after a hello load",
        MEMORY,
        "hello:application",
        is_hello,
        (Target("gunicorn-sync", 0.5, value="pss"),),
        kind="pss",
        workers=4,
    )


def prepare(env, workload):
    """Makes what the application needs. Returns why it cannot run, or None."""
    if not workload.folder.is_dir():
        return f"no {workload.folder.relative_to(PROJECT)}"
    if workload.prepare:
        environ = dict(PATH="/usr/bin:/bin", **workload.environ)
        done = subprocess.run(
            [env.python, *workload.prepare], cwd=workload.folder, env=environ, text=True, capture_output=True
        )
        if done.returncode:
            return f"{workload.prepare[0]} failed: {done.stderr.strip().splitlines()[-1:]}"
    return None
