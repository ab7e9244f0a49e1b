"""A request in which the application is silent too long is ended: its client gets 504, the log names it, the worker is replaced, nobody else suffers.

`--timeout 1` is the only clock here: what runs too long would run for ever.
"""
import os
import re
import threading
from signal import SIGHUP, SIGSTOP, SIGTERM

import pytest

import wire
from crowd import Crowd, begin, pid_of, wait_inside, wait_ready
from harness import alive, compile_library, preload, wait_until

APP = "apps.tail"
OPTIONS = ("--keep-alive", "60", "--access-logfile", "access.log")
TROUBLE = (r"TIMEOUT", r"Stacks of all threads", r"has been running", r"Error handling request", r"was running", r"keeps the interpreter")
# How an application can be stuck, and the function that the log shows.
STUCK = {"/asleep": "stuck_asleep", "/python": "stuck_in_python", "/libc": "stuck_in_libc",
         "/arithmetic": "stuck_in_arithmetic"}
WAYS = pytest.mark.parametrize("path", STUCK, ids=[path[1:] for path in STUCK])
# Beside other threads a request may be in one that no signal interrupts.
WAYS_AND_THREADS = pytest.mark.parametrize("path, threads", [(path, 1) for path in STUCK] + [
    ("/asleep", 3), ("/arithmetic", 3)], ids=lambda value: str(value).strip("/"))
THREADS = pytest.mark.parametrize("threads", [1, 3], ids=["plain", "threads"])


def start(server, *options):
    running = server(APP, *OPTIONS, *options)
    running.expect_errors(*TROUBLE)
    return running


def check_log(running, pid, path, name, option="--timeout", method="GET", outcome="answered 504"):
    """The worker, the request, its client, its age; the access log, unless there was no answer."""
    running.wait_log(r"\[CRITICAL\] WORKER TIMEOUT \(pid:%d\)$" % pid)
    running.wait_log(r"\[CRITICAL\] %s %s\?%s from ip=127\.0\.0\.1 has been running for \d+ s in thread \d+, silent for \d+ s; %s \(%s\)$"
                     % (method, re.escape(path), name, outcome, option))
    if "504" in outcome:
        line = r'127\.0\.0\.1 .* "%s %s\?%s [^"]*" 504 ' % (method, re.escape(path), name)
        wait_until(lambda: re.search(line, running.read("access.log")), 20, lambda: running.read("access.log"))


@WAYS_AND_THREADS
def test_a_stuck_request_is_answered_and_its_worker_replaced(server, path, threads):
    running = start(server, "--timeout", "1", "--threads", threads)
    [old] = wait_ready(running, 1)
    with Crowd(running, 8) as crowd, running.connect() as victim:
        crowd.ask()
        assert begin(running, victim, path, "victim") == old
        answer = victim.read_response()
        assert answer.status == 504 and answer.closing
        # At once: some worker has to be there for it.
        with running.connect() as fresh:
            assert fresh.exchange().status == 200
        victim.expect_eof()
        crowd.ask()
        wait_until(lambda: not alive(old), 20, running.log)
        assert old not in set(map(pid_of, crowd.ask()))
        check_log(running, old, path, "victim")
        assert "in " + STUCK[path] in running.log()
        assert running.log().count("WORKER TIMEOUT") == 1
        assert len(wait_ready(running, 1)) == 1
        assert not re.search("Killing", running.log())
    assert len(re.findall(r'\?victim ', running.read("access.log"))) == 1


@pytest.mark.parametrize("path", ["/asleep", "/arithmetic"])
def test_head_gets_no_body(server, path):
    running = start(server, "--timeout", "1")
    with running.connect() as victim:
        victim.send_request("HEAD", path + "?victim")
        old = wait_inside(running, "victim")
        assert victim.read_response("HEAD").status == 504
        victim.expect_eof()
    check_log(running, old, path, "victim", method="HEAD")


@pytest.mark.parametrize("path", ["/asleep", "/arithmetic"])
@THREADS
def test_a_response_that_has_begun_is_broken_off(server, path, threads):
    """Never a second status line, nor an end that looks like one."""
    running = start(server, "--timeout", "1", "--threads", threads)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        victim.send_request("GET", "/stream%s?victim" % path)
        assert victim.read_head().status == 200
        assert victim.read_chunk() == b"begun"
        rest = victim.expect_closed()
        assert b"HTTP/1.1" not in rest and b"0\r\n\r\n" not in rest
    check_log(running, old, "/stream" + path, "victim", outcome="its response had begun")
    wait_until(lambda: not alive(old), 20, running.log)
    assert running.get("/").status == 200


