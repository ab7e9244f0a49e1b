"""`gunicorn.socket`: an application speaks on its connection itself, as WebSocket libraries do under gunicorn."""
import json
import os
import socket
import threading
from signal import SIGHUP, SIGTERM

import pytest

import wire
from harness import Threads, sockets, wait_until

simple_websocket = pytest.importorskip("simple_websocket")
websocket = pytest.importorskip("websocket")
pytest.importorskip("flask_sock")

SOCK = """
import os, threading
from flask import Flask, request
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)

@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())

@sock.route("/once")
def once(ws):
    ws.send("pid %d" % os.getpid())

@sock.route("/chosen")
def chosen(ws):
    ws.close(4001, "as told")

@sock.route("/raises")
def raises(ws):
    raise RuntimeError("on purpose")

@sock.route("/seen")
def seen(ws):
    ws.send(request.headers["X-Name"] + " " + request.args["x"])

@app.route("/")
def index():
    return "hello"
"""

SIMPLE = """
import os, time
from simple_websocket import Server, ConnectionClosed

def tell(word):
    descriptor = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, word.encode() + b"\\n")
    os.close(descriptor)

def app(environ, start_response):
    if "HTTP_UPGRADE" not in environ:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]
    interval = 0.1 if environ["PATH_INFO"] == "/pinged" else None
    ws = Server.accept(environ, ping_interval=interval)
    tell("open")
    try:
        while True:
            ws.send(ws.receive())
    except ConnectionClosed as closed:
        tell("closed:%s" % int(closed.reason))
    return []
"""

RAW = r"""
import json, os, socket, threading, time

def tell(word):
    descriptor = os.open("events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, word.encode() + b"\n")
    os.close(descriptor)

kept = []

def app(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/") or "index"](environ, start_response, environ["gunicorn.socket"])

def answer(start_response, text):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]

def index(environ, start_response, sock):
    return answer(start_response, "hello")

def told(environ, start_response, sock):
    # What is no use of it.
    found = [hasattr(sock, "__html__"), hasattr(sock, "_private"), hasattr(sock, "getpeercert"), bool(repr(sock))]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found += [sock.getsockname()[1], sock.getpeername()[1], sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)]
    return answer(start_response, json.dumps(found))

def raw(environ, start_response, sock):
    start_response("200 OK", [("Content-Type", "text/plain")])
    sock.sendall(b"<begin>")
    while True:
        data = sock.recv(1000)
        if not data:
            tell("end")
            break
        sock.sendall(data.upper())
        if data.endswith(b"bye"):
            break
    return [b"not sent"]

def unread(environ, start_response, sock):
    environ["wsgi.input"].read(2)
    into = bytearray(3)
    peeked = sock.recv(2, socket.MSG_PEEK)
    first = sock.recv_into(into)
    made = sock.makefile("rb")
    line = made.readline()
    sock.sendall(b"%r %r %d %r %r" % (peeked, bytes(into), first, line, environ["wsgi.input"].read()))
    return [b"not sent"]

def generated(environ, start_response, sock):
    start_response("200 OK", [("Content-Type", "text/plain")])
    sock.sendall(b"first ")
    yield b"not sent"
    sock.sendall(b"second")
    yield b"not sent either"

def written(environ, start_response, sock):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    sock.sendall(b"spoken")
    write(b"not sent")
    return []

def failing(environ, start_response, sock):
    sock.sendall(b"spoken")
    raise RuntimeError("after it was taken over")

def late(environ, start_response, sock):
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    write(b"he")
    try:
        sock.send(b"inside")
    except OSError as error:
        tell("refused")
    return [b"llo"]

def keep(environ, start_response, sock):
    kept.append(sock)
    return answer(start_response, "kept")

def misuse(environ, start_response, sock):
    found = []
    for old in kept:
        try:
            old.send(b"into another's")
        except OSError as error:
            found.append(str(error))
    return answer(start_response, "; ".join(found))

def in_thread(environ, start_response, sock):
    def work():
        sock.sendall(b"spoken")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return []

def quiet(environ, start_response, sock):
    sock.sendall(b"<begin>")
    tell("quiet")
    sock.recv(1)
    tell("end")
    return []

def stubborn(environ, start_response, sock):
    sock.sendall(b"<begin>")
    tell("stubborn")
    time.sleep(60)

def scattered(environ, start_response, sock):
    kept.append(sock.dup())
    sock.sendall(b"spoken")
    return []
"""


