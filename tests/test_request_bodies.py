"""When the application is called, and what it finds in `wsgi.input`: bodies in one piece, slowly, in chunks, large, after
Expect; in memory, in a file, streamed."""
import hashlib
import json
import os
import random
import time
import urllib.parse
from signal import SIGTERM

import pytest

import harness
import nginx
import wire
from harness import wait_until

APP = """
    import hashlib, json, os, time

    def app(environ, start_response):
        time.sleep(0.01)
        body = b""
        if environ["PATH_INFO"] == "/lines":
            body = b"".join(environ["wsgi.input"])
        elif environ["PATH_INFO"] == "/small":
            for piece in iter(lambda: environ["wsgi.input"].read(1000), b""):
                body += piece
        elif environ["PATH_INFO"] != "/unread":
            body = environ["wsgi.input"].read()
        seen = {"length": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pid": os.getpid(),
                "CONTENT_LENGTH": environ.get("CONTENT_LENGTH"),
                "HTTP_TRANSFER_ENCODING": environ.get("HTTP_TRANSFER_ENCODING"),
                "terminated": environ["wsgi.input_terminated"]}
        answer = json.dumps(seen).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]
"""
STRANGER = ("--forwarded-allow-ips", "192.0.2.1")
MODES = {
    "auto": STRANGER,
    "auto behind a proxy": (),
    # Who trusts everybody has named no proxy: bodies are buffered as a stranger's.
    "auto with everybody trusted": ("--forwarded-allow-ips", "*"),
    "on": ("--request-buffering", "on"),
    "off": ("--request-buffering", "off"),
}
HEAD = b"POST /read HTTP/1.1\r\nHost: t\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def some_bytes(length):
    return random.Random(length).getrandbits(8 * length + 1).to_bytes(length + 1, "big")[1:]


def in_chunks(body, size):
    return wire.chunked(*(body[at:at + size] for at in range(0, len(body), size)))


def seen_in(response):
    assert response.status == 200, response
    return json.loads(response.text)


