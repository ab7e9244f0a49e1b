"""HTTP/1.1 and 1.0 over a socket, row by row: bytes in, status out, what the application saw, what became of the connection.

RFC numbers without a name are RFC 9112.
"""
import json
import time

import pytest

import wire
from harness import wait_until

GET = b"GET / HTTP/1.1\r\nHost: test\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\n"
END = b"\r\n"


@pytest.fixture(scope="module")
def echo(module_server):
    running = module_server("apps.echo", "--keep-alive", "30", "--timeout", "60")
    running.worker_pids = running.wait_workers(1)
    # Rows that break the body make the application raise what it was given.
    running.expect_errors(r"Error handling request")
    return running


@pytest.fixture
def steady(echo):
    """The shared server, which the row must not cost a worker, nor a word of Rust's panics."""
    yield echo
    assert json.loads(echo.get("/after").text)["environ"]["PATH_INFO"] == "/after"
    assert echo.workers() == echo.worker_pids
    assert "panicked" not in echo.log()


def answer(running, data):
    """The response to `data`, from a connection that then goes on in step."""
    with running.connect() as connection:
        connection.send(data)
        response = connection.read_response(data.split(b" ")[0].decode("latin-1").strip())
        if response.closing:
            connection.expect_eof()
        else:
            assert connection.exchange("GET", "/next").status == 200
        return response


def seen(running, data):
    response = answer(running, data)
    assert response.status == 200, response
    return json.loads(response.text)


def environ(running, data):
    return seen(running, data)["environ"]


