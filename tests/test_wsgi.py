"""PEP 3333, whole: what the application may do, and what becomes of the response when it does what it may not."""
import io
import json
import os
import random
import sys

import pytest

import wire
from harness import signals_ignored, wait_until

# What applications here do is told in the file `events`, a line each, whichever process or thread it is in.
TOLD = """
import os, sys, time

def tell(word):
    descriptor = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, word.encode() + b"\\n")
    os.close(descriptor)

def wait_for(name, seconds=30):
    deadline = time.monotonic() + seconds
    while not os.path.exists(name):
        if time.monotonic() > deadline:
            raise RuntimeError("nobody made " + name)
        time.sleep(0.005)

TEXT = [("Content-Type", "text/plain")]

"""


def told(running):
    return running.read("events").split()


MODES = pytest.mark.parametrize("options", [(), ("--threads", "4"), ("-w", "2")], ids=["plain", "threads", "workers"])


# --- the validator ---

@MODES
def test_validator_is_content(server, options):
    running = server("apps.valid", "--keep-alive", "30", *options)
    with running.connect() as connection:
        for path in ("listed", "single", "generated", "written", "written_and_listed", "wrapped"):
            for method in ("GET", "HEAD", "GET"):
                response = connection.exchange(method, "/" + path)
                assert response.status == 200, path
                assert response.body == (b"" if method == "HEAD" else b"hello world"), path
        assert connection.exchange("GET", "/failed").status == 503
        assert connection.exchange("GET", "/empty").status == 204
        for body in (b"", b"one\ntwo\nthree", b"x" * 200000 + b"\n" + b"y" * 200000):
            assert connection.exchange("POST", "/posted", body=body).body == body
            chunks = wire.chunked(*(body[i:i + 70000] for i in range(0, len(body), 70000)))
            assert connection.exchange("POST", "/posted", [("Transfer-Encoding", "chunked")], chunks).body == body
        assert connection.exchange("GET", "/errors").body == b"hello world"
    running.wait_log(r"one line for the log")
    running.wait_log(r"two pieces")


# --- start_response ---

STARTS = TOLD + """
def app(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/").replace("-", "_")](environ, start_response)

def exc_info():
    try:
        raise ValueError("on purpose")
    except ValueError:
        return sys.exc_info()

def replaced(environ, start_response):
    start_response("200 OK", TEXT + [("X-First", "1"), ("Content-Length", "500"), ("Set-Cookie", "first=1")])
    start_response("503 Sorry", TEXT + [("X-Second", "2")], exc_info())
    return [b"sorry"]

def replaced_while_iterating(environ, start_response):
    start_response("200 OK", TEXT + [("X-First", "1")])
    yield b""
    start_response("503 Sorry", TEXT + [("X-Second", "2")], exc_info())
    yield b"sorry"

def replaced_too_late(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"begun"
    start_response("503 Sorry", TEXT, exc_info())
    yield b"never"

def replaced_after_write(environ, start_response):
    start_response("200 OK", TEXT)(b"begun")
    start_response("503 Sorry", TEXT, exc_info())
    return [b"never"]

def no_exception(environ, start_response):
    start_response("200 OK", TEXT, None)
    return [b"fine"]

def twice(environ, start_response):
    start_response("200 OK", TEXT)
    start_response("200 OK", TEXT)
    return [b"never"]

def never(environ, start_response):
    return [b"never"]

def never_in_generator(environ, start_response):
    yield b"never"

def late(environ, start_response):
    yield b""
    start_response("200 OK", TEXT)
    yield b"fine"

def inside(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"fine"

def too_late(environ, start_response):
    yield b"never"
    start_response("200 OK", TEXT)

def keywords(environ, start_response):
    start_response("200 OK", TEXT, exc_info=None)
    return [b"fine"]
"""


@pytest.fixture(scope="module")
def starts(module_server):
    running = module_server(STARTS)
    running.expect_errors(r"Error handling request", r"on purpose")
    return running


@pytest.mark.parametrize("path", ["/replaced", "/replaced-while-iterating"])
def test_exc_info_before_the_head_replaces_it(starts, path):
    response = starts.get(path)
    assert (response.status, response.reason, response.body) == (503, "Sorry", b"sorry")
    assert response.header("x-second") == "2"
    assert response.header("x-first") is None and response.header("set-cookie") is None


@pytest.mark.parametrize("path", ["/replaced-too-late", "/replaced-after-write"])
def test_exc_info_after_the_head_cuts_the_response(starts, path):
    with starts.connect() as connection:
        connection.send_request("GET", path)
        response = connection.read_head()
        assert response.status == 200
        assert connection.read_chunk() == b"begun"
        assert connection.expect_closed() == b"", "no last chunk"
    starts.wait_log(r"on purpose")


@pytest.mark.parametrize("path", ["/no-exception", "/late", "/inside", "/keywords"])
def test_start_response_in_time(starts, path):
    response = starts.get(path)
    assert (response.status, response.body) == (200, b"fine")


