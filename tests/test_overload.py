"""More than can be served: who waits too long is told so, who has gone is not served, and no descriptor is no silence."""
import os
import re
import resource
import time

import pytest

from crowd import Crowd, begin, wait_ready
from harness import wait_until

APP = "apps.doom"
OPTIONS = ("--keep-alive", "60", "--access-logfile", "access.log")


def start(server, *options, **settings):
    running = server(APP, *OPTIONS, *options, **settings)
    wait_ready(running, 2 if "-w" in options else 1)
    return running


def ran(running):
    return running.read("ran").split()


def check_page(answer):
    assert answer.status == 503 and answer.closing and answer.header("retry-after") == "1"


@pytest.mark.parametrize("options", [(), ("--threads", "2"), ("-w", "2")], ids=["plain", "threads", "workers"])
def test_who_waits_longer_than_the_queue_timeout_is_told_while_all_are_busy(server, options):
    """New connections and old ones; none has to wait for a thread to be told."""
    running = start(server, "--queue-timeout", "1", *options)
    with Crowd(running, 3) as crowd, Crowd(running, 2) as busy:
        crowd.ask()
        for number, connection in enumerate(busy.connections if options else busy.connections[:1]):
            begin(running, connection, "/wait", "busy%d" % number)
        with Crowd(running, 5) as late:
            for number, connection in enumerate(crowd.connections + late.connections):
                connection.send_request("GET", "/?late%d" % number)
            for connection in crowd.connections + late.connections:
                check_page(connection.read_response())
                connection.expect_eof()
        running.touch("go")
        assert busy.connections[0].read_response().status == 200
    assert not [name for name in ran(running) if name.startswith("late")]
    running.wait_log(r"answered 503 \(--queue-timeout\)")
    wait_until(lambda: len(re.findall(r'"GET /\?late\d [^"]*" 503 ', running.read("access.log"))) == 8)
    assert running.get("/?after").status == 200


def test_who_waits_less_is_served(server):
    running = start(server, "--queue-timeout", "30")
    with running.connect() as busy, Crowd(running, 4) as crowd:
        begin(running, busy, "/wait", "busy")
        for number, connection in enumerate(crowd.connections):
            connection.send_request("GET", "/?r%d" % number)
        running.touch("go")
        assert [connection.read_response().text for connection in crowd.connections] == ["r0", "r1", "r2", "r3"]


def test_a_client_that_is_silent_is_not_one_that_waits(server):
    running = start(server, "--queue-timeout", "0.2")
    with running.connect() as silent, running.connect() as half, running.connect() as busy:
        half.send(b"GET /?half HTTP/1.1\r\nHo")
        begin(running, busy, "/wait", "busy")
        assert not silent.readable(1) and not half.readable()
        running.touch("go")
        assert busy.read_response().status == 200
        half.send(b"st: t\r\n\r\n")
        assert half.read_response().text == "half"
        assert silent.exchange("GET", "/?spoke").text == "spoke"


@pytest.mark.parametrize("unit", [1, 1000, 1000000])
def test_the_proxy_says_how_long_a_request_has_waited(server, tmp_path, unit):
    running = start(server, "--queue-timeout", "5", bind="unix:%s" % (tmp_path / "s"))
    long_ago, now = ("t=%.3f" % ((time.time() - ago) * unit) for ago in (60, 0))
    with running.connect() as connection:
        assert connection.exchange("GET", "/?fresh", [("X-Request-Start", now)]).status == 200
        check_page(connection.exchange("GET", "/?stale", [("X-Request-Start", long_ago)]))
    assert ran(running) == ["fresh"]


def test_without_a_limit_everybody_waits(server):
    running = start(server)
    with running.connect() as busy, running.connect() as late:
        begin(running, busy, "/wait", "busy")
        late.send_request("GET", "/?late", [("X-Request-Start", "t=1000000001")])
        assert not late.readable(1)
        running.touch("go")
        assert late.read_response().text == "late"


def test_who_has_gone_is_not_served(server):
    running = start(server)
    with running.connect() as busy, running.connect() as gone, running.connect() as half:
        assert gone.exchange("GET", "/?first").status == half.exchange("GET", "/?second").status == 200
        begin(running, busy, "/wait", "busy")
        gone.send_request("GET", "/?gone")
        gone.reset()
        half.send_request("GET", "/?half")
        half.half_close()
        running.touch("go")
        assert busy.read_response().status == 200
        # One that only has no more to say is served.
        assert half.read_response().text == "half"
    assert running.get("/?after").status == 200
    assert "gone" not in ran(running)


def test_half_a_request_whose_client_leaves_is_not_run(server):
    running = start(server)
    for half in (b"GET /?half HTTP/1.1\r\nHost: t\r\n", b"POST /?half HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nhalf"):
        with running.connect() as gone:
            gone.send(half)
    assert running.get("/?after").status == 200
    assert ran(running) == ["after"]


def test_who_has_gone_from_a_unix_socket_is_noted(server, tmp_path):
    running = start(server, bind="unix:%s" % (tmp_path / "s"))
    with running.connect() as busy, running.connect() as gone:
        assert gone.exchange("GET", "/?first").status == 200
        begin(running, busy, "/wait", "busy")
        gone.send_request("GET", "/?gone")
        gone.close()
        running.touch("go")
        assert busy.read_response().status == 200
    wait_until(lambda: re.search(r'"GET /\?gone [^"]*" 499 ', running.read("access.log")), 20)
    assert "gone" not in ran(running)


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def test_out_of_descriptors_is_no_silence(server):
    """Whoever comes while no connection is idle is told, and the worker goes on as soon as there is room."""
    running = server("apps.tail", *OPTIONS)
    wait_ready(running, 1)
    running.expect_errors(r"Cannot accept", r"no descriptor is left")
    [pid] = running.workers()
    with Crowd(running, 10) as crowd:
        crowd.ask()
        full = descriptors(pid)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (full, full))
        for connection in crowd.connections:
            connection.send(b"GET /?begun HTTP/1.1\r\n")
        with Crowd(running, 5) as others:
            for connection in others.connections:
                connection.send_request("GET", "/?more")
            for connection in others.connections:
                check_page(connection.read_response())
                connection.expect_eof()
        crowd.connections.pop().close()
        wait_until(lambda: running.get("/?room").status == 200)
        for connection in crowd.connections:
            connection.send(b"Host: x\r\n\r\n")
            assert connection.read_response().text == "begun"
    assert "?more" not in running.read("access.log")
