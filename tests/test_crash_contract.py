"""What becomes of a request when its worker crashes, by the state in which the request is (docs/crash-contract.md).

The application notes each call in a ledger: whatever happens, no request is in it twice.
"""
import ctypes
import os
import re
import ssl
import subprocess
import sys
from collections import Counter
from signal import SIGABRT, SIGHUP, SIGKILL, SIGQUIT, SIGSEGV, SIGSTOP, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR2

import pytest

import ledger
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


def test_a_body_that_was_asked_for_is_answered_all_the_same(server):
    """After a 100 the final answer may come before the body, where that is streamed."""
    running = start(server, "--request-buffering", "off")
    wait_ready(running, 1)
    with running.connect() as victim:
        victim.send(b"POST /read/segv?victim HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 3000000\r\n\r\n")
        assert victim.read_head().status == 100
        victim.send(b"x")
        check_page(victim.read_response(), 500)


@pytest.mark.parametrize("late", ["started", "generated"])
@THREADS
def test_a_head_that_has_not_left_is_not_begun(server, late, threads):
    """PEP 3333: `start_response` sends nothing."""
    running = start(server, "--threads", threads)
    wait_ready(running, 1)
    with running.connect() as victim:
        check_page(victim.exchange("GET", "/%s/segv?victim" % late), 500)
        victim.expect_eof()


@pytest.mark.parametrize("way", ["elsewhere", "helper"])
@THREADS
def test_a_crash_in_another_thread_than_the_requests(server, way, threads):
    """The application's own, and one of the server's that runs no Python."""
    running = start(server, "--threads", threads)
    [old] = wait_ready(running, 1)
    with Crowd(running, 4) as crowd, running.connect() as victim:
        crowd.ask()
        check_page(victim.exchange("GET", "/%s?victim" % way), 500)
        assert old not in set(map(pid_of, crowd.ask()))
    running.wait_log(r"Worker \(pid:%d\) was killed by SIGSEGV" % old)


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


@pytest.mark.parametrize("path", ["/written/segv", "/sent/nothing"], ids=["by write", "by sendfile"])
def test_a_response_of_a_known_length_ends_short_of_it(server, path):
    running = start(server, "--threads", "2")
    wait_ready(running, 1)
    with wire.Connection(running.address, receive_buffer=4096) as victim:
        victim.send_request("GET", path + "?victim")
        assert victim.read_head().framing == "length"
        if "nothing" in path:
            # The application is through with it, and the kernel has more than the client takes.
            assert running.get("/segv?crash").status == 500
        with pytest.raises(wire.ProtocolError):
            victim.read_exactly(1 << 28)
        assert b"HTTP/1.1" not in victim.buffer


def test_a_response_that_has_left_is_whole(server):
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        answer = victim.exchange("GET", "/closed/segv?victim")
        assert (answer.status, answer.text) == (200, "victim")
        assert States.goes_on(victim) == "goes on"
    running.wait_log(r"Worker \(pid:%d\) was killed by SIGSEGV" % old)


# The request of a client that takes its answer slowly, so that the kernel of the server's side still has most of it.
ENDING = pytest.mark.parametrize("form", ["blocks", "stream", "write", "file"])
LONG = 8000


def slow_connection(running):
    return wire.Connection(running.address, receive_buffer=4096)


def begin_ending(running, connection, name, form, **how):
    """All of the response has left when this returns, and the application still has the request."""
    connection.send_request("GET", "/ending/nothing?%s&%s" % (name, form), **how)
    return wait_inside(running, name + "-ending")


