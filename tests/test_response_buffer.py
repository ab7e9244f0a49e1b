"""What a client is too slow to take of a response is kept, within bounds, and sent while the application goes on."""
import hashlib

import pytest

import wire
from crowd import pid_of, wait_ready
from harness import wait_until

APP = """
    import hashlib, os, time
    from urllib.parse import parse_qsl

    def block(number, size):
        return hashlib.sha256(b"%d" % number).digest() * (size // 32) + b"." * (size % 32)

    def blocks(how):
        try:
            for number in range(int(how["count"])):
                if number == int(how.get("wait", -1)):
                    open("waiting", "w").close()
                    while not os.path.exists("go"):
                        time.sleep(0.005)
                if number == int(how.get("raise", -1)):
                    raise RuntimeError("broken off")
                time.sleep(float(how.get("pause", 0)))
                yield block(number, int(how["size"]) + number % int(how.get("vary", 1)))
        finally:
            open("closed-" + how.get("name", ""), "w").close()

    def app(environ, start_response):
        how = dict(parse_qsl(environ["QUERY_STRING"]))
        headers = [("Content-Type", "application/octet-stream"), ("X-Pid", str(os.getpid()))]
        if "length" in how:
            headers.append(("Content-Length", how["length"]))
        if environ["PATH_INFO"] == "/blocks":
            start_response("200 OK", headers)
            return blocks(how)
        if environ["PATH_INFO"] == "/write":
            write = start_response("200 OK", headers)
            for piece in blocks(how):
                write(piece)
            return []
        time.sleep(0.01)
        start_response("200 OK", headers)
        return [b"hello"]
"""

# More than a unix socket holds of which nothing is read (a TCP socket grows), and less than is kept beside it.
COUNT, SIZE = 25, 10000
WAYS = pytest.mark.parametrize("path", ["/blocks", "/write"])
THREADS = pytest.mark.parametrize("threads", [1, 4], ids=["plain", "threads"])


def block(number, size):
    return hashlib.sha256(b"%d" % number).digest() * (size // 32) + b"." * (size % 32)


def body(count, size=SIZE, vary=1):
    return b"".join(block(number, size + number % vary) for number in range(count))


def start(server, tmp_path, *options):
    running = server(APP, "--keep-alive", "60", *options, bind="unix:%s/s" % tmp_path)
    wait_ready(running, 1)
    return running


def slow(running, target, version="HTTP/1.1"):
    """A client that has asked, and reads nothing for the time being."""
    connection = wire.Connection(running.address)
    connection.send_request("GET", target, version=version)
    return connection


@WAYS
@THREADS
def test_clients_that_read_nothing_hold_no_thread(server, tmp_path, path, threads):
    running = start(server, tmp_path, "--threads", threads)
    names = ["c%d" % number for number in range(20)]
    clients = [slow(running, "%s?count=%d&size=%d&name=%s" % (path, COUNT, SIZE, name)) for name in names]
    for name in names:
        wait_until(lambda: running.exists("closed-" + name), 20, running.log)
    assert running.get("/", timeout=10).body == b"hello"
    for client in clients:
        assert client.read_response().body == body(COUNT)
        assert client.exchange("GET", "/").body == b"hello"
        client.close()


@THREADS
def test_a_client_that_takes_nothing_is_given_up_though_all_is_kept(server, tmp_path, threads):
    running = start(server, tmp_path, "--threads", threads, "--write-timeout", "1", "--response-buffer", "100000000")
    with slow(running, "/blocks?count=1000000&size=1000&pause=0.002"):
        wait_until(lambda: running.exists("closed-"), 20, running.log)
    assert running.get("/", timeout=10).body == b"hello"


def test_without_it_the_application_waits_for_its_client(server, tmp_path):
    running = start(server, tmp_path, "--threads", "2", "--response-buffer", "0")
    with slow(running, "/blocks?count=1000&size=%d" % SIZE) as client:
        assert client.read_head().status == 200
        assert running.get("/").body == b"hello"
        assert not running.exists("closed-")
        while client.read_chunk():
            pass
    wait_until(lambda: running.exists("closed-"), 20, running.log)


@WAYS
@THREADS
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_it_leaves_while_the_application_does_something_else(server, tmp_path, path, threads, framing):
    running = start(server, tmp_path, "--threads", threads)
    target = "%s?count=%d&size=%d&wait=%d" % (path, COUNT + 1, SIZE, COUNT)
    if framing == "length":
        target += "&length=%d" % len(body(COUNT + 1))
    with slow(running, target, "HTTP/1.0" if framing == "close" else "HTTP/1.1") as client:
        wait_until(lambda: running.exists("waiting"), 20, running.log)
        response = client.read_head()
        assert response.framing == framing
        expected = body(COUNT)
        received = b""
        pieces = client.body_pieces(response)
        while len(received) < len(expected):
            received += next(pieces)
        assert received == expected
        assert not running.exists("closed-")
        running.touch("go")
        assert received + b"".join(pieces) == body(COUNT + 1)


@THREADS
@pytest.mark.parametrize("size, vary, count", [(1, 7, 60000), (3000, 977, 3000), (500000, 1, 20)],
                         ids=["tiny", "usual", "large"])
def test_every_byte_in_order(server, tmp_path, threads, size, vary, count):
    running = start(server, tmp_path, "--threads", threads)
    with slow(running, "/blocks?count=%d&size=%d&vary=%d" % (count, size, vary)) as client:
        response = client.read_head()
        pieces = client.body_pieces(response)
        received = [next(pieces)]
        received.extend(pieces)
        assert b"".join(received) == body(count, size, vary)
        assert client.exchange("GET", "/").body == b"hello"


@THREADS
def test_an_application_hears_of_a_client_that_left(server, tmp_path, threads):
    running = start(server, tmp_path, "--threads", threads)
    [pid] = running.workers()
    with slow(running, "/blocks?count=1000000&size=1000&wait=100") as client:
        assert client.read_head().status == 200
        client.reset()
    running.touch("go")
    wait_until(lambda: running.exists("closed-"), 20, running.log)
    assert pid_of(running.get("/")) == pid
    assert "[ERROR]" not in running.log()


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_what_was_given_before_an_exception_arrives(server, tmp_path, framing):
    """And the end that the framing promised does not."""
    running = start(server, tmp_path)
    running.expect_errors(r"Error handling request", r"Traceback|RuntimeError|File|raise|yield")
    target = "/blocks?count=%d&size=%d&raise=%d" % (COUNT + 1, SIZE, COUNT)
    if framing == "length":
        target += "&length=%d" % len(body(COUNT + 1))
    with slow(running, target) as client:
        wait_until(lambda: running.exists("closed-"), 20, running.log)
        response = client.read_head()
        received = b""
        with pytest.raises(wire.ProtocolError, match="ended"):
            for piece in client.body_pieces(response):
                received += piece
        assert client.eof and received == body(COUNT)
    assert running.get("/").body == b"hello"


def test_beyond_it_a_thread_waits(server, tmp_path):
    running = start(server, tmp_path, "--threads", "2", "--response-buffer", "1000")
    clients = [slow(running, "/blocks?count=1000&size=%d" % SIZE) for _ in range(2)]
    for client in clients:
        assert client.read_head().status == 200
    with running.connect() as waiting:
        waiting.send_request("GET", "/")
        assert not waiting.readable(0.5) and not running.exists("closed-")
        for client in clients:
            client.reset()
        assert waiting.read_response().body == b"hello"
