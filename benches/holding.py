"""Scenario `idle-10k`: what ten thousand connections cost that are kept and ask nothing."""

from dataclasses import dataclass

from cells import milliseconds, whole
from generator import Class, Generator, errors
from peers import Start
from scenario import Others, Row, Scenario, at_most, column, serving, total
from server import Failure

IDLE, QUICK_IDLE = 10_000, 2_000
RATE, CONNECTIONS = 200, 16
KEEPALIVE = 600
MIB = 2**20


@dataclass
class Sample:
    """`pss` in MiB without and with the idle connections, `lost` how many of these the server closed; latencies in ms."""

    idle: int
    pss: float
    pss_idle: float
    p99: float
    p99_idle: float
    p999_idle: float
    lost: int
    errors: int
    foreign: float
    lag: float

    @property
    def extra(self):
        return self.pss_idle - self.pss

    @property
    def each(self):
        return self.extra * 1024 / self.idle


def holding(env, scenario, row, pace):
    idle = QUICK_IDLE if pace.quick else IDLE
    with serving(env, scenario, row, files=True) as site:
        load(env, site, 1, 0)
        without, pss, _ = load(env, site, pace.seconds, 0)
        others = Others(site)
        with_idle, pss_idle, lost = load(env, site, pace.seconds, idle)
        foreign = others.share(with_idle["cpu"])
    first, second = without["classes"]["hello"], with_idle["classes"]["hello"]
    return Sample(
        idle,
        pss / MIB,
        pss_idle / MIB,
        first["p99"],
        second["p99"],
        second["p999"],
        lost,
        errors(without) + errors(with_idle),
        foreign,
        max(without["lag"]["p99"], with_idle["lag"]["p99"]),
    )


def load(env, site, seconds, idle):
    """(result, PSS at its end while all connections are open, idle connections lost)"""
    kind = Class("hello", 1, "/hello")
    options = dict(idle=idle, rate=RATE, seconds=seconds, connections=CONNECTIONS, browser=True, hold=True)
    with Generator(env, site.port, [kind], site.client_cpus, **options) as generator:
        generator.wait_for("READY")
        generator.go()
        generator.wait_for("DONE")
        pss = site.server.pss()
        generator.go()
        result = generator.result()
    left = result["idle"]["left"] if idle else 0
    if idle and left < idle / 2:
        raise Failure(f"of {idle} idle connections it kept {left}")
    return result, pss, idle - left


def build():
    most = dict(connections=IDLE + 2000)
    plain = ("bjoern", "granian", "uwsgi-router", "gunicorn-gthread", "rgunicorn")
    return [
        Scenario(
            "idle-10k",
            f"Hello world at {RATE} req/s beside {IDLE} idle connections, 1 worker",
            Start("hello:application", keepalive=KEEPALIVE, **most),
            {peer: Row(peer) for peer in plain},
            holding,
            columns=(
                column("idle connections", "idle", whole),
                column("PSS", "pss", "{:.1f} MiB".format),
                column("with idle ones", "pss_idle", "{:.1f} MiB".format),
                column("**more**", "extra", "{:.1f} MiB".format),
                column("each", "each", "{:.2f} KiB".format),
                column("p99", "p99", milliseconds),
                column("p99 with idle ones", "p99_idle", milliseconds),
                column("p99.9", "p999_idle", milliseconds),
                column("closed by the server", "lost", whole, of=total),
                column("errors", "errors", whole, of=total),
            ),
            goals=(
                at_most(60e6 / MIB, "PSS ≤ +60 MB", "extra", lambda mib: f"{mib * MIB / 1e6:+.1f} MB"),
                at_most(0, "none of them closed", "lost", whole, of=total),
            ),
            unfit={
                "gunicorn-sync": "it keeps no connections",
                "uwsgi": "http-socket keeps no connections",
            },
            rounds=(2, 1),
            seconds=(10, 3),
        )
    ]