@pytest.mark.parametrize("version, fields, outcome", [
    ("HTTP/1.1", [], "goes on"), ("HTTP/1.1", [("Connection", "close")], "ends"), ("HTTP/1.0", [], "ends"),
], ids=["kept", "close", "1.0"])
@ENDING
def test_all_of_a_response_reaches_who_takes_it_slowly(server, form, version, fields, outcome):
    """Another thread crashes while the application still closes what it has answered with."""
    running = start(server, "--threads", "2")
    [old] = wait_ready(running, 1)
    with slow_connection(running) as slow, running.connect() as victim:
        begin_ending(running, slow, "slow", form, version=version, headers=fields)
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        passed, closed = (1, 0) if outcome == "goes on" else (0, 1)
        running.wait_log(r"Connections: 1 answered 500, 0 answered 503, 0 reset, %d left to other workers, %d closed" % (passed, closed))
        wait_until(lambda: not alive(old), 20, running.log)
        answer = slow.read_response()
        assert answer.status == 200 and answer.text == "slow" * LONG
        if outcome == "goes on":
            assert States.goes_on(slow) == "goes on"
        else:
            slow.expect_eof()
    check_ledger(running, "slow", "victim")


def test_all_of_a_response_reaches_who_has_sent_more_than_is_read(server):
    """Left unread, it would make the kernel take the answer back."""
    running = start(server, "--threads", "2")
    [old] = wait_ready(running, 1)
    with slow_connection(running) as slow, running.connect() as victim:
        begin_ending(running, slow, "slow", "blocks", version="HTTP/1.0")
        slow.send(b"x" * 100000)
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        wait_until(lambda: not alive(old), 20, running.log)
        assert slow.read_response().text == "slow" * LONG
        slow.expect_eof()


def test_all_of_a_response_is_all_where_another_request_was_sent_behind(server):
    """Some of which the server has read: nobody else can run it."""
    running = start(server, "--threads", "2")
    [old] = wait_ready(running, 1)
    with slow_connection(running) as slow, running.connect() as victim:
        slow.send(wire.request_bytes("GET", "/ending/nothing?slow&blocks") + wire.request_bytes("GET", "/?behind"))
        wait_inside(running, "slow-ending")
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        wait_until(lambda: not alive(old), 20, running.log)
        assert slow.read_response().text == "slow" * LONG
        slow.expect_eof()
    check_ledger(running, "slow", "victim")
    assert "behind" not in ran(running)


def test_all_of_a_response_has_left_whatever_time_is_over(server):
    """A request whose application does not come to an end is answered all the same."""
    running = start(server, "--timeout", "1")
    running.expect_errors(*TROUBLE, "WORKER TIMEOUT", "has been running", "Stacks of all threads")
    [old] = wait_ready(running, 1)
    with slow_connection(running) as slow:
        begin_ending(running, slow, "slow", "blocks", version="HTTP/1.0")
        running.wait_log(r"WORKER TIMEOUT \(pid:%d\)" % old)
        os.kill(old, SIGSEGV)
        wait_until(lambda: not alive(old), 20, running.log)
        assert slow.read_response().text == "slow" * LONG
        slow.expect_eof()


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_response_of_which_the_rest_waits_has_not_left(server, version):
    """The application closes its file while the kernel has no room for more of it."""
    running = start(server, "--threads", "2")
    wait_ready(running, 1)
    with slow_connection(running) as slow, running.connect() as victim:
        begin_ending(running, slow, "slow", "huge", version=version)
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        running.wait_log(r"Connections: 1 answered 500, 0 answered 503, 0 reset, 0 left to other workers, 1 closed")
        with pytest.raises(wire.ProtocolError, match="ended"):
            slow.read_response()


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
        for number in range(2 if "--threads" in options else 1):
            wait_inside(running, "victim%d" % number)
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


def test_many_idle_connections_go_on_or_end_in_order(server):
    """As many as are queued between workers, where no other worker is there to take them."""
    running = start(server, "--threads", "2")
    wait_ready(running, 1)
    with Crowd(running, 700) as crowd:
        for connection in crowd.connections:
            assert connection.exchange("GET", "/?first").status == 200
        assert running.get("/segv?victim").status == 500
        outcomes = Counter(States.goes_on(connection) for connection in crowd.connections)
    assert set(outcomes) <= {"goes on", "closed"} and outcomes["goes on"] >= 250, outcomes


# --- what cannot be spoken in a signal handler ---

