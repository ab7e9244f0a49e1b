"""`wsgi.early_hints`: 103 before the response, where the client can take it, and never anything else."""
import json

import pytest

import wire
from harness import wait_until

APP = r"""
import os, threading, time

STYLE = ("Link", "</style.css>; rel=preload; as=style")
kept = []

def app(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/")](environ, start_response, environ["wsgi.early_hints"])

def answer(start_response, text="hello"):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]

def hinted(environ, start_response, hint):
    assert hint([STYLE]) is None
    hint(((b"Link", b"<https://cdn.example>; rel=preconnect"), ("X-Latin", " \xe9\t"), (b"x-latin", b"\xe9")))
    return answer(start_response)

def filtered(environ, start_response, hint):
    hint([("Content-Length", "3"), ("Transfer-Encoding", "chunked"), ("Connection", "close"), STYLE])
    return answer(start_response)

def nothing(environ, start_response, hint):
    hint([])
    return answer(start_response)

def late(environ, start_response, hint):
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    write(b"he")
    hint([STYLE])
    def rest():
        yield b"l"
        hint([STYLE])
        yield b"lo"
        hint([STYLE])
    return rest()

def started(environ, start_response, hint):
    start_response("200 OK", [("Content-Type", "text/plain")])
    hint([STYLE])
    return [b"hello"]

def bad(environ, start_response, hint):
    import json
    what = json.loads(environ["QUERY_STRING"].replace("%22", '"').replace("%20", " "))
    made = [STYLE] + [tuple(pair) if isinstance(pair, list) else pair for pair in what] if isinstance(what, list) else what
    try:
        hint(made)
    except Exception as error:
        return answer(start_response, type(error).__name__ + ": " + str(error))
    return answer(start_response, "taken")

def keep(environ, start_response, hint):
    kept.append(hint)
    return answer(start_response)

def misuse(environ, start_response, hint):
    for old in kept:
        assert old is not hint
        old([STYLE])
    return answer(start_response)

def in_thread(environ, start_response, hint):
    thread = threading.Thread(target=hint, args=([STYLE],))
    thread.start()
    thread.join()
    return answer(start_response)

def read(environ, start_response, hint):
    hint([STYLE])
    return answer(start_response, environ["wsgi.input"].read().decode())

def many(environ, start_response, hint):
    for number in range(2000):
        hint([("Link", "<%d>" % number + "x" * 4000)])
    return answer(start_response)

def stuck(environ, start_response, hint):
    hint([STYLE])
    time.sleep(60)

def crashed(environ, start_response, hint):
    hint([STYLE])
    os.abort()
"""

STYLE = "</style.css>; rel=preload; as=style"


@pytest.fixture(scope="module")
def hints(module_server):
    return module_server(APP, "--threads", "2", "--access-logfile", "access", "--access-logformat", "%(U)s %(s)s %(B)s")


def links(response):
    assert all(i.status == 103 and i.reason == "Early Hints" for i in response.interim)
    return [i.header("Link") for i in response.interim]


def test_hints_come_before_the_response(hints):
    with hints.connect() as connection:
        for method in ("GET", "HEAD", "GET"):
            response = connection.exchange(method, "/hinted")
            assert links(response) == [STYLE, "<https://cdn.example>; rel=preconnect"]
            assert response.interim[1].fields[1:] == [(b"X-Latin", b"\xe9"), (b"x-latin", b"\xe9")]
            assert (response.status, response.body) == (200, b"" if method == "HEAD" else b"hello")
            assert response.header("Link") is None and response.all("Server") and not response.interim[0].all("Server")
    wait_until(lambda: hints.read("access").count("/hinted 200 5\n") >= 2)


def test_what_frames_a_response_is_no_hint(hints):
    with hints.connect() as connection:
        response = connection.exchange("GET", "/filtered")
        assert [i.fields for i in response.interim] == [[(b"Link", STYLE.encode())]]
        response = connection.exchange("GET", "/nothing")
        assert [i.fields for i in response.interim] == [[]] and response.body == b"hello"