@pytest.mark.parametrize("path", ["/twice", "/never", "/never-in-generator", "/too-late"])
def test_start_response_misused(starts, path):
    response = starts.get(path)
    assert response.status == 500 and b"never" not in response.body
    starts.wait_log(r"Error handling request (GET )?%s" % path)


RESPONSES = """
    import json

    def app(environ, start_response):
        status, headers, body = eval(environ["wsgi.input"].read().decode())
        start_response(status, headers)
        return body
"""


@pytest.fixture(scope="module")
def told_what(module_server):
    """An application that answers what the request says, as Python."""
    running = module_server(RESPONSES, "--keep-alive", "30")
    running.expect_errors(r"Error handling request")
    return running


def answered(running, status="200 OK", headers=(), body="[b'hello']"):
    source = "(%r, %r, %s)" % (status, list(headers), body)
    with running.connect() as connection:
        response = connection.exchange("POST", "/", body=source.encode())
        if response.closing:
            connection.expect_eof()
        else:
            assert connection.exchange("POST", "/", body=b"('200 OK', [], [])").status == 200
        return response


@pytest.mark.parametrize("status", [
    "OK", "", " 200 OK", "20 OK", "42 X", "2000 OK", "099 Low", "0 Zero", "-20 OK", "2.0 OK", "abc OK", "200\tOK", "200 O\rK",
    "200 OK\r\nX-Injected: 1", "200 OK\nX-Injected: 1", "200 O\0K", "200 O\x7fK", "200 \u0100", "\uff12\uff10\uff10 OK",
    b"200 OK", None, 200, ["200 OK"], "100 Continue", "101 Switching Protocols", "103 Early Hints",
])
def test_status_refused(told_what, status):
    response = answered(told_what, status)
    assert response.status == 500, response
    assert response.header("x-injected") is None


@pytest.mark.parametrize("status, code, reason", [
    ("200 OK", 200, "OK"), ("200", 200, ""), ("200 ", 200, ""), ("299 Any Thing, really!", 299, "Any Thing, really!"),
    ("418 I'm a teapot", 418, "I'm a teapot"), ("599 X", 599, "X"), ("999 X", 999, "X"), ("404 caf\u00e9", 404, "caf\u00e9"),
])
def test_status_accepted(told_what, status, code, reason):
    response = answered(told_what, status)
    assert (response.status, response.reason) == (code, reason)


@pytest.mark.parametrize("field", [
    ("X-A", "a\r\nX-Injected: 1"), ("X-A", "a\nX-Injected: 1"), ("X-A", "a\rb"), ("X-A", "a\0b"), ("X-A", "a\x01b"),
    ("X-A", "a\x7fb"), ("X-A", "\u0100"), ("X-A", "\u010a"), ("X-A", b"bytes"), ("X-A", 5), ("X-A", None),
    ("X-A\r\nX-Injected", "1"), ("X A", "1"), ("X-A:", "1"), ("X-A ", "1"), (" X-A", "1"), ("", "1"), ("X\0A", "1"),
    ("X(A)", "1"), ("X-\u00e9", "1"), ("X-\u0100", "1"), (b"X-A", "1"), (5, "1"), ("X-A",), ("X-A", "1", "2"), "X-A: 1",
    None,
])
def test_header_refused(told_what, field):
    response = answered(told_what, "200 OK", [("X-Before", "1"), field])
    assert response.status == 500, response
    assert response.header("x-injected") is None and response.header("x-before") is None


@pytest.mark.parametrize("field, value", [
    (("X-A", "plain"), "plain"), (("X-A", ""), ""), (("X-A", "tab\there"), "tab\there"), (("X-A", "caf\u00e9\u00ff"), "caf\u00e9\u00ff"),
    (("x!#$%&'*+-.^_`|~9", "1"), "1"), (("X-A", "a:b"), "a:b"), (("X-A", "x" * 20000), "x" * 20000),
])
def test_header_accepted(told_what, field, value):
    assert answered(told_what, "200 OK", [field]).header(field[0]) == value


def test_headers_in_order_with_their_case(told_what):
    fields = [("X-B", "1"), ("x-a", "2"), ("X-B", "3")]
    response = answered(told_what, "200 OK", fields)
    kept = [(n.decode(), v.decode()) for n, v in response.fields if n.lower().startswith(b"x-")]
    assert kept == fields


@pytest.mark.parametrize("headers", ["None", "5", "'X-A: 1'", "{'X-A': '1'}.items"])
def test_headers_that_are_no_list(told_what, headers):
    with told_what.connect() as connection:
        response = connection.exchange("POST", "/", body=("('200 OK', %s, [b'x'])" % headers).encode())
        assert response.status == 500


