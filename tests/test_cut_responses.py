"""A response that breaks off looks so, and its client gets every byte that was sent of it (docs/crash-contract.md).

Under chunked coding and a Content-Length the stream ends in order, short of what the framing promised. A response that ends
with its connection would look whole then: there the connection is reset, whatever ended the worker.
"""
import hashlib
import os
import ssl
import subprocess
from signal import SIGKILL, SIGQUIT, SIGSEGV, SIGTERM

import pytest

import nginx
import wire
from crowd import wait_ready
from harness import alive, wait_until

APP = """
    import hashlib, os, time
    from urllib.parse import parse_qsl

    def note(name):
        open(name + ".new", "w").close()
        os.rename(name + ".new", name)

    def wait(name):
        while not os.path.exists(name):
            # It outlives a time-out, but not its worker's being told to stop at once (rgunicorn.Interrupted with the code 0).
            try:
                time.sleep(0.01)
            except BaseException as e:
                if getattr(e, "code", 1) == 0:
                    raise
                note("interrupted")

    class Blocks:
        def __init__(self, how):
            self.how = how

        def __iter__(self):
            for number in range(int(self.how["count"])):
                yield hashlib.sha256(b"%d" % number).digest() * 32
            if self.how.get("more"):
                note("inside")
                wait("go")
                raise RuntimeError("broken off")

        def close(self):
            note("closed")
            if self.how.get("more") != "yes":
                wait("go")

    def app(environ, start_response):
        how = dict(parse_qsl(environ["QUERY_STRING"]))
        headers = [("Content-Type", "application/octet-stream"), ("X-Pid", str(os.getpid()))]
        if "length" in how:
            headers.append(("Content-Length", how["length"]))
        if environ["PATH_INFO"] == "/list":
            start_response("200 OK", headers)
            return [b"x" * 50000000]
        if environ["PATH_INFO"] == "/file":
            file = open("large", "w+b")
            file.truncate(50000000)
            start_response("200 OK", headers)
            return environ["wsgi.file_wrapper"](file) if "length" in how else iter(lambda: file.read(100000), b"")
        start_response("200 OK", headers)
        return Blocks(how)
"""

# What the kernel takes of a response whose client reads nothing.
COUNT = 30
BODY = b"".join(hashlib.sha256(b"%d" % number).digest() * 32 for number in range(COUNT))
FRAMINGS = pytest.mark.parametrize("framing", ["chunked", "length", "close"])
FRAMED = pytest.mark.parametrize("framing", ["chunked", "length"])
THREADS = pytest.mark.parametrize("threads", [1, 3], ids=["plain", "threads"])
WORDS = (r"was killed by SIG", r"It was running", r"WORKER TIMEOUT", r"has been running", r"Stacks of all threads",
         r"Error handling request", r"RuntimeError|Traceback|^  ", r"Killing|was killed", r"Interrupted")
# By what a response that has begun ends.
EVENTS = {
    "exception": (), "crash": (), "kill": (), "quit": (), "timeout": ("--timeout", "1"),
    "graceful timeout": ("--graceful-timeout", "1"),
}


def start(server, *options, **settings):
    running = server(APP, *options, **settings)
    running.expect_errors(*WORDS)
    wait_ready(running, 1)
    return running


def ask(connection, framing, path="/blocks", more="yes"):
    target = "%s?count=%d&more=%s" % (path, COUNT, more)
    if framing == "length":
        target += "&length=%d" % (50000000 if path != "/blocks" else len(BODY) + 1)
    connection.send_request("GET", target, version="HTTP/1.0" if framing == "close" else "HTTP/1.1")


def break_off(running, event):
    """Ends the response that has begun; returns when its worker has gone, if that is what ends it."""
    [pid] = running.workers()
    if event == "exception":
        return running.touch("go")
    if event == "graceful timeout":
        running.signal(SIGTERM)
    elif event != "timeout":
        os.kill(pid, {"crash": SIGSEGV, "kill": SIGKILL, "quit": SIGQUIT}[event])
    wait_until(lambda: not alive(pid), 20, running.log)


def read_to_end(connection, response):
    """What there is of the body, and how the stream ends: "whole", "ended", "reset"."""
    received = []
    try:
        for piece in connection.body_pieces(response):
            received.append(piece)
    except wire.ProtocolError as error:
        how = "reset" if "reset" in str(error) else "ended"
        assert how == "reset" or connection.eof
        return b"".join(received), how
    return b"".join(received), "whole"


def slow(running):
    return wire.Connection(running.address, receive_buffer=4096)


@pytest.mark.parametrize("event", EVENTS)
@THREADS
@FRAMINGS
def test_the_client_gets_what_was_sent_and_sees_the_end_missing(server, framing, threads, event):
    running = start(server, "--threads", threads, *EVENTS[event])
    with slow(running) as client:
        ask(client, framing)
        wait_until(lambda: running.exists("inside"), 20, running.log)
        if framing == "close":
            # It comes with a reset in place of what the kernel still has.
            assert client.read_head().framing == framing
            break_off(running, event)
            with pytest.raises(wire.ProtocolError, match="reset"):
                client.expect_eof()
            return
        break_off(running, event)
        response = client.read_head()
        assert response.framing == framing
        assert read_to_end(client, response) == (BODY, "ended")


