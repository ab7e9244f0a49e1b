"""Every request is run once and answered once, whatever happens to the workers between which its connection travels."""
import os
import random
from collections import Counter
from signal import SIGHUP, SIGKILL, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1

import pytest

from crowd import wait_ready
from harness import wait_until
from ledger import ANSWERED, APP, CLOSED, SEED, Clients, compare, compare_all

SETS = pytest.mark.parametrize("options", [
    ("-w", "2"), ("-w", "3"), ("-w", "2", "--threads", "2"), ("-w", "3", "--threads", "2", "--preload"),
], ids=" ".join)


def start(server, options):
    running = server(APP, "--keep-alive", "60", "--graceful-timeout", "30", *options)
    wait_ready(running, int(options[1]))
    return running


@SETS
def test_nothing_is_lost_between_busy_workers(server, options):
    running = start(server, options)
    with Clients(running, 16, SEED) as clients:
        clients.wait_answers(400)
    compare_all(running, clients)


@SETS
def test_nothing_is_lost_when_workers_come_and_go(server, options):
    """Told by signals, and killed by nobody."""
    running = start(server, options)
    # One that is told to go may be the new one that a reload waits for.
    running.expect_errors(r"Reload failed")
    chance = random.Random(SEED)
    with Clients(running, 16, SEED) as clients:
        for _ in range(10):
            clients.wait_answers(30)
            action = chance.choice([SIGHUP, SIGTTIN, SIGTTOU, SIGUSR1, "term"])
            if action == "term":
                workers = running.workers()
                os.kill(chance.choice(workers), SIGTERM)
            else:
                running.signal(action)
        clients.wait_answers(200)
    compare_all(running, clients)


@SETS
def test_only_what_a_killed_worker_had_is_lost(server, options):
    running = start(server, options)
    running.expect_errors(r"SIGKILL", r"was running", r"Reload failed")
    chance = random.Random(SEED)
    killed = set()
    with Clients(running, 16, SEED) as clients:
        for _ in range(4):
            for _ in range(chance.randrange(4)):
                clients.wait_answers(20)
                running.signal(chance.choice([SIGHUP, SIGTTIN, SIGTTOU]))
            clients.wait_answers(40)
            victim = chance.choice(wait_until(running.workers))
            killed.add(victim)
            os.kill(victim, SIGKILL)
        clients.wait_answers(100)
    told = compare(running, clients, killed)
    # A killed worker takes along what it had in its hands; the rest is answered.
    assert Counter(told.values())[CLOSED] <= len(killed) * len(clients.all)


@SETS
def test_the_end_of_the_server_breaks_nothing_off(server, options):
    """What it has begun it finishes; what it closes it has not begun."""
    running = start(server, options)
    with Clients(running, 16, SEED) as clients:
        clients.wait_answers(50)
        running.signal(SIGTERM)
        assert running.wait_exit(20) == 0
    told = compare(running, clients, ())
    assert ANSWERED in told.values()
