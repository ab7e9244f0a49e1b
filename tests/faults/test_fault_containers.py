"""Faults of a container as a whole: its memory ends, and it with it; it is started again. Under traffic, with a ledger.

The number is the row of docs/faults.md.
"""
import os
import socket
import subprocess
from signal import SIGKILL, SIGTERM

import pytest

import harness
import wire
from faulty import (DEATH, FAULTY, alive, compare, compare_all, ledger, start, traffic, wait_ready, wait_until, worker_of)
from groups import Container, control_group

# Responses that take a while to be sent, so that some are cut; of every other one the length is said.
SENT_SLOWLY = FAULTY.replace("def app(", "def faulty(") + """
    def begun(environ):
        yield b"begun"
        leave(environ)
        yield b"end"

    def piecewise(octets):
        for at in range(len(octets)):
            time.sleep(0.001)
            yield octets[at:at + 1]

    def app(environ, start_response):
        if environ["PATH_INFO"] in ("/begun", "/begun-length"):
            inside(environ)
            fields = [("Content-Type", "text/plain")]
            if environ["PATH_INFO"] == "/begun-length":
                fields.append(("Content-Length", "8"))
            start_response("200 OK", fields)
            return begun(environ)
        if environ["PATH_INFO"] != "/":
            return faulty(environ, start_response)
        name = environ["QUERY_STRING"].partition("&")[0]
        enter(name)
        body = name.encode() + environ["wsgi.input"].read()
        fields = [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))]
        if len(body) % 2:
            fields.append(("Content-Length", str(len(body))))
        start_response("200 OK", fields)
        return piecewise(body)
"""


@pytest.fixture
def container():
    with control_group("memory", Container) as group:
        yield group


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


LEFT = ("pid", "socket", "control", "pid.reload")


def start_contained(server, prefix, port, **settings):
    """By the same words each time, as a container's policy of restarts does."""
    return server(SENT_SLOWLY, "-b", "127.0.0.1:%d" % port, "-b", "unix:socket", "-w", "4", "--pid", "pid", "--control-socket",
                  "control", "--keep-alive", "60", prefix=prefix, **settings)


def is_served_everywhere(running):
    with wire.Connection(running.path("socket")) as connection:
        assert connection.exchange("GET", "/?unix-%s" % running.mark).status == 200
    client = os.path.join(os.path.dirname(harness.command()[0]), "rgunicornc")
    done = subprocess.run([client, "-s", running.path("control"), "-c", "show workers"], capture_output=True, timeout=20)
    assert done.returncode == 0, done
    return running.get("/?tcp-%s" % running.mark).status == 200


def check_started_over(running):
    """Nothing of what is left from before is in its way, and it leaves nothing itself."""
    assert is_served_everywhere(running)
    assert not [line for line in running.lines() if line[1] in ("WARNING", "ERROR", "CRITICAL")]


def test_row_8_the_end_of_memory_ends_the_whole_container_and_the_next_one_serves(container, server):
    port = free_port()
    container.limit_memory(192 << 20)
    container.end_with_memory()
    first = start_contained(server, container.enter(), port)
    # Who is killed last may have seen the others go, and the kernel refuse what it had asked for; the application too, which is
    # answered for by a 500.
    first.expect_errors(r"Cannot allocate memory", r"Error handling request", *DEATH)
    workers = set(wait_ready(first, 4))
    with traffic(first, refusals=(500,), outlasts=True) as clients, first.connect() as begun, first.connect() as told:
        clients.wait_answers(40)
        assert first.get("/daemon?child").status == 200
        begun.send_request("GET", "/begun?begun")
        assert begun.read_head().framing == "chunked" and begun.read_chunk() == b"begun"
        told.send_request("GET", "/begun-length?told")
        assert told.read_head().framing == "length" and told.read_exactly(5) == b"begun"
        with first.connect() as hungry:
            hungry.send_request("GET", "/eat?hungry")
            worker_of(first, "hungry")
            # All at once: the arbiter, its workers, what the application had started.
            assert workers | {first.pid} < set(container.wait_end())
            assert hungry.expect_closed() == b""
        # Whoever had the beginning of a response sees that there is no end.
        with pytest.raises(wire.ProtocolError):
            begun.read_chunk()
        with pytest.raises(wire.ProtocolError):
            told.read_exactly(3)
        assert first.wait_exit() == -SIGKILL
        assert not first.processes()
        assert all(first.exists(name) for name in LEFT)
        second = start_contained(server, container.enter(), port, directory=first.directory)
        others = set(wait_ready(second, 4))
        clients.wait_answers(100)
    check_started_over(second)
    compare(first, clients, workers)
    assert others & {pid for _, pid in ledger(first)}
    assert second.read("pid").split() == [str(second.pid)]
    assert second.stop() == 0
    assert not any(second.exists(name) for name in LEFT)


@pytest.fixture
def namespace():
    """What stands in front of a command that is to be the first process of a container."""
    prefix = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    if subprocess.run(prefix + ["true"], capture_output=True).returncode:
        pytest.skip("no namespace of processes can be made here")
    return prefix


def first_process(running):
    """The one that is 1 to those in there."""
    [first] = harness.children(running.pid)
    return first


def test_row_8_a_container_that_was_ended_serves_again_under_the_same_numbers(server, namespace):
    """The pid file names a process that there is: the new server itself."""
    port = free_port()
    first = start_contained(server, namespace, port)
    first.wait_log(r"Worker ready \(pid: \d+\)", count=4)
    assert first.read("pid") == "1\n"
    inside = harness.descendants(first_process(first))
    os.kill(first_process(first), SIGKILL)
    first.wait_exit()
    wait_until(lambda: not any(map(alive, inside)))
    second = start_contained(server, namespace, port, directory=first.directory)
    second.wait_log(r"Worker ready \(pid: \d+\)", count=4)
    check_started_over(second)
    assert second.read("pid") == "1\n"
    os.kill(first_process(second), SIGTERM)
    assert second.wait_exit() == 0
    assert not any(second.exists(name) for name in LEFT)


LEAKING = FAULTY.replace("def app(", "def faulty(") + """
    HOARD = []

    def app(environ, start_response):
        HOARD.append(os.urandom(1 << 20))
        return faulty(environ, start_response)
"""


@pytest.mark.parametrize("kind", [[], ["--threads", "2"], ["--preload"]], ids=["workers", "threads", "preload"])
def test_row_8_an_application_that_leaks_is_recycled_before_the_limit(container, server, kind):
    """By max_requests, long before the memory of the container has come to its end."""
    limit = 256
    container.limit_memory(limit << 20)
    container.end_with_memory()
    running = start(server, "-w", "2", "--max-requests", "20", *kind, app=LEAKING, prefix=container.enter())
    with traffic(running) as clients:
        clients.wait_answers(2 * limit + 100)
    compare_all(running, clients)
    # Twice as much has been leaked as there is.
    assert len(ledger(running)) >= 2 * limit
    assert running.running() and container.memory_kills() == 0