@pytest.mark.parametrize("field", [
    ("Connection", "keep-alive"), ("connection", "upgrade"), ("Keep-Alive", "timeout=5"), ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "gzip"), ("TE", "trailers"), ("Trailers", "X"), ("Upgrade", "h2c"), ("Proxy-Authenticate", "x"),
    ("Proxy-Authorization", "x"),
])
def test_hop_by_hop_headers_are_dropped(told_what, field):
    response = answered(told_what, "200 OK", [field, ("X-Kept", "1")])
    assert (response.status, response.body, response.header("x-kept")) == (200, b"hello", "1")
    if field[1] not in ("keep-alive", "chunked"):  # these the server may have said itself
        assert field[1] not in response.all(field[0])


@pytest.mark.parametrize("lengths", [["abc"], [""], ["-5"], ["+5"], ["5.0"], ["5 5"], ["5, 5"], ["0x5"], ["5", "5"],
                                     ["5", "6"], ["99999999999999999999"], ["\u00b2"]])
def test_content_length_refused(told_what, lengths):
    response = answered(told_what, "200 OK", [("Content-Length", length) for length in lengths])
    assert response.status == 500, response


# --- bodies that are none ---

@pytest.mark.parametrize("body", ["None", "5", "'text'", "b'bytes'", "[None]", "['text']", "[5]", "('text',)", "iter([None])",
                                  "(x for x in ['text'])", "object()", "{'a': b'x'}"])
def test_body_refused_before_it_begins(told_what, body):
    response = answered(told_what, "200 OK", [], body)
    assert response.status == 500, response
    assert b"text" not in response.body


@pytest.mark.parametrize("body", ["[b'hello', None]", "[b'hello', 'text']", "(x for x in [b'hello', 'text'])",
                                  "(x for x in [b'hello', 5])"])
def test_body_that_goes_wrong_is_not_finished(told_what, body):
    """A list can be looked at before the head is sent; a generator cannot: then the response is cut."""
    with told_what.connect() as connection:
        connection.send_request("POST", "/", body=("('200 OK', [], %s)" % body).encode())
        response = connection.read_head("POST")
        if response.status == 500:
            return
        data = connection.expect_closed()
        assert b"text" not in data
        assert not data.endswith(b"0\r\n\r\n")
        if response.framing == "length":
            assert len(data) < int(response.header("content-length"))


@pytest.mark.parametrize("body", ["[bytearray(b'hello')]", "[memoryview(b'hello')]"])
def test_bytes_like_blocks(told_what, body):
    """The PEP asks for bytes. Either answer is honest; a cut or an empty 200 is not."""
    response = answered(told_what, "200 OK", [], body)
    assert response.status == 500 or response.body == b"hello"


@pytest.mark.parametrize("body", ["__import__('collections').deque([b'hel', b'lo'])", "{b'hello': 1}",
                                  "type('L', (list,), {})([b'hel', b'lo'])", "type('B', (bytes,), {})(b'hello').splitlines()",
                                  "[type('B', (bytes,), {})(b'hello')]", "map(bytes, [b'hel', b'lo'])",
                                  "type('S', (), {'__getitem__': lambda s, i: [b'hel', b'lo'][i]})()"])
def test_any_iterable_is_a_body(told_what, body):
    assert answered(told_what, "200 OK", [], body).body == b"hello"


# --- Content-Length is a promise ---

@pytest.mark.parametrize("body", ["[b'hello']", "(b for b in [b'hel', b'lo'])", "[]", "(b for b in [])"])
def test_too_short_a_body_ends_the_connection(told_what, body):
    """Were it kept, the next head would be taken for the rest of this body."""
    data = ("('200 OK', [('Content-Length', '10')], %s)" % body).encode()
    with told_what.connect() as connection:
        connection.send(wire.request_bytes("POST", "/short", body=data) + wire.request_bytes("GET", "/smuggled"))
        response = connection.read_head()
        assert response.status == 200 and response.header("content-length") == "10"
        assert connection.expect_closed() in (b"hello", b"")
    told_what.expect_errors(r"/short", r"Content-Length")
    told_what.wait_log(r"/short")


@pytest.mark.parametrize("body", ["[b'hello world']", "[b'hello', b' world']", "(b for b in [b'hel', b'lo w', b'orld'])",
                                  "[b'hello', b'']"])
def test_too_long_a_body_is_cut(told_what, body):
    told_what.expect_errors(r"Content-Length")
    response = answered(told_what, "200 OK", [("Content-Length", "5")], body)
    assert response.body == b"hello"


def test_iteration_stops_at_the_length(server):
    running = server(TOLD + """
class Body:
    def __iter__(self):
        for n in range(1000):
            tell("made")
            yield b"hello"

    def close(self):
        tell("close")

def app(environ, start_response):
    start_response("200 OK", TEXT + [("Content-Length", "10")])
    return Body()
""")
    running.expect_errors(r"Content-Length")
    with running.connect() as connection:
        assert connection.exchange().body == b"hellohello"
        assert wait_until(lambda: "close" in told(running) and told(running))[-1] == "close"
    assert told(running).count("made") <= 3


# --- write() ---

