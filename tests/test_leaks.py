"""Nothing is kept of a request: objects, references and memory are the same after many as after a few.

Big: `RGUNICORN_BIG=1` makes a million requests of it and looks at the memory of the process too.
"""
import json
import os

import pytest

import wire
from harness import SANITIZED

BIG = os.environ.get("RGUNICORN_BIG") == "1"
REQUESTS = 1_000_000 if BIG else 20_000
WARM_UP = 20_000 if BIG else 2_000
GROWTH = 2 ** 20
# A thread does some things for the first time later than another; what counts holds a reference or two.
FEW = 5
# One for each request of a single kind would be more.
MANY = REQUESTS // 50

APP = """
    import collections, gc, json, os, sys

    SINGLETONS = {"None": None, "True": True, "False": False, "()": (), "b''": b"", "''": "", "0": 0, "200": 200,
                  "int": int, "bytes": bytes, "str": str, "dict": dict, "list": list, "tuple": tuple, "sys": sys,
                  "NotImplemented": NotImplemented, "Ellipsis": Ellipsis, "KeyError": KeyError, "OSError": OSError}

    def count(environ):
        types = collections.Counter()
        gc.collect()
        gc.collect()
        for found in gc.get_objects():
            kind = type(found)
            types[kind.__module__ + "." + kind.__qualname__] += 1
        references = {name: sys.getrefcount(found) for name, found in SINGLETONS.items()}
        kinds = {kind.__name__: sys.getrefcount(kind)
                 for kind in (type(environ["wsgi.input"]), type(environ["wsgi.errors"]), environ["wsgi.file_wrapper"])}
        # Of a debug build: all references to all objects.
        total = getattr(sys, "gettotalrefcount", int)()
        with open("/proc/self/statm") as f:
            rss = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {"types": types, "references": references, "kinds": kinds, "blocks": sys.getallocatedblocks(), "total": total,
                "descriptors": len(os.listdir("/proc/self/fd")), "rss": rss, "pid": os.getpid()}

    class Closing:
        closed = 0

        def __init__(self, pieces):
            self.pieces = iter(pieces)

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.pieces)

        def close(self):
            Closing.closed += 1

    def raising():
        yield b"a beginning"
        raise RuntimeError("on purpose")

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/count":
            body = json.dumps(count(environ)).encode()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        if path == "/get":
            start_response("200 OK", [("Content-Length", "5"), ("X-Query", environ["QUERY_STRING"])])
            return [b"hello"]
        if path == "/post":
            body = environ["wsgi.input"].read()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        if path == "/lines":
            lines = list(environ["wsgi.input"])
            start_response("200 OK", [])
            return lines
        if path == "/generator":
            start_response("200 OK", [])
            return (b"piece %d" % i for i in range(3))
        if path == "/closing":
            start_response("200 OK", [])
            return Closing([b"one", b"two"])
        if path == "/write":
            write = start_response("200 OK", [("Content-Length", "10")])
            write(b"hello")
            return [b"world"]
        if path == "/file":
            start_response("200 OK", [("Content-Length", str(os.path.getsize(__file__)))])
            return environ["wsgi.file_wrapper"](open(__file__, "rb"), 1000)
        if path == "/raise":
            raise RuntimeError("on purpose")
        if path == "/field":
            start_response("200 OK", [("X-Bad", "a\\r\\nb")])
            return []
        if path == "/again":
            start_response("200 OK", [("Content-Length", "5")])
            try:
                raise KeyError("on purpose")
            except KeyError:
                start_response("500 Oh", [("Content-Length", "2")], sys.exc_info())
            return [b"no"]
        if path == "/unstarted":
            return [b"a body without a head"]
        if path == "/midway":
            start_response("200 OK", [])
            return raising()
        if path == "/text":
            start_response("200 OK", [("Content-Length", "5")])
            return ["no octets"]
        environ["wsgi.errors"].write("no such page\\n")
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
"""

