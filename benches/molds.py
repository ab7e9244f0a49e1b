"""Scenarios `respawn` and `preload-pss`: what forking workers from an application that is loaded already is worth."""

import http.client
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Optional

from cells import milliseconds, number, whole
from load import wait_until_right
from measure import free_port
from peers import HOST, PEERS, Start
from scenario import Column, Goal, Row, Scenario, at_most, column
from server import Failure, Server, pss_bytes
from workloads import GUESTBOOK

# By so many requests a worker is no longer one that dies young, whose successor has to wait.
STABLE = 120
KILLS, QUICK_KILLS = 100, 10
REQUESTS, QUICK_REQUESTS = 10_000, 500
CLIENTS = 8
PAGES = ("/", "/?page=2", "/health/", "/admin/login/?next=/admin/")
PATIENCE = 30
MIB = 2**20


@dataclass
class Sample:
    foreign: Optional[float] = None


@dataclass
class Respawns(Sample):
    """Milliseconds from a SIGKILL to the log's word that the successor is ready."""

    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0
    kills: int = 0


@dataclass
class Memory(Sample):
    """In MiB: the mean of the workers, and all processes of the server."""

    worker: float = 0.0
    whole: float = 0.0
    workers: int = 0
    requests: int = 0


@contextmanager
def guestbook(env, scenario, row):
    """The example project, served, with a database of its own."""
    start = replace(scenario.start, port=free_port(), **row.changes)
    environ = {"GUESTBOOK_DB": str(env.home / "guestbook.sqlite3"), "PYTHONWARNINGS": "ignore"}
    prepare = [env.python, "manage.py", "migrate", "--verbosity", "0"]
    subprocess.run(prepare, check=True, cwd=GUESTBOOK, env=dict(os.environ, **environ))
    command, log = PEERS[row.peer].command(env, start), env.scratch / f"{scenario.name}.{row.peer}.log"
    # The project's own configuration file recycles workers and logs every request.
    command += ["-c", "/dev/null"]
    with Server(command, GUESTBOOK, log, environ) as server:
        wait_until_right(server, start.port, "/", lambda body: b"<h1" in body)
        yield server, start.port


def get(port, paths):
    """One request after the other, on one connection as far as the server keeps it."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    for path in paths:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise Failure(f"{path}: {response.status}")
    connection.close()


# -- how soon a worker is replaced --------------------------------------------------------------------------------------


class Log:
    """What a server writes, followed."""

    def __init__(self, server):
        self.server, self.file = server, open(server.log)

    def wait_for(self, pattern):
        """The first match in what has not been read yet, a line at a time."""
        deadline, line = time.monotonic() + PATIENCE, ""
        while time.monotonic() < deadline:
            line += self.file.readline()
            if not line.endswith("\n"):
                time.sleep(0.0002)
                continue
            found, line = re.search(pattern, line), ""
            if found:
                return found
        raise Failure(f"no {pattern!r} in {PATIENCE} s: {self.server.last_words()}")


def respawning(env, scenario, row, pace):
    times = []
    with guestbook(env, scenario, row) as (server, port):
        log = Log(server)
        victim = int(log.wait_for(r"Worker ready \(pid: (\d+)\)")[1])
        for _ in range(QUICK_KILLS if pace.quick else KILLS):
            get(port, ["/health/"] * STABLE)
            began = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            victim = int(log.wait_for(r"Worker ready \(pid: (\d+)\)")[1])
            times.append((time.monotonic() - began) * 1000)
    times.sort()
    return Respawns(None, median(times), times[int(0.99 * (len(times) - 1))], times[-1], len(times))


# -- what a worker takes ------------------------------------------------------------------------------------------------


def taking_memory(env, scenario, row, pace):
    count = QUICK_REQUESTS if pace.quick else REQUESTS
    with guestbook(env, scenario, row) as (server, port):
        ask_for_pages(port, count)
        named = re.findall(r"Booting worker with pid: (\d+)", server.log.read_text())
        workers = [pid for pid in server.pids() if str(pid) in named]
        if len(workers) != scenario.start.workers:
            raise Failure(f"{len(workers)} workers: {server.last_words()}")
        sizes = [pss_bytes(pid) / MIB for pid in workers]
        return Memory(None, mean(sizes), server.pss() / MIB, len(workers), count)


def ask_for_pages(port, count):
    failures = []

    def client():
        try:
            get(port, [PAGES[i % len(PAGES)] for i in range(count // CLIENTS)])
        except (OSError, http.client.HTTPException, Failure) as failure:
            failures.append(failure)

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    if failures:
        raise Failure(f"{len(failures)} of {CLIENTS} clients: {failures[0]!r}")


def ratio(results, ours="rgunicorn"):
    ours, theirs = results.get(ours), results.get("gunicorn-sync")
    if not ours or not theirs:
        return None
    return median(s.worker for s in ours.values()) / median(s.worker for s in theirs.values())


def warm_ratio(results):
    return ratio(results, "warm")


def build():
    preloaded = Start("mysite.wsgi:application", preload=True)
    return [
        Scenario(
            "respawn",
            f"kill -9 of the worker of the Django example, {KILLS} times, until its successor is ready",
            preloaded,
            {"rgunicorn": Row("rgunicorn", note="--preload"), "import": Row("rgunicorn", {"preload": False}, "each imports")},
            respawning,
            columns=(
                column("kills", "kills", whole, of=lambda samples, name: sum(getattr(s, name) for s in samples.values())),
                column("p50", "p50", milliseconds),
                column("**p99**", "p99", milliseconds),
                column("longest", "max", milliseconds, of=lambda samples, name: max(getattr(s, name) for s in samples.values())),
            ),
            goals=(at_most(50, "p99 < 50 ms", "p99", milliseconds),),
            needs=(),
            rounds=(3, 1),
        ),
        Scenario(
            "preload-pss",
            f"PSS of the Django example with --preload, 4 workers, after {REQUESTS:,} requests".replace(",", " "),
            replace(preloaded, workers=4),
            {name: Row(name, note=note) for name, note in (
                ("gunicorn-sync", "--preload"), ("gunicorn-gthread", "--preload"), ("rgunicorn", "--preload"))}
            | {"warm": Row("rgunicorn", {"warm_up": PAGES}, "--preload --warm-up"),
               "import": Row("rgunicorn", {"preload": False}, "each imports")},
            taking_memory,
            columns=(
                column("requests", "requests", whole),
                column("**MiB per worker**", "worker", number),
                column("MiB of all processes", "whole", number),
                Column("all ÷ workers", lambda s: number(median(m.whole / m.workers for m in s.values()))),
            ),
            goals=(
                Goal("per worker ≤ 0.70 × gunicorn sync --preload", ratio, lambda r: r <= 0.7, "{:.2f}".format),
                Goal("with --warm-up", warm_ratio, lambda r: r <= 0.7, "{:.2f}".format),
            ),
            needs=(),
            rounds=(3, 1),
        ),
    ]
