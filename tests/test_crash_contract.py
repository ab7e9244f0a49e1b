"""What becomes of a request when its worker crashes, by the state in which the request is (docs/crash-contract.md).

The application notes each call in a ledger: whatever happens, no request is in it twice.
"""
import os
import re
from collections import Counter
from signal import SIGABRT, SIGKILL, SIGSEGV

import pytest

import wire
from crowd import Crowd, begin, pid_of, wait_inside, wait_ready
from harness import ROOT, alive, read_text, wait_until

APP = "apps.doom"
OPTIONS = ("--keep-alive", "60", "--access-logfile", "access.log")
TROUBLE = (r"was killed by SIG", r"It was running", r"was sent SIGKILL", r"was killed")
CRASHES = {"segv": "SIGSEGV", "abort": "SIGABRT", "bus": "SIGBUS", "fpe": "SIGFPE", "ill": "SIGILL",
           "overflow": "SIGSEGV", "raise": "SIGSEGV"}
EVERY_CRASH = pytest.mark.parametrize("way", CRASHES)
THREADS = pytest.mark.parametrize("threads", [1, 3], ids=["plain", "threads"])


def start(server, *options, **settings):
    running = server(APP, *OPTIONS, *options, **settings)
    running.expect_errors(*TROUBLE)
    return running


def ran(running):
    """How often each request has been run."""
    return Counter(running.read("ran").split())


def check_ledger(running, *names):
    """These have been run, and nothing has been twice."""
    runs = ran(running)
    assert set(names) <= set(runs)
    assert set(runs.values()) <= {1}, runs


def check_page(answer, status):
    assert answer.status == status and answer.closing and answer.framing in ("length", "none")


# --- A: the application has the request, and nothing was sent ---

@EVERY_CRASH
@THREADS
def test_a_request_in_the_application_is_answered_500(server, way, threads):
    running = start(server, "--threads", threads)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        answer = victim.exchange("GET", "/%s?victim" % way)
        check_page(answer, 500)
        assert answer.text.startswith("<html>")
        victim.expect_eof()
    running.wait_log(r"\[ERROR\] Worker \(pid:%d\) was killed by %s" % (old, CRASHES[way]))
    running.wait_log(r"It was running GET /%s\?victim" % way)
    [new] = wait_ready(running, 1)
    assert new != old and running.get("/?after").text == "after"
    check_ledger(running, "victim", "after")


@EVERY_CRASH
def test_the_stacks_are_in_the_log(server, way):
    running = start(server)
    [old] = wait_ready(running, 1)
    assert running.get("/%s?victim" % way).status == 500
    running.wait_log(r"^Fatal error: %s in worker \(pid:%d\)" % (CRASHES[way], old))
    running.wait_log(r'^  File ".*apps/doom\.py", line \d+ in application$')


def test_requests_in_other_threads_are_answered_too(server):
    running = start(server, "--threads", "4")
    wait_ready(running, 1)
    with Crowd(running, 4) as crowd:
        for number, connection in enumerate(crowd.connections):
            begin(running, connection, "/wait/segv", "r%d" % number)
        running.touch("go-r2")
        for connection in crowd.connections:
            check_page(connection.read_response(), 500)
            connection.expect_eof()
    check_ledger(running, *("r%d" % number for number in range(4)))


@THREADS
def test_head_gets_no_body(server, threads):
    running = start(server, "--threads", threads)
    with running.connect() as victim:
        check_page(victim.exchange("HEAD", "/segv?victim"), 500)
        victim.expect_eof()


@pytest.mark.parametrize("path", ["/segv", "/read/segv"], ids=["unread", "read in part"])
def test_a_body_that_nobody_read_does_not_take_the_answer_back(server, path):
    running = start(server)
    wait_ready(running, 1)
    with running.connect() as victim:
        victim.send_request("POST", path + "?victim", body=b"x" * 200000)
        check_page(victim.read_response(), 500)


