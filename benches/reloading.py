"""Scenario `reload-2s`: requests that a reload costs, while clients go on as if nothing were."""

import signal
import time
from dataclasses import dataclass
from typing import Optional

from cells import milliseconds, number, whole
from generator import Class, Generator
from peers import Start
from scenario import Column, Goal, Scenario, at_most, column, rows, serving, total
from server import Failure

EVERY_SECONDS = 2
REQUESTS, QUICK_REQUESTS = 200_000, 20_000
CONNECTIONS, OCTETS = 16, 1000


@dataclass
class Sample:
    """`reloads` were asked for; `fresh` of them had other processes when the next one was due."""

    requests: int
    failed: int
    reset: int
    reconnects: int
    announced: int
    rate: float
    max: float
    reloads: int
    fresh: int
    foreign: Optional[float] = None
    lag: Optional[float] = None


def reloading(env, scenario, row, pace):
    wanted = QUICK_REQUESTS if pace.quick else REQUESTS
    options = dict(requests=wanted, seconds=pace.seconds, connections=CONNECTIONS, post=OCTETS)
    with serving(env, scenario, row) as site:
        with Generator(env, site.port, [Class("post", 1, "/echo")], closed=True, hold=True, **options) as load:
            load.wait_for("READY")
            load.go()
            reloads, fresh = reload_until_done(load, site.server)
            load.go()
            result = load.result()
        if not site.server.alive():
            raise Failure(f"the server ended: {site.server.last_words()}")
    broken = result["reset"] + result["cut"] + result["refused"] + result["unanswered"]
    return Sample(
        result["requests"],
        result["failed"],
        broken,
        result["reconnects"],
        result["announced"],
        result["rate"],
        result["classes"]["post"]["max"],
        reloads,
        fresh,
    )


def reload_until_done(load, server):
    """HUP to the main process at once and then every EVERY_SECONDS; (how many, after how many the processes were others)."""
    deadline, reloads, fresh = time.monotonic() + load.limit, 0, 0
    while time.monotonic() < deadline:
        before = set(server.pids())
        server.process.send_signal(signal.SIGHUP)
        reloads += 1
        word = load.line(EVERY_SECONDS)
        fresh += bool(set(server.pids()) - before)
        if word == "DONE":
            return reloads, fresh
        if word is not None:
            raise load.failure(f"{word or 'nothing'} instead of DONE")
    raise Failure(f"the load did not end in {load.limit:.0f} s")


def build():
    return [
        Scenario(
            "reload-2s",
            f"HUP every {EVERY_SECONDS} s during {REQUESTS} POSTs of {OCTETS} octets on {CONNECTIONS} connections, 2 workers",
            Start("tail:application", workers=2, threads=1, keepalive=75),
            rows("granian", "uwsgi", "uwsgi-router", "gunicorn-sync", "gunicorn-gthread", "rgunicorn"),
            reloading,
            columns=(
                column("requests", "requests", whole, of=total),
                Column("reloads", lambda samples: f"{total(samples, 'reloads')}, {total(samples, 'fresh')} seen"),
                column("**failed**", "failed", whole, of=total),
                column("**reset**", "reset", whole, of=total),
                column("reconnects", "reconnects", whole, of=total),
                column("announced", "announced", whole, of=total),
                column("req/s", "rate", number),
                column("longest", "max", milliseconds),
            ),
            goals=(
                at_most(0, "none failed", "failed", whole, of=total),
                at_most(0, "none reset", "reset", whole, of=total),
            ),
            unfit={"bjoern": "it has no reload"},
            rounds=(1, 1),
            # At most; a server that is too slow for all the requests is measured with those it could take.
            seconds=(60, 20),
        )
    ]