WRITES = TOLD + """
def app(environ, start_response):
    how = environ["PATH_INFO"]
    length = environ["QUERY_STRING"]
    write = start_response("200 OK", TEXT + ([("Content-Length", length)] if length else []))
    if how == "/steps":
        for n in range(3):
            write(b"step %d\\n" % n)
            wait_for("go%d" % n)
        return [b"done"]
    if how == "/text":
        write("text")
    if how == "/text-later":
        write(b"begun")
        write("text")
    if how == "/large":
        for n in range(200):
            write(b"x" * 50000)
        return [b"end"]
    if how == "/empty":
        write(b"")
        return [b"hello"]
    if how == "/raise":
        write(b"begun")
        raise ValueError("on purpose")
    write(b"hel")
    write(b"")
    write(b"lo")
    return [b" ", b"world"]
"""


@pytest.fixture(scope="module")
def writes(module_server):
    running = module_server(WRITES, "--keep-alive", "30")
    running.expect_errors(r"Error handling request", r"on purpose")
    return running


def test_write_comes_before_the_iterable(writes):
    with writes.connect() as connection:
        assert connection.exchange().body == b"hello world"
        assert connection.exchange("HEAD").body == b""
        assert connection.exchange("GET", "/?11").framing == "length"
        assert connection.exchange("GET", "/empty").body == b"hello"
        assert connection.exchange("GET", "/large").body == b"x" * 10000000 + b"end"
        assert connection.exchange("GET", "/", version="HTTP/1.0").body == b"hello world"


def test_write_counts_for_the_length(writes):
    writes.expect_errors(r"Content-Length")
    with writes.connect() as connection:
        for length in (4, 5, 7):
            assert connection.exchange("GET", "/?%d" % length).body == b"hello world"[:length]
        connection.send_request("GET", "/?20")
        connection.read_head()
        assert connection.expect_closed() == b"hello world"


def test_write_is_sent_at_once(writes):
    with writes.connect() as connection:
        connection.send_request("GET", "/steps")
        connection.read_head()
        for n in range(3):
            assert connection.read_chunk() == b"step %d\n" % n
            writes.touch("go%d" % n)
        assert connection.read_chunk() == b"done"
        assert connection.read_chunk() == b""


def test_write_takes_bytes_only(writes):
    assert writes.get("/text").status == 500
    for path in ("/text-later", "/raise"):
        with writes.connect() as connection:
            connection.send_request("GET", path)
            assert connection.read_head().status == 200
            assert connection.read_chunk() == b"begun"
            assert connection.expect_closed() == b""


# --- flushing ---

@MODES
def test_each_block_is_sent_before_the_next_is_made(server, options):
    """The application makes a block only when the client has shown that it has the one before."""
    running = server(TOLD + """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    for n in range(5):
        yield b"data: %d\\n\\n" % n
        wait_for("seen%d" % n)
""", *options)
    with running.connect() as connection:
        connection.send_request()
        assert connection.read_head().framing == "chunked"
        for n in range(5):
            assert connection.read_chunk() == b"data: %d\n\n" % n
            running.touch("seen%d" % n)
        assert connection.read_chunk() == b""
        assert connection.read_fields() == []


COUNTED = TOLD + """
def app(environ, start_response):
    start_response("200 OK", TEXT + HEADERS)
    for n in range(3):
        yield b"%d\\n" % n
        wait_for("seen%d" % n)
"""


def read_counted(running, connection):
    for n in range(3):
        assert connection.read_exactly(2) == b"%d\n" % n
        running.touch("seen%d" % n)


def test_blocks_are_sent_with_a_length_too(server):
    running = server(COUNTED + 'HEADERS = [("Content-Length", "6")]\n')
    with running.connect() as connection:
        connection.send_request()
        assert connection.read_head().framing == "length"
        read_counted(running, connection)


def test_blocks_are_sent_to_http_1_0(server):
    running = server(COUNTED + "HEADERS = []\n")
    with running.connect() as connection:
        connection.send_request(version="HTTP/1.0")
        assert connection.read_head().framing == "close"
        read_counted(running, connection)
        connection.expect_eof()


# --- close() ---

