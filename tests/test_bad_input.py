"""What comes from hostile clients, clients that vanish, and applications that misbehave: the server serves on, the log says who."""
import os
import random
import re
import socket
import ssl

import pytest

import wire
from harness import alive, sockets, wait_until

APP = """
    import os, signal, sys, threading, time

    def app(environ, start_response):
        return globals()[environ["PATH_INFO"].strip("/").replace("-", "_") or "hello"](environ, start_response)

    TEXT = [("Content-Type", "text/plain")]

    def hello(environ, start_response):
        start_response("200 OK", TEXT)
        return [b"hello %d" % os.getpid()]

    def echo(environ, start_response):
        body = environ["wsgi.input"].read()
        start_response("200 OK", TEXT)
        return [body]

    def large(environ, start_response):
        start_response("200 OK", TEXT)
        return [b"x" * 20000000]

    def endless(environ, start_response):
        start_response("200 OK", TEXT)
        while True:
            yield b"x" * 10000

    def held(environ, start_response):
        open("inside", "w").close()
        deadline = time.monotonic() + 30
        while not os.path.exists("go") and time.monotonic() < deadline:
            time.sleep(0.005)
        start_response("200 OK", TEXT)
        return [b"x" * 1000000]

    def raise_before(environ, start_response):
        raise ValueError("on purpose")

    def raise_after(environ, start_response):
        start_response("200 OK", TEXT + [("X-Never", "1")])
        raise ValueError("on purpose")

    def raise_first(environ, start_response):
        start_response("200 OK", TEXT)
        raise ValueError("on purpose")
        yield b"never"

    def raise_inside(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        raise ValueError("on purpose")

    def raise_deep(environ, start_response):
        return raise_deep(environ, start_response)

    def raise_strange(environ, start_response):
        class Strange(Exception):
            def __str__(self):
                raise RuntimeError("no words on purpose")
        raise Strange()

    def raise_stop(environ, start_response):
        raise StopIteration("on purpose")

    def raise_base(environ, start_response):
        raise BaseException("on purpose")

    def raise_generator_exit(environ, start_response):
        raise GeneratorExit("on purpose")

    def raise_broken_pipe(environ, start_response):
        raise BrokenPipeError("on purpose")

    def raise_reset(environ, start_response):
        raise ConnectionResetError("on purpose")

    def raise_timeout(environ, start_response):
        raise TimeoutError("on purpose")

    def raise_memory(environ, start_response):
        raise MemoryError("on purpose")

    def raise_unicode(environ, start_response):
        raise ValueError("on purpose \\udcff \\u20ac \\0")

    def interrupt(environ, start_response):
        raise KeyboardInterrupt("on purpose")

    def exit_0(environ, start_response):
        sys.exit(0)

    def exit_1(environ, start_response):
        sys.exit("on purpose")

    def exit_3(environ, start_response):
        sys.exit(3)

    def exit_4(environ, start_response):
        sys.exit(4)

    def exit_inside(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        sys.exit(3)

    def exit_in_close(environ, start_response):
        class Body(list):
            def close(self):
                sys.exit(3)
        start_response("200 OK", TEXT)
        return Body([b"hello"])

    def none(environ, start_response):
        start_response("200 OK", TEXT)

    def text(environ, start_response):
        start_response("200 OK", TEXT)
        return "text"

    def number(environ, start_response):
        start_response("200 OK", TEXT)
        return 42

    def nothing_at_all(environ, start_response):
        return [b"never"]

    def bad_iterator(environ, start_response):
        class Body:
            def __iter__(self):
                return 42
        start_response("200 OK", TEXT)
        return Body()

    def bad_length(environ, start_response):
        class Body(list):
            def __len__(self):
                raise ValueError("on purpose")
        start_response("200 OK", TEXT)
        return Body([b"hello"])

    def quit_0(environ, start_response):
        os._exit(0)

    def quit_3(environ, start_response):
        os._exit(3)

    def quit_4(environ, start_response):
        os._exit(4)

    def kill(environ, start_response):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def segfault(environ, start_response):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)

    def abort(environ, start_response):
        os.abort()

    def terminate(environ, start_response):
        os.kill(os.getpid(), signal.SIGTERM)
        start_response("200 OK", TEXT)
        return [b"hello"]

    def kill_inside(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"begun"
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def close_all(environ, start_response):
        raise SystemExit
"""

PERSISTENT = ["--keep-alive", "30", "--timeout", "60"]


@pytest.fixture(scope="module")
def shared(module_server):
    running = module_server(APP, *PERSISTENT)
    running.expect_errors(r"Error handling request", r"on purpose", r"Content-Length")
    return running