@pytest.mark.parametrize("path", ["/asleep", "/python"])
def test_what_can_be_interrupted_cleans_up(server, path):
    """In the main thread an exception ends it, and `finally` is run."""
    running = start(server, "--timeout", "1")
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, path, "victim")
        assert victim.read_response().status == 504
    wait_until(lambda: not alive(old), 20, running.log)
    assert running.read("finally-victim") == "MainThread"


@THREADS
def test_one_that_catches_everything_is_left_behind(server, threads):
    running = start(server, "--timeout", "1", "--threads", threads)
    [old] = wait_ready(running, 1)
    with Crowd(running, 8) as crowd, running.connect() as victim:
        crowd.ask()
        begin(running, victim, "/stubborn", "victim")
        assert victim.read_response().status == 504
        wait_until(lambda: not alive(old), 20, running.log)
        crowd.ask()
    assert "Killing" not in running.log()


@pytest.mark.parametrize("path", ["/asleep", "/python"])
@pytest.mark.parametrize("others", ["/nap?0.05", "/work?0.02"], ids=["waiting", "working"])
def test_other_requests_of_the_worker_finish(server, path, others):
    """They run before, while and after those of other threads run too long, and each is far from doing so itself."""
    running = start(server, "--timeout", "1", "--threads", "8")
    [old] = wait_ready(running, 1)
    answers, faults = [], []

    def work():
        try:
            with running.connect() as connection:
                while alive(old):
                    answers.append(connection.exchange("GET", others).status)
        except Exception as error:
            faults.append(repr(error))

    clients = [threading.Thread(target=work) for _ in range(4)]
    with Crowd(running, 4) as victims:
        for number, connection in enumerate(victims.connections):
            begin(running, connection, path, str(number))
        for client in clients:
            client.start()
        for connection in victims.connections:
            assert connection.read_response().status == 504
        for client in clients:
            client.join(30)
            assert not client.is_alive()
    assert not faults
    assert set(answers) == {200}
    assert running.log().count("WORKER TIMEOUT") == 4


def test_all_threads_stuck_at_once(server):
    running = start(server, "--timeout", "1", "--threads", "3")
    [old] = wait_ready(running, 1)
    with Crowd(running, 3) as victims, Crowd(running, 8) as crowd:
        crowd.ask()
        for number, connection in enumerate(victims.connections):
            begin(running, connection, "/asleep", str(number))
        for connection in crowd.connections:
            connection.send_request("GET", "/?waited")
        assert {connection.read_response().status for connection in victims.connections} == {504}
        assert {connection.read_response().text for connection in crowd.connections} == {"waited"}
        for number in range(3):
            check_log(running, old, "/asleep", str(number))
        wait_until(lambda: not alive(old), 20, running.log)
        crowd.ask()


@THREADS
def test_a_slow_request_within_its_time_is_left_alone(server, threads):
    running = start(server, "--timeout", "3", "--threads", threads)
    [old] = wait_ready(running, 1)
    with running.connect() as connection:
        answer = connection.exchange("GET", "/nap?1.5")
        assert (answer.status, answer.text, pid_of(answer)) == (200, "1.5", old)
        assert pid_of(connection.exchange()) == old
    assert "TIMEOUT" not in running.log()


def test_a_body_that_nobody_read_does_not_take_the_answer_back(server):
    running = start(server, "--timeout", "1")
    with running.connect() as victim:
        victim.send(b"POST /asleep?victim HTTP/1.1\r\nHost: t\r\nContent-Length: 3000000\r\n\r\n", b"x" * 500000)
        old = wait_inside(running, "victim")
        wait_until(lambda: not alive(old), 20, running.log)
        assert victim.read_response().status == 504


def test_what_was_sent_behind_it_is_not_run(server):
    running = start(server, "--timeout", "1")
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        victim.send(wire.request_bytes("GET", "/asleep?first") + wire.request_bytes("GET", "/wait?second"))
        assert victim.read_response().status == 504
        victim.expect_closed()
    wait_until(lambda: not alive(old), 20, running.log)
    assert running.exists("inside-first") and not running.exists("inside-second")