BODY = b"a line\n" * 100
# Target, method, fields, body, status; None: whatever it is, the connection ends.
KINDS = [
    ("/get?a=1", "GET", [("X-Custom", "some value"), ("Cookie", "a=b")], None, 200),
    ("/post", "POST", [], BODY, 200),
    ("/lines", "POST", [("Transfer-Encoding", "chunked")], wire.chunked(BODY, b"more\n"), 200),
    ("/generator", "GET", [], None, 200),
    ("/closing", "GET", [], None, 200),
    ("/write", "GET", [], None, 200),
    ("/file", "GET", [], None, 200),
    ("/get", "HEAD", [], None, 200),
    ("/again", "GET", [], None, 500),
    ("/nowhere", "GET", [], None, 404),
    ("/post", "PUT", [("Expect", "100-continue")], b"short", 200),
]
FAILING = [
    ("/raise", "GET", [], None, 500),
    ("/field", "GET", [], None, 500),
    ("/unstarted", "GET", [], None, 500),
    ("/text", "GET", [], None, None),
    ("/midway", "GET", [], None, None),
    ("/get", "GET", [("Host", "a"), ("Host", "b")], None, 400),
    ("/post", "POST", [("Content-Length", "100")], b"only a beginning", "leave"),
    ("/get", "G@T\x00", [], None, 400),
]
ROUND = 200     # requests on one connection; then come the failing ones, on one each
# One of each kind, sent at once; the one that waits for 100 (Continue) goes alone.
TOGETHER = KINDS[:-1]
BATCH = b"".join(wire.request_bytes(method, target, fields, body) for target, method, fields, body, _ in TOGETHER)


def make(running, count):
    """So many requests of all kinds, in turn."""
    made = 0
    while made < count:
        with running.connect(60) as connection:
            size = exchange_batch(connection)
            for _ in range(ROUND // len(TOGETHER) - 1):
                connection.send(BATCH)
                answers = connection.read_exactly(size)
                assert answers.startswith(b"HTTP/1.1 200 ") and answers.count(b"HTTP/1.1 ") == len(TOGETHER), answers
            target, method, fields, body, status = KINDS[-1]
            assert connection.exchange(method, target, fields, body).status == status
        for kind in FAILING:
            fail(running, *kind)
        made += ROUND + 1 + len(FAILING)


def exchange_batch(connection):
    """Reads each answer; the size of all of them, which is always the same."""
    connection.send(BATCH)
    before = count_received(connection)
    for target, method, _, _, status in TOGETHER:
        response = connection.read_response(method)
        assert response.status == status, (target, response)
    assert not connection.buffer
    return before()


def count_received(connection):
    received, fill = [], connection._fill

    def counting():
        held = len(connection.buffer)
        came = fill()
        received.append(len(connection.buffer) - held)
        return came
    connection._fill = counting
    return lambda: sum(received)


def fail(running, target, method, fields, body, status):
    with running.connect() as connection:
        connection.send_request(method, target, fields, body)
        if status == "leave":
            return
        try:
            if status is not None:
                assert connection.read_response(method).status == status, target
            connection.expect_closed()
        except wire.ProtocolError as error:
            raise AssertionError("%s %s, from port %d: %s" % (method, target, connection.local_port, error)) from error


def count(running):
    """What the worker has, asked on a new connection, by a request like the one before."""
    return json.loads(running.get("/count").text)


@pytest.mark.timeout(3600 if BIG else 300)
@pytest.mark.parametrize("threads", [1] if BIG else [1, 2])
def test_nothing_is_kept_of_a_request(server, threads):
    running = server(APP, "--threads", threads, "--timeout", "0")
    running.expect_errors()
    make(running, WARM_UP)
    count(running)
    before = count(running)
    make(running, REQUESTS)
    count(running)
    after = count(running)
    growth = after["rss"] - before["rss"]
    total = after["total"] - before["total"]
    print("%d requests, %+d blocks, %+d references, %+d octets of RSS" % (
        REQUESTS, after["blocks"] - before["blocks"], total, growth))
    assert after["pid"] == before["pid"]
    assert difference(before["types"], after["types"], FEW if threads > 1 else 0) == {}
    assert difference(before["kinds"], after["kinds"]) == {}
    # None also stands in what the interpreter keeps for reuse, and comes and goes with that.
    assert after["references"].pop("None") - before["references"].pop("None") < MANY
    assert difference(before["references"], after["references"], FEW) == {}
    # A connection that was left just now may still be open.
    assert abs(after["descriptors"] - before["descriptors"]) <= FEW
    assert abs(after["blocks"] - before["blocks"]) < 100
    assert abs(total) < 100
    if BIG and not SANITIZED:
        assert growth < GROWTH


def difference(before, after, most=0):
    """What has changed by more than `most`."""
    names = {**before, **after}
    return {name: (before.get(name), after.get(name)) for name in names
            if abs(before.get(name, 0) - after.get(name, 0)) > most}