def test_none_for_http_1_0(hints):
    with hints.connect() as connection:
        connection.send(b"GET /hinted HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = connection.read_response()
        assert not response.interim and response.body == b"hello"
        assert links(connection.exchange("GET", "/started")) == [STYLE]


def test_none_once_the_response_has_begun(hints):
    with hints.connect() as connection:
        response = connection.exchange("GET", "/late")
        assert not response.interim and response.body == b"hello"
        assert links(connection.exchange("GET", "/started")) == [STYLE]


@pytest.mark.parametrize("what, error", [
    ([["Link", "a\r\nX: b"]], "ValueError: wsgi.early_hints: Invalid response header value: Link"),
    ([["Link", "a\n"]], "ValueError: wsgi.early_hints: Invalid response header value: Link"),
    ([["Li nk", "a"]], "ValueError: wsgi.early_hints: Invalid response header name: Li nk"),
    ([["Link\r\n", "a"]], "ValueError: wsgi.early_hints: Invalid response header name: Link\\r\\n"),
    ([["", "a"]], "ValueError: wsgi.early_hints: Invalid response header name: "),
    ([["Link", "\u20ac"]], "ValueError: "), ([["Link", 1]], "TypeError: "), ([["Link"]], "TypeError: "), ([7], "TypeError: "),
    (7, "TypeError: "),
])
def test_nothing_is_sent_of_a_bad_hint(hints, what, error):
    with hints.connect() as connection:
        target = "/bad?" + json.dumps(what).replace('"', "%22").replace(" ", "%20")
        response = connection.exchange("GET", target)
        assert not response.interim and response.text.startswith(error), response.text


def test_a_hint_belongs_to_its_request(hints):
    """An application that keeps the callable cannot put bytes into somebody else's answer."""
    with hints.connect() as connection:
        for _ in range(4):
            assert connection.exchange("GET", "/keep").body == b"hello"
        for _ in range(4):
            response = connection.exchange("GET", "/misuse")
            assert not response.interim and response.status == 200


def test_another_thread_may_hint(hints):
    with hints.connect() as connection:
        assert links(connection.exchange("GET", "/in_thread")) == [STYLE]


@pytest.mark.parametrize("headers, body", [
    ([("Content-Length", "5")], b"hello"), ([("Transfer-Encoding", "chunked")], wire.chunked(b"hello"))])
def test_100_comes_before_103(hints, headers, body):
    with hints.connect() as connection:
        connection.send_request("POST", "/read", headers + [("Expect", "100-continue")])
        assert connection.read_head().status == 100
        connection.send(body)
        response = connection.read_response()
        assert links(response) == [STYLE] and response.body == b"hello"


def test_hints_that_are_not_read_keep_nobody_waiting(hints):
    connection = wire.Connection(hints.address, receive_buffer=4096)
    with connection:
        connection.send_request("GET", "/many")
        assert connection.read_head().status == 103
        for _ in range(20):
            assert hints.get("/hinted").status == 200
        response = connection.read_response()
        assert len(response.interim) == 1999 and response.body == b"hello"
        assert links(response)[-1].startswith("<1999>")


def test_a_client_that_leaves_is_no_error_of_the_application(hints):
    before = hints.read("access").count("/many ")
    with wire.Connection(hints.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/many")
        assert connection.read_head().status == 103
    assert hints.get("/hinted").status == 200
    wait_until(lambda: hints.read("access").count("/many ") > before)


def test_a_request_that_hinted_can_run_too_long(server):
    running = server(APP, "--timeout", "1")
    running.expect_errors()
    with running.connect() as connection:
        response = connection.exchange("GET", "/stuck")
        assert links(response) == [STYLE] and response.status == 504
    running.kill()


def test_a_request_that_hinted_can_crash(server):
    running = server(APP)
    running.expect_errors()
    with running.connect() as connection:
        response = connection.exchange("GET", "/crashed")
        assert links(response) == [STYLE] and response.status == 500


def test_warm_up_may_hint(server):
    running = server(APP, config="warm_up = ['/hinted']\n")
    with running.connect() as connection:
        assert links(connection.exchange("GET", "/started")) == [STYLE]