def refused(running, data, *statuses):
    """Refused with one of `statuses`, said in full, and nothing after it is taken for a request."""
    with running.connect() as connection:
        connection.send(data + b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n")
        response = connection.read_response()
        assert response.status in statuses, response
        assert response.closing and response.framing == "length", response
        connection.expect_eof()
        return response


def rows(*table):
    return pytest.mark.parametrize("name, data, wanted", table, ids=[row[0] for row in table])


# --- 2.2, 3: the request line ---

@rows(
    ("two empty lines first", b"\r\n\r\n" + GET + END, {400}),
    ("LF first", b"\n" + GET + END, {400}),
    ("CR first", b"\r" + GET + END, {400}),
    ("space first", b" " + GET + END, {400}),
    ("two spaces after the method", b"GET  / HTTP/1.1\r\n\r\n", {400}),
    ("two spaces before the version", b"GET /  HTTP/1.1\r\n\r\n", {400}),
    ("tab for space", b"GET\t/ HTTP/1.1\r\n\r\n", {400}),
    ("tab before the version", b"GET /\tHTTP/1.1\r\n\r\n", {400}),
    ("space at the end", b"GET / HTTP/1.1 \r\n\r\n", {400}),
    ("method only", b"GET\r\n\r\n", {400}),
    ("no version", b"GET /\r\n\r\n", {400}),
    ("four parts", b"GET / x HTTP/1.1\r\n\r\n", {400}),
    ("no target", b"GET HTTP/1.1\r\n\r\n", {400}),
    ("bare LF at the end", b"GET / HTTP/1.1\nHost: test\r\n\r\n", {400}),
    ("bare CR inside", b"GET /a\rb HTTP/1.1\r\n\r\n", {400}),
    ("bare CR at the end", b"GET / HTTP/1.1\rHost: test\r\n\r\n", {400}),
    ("CR CR LF", b"GET / HTTP/1.1\r\r\n\r\n", {400}),
    ("method with a parenthesis", b"G(T / HTTP/1.1\r\n\r\n", {400}),
    ("method with NUL", b"G\0T / HTTP/1.1\r\n\r\n", {400}),
    ("method with a comma", b"GET,POST / HTTP/1.1\r\n\r\n", {400}),
    ("method in UTF-8", b"G\xc3\x89T / HTTP/1.1\r\n\r\n", {400}),
    ("method of 100 bytes", b"M" * 100 + b" / HTTP/1.1\r\n\r\n", {400, 501}),
    ("NUL in the target", b"GET /\0 HTTP/1.1\r\n\r\n", {400}),
    ("control in the target", b"GET /\x01 HTTP/1.1\r\n\r\n", {400}),
    ("DEL in the target", b"GET /\x7f HTTP/1.1\r\n\r\n", {400}),
    ("raw UTF-8 in the target", b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", {400}),
    ("raw latin-1 in the target", b"GET /\xe9 HTTP/1.1\r\n\r\n", {400}),
    ("fragment", b"GET /a#b HTTP/1.1\r\n\r\n", {400}),
    ("relative target", b"GET foo HTTP/1.1\r\n\r\n", {400}),
    ("query as target", b"GET ?a=b HTTP/1.1\r\n\r\n", {400}),
    ("asterisk with GET", b"GET * HTTP/1.1\r\n\r\n", {400}),
    ("authority with GET", b"GET test:80 HTTP/1.1\r\n\r\n", {400}),
    ("userinfo", b"GET http://user@test/ HTTP/1.1\r\nHost: test\r\n\r\n", {400}),
    ("absolute without host", b"GET http:///path HTTP/1.1\r\nHost: test\r\n\r\n", {400}),
    ("HTTP/2.0", b"GET / HTTP/2.0\r\n\r\n", {505}),
    ("HTTP/0.9", b"GET / HTTP/0.9\r\n\r\n", {505}),
    ("HTTP/9.9", b"GET / HTTP/9.9\r\n\r\n", {505}),
    ("HTTP/1.10", b"GET / HTTP/1.10\r\n\r\n", {400, 505}),
    ("HTTP/01.1", b"GET / HTTP/01.1\r\n\r\n", {400, 505}),
    ("http/1.1", b"GET / http/1.1\r\n\r\n", {400}),
    ("HTTP/1", b"GET / HTTP/1\r\n\r\n", {400}),
    ("HTTP/1.", b"GET / HTTP/1.\r\n\r\n", {400}),
    ("HTTP/1.x", b"GET / HTTP/1.x\r\n\r\n", {400}),
    ("HTTP/+1.1", b"GET / HTTP/+1.1\r\n\r\n", {400, 505}),
    ("ICY", b"GET / ICY/1.1\r\n\r\n", {400}),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    ("PROXY v1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + GET + END, {400}),
    ("PROXY v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\x01" * 12 + GET + END, {400}),
    ("SMTP", b"EHLO test\r\n\r\n", {400}),
    ("random bytes", bytes(range(128, 256)) + b"\r\n\r\n", {400}),
)
def test_request_line_refused(steady, name, data, wanted):
    refused(steady, data, *wanted)


@rows(
    ("one empty line first", b"\r\n" + GET + END, {"REQUEST_METHOD": "GET"}),
    ("unknown method", b"PURGE /x HTTP/1.1\r\nHost: t\r\n\r\n", {"REQUEST_METHOD": "PURGE"}),
    ("method with signs", b"M-SEARCH /x HTTP/1.1\r\nHost: t\r\n\r\n", {"REQUEST_METHOD": "M-SEARCH"}),
    ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n", {"REQUEST_METHOD": "OPTIONS", "PATH_INFO": "*", "RAW_URI": "*"}),
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", {"HTTP_HOST": None, "SERVER_PROTOCOL": "HTTP/1.1"}),
    ("query", b"GET /p?a=%20b?c&d HTTP/1.1\r\n\r\n", {"PATH_INFO": "/p", "QUERY_STRING": "a=%20b?c&d",
                                                      "RAW_URI": "/p?a=%20b?c&d"}),
    ("empty query", b"GET /p? HTTP/1.1\r\n\r\n", {"PATH_INFO": "/p", "QUERY_STRING": ""}),
    ("no query", b"GET /p HTTP/1.1\r\n\r\n", {"QUERY_STRING": ""}),
    ("encoded slash", b"GET /a%2Fb HTTP/1.1\r\n\r\n", {"PATH_INFO": "/a/b", "RAW_URI": "/a%2Fb"}),
    ("encoded UTF-8 is latin-1", b"GET /caf%C3%A9 HTTP/1.1\r\n\r\n", {"PATH_INFO": "/caf\u00c3\u00a9"}),
    ("encoded latin-1", b"GET /%e9%FF HTTP/1.1\r\n\r\n", {"PATH_INFO": "/\u00e9\u00ff"}),
    ("encoded NUL and CRLF", b"GET /%00%0d%0A HTTP/1.1\r\n\r\n", {"PATH_INFO": "/\0\r\n"}),
    ("decoded once", b"GET /%252F HTTP/1.1\r\n\r\n", {"PATH_INFO": "/%2F"}),
    ("bad escapes stay", b"GET /%zz%4%/%C HTTP/1.1\r\n\r\n", {"PATH_INFO": "/%zz%4%/%C"}),
    ("encoded question mark", b"GET /a%3Fb?c HTTP/1.1\r\n\r\n", {"PATH_INFO": "/a?b", "QUERY_STRING": "c"}),
    ("two slashes stay", b"GET //a//b HTTP/1.1\r\n\r\n", {"PATH_INFO": "//a//b"}),
    ("dot segments stay", b"GET /a/../b/./c HTTP/1.1\r\n\r\n", {"PATH_INFO": "/a/../b/./c"}),
    ("plus is plus", b"GET /a+b;c=d HTTP/1.1\r\n\r\n", {"PATH_INFO": "/a+b;c=d"}),
    ("absolute form", b"GET http://test/p?q HTTP/1.1\r\nHost: test\r\n\r\n",
     {"PATH_INFO": "/p", "QUERY_STRING": "q", "HTTP_HOST": "test", "wsgi.url_scheme": "http"}),
    ("absolute form, https", b"GET https://test/p HTTP/1.1\r\nHost: test\r\n\r\n",
     {"PATH_INFO": "/p", "wsgi.url_scheme": "http"}),
    ("absolute form with a port", b"GET http://test:8000/p HTTP/1.1\r\nHost: test:8000\r\n\r\n",
     {"PATH_INFO": "/p", "HTTP_HOST": "test:8000"}),
)
def test_request_line_accepted(steady, name, data, wanted):
    found = environ(steady, data)
    assert {key: found.get(key) for key in wanted} == wanted


def test_absolute_form_without_path(steady):
    found = environ(steady, b"GET http://test?q HTTP/1.1\r\nHost: test\r\n\r\n")
    assert found["PATH_INFO"] in ("", "/") and found["QUERY_STRING"] == "q"


def test_absolute_form_beats_host(steady):
    """3.2.2: the target's authority counts; to refuse the contradiction is as safe."""
    response = answer(steady, b"GET http://inside/ HTTP/1.1\r\nHost: outside\r\n\r\n")
    if response.status == 200:
        assert json.loads(response.text)["environ"]["HTTP_HOST"] == "inside"
    else:
        assert response.status == 400


@pytest.mark.parametrize("method", ["get", "Get", "a", "#x"])
def test_unusual_methods_are_passed_on_or_refused_but_never_changed(steady, method):
    response = answer(steady, b"%s / HTTP/1.1\r\nHost: t\r\n\r\n" % method.encode())
    assert response.status == 400 or json.loads(response.text)["environ"]["REQUEST_METHOD"] == method


@pytest.mark.parametrize("version", ["1.2", "1.9"])
def test_a_later_minor_version(steady, version):
    response = answer(steady, b"GET / HTTP/%s\r\nHost: t\r\n\r\n" % version.encode())
    assert response.version == "HTTP/1.1"
    assert response.status in (200, 400, 505)


def test_connect_is_the_end_of_the_connection(steady):
    with steady.connect() as connection:
        connection.send(b"CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n" + GET + END)
        response = connection.read_response()
        assert response.status in (400, 405, 501) and response.closing
        connection.expect_eof()


def test_trace(steady):
    assert answer(steady, b"TRACE / HTTP/1.1\r\nHost: t\r\n\r\n").status in (200, 405)


def test_bad_bytes_are_refused_at_once(steady):
    """Without waiting for the end of a head that will never come."""
    for data in (b"GET / HTTP/1.1\n", b"\x16\x03\x01\x02\0\x01\0", b"GET / HTTP/1.1\r\nBad Name: x\r\n",
                 b"GET / HTTP/1.1\r\nHost: a\n", b"\0"):
        with steady.connect(timeout=8) as connection:
            connection.send(data)
            assert connection.read_response().status == 400, data
            connection.expect_eof()


@pytest.mark.parametrize("data, status", [
    (b"\n", 400), (b"X: y\n", 400), (b"X: y\r ", 400), (b"X: \0", 400), (b" ", 400), (b"X :", 400), (b"Host: other\r\n", 400),
    (b"Content-Length: 1\r\nContent-Length: 1\r\n", 400), (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
    (b"Expect: x\r\n", 417), (b"X: " + b"a" * 8190, 431), (b"A: b\r\n" * 100, 431),
])
def test_a_byte_that_spoils_the_rest_is_refused_at_once(steady, data, status):
    """Behind two thousand bytes of a head that has not ended, and with whatever comes in one piece with it."""
    begun = GET + b"Begun: " + b"x" * 2000 + b"\r\n"
    for cuts in ([begun, data], [begun[:1999], begun[1999:], data[:-1], data[-1:]], [begun + data]):
        with steady.connect(timeout=8) as connection:
            connection.send(*[piece for piece in cuts if piece])
            assert connection.read_response().status == status, data
            connection.expect_eof()


def test_one_byte_at_a_time(steady):
    with steady.connect() as connection:
        body = b"hello"
        for data in (GET + b"X-A: 1\r\n" + END, POST + b"Content-Length: 5\r\n\r\n" + body,
                     POST + b"Transfer-Encoding: chunked\r\n\r\n" + wire.chunked(b"he", b"llo", trailers=b"T: x\r\n")):
            connection.send(*(data[i:i + 1] for i in range(len(data))))
            found = json.loads(connection.read_response().text)
            assert found["body"] in ("", "hello")


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_two_requests_cut_anywhere(steady, cut):
    data = POST + b"Content-Length: 5\r\n\r\nhello" + GET + END
    with steady.connect() as connection:
        connection.send(data[:cut], data[cut:cut * 2], data[cut * 2:])
        assert json.loads(connection.read_response().text)["body"] == "hello"
        assert json.loads(connection.read_response().text)["body"] == ""


# --- 5: header fields ---

@rows(
    ("space before the colon", GET + b"X : 1\r\n\r\n", {400}),
    ("tab before the colon", GET + b"X\t: 1\r\n\r\n", {400}),
    ("space before the first field", b"GET / HTTP/1.1\r\n Host: test\r\n\r\n", {400}),
    ("obsolete folding", GET + b"X: 1\r\n 2\r\n\r\n", {400}),
    ("obsolete folding with a tab", GET + b"X: 1\r\n\t2\r\n\r\n", {400}),
    ("no colon", GET + b"X\r\n\r\n", {400}),
    ("empty name", GET + b": x\r\n\r\n", {400}),
    ("name with a space", GET + b"X Y: 1\r\n\r\n", {400}),
    ("name with a parenthesis", GET + b"X(Y): 1\r\n\r\n", {400}),
    ("name with NUL", GET + b"X\0: 1\r\n\r\n", {400}),
    ("name in latin-1", GET + b"X\xdf: 1\r\n\r\n", {400}),
    ("name in UTF-8", GET + b"X\xc3\xa9: 1\r\n\r\n", {400}),
    ("value with NUL", GET + b"X: a\0b\r\n\r\n", {400}),
    ("value with CR", GET + b"X: a\rb\r\n\r\n", {400}),
    ("value with LF", GET + b"X: a\nY: b\r\n\r\n", {400}),
    ("value ends in CR CR LF", GET + b"X: a\r\r\n\r\n", {400}),
    ("value with SOH", GET + b"X: a\x01b\r\n\r\n", {400}),
    ("value with VT", GET + b"X: a\x0bb\r\n\r\n", {400}),
    ("value with DEL", GET + b"X: a\x7fb\r\n\r\n", {400}),
    ("head ends in LF LF", b"GET / HTTP/1.1\r\nHost: test\n\n", {400}),
    ("head ends in CRLF LF", GET + b"\n", {400}),
    ("Content-Type twice", GET + b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n", {400}),
    ("Host twice", GET + b"Host: test\r\n\r\n", {400}),
    ("Host with a space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", {400}),
    ("Host with a path", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", {400}),
    ("Host with userinfo", b"GET / HTTP/1.1\r\nHost: user@test\r\n\r\n", {400}),
    ("Host with a bad port", b"GET / HTTP/1.1\r\nHost: test:port\r\n\r\n", {400}),
    ("Host with two ports", b"GET / HTTP/1.1\r\nHost: test:1:2\r\n\r\n", {400}),
    ("Host list", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", {400}),
    ("Host with brackets open", b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", {400}),
    ("Host with angle brackets", b"GET / HTTP/1.1\r\nHost: te<s>t\r\n\r\n", {400}),
    ("Host with a backslash", b"GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", {400}),
    ("Host in UTF-8", b"GET / HTTP/1.1\r\nHost: caf\xc3\xa9\r\n\r\n", {400}),
    ("unknown expectation", GET + b"Expect: the-moon\r\n\r\n", {417}),
    ("unknown expectation in a list", POST + b"Content-Length: 2\r\nExpect: 100-continue, the-moon\r\n\r\n", {417}),
)
def test_fields_refused(steady, name, data, wanted):
    refused(steady, data, *wanted)


@rows(
    ("trimmed of SP and HTAB only", GET + b"X: \t a\tb \t\r\nY:\x85c\xa0\r\n\r\n",
     {"HTTP_X": "a\tb", "HTTP_Y": "\u0085c\u00a0"}),
    ("empty value", GET + b"X:\r\nY: \t \r\n\r\n", {"HTTP_X": "", "HTTP_Y": ""}),
    ("latin-1 kept", GET + b"X: caf\xe9 \xff\xc3\xa9\r\n\r\n", {"HTTP_X": "caf\u00e9 \u00ff\u00c3\u00a9"}),
    ("colon in the value", GET + b"X: a:b: c\r\n\r\n", {"HTTP_X": "a:b: c"}),
    ("any case of the name", GET + b"x-mIxEd: 1\r\n\r\n", {"HTTP_X_MIXED": "1"}),
    ("token characters in the name", GET + b"X!#$%&'*+.^`|~9: 1\r\n\r\n", {"HTTP_X!#$%&'*+.^`|~9": "1"}),
    ("duplicates joined", GET + b"X-A: 1\r\nX-B: b\r\nX-A: 2\r\nx-a: 3\r\n\r\n", {"HTTP_X_A": "1,2,3", "HTTP_X_B": "b"}),
    ("the same twice", GET + b"Accept: a\r\nAccept: a\r\n\r\n", {"HTTP_ACCEPT": "a,a"}),
    ("cookies joined", GET + b"Cookie: a=1\r\nCookie: b=2; c=3\r\n\r\n", {"HTTP_COOKIE": "a=1; b=2; c=3"}),
    ("Content-Type has no twin", POST + b"Content-Type: a/b\r\nContent-Length: 0\r\n\r\n",
     {"CONTENT_TYPE": "a/b", "CONTENT_LENGTH": "0", "HTTP_CONTENT_TYPE": None, "HTTP_CONTENT_LENGTH": None}),
    ("not sent, not set", GET + END, {"CONTENT_TYPE": None, "CONTENT_LENGTH": None}),
    ("underscore dropped", GET + b"X_Real_Id: evil\r\nX-Real-Id: good\r\nX_real-id: evil\r\n\r\n", {"HTTP_X_REAL_ID": "good"}),
    ("underscore dropped when alone", GET + b"X_Real_Id: evil\r\n\r\n", {"HTTP_X_REAL_ID": None}),
    ("Content_Length is nothing", GET + b"Content_Length: 5\r\n\r\n",
     {"CONTENT_LENGTH": None, "HTTP_CONTENT_LENGTH": None}),
    ("Transfer_Encoding is nothing", GET + b"Transfer_Encoding: chunked\r\n\r\n", {"HTTP_TRANSFER_ENCODING": None}),
    ("Content_Type is nothing", GET + b"Content_Type: a/b\r\n\r\n", {"CONTENT_TYPE": None, "HTTP_CONTENT_TYPE": None}),
    ("REMOTE_USER is nothing", GET + b"Remote_User: root\r\nRemote_Addr: 1\r\n\r\n",
     {"REMOTE_USER": None, "REMOTE_ADDR": "127.0.0.1", "HTTP_REMOTE_USER": None}),
    ("Proxy stays a header", GET + b"Proxy: http://evil\r\n\r\n", {"HTTP_PROXY": "http://evil"}),
    ("websocket headers have no effect", GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \xff\r\n\r\n",
     {"HTTP_UPGRADE": "websocket", "HTTP_SEC_WEBSOCKET_KEY": "\u00ff"}),
    ("Host with a port", b"GET / HTTP/1.1\r\nHost: example.com:8000\r\n\r\n", {"HTTP_HOST": "example.com:8000"}),
    ("Host as IPv6", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", {"HTTP_HOST": "[::1]:80"}),
    ("Host with an underscore", b"GET / HTTP/1.1\r\nHost: my_app-1.example\r\n\r\n", {"HTTP_HOST": "my_app-1.example"}),
    ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", {"HTTP_HOST": ""}),
)
def test_fields_accepted(steady, name, data, wanted):
    found = seen(steady, data)
    assert {key: found["environ"].get(key) for key in wanted} == wanted
    assert not found["os"]


def test_a_hundred_fields_and_no_more(steady):
    fields = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(99))
    assert environ(steady, GET + fields + END)["HTTP_X_98"] == "98"
    refused(steady, GET + fields + b"X-99: 99\r\n\r\n", 431)


def test_field_of_eight_thousand_and_no_more(steady):
    assert len(environ(steady, GET + b"X: " + b"a" * 8000 + b"\r\n\r\n")["HTTP_X"]) == 8000
    refused(steady, GET + b"X: " + b"a" * 8200 + b"\r\n\r\n", 431)


def test_request_line_of_eight_thousand_and_no_more(steady):
    line = b"GET /" + b"a" * 8000
    assert len(environ(steady, line + b" HTTP/1.1\r\n\r\n")["PATH_INFO"]) == 8001
    refused(steady, line + b"a" * 300 + b" HTTP/1.1\r\n\r\n", 414)


@pytest.mark.parametrize("endless, status", [
    (b"GET /" + b"a" * 100000, 414),
    (GET + b"X: " + b"a" * 100000, 431),
    (GET + b"X" * 100000, 431),
    (GET + b"X: 1\r\n" * 20000, 431),
    (b"\r\n" * 50000, 400),
], ids=["line", "value", "name", "fields", "empty lines"])
def test_limits_act_before_the_line_ends(steady, endless, status):
    """On bytes received: the refusal comes though no line, or no head, has ended."""
    with steady.connect(timeout=8) as connection:
        try:
            connection.send(endless)
        except OSError:
            pass
        assert connection.read_response().status == status
        connection.expect_closed()


# --- 6, 7: framing of the request body ---

def with_length(value):
    return POST + b"Content-Length: " + value + b"\r\n\r\nhello"


def with_coding(*values):
    return POST + b"".join(b"Transfer-Encoding: " + v + b"\r\n" for v in values) + b"\r\n" + wire.chunked(b"hello")


@rows(
    *[("length %r" % v, with_length(v), {400}) for v in (
        b"+5", b"-5", b"0x5", b"5.0", b"5e0", b"5_0", b"5 5", b"5;", b'"5"', b"", b"5\x0b", b"\xb25", b"\xa05", b"five",
        b"5,5", b"5, 6")],
    *[("length %d digits" % len(v), with_length(v), {400, 413}) for v in (b"9223372036854775808", b"1" * 20, b"9" * 100)],
    ("two lengths, equal", POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", {400}),
    ("two lengths, different", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", {400}),
    ("length and chunked", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + wire.chunked(b"hello"), {400}),
    ("chunked and length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + wire.chunked(b"hello"), {400}),
    ("length and empty coding", POST + b"Content-Length: 5\r\nTransfer-Encoding:\r\n\r\nhello", {400, 501}),
    ("length and identity", POST + b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n\r\nhello", {400, 501}),
    ("GET with a bad length", GET + b"Content-Length: x\r\n\r\n", {400}),
)
def test_content_length_refused(steady, name, data, wanted):
    refused(steady, data, *wanted)


@rows(
    ("gzip", with_coding(b"gzip"), {400, 501}),
    ("gzip, chunked", with_coding(b"gzip, chunked"), {501}),
    ("gzip and chunked on two lines", with_coding(b"gzip", b"chunked"), {501}),
    ("chunked, gzip", with_coding(b"chunked, gzip"), {400, 501}),
    ("chunked, identity", with_coding(b"chunked, identity"), {400, 501}),
    ("identity", with_coding(b"identity"), {400, 501}),
    ("unknown", with_coding(b"cow"), {400, 501}),
    ("xchunked", with_coding(b"xchunked"), {400, 501}),
    ("chunkedx", with_coding(b"chunkedx"), {400, 501}),
    ("chunked, chunked", with_coding(b"chunked, chunked"), {400}),
    ("chunked twice on two lines", with_coding(b"chunked", b"chunked"), {400}),
    ("empty", with_coding(b""), {400, 501}),
    ("only a comma", with_coding(b","), {400, 501}),
    ("with a parameter", with_coding(b"chunked;q=1"), {400, 501}),
    ("in quotes", with_coding(b'"chunked"'), {400, 501}),
    ("VT before", with_coding(b"\x0bchunked"), {400, 501}),
    ("FF after", with_coding(b"chunked\x0c"), {400, 501}),
    ("NBSP before", with_coding(b"\xa0chunked"), {400, 501}),
    ("NEL after", with_coding(b"chunked\x85"), {400, 501}),
    ("NUL after", with_coding(b"chunked\0"), {400, 501}),
    ("space inside", with_coding(b"chun ked"), {400, 501}),
    ("folded", with_coding(b"\r\n chunked"), {400}),
    ("HTTP/1.0", with_coding(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), {400}),
    ("HTTP/1.0 keep-alive", with_coding(b"chunked").replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n"), {400}),
)
def test_transfer_encoding_refused(steady, name, data, wanted):
    refused(steady, data, *wanted)


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b" \tchunked\t "])
def test_transfer_encoding_accepted(steady, value):
    found = seen(steady, with_coding(value))
    assert found["body"] == "hello"
    assert found["environ"]["CONTENT_LENGTH"] == "5" and "HTTP_TRANSFER_ENCODING" not in found["environ"]
    assert found["environ"]["wsgi.input_terminated"] is True


@pytest.mark.parametrize("value", [b",chunked", b"chunked,", b", chunked ,"])
def test_coding_list_with_empty_elements(steady, value):
    """RFC 9110 5.6.1.2: legal to accept, legal to refuse; to see no body is neither."""
    response = answer(steady, with_coding(value))
    assert response.status in (400, 501) or json.loads(response.text)["body"] == "hello"


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@rows(
    ("lower and upper hex", b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", "0123456789" * 2),
    ("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n", "hello"),
    ("empty body", b"0\r\n\r\n", ""),
    ("extension", b"5;name=value\r\nhello\r\n0;last\r\n\r\n", "hello"),
    ("quoted extension", b'5;name="a;b \\" c"\r\nhello\r\n0\r\n\r\n', "hello"),
    ("trailers", wire.chunked(b"hello", trailers=b"X-Checksum: abc\r\nX-Other: d\r\n"), "hello"),
    ("CRLF as data", wire.chunked(b"\r\n\r\n0\r\n\r\n"), "\r\n\r\n0\r\n\r\n"),
    ("many small chunks", wire.chunked(*[b"x"] * 3000), "x" * 3000),
)
def test_chunked_accepted(steady, name, data, wanted):
    found = seen(steady, CHUNKED + data)
    assert found["body"] == wanted
    assert not [key for key in found["environ"] if "CHECKSUM" in key]


@rows(
    ("size 0x5", b"0x5\r\nhello\r\n0\r\n\r\n", {400}),
    ("size +5", b"+5\r\nhello\r\n0\r\n\r\n", {400}),
    ("size -5", b"-5\r\nhello\r\n0\r\n\r\n", {400}),
    ("size 5_", b"0_5\r\nhello\r\n0\r\n\r\n", {400}),
    ("size g", b"g\r\nhello\r\n0\r\n\r\n", {400}),
    ("empty size", b"\r\nhello\r\n0\r\n\r\n", {400}),
    ("empty size with an extension", b";x\r\nhello\r\n0\r\n\r\n", {400}),
    ("space before the size", b" 5\r\nhello\r\n0\r\n\r\n", {400}),
    ("space after the size", b"5 \r\nhello\r\n0\r\n\r\n", {400}),
    ("17 digits", b"00000000000000005\r\nhello\r\n0\r\n\r\n", {400, 413}),
    ("too large by far", b"FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", {400, 413}),
    ("overflow", b"10000000000000005\r\nhello\r\n0\r\n\r\n", {400, 413}),
    ("LF after the size", b"5\nhello\r\n0\r\n\r\n", {400}),
    ("CR after the size", b"5\rhello\r\n0\r\n\r\n", {400}),
    ("CR CR LF after the size", b"5\r\r\nhello\r\n0\r\n\r\n", {400}),
    ("LF after the data", b"5\r\nhello\n0\r\n\r\n", {400}),
    ("nothing after the data", b"5\r\nhello0\r\n\r\n", {400}),
    ("XX after the data", b"5\r\nhelloXX0\r\n\r\n", {400}),
    ("an empty line between chunks", b"5\r\nhello\r\n\r\n0\r\n\r\n", {400}),
    ("too much data", b"4\r\nhello\r\n0\r\n\r\n", {400}),
    ("LF after the last chunk", b"5\r\nhello\r\n0\n\r\n", {400}),
    ("LF at the end of the trailers", b"5\r\nhello\r\n0\r\nT: x\r\n\n", {400}),
    ("LF in the extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n", {400}),
    ("NUL in the extension", b"5;a\0\r\nhello\r\n0\r\n\r\n", {400}),
    ("CR in the extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n", {400}),
    ("extension of 100 KB", b"5;" + b"a" * 100000 + b"\r\nhello\r\n0\r\n\r\n", {400, 413, 431}),
    ("extensions of 100 KB in all", b"1;" + b"\r\nx\r\n1;".join([b"a" * 500] * 200) + b"\r\nx\r\n0\r\n\r\n", {400, 413, 431}),
    ("trailer without a colon", wire.chunked(b"hello", trailers=b"nonsense\r\n"), {400}),
    ("trailer with a space", wire.chunked(b"hello", trailers=b"X : 1\r\n"), {400}),
    ("trailer folded", wire.chunked(b"hello", trailers=b"X: 1\r\n 2\r\n"), {400}),
    ("trailer with NUL", wire.chunked(b"hello", trailers=b"X: \0\r\n"), {400}),
    ("trailer of 100 KB", wire.chunked(b"hello", trailers=b"X: " + b"a" * 100000 + b"\r\n"), {400, 431}),
    ("1000 trailers", wire.chunked(b"hello", trailers=b"X: 1\r\n" * 1000), {400, 431}),
)
def test_chunked_refused(steady, name, data, wanted):
    """The application reads before it answers, so the refusal can still be said."""
    refused(steady, CHUNKED + data, *wanted)


@pytest.mark.parametrize("trailer", [b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Host: evil", b"Content-Type: x/y",
                                     b"X_Real_Id: evil", b"Authorization: evil"])
def test_forbidden_trailers_are_refused_or_dropped(steady, trailer):
    response = answer(steady, CHUNKED + wire.chunked(b"hello", trailers=trailer + b"\r\n"))
    if response.status == 200:
        found = json.loads(response.text)
        assert found["body"] == "hello"
        assert "evil" not in str(found) and "x/y" not in str(found) and found["environ"]["CONTENT_LENGTH"] == "5"
    else:
        assert response.status == 400


def test_get_with_a_body(steady):
    assert seen(steady, GET + b"Content-Length: 5\r\n\r\nhello")["body"] == "hello"


def test_leading_zeros_of_a_length(steady):
    assert seen(steady, with_length(b"005"))["body"] == "hello"


@pytest.mark.parametrize("part", [
    b"Content-Length: 10\r\n\r\nhello",
    b"Content-Length: 10\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n",
    b"Content-Length: 300000\r\n\r\n" + b"x" * 200000,
], ids=["length", "length, nothing", "chunked, nothing", "in a chunk", "after a chunk", "between chunks", "last chunk",
        "trailers", "large"])
def test_a_body_that_ends_early_is_no_body(steady, part):
    """6.3: it must not look like a short body to the application. Half-closing shows it also to the client."""
    with steady.connect() as connection:
        connection.send(POST + part)
        connection.half_close()
        data = connection.expect_closed()
    assert not data.startswith(b"HTTP/1.1 200"), data


def test_a_body_that_ends_early_raises_in_the_application(server):
    running = server("""
        def app(environ, start_response):
            with open(environ["PATH_INFO"][1:], "w") as f:
                try:
                    f.write("read %r" % environ["wsgi.input"].read())
                except OSError as error:
                    f.write("OSError")
                except Exception as error:
                    f.write("raised %r" % error)
                f.write("|")
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"swallowed"]
    """)
    running.expect_errors()
    parts = {"length": b"Content-Length: 300000\r\n\r\n" + b"x" * 200000,
             "chunked": b"Transfer-Encoding: chunked\r\n\r\n30d40\r\n" + b"x" * 180000,
             "broken": b"Transfer-Encoding: chunked\r\n\r\n30d40\r\n" + b"x" * 200000 + b"bad"}
    for name, part in parts.items():
        with running.connect() as connection:
            connection.send(b"POST /%s HTTP/1.1\r\nHost: test\r\n" % name.encode() + part)
            connection.half_close()
            connection.expect_closed()
    for name in parts:
        # A server that reads the whole body first may refuse it without calling the application at all.
        if running.exists(name):
            assert wait_until(lambda: running.read(name).endswith("|") and running.read(name)) == "OSError|"
    assert running.get("/fine").status == 200
    assert running.read("fine") == "read b''|"


def test_a_body_error_poisons_the_connection(server):
    """The application swallows the error and answers: what follows the broken body is still no request."""
    running = server("""
        def app(environ, start_response):
            try:
                environ["wsgi.input"].read()
            except Exception:
                pass
            with open("calls", "a") as f:
                f.write(environ["PATH_INFO"] + " ")
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]
    """)
    running.expect_errors()
    with running.connect() as connection:
        connection.send(b"POST /first HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n" + GET + END)
        response = connection.read_response()
        assert response.status == 400 or response.closing
        connection.expect_eof()
    assert running.get("/second").status == 200
    assert running.read("calls").split() in (["/first", "/second"], ["/second"])


# --- bodies that nobody reads ---

UNREAD = b"POST /?read=no HTTP/1.1\r\nHost: test\r\n"


@pytest.mark.parametrize("rest", [
    b"Content-Length: 5\r\n\r\nhello",
    b"Content-Length: 30000\r\n\r\n" + b"GET /smuggled HTTP/1.1\r\n\r\n".ljust(30000, b"x"),
    b"Transfer-Encoding: chunked\r\n\r\n" + wire.chunked(b"GET /smuggled HTTP/1.1\r\n\r\n", b"x" * 1000),
], ids=["small", "larger", "chunked"])
def test_unread_body_is_not_the_next_request(steady, rest):
    with steady.connect() as connection:
        connection.send(UNREAD + rest)
        response = connection.read_response()
        assert response.status == 200
        if response.closing:
            connection.expect_eof()
        else:
            connection.send_request("GET", "/next")
            assert json.loads(connection.read_response().text)["environ"]["PATH_INFO"] == "/next"


@pytest.mark.parametrize("body", [b"hello", b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_unread_body_that_comes_after_the_answer_is_still_body(steady, body):
    """The 0.CL desynchronisation: the answer does not wait for the body, the connection does. Waiting for both is as safe."""
    with steady.connect() as connection:
        connection.send(UNREAD + b"Content-Length: %d\r\n\r\n" % len(body))
        early = connection.readable(0.3)
        connection.send(body)
        response = connection.read_response()
        assert response.status == 200, early
        if response.closing:
            connection.expect_eof()
        else:
            connection.send_request("GET", "/next")
            assert json.loads(connection.read_response().text)["environ"]["PATH_INFO"] == "/next"


def test_large_unread_body_does_not_destroy_the_answer(server):
    """The close is staged: the answer arrives though megabytes of body were still on their way."""
    running = server("apps.echo", "--keep-alive", "30")
    with running.connect() as connection:
        connection.send(UNREAD + b"Content-Length: 20000000\r\n\r\n" + b"x" * 1000000)
        response = connection.read_response()
        assert response.status == 200 and "length" not in json.loads(response.text)
        connection.half_close()
        connection.expect_closed()
    assert running.get("/").status == 200


# --- 9: persistence, pipelining, HTTP/1.0 ---

def test_pipelined_in_order(steady):
    with steady.connect() as connection:
        connection.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: test\r\n\r\n" % n for n in range(50)))
        for n in range(50):
            assert json.loads(connection.read_response().text)["environ"]["PATH_INFO"] == "/%d" % n
        assert connection.exchange().status == 200


def test_pipelined_with_bodies(steady):
    data = b"".join(POST + b"X-N: %d\r\nContent-Length: 5\r\n\r\nbody%d" % (n, n)
                    + b"GET /?read=no HTTP/1.1\r\n\r\n"
                    + POST + b"Transfer-Encoding: chunked\r\n\r\n" + wire.chunked(b"chunk%d" % n) for n in range(9))
    with steady.connect() as connection:
        connection.send(data)
        for n in range(9):
            assert json.loads(connection.read_response().text)["body"] == "body%d" % n
            assert "body" not in json.loads(connection.read_response().text)
            assert json.loads(connection.read_response().text)["body"] == "chunk%d" % n


def test_pipelined_head_and_get(steady):
    """The answer to HEAD has no body, so the next answer begins right after its head."""
    with steady.connect() as connection:
        connection.send(b"HEAD / HTTP/1.1\r\n\r\n" + GET + END)
        assert connection.read_response("HEAD").status == 200
        assert connection.read_response().status == 200


def test_pipelined_after_large_bodies(steady):
    body = b"x" * 300000
    with steady.connect() as connection:
        connection.send(POST + b"Content-Length: 300000\r\n\r\n" + body + GET + END)
        assert json.loads(connection.read_response().text)["length"] == 300000
        assert json.loads(connection.read_response().text)["length"] == 0


def test_nothing_is_served_after_a_bad_request(steady):
    with steady.connect() as connection:
        connection.send(GET + END + b"BAD\r\n\r\n" + b"GET /smuggled HTTP/1.1\r\n\r\n")
        assert connection.read_response().status == 200
        assert connection.read_response().status == 400
        connection.expect_eof()


@pytest.mark.parametrize("fields", [
    b"Connection: close\r\n", b"Connection: Close\r\n", b"Connection: foo, close\r\n", b"Connection: close, foo\r\n",
    b"Connection: foo\r\nConnection: close\r\n", b"Connection: keep-alive, close\r\n", b"Connection: ,close,\r\n",
])
def test_close_is_an_element_of_a_list(steady, fields):
    with steady.connect() as connection:
        connection.send(GET + fields + END + GET + END)
        assert connection.read_response().closing
        connection.expect_eof()


@pytest.mark.parametrize("fields", [b"", b"Connection: keep-alive\r\n", b"Connection: closed\r\n", b'Connection: "close"\r\n'])
def test_http_1_1_stays_open(steady, fields):
    with steady.connect() as connection:
        connection.send(GET + fields + END)
        assert not connection.read_response().closing
        assert connection.exchange().status == 200


@pytest.mark.parametrize("fields, stays", [
    (b"", False), (b"Connection: keep-alive\r\n", True), (b"Connection: Keep-Alive\r\n", True),
    (b"Connection: foo, keep-alive\r\n", True), (b"Connection: close\r\n", False),
    (b"Connection: keep-alive, close\r\n", False),
])
def test_http_1_0(steady, fields, stays):
    with steady.connect() as connection:
        connection.send(b"GET / HTTP/1.0\r\n" + fields + END)
        response = connection.read_response()
        assert response.closing is not stays
        if stays:
            assert response.header("connection").lower() == "keep-alive"
            assert json.loads(connection.exchange().text)["environ"]["SERVER_PROTOCOL"] == "HTTP/1.1"
        else:
            connection.expect_eof()


def test_http_1_0_is_told_to_the_application(steady):
    assert environ(steady, b"GET / HTTP/1.0\r\n\r\n")["SERVER_PROTOCOL"] == "HTTP/1.0"


@pytest.mark.parametrize("data, wanted", [
    (GET + END, 200), (POST + b"Content-Length: 5\r\n\r\nhello", 200), (CHUNKED + wire.chunked(b"hello"), 200),
    (b"BAD\r\n\r\n", 400)])
def test_half_closed_client_is_answered(steady, data, wanted):
    with steady.connect() as connection:
        connection.send(data)
        connection.half_close()
        assert connection.read_response().status == wanted
        connection.expect_eof()


def test_half_closed_client_gets_all_its_answers(steady):
    with steady.connect() as connection:
        connection.send((GET + END) * 5)
        connection.half_close()
        for _ in range(5):
            assert connection.read_response().status == 200
        connection.expect_eof()


def test_half_closed_in_the_head(steady):
    with steady.connect() as connection:
        connection.send(GET)
        connection.half_close()
        data = connection.expect_closed()
        assert data == b"" or data.startswith(b"HTTP/1.1 400"), data


# --- RFC 9110 10.1.1: Expect ---

EXPECT = POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("head", [
    EXPECT, EXPECT.replace(b"100-continue", b"100-Continue"), CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")])
def test_continue_is_sent_when_the_head_is_complete(steady, head):
    with steady.connect() as connection:
        connection.send(head)
        interim = connection.read_head()
        assert (interim.status, interim.fields) == (100, [])
        connection.send(b"hello" if b"Length" in head else wire.chunked(b"hello"))
        response = connection.read_head()
        assert response.status == 200
        assert json.loads(connection.read_body(response).text)["body"] == "hello"
        assert connection.exchange().status == 200


def test_no_continue_when_the_application_does_not_read(server):
    """Where the body is streamed. The client may or may not send it now, so the connection ends."""
    with server("apps.echo:app", "--request-buffering", "off").connect() as connection:
        connection.send(UNREAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        response = connection.read_response()
        assert response.status == 200 and not response.interim and response.closing
        connection.expect_eof()


def test_no_continue_before_the_application_asks(server):
    """Where the body is streamed, the 100 comes when the application reads, not before."""
    running = server("""
        import os, time

        def app(environ, start_response):
            open("inside", "w").close()
            for _ in range(3000):
                if os.path.exists("go"):
                    break
                time.sleep(0.01)
            body = environ["wsgi.input"].read(1) + environ["wsgi.input"].read()
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [body]
    """, "--request-buffering", "off")
    with running.connect() as connection:
        connection.send(EXPECT)
        wait_until(lambda: running.exists("inside"))
        assert not connection.readable(0.2)
        running.touch("go")
        assert connection.read_head().status == 100
        connection.send(b"hello")
        response = connection.read_response()
        assert response.body == b"hello" and not response.interim


@rows(
    ("body already there", EXPECT + b"hello", "hello"),
    ("no body", GET + b"Expect: 100-continue\r\n\r\n", ""),
    ("empty body", POST + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n", ""),
    ("HTTP/1.0", EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello", "hello"),
)
def test_no_continue_without_need(steady, name, data, wanted):
    response = answer(steady, data)
    assert response.status == 200 and not response.interim
    assert json.loads(response.text)["body"] == wanted


@pytest.mark.parametrize("bad", [b"Content-Length: x\r\n", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                                 b"Transfer-Encoding: cow\r\n"])
def test_no_continue_for_a_request_that_is_refused(steady, bad):
    with steady.connect() as connection:
        connection.send(POST + b"Expect: 100-continue\r\n" + bad + b"\r\n")
        response = connection.read_response()
        assert response.status in (400, 501) and not response.interim
        connection.expect_eof()


# --- responses ---

SHAPES = """
    class Lines(list):
        pass

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        status, headers, body = SHAPES[path]
        start_response(status, [("Content-Type", "text/plain")] * (not status.startswith(("204", "304"))) + headers)
        return body()

    SHAPES = {
        "/one": ("200 OK", [], lambda: [b"hello"]),
        "/tuple": ("200 OK", [], lambda: (b"hello",)),
        "/two": ("200 OK", [], lambda: [b"hel", b"lo"]),
        "/empty-blocks": ("200 OK", [], lambda: [b"", b"hel", b"", b"lo", b""]),
        "/generator": ("200 OK", [], lambda: (b for b in [b"", b"hel", b"", b"lo", b""])),
        "/nothing": ("200 OK", [], lambda: []),
        "/empty-generator": ("200 OK", [], lambda: iter(())),
        "/length": ("200 OK", [("Content-Length", "5")], lambda: [b"hello"]),
        "/length-generator": ("200 OK", [("Content-Length", "5")], lambda: (b for b in [b"hel", b"lo"])),
        "/length-zero": ("200 OK", [("Content-Length", "0")], lambda: (b for b in [])),
        "/length-zero-blocks": ("200 OK", [("Content-Length", "0")], lambda: (b for b in [b"", b""])),
        "/large": ("200 OK", [], lambda: [b"x" * 3000000]),
        "/large-generator": ("200 OK", [], lambda: (b"x" * 100000 for _ in range(30))),
        "/204": ("204 No Content", [], lambda: []),
        "/204-body": ("204 No Content", [("Content-Length", "5")], lambda: [b"hello"]),
        "/204-generator": ("204 No Content", [], lambda: (b for b in [b"hello"])),
        "/304": ("304 Not Modified", [("ETag", '"x"')], lambda: []),
        "/304-length": ("304 Not Modified", [("Content-Length", "5")], lambda: [b"hello"]),
        "/reason": ("200 All Is Well", [], lambda: [b"hello"]),
        "/own-date": ("200 OK", [("Date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("Server", "mine")], lambda: [b"hello"]),
        "/cookies": ("200 OK", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], lambda: [b"hello"]),
    }
"""


@pytest.fixture(scope="module")
def shapes(module_server):
    return module_server(SHAPES, "--keep-alive", "30")


@pytest.mark.parametrize("path, body, framing", [
    ("/one", b"hello", "length"), ("/tuple", b"hello", "length"), ("/two", b"hello", None), ("/empty-blocks", b"hello", None),
    ("/generator", b"hello", "chunked"), ("/nothing", b"", None), ("/empty-generator", b"", None),
    ("/length", b"hello", "length"), ("/length-generator", b"hello", "length"), ("/length-zero", b"", "length"),
    ("/length-zero-blocks", b"", "length"), ("/large", b"x" * 3000000, "length"),
    ("/large-generator", b"x" * 3000000, "chunked"), ("/reason", b"hello", "length"), ("/cookies", b"hello", "length"),
    ("/own-date", b"hello", "length"),
])
def test_response_framing(shapes, path, body, framing):
    """The connection stays in step whatever the shape of the body, and HEAD has the same head without one."""
    with shapes.connect() as connection:
        response = connection.exchange("GET", path)
        assert response.body == body
        assert response.framing == (framing or response.framing) and response.framing != "close"
        assert len(response.all("date")) == 1
        head = connection.exchange("HEAD", path)
        assert (head.status, head.reason, head.body) == (response.status, response.reason, b"")
        assert head.header("content-length") in (None, str(len(body)))
        assert head.all("set-cookie") == response.all("set-cookie")
        old = connection.exchange("GET", path, [("Connection", "keep-alive")], version="HTTP/1.0")
        assert old.body == body
        assert old.header("transfer-encoding") is None
        if old.closing:
            connection.expect_eof()
        else:
            assert connection.exchange("GET", "/one").body == b"hello"


def test_head_does_not_invent_a_length(shapes):
    """RFC 9110 9.3.2: what GET would say, or nothing; an empty list for HEAD is no promise about GET."""
    with shapes.connect() as connection:
        assert connection.exchange("HEAD", "/nothing").header("content-length") in (None, "0")
        assert connection.exchange("HEAD", "/length").header("content-length") == "5"
        assert connection.exchange("HEAD", "/generator").header("content-length") is None


@pytest.mark.parametrize("path", ["/204", "/204-body", "/204-generator", "/304", "/304-length"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_responses_without_body(shapes, path, method):
    shapes.expect_errors(r"body bytes on a no-body response")
    with shapes.connect() as connection:
        response = connection.exchange(method, path)
        assert response.status == int(path[1:4]) and response.body == b""
        assert response.header("transfer-encoding") is None
        if path == "/304-length":
            assert response.header("content-length") == "5"
        assert connection.exchange("GET", "/one").body == b"hello"


def test_reason_is_the_applications(shapes):
    assert shapes.get("/reason").reason == "All Is Well"


def test_close_is_said(shapes):
    """9.6: the last response of a connection says so."""
    assert "close" in shapes.get("/one").header("connection").lower()
    with shapes.connect() as connection:
        connection.send(b"GET /generator HTTP/1.0\r\n\r\n")
        response = connection.read_response()
        assert response.framing == "close" and response.body == b"hello"


def test_server_is_named_once(shapes):
    for path in ("/one", "/own-date"):
        assert len(shapes.get(path).all("server")) == 1


def test_errors_are_dated(shapes):
    """RFC 9110 6.6.1: Date is a MUST in 4xx too, also in those that no application made."""
    with shapes.connect() as connection:
        connection.send(b"BAD\r\n\r\n")
        assert len(connection.read_response().all("date")) == 1


def test_error_page_repeats_nothing(shapes):
    with shapes.connect() as connection:
        connection.send(b"GET /<script>secret</script> HTTP/1.1\r\nX<script>: secret\r\n\r\n")
        response = connection.read_response()
        connection.expect_eof()
    assert response.status == 400 and response.header("content-type")
    assert b"secret" not in response.body and b"Traceback" not in response.body


# --- deadlines ---

def drip(connection, data, every=0.1, seconds=40):
    """Sends byte by byte until the server ends the connection; gives the seconds that took and what it said."""
    started = time.monotonic()
    for i in range(len(data)):
        if connection.readable(every):
            break
        try:
            connection.send(data[i:i + 1])
        except OSError:
            break
        assert time.monotonic() - started < seconds, "the deadline does not hold"
    said = connection.expect_closed()
    return time.monotonic() - started, said


SLOW = ["--header-timeout", "1", "--body-timeout", "1", "--write-timeout", "1", "--keep-alive", "1"]


@pytest.fixture(scope="module")
def strict(module_server):
    running = module_server("apps.echo", *SLOW)
    running.expect_errors(r"Error handling request")
    return running


def test_silent_connection_ends(strict):
    with strict.connect() as connection:
        assert connection.expect_closed() == b""


def test_header_deadline(strict):
    with strict.connect() as connection:
        connection.send(GET)
        said = connection.expect_closed()
        assert said == b"" or said.startswith(b"HTTP/1.1 408"), said


def test_header_deadline_cannot_be_stretched(strict):
    with strict.connect() as connection:
        seconds, said = drip(connection, GET + b"X: " + b"a" * 1000)
        assert seconds < 20
        assert said == b"" or said.startswith(b"HTTP/1.1 408"), said


def test_header_deadline_after_keep_alive(strict):
    """A second request on the connection has no more time than the first."""
    with strict.connect() as connection:
        assert connection.exchange().status == 200
        seconds, said = drip(connection, GET + b"X: " + b"a" * 1000)
        assert seconds < 20
        assert said == b"" or said.startswith(b"HTTP/1.1 408"), said


def test_keep_alive_deadline_is_quiet(strict):
    with strict.connect() as connection:
        assert connection.exchange().status == 200
        assert connection.expect_closed() == b""


@pytest.mark.parametrize("head", [b"Content-Length: 1000\r\n\r\n", b"Content-Length: 10000000\r\n\r\n",
                                  b"Transfer-Encoding: chunked\r\n\r\n"])
def test_body_deadline(strict, head):
    with strict.connect() as connection:
        connection.send(POST + head)
        said = connection.expect_closed()
        assert not said.startswith(b"HTTP/1.1 200"), said


@pytest.mark.parametrize("head, data", [
    (b"Content-Length: 1000\r\n\r\n", b"x" * 1000),
    (b"Content-Length: 10000000\r\n\r\n", b"x" * 1000),
    (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 200),
    (b"Transfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 1000),
    (b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 1000),
], ids=["small", "large", "chunks", "extension", "trailer"])
def test_body_deadline_cannot_be_stretched(strict, head, data):
    with strict.connect() as connection:
        connection.send(POST + head)
        seconds, said = drip(connection, data)
        assert seconds < 35
        assert not said.startswith(b"HTTP/1.1 200"), said


def test_slow_clients_do_not_hold_the_worker(server):
    """One worker without threads: a hundred clients that never finish their head or body cost the next one nothing."""
    running = server("apps.echo")
    running.expect_errors(r"Error handling request")
    connections = []
    for n in range(100):
        connection = running.connect()
        connection.send([b"", b"G", GET, POST + b"Content-Length: 9\r\n\r\nx"][n % 4])
        connections.append(connection)
    assert running.get("/", timeout=8).status == 200
    for connection in connections:
        connection.close()


def test_write_deadline(server):
    """A client that takes nothing is given up, and the iterable is closed."""
    running = server("""
        class Body:
            def __iter__(self):
                return self

            def __next__(self):
                return b"x" * 100000

            def close(self):
                open("closed", "w").close()

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/hello":
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"hello"]
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Body()
    """, *SLOW)
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/endless")
        connection.read_head()
        wait_until(lambda: running.exists("closed"), 40)
        assert running.get("/hello").status == 200


def test_write_deadline_of_a_finished_response(server):
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"x" * 50000000 if environ["PATH_INFO"] == "/large" else b"hello"]
    """, *SLOW)
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request("GET", "/large")
        connection.read_head()
        assert running.get("/hello").status == 200

        def given_up():
            with open("/proc/net/tcp") as f:
                ends = ["%04X" % running.port, "%04X" % connection.local_port]
                return not any(line.split()[1].endswith(ends[0]) and line.split()[2].endswith(ends[1])
                               and line.split()[3] == "01" for line in f.readlines()[1:])
        wait_until(given_up, 40)


def test_a_client_that_reads_slowly_but_steadily_is_served(server):
    """The write deadline is about progress, not about the whole."""
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"x" * 3000000]
    """, *SLOW)
    with wire.Connection(running.address, receive_buffer=65536) as connection:
        connection.send_request()
        response = connection.read_head()
        length = 0
        for piece in connection.body_pieces(response):
            length += len(piece)
            connection_pause(0.02)
        assert length == 3000000


def connection_pause(seconds):
    """How slow this client is; nothing waits for it."""
    time.sleep(seconds)