def client(running, path, **options):
    host, port = running.address
    return websocket.create_connection("ws://%s:%d%s" % (host, port, path), timeout=20, **options)


@pytest.fixture(scope="module")
def flask(module_server):
    running = module_server(SOCK, "--threads", "8", "--access-logfile", "access", "--access-logformat", "%(U)s %(s)s")
    running.expect_errors(r"Error handling request GET /raises")
    return running


@pytest.fixture(scope="module")
def raw(module_server):
    running = module_server(RAW, "--threads", "3", "--access-logfile", "access", "--access-logformat", "%(U)s %(s)s %(B)s")
    running.expect_errors(r"Error handling request GET /failing")
    return running


# --- flask-sock and simple-websocket, as released ---

def test_flask_sock_echoes(flask):
    ws = client(flask, "/echo")
    for message in ("hello", "\u20ac" * 70, "x" * 100000, b"\0\xff" * 1000000, b"", "x" * 65535, "x" * 65536):
        ws.send(message) if isinstance(message, str) else ws.send_binary(message)
        assert ws.recv() == message
    ws.ping("are you there")
    assert ws.recv_data_frame(control_frame=True)[1].data == b"are you there"
    ws.close(1000)
    assert flask.get("/").body == b"hello"


def test_flask_sock_ends_in_order(flask):
    for path, code, reason in (("/once", 1000, b""), ("/chosen", 4001, b"as told")):
        ws = client(flask, path)
        frames = []
        while not frames or frames[-1].opcode != websocket.ABNF.OPCODE_CLOSE:
            frames.append(ws.recv_frame())
        data = frames[-1].data
        assert (int.from_bytes(data[:2], "big"), data[2:]) == (code, reason)
        ws.send_close()
        assert ws.sock.recv(100) == b""
        ws.shutdown()
    wait_until(lambda: "/once 101\n" in flask.read("access") and "/chosen 101\n" in flask.read("access"))


def test_flask_sock_sees_the_request(flask):
    ws = client(flask, "/seen?x=1", header=["X-Name: value"])
    assert ws.recv() == "value 1"
    ws.close()


def test_a_route_that_raises_is_logged_and_ends_its_connection(flask):
    ws = client(flask, "/raises")
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        ws.recv()
    flask.wait_log("RuntimeError: on purpose")


def test_many_at_once_beside_requests(flask):
    def work(number, over):
        ws = client(flask, "/echo")
        for count in range(30):
            ws.send("%d:%d" % (number, count))
            assert ws.recv() == "%d:%d" % (number, count)
        ws.close()

    with Threads(6, work) as threads:
        for _ in range(30):
            assert flask.get("/").body == b"hello"
        for thread in threads.threads:
            thread.join(40)


def test_a_client_that_vanishes_leaves_nothing(server):
    running = server(SIMPLE, "--threads", "4")
    for _ in range(3):
        ws = client(running, "/")
        ws.send("x")
        assert ws.recv() == "x"
        ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ws.shutdown()
    wait_until(lambda: running.read("events").count("closed:") == 3)
    assert running.get("/").body == b"hello"


def test_pings_are_sent_and_a_silent_client_is_left(server):
    running = server(SIMPLE, "--threads", "2")
    ws = client(running, "/pinged")
    assert ws.recv_frame().opcode == websocket.ABNF.OPCODE_PING
    # It is not answered.
    while True:
        frame = ws.recv_frame()
        if frame.opcode == websocket.ABNF.OPCODE_CLOSE:
            break
    assert int.from_bytes(frame.data[:2], "big") == 1008
    ws.shutdown()
    wait_until(lambda: "closed:" in running.read("events"))


def test_it_is_not_under_timeout(server):
    """Neither the worker's own watch nor the arbiter's ends it: the times of both pass twice."""
    running = server(SIMPLE, "--threads", "2", "--timeout", "1")
    ws = client(running, "/")
    worker = running.workers()
    over = threading.Event()
    assert not over.wait(7)
    ws.send("still here")
    assert ws.recv() == "still here"
    ws.close()
    # The thread's next request has a time again.
    wait_until(lambda: "closed:" in running.read("events"))
    assert running.get("/").body == b"hello" and running.workers() == worker


