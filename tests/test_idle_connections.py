"""A connection at rest outlives the worker that has it, and workers have equal shares of them."""
import os
from signal import SIGHUP, SIGTERM, SIGTTIN, SIGTTOU

import pytest

import wire
from crowd import Crowd, begin, pid_of, wait_ready
from harness import Threads, alive, read_text, thread_switches, wait_until

APP = "apps.tail"
KEEP = ("--keep-alive", "60")
SETS = pytest.mark.parametrize("options", [
    ("-w", "1"), ("-w", "2"), ("-w", "2", "--preload"), ("-w", "2", "--threads", "2"),
], ids=["one", "two", "preload", "threads"])


def start(server, options, *more):
    """The server, and its workers."""
    running = server(APP, *KEEP, *options, *more)
    return running, wait_ready(running, int(options[1]))


def wait_gone(running, pids):
    wait_until(lambda: not any(map(alive, pids)), 20, running.log)


def check(running, crowd):
    """Each is answered, twice, by a worker that is there."""
    for _ in range(2):
        assert set(map(pid_of, crowd.ask())) <= set(running.workers())


@SETS
def test_reload_closes_none(server, options):
    running, old = start(server, options)
    with Crowd(running, 12) as crowd:
        for _ in range(2):
            check(running, crowd)
            running.signal(SIGHUP)
            wait_gone(running, old)
            old = wait_ready(running, len(old))
            assert set(crowd.counts()) <= set(old)


@SETS
def test_reload_closes_none_of_those_in_use(server, options):
    """Each in the hands of a client that never pauses."""
    running, old = start(server, options)
    with Crowd(running, 6) as crowd:
        for _ in range(2):
            running.signal(SIGHUP)
            while any(map(alive, old)):
                crowd.ask()
            old = wait_ready(running, len(old))
            check(running, crowd)


@SETS
def test_max_requests_closes_none(server, options):
    running, _ = start(server, options, "--max-requests", "10")
    with Crowd(running, 8) as crowd, running.connect() as busy:
        crowd.ask()
        seen = set()
        while len(seen) < 5:
            answer = busy.exchange()
            assert answer.status == 200 and not answer.closing
            seen.add(pid_of(answer))
        crowd.ask()
        crowd.ask()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_fewer_and_more_workers_close_none(server, preload):
    running, old = start(server, ("-w", "3"), *preload)
    with Crowd(running, 12).spread(3) as crowd:
        for number in (2, 1):
            running.signal(SIGTTOU)
            running.wait_workers(number)
            check(running, crowd)
        for number in (2, 3):
            running.signal(SIGTTIN)
            wait_ready(running, number)
            check(running, crowd)


@SETS
def test_a_worker_told_to_go_closes_none(server, options):
    """Alone, it waits for nobody to take over: the arbiter has to replace it first."""
    running, old = start(server, options)
    with Crowd(running, 12) as crowd:
        check(running, crowd)
        if len(old) > 1:
            os.kill(old[0], SIGTERM)
            wait_gone(running, old[:1])
            wait_ready(running, len(old))
            check(running, crowd)


@pytest.mark.parametrize("options", [("-w", "1"), ("-w", "2", "--threads", "2")], ids=["one", "threads"])
def test_a_worker_that_timed_out_closes_none(server, options):
    running, old = start(server, options, "--timeout", "1")
    running.expect_errors(r"TIMEOUT", r"Stacks of all threads", r"has been running", r"Error handling request", r"was running")
    with Crowd(running, 12) as crowd, running.connect() as victim:
        check(running, crowd)
        stuck = begin(running, victim, "/asleep", "stuck")
        if len(old) > 1 or "--threads" in options:
            crowd.ask()
        assert victim.read_response().status == 504
        wait_gone(running, [stuck])
        check(running, crowd)


@SETS
def test_the_end_of_the_server_closes_them_in_order(server, options):
    running, _ = start(server, options)
    with Crowd(running, 12) as crowd:
        crowd.ask()
        assert running.stop(SIGTERM, timeout=15) == 0
        for connection in crowd.connections:
            connection.expect_eof()


