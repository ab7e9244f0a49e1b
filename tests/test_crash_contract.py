"""What becomes of a request when its worker crashes, by the state in which the request is (docs/crash-contract.md).

The application notes each call in a ledger: whatever happens, no request is in it twice.
"""
import os
import re
from collections import Counter
from signal import SIGABRT, SIGHUP, SIGKILL, SIGQUIT, SIGSEGV, SIGSTOP, SIGTERM

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


# --- every state at once, event by event ---

# What becomes of a connection in each state; `finished` is the whole answer, `goes on` another one on the same connection.
EVENTS = {
    "reload": dict(Q0="finished", Q1="finished", A="finished", B="finished", K="goes on"),
    "term": dict(Q0="finished", Q1="finished", A="finished", B="finished", K="closed"),
    "quit": dict(Q0="closed", Q1="closed", A="503 or closed", B="cut", K="closed"),
    "graceful timeout": dict(Q0="finished or closed", Q1="finished or closed", A="504", B="cut", K="closed"),
    "timeout": dict(Q0="finished", Q1="finished", A="504", B="cut", K="goes on"),
    "crash": dict(Q0="finished", Q1="503", A="500", B="cut", K="goes on"),
    "kill": dict(Q0="finished", Q1="closed", A="closed", B="cut", K="closed"),
    "stop": dict(Q0="finished", Q1="closed", A="closed", B="cut", K="closed"),
    "orphan": dict(Q0="finished", Q1="finished", A="finished", B="finished", K="closed"),
}
WITH = {"timeout": ("--timeout", "1"), "stop": ("--timeout", "1"), "graceful timeout": ("--graceful-timeout", "1")}


def rest_of(connection):
    """What comes until the last chunk or the end."""
    rest = b""
    try:
        while not rest.endswith(b"\r\n0\r\n\r\n"):
            more = connection.read_some()
            if not more:
                break
            rest += more
    except wire.ProtocolError as error:
        assert "reset" in str(error)
    return rest


class States:
    """A connection in each state, all of one worker whose two threads are busy."""

    HALF, REST = b"GET /?Q1 HTTP/1.1\r\nHo", b"st: t\r\n\r\n"

    def __init__(self, running, way):
        self.running = running
        self.K, self.Q1, self.A, self.B = (running.connect() for _ in range(4))
        assert self.K.exchange("GET", "/?K").status == 200
        self.Q1.send(self.HALF)
        # By the time that these are answered, it has been read.
        for _ in range(2):
            assert self.K.exchange("GET", "/?K").status == 200
        begin(running, self.A, "/wait/" + way, "A")
        self.B.send_request("GET", "/stream/nothing?B")
        assert self.B.read_head().status == 200 and self.B.read_chunk() == b"begun"
        self.Q0 = running.connect()
        self.Q0.send_request("GET", "/?Q0")

    def happens(self, event, pid):
        running = self.running
        if event == "reload":
            running.signal(SIGHUP)
        elif event in ("term", "graceful timeout"):
            running.signal(SIGTERM)
        elif event == "quit":
            running.signal(SIGQUIT)
        elif event in ("kill", "stop"):
            os.kill(pid, SIGKILL if event == "kill" else SIGSTOP)
        elif event == "orphan":
            running.signal(SIGKILL)
            running.wait_exit()
        if event in ("reload", "term", "orphan"):
            running.wait_log(r"Handling signal|Parent changed")
        if event in ("reload", "term", "orphan", "timeout"):
            self.Q1.send(self.REST)
        if event in ("reload", "term", "orphan"):
            running.touch("go")
        if event == "crash":
            running.touch("go-A")

    def outcome(self, state):
        connection = getattr(self, state)
        if state == "K":
            return self.goes_on(connection)
        if state == "B":
            rest = rest_of(connection)
            assert b"HTTP/1.1" not in rest
            return "finished" if rest == b"5\r\nended\r\n0\r\n\r\n" else "cut"
        try:
            answer = connection.read_response()
        except wire.ProtocolError:
            assert connection.expect_closed() == b""
            return "closed"
        assert answer.status != 200 or answer.text == state
        return "finished" if answer.status == 200 else str(answer.status)

    @staticmethod
    def goes_on(connection):
        try:
            return "goes on" if connection.exchange("GET", "/?again").text == "again" else "odd"
        except (wire.ProtocolError, BrokenPipeError, ConnectionResetError):
            return "closed"


@pytest.mark.parametrize("event", EVENTS)
def test_each_state(server, event):
    expected = EVENTS[event]
    running = start(server, "--threads", "2", *WITH.get(event, ()))
    running.expect_errors()
    [old] = wait_ready(running, 1)
    states = States(running, "segv" if event == "crash" else "nothing")
    states.happens(event, old)
    order = ("A", "B", "Q0", "Q1", "K")
    if expected["K"] == "closed":
        assert states.K.expect_closed() == b""
        order = order[:-1]
    found = {state: states.outcome(state) for state in order}
    for state in order:
        assert found[state] in expected[state].split(" or "), (found, expected)
    runs = ran(running)
    assert all(count == 1 for name, count in runs.items() if name in ("A", "B", "Q0", "Q1")), runs
    for state in ("Q0", "Q1"):
        assert (runs[state] == 1) == (found[state] == "finished"), runs


# --- the page ---

PAGE = os.path.join(ROOT, "docs", "crash-contract.md")


def test_the_page_names_tests_that_there_are():
    text = read_text(PAGE)
    named = set(re.findall(r"`((?:faults/)?test_\w+\.py)::(test_\w+)`", text))
    assert len(named) > 20
    for file, name in named:
        assert re.search(r"^def %s\(" % name, read_text(os.path.join(ROOT, "tests", file)), re.M), (file, name)


def test_each_cell_of_the_page_names_a_test():
    text = read_text(PAGE)
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", text[text.index("## Events"):text.index("## Proof")], re.M)
    proofs = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", text[text.index("## Proof"):text.index("## When")], re.M))
    assert len(rows) >= 10 and {event for event, _ in rows} == set(proofs)
    for event, cells in rows:
        cells, proof = cells.split(" | "), proofs[event].split(" | ")
        assert len(cells) == len(proof) == 5, event
        for cell, tests in zip(cells, proof):
            assert (cell == "–") == (tests == "–") and (tests == "–" or "::test_" in tests), (event, cell, tests)