def is_body(seen, body):
    return (seen["length"], seen["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def temporary_files(pid):
    """Files without a name that a process has open."""
    return [name for name in harness.descriptors(pid) if name.startswith("/") and name.endswith("(deleted)")]


# --- who sends no body holds no thread ---

WAITING = {
    "at Expect": HEAD + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n",
    "before the body": HEAD + b"Content-Length: 100000\r\n\r\n",
    "in a small body": HEAD + b"Content-Length: 1000\r\n\r\nhello",
    "in a body of one read": HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 70000,
    "in a large body": HEAD + b"Content-Length: 10000000\r\n\r\n" + b"x" * 1000000,
    "before the chunks": HEAD + CHUNKED + b"\r\n",
    "in a chunk": HEAD + CHUNKED + b"\r\n1000\r\nhello",
    "in a large chunk": HEAD + CHUNKED + b"\r\n100000\r\n" + b"x" * 1000000,
    "before the last chunk": HEAD + CHUNKED + b"\r\n5\r\nhello\r\n",
    "in the trailers": HEAD + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nX: ",
}


@pytest.mark.parametrize("options", [("-w", 2), ("--threads", 2)], ids=["workers", "threads"])
@pytest.mark.parametrize("stage", list(WAITING))
def test_a_client_whose_body_does_not_come_holds_no_thread(server, stage, options):
    """Of ninety bytes each, two of these have stopped a server of two workers until their time was over."""
    running = server(APP, *options, *STRANGER)
    waiting = [running.connect() for _ in range(8)]
    try:
        for connection in waiting:
            connection.send(WAITING[stage])
        for _ in range(10):
            assert running.get("/unread", timeout=5).status == 200
        if stage == "at Expect":
            assert all(connection.read_head().status == 100 for connection in waiting)
        assert not any(connection.readable(0) for connection in waiting)
    finally:
        for connection in waiting:
            connection.close()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_slow_client_is_no_slow_application(server, chunked):
    """An upload takes longer than an application may."""
    running = server(APP, "-w", 2, "--timeout", 1, *STRANGER)
    body = some_bytes(600000)
    pieces = [body[at:at + 30000] for at in range(0, len(body), 30000)]
    with running.connect() as connection:
        connection.send(HEAD + (CHUNKED if chunked else b"Content-Length: %d\r\n" % len(body)) + b"\r\n")
        for piece in pieces:
            connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            # The time that the client takes is what the test is about.
            time.sleep(0.12)
        if chunked:
            connection.send(b"0\r\n\r\n")
        assert is_body(seen_in(connection.read_response()), body)
    assert "TIMEOUT" not in running.log()


# --- the same body, however it comes ---

LENGTHS = [0, 1, 1000, 65535, 65536, 65537, 131072, 131073, 400000, 3000000]


@pytest.mark.parametrize("mode", list(MODES))
def test_bodies_of_any_length_in_any_framing(server, mode):
    """Each is followed by another request on the same connection, sent right behind it."""
    running = server(APP, *MODES[mode])
    for length in LENGTHS:
        body = some_bytes(length)
        for path in (b"/read", b"/small", b"/lines"):
            for name, framed in (("length", b"Content-Length: %d\r\n\r\n" % length + body),
                                 ("chunked", CHUNKED + b"\r\n" + in_chunks(body, 9000))):
                with running.connect() as connection:
                    head = HEAD.replace(b"/read", path)
                    connection.send(head + framed + b"GET /next HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
                    seen = seen_in(connection.read_response())
                    assert is_body(seen, body), (length, path, name)
                    assert seen["terminated"]
                    if name == "length":
                        assert seen["CONTENT_LENGTH"] == str(length)
                    else:
                        expected = (None, "chunked") if mode == "off" else (str(length), None)
                        assert (seen["CONTENT_LENGTH"], seen["HTTP_TRANSFER_ENCODING"]) == expected
                    assert seen_in(connection.read_response())["length"] == 0
                    connection.expect_eof()


def test_a_streamed_chunked_body_says_so(server):
    running = server(APP, "--request-buffering", "off")
    with running.connect() as connection:
        for length in (5, 70000, 1000000):
            connection.send(HEAD + CHUNKED + b"\r\n" + in_chunks(b"x" * length, 9000))
            seen = seen_in(connection.read_response())
            assert (seen["length"], seen["CONTENT_LENGTH"], seen["HTTP_TRANSFER_ENCODING"]) == (length, None, "chunked")


@pytest.mark.parametrize("mode", list(MODES))
def test_a_body_that_comes_in_pieces(server, mode):
    running = server(APP, *MODES[mode])
    body = some_bytes(300000)
    sent = HEAD + CHUNKED + b"\r\n" + in_chunks(body, 7000) + b"GET /next HTTP/1.1\r\nHost: t\r\n\r\n"
    shuffled = random.Random(mode)
    with running.connect() as connection:
        at = 0
        while at < len(sent):
            size = shuffled.choice([1, 2, 3, 100, 5000, 50000])
            connection.send(sent[at:at + size])
            at += size
        assert is_body(seen_in(connection.read_response()), body)
        assert seen_in(connection.read_response())["length"] == 0


# --- Expect ---

EXPECT = HEAD + b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("length", [5, 500000])
def test_continue_comes_once(server, mode, length):
    running = server(APP, *MODES[mode])
    body = some_bytes(length)
    for framing, sent in ((b"Content-Length: %d\r\n" % length, body), (CHUNKED, in_chunks(body, 9000))):
        with running.connect() as connection:
            connection.send(EXPECT + framing + b"\r\n")
            assert connection.read_head().status == 100
            connection.send(sent)
            response = connection.read_response()
            assert is_body(seen_in(response), body) and not response.interim


@pytest.mark.parametrize("mode", list(MODES))
def test_no_continue_once_the_body_has_begun_to_come(server, mode):
    running = server(APP, *MODES[mode])
    with running.connect() as connection:
        connection.send(EXPECT + b"Content-Length: 10\r\n\r\nhello")
        if mode == "off":
            # The application has been called by now, and waits.
            assert not connection.readable(0.2)
        connection.send(b"hello")
        response = connection.read_response()
        assert seen_in(response)["length"] == 10 and not response.interim


@pytest.mark.parametrize("mode", list(MODES))
def test_no_continue_for_what_is_too_large(server, mode):
    running = server(APP, "--limit-request-body", 100, *MODES[mode])
    with running.connect() as connection:
        connection.send(EXPECT + b"Content-Length: 101\r\n\r\n")
        response = connection.read_response()
        assert response.status == 413 and not response.interim


# --- limits ---

@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("limit", [10, 70000, 300000])
def test_limit_request_body(server, mode, limit):
    running = server(APP, "--limit-request-body", limit, *MODES[mode])
    for length, status in ((limit, 200), (limit + 1, 413), (limit + 500000, 413)):
        body = b"x" * length
        for framed in (b"Content-Length: %d\r\n\r\n" % length + body, CHUNKED + b"\r\n" + in_chunks(body, 9000)):
            with running.connect() as connection:
                connection.send(HEAD + framed)
                assert connection.read_response().status == status, (length, framed[:30])
    assert "Traceback" not in running.log()


ENDLESS = """
    def app(environ, start_response):
        start = open("read", "w")
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            start.write(type(error).__name__)
            raise
        finally:
            start.close()
"""


@pytest.mark.parametrize("length", [9223372036854775807, 500 * 10 ** 9])
@pytest.mark.parametrize("mode", list(MODES))
def test_an_announced_length_reserves_nothing(server, mode, length):
    running = server(ENDLESS, *MODES[mode])
    worker, = running.wait_workers(1)
    with running.connect() as connection:
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % length + b"x" * 200000)
        if mode in ("off", "auto behind a proxy"):
            wait_until(lambda: running.exists("read"))
        assert harness.status_field(worker, "VmSize") < 4000000
        connection.half_close()
        connection.expect_closed()
    if mode in ("off", "auto behind a proxy"):
        assert wait_until(lambda: running.read("read")) == "ConnectionResetError"
    assert "MemoryError" not in running.log() and "OverflowError" not in running.log()


# --- the file of a large body ---

def test_a_large_body_waits_in_a_file_and_leaves_nothing(server, tmp_path):
    folder = tmp_path / "bodies"
    folder.mkdir()
    running = server(APP, "--worker-tmp-dir", folder, *STRANGER)
    worker, = running.wait_workers(1)
    body = some_bytes(2000000)
    with running.connect() as connection:
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        kept = wait_until(lambda: temporary_files(worker), 20, "no file")
        assert len(kept) == 1 and kept[0].startswith(str(folder))
        assert os.listdir(str(folder)) == []
        connection.send(body[-1:])
        assert is_body(seen_in(connection.read_response()), body)
        wait_until(lambda: not temporary_files(worker), 20, "the file stays open")
    # A client that leaves takes its file with it.
    with running.connect() as connection:
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        wait_until(lambda: temporary_files(worker), 20, "no file")
    wait_until(lambda: not temporary_files(worker), 20, "the file stays open")


def test_without_a_folder_bodies_are_streamed_and_one_warning_is_given(server, tmp_path):
    folder = tmp_path / "bodies"
    folder.mkdir()
    running = server(APP, "--worker-tmp-dir", folder, *STRANGER)
    folder.rmdir()
    body = some_bytes(1000000)
    for framed in (b"Content-Length: %d\r\n\r\n" % len(body) + body, CHUNKED + b"\r\n" + in_chunks(body, 9000)):
        for _ in range(3):
            with running.connect() as connection:
                connection.send(HEAD + framed)
                assert is_body(seen_in(connection.read_response()), body)
    warnings = [line for line in running.lines("WARNING") if "request body" in line[2]]
    assert len(warnings) == 1 and str(folder) in warnings[0][2]


def test_a_full_disk_loses_no_byte(server):
    """RLIMIT_FSIZE stands for it: a file can have so many bytes and no more."""
    running = server(APP, *STRANGER, config="""
        import resource
        def post_worker_init(worker):
            resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))
    """)
    body = some_bytes(2000000)
    with running.connect() as connection:
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert is_body(seen_in(connection.read_response()), body)
    running.wait_log("Cannot keep a large request body")


# --- while every thread is busy ---

HOLD = """
    import os, time

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/hold":
            with open("inside", "a") as f:
                f.write("x")
            while not os.path.exists("go"):
                time.sleep(0.01)
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % len(body)]
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_bodies_are_read_while_all_threads_are_busy(server, threads):
    """More than the sockets hold, so that it would stay with the client, and be late in the end."""
    running = server(HOLD, "--threads", threads, "--body-timeout", 1, *STRANGER)
    holders = [running.connect() for _ in range(threads)]
    waiting = [running.connect() for _ in range(3)]
    try:
        for connection in waiting:
            connection.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 8000000\r\n\r\n")
            assert connection.read_head().status == 100
        for holder in holders:
            holder.send_request("GET", "/hold")
        wait_until(lambda: len(running.read("inside")) == threads)
        for connection in waiting:
            connection.send(b"x" * 8000000)
        # Complete, they wait for a thread for as long as that takes.
        assert not any(connection.readable(0.7) for connection in waiting)
        running.touch("go")
        for connection in holders:
            assert connection.read_response().status == 200
        for connection in waiting:
            response = connection.read_response()
            assert (response.status, response.text) == (200, "8000000")
    finally:
        running.touch("go")
        for connection in holders + waiting:
            connection.close()


def test_what_waits_for_a_thread_when_a_stop_is_over_is_told_so(server):
    """It was read, and nothing of it was run: its client may ask again elsewhere."""
    running = server(HOLD, "--graceful-timeout", 3, *STRANGER)
    running.expect_errors("WORKER TIMEOUT", "has been running", "Stacks of all threads", r"^  ", "Interrupted", "Error handling")
    with running.connect() as holder, running.connect() as waiting:
        waiting.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n")
        assert waiting.read_head().status == 100
        holder.send_request("GET", "/hold")
        wait_until(lambda: running.exists("inside"))
        waiting.send(b"x" * 1000000)
        running.signal(SIGTERM)
        assert waiting.read_response().status == 503
        assert running.wait_exit(20) == 0
    assert "found no thread before the worker's end" in running.log()


# --- bodies that nobody reads ---

FORBIDDEN = """
    def app(environ, start_response):
        start_response("403 Forbidden", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"no"]
"""


@pytest.fixture
def front(tmp_path):
    """`front(upstream)` starts Nginx before a server."""
    started = []

    def start(upstream, location=""):
        nginx.require()
        directory = tmp_path / "nginx"
        directory.mkdir()
        started.append(nginx.Nginx(directory, nginx.own(upstream, location)))
        # It tells its log of an upstream that answers early, or closes; what its client gets is looked at here.
        started[-1].allowed.append(r"writev?\(\) failed|prematurely|reset by peer")
        return started[-1]
    yield start
    for running in started:
        running.finish()


@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize("options", [(), ("--request-buffering", "off"), ("--limit-request-body", 100000)],
                         ids=["auto", "off", "413"])
def test_nginx_gets_the_answer_to_a_body_that_nobody_reads(server, front, tmp_path, where, options):
    """A close, or the end of reading after a mebibyte, would reset the connection, and Nginx answer 502."""
    running = server(FORBIDDEN, "-w", 2, *options, bind="unix:%s" % (tmp_path / "socket") if where == "unix" else "127.0.0.1:0")
    upstream = "unix:%s" % running.address if where == "unix" else "127.0.0.1:%d" % running.port
    proxy = front(upstream)
    wanted = 413 if options and options[0] == "--limit-request-body" else 403
    statuses = []
    for length in (3000000, 8000000, 20000000):
        body = b"x" * length
        for _ in range(8):
            with wire.Connection(proxy.address) as connection:
                connection.send(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % length + body)
                statuses.append(connection.read_response().status)
    assert statuses == [wanted] * len(statuses)


def test_a_client_that_sends_on_keeps_no_worker(server):
    """It has had its answer; the end of the server waits for it for seconds, not for half a minute."""
    running = server(FORBIDDEN, "--request-buffering", "off")
    with running.connect() as connection:
        connection.send(HEAD + b"Content-Length: 100000000\r\n\r\n" + b"x" * 70000)
        assert connection.read_response().status == 403

        def drip(_, over):
            try:
                while not over.wait(0.05):
                    connection.send(b"x")
            except OSError:
                pass

        with harness.Threads(1, drip):
            running.process.terminate()
            running.process.wait(15)


# --- frameworks ---

FORM = urllib.parse.urlencode({"name": "Ada", "text": "x" * 3000}).encode()
FRAMEWORKS = {
    "django": """
        from django.conf import settings
        settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, DEBUG=True)
        from django.core.wsgi import get_wsgi_application
        from django.http import HttpResponse
        from django.urls import path
        urlpatterns = [path("form", lambda request: HttpResponse("%s %d" % (request.POST.get("name"), len(request.POST.get("text", "")))))]
        app = get_wsgi_application()
    """,
    "flask": """
        from flask import Flask, request
        app = Flask(__name__)
        @app.post("/form")
        def form():
            return "%s %d" % (request.form.get("name"), len(request.form.get("text", "")))
    """,
    "bottle": """
        import bottle
        app = bottle.Bottle()
        @app.post("/form")
        def form():
            return "%s %d" % (bottle.request.forms.get("name"), len(bottle.request.forms.get("text", "")))
    """,
    "cherrypy": """
        import cherrypy
        class Root:
            @cherrypy.expose
            def form(self, name=None, text=""):
                return "%s %d" % (name, len(text))
        cherrypy.config.update({"environment": "embedded"})
        app = cherrypy.Application(Root(), "/", {"/": {}})
    """,
}


@pytest.mark.parametrize("framework", list(FRAMEWORKS))
def test_a_form_in_chunks(server, framework):
    if os.environ.get("CI") == "true":
        __import__(framework)
    else:
        pytest.importorskip(framework)
    running = server(FRAMEWORKS[framework], *STRANGER)
    kind = b"Host: t\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    for framed in (b"Content-Length: %d\r\n\r\n" % len(FORM) + FORM, CHUNKED + b"\r\n" + in_chunks(FORM, 700)):
        # In one piece, and in several.
        for cut in (len(framed), 200, 1000):
            with running.connect() as connection:
                connection.send(b"POST /form HTTP/1.1\r\n" + kind + framed[:cut])
                connection.send(framed[cut:])
                response = connection.read_response()
                assert (response.status, response.text) == (200, "Ada 3000"), (framework, framed[:30], response.body)
