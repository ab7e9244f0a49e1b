"""Large bodies, both ways, in bounded memory; and slow clients that hold nobody else up.

RGUNICORN_BIG=1 makes the bodies 2.2 GB instead of 300 MB.
"""
import hashlib
import os
import select
import socket

import pytest

import harness
import wire
from harness import wait_until

SIZE = 2200000000 if os.environ.get("RGUNICORN_BIG") else 300000000
GROWTH = 20 * 1024
BLOCK = bytes(range(256)) * 4096

PATIENT = ["--timeout", "300", "--keep-alive", "60"]

pytestmark = pytest.mark.timeout(600)

APP = """
    import hashlib, os
    from urllib.parse import parse_qsl

    BLOCK = bytes(range(256)) * 4096

    def app(environ, start_response):
        path, how = environ["PATH_INFO"], dict(parse_qsl(environ["QUERY_STRING"]))
        size = int(how.get("size", 0))
        headers = [("Content-Type", "application/octet-stream"), ("X-Pid", str(os.getpid()))]
        if "length" in how:
            headers.append(("Content-Length", how["length"]))
        if path == "/upload":
            digest, length = hashlib.sha256(), 0
            while True:
                piece = environ["wsgi.input"].read(65536)
                if not piece:
                    break
                digest.update(piece)
                length += len(piece)
            start_response("200 OK", headers)
            return [("%d %s" % (length, digest.hexdigest())).encode()]
        if path == "/lines":
            length = sum(map(len, environ["wsgi.input"]))
            start_response("200 OK", headers)
            return [b"%d" % length]
        if path == "/echo":
            start_response("200 OK", headers)
            return iter(lambda: environ["wsgi.input"].read(65536), b"")
        if path == "/file":
            start_response("200 OK", headers)
            return environ["wsgi.file_wrapper"](open("large", "rb"), 65536)
        if path == "/generator":
            start_response("200 OK", headers)
            return (BLOCK[:min(len(BLOCK), size - sent)] for sent in range(0, size, len(BLOCK)))
        if path == "/list":
            start_response("200 OK", headers)
            return [b"x" * size]
        start_response("200 OK", headers)
        return [b"hello"]
"""


def worker_of(running):
    return int(running.get("/").header("x-pid"))


class Memory:
    """How far the worker's resident memory rises above what it was after a first small request of the same kind."""

    def __init__(self, running):
        self.pid = worker_of(running)
        self.before = harness.memory_of(self.pid)

    def check(self, running):
        assert worker_of(running) == self.pid
        growth = harness.memory_of(self.pid, "VmHWM") - self.before
        assert growth < GROWTH, "%d kB" % growth


def send_large(connection, size, frame=lambda block: block):
    digest = hashlib.sha256()
    for sent in range(0, size, len(BLOCK)):
        block = BLOCK[:min(len(BLOCK), size - sent)]
        digest.update(block)
        connection.send(frame(block))
    return digest.hexdigest()


def chunk(block):
    return b"%x\r\n%s\r\n" % (len(block), block)


def receive_large(connection, response):
    digest, length = hashlib.sha256(), 0
    for piece in connection.body_pieces(response):
        digest.update(piece)
        length += len(piece)
    return length, digest.hexdigest()


def digest_of(size):
    digest = hashlib.sha256()
    for sent in range(0, size, len(BLOCK)):
        digest.update(BLOCK[:min(len(BLOCK), size - sent)])
    return digest.hexdigest()


@pytest.mark.parametrize("options", [(), ("--threads", "2")], ids=["plain", "threads"])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_upload(server, coding, options):
    running = server(APP, *PATIENT, *options)
    running.request("POST", "/upload", body=BLOCK)
    memory = Memory(running)
    with running.connect(120) as connection:
        if coding == "length":
            connection.send_request("POST", "/upload", [("Content-Length", str(SIZE))])
            digest = send_large(connection, SIZE)
        else:
            connection.send_request("POST", "/upload", [("Transfer-Encoding", "chunked")])
            digest = send_large(connection, SIZE, chunk)
            connection.send(b"0\r\n\r\n")
        assert connection.read_response().text == "%d %s" % (SIZE, digest)
        assert connection.exchange().body == b"hello"
    memory.check(running)


def test_upload_by_lines(server):
    """Iteration holds a line, not the body."""
    running = server(APP, *PATIENT, "--keep-alive", "100")
    running.request("POST", "/lines", body=BLOCK)
    memory = Memory(running)
    size = 100 * 1000 * 1000
    with running.connect(120) as connection:
        connection.send_request("POST", "/lines", [("Content-Length", str(size))])
        send_large(connection, size)
        assert connection.read_response().text == str(size)
    memory.check(running)