def test_with_tls_everybody_is_closed(server, tmp_path):
    certificate = tmp_path / "site.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=t", "-keyout", str(certificate), "-out", str(tmp_path / "crt")], check=True, capture_output=True)
    with open(str(certificate), "a") as f:
        f.write((tmp_path / "crt").read_text())
    running = start(server, "--threads", "2", "--certfile", certificate)
    [old] = wait_ready(running, 1)
    context = wire.strict(ssl.create_default_context())
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def connect():
        connection = running.connect()
        connection.sock = context.wrap_socket(connection.sock, suppress_ragged_eofs=False)
        return connection
    with connect() as idle, connect() as early, connect() as victim, connect() as answered:
        assert idle.exchange("GET", "/?idle").status == 200
        early.send(b"GET /?partial HT")
        assert idle.exchange("GET", "/?idle-too").status == 200
        begin_ending(running, answered, "answered", "blocks", headers=[("Connection", "close")])
        begin(running, victim, "/wait/segv", "victim")
        running.touch("go-victim")
        assert answered.read_response().text == "answered" * LONG
        for connection in (victim, early, idle, answered):
            with pytest.raises(ssl.SSLError, match="UNEXPECTED_EOF|EOF occurred"):
                connection.read_some()
    running.wait_log(r"Connections: 0 answered 500, 0 answered 503, 0 reset, 0 left to other workers, 4 closed")
    with connect() as after:
        assert after.exchange("GET", "/?after").text == "after"
    check_ledger(running, "victim", "after")


def test_who_came_with_a_proxy_header_is_answered_and_idle_ones_are_closed(server):
    running = start(server, "--threads", "2", "--proxy-protocol", "v1")
    wait_ready(running, 1)
    introduction = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
    with running.connect() as idle, running.connect() as victim:
        for connection in (idle, victim):
            connection.send(introduction)
            assert connection.exchange("GET", "/?first").status == 200
        check_page(victim.exchange("GET", "/segv?victim"), 500)
        assert idle.expect_closed() == b""


# --- at any moment ---

@THREADS
def test_a_crash_at_any_moment_is_answered(server, threads):
    """A signal from outside finds the worker anywhere in the server's own code, also where a connection that the kernel has
    given to it is not noted yet: for so many the end comes without an answer, and nobody is run twice."""
    running = server(ledger.APP, *OPTIONS, "-w", "2", "--threads", threads)
    running.expect_errors(*TROUBLE)
    wait_ready(running, 2)
    killed = set()
    with ledger.Clients(running, 8, ledger.SEED, refusals=(500, 503)) as clients:
        for turn in range(12):
            clients.wait_answers(20 + turn)
            victim = running.workers()[turn % 2]
            killed.add(victim)
            os.kill(victim, SIGSEGV)
            wait_until(lambda: not alive(victim), 20, running.log)
            wait_ready(running, 2)
        clients.wait_answers(20)
    told = ledger.compare(running, clients, killed)
    outcomes = Counter(told.values())
    assert outcomes[ledger.CLOSED] <= 2, outcomes


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
    # What the environment enables is there before us, and is not the application's.
    running = server(FAULTHANDLER, *OPTIONS, env={"PYTHONDEVMODE": "", "PYTHONFAULTHANDLER": ""})
    running.expect_errors(*TROUBLE)
    [old] = wait_ready(running, 1)
    assert running.get("/%s?victim" % way).status == 500
    running.wait_log(r"^Fatal Python error: \w+")
    running.wait_log(r"Worker \(pid:%d\) was killed by %s" % (old, CRASHES[way]))