@pytest.mark.parametrize("event", ["exception", "crash"])
@FRAMED
def test_what_the_client_has_sent_behind_takes_nothing_back(server, framing, event):
    """Unread, it would make the kernel reset the connection."""
    running = start(server)
    with slow(running) as client:
        ask(client, framing)
        wait_until(lambda: running.exists("inside"), 20, running.log)
        client.send(b"x" * 100000)
        break_off(running, event)
        response = client.read_head()
        assert read_to_end(client, response) == (BODY, "ended")


@pytest.mark.parametrize("event", ["crash", "kill", "timeout", "graceful timeout"])
def test_all_of_a_response_that_ends_with_its_connection(server, event):
    """The application still closes it when its worker ends."""
    running = start(server, *EVENTS[event])
    with slow(running) as client:
        ask(client, "close", more="")
        wait_until(lambda: running.exists("closed"), 20, running.log)
        break_off(running, event)
        response = client.read_head()
        assert response.framing == "close" and read_to_end(client, response) == (BODY, "whole")


@pytest.mark.parametrize("path", ["/list", "/file"])
@FRAMINGS
def test_a_client_that_takes_nothing_for_too_long(server, path, framing):
    if (path, framing) in (("/list", "chunked"), ("/list", "close")):
        pytest.skip("the length of a list is known")
    running = start(server, "--write-timeout", "1", "--log-level", "debug")
    with slow(running) as client:
        ask(client, framing, path)
        response = client.read_head()
        assert response.framing == framing
        running.wait_log(r"was not taken in time \(--write-timeout\)")
        received, how = read_to_end(client, response)
        assert how == ("reset" if framing == "close" else "ended") and len(received) < 50000000


@pytest.mark.parametrize("event", ["exception", "crash", "kill", "timeout"])
@FRAMED
def test_of_a_unix_socket_too(server, tmp_path, framing, event):
    running = start(server, *EVENTS[event], bind="unix:%s/s" % tmp_path)
    with slow(running) as client:
        ask(client, framing)
        wait_until(lambda: running.exists("inside"), 20, running.log)
        break_off(running, event)
        response = client.read_head()
        assert read_to_end(client, response) == (BODY, "ended")


# --- TLS ---

@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    name = str(folder / "site.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=t", "-keyout", name, "-out", str(folder / "crt")], check=True, capture_output=True)
    with open(name, "a") as f:
        f.write((folder / "crt").read_text())
    return name


@pytest.mark.parametrize("event", EVENTS)
@FRAMINGS
def test_in_tls_no_end_in_order_is_told(server, certificate, framing, event):
    """A close_notify would say that nothing is missing (RFC 8446 §6.1)."""
    running = start(server, "--certfile", certificate, *EVENTS[event])
    context = wire.strict(ssl.create_default_context())
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running.connect() as client:
        client.sock = context.wrap_socket(client.sock, suppress_ragged_eofs=False)
        ask(client, framing)
        response = client.read_head()
        received = b""
        pieces = client.body_pieces(response)
        while len(received) < len(BODY):
            received += next(pieces)
        assert received == BODY
        wait_until(lambda: running.exists("inside"), 20, running.log)
        break_off(running, event)
        with pytest.raises((ssl.SSLError, wire.ProtocolError), match="EOF|reset"):
            client.read_some()


# --- behind Nginx ---

@pytest.mark.parametrize("event", ["exception", "crash", "kill", "timeout"])
@FRAMINGS
def test_behind_nginx(server, in_front, framing, event):
    """Its client gets what was sent, and neither a last chunk nor all of the length."""
    running = start(server, *EVENTS[event])
    version = "1.0" if framing == "close" else "1.1"
    front = in_front(nginx.own("127.0.0.1:%d" % running.port, "proxy_http_version %s; proxy_buffering off;" % version))
    front.allowed += ["upstream prematurely closed", "Connection reset by peer"]
    with wire.Connection(front.address) as client:
        ask(client, framing if framing == "length" else "chunked")
        response = client.read_head()
        pieces = client.body_pieces(response)
        received = b""
        while len(received) < len(BODY):
            received += next(pieces)
        wait_until(lambda: running.exists("inside"), 20, running.log)
        break_off(running, event)
        with pytest.raises(wire.ProtocolError, match="ended|reset"):
            received += b"".join(pieces)
        assert received == BODY


def test_behind_nginx_what_comes_late_is_there_too(server, in_front):
    """Nginx reads what the kernel has, and the end of it, after the worker has gone."""
    running = start(server)
    front = in_front(nginx.own("127.0.0.1:%d" % running.port, "proxy_http_version 1.1; proxy_buffers 4 4k; proxy_buffer_size 4k;"))
    front.allowed.append("upstream prematurely closed")
    with wire.Connection(front.address) as client:
        ask(client, "length")
        wait_until(lambda: running.exists("inside"), 20, running.log)
        break_off(running, "crash")
        response = client.read_head()
        assert read_to_end(client, response) == (BODY, "ended")