def test_the_end_of_the_server_finishes_what_has_begun(server):
    """While one request is under way, those that come on other connections are answered, or their connections closed
    without an octet; never half."""
    running, _ = start(server, ("-w", "2"))
    with Crowd(running, 8).spread(2) as crowd, running.connect() as victim:
        begin(running, victim, "/wait", "slow")
        running.signal(SIGTERM)
        for connection in crowd.connections:
            connection.expect_eof()
        running.touch("go")
        assert victim.read_response().text == "slow"
        victim.expect_eof()
        assert running.wait_exit(15) == 0


# --- equal shares ---


def spread(crowd, workers):
    """Waits until no worker has more than twice the connections of another; a few looks a second are enough for that."""
    seen = []

    def looked():
        seen.append(sorted(crowd.counts().values()))
        return len(seen[-1]) == workers and seen[-1][-1] <= 2 * seen[-1][0]
    wait_until(looked, 10, lambda: "an even spread: %s" % seen)
    return seen


@pytest.mark.parametrize("workers", [2, 4])
def test_connections_that_come_at_once_are_spread_evenly(server, workers):
    running, _ = start(server, ("-w", workers))
    with Crowd(running, 64) as crowd:
        crowd.ask()
        print(spread(crowd, workers))


@pytest.mark.parametrize("workers", [2, 4])
def test_connections_that_come_under_load_are_spread_evenly(server, workers):
    running, _ = start(server, ("-w", workers))

    def load(_, over):
        with running.connect() as connection:
            while not over.is_set():
                connection.exchange()
    with Threads(3, load), Crowd(running, 0) as crowd:
        for _ in range(64):
            crowd.connections.append(wire.Connection(running.address))
            crowd.connections[-1].exchange()
        print(spread(crowd, workers))


def test_connections_are_spread_over_new_workers(server):
    running, _ = start(server, ("-w", "2"))
    with Crowd(running, 48) as crowd:
        spread(crowd, 2)
        running.signal(SIGTTIN)
        wait_ready(running, 3)
        print(spread(crowd, 3))


# --- what becomes of them while their worker is stuck ---

def test_keep_alive_ends_also_at_a_stuck_worker(server):
    running = server(APP, "-w", "2", "--keep-alive", "1")
    wait_ready(running, 2)
    with Crowd(running, 12).spread(2) as crowd, running.connect() as victim:
        begin(running, victim, "/wait", "slow")
        for connection in crowd.connections:
            connection.expect_eof()
        running.touch("go")
        assert victim.read_response().text == "slow"


@pytest.mark.parametrize("at_rest", ["before", "after"])
def test_keep_alive_ends_though_the_helper_has_seen_nothing(server, at_rest):
    """The thread that looks after connections while a request runs sleeps when there is none, and what wakes it may be gone by
    the time that it looks: here always, as it runs only when nobody else wants to.
    """
    running = server(APP, "--keep-alive", "2")
    [pid] = wait_ready(running, 1)
    helper = keep_down(pid)
    with running.connect() as connection, running.connect() as victim:
        if at_rest == "before":
            wait_asleep(pid, helper)
        assert connection.exchange("GET", "/?idle").text == "idle"
        if at_rest == "after":
            wait_asleep(pid, helper)
        begin(running, victim, "/wait", "slow")
        connection.expect_eof()
        running.touch("go")
        assert victim.read_response().text == "slow"


def keep_down(pid):
    """All threads of a worker on one processor, of which the helper gets what the others leave."""
    threads = [int(thread) for thread in os.listdir("/proc/%d/task" % pid)]
    [helper] = [thread for thread in threads if read_text("/proc/%d/task/%d/comm" % (pid, thread)) == "helper\n"]
    processor = min(os.sched_getaffinity(pid))
    for thread in threads:
        os.sched_setaffinity(thread, [processor])
    os.sched_setscheduler(helper, os.SCHED_IDLE, os.sched_param(0))
    return helper


def wait_asleep(pid, helper):
    """It has stopped looking every millisecond."""
    seen = []

    def sleeps():
        seen.append(thread_switches(pid)[pid, str(helper)])
        return len(seen) > 3 and len(set(seen[-3:])) == 1
    wait_until(sleeps)