CLOSES = TOLD + """
class Body:
    def __init__(self, blocks, close_raises=False):
        self.blocks = iter(blocks)
        self.close_raises = close_raises

    def __iter__(self):
        return self

    def __next__(self):
        block = next(self.blocks)
        if isinstance(block, Exception):
            raise block
        return block

    def close(self):
        tell("close")
        if self.close_raises:
            raise RuntimeError("close on purpose")

class Closing(list):
    def close(self):
        tell("close")

class ClosingTuple(tuple):
    def close(self):
        tell("close")

def generator():
    try:
        for n in range(10 ** 9):
            yield b"x" * 1000
    finally:
        tell("close")

def one_by_one():
    try:
        yield b"first"
        wait_for("go")
        for n in range(10 ** 9):
            yield b"x" * 1000
    finally:
        tell("close")

BODIES = {
    "/normal": lambda: Body([b"hel", b"lo"]),
    "/empty": lambda: Body([]),
    "/list": lambda: Closing([b"hello"]),
    "/two-list": lambda: Closing([b"hel", b"lo"]),
    "/tuple": lambda: ClosingTuple([b"hello"]),
    "/raising": lambda: Body([b"hello", ValueError("on purpose")]),
    "/raising-first": lambda: Body([ValueError("on purpose")]),
    "/text": lambda: Body(["text"]),
    "/text-list": lambda: Closing(["text"]),
    "/text-later": lambda: Body([b"hello", "text"]),
    "/close-raises": lambda: Body([b"hello"], True),
    "/generator": generator,
    "/finite": lambda: Body([b"x" * 1000] * 1000),
    "/one-by-one": one_by_one,
    "/large-list": lambda: Closing([b"x" * 50000000]),
    "/204": lambda: Body([b"hello"]),
    "/none-started": lambda: Body([b"hello"]),
    "/bad-status": lambda: Body([b"hello"]),
}

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/file":
        start_response("200 OK", TEXT)
        file = open("large", "rb")
        class Told:
            read, fileno, seek, tell_ = file.read, file.fileno, file.seek, file.tell
            tell = file.tell
            def close(self):
                file.close()
                tell("close")
        return environ["wsgi.file_wrapper"](Told(), 65536)
    if path == "/hello":
        start_response("200 OK", TEXT)
        return [b"hello"]
    if path != "/none-started":
        status = {"/204": "204 No Content", "/bad-status": "200 O\\rK"}.get(path, "200 OK")
        headers = [("Content-Length", environ["QUERY_STRING"])] if environ["QUERY_STRING"] else []
        try:
            start_response(status, headers)
        except Exception:
            if path != "/bad-status":
                raise
    return BODIES[path]()
"""


@pytest.fixture
def closes(server):
    def start(*options):
        running = server(CLOSES, *options)
        running.expect_errors(r"Error handling request", r"on purpose", r"Content-Length", r"no-body", r"clos(e|ing)")
        return running
    return start


def closed_once(running):
    """It is closed, and after the server has stopped still only once."""
    wait_until(lambda: told(running), 30)
    assert running.get("/hello").body == b"hello"
    assert running.stop() == 0
    assert told(running) == ["close"]


@pytest.mark.parametrize("request_line", [
    "GET /normal", "GET /empty", "GET /list", "GET /two-list", "GET /tuple", "GET /raising", "GET /raising-first", "GET /text",
    "GET /text-list", "GET /text-later", "GET /close-raises", "GET /204", "GET /none-started", "GET /bad-status",
    "GET /generator?2500", "GET /normal?3", "GET /normal?5", "GET /normal?9", "HEAD /normal", "HEAD /list", "HEAD /finite",
    "HEAD /raising", "POST /normal", "GET /generator?0",
])
def test_close_is_called_once(closes, request_line):
    running = closes()
    method, target = request_line.split()
    with running.connect() as connection:
        connection.send_request(method, target, [("Connection", "close")])
        connection.expect_closed()
    closed_once(running)


def test_close_after_a_disconnect(closes):
    for mode in ([], ["--threads", "2"]):
        for path in ("/generator", "/one-by-one", "/large-list", "/file"):
            running = closes(*mode)
            with open(running.path("large"), "wb") as f:
                f.truncate(200000000)
            connection = wire.Connection(running.address, receive_buffer=4096)
            connection.send_request("GET", path)
            connection.read_head()
            connection.reset()
            running.touch("go")
            closed_once(running)


def test_a_close_that_raises_does_not_spoil_the_answer(closes):
    running = closes()
    with running.connect() as connection:
        response = connection.exchange("GET", "/close-raises")
        assert (response.status, response.body) == (200, b"hello")
    running.wait_log(r"close on purpose")


def test_close_is_called_in_the_thread_that_iterated(server):
    running = server(TOLD + """
import threading

class Body:
    def __iter__(self):
        self.thread = threading.get_ident()
        yield b"hel"
        yield b"lo"

    def close(self):
        tell("same" if self.thread == threading.get_ident() else "other")

def app(environ, start_response):
    start_response("200 OK", TEXT)
    return Body()
""", "--threads", "3")
    for _ in range(10):
        assert running.get("/").body == b"hello"
    wait_until(lambda: len(told(running)) == 10)
    assert set(told(running)) == {"same"}


# --- wsgi.input ---

READS = """
    import json

    def app(environ, start_response):
        source = environ["wsgi.input"]
        results = []
        for step in json.loads(environ["HTTP_X_STEPS"]):
            if step == "iter":
                results.append([line.decode("latin-1") for line in source])
            elif step == "next":
                results.append(next(iter(source), b"").decode("latin-1"))
            elif step[0] == "readlines":
                results.append([line.decode("latin-1") for line in source.readlines(*step[1:])])
            else:
                data = getattr(source, step[0])(*step[1:])
                assert type(data) is bytes
                results.append(data.decode("latin-1"))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(results).encode()]
"""