@pytest.mark.parametrize("way", ["stop", "reload"])
def test_a_drain_closes_it_at_graceful_timeout(server, way):
    running = server(SIMPLE, "--threads", "4", "--graceful-timeout", "2")
    (worker,) = running.wait_workers(1)
    ws = client(running, "/")
    ws.send("x")
    assert ws.recv() == "x"
    running.signal(SIGHUP if way == "reload" else SIGTERM)
    running.wait_log(r"Worker reloading|Handling signal: (hup|term)")
    ws.send("still served")
    assert ws.recv() == "still served"
    with pytest.raises(websocket.WebSocketException):
        ws.recv()
    ws.shutdown()
    wait_until(lambda: worker not in running.workers())
    # The application was told by the end of its stream, and has finished.
    assert "closed:" in running.read("events")
    running.wait_log(r"Closed the connection that GET / has taken over \(--graceful-timeout\)")
    if way == "stop":
        assert running.wait_exit() == 0
    else:
        assert running.get("/").body == b"hello"


def test_an_application_that_does_not_notice_keeps_no_worker(server):
    running = server(RAW, "--threads", "2", "--graceful-timeout", "1")
    running.expect_errors()
    connection = running.connect()
    connection.send_request("GET", "/stubborn")
    wait_until(lambda: "stubborn" in running.read("events"))
    assert running.stop() == 0
    connection.expect_closed()


def test_max_requests_lets_it_end(server):
    running = server(SIMPLE, "--threads", "2", "--max-requests", "1")
    (worker,) = running.wait_workers(1)
    ws = client(running, "/")
    running.wait_log("Autorestarting worker")
    wait_until(lambda: set(running.workers()) - {worker})
    ws.send("x")
    assert ws.recv() == "x"
    ws.close()
    wait_until(lambda: worker not in running.workers())


def test_a_crash_beside_it_ends_it(server):
    running = server(SIMPLE, "--threads", "2")
    running.expect_errors()
    ws = client(running, "/")
    os.kill(running.workers()[0], 11)
    with pytest.raises((websocket.WebSocketException, OSError)):
        ws.recv()
    ws.shutdown()
    wait_until(lambda: running.get("/").body == b"hello")


# --- the socket itself ---

def test_what_the_application_returns_is_not_sent(raw):
    for path, said in (("raw", b"<begin>HELLO BYE"), ("generated", b"first second"), ("written", b"spoken"),
                       ("in_thread", b"spoken"), ("failing", b"spoken"), ("scattered", b"spoken")):
        with raw.connect() as connection:
            connection.send(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
            if path == "raw":
                assert connection.sock.recv(7) == b"<begin>"
                connection.send(b"hello bye")
                said = b"HELLO BYE"
            assert connection.expect_closed() == said, path
    wait_until(lambda: "/failing 101 0\n" in raw.read("access"))


def test_what_was_read_already_comes_first(raw):
    with raw.connect() as connection:
        connection.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcdefghi\nrest")
        assert connection.expect_closed() == b"b'cd' b'cde' 3 b'fghi\\n' b''"


def test_questions_leave_the_connection_alone(raw):
    with raw.connect() as connection:
        for _ in range(3):
            found = json.loads(connection.exchange("GET", "/told").text)
            assert found == [False, False, False, True, raw.port, connection.local_port, int(socket.SOCK_STREAM)]


def test_a_response_that_has_begun_is_the_servers(raw):
    with raw.connect() as connection:
        assert connection.exchange("GET", "/late").body == b"hello"
        assert connection.exchange("GET", "/").body == b"hello"
    assert "refused" in raw.read("events")


def test_one_that_was_kept_speaks_into_no_other_request(raw):
    with raw.connect() as connection:
        for _ in range(3):
            assert connection.exchange("GET", "/keep").body == b"kept"
        response = connection.exchange("GET", "/misuse")
        assert response.text.count("gunicorn.socket is used outside of its request") == 3


def test_a_pipelined_request_is_the_applications(raw):
    with raw.connect() as connection:
        connection.send(b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\nbye")
        assert connection.expect_closed() == b"<begin>GET / HTTP/1.1\r\n\r\nBYE"


def test_descriptors_come_back(raw):
    (worker,) = raw.wait_workers(1)

    def spoken():
        with raw.connect() as connection:
            connection.send(b"GET /in_thread HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.expect_closed() == b"spoken"

    spoken()
    wait_until(lambda: raw.get("/").body == b"hello")
    before = sockets(worker)
    for _ in range(20):
        spoken()
    wait_until(lambda: sockets(worker) <= before)