def test_upload_nobody_reads(server):
    """It is not collected: the answer comes, and the connection ends or the body is dropped as it comes."""
    running = server(APP, *PATIENT)
    running.request("POST", "/", body=b"x")
    memory = Memory(running)
    with running.connect(60) as connection:
        connection.send_request("POST", "/", [("Content-Length", str(SIZE))])
        try:
            send_large(connection, SIZE)
            assert connection.read_response().body == b"hello"
        except (OSError, wire.ProtocolError):
            pass  # The server may end a connection on which nobody wants what comes.
    memory.check(running)


def test_generator_download(server):
    running = server(APP, *PATIENT, "--keep-alive", "100")
    running.get("/generator?size=1000000")
    memory = Memory(running)
    with running.connect(120) as connection:
        connection.send_request("GET", "/generator?size=%d" % SIZE)
        response = connection.read_head()
        assert response.framing == "chunked"
        assert receive_large(connection, response) == (SIZE, digest_of(SIZE))
        connection.send_request("GET", "/generator?size=%d&length=%d" % (SIZE, SIZE))
        response = connection.read_head()
        assert response.framing == "length"
        assert receive_large(connection, response) == (SIZE, digest_of(SIZE))
        assert connection.exchange().body == b"hello"
    memory.check(running)


def make_large(running, size):
    with open(running.path("large"), "wb") as f:
        for sent in range(0, size, len(BLOCK)):
            f.write(BLOCK[:min(len(BLOCK), size - sent)])


def test_file_wrapper_download(server):
    running = server(APP, *PATIENT, "--keep-alive", "100")
    make_large(running, SIZE)
    running.get("/file?length=1000", timeout=60)
    memory = Memory(running)
    with running.connect(120) as connection:
        for target in ("/file?length=%d" % SIZE, "/file"):
            connection.send_request("GET", target)
            response = connection.read_head()
            assert receive_large(connection, response) == (SIZE, digest_of(SIZE))
        assert connection.exchange().body == b"hello"
    memory.check(running)
    os.unlink(running.path("large"))


def test_up_and_down_at_once(server):
    """Where bodies are streamed, the answer begins while one still comes; a client that sends and receives by turns is served in
    full."""
    running = server(APP, *PATIENT, "--keep-alive", "100", "--request-buffering", "off")
    blocks = 200
    with running.connect(60) as connection:
        connection.send_request("POST", "/echo", [("Content-Length", str(blocks * 65536))])
        received = 0
        connection.send(BLOCK[:65536])
        response = connection.read_head()
        connection.sock.setblocking(False)
        sent, pending = 1, b""
        while received < blocks * 65536 + 1:
            readable, writable, _ = select.select([connection.sock], [connection.sock] if sent < blocks else [], [], 30)
            assert readable or writable
            if writable:
                pending = pending or BLOCK[:65536]
                pending = pending[connection.sock.send(pending):]
                sent += not pending
            if readable or connection.buffer:
                connection.sock.setblocking(True)
                piece = connection.read_chunk()
                connection.sock.setblocking(False)
                received += len(piece)
                if not piece:
                    break
        assert response.status == 200
        assert received == blocks * 65536


# --- slow readers ---

@pytest.mark.parametrize("target", ["/list?size=50000000", "/file?length=50000000"])
def test_a_slow_reader_holds_nobody_up(server, target):
    """One worker without threads: what is finished, or lies in a file, leaves the Python thread at once."""
    running = server(APP, *PATIENT, "--keep-alive", "100")
    make_large(running, 50000000)
    slow = [wire.Connection(running.address, receive_buffer=4096) for _ in range(5)]
    heads = []
    for connection in slow:
        connection.send_request("GET", target)
        heads.append(connection.read_head())
    for _ in range(10):
        assert running.get("/", timeout=10).body == b"hello"
    for connection, head in zip(slow, heads):
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert receive_large(connection, head)[0] == 50000000
        assert connection.exchange().body == b"hello"
        connection.close()


def test_many_slow_readers_of_a_generator_need_little_memory(server):
    """A generator is asked for more only when the client took what there was."""
    running = server(APP, "--threads", "8", *PATIENT)
    running.get("/generator?size=10000000")
    memory = Memory(running)
    slow = [wire.Connection(running.address, receive_buffer=4096) for _ in range(6)]
    for connection in slow:
        connection.send_request("GET", "/generator?size=500000000")
        connection.read_head()
    assert running.get("/", timeout=10).body == b"hello"
    wait_until(lambda: is_idle(memory.pid), 60)
    memory.check(running)
    for connection in slow:
        connection.reset()


def is_idle(pid):
    """Whether the worker uses no processor time for a moment: it waits for its clients."""
    before = harness.cpu_ticks(pid)
    select.select([], [], [], 0.3)
    return harness.cpu_ticks(pid) == before
