"""What a scenario of the flat tail is: a load of its own kind, the servers it makes sense for, its columns and its goals.

`workloads.py` has those of which the cost of one request is asked; here it is what happens to the others meanwhile.
"""

import os
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Callable, Optional

from load import READY_SECONDS, wait_until_right
from measure import apart, free_port
from peers import HOST, PEERS, Start
from server import Failure, Server, busy_seconds, cpu_between
from workloads import APPS

AT_ONCE = 4


@dataclass(frozen=True)
class Pace:
    """Which measurement it is, and how long it takes; `quick`: as small as it can be and still say something."""

    round: int
    seconds: float
    quick: bool


@dataclass(frozen=True)
class Row:
    peer: str
    changes: dict = field(default_factory=dict)     # of the scenario's Start
    note: str = ""

    def __str__(self):
        return ", ".join(filter(None, (PEERS[self.peer].label, self.note)))


@dataclass(frozen=True)
class Column:
    head: str
    show: Callable      # {round: sample} → text


@dataclass(frozen=True)
class Goal:
    """`value` of {row: {round: sample}} is None when it was not measured."""

    wish: str
    value: Callable
    met: Callable
    show: Callable


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    start: Start
    rows: dict
    take: Callable                                   # (env, scenario, row, pace) → sample
    columns: tuple
    goals: tuple
    path: str = "/hello"
    unfit: dict = field(default_factory=dict)       # server → why it has no row
    needs: tuple = ("openloop",)
    rounds: tuple = (3, 1)                           # usual, quick
    seconds: tuple = (5, 2)

    def measure(self, env, row, pace):
        return self.take(env, self, self.rows[row], pace)

    def label(self, row):
        return str(self.rows[row]) if row in self.rows else PEERS[row].label


def rows(*peers, **changes):
    return {peer: Row(peer, changes=changes) for peer in peers}


# -- a started server ---------------------------------------------------------------------------------------------------


@dataclass
class Site:
    server: Server
    port: int
    client_cpus: Optional[set]


@contextmanager
def serving(env, scenario, row, environ=None, files=False):
    """A server all workers of which have answered. With one worker it has one core, and the client the others."""
    start = replace(scenario.start, port=free_port(), **row.changes)
    server_cpus, client_cpus = apart() if start.workers == 1 else (None, None)
    command, log = PEERS[row.peer].command(env, start), env.scratch / f"{scenario.name}.{row.peer}.log"
    with Server(command, APPS, log, environ, server_cpus, files) as server:
        wait_until_right(server, start.port, scenario.path, lambda body: body == b"Hello, world!")
        if start.workers > 1:
            wait_for_workers(start.port, start.workers)
        yield Site(server, start.port, client_cpus)


def wait_for_workers(port, count):
    """Until so many processes have answered, asked several times at once, as one process alone cannot answer that."""
    seen, deadline = set(), time.monotonic() + READY_SECONDS
    while len(seen) < count:
        if time.monotonic() > deadline:
            raise Failure(f"{len(seen)} of {count} workers answered in {READY_SECONDS} s")
        askers = [threading.Thread(target=lambda: seen.update(ask(port, "/pid"))) for _ in range(AT_ONCE)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()


def ask(port, path):
    """The body of an answer with status 200, as a list of one; an empty list when there was none."""
    try:
        with socket.create_connection((HOST, port), READY_SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return []
    head, _, body = answer.partition(b"\r\n\r\n")
    return [body] if head.startswith(b"HTTP/1.1 200 ") else []


class Others:
    """The share of the machine that neither the server nor the client used between two moments."""

    def __init__(self, site):
        self.site, self.busy, self.began, self.cpu = site, busy_seconds(), time.monotonic(), site.server.cpu()

    def share(self, client_cpu):
        used = cpu_between(self.cpu, self.site.server.cpu())[0] + client_cpu
        machine = (time.monotonic() - self.began) * os.cpu_count()
        return max(0.0, (busy_seconds() - self.busy - used) / machine)


# -- cells and goals ----------------------------------------------------------------------------------------------------


def middle(samples, name):
    return median(getattr(sample, name) for sample in samples.values())


def total(samples, name):
    return sum(getattr(sample, name) for sample in samples.values())


def column(head, name, show, of=middle):
    return Column(head, lambda samples: show(of(samples, name)))


def at_most(limit, wish, name, show, of=middle):
    """A goal for the row of rgunicorn itself."""
    return Goal(wish, own(name, of), lambda value: value <= limit, show)


def at_least(limit, wish, name, show, of=middle):
    return Goal(wish, own(name, of), lambda value: value >= limit, show)


def own(name, of):
    return lambda results: of(results["rgunicorn"], name) if results.get("rgunicorn") else None