def test_over_a_unix_socket_too(server, tmp_path):
    running = start(server, bind="unix:%s" % (tmp_path / "s"))
    wait_ready(running, 1)
    with running.connect() as idle, running.connect() as victim:
        assert idle.exchange("GET", "/?first").status == 200
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        assert idle.exchange("GET", "/?second").text == "second"


# --- B: the response has begun ---

@EVERY_CRASH
@THREADS
def test_a_response_that_has_begun_is_broken_off(server, way, threads):
    """Never an end that looks like one, nor a second status line."""
    running = start(server, "--threads", threads)
    wait_ready(running, 1)
    with running.connect() as victim:
        victim.send_request("GET", "/stream/%s?victim" % way)
        assert victim.read_head().status == 200
        assert victim.read_chunk() == b"begun"
        running.touch("go")
        rest = victim.expect_closed()
        assert b"HTTP/1.1" not in rest and b"0\r\n\r\n" not in rest


def test_a_response_that_ends_with_its_connection_is_reset(server):
    """An HTTP/1.0 client takes an orderly end for the end of the response."""
    running = start(server)
    wait_ready(running, 1)
    with running.connect() as victim:
        victim.send_request("GET", "/stream/segv?victim", version="HTTP/1.0")
        assert victim.read_head().framing == "close"
        wait_inside(running, "victim")
        assert victim.read_exactly(5) == b"begun"
        running.touch("go")
        with pytest.raises(wire.ProtocolError, match="reset"):
            victim.expect_eof()


# --- Q1, Q2: the application has not been called ---

@pytest.mark.parametrize("part", [b"GET /?partial HT", b"POST /?partial HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nhalf"],
                         ids=["head", "body"])
def test_a_request_that_has_been_read_in_part_is_answered_503(server, part):
    running = start(server)
    wait_ready(running, 1)
    with running.connect() as early, running.connect() as victim:
        early.send(part)
        # A second connection: by the time that it is served, the first has been read.
        assert running.get("/?between").status == 200
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        answer = early.read_response()
        check_page(answer, 503)
        assert answer.header("retry-after") == "1"
        early.expect_eof()
    assert "partial" not in ran(running)


@pytest.mark.parametrize("options", [(), ("--threads", "2"), ("-w", "2")], ids=["plain", "threads", "workers"])
def test_requests_that_wait_are_run_by_another_worker(server, options):
    """Nothing of them has been read. They are told nothing, and run once."""
    running = start(server, *options)
    wait_ready(running, 2 if "-w" in options else 1)
    names = ["w%d" % number for number in range(6)]
    with Crowd(running, 6) as crowd, Crowd(running, 2) as victims:
        crowd.ask()
        for number, victim in enumerate(victims.connections):
            victim.send_request("GET", "/wait/segv?victim%d" % number)
        wait_inside(running, "victim0")
        for connection, name in zip(crowd.connections, names):
            connection.send_request("GET", "/?" + name)
        running.touch("go")
        assert {victim.read_response().status for victim in victims.connections} == {500}
        assert [connection.read_response().text for connection in crowd.connections] == names
    check_ledger(running, *names, "victim0", "victim1")


def test_what_was_sent_behind_the_request_is_not_run(server):
    running = start(server)
    wait_ready(running, 1)
    with running.connect() as victim:
        victim.send(wire.request_bytes("GET", "/segv?victim") + wire.request_bytes("GET", "/?behind"))
        check_page(victim.read_response(), 500)
        victim.expect_closed()
    assert running.get("/?after").status == 200
    check_ledger(running, "victim", "after")
    assert "behind" not in ran(running)


# --- K: idle ---

@EVERY_CRASH
def test_idle_connections_go_on_in_another_worker(server, way):
    running = start(server, "--threads", "2")
    [old] = wait_ready(running, 1)
    with Crowd(running, 12) as crowd, running.connect() as victim, running.connect() as silent:
        crowd.ask()
        check_page(victim.exchange("GET", "/%s?victim" % way), 500)
        assert old not in set(map(pid_of, crowd.ask()))
        assert silent.exchange("GET", "/?first").text == "first"
    assert set(ran(running).values()) == {1}


