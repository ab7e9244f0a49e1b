"""`timeout` bounds for how long the application is silent: not the length of a response, nor how slow its client is.

`--timeout 1` is the only clock here. What is to live lasts three of these; what is stuck would be for ever.
"""
import select
import socket

import pytest

import wire
from crowd import pid_of, wait_ready
from harness import alive, wait_until

# Several times, and well below, `--timeout`.
BEATS, BEAT = 12, 0.25

APP = """
    import os, time
    from urllib.parse import parse_qsl

    FOR_EVER = 600

    class Closing:
        def __init__(self, blocks, stuck):
            self.blocks, self.stuck = iter(blocks), stuck
        def __iter__(self):
            return self.blocks
        def close(self):
            if self.stuck:
                time.sleep(FOR_EVER)

    def beats(count, pause, stuck):
        for number in range(count):
            time.sleep(pause)
            yield b"%04d" % number
        if stuck:
            time.sleep(FOR_EVER)

    def blocks(count, size):
        for number in range(count):
            yield b"%d" % (number % 10) * size

    def app(environ, start_response):
        path, how = environ["PATH_INFO"], dict(parse_qsl(environ["QUERY_STRING"]))
        headers = [("Content-Type", "application/octet-stream"), ("X-Pid", str(os.getpid()))]
        count, pause, size = int(how.get("count", 1)), float(how.get("pause", 0)), int(how.get("size", 1))
        if path == "/beats":
            start_response("200 OK", headers)
            return Closing(beats(count, pause, how.get("stuck") == "blocks"), how.get("stuck") == "close")
        if path == "/write":
            write = start_response("200 OK", headers)
            for number in range(count):
                time.sleep(pause)
                write(b"%04d" % number)
            return []
        if path == "/blocks":
            start_response("200 OK", headers)
            return blocks(count, size)
        if path == "/upload":
            length = 0
            while True:
                piece = environ["wsgi.input"].read(size)
                if not piece:
                    break
                length += len(piece)
                time.sleep(pause)
                if how.get("stuck") == "reads":
                    time.sleep(FOR_EVER)
            start_response("200 OK", headers)
            return [b"%d" % length]
        start_response("200 OK", headers)
        return [b"hello"]
"""

THREADS = pytest.mark.parametrize("threads", [1, 4], ids=["plain", "threads"])
STUCK = (r"TIMEOUT", r"Stacks of all threads", r"has been running", r"Error handling request", r"was running")


def start(server, threads, *options):
    running = server(APP, "--timeout", "1", "--keep-alive", "60", "--threads", threads, *options)
    [pid] = wait_ready(running, 1)
    return running, pid


def check_untouched(running, pid):
    """Nobody has said a word against the worker."""
    assert pid_of(running.get("/")) == pid
    assert "TIMEOUT" not in running.log() and "[ERROR]" not in running.log()


def pass_time(seconds):
    select.select([], [], [], seconds)


@THREADS
@pytest.mark.parametrize("path", ["/beats", "/write"])
def test_a_stream_with_a_heartbeat_may_last(server, path, threads):
    running, pid = start(server, threads)
    with running.connect() as connection:
        answer = connection.exchange("GET", "%s?count=%d&pause=%s" % (path, BEATS, BEAT))
        assert answer.body == b"".join(b"%04d" % number for number in range(BEATS))
    check_untouched(running, pid)


@THREADS
def test_a_download_may_last_as_long_as_its_client_takes_something(server, threads):
    running, pid = start(server, threads)
    count, size = 200, 100000
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/blocks?count=%d&size=%d" % (count, size))
        response = connection.read_head()
        pieces = connection.body_pieces(response)
        length = 0
        for _ in range(BEATS):
            length += len(next(pieces))
            pass_time(BEAT)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        length += sum(map(len, pieces))
        assert length == count * size
    check_untouched(running, pid)


@THREADS
def test_an_upload_may_last_as_long_as_its_client_sends(server, threads):
    running, pid = start(server, threads)
    piece = b"x" * 20000
    with running.connect() as connection:
        connection.send_request("POST", "/upload?size=4096", [("Content-Length", str(BEATS * len(piece)))])
        for _ in range(BEATS):
            connection.send(piece)
            pass_time(BEAT)
        assert connection.read_response().text == str(BEATS * len(piece))
    check_untouched(running, pid)


@THREADS
def test_an_application_may_take_its_time_over_a_long_body(server, threads):
    """Each read that had data is a sign of life, wherever the data was."""
    running, pid = start(server, threads)
    with running.connect() as connection:
        answer = connection.exchange("POST", "/upload?size=1000&pause=%s" % BEAT, body=b"x" * BEATS * 1000)
        assert answer.text == str(BEATS * 1000)
    check_untouched(running, pid)


def check_stuck(running, pid, request, outcome):
    running.wait_log(r"\[CRITICAL\] WORKER TIMEOUT \(pid:%d\)$" % pid)
    running.wait_log(r"\[CRITICAL\] %s from ip=127\.0\.0\.1 has been running for (\d+) s in thread \d+, silent for (\d+) s; %s"
                     % (request, outcome))
    wait_until(lambda: not alive(pid), 20, running.log)
    assert pid_of(running.get("/")) != pid
    assert running.log().count("WORKER TIMEOUT") == 1


@THREADS
@pytest.mark.parametrize("where", ["blocks", "close"])
def test_one_that_is_stuck_after_a_while_is_found(server, where, threads):
    running, pid = start(server, threads)
    running.expect_errors(*STUCK)
    with running.connect() as connection:
        connection.send_request("GET", "/beats?count=%d&pause=%s&stuck=%s" % (BEATS, BEAT, where))
        assert connection.read_head().status == 200
        for number in range(BEATS):
            assert connection.read_chunk() == b"%04d" % number
        rest = connection.expect_closed()
        assert (b"0\r\n\r\n" in rest) == (where == "close")
        check_stuck(running, pid, r"GET /beats\S*stuck=" + where, "its response had begun")
    # It had run for three times as long.
    assert "silent for 1 s" in running.log() and "running for 1 s" not in running.log()


@THREADS
def test_one_that_is_stuck_over_a_body_is_found(server, threads):
    running, pid = start(server, threads)
    running.expect_errors(*STUCK)
    with running.connect() as connection:
        connection.send_request("POST", "/upload?size=1000&stuck=reads", body=b"x" * 2000)
        assert connection.read_response().status == 504
        check_stuck(running, pid, r"POST /upload\S*", "answered 504")


@THREADS
def test_a_client_that_takes_nothing_is_given_up_and_not_the_worker(server, threads):
    running, pid = start(server, threads, "--write-timeout", "3")
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/blocks?count=200&size=100000")
        assert connection.read_head().status == 200
        wait_until(lambda: not is_open(pid, connection), 20, running.log)
    check_untouched(running, pid)


def is_open(pid, connection):
    """Whether the worker's end of the connection is."""
    port = "%04X" % connection.local_port
    with open("/proc/%d/net/tcp" % pid) as table:
        rows = [line.split() for line in table.read().splitlines()[1:]]
    return any(row[2].endswith(":" + port) and row[3] == "01" for row in rows)


@THREADS
def test_a_client_that_sends_nothing_more_is_given_up_and_not_the_worker(server, threads):
    running, pid = start(server, threads, "--body-timeout", "3")
    with running.connect() as connection:
        connection.send_request("POST", "/upload?size=4096", [("Content-Length", "200000")])
        connection.send(b"x" * 100000)
        assert connection.read_response().status == 408
    assert pid_of(running.get("/")) == pid
    assert "WORKER TIMEOUT" not in running.log() and "has been running" not in running.log()
