"""Scenarios `threads-sleep`, `threads-hello` and `gil`: what threads gain, what they cost, and what is left for others."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Optional

from cells import duration, milliseconds, number, whole
from generator import Class, Generator, errors
from load import wrk
from measure import sample_of
from peers import HOST, Start
from scenario import Column, Goal, Others, Row, Scenario, at_least, column, middle, rows, serving, total
from server import Failure

WARM_UP_SECONDS = 1
CONNECTIONS = 32

SLEEP_MS, THREADS = 10, 8
MOST = THREADS * 1000 / SLEEP_MS
ONE = "+1"

# -- sleeping in threads ------------------------------------------------------------------------------------------------


@dataclass
class SleepSample:
    rate: float
    p50: float
    p99: float
    errors: int
    foreign: float
    lag: Optional[float] = None

    @property
    def share(self):
        return self.rate / MOST


def sleeping(env, scenario, row, pace):
    kind = Class("sleep", 1, f"/slow?ms={SLEEP_MS}")
    with serving(env, scenario, row) as site:
        for seconds in (WARM_UP_SECONDS, pace.seconds):
            others = Others(site)
            options = dict(closed=True, connections=CONNECTIONS, seconds=seconds)
            with Generator(env, site.port, [kind], site.client_cpus, **options) as load:
                result = load.result()
            foreign = others.share(result["cpu"])
    figures = result["classes"]["sleep"]
    return SleepSample(result["rate"], figures["p50"], figures["p99"], errors(result), foreign)


def sleep_scenario():
    return Scenario(
        "threads-sleep",
        f"The application sleeps {SLEEP_MS} ms, {CONNECTIONS} connections, 1 worker × {THREADS} threads: at most {MOST:.0f} req/s",
        Start("tail:application", threads=THREADS, keepalive=75),
        rows("granian", "uwsgi", "uwsgi-router", "gunicorn-gthread", "rgunicorn"),
        sleeping,
        columns=(
            column("**req/s**", "rate", number),
            column("of the possible", "share", "{:.0%}".format),
            column("p50", "p50", milliseconds),
            column("p99", "p99", milliseconds),
            column("errors", "errors", whole, of=total),
        ),
        goals=(
            at_least(0.95 * MOST, f"req/s ≥ {0.95 * MOST:.0f}", "rate", whole),
        ),
        unfit={"bjoern": "one request at a time in a process", "gunicorn-sync": "one request at a time in a process"},
        rounds=(3, 1),
        seconds=(5, 2),
    )


# -- threads that have nothing to do ------------------------------------------------------------------------------------


def hello(env, scenario, row, pace):
    with serving(env, scenario, row) as site:
        url = f"http://{HOST}:{site.port}/hello"
        wrk(url, WARM_UP_SECONDS, CONNECTIONS, cpus=site.client_cpus)
        return sample_of(site.server, None, lambda: wrk(url, pace.seconds, CONNECTIONS, cpus=site.client_cpus))


def hello_scenario():
    peers = ("granian", "gunicorn-gthread", "rgunicorn")
    pairs = {}
    for peer in peers:
        pairs[peer + ONE] = Row(peer, changes=dict(threads=1), note="1 thread")
        pairs[peer] = Row(peer, changes=dict(threads=THREADS), note=f"{THREADS} threads")
    return Scenario(
        "threads-hello",
        f"Hello world, keep-alive, {CONNECTIONS} connections, 1 worker with {THREADS} threads beside one with 1",
        Start("hello:application"),
        pairs,
        hello,
        columns=(
            column("user", "user", number),
            column("sys", "system", number),
            column("**CPU µs/req**", "cpu", number),
            column("**req/s**", "rps", number),
            column("p50", "p50", duration),
            column("p99", "p99", duration),
            column("errors", "errors", whole, of=total),
        ),
        goals=(
            Goal(
                f"req/s of {THREADS} threads ≥ 0.90 × 1 thread",
                lambda results: ratio(results, "rps"),
                lambda value: value >= 0.9,
                "{:.2f}".format,
            ),
            Goal(
                f"CPU of {THREADS} threads ≤ 1/0.90 × 1 thread",
                lambda results: ratio(results, "cpu"),
                lambda value: value <= 1 / 0.9,
                "{:.2f}".format,
            ),
        ),
        needs=("wrk",),
        rounds=(5, 2),
        seconds=(4, 2),
    )


def ratio(results, name):
    """Of rgunicorn with threads to itself with one: the median over the rounds."""
    many, one = results.get("rgunicorn", {}), results.get("rgunicorn" + ONE, {})
    shared = many.keys() & one.keys()
    return median(getattr(many[n], name) / getattr(one[n], name) for n in shared) if shared else None


# -- a thread of the application's own ----------------------------------------------------------------------------------


@dataclass
class GilSample:
    """Counts per second, in millions; `idle` is the faster of before and after, as neighbours can only slow it down."""

    idle: float
    loaded: float
    rps: float
    p99: int
    errors: int
    foreign: float
    lag: Optional[float] = None

    @property
    def share(self):
        return self.loaded / self.idle if self.idle else 0.0


def gil(env, scenario, row, pace):
    folder = env.scratch / "counters"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    with serving(env, scenario, row, {"BENCH_COUNT": str(folder)}) as site:
        url = f"http://{HOST}:{site.port}/hello"
        before = counting(site, folder, lambda: time.sleep(pace.seconds))
        wrk(url, WARM_UP_SECONDS, CONNECTIONS, cpus=site.client_cpus)
        done = []
        load = lambda: done.append(wrk(url, pace.seconds, CONNECTIONS, cpus=site.client_cpus))  # noqa: E731
        others = Others(site)
        loaded = counting(site, folder, load)
        traffic = done[0]
        foreign = others.share(traffic.client_cpu)
        idle = max(before, counting(site, folder, lambda: time.sleep(pace.seconds)))
        return GilSample(idle, loaded, traffic.requests / traffic.seconds, traffic.p99, traffic.errors, foreign)


def counting(site, folder, meanwhile):
    """How fast the application's thread counts while that is done, in millions per second."""
    before, began = count(site, folder), time.monotonic()
    meanwhile()
    return (count(site, folder) - before) / (time.monotonic() - began) / 1e6


def count(site, folder):
    files = [Path(folder) / str(pid) for pid in site.server.pids()]
    counts = [int.from_bytes(file.read_bytes(), "little") for file in files if file.exists()]
    if len(counts) != 1:
        raise Failure(f"{len(counts)} processes of the server count, not 1")
    return counts[0]


def gil_scenario():
    return Scenario(
        "gil",
        f"Hello world, {CONNECTIONS} connections, 1 worker, beside a thread of the application that counts all the time",
        Start("counting:application", background=True),
        rows("bjoern", "fastpysgi", "granian", "uwsgi-router", "gunicorn-gthread", "rgunicorn"),
        gil,
        columns=(
            column("counts/s, idle", "idle", "{:.2f} M".format),
            column("counts/s, loaded", "loaded", "{:.2f} M".format),
            column("**of idle**", "share", "{:.0%}".format),
            column("**req/s**", "rps", number),
            column("p99", "p99", duration),
            column("errors", "errors", whole, of=total),
        ),
        goals=(at_least(0.2, "the thread counts at ≥ 20 % of its speed", "share", "{:.0%}".format),),
        unfit={"gunicorn-sync": "it keeps no connections"},
        needs=("wrk",),
        rounds=(3, 1),
        seconds=(4, 2),
    )


def build():
    return [sleep_scenario(), hello_scenario(), gil_scenario()]