def as_a_file(body, steps):
    """What the same steps give on io.BytesIO: the PEP calls wsgi.input a file."""
    source = io.BytesIO(body)
    results = []
    for step in steps:
        if step == "iter":
            results.append([line.decode("latin-1") for line in source])
        elif step == "next":
            results.append(next(iter(source), b"").decode("latin-1"))
        elif step[0] == "readlines":
            results.append([line.decode("latin-1") for line in source.readlines(*step[1:])])
        else:
            results.append(getattr(source, step[0])(*step[1:]).decode("latin-1"))
    return results


STEPS = [
    [["read"]], [["read", -1]], [["read", None]], [["read"], ["read"], ["read", 5], ["readline"], ["readlines"], "iter"],
    [["read", 0], ["read", 1], ["read", 3], ["read", 10000], ["read"]], [["read", 10 ** 9], ["read", 1]],
    [["read", 70000], ["readline"], ["read", 70000], ["read"]],
    [["readline"], ["readline"], ["read", 4], ["readline"], ["read"]],
    [["readline", -1], ["readline", 0], ["readline", 3], ["readline", 3], ["readline", 10 ** 9], ["readline", None], ["read"]],
    [["readlines"]], [["readlines", 0]], [["readlines", -1]], [["readlines", None]], ["iter"], ["next", "next", ["read", 3], "iter"],
    [["readline"], "next", ["readlines"]],
    [["readline", 5]] * 40 + [["read"]], [["read", 1]] * 50 + [["read", -5]],
]
BODIES = {
    "no body": None, "empty": b"", "one line": b"hello", "lines": b"first\nsecond\r\n\n\nfifth without end",
    "ends in LF": b"a\nb\n", "only LF": b"\n\n\n", "long lines": b"x" * 100000 + b"\n" + b"y" * 100000 + b"\n" + b"z" * 9,
    "many lines": b"".join(b"line %d\n" % n for n in range(30000)),
    "binary": bytes(range(256)) * 1000,
}


@pytest.fixture(scope="module")
def reads(module_server):
    return module_server(READS, "--keep-alive", "30")


@pytest.mark.parametrize("name", list(BODIES))
def test_input_is_a_file(reads, name):
    body = BODIES[name]
    shuffled = random.Random(name)
    with reads.connect() as connection:
        for steps in STEPS:
            wanted = as_a_file(body or b"", steps)
            fields = [("X-Steps", json.dumps(steps))]
            assert json.loads(connection.exchange("POST", "/", fields, body).text) == wanted, (name, steps)
            cuts = sorted(shuffled.sample(range(1, len(body)), min(5, len(body) - 1))) if body and len(body) > 1 else []
            pieces = [body[i:j] for i, j in zip([0] + cuts, cuts + [len(body)])] if body else []
            chunks = wire.chunked(*pieces)
            response = connection.exchange("POST", "/", fields + [("Transfer-Encoding", "chunked")], chunks)
            assert json.loads(response.text) == wanted, (name, steps, "chunked")


def test_readlines_with_a_hint(reads):
    """The hint may be ignored, but not a line be lost."""
    body = b"".join(b"line %d\n" % n for n in range(100))
    steps = [["readlines", 10], ["readlines"]]
    with reads.connect() as connection:
        first, rest = json.loads(connection.exchange("POST", "/", [("X-Steps", json.dumps(steps))], body).text)
        assert len(first) >= 2 and "".join(first + rest).encode() == body


def test_input_that_comes_slowly(reads):
    """A read asks for as much as it was told, however the body arrives."""
    steps = [["read", 70000], ["readline"], ["read", 5], ["read"]]
    body = b"x" * 70000 + b"line\n" + b"y" * 70000
    with reads.connect() as connection:
        head = wire.request_bytes("POST", "/", [("X-Steps", json.dumps(steps)), ("Content-Length", str(len(body)))])
        connection.send(head)
        for start in range(0, len(body), 9973):
            connection.send(body[start:start + 9973])
        assert json.loads(connection.read_response().text) == ["x" * 70000, "line\n", "yyyyy", "y" * 69995]


@pytest.mark.parametrize("argument", ["x", 1.5, [1]])
def test_sizes_that_are_no_numbers(reads, argument):
    reads.expect_errors(r"Error handling request")
    for name in ("read", "readline"):
        with reads.connect() as connection:
            response = connection.exchange("POST", "/", [("X-Steps", json.dumps([[name, argument]]))], b"hello")
            assert response.status == 500


def test_input_kept_after_the_request(server):
    """An application that keeps wsgi.input must not read the next request through it."""
    running = server("""
        kept = []

        def app(environ, start_response):
            kept.append(environ["wsgi.input"])
            try:
                old = kept[-2].read() if len(kept) > 1 else b""
            except Exception:
                old = b"raised"
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [old + b"|" + kept[-1].read()]
    """, "--keep-alive", "30")
    with running.connect() as connection:
        connection.send(wire.request_bytes("POST", "/", body=b"first") + wire.request_bytes("POST", "/", body=b"second"))
        assert connection.read_response().body == b"|first"
        assert connection.read_response().body in (b"|second", b"raised|second")