@pytest.mark.parametrize("way", [way for way in CRASHES if way != "abort"] + ["fatal"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_the_environments_faulthandler_still_speaks(server, way, preload):
    """Python's own fatal errors take its handlers away first."""
    running = start(server, *preload, env={"PYTHONFAULTHANDLER": "1"})
    [old] = wait_ready(running, 1)
    check_page(running.get("/%s?victim" % way), 500)
    running.wait_log(r"^Fatal error: SIG\w+ in worker \(pid:%d\)" % old)
    running.wait_log(r"^Fatal Python error: \w+")
    running.wait_log(r"Worker \(pid:%d\) was killed by %s" % (old, CRASHES.get(way, "SIGABRT")))


def test_with_the_environments_faulthandler_an_arbiter_can_be_aborted(server):
    running = start(server, env={"PYTHONFAULTHANDLER": "1"})
    wait_ready(running, 1)
    running.signal(SIGABRT)
    assert running.wait_exit() == -SIGABRT
    wait_until(lambda: not running.processes(), 20, running.log)
    assert "Fatal error" not in running.log()


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


def test_a_full_stack_in_a_thread_of_the_applications_own_ends_without_a_word(server):
    """It has no other stack on which a handler could run."""
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        victim.send_request("GET", "/overflow-elsewhere?victim")
        assert victim.expect_closed() == b""
    running.wait_log(r"Worker \(pid:%d\) was killed by SIGSEGV" % old)
    assert running.get("/?after").text == "after" and "Fatal error" not in running.log()


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


@pytest.mark.parametrize("stops", [SIGTERM, SIGHUP])
def test_a_crash_while_the_worker_drains(server, stops):
    running = start(server, "--threads", "2")
    [old] = wait_ready(running, 1)
    with running.connect() as victim, running.connect() as other:
        begin(running, victim, "/wait/segv", "victim")
        begin(running, other, "/wait", "other")
        running.signal(stops)
        running.wait_log(r"Handling signal: term|Reload complete")
        running.touch("go-victim")
        check_page(victim.read_response(), 500)
        check_page(other.read_response(), 500)
    running.wait_log(r"\[ERROR\] Worker \(pid:%d\) was killed by SIGSEGV" % old)
    if stops == SIGTERM:
        assert running.wait_exit() == 0
    check_ledger(running, "victim", "other")


def test_a_reader_of_the_log_that_has_stopped_keeps_nobody_alive(server, tmp_path):
    """Standard error may be a socket (systemd); the handler must not wait for whoever reads it."""
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text("import os, select, socket, sys\n"
                       "ours, theirs = socket.socketpair()\n"
                       "if not os.fork():\n"
                       "    theirs.close()\n"
                       "    out = os.open('heard', os.O_WRONLY | os.O_CREAT)\n"
                       "    while not os.path.exists('deaf'):\n"
                       "        if select.select([ours], [], [], 0.01)[0]:\n"
                       "            os.write(out, ours.recv(65536) or sys.exit())\n"
                       "    os.mkfifo('gone')\n"
                       "    open('gone').read()\n"
                       "    os._exit(0)\n"
                       "ours.close()\n"
                       "os.dup2(theirs.fileno(), 2)\n"
                       "os.execvp(sys.argv[1], sys.argv[1:])\n")
    # The environment's faulthandler would wait for the reader, behind our answers.
    running = server(APP, *OPTIONS, prefix=[sys.executable, str(wrapper)], wait=False,
                     env={"PYTHONDEVMODE": "", "PYTHONFAULTHANDLER": ""})
    heard = lambda pattern: wait_until(lambda: re.search(pattern, running.read("heard"), re.M), 20)
    address = heard(r"Listening at: http://127\.0\.0\.1:(\d+)").group(1)
    heard(r"Worker ready")
    with wire.Connection(("127.0.0.1", int(address))) as connection:
        old = pid_of(connection.exchange("GET", "/?first"))
        running.touch("deaf")
        wait_until(lambda: running.exists("gone"), 20)
        connection.send_request("GET", "/shout/segv?victim")
        check_page(connection.read_response(), 500)
    wait_until(lambda: not alive(old), 20)
    with wire.Connection(("127.0.0.1", int(address))) as connection:
        assert connection.exchange("GET", "/?after").text == "after"
    with open(running.path("gone"), "w"):
        running.kill()


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
SERVED = dict(Q0="finished", Q1="finished", A="finished", B="finished", K="goes on")
KILLED = dict(Q0="finished", Q1="closed", A="closed", B="cut", K="closed")
EVENTS = {
    "reload": SERVED,
    "max requests": SERVED,
    "ttou": SERVED,
    "worker term": SERVED,
    "upgrade": SERVED,
    "mold": SERVED,
    "exception": dict(SERVED, A="500", B="cut"),
    "sys.exit": dict(SERVED, A="500", B="cut"),
    "term": dict(SERVED, K="closed"),
    "worker quit": dict(Q0="finished", Q1="closed", A="503 or closed", B="cut", K="closed"),
    "quit": dict(Q0="closed", Q1="closed", A="503 or closed", B="cut", K="closed"),
    "graceful timeout": dict(Q0="finished or closed", Q1="finished or closed", A="504", B="cut", K="closed"),
    "timeout": dict(SERVED, A="504", B="cut"),
    "crash": dict(Q0="finished", Q1="503", A="500", B="cut", K="goes on"),
    "kill": KILLED,
    "os._exit": KILLED,
    "stop": KILLED,
    "orphan": dict(SERVED, K="closed"),
}
WITH = {"timeout": ("--timeout", "1"), "stop": ("--timeout", "1"), "graceful timeout": ("--graceful-timeout", "1"),
        "max requests": ("--max-requests", "5"), "mold": ("--preload",)}
# How the application ends the requests in A and in B, once it may.
WAYS = {"crash": "segv", "os._exit": "_exit", "exception": "raise-error", "sys.exit": "exit"}


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
        self.running, self.new = running, None
        self.K, self.Q1, self.A, self.B = (running.connect() for _ in range(4))
        assert self.K.exchange("GET", "/?K").status == 200
        self.Q1.send(self.HALF)
        # By the time that these are answered, it has been read.
        for _ in range(2):
            assert self.K.exchange("GET", "/?K").status == 200
        begin(running, self.A, "/wait/" + way, "A")
        self.B.send_request("GET", "/stream/%s?B" % way)
        assert self.B.read_head().status == 200 and self.B.read_chunk() == b"begun"
        self.Q0 = running.connect()
        self.Q0.send_request("GET", "/?Q0")

    def happens(self, event, pid):
        """The event, from its first consequence on; then whatever was waited for may come."""
        running = self.running
        getattr(self, event.replace(" ", "_").replace(".", "_"))(pid)
        if EVENTS[event]["Q1"] == "finished":
            self.Q1.send(self.REST)
        if EVENTS[event]["A"] == "finished" or event in ("exception", "sys.exit"):
            running.touch("go")

    def reload(self, _):
        self.running.signal(SIGHUP)
        self.running.wait_log("Reload complete")

    def max_requests(self, _):
        """What it has served by now is its last."""
        self.running.wait_log("Autorestarting")
        self.running.wait_log("Worker ready", count=2)

    def ttou(self, _):
        self.running.signal(SIGTTIN)
        self.running.wait_log("Worker ready", count=2)
        self.running.signal(SIGTTOU)
        self.running.wait_log("Handling signal: ttou")

    def worker_term(self, pid):
        os.kill(pid, SIGTERM)
        self.running.wait_log("Worker ready", count=2)

    def worker_quit(self, pid):
        os.kill(pid, SIGQUIT)

    def upgrade(self, _):
        self.running.signal(SIGUSR2)
        self.new = int(self.running.wait_log(r"The new server is ready \(pid: (\d+)\)").group(1))
        self.running.signal(SIGTERM)
        self.running.wait_log("Handling signal: term")

    def mold(self, pid):
        [mold] = set(self.running.processes()) - {pid, self.running.pid}
        os.kill(mold, SIGKILL)
        self.running.wait_log(r"Mold \(pid:%d\) was" % mold)

    def exception(self, _):
        """It is the application's own affair."""

    sys_exit = exception

    def term(self, _):
        self.running.signal(SIGTERM)
        wait_until(self.is_refused, 20)

    def is_refused(self):
        try:
            self.running.connect().close()
        except ConnectionError:
            return True

    def graceful_timeout(self, _):
        self.running.signal(SIGTERM)

    def quit(self, _):
        self.running.signal(SIGQUIT)

    def timeout(self, _):
        """By itself."""

    def kill(self, pid):
        os.kill(pid, SIGKILL)

    def stop(self, pid):
        os.kill(pid, SIGSTOP)

    def orphan(self, _):
        self.running.signal(SIGKILL)
        self.running.wait_exit()
        self.running.wait_log("Parent changed")

    def crash(self, _):
        self.running.touch("go-A")

    os__exit = crash

    def end(self):
        """Of the server that the upgrade has left."""
        if self.new:
            os.kill(self.new, SIGTERM)
            wait_until(lambda: not alive(self.new), 20, self.running.log)

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
    running = start(server, "--threads", "2", "--pid", "pid", *WITH.get(event, ()))
    running.expect_errors()
    [old] = wait_ready(running, 1)
    states = States(running, WAYS.get(event, "nothing"))
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
    states.end()


# --- the page ---

PAGE = os.path.join(ROOT, "docs", "crash-contract.md")
# The events of `test_each_state`, by the page's rows.
ROWS = {
    "reload, `max_requests`, TTOU, TERM to a worker": ["reload", "max requests", "ttou", "worker term"],
    "upgrade (USR2, then TERM)": ["upgrade"],
    "TERM to the server": ["term"],
    "`graceful_timeout` over": ["graceful timeout"],
    "INT or QUIT to the server": ["quit"],
    "INT or QUIT to a worker": ["worker quit"],
    "request timeout": ["timeout"],
    "exception, `sys.exit` in the request": ["exception", "sys.exit"],
    "crash: SEGV, BUS, FPE, ILL, abort, panic": ["crash"],
    "SIGKILL, out of memory, `os._exit`": ["kill", "os._exit"],
    "SIGSTOP of a worker": ["stop"],
    "death of the mold (`--preload`)": ["mold"],
    "death of the arbiter": ["orphan"],
}
# The words of the page, one of which says what a state came to.
WORDS = {"finished": "finished served", "goes on": "goes-on", "closed": "closed", "cut": "cut reset", "500": "500", "503": "503", "504": "504"}


def table(text, first, last):
    """{event: cells} of one of the page's two tables."""
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", text[text.index(first):text.index(last)], re.M)
    return {event: cells.split(" | ") for event, cells in rows}


def test_the_page_says_what_becomes_of_each_state():
    rows = table(read_text(PAGE), "## Events", "## Proof")
    assert set(ROWS) <= set(rows) and sorted(sum(ROWS.values(), [])) == sorted(EVENTS)
    for row, events in ROWS.items():
        for state, cell in zip(("Q0", "Q1", "A", "B", "K"), rows[row]):
            said = set(re.findall(r"[\w-]+", cell.replace("goes on", "goes-on").replace("the same", rows[row][0])))
            for event in events:
                # Of a time-out the page says more, about requests that do not wait for the application.
                for outcome in EVENTS[event][state].split(" or ") if event != "timeout" or state in "AB" else ():
                    assert said & set(WORDS[outcome].split()), (row, state, cell, outcome)


def test_the_page_names_tests_that_there_are():
    text = read_text(PAGE)
    named = set(re.findall(r"`((?:faults/)?test_\w+\.py)::(test_\w+)`", text))
    assert len(named) > 20
    for file, name in named:
        assert re.search(r"^def %s\(" % name, read_text(os.path.join(ROOT, "tests", file)), re.M), (file, name)


def test_each_cell_of_the_page_names_a_test():
    text = read_text(PAGE)
    rows, proofs = table(text, "## Events", "## Proof"), table(text, "## Proof", "## When")
    assert len(rows) >= 10 and set(rows) == set(proofs)
    for event, cells in rows.items():
        proof = proofs[event]
        assert len(cells) == len(proof) == 5, event
        for cell, tests in zip(cells, proof):
            assert (cell == "–") == (tests == "–") and (tests == "–" or "::test_" in tests), (event, cell, tests)