@pytest.fixture
def steady(shared):
    """The shared server; the case must not cost it its only worker."""
    before = shared.wait_workers(1)
    yield shared
    assert shared.get("/hello").text == "hello %d" % before[0]
    assert shared.workers() == before
    assert "panicked" not in shared.log()


# --- bytes ---

def garbage(seed):
    source = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        return bytes(source.randrange(256) for _ in range(source.randrange(1, 5000)))
    if kind == 1:
        data = bytearray(wire.request_bytes("POST", "/echo", [("X-A", "b"), ("Content-Type", "a/b")], b"hello"))
        for _ in range(source.randrange(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        return bytes(data)
    if kind == 2:
        data = bytearray(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + wire.chunked(b"hello", b"world"))
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        return bytes(data)
    pieces = [b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b"\n", b"\r", b"\0", b":", b"Host", b"Content-Length", b"chunked", b"0",
              b"Transfer-Encoding", b"\xff", b"5", b"\t", b"Connection: close", b"a" * 300, b"%", b"\r\n\r\n"]
    return b"".join(source.choice(pieces) for _ in range(source.randrange(1, 60)))


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_garbage(steady, first):
    """Four kinds of nonsense, each from its seed. Whatever it is called: an answer that is one, or none, and an end."""
    for seed in range(first, first + 50):
        with steady.connect() as connection:
            connection.send(garbage(seed))
            connection.half_close()
            said = connection.expect_closed()
            assert said == b"" or said.startswith(b"HTTP/1.1 "), (seed, said[:200])
            statuses = {int(found) for found in re.findall(rb"^HTTP/1\.1 (\d{3}) ", said)}
            assert statuses <= {200, 100, 400, 404, 405, 413, 414, 417, 431, 500, 501, 505}, (seed, said[:200])


def test_tls_on_the_plain_port(steady):
    """The client learns at once, not at a time-out; so does the log."""
    lines = len(steady.log())
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(steady.address, timeout=8) as plain:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")
    wait_until(lambda: "Invalid request from ip=127.0.0.1" in steady.log()[lines:])


@pytest.mark.parametrize("data", [b"\0" * 100000, b"\xff" * 100000, b"a" * 200000, b"\r\n" * 100000, b"GET " * 50000,
                                  b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50000, b"GET / HTTP/1.1\r\n" + b"a" * 200000],
                         ids=["NUL", "0xff", "a", "CRLF", "GET", "fields", "name"])
def test_floods_are_refused_early(steady, data):
    with steady.connect(timeout=8) as connection:
        try:
            connection.send(data)
        except OSError:
            pass
        said = connection.expect_closed()
        assert said.startswith(b"HTTP/1.1 4"), said[:100]


def test_refusals_name_the_peer(steady):
    for data in (b"bad\r\n\r\n", b"GET / HTTP/1.1\r\nbad\r\n\r\n",
                 b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"):
        lines = len(steady.log())
        with steady.connect() as connection:
            connection.send(data)
            connection.expect_closed()
        wait_until(lambda: re.search(r"ip=127\.0\.0\.1", steady.log()[lines:]), 10, lambda: "%r\n%s" % (data, steady.log()[lines:]))


# --- clients that vanish ---

PART = b"POST /echo HTTP/1.1\r\nHost: test\r\n"
STAGES = {
    "connected": b"",
    "in the request line": b"GET /hel",
    "in the head": b"GET /hello HTTP/1.1\r\nHost: t",
    "before the body": PART + b"Content-Length: 100\r\n\r\n",
    "in the body": PART + b"Content-Length: 100\r\n\r\nhello",
    "in a large body": PART + b"Content-Length: 1000000\r\n\r\n" + b"x" * 300000,
    "before the chunks": PART + b"Transfer-Encoding: chunked\r\n\r\n",
    "in a chunk": PART + b"Transfer-Encoding: chunked\r\n\r\n10\r\nhello",
    "in a chunk size": PART + b"Transfer-Encoding: chunked\r\n\r\n1",
    "in the trailers": PART + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    "at Expect": PART + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
    "before the answer": b"GET /hello HTTP/1.1\r\nHost: t\r\n\r\n",
    "before a large answer": b"GET /large HTTP/1.1\r\nHost: t\r\n\r\n",
    "before an endless answer": b"GET /endless HTTP/1.1\r\nHost: t\r\n\r\n",
    "before many answers": b"GET /hello HTTP/1.1\r\nHost: t\r\n\r\n" * 50,
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stage", list(STAGES))
def test_clients_that_vanish(steady, stage, how):
    """No worker is lost over it, nothing is logged as an error, and no connection is kept."""
    lines = len(steady.log())
    worker = steady.workers()[0]
    for _ in range(5):
        connection = steady.connect()
        connection.send(STAGES[stage])
        getattr(connection, how)()
    assert steady.get("/hello").status == 200
    steady.resting = getattr(steady, "resting", None) or sockets(worker)
    wait_until(lambda: sockets(worker) <= steady.resting, 20, lambda: "%d sockets" % sockets(worker))
    if "body" not in stage and "chunk" not in stage and stage not in ("at Expect", "in the trailers"):
        assert "Traceback" not in steady.log()[lines:]


@pytest.mark.parametrize("path", ["/large", "/endless"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_clients_that_vanish_in_the_answer(steady, path, how):
    lines = len(steady.log())
    for _ in range(5):
        connection = wire.Connection(steady.address, receive_buffer=4096)
        connection.send_request("GET", path)
        connection.read_head()
        getattr(connection, how)()
    assert steady.get("/hello").status == 200
    assert "Traceback" not in steady.log()[lines:]


def test_client_that_vanishes_while_the_application_works(server):
    running = server(APP)
    connection = running.connect()
    connection.send_request("GET", "/held")
    wait_until(lambda: running.exists("inside"))
    connection.reset()
    running.touch("go")
    assert running.get("/hello").status == 200
    assert "Traceback" not in running.log()


def test_a_crowd_that_vanishes(steady):
    connections = [steady.connect() for _ in range(300)]
    for n, connection in enumerate(connections):
        connection.send(list(STAGES.values())[n % 12])
    for connection in connections:
        connection.reset()
    assert steady.get("/hello").status == 200


# --- applications that raise or return nonsense ---

@pytest.mark.parametrize("path", ["/raise-before", "/raise-after", "/raise-first", "/raise-stop", "/raise-memory", "/raise-unicode",
                                  "/raise-broken-pipe", "/raise-reset", "/raise-timeout", "/raise-base", "/raise-generator-exit"])
def test_an_application_that_raises(steady, path):
    lines = len(steady.log())
    response = steady.get(path)
    assert response.status == 500 and response.header("x-never") is None
    assert b"on purpose" not in response.body and b"Traceback" not in response.body
    wait_until(lambda: "on purpose" in steady.log()[lines:])
    entry = steady.log()[lines:]
    assert path in entry and "Traceback (most recent call last)" in entry
    assert len(re.findall(r"^\S*(Error|Exception|Exit|StopIteration)\S*: on purpose", entry, re.M)) == 1, entry


@pytest.mark.parametrize("path", ["/raise-deep", "/raise-strange", "/bad-length"])
def test_an_application_that_raises_strangely(steady, path):
    lines = len(steady.log())
    response = steady.get(path)
    assert response.status == 500 or path == "/bad-length" and response.body == b"hello"
    if response.status == 500:
        wait_until(lambda: path in steady.log()[lines:])


def test_an_application_that_raises_inside(steady):
    lines = len(steady.log())
    with steady.connect() as connection:
        connection.send_request("GET", "/raise-inside")
        assert connection.read_head().status == 200
        assert connection.read_chunk() == b"begun"
        assert connection.expect_closed() == b""
    wait_until(lambda: "on purpose" in steady.log()[lines:])
    assert "/raise-inside" in steady.log()[lines:]


def test_a_keep_alive_client_gets_its_500(steady):
    """The connection may end or stay; said is said, and in step."""
    with steady.connect() as connection:
        for _ in range(3):
            response = connection.exchange("GET", "/raise-before")
            assert response.status == 500
            if response.closing:
                connection.expect_eof()
                break


@pytest.mark.parametrize("path", ["/none", "/text", "/number", "/nothing-at-all", "/bad-iterator"])
def test_an_application_that_returns_nonsense(steady, path):
    lines = len(steady.log())
    response = steady.get(path)
    assert response.status == 500 and b"never" not in response.body
    wait_until(lambda: path in steady.log()[lines:])


# --- applications that end their process ---

@pytest.fixture
def perishable(server):
    running = server(APP, *PERSISTENT)
    running.expect_errors()
    return running


@pytest.mark.parametrize("path", ["/exit-0", "/exit-1", "/exit-3", "/exit-4", "/interrupt", "/close-all"])
def test_an_application_that_exits(perishable, path):
    """SystemExit in a request is an error of the application, whatever its code: 3 and 4 are no message to the arbiter."""
    for _ in range(3):
        assert perishable.get(path).status == 500
        assert perishable.get("/hello").status == 200
    assert perishable.running()
    perishable.wait_log(re.escape(path))


def test_an_application_that_exits_inside(perishable):
    with perishable.connect() as connection:
        connection.send_request("GET", "/exit-inside")
        connection.read_head()
        assert connection.read_chunk() == b"begun"
        assert connection.expect_closed() == b""
    assert perishable.get("/exit-in-close").body == b"hello"
    for _ in range(5):
        assert perishable.get("/hello").status == 200
    assert perishable.running()


@pytest.mark.parametrize("path, words", [
    ("/quit-0", ""), ("/quit-3", "3"), ("/quit-4", "4"), ("/kill", "(SIGKILL|signal:? 9)"),
    ("/segfault", "(SIGSEGV|signal:? 11)"), ("/abort", "(SIGABRT|signal:? 6)"), ("/kill-inside", "(SIGKILL|signal:? 9)"),
])
def test_an_application_that_ends_its_process(perishable, path, words):
    """The worker is replaced, and the log says which died, how, and over which request."""
    for round_ in range(2):
        worker = perishable.wait_workers(1)[0]
        lines = len(perishable.log())
        with perishable.connect() as connection:
            connection.send_request("GET", path + "?which=this")
            connection.expect_closed()
        assert perishable.get("/hello").status == 200
        assert not alive(worker) and perishable.running()
        wait_until(lambda: re.search(r"%d.*%s" % (worker, words), perishable.log()[lines:]), 10, perishable.log)
        wait_until(lambda: path in perishable.log()[lines:], 10, perishable.log)


def test_an_application_that_ends_its_process_costs_others_nothing(server):
    """Other workers, and connections that wait, do not notice."""
    running = server(APP, "-w", "2", *PERSISTENT)
    running.expect_errors()
    running.wait_workers(2)
    for _ in range(5):
        with running.connect() as connection:
            connection.send_request("GET", "/kill")
            connection.expect_closed()
        assert running.get("/hello").status == 200
    running.wait_workers(2)


def test_an_application_that_terminates_itself(perishable):
    """SIGTERM to its own process: the request is answered, then the worker goes and another comes."""
    worker = perishable.wait_workers(1)[0]
    assert perishable.get("/terminate").body == b"hello"
    wait_until(lambda: not alive(worker))
    assert perishable.get("/hello").status == 200


# --- applications that meddle ---

def test_an_application_that_changes_directory_and_streams(server):
    running = server("""
        import os, sys, io, signal, locale, warnings

        os.chdir("/")
        sys.stdout = io.StringIO()
        sys.stderr = None
        warnings.simplefilter("error")

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/raise":
                raise ValueError("on purpose")
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "--pid", "server.pid")
    running.expect_errors(r"Error handling request", r"on purpose")
    assert running.get("/raise").status == 500
    assert running.get("/").body == b"hello"
    running.wait_log(r"ValueError: on purpose")
    assert running.stop() == 0
    assert not running.exists("server.pid")


def test_an_application_that_takes_over_signals(server):
    """Python handlers set at import do not keep the server from being stopped."""
    running = server("""
        import signal
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, lambda *args: None)

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "-w", "2", "--graceful-timeout", "3")
    running.expect_errors()
    assert running.get("/").body == b"hello"
    assert running.stop(timeout=20) == 0
    assert not running.processes()


def test_an_application_with_a_thread_that_never_ends(server):
    running = server("""
        import threading, time
        threading.Thread(target=time.sleep, args=[600]).start()

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "--graceful-timeout", "3")
    running.expect_errors()
    assert running.get("/").body == b"hello"
    assert running.stop(timeout=20) == 0
    assert not running.processes()


def test_an_application_that_runs_out_of_descriptors(server):
    """accept() fails for want of descriptors: the server waits, it does not spin or end; and serves when there are some."""
    running = server("""
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]
    """, "--keep-alive", "60")
    running.expect_errors()
    pid = running.get("/").text
    crowd = []
    for _ in range(100):
        crowd.append(running.connect())
        crowd[-1].send_request()
    served = [c for c in crowd[:20] if c.read_response().status == 200]
    assert len(served) == 20
    for connection in crowd:
        connection.close()
    # Who comes before they have been noticed to be gone is told 503.
    wait_until(lambda: running.get("/").text == pid)
    assert len(running.log()) < 100000


def test_an_application_that_closes_the_servers_descriptors(server):
    """Then nothing can be right any more; but the arbiter replaces the worker, and the server serves."""
    running = server("""
        import os

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/close":
                os.closerange(3, 1000)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "-w", "2", "--timeout", "5")
    running.expect_errors()
    running.wait_workers(2)
    with running.connect() as connection:
        connection.send_request("GET", "/close")
        connection.expect_closed()

    def serves():
        try:
            return all(running.get("/", timeout=8).body == b"hello" for _ in range(10))
        except (wire.ProtocolError, OSError):
            return False
    wait_until(serves, 60)
    assert running.running()