# --- wsgi.file_wrapper ---

FILES = """
    import io, os
    from urllib.parse import parse_qsl

    class Reader:
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def read(self, size=-1):
            return self.data.read(size)

    def app(environ, start_response):
        how = dict(parse_qsl(environ["QUERY_STRING"]))
        headers = [("Content-Type", "application/octet-stream")]
        if "length" in how:
            headers.append(("Content-Length", how["length"]))
        start_response("200 OK", headers)
        kind = how.get("kind", "file")
        if kind == "file":
            source = open(how["name"], "rb")
            source.seek(int(how.get("offset", 0)))
        elif kind == "unbuffered":
            source = open(how["name"], "rb", buffering=0)
        elif kind == "bytesio":
            source = io.BytesIO(b"0123456789" * 10000)
        elif kind == "pipe":
            source = os.fdopen(pipe(), "rb")
        else:
            source = Reader(b"0123456789" * 10000)
        wrapper = environ["wsgi.file_wrapper"](source, int(how.get("block", 8192)))
        if "iterated" in how:
            return [b"".join(wrapper)]
        if "wrapped" in how:
            return (block for block in wrapper)
        return wrapper

    def pipe():
        reading, writing = os.pipe()
        os.write(writing, b"through a pipe")
        os.close(writing)
        return reading
"""


@pytest.fixture(scope="module")
def files(module_server):
    running = module_server(FILES, "--keep-alive", "30")
    pattern = bytes(random.Random(1).randrange(256) for _ in range(4096))
    running.content = {"small": b"hello file", "empty": b"", "large": pattern * 1200, "exact": pattern * 2}
    for name, data in running.content.items():
        with open(running.path(name), "wb") as f:
            f.write(data)
    return running


@pytest.mark.parametrize("name", ["small", "empty", "large", "exact"])
@pytest.mark.parametrize("kind", ["file", "unbuffered"])
def test_file_wrapper_sends_the_file(files, kind, name):
    target = "/?kind=%s&name=%s" % (kind, name)
    with files.connect() as connection:
        for _ in range(2):
            response = connection.exchange("GET", target)
            assert response.body == files.content[name]
            head = connection.exchange("HEAD", target)
            assert head.body == b"" and head.header("content-length") in (None, str(len(files.content[name])))
        assert connection.exchange("GET", target, version="HTTP/1.0").body == files.content[name]


@pytest.mark.parametrize("offset, length, wanted", [
    (0, None, slice(0, None)), (100, None, slice(100, None)), (4915000, None, slice(4915000, None)),
    (0, 1000, slice(0, 1000)), (100, 70000, slice(100, 70100)), (5, 0, slice(5, 5)), (9000000, None, slice(0, 0)),
])
def test_file_wrapper_respects_offset_and_length(files, offset, length, wanted):
    target = "/?name=large&offset=%d" % offset + ("&length=%d" % length if length is not None else "")
    with files.connect() as connection:
        assert connection.exchange("GET", target).body == files.content["large"][wanted]
        assert connection.exchange("HEAD", target).body == b""
        assert connection.exchange("GET", "/?name=small").body == b"hello file"


def test_file_wrapper_of_a_file_that_is_too_short(files):
    files.expect_errors(r"Content-Length")
    with files.connect() as connection:
        connection.send_request("GET", "/?name=small&length=100")
        connection.read_head()
        assert connection.expect_closed() == b"hello file"


@pytest.mark.parametrize("target, wanted", [
    ("/?kind=bytesio", b"0123456789" * 10000), ("/?kind=reader", b"0123456789" * 10000),
    ("/?kind=reader&block=7", b"0123456789" * 10000), ("/?kind=bytesio&length=15", b"012345678901234"),
    ("/?kind=pipe", b"through a pipe"), ("/?name=small&iterated=1", b"hello file"), ("/?name=small&wrapped=1", b"hello file"),
    ("/?name=small&block=3", b"hello file"), ("/?name=small&block=1&iterated=1", b"hello file"),
])
def test_file_wrapper_of_other_things(files, target, wanted):
    with files.connect() as connection:
        assert connection.exchange("GET", target).body == wanted
        assert connection.exchange("GET", "/?name=small").body == b"hello file"


def test_file_wrapper_closes_its_file(server, tmp_path):
    (tmp_path / "file").write_bytes(b"hello file")
    running = server("""
        import os
        PATH = %r

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            if environ["PATH_INFO"] == "/open":
                ours = [os.path.realpath("/proc/self/fd/" + d) for d in os.listdir("/proc/self/fd")]
                return [b"%%d" %% ours.count(PATH)]
            return environ["wsgi.file_wrapper"](Kept(PATH, "rb"))

        import io
        class Kept(io.FileIO):
            everyone = []
            def __init__(self, *args):
                io.FileIO.__init__(self, *args)
                self.everyone.append(self)
    """ % os.path.realpath(str(tmp_path / "file")))
    for method in ("GET", "HEAD"):
        for _ in range(3):
            assert running.request(method, "/").body == (b"hello file" if method == "GET" else b"")
    assert running.get("/open").text == "0"


