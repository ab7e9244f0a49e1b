"""Mixed requests for a long time, with a kill, a reload, another number of workers or a rotated log every second.

A short course is taken every time; `RGUNICORN_BIG=1` takes the long one, of a million requests.
"""
import os
import random
import time
from collections import Counter
from signal import SIGHUP, SIGKILL, SIGTTIN, SIGTTOU, SIGUSR1

import pytest

import harness
from faulty import ANSWERED, DEATH, SEED, Clients, compare, start, wait_ready, wait_until
from ledger import ledger

BIG = os.environ.get("RGUNICORN_BIG") == "1"
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "1000000")) if BIG else 3000
CLIENTS = 24 if BIG else 8
# So many that a million requests take minutes and not hours.
SLOW = 0.002 if BIG else 0.1
EVENTS = ("kill", "reload", "more", "fewer", "rotate")


class Operator:
    """Does something every second, and notes whom it has killed."""

    def __init__(self, running):
        self.running = running
        self.random = random.Random(SEED)
        self.killed = set()
        self.done = Counter()
        self.rotated = 0

    def act(self):
        event = self.random.choice(EVENTS)
        self.done[event] += 1
        getattr(self, event)()

    def kill(self):
        workers = self.running.workers()
        if workers:
            victim = self.random.choice(workers)
            self.killed.add(victim)
            try:
                os.kill(victim, SIGKILL)
            except ProcessLookupError:
                pass

    def reload(self):
        self.running.signal(SIGHUP)

    def more(self):
        self.running.signal(SIGTTIN)

    def fewer(self):
        self.running.signal(SIGTTOU)

    def rotate(self):
        self.rotated += 1
        os.rename(self.running.path("access.log"), self.running.path("access.log.%d" % self.rotated))
        self.running.signal(SIGUSR1)
        wait_until(lambda: self.running.exists("access.log"))


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


@pytest.mark.timeout(7200 if BIG else 120)
@pytest.mark.parametrize("options", [["-w", "3"], ["-w", "2", "--threads", "2"], ["-w", "3", "--preload"]],
                         ids=["workers", "threads", "preload"])
def test_nothing_is_lost_and_nothing_grows(server, options):
    if BIG and os.environ.get("SOAK_OPTIONS", " ".join(options)) != " ".join(options):
        pytest.skip("another set was asked for")
    running = start(server, "--access-logfile", "access.log", *options)
    running.expect_errors(*DEATH, r"Reload failed", r"[Mm]old")
    operator = Operator(running)
    with Clients(running, CLIENTS, SEED, slow=SLOW) as clients:
        clients.wait_answers(min(REQUESTS // 10, 20000))
        at_first = descriptors(running.pid), harness.memory_of(running.pid)
        goal = clients.answers() + REQUESTS
        while clients.answers() < goal and not any(client.faults for client in clients.all):
            operator.act()
            until = time.monotonic() + (1 if BIG else 0.3)
            wait_until(lambda: time.monotonic() > until)
    told = compare(running, clients, operator.killed)
    running.signal(SIGHUP)
    wait_ready(running, int(options[1]))
    in_the_end = descriptors(running.pid), harness.memory_of(running.pid)
    lost = len(told) - Counter(told.values())[ANSWERED]
    print("%d requests, %s, %d not answered (%d left by the client), descriptors and kB of the arbiter %s to %s" % (
        len(told), dict(operator.done), lost, Counter(told.values())["left by the client"], at_first, in_the_end))
    assert set(operator.done) == set(EVENTS) or not BIG
    assert in_the_end[0] <= at_first[0] + 4
    assert in_the_end[1] <= at_first[1] + 4096
    # Each line of the log is a request, and each that was answered has its line; those of killed workers may lack theirs.
    by = dict(ledger(running))
    logs = [name for name in os.listdir(running.path("")) if name.startswith("access.log")]
    lines = Counter(line.split("?")[1].split("&")[0].split()[0] for name in logs for line in running.read(name).splitlines()
                    if "/?" in line)
    assert not {name for name, what in told.items() if what == ANSWERED and name not in lines and by[name] not in operator.killed}