def test_a_crash_in_a_loop_loses_no_idle_connection(server):
    running = start(server, "-w", "2")
    wait_ready(running, 2)
    with Crowd(running, 12) as crowd:
        for turn in range(4):
            crowd.ask()
            assert running.get("/segv?victim%d" % turn).status == 500
        crowd.ask()
    assert set(ran(running).values()) == {1}


# --- SIGKILL: nothing can be said ---

def test_a_killed_worker_closes_what_it_has(server):
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim, running.connect() as idle:
        assert idle.exchange("GET", "/?idle").status == 200
        begin(running, victim, "/wait", "victim")
        os.kill(old, SIGKILL)
        assert victim.expect_closed() == b"" and idle.expect_closed() == b""
    assert running.get("/?after").status == 200
    check_ledger(running, "victim", "after")


# --- other people's handlers ---

FAULTHANDLER = """
    import faulthandler, sys
    faulthandler.enable(sys.stderr)
    from apps.doom import application
    app = application
"""


@EVERY_CRASH
def test_the_applications_faulthandler_still_speaks(server, way):
    running = server(FAULTHANDLER, *OPTIONS)
    running.expect_errors(*TROUBLE)
    [old] = wait_ready(running, 1)
    assert running.get("/%s?victim" % way).status == 500
    running.wait_log(r"^Fatal Python error: \w+")
    running.wait_log(r"Worker \(pid:%d\) was killed by %s" % (old, CRASHES[way]))


@pytest.mark.parametrize("way", [way for way in CRASHES if way != "abort"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_the_environments_faulthandler_still_speaks(server, way, preload):
    running = start(server, *preload, env={"PYTHONFAULTHANDLER": "1"})
    [old] = wait_ready(running, 1)
    assert running.get("/%s?victim" % way).status == 500
    running.wait_log(r"^Fatal Python error: \w+")
    running.wait_log(r"Worker \(pid:%d\) was killed by %s" % (old, CRASHES[way]))


OWN = """
    import ctypes
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(11, ctypes.cast(libc._exit, ctypes.c_void_p))
    from apps.doom import application
    app = application
"""


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_a_handler_of_the_applications_own_is_kept(server, preload):
    running = server(OWN, *OPTIONS, *preload)
    running.expect_errors(*TROUBLE, r"exited with code 11")
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        victim.send_request("GET", "/segv?victim")
        assert victim.expect_closed() == b""
    running.wait_log(r"Worker \(pid:%d\) exited with code 11" % old)
    assert "Fatal error" not in running.log()


def test_a_signal_that_asks_for_an_end_is_no_crash(server):
    """ABRT is what gunicorn sends to a worker that is to go: it ends the request as an exception."""
    running = start(server)
    running.expect_errors(r"Error handling request GET /wait\?patient")
    [old] = wait_ready(running, 1)
    with running.connect() as patient:
        begin(running, patient, "/wait", "patient")
        os.kill(old, SIGABRT)
        check_page(patient.read_response(), 500)
    wait_until(lambda: not alive(old), 20, running.log)
    assert "Fatal error" not in running.log()


def test_a_signal_from_outside_is_a_crash(server):
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, "/wait", "victim")
        os.kill(old, SIGSEGV)
        check_page(victim.read_response(), 500)
    running.wait_log(r"Worker \(pid:%d\) was killed by SIGSEGV" % old)


def test_a_child_of_the_application_crashes_alone(server):
    running = start(server)
    [old] = wait_ready(running, 1)
    with Crowd(running, 4) as crowd:
        crowd.ask()
        answer = crowd.connections[0].exchange("GET", "/fork-and-crash?forks")
        assert (answer.status, answer.text) == (200, "child left with 11")
        assert set(map(pid_of, crowd.ask())) == {old}
    assert "Fatal error" not in running.log()