def test_file_that_shrinks_while_it_is_sent(server, tmp_path):
    """The promise cannot be kept: the connection ends, the server goes on."""
    large = tmp_path / "large"
    with open(str(large), "wb") as f:
        f.truncate(100000000)
    running = server("""
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/hello":
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"hello"]
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "100000000")])
            return environ["wsgi.file_wrapper"](open(%r, "rb"))
    """ % str(large))
    running.expect_errors(r"Content-Length", r"Error handling request")
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/large")
        connection.read_head()
        os.truncate(str(large), 1000)
        assert len(connection.expect_closed()) < 100000000
    assert running.get("/hello").body == b"hello"


# --- the process the application lives in ---

def test_the_application_may_fork(server):
    """Under warnings as errors: a server with threads of its own would make Python complain."""
    running = server("""
        import os

        def app(environ, start_response):
            child = os.fork()
            if not child:
                os._exit(7)
            code = os.waitpid(child, 0)[1] >> 8
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % code]
    """, env={"PYTHONWARNINGS": "error::DeprecationWarning:app"})
    for _ in range(5):
        assert running.get("/").body == b"7"


def test_the_application_may_run_programs(server):
    running = server("""
        import subprocess, sys

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [subprocess.check_output([sys.executable, "-c", "print('output')"]),
                    subprocess.check_output("cat; echo end", shell=True, stdin=subprocess.DEVNULL)]
    """)
    assert running.get("/").body == b"output\nend\n"


def test_signals_of_children_are_default(server):
    """What a program started by the application inherits: no blocked and no ignored signals but SIGPIPE as Python has it."""
    running = server("""
        import subprocess

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [subprocess.check_output(["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"])]
    """)
    found = dict(line.split(":\t") for line in running.get("/").text.splitlines())
    assert int(found["SigBlk"], 16) == 0
    # What whoever started the tests ignores, the server was started with.
    assert int(found["SigIgn"], 16) & ~(1 << 12) & ~signals_ignored() == 0, found


def test_threads_of_the_application_run(server):
    """While the worker waits and while it is busy."""
    running = server("""
        import threading, time
        count = 0

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % count]

        def counting():
            global count
            while True:
                time.sleep(0.002)
                count += 1
                if count % 20 == 0:
                    with open("count", "w") as f:
                        f.write(str(count))

        threading.Thread(target=counting, daemon=True).start()
    """, "--keep-alive", "30")
    assert running.get("/").status == 200
    before = running.read("count")
    wait_until(lambda: running.read("count") not in ("", before))
    with running.connect() as connection:
        batch = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * 200
        connection.send(batch)
        seen = []
        for _ in range(50):
            connection.send(batch)
            seen += [int(connection.read_response().text) for _ in range(200)]
        assert seen[-1] > seen[0]


def test_contexts_and_thread_locals(server):
    """A context variable set by one request is not seen by the next, or at least not lost within its own."""
    running = server("""
        import contextvars, threading
        variable = contextvars.ContextVar("variable", default="unset")
        local = threading.local()

        def app(environ, start_response):
            local.value = environ["PATH_INFO"]
            variable.set(environ["PATH_INFO"])
            start_response("200 OK", [("Content-Type", "text/plain")])
            for _ in range(3):
                yield (variable.get() + local.value).encode()
    """, "--threads", "2")
    for path in ("/a", "/b", "/c"):
        assert running.get(path).text == (path * 2) * 3


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="reference counts are CPython's")
def test_nothing_leaks_by_the_request(server):
    """The number of objects that Python knows does not grow with the requests."""
    running = server("""
        import gc, io

        def app(environ, start_response):
            path = environ["PATH_INFO"]
            if path == "/count":
                gc.collect()
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"%d" % len(gc.get_objects())]
            if path == "/raise":
                raise ValueError("on purpose")
            environ["wsgi.input"].read()
            write = start_response("200 OK", [("Content-Type", "text/plain")])
            if path == "/write":
                write(b"x")
            if path == "/generator":
                return (b for b in [b"x", b"y"])
            if path == "/file":
                return environ["wsgi.file_wrapper"](io.BytesIO(b"x"))
            return [b"x"]
    """, "--keep-alive", "30")
    running.expect_errors(r"Error handling request", r"on purpose")
    with running.connect() as connection:
        def work(times):
            for n in range(times):
                for path in ("/list", "/write", "/generator", "/file"):
                    connection.exchange("POST", path, [("X-Some", "v%d" % n)], b"body")
            for _ in range(times // 10):
                running.get("/raise")
            return int(connection.exchange("GET", "/count").text)
        work(50)
        before = work(50)
        after = work(500)
        assert after - before < 100, (before, after)