@pytest.mark.parametrize("options", [("--threads", "8"), ("-w", "4", "--threads", "2")], ids=["threads", "workers"])
def test_at_the_very_end_of_its_time_a_request_has_one_answer(server, options):
    """Its own or a 504, and the connection is what that answer says."""
    running = start(server, "--timeout", "1", *options)
    wait_ready(running, 1 if options[0] == "--threads" else 4)
    names = ["%.4f" % (0.97 + n * 0.002) for n in range(24)]
    with Crowd(running, 8) as crowd:
        crowd.ask()
        statuses = []
        for number, name in enumerate(names):
            if not number % 8 and number:
                crowd.connections = [c if not c.eof else running.connect() for c in crowd.connections]
                crowd.ask()
            connection = crowd.connections[number % 8]
            connection.send_request("GET", "/nap?" + name)
            if number % 8 == 7:
                for connection in crowd.connections:
                    answer = connection.read_response()
                    statuses.append(answer.status)
                    if answer.closing:
                        connection.expect_eof()
                    else:
                        assert connection.exchange().status == 200
    assert set(statuses) <= {200, 504}
    for name in names:
        lines = lambda: re.findall(r'"GET /nap\?%s [^"]*" (\d+)' % name, running.read("access.log"))
        wait_until(lines)
        assert len(lines()) == 1
    assert sum('" 504 ' in line for line in running.read("access.log").splitlines()) == statuses.count(504)


# Writing the first line about it takes long.
SLOW_LOG = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

ssize_t write(int fd, const void *text, size_t count) {
    if (memmem(text, count, "WORKER TIMEOUT", 14))
        usleep(500000);
    return ((ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, text, count);
}
"""


@THREADS
def test_a_worker_does_not_end_before_the_log_knows_of_its_last_request(server, tmp_path, threads):
    library = compile_library(tmp_path / "slow.so", SLOW_LOG)
    running = server(APP, *OPTIONS, "--timeout", "1", "--threads", threads, env={"LD_PRELOAD": preload(library)})
    running.expect_errors(*TROUBLE)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, "/wait", "victim")
        running.signal(SIGHUP)
        running.wait_log("Reload complete")
        assert victim.read_response().status == 504
        running.touch("go-victim")
    wait_until(lambda: not alive(old), 20, running.log)
    check_log(running, old, "/wait", "victim")


def test_a_client_that_has_gone_is_no_matter(server):
    running = start(server, "--timeout", "1")
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, "/asleep", "victim")
        victim.reset()
    running.wait_log(r"\[CRITICAL\] GET /asleep\?victim from ip=127\.0\.0\.1 has been running")
    wait_until(lambda: not alive(old), 20, running.log)
    assert running.get("/").status == 200


@pytest.mark.parametrize("path", ["/wait", "/hold"])
def test_timeout_zero_is_none(server, path):
    running = start(server, "--timeout", "0")
    os.mkfifo(running.path("gate"))
    with running.connect() as connection:
        pid = begin(running, connection, path, "patient")
        assert not connection.readable(1.5)
        running.touch("go")
        os.close(os.open(running.path("gate"), os.O_RDWR))
        assert pid_of(connection.read_response()) == pid
    assert "TIMEOUT" not in running.log()


# --- the end of a drain ---

@WAYS_AND_THREADS
def test_the_end_of_the_server_does_not_wait_for_ever(server, path, threads):
    running = start(server, "--graceful-timeout", "1", "--threads", threads)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, path, "victim")
        running.signal(SIGTERM)
        assert victim.read_response().status == 504
        victim.expect_eof()
        assert running.wait_exit(15) == 0
    check_log(running, old, path, "victim", "--graceful-timeout")
    assert re.search(r"Worker exiting \(pid: %d\)" % old, running.log())
    assert "Killing" not in running.log()


@WAYS
def test_a_reload_does_not_wait_for_ever(server, path):
    running = start(server, "--graceful-timeout", "1", "-w", "2")
    old = wait_ready(running, 2)
    with Crowd(running, 8) as crowd, running.connect() as victim:
        stuck = begin(running, victim, path, "victim")
        running.signal(SIGHUP)
        assert victim.read_response().status == 504
        wait_until(lambda: not any(map(alive, old)), 20, running.log)
        crowd.ask()
    check_log(running, stuck, path, "victim", "--graceful-timeout")
    assert "Killing" not in running.log()


def test_a_stopped_worker_is_killed(server):
    """What does nothing at all cannot end its request: the arbiter does."""
    running = start(server, "--timeout", "1", "-w", "2")
    running.expect_errors(*TROUBLE, r"Killing", r"SIGKILL|signal")
    wait_ready(running, 2)
    with Crowd(running, 8).spread(2) as crowd, running.connect() as victim:
        stuck = begin(running, victim, "/asleep", "victim")
        crowd.ask()
        os.kill(stuck, SIGSTOP)
        assert victim.expect_closed() == b""
        running.wait_log(r"\[CRITICAL\] WORKER TIMEOUT \(pid:%d\)" % stuck)
        running.wait_log(r"Killing worker \(pid:%d\)" % stuck)
        wait_until(lambda: not alive(stuck), 20, running.log)
        wait_ready(running, 2)
        crowd.ask()
    running.wait_log(r"was running GET /asleep\?victim")
