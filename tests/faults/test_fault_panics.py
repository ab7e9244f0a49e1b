"""Panics of the server's own code, which the tests plant: a process that panics ends, and says why. Under traffic, with a ledger.

The number is the row of docs/faults.md.
"""
import importlib.util
import os
import socket
from signal import SIGABRT, SIGKILL, SIGUSR1

import pytest

import wire
from faulty import (DEATH, FAULTY, alive, compare, compare_all, mold_of, start, traffic, wait_ready, wait_replaced,
                    wait_until, worker_of)


def has_defects():
    found = importlib.util.find_spec("rgunicorn._core")
    with open(found.origin, "rb") as f:
        return b"RGUNICORN_DEFECTS" in f.read()


pytestmark = pytest.mark.skipif(not has_defects(), reason="a release cannot be made to panic")

KINDS = pytest.mark.parametrize("kind", [[], ["--threads", "2"], ["--preload"]], ids=["workers", "threads", "preload"])

# What catches everything is what would swallow a panic that Python hears of.
APP = FAULTY.replace("def app(", "def faulty(") + """
    def plant(place):
        open(os.path.join("defects", place), "w").close()

    def swallow(environ):
        plant("input")
        try:
            environ["wsgi.input"].readline()
        except BaseException:
            pass

    def late(environ):
        yield b"begun"
        leave(environ)
        swallow(environ)
        yield b"end"

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path not in ("/read", "/read-late", "/raise"):
            return faulty(environ, start_response)
        inside(environ)
        if path == "/raise":
            plant("log")
            raise ValueError
        start_response("200 OK", [("Content-Type", "text/plain")])
        if path == "/read-late":
            return late(environ)
        swallow(environ)
        return [b"swallowed"]
"""


def start_with_defects(server, *options):
    running = start(server, *options, app=APP, env={"RGUNICORN_DEFECTS": "defects"})
    running.expect_errors(*DEATH, r"panicked", r"Error handling")
    os.mkdir(running.path("defects"))
    return running


def plant(running, place):
    running.touch("defects/" + place)


def wait_panic(running, who, place, pid=r"\d+"):
    """The process that said where it has panicked, and that it did."""
    said = running.wait_log(r"^\[.*\] \[(%s)\] \[CRITICAL\] The %s panicked at src/[\w/]+\.rs:\d+:\d+: planted at %s$"
                            % (pid, who, place))
    return int(said.group(1))


def wait_worker_panic(running, place, pid=r"\d+"):
    """A worker that panicked, by what it said, what it was doing, and what the arbiter knows of its death."""
    pid = wait_panic(running, "worker", place, pid)
    running.wait_log(r"Fatal error: SIGABRT in worker \(pid:%d\).*Stacks of all threads:\n(?:.*\n)*?  File " % pid)
    running.wait_log(r"\[ERROR\] Worker \(pid:%d\) was killed by SIGABRT( \(core dumped\))?\. It panicked: a defect" % pid)
    return pid


@KINDS
@pytest.mark.parametrize("place", ["loop", "helper", "call"])
def test_row_29_a_panic_in_a_worker_ends_it(server, kind, place):
    """In the loop between requests, in the thread beside it, in a request that the application has not been called for."""
    running = start_with_defects(server, "-w", "2", *kind)
    killed = set()
    with traffic(running, refusals=(500, 503)) as clients:
        for _ in range(3):
            clients.wait_answers(40)
            plant(running, place)
            victim = wait_until(lambda: panicked(running) - killed, 20, running.log).pop()
            assert wait_worker_panic(running, place, victim) == victim
            wait_replaced(running, victim, 2)
            killed.add(victim)
        clients.wait_answers(40)
    compare(running, clients, set())
    assert panicked(running) == killed


def panicked(running):
    return {pid for pid, level, text in running.lines("CRITICAL") if " panicked at " in text}


@KINDS
def test_row_29_a_panic_below_the_application_is_answered_and_not_swallowed(server, kind):
    running = start_with_defects(server, "-w", "2", *kind)
    with traffic(running, refusals=(500, 503)) as clients:
        clients.wait_answers(40)
        with running.connect() as connection:
            response = connection.exchange("GET", "/read?doomed")
            assert response.status == 500 and response.closing
            connection.expect_eof()
        victim = worker_of(running, "doomed")
        assert wait_worker_panic(running, "input") == victim
        running.wait_log(r"\[ERROR\] It was running GET /read\?doomed for \d+ s$")
        wait_replaced(running, victim, 2)
        clients.wait_answers(40)
    compare(running, clients, set())


def test_row_29_a_panic_in_a_response_is_no_end_of_it(server):
    running = start_with_defects(server, "-w", "2")
    with traffic(running, refusals=(503,)) as clients, running.connect() as connection:
        connection.send_request("GET", "/read-late?late")
        victim = worker_of(running, "late")
        response = connection.read_head()
        assert response.framing == "chunked" and connection.read_chunk() == b"begun"
        clients.wait_answers(40)
        running.touch("go")
        with pytest.raises(wire.ProtocolError, match="the stream ended inside"):
            connection.read_chunk()
        assert wait_worker_panic(running, "input") == victim
        wait_replaced(running, victim, 2)
    compare(running, clients, set())


def test_row_29_a_panic_of_whoever_holds_the_log_is_in_the_log(server):
    running = start_with_defects(server, "-w", "2")
    with traffic(running, refusals=(500, 503)) as clients:
        clients.wait_answers(40)
        with running.connect() as connection:
            assert connection.exchange("GET", "/raise?doomed").status == 500
        victim = worker_of(running, "doomed")
        assert wait_worker_panic(running, "log") == victim
        wait_replaced(running, victim, 2)
    compare(running, clients, set())


@KINDS
def test_row_29_a_panic_of_the_arbiter_is_its_death(server, kind):
    """As in row 3: what has begun is finished, and the port is free."""
    running = start_with_defects(server, "-w", "2", "--graceful-timeout", "20", *kind)
    port, workers = running.port, running.workers()
    with running.connect() as connection:
        connection.send_request("GET", "/wait?held")
        worker_of(running, "held")
        with traffic(running) as clients:
            clients.wait_answers(40)
            plant(running, "arbiter")
            running.signal(SIGUSR1)
            assert running.wait_exit() == -SIGABRT
            assert wait_panic(running, "arbiter", "arbiter") == running.pid
            wait_until(lambda: sum(map(alive, workers)) == 1, 20, running.log)
            running.touch("go")
            assert connection.read_response().status == 200
            wait_until(lambda: not any(map(alive, workers)), 20, running.log)
    compare(running, clients, set())
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_row_29_nobody_notices_a_mold_that_panics(server):
    running = start_with_defects(server, "-w", "2", "--preload")
    running.expect_errors(r"[Mm]old")
    mold = mold_of(running)
    killed = set()
    with traffic(running) as clients:
        clients.wait_answers(40)
        plant(running, "mold")
        # It looks there when it has forked another one.
        for _ in range(2):
            victim = running.workers()[0]
            killed.add(victim)
            os.kill(victim, SIGKILL)
            wait_replaced(running, victim, 2)
        assert wait_panic(running, "mold", "mold") == mold
        wait_until(lambda: mold_of(running) != mold, 20, running.log)
        clients.wait_answers(40)
    compare(running, clients, killed)
    wait_ready(running, 2)
