"""Scenarios `stall`, `stall-pinned` and `mixed`: what the fast requests wait for while slow ones are being served.

Open loop: the requests come when they come, whatever the server is doing, and each latency counts from the moment it was due.
"""

from dataclasses import dataclass

import queueing
from cells import milliseconds, whole
from generator import Class, Generator, errors
from peers import Start
from scenario import Column, Others, Scenario, at_most, column, middle, rows, serving, total
from stuck import SlowRequest, connection_to_fullest, connections_of

SERVERS = ("bjoern", "granian", "uwsgi", "uwsgi-router", "gunicorn-sync", "gunicorn-gthread", "rgunicorn")
START = Start("tail:application", workers=2, threads=1, keepalive=75)
LATE = 0.02

STALL_RATE, STALL_CONNECTIONS = 200, 32
MIXED_LOAD, MIXED_CONNECTIONS = 0.6, 64
SLOW_SHARE = 0.05
SERVICES = {"fast": 0.001, "slow": 0.3}
FAST = Class("fast", 1 - SLOW_SHARE, "/fast")
SLOW = Class("slow", SLOW_SHARE, "/slow?ms=300")


@dataclass
class Sample:
    """Latencies of the fast requests in ms; `late` is how many took longer than 20 ms, `glued` how many of the connections
    were at the worker with the slow request when the load began, `ideal` the p99 of one queue before all workers."""

    p50: float
    p99: float
    p999: float
    max: float
    errors: int
    reconnects: int
    lag: float
    foreign: float
    late: int = 0
    glued: int = 0
    ideal: float = 0.0
    slow_p50: float = 0.0

    @property
    def ratio(self):
        return self.p99 / self.ideal


def sample(result, foreign, **more):
    fast = result["classes"]["fast"]
    latencies = [fast[name] for name in ("p50", "p99", "p999", "max")]
    return Sample(*latencies, errors(result), result["reconnects"], result["lag"]["p99"], foreign, **more)


# -- one slow request, many fast ones -----------------------------------------------------------------------------------


def stall(env, scenario, row, pace, pin=False):
    mark, trace = env.scratch / "slow.mark", env.scratch / "trace.csv"
    options = dict(connections=STALL_CONNECTIONS, rate=STALL_RATE, seconds=pace.seconds, seed=pace.round + 1, pin=pin)
    with serving(env, scenario, row, {"BENCH_MARK": str(mark)}) as site:
        with Generator(env, site.port, [FAST], site.client_cpus, hold=True, trace=trace, **options) as load:
            load.wait_for("READY")
            others = Others(site)
            with connection_to_fullest(site) as connection:
                slow = SlowRequest(connection, mark, pace.seconds + 1)
                # Its own connection is not one of the load.
                glued = connections_of(slow.reach(), site.port) - 1
                load.go()
                load.wait_for("DONE")
                load.go()
                slow.finish()
            result = load.result()
            return sample(result, others.share(result["cpu"]), late=late(trace), glued=max(0, glued))


def stall_pinned(env, scenario, row, pace):
    return stall(env, scenario, row, pace, pin=True)


def late(trace):
    with open(trace) as file:
        next(file)
        return sum(float(line.split(",")[2]) > LATE * 1000 for line in file)


# -- a mix --------------------------------------------------------------------------------------------------------------


def mixed(env, scenario, row, pace):
    trace = env.scratch / "trace.csv"
    options = dict(connections=MIXED_CONNECTIONS, rate=mixed_rate(), seconds=pace.seconds, seed=pace.round + 1)
    with serving(env, scenario, row) as site:
        with Generator(env, site.port, [FAST, SLOW], site.client_cpus, hold=True, trace=trace, **options) as load:
            load.wait_for("READY")
            others = Others(site)
            load.go()
            load.wait_for("DONE")
            load.go()
            result = load.result()
            foreign = others.share(result["cpu"])
    ideal = queueing.ideal(trace, START.workers, SERVICES, "fast", 0.99) * 1000
    return sample(result, foreign, ideal=ideal, slow_p50=result["classes"]["slow"]["p50"])


def mixed_rate():
    """So that the workers are busy for MIXED_LOAD of the time."""
    mean = SLOW_SHARE * SERVICES["slow"] + (1 - SLOW_SHARE) * SERVICES["fast"]
    return MIXED_LOAD * START.workers / mean


# -- the scenarios ------------------------------------------------------------------------------------------------------


LATENCIES = (
    column("p50", "p50", milliseconds),
    column("**p99**", "p99", milliseconds),
    column("**p99.9**", "p999", milliseconds),
    column("max", "max", milliseconds, of=lambda samples, name: max(getattr(s, name) for s in samples.values())),
)
TROUBLE = (
    column("errors", "errors", whole, of=total),
    column("reconnects", "reconnects", whole, of=total),
)


def stalls():
    columns = (
        Column("at the stuck worker", lambda samples: f"{middle(samples, 'glued'):.0f} of {STALL_CONNECTIONS}"),
        *LATENCIES,
        column("> 20 ms", "late", whole, of=total),
        *TROUBLE,
    )
    goals = (
        at_most(LATE * 1000, "p99.9 of the fast ≤ 20 ms", "p999", milliseconds),
        at_most(0, "no errors", "errors", whole, of=total),
    )
    common = dict(start=START, rows=rows(*SERVERS), columns=columns, goals=goals, rounds=(3, 1), seconds=(9, 4))
    title = "One slow request in flight, 200 req/s of 1 ms on 32 keep-alive connections, 2 workers × 1 thread"
    return [
        Scenario("stall", title, take=stall, **common),
        Scenario("stall-pinned", f"{title}, each request on its own connection", take=stall_pinned, **common),
    ]


def build():
    return [*stalls(), mixture()]


def mixture():
    return Scenario(
        "mixed",
        "5 % of the requests take 300 ms, the others 1 ms, 60 % load, 64 connections, 2 workers × 1 thread",
        START,
        rows(*SERVERS),
        mixed,
        columns=(
            *LATENCIES,
            column("ideal p99", "ideal", milliseconds),
            column("**p99 ÷ ideal**", "ratio", "{:.2f}".format),
            column("p50 of the slow", "slow_p50", milliseconds),
            *TROUBLE,
        ),
        goals=(
            at_most(1.25, "p99 of the fast ≤ 1.25 × one ideal queue", "ratio", "{:.2f}".format),
            at_most(0, "no errors", "errors", whole, of=total),
        ),
        rounds=(1, 1),
        seconds=(90, 15),
    )
