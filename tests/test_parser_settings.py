"""What is taken for a request, and whom it is believed: each setting, off and on, on a running server."""
import json

import pytest

import wire
from harness import run

ECHO = "apps.echo"


def answer(running, data):
    with running.connect() as connection:
        connection.send(data)
        return connection.read_response(data.split(b" ")[0].decode("latin-1").upper())


def environ(response):
    assert response.status == 200, response
    return json.loads(response.text)["environ"]


def head(*lines, start=b"GET / HTTP/1.1"):
    return b"\r\n".join([start, b"Host: test", *lines, b"", b""])


@pytest.fixture(scope="module")
def strict(module_server):
    return module_server(ECHO, "--keep-alive", "30")


@pytest.fixture(scope="module")
def lenient(module_server):
    return module_server(ECHO, "--permit-obsolete-folding", "--strip-header-spaces", "--permit-unconventional-http-method",
                         "--permit-unconventional-http-version", "--keep-alive", "30")


# --- permit_obsolete_folding, strip_header_spaces ---

@pytest.mark.parametrize("line, value", [
    (b"X: a\r\n b", "a b"), (b"X: a \t\r\n\t b\r\n c", "a b c"), (b"X: a  b\r\n \r\n  c", "a  b  c"), (b"X:\r\n a", "a"),
    (b"X : a", "a"), (b"X \t : a", "a"), (b"X : a\r\n b", "a b"),
])
def test_permit_obsolete_folding_and_strip_header_spaces(strict, lenient, line, value):
    data = head(b"Before: 1", line, b"After: 2")
    assert answer(strict, data).status == 400
    found = environ(answer(lenient, data))
    assert (found["HTTP_BEFORE"], found["HTTP_X"], found["HTTP_AFTER"]) == ("1", value, "2")


@pytest.mark.parametrize("option, accepted, refused", [
    ("permit_obsolete_folding", b"X: a\r\n b", b"X : a"), ("strip_header_spaces", b"X : a", b"X: a\r\n b"),
])
def test_each_is_for_itself_in_a_file(server, option, accepted, refused):
    running = server(ECHO, config="%s = True\n" % option)
    assert answer(running, head(accepted)).status == 200
    assert answer(running, head(refused)).status == 400


@pytest.mark.parametrize("line", [
    b"Content-Length : 5", b"Content-Length\t: 5", b"Transfer-Encoding : chunked", b"Content-Length:\r\n 5",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked\r\n ,gzip", b"Connection : close", b"Connection:\r\n close",
    b"Expect : 100-continue", b"Trailer : x", b"Upgrade : x",
])
def test_no_leniency_about_framing(lenient, line):
    """What another server might read as a length, or not, is refused, and with it all that follows."""
    with lenient.connect() as connection:
        connection.send(head(b"X : a", line, start=b"POST / HTTP/1.1") + b"hello" + head(start=b"GET /smuggled HTTP/1.1"))
        response = connection.read_response()
        assert response.status == 400 and response.closing
        connection.expect_eof()


def test_no_leniency_about_host(lenient):
    for data in (b"GET / HTTP/1.1\r\nHost : test\r\n\r\n", b"GET / HTTP/1.1\r\nHost:\r\n test\r\n\r\n"):
        assert answer(lenient, data).status == 400


def test_leniency_keeps_the_body_as_it_is(lenient):
    """What looks like a lenient head inside a body is left alone; the next request is found."""
    body = b"get / HTTP/2.0\r\nX : a\r\n b\r\n\r\n"
    with lenient.connect() as connection:
        request = head(b"Y : 1\r\n 2", b"Content-Length: %d" % len(body), start=b"POST / HTTP/1.1") + body
        for data in (request * 2, b"".join(request[i:i + 1] for i in range(len(request))) + request):
            connection.send(data)
            for _ in range(2):
                seen = json.loads(connection.read_response().text)
                assert seen["body"].encode() == body and seen["environ"]["HTTP_Y"] == "1 2"


@pytest.mark.parametrize("cut", range(1, 70, 4))
def test_leniency_and_any_segmentation(lenient, cut):
    data = head(b"A : b\r\n c", b"D: e", start=b"get /p HTTP/2.0")
    with lenient.connect() as connection:
        for _ in range(2):
            connection.send(data[:cut], data[cut:cut + 5], data[cut + 5:])
            found = environ(connection.read_response())
            assert (found["HTTP_A"], found["HTTP_D"], found["PATH_INFO"]) == ("b c", "e", "/p")


def test_limits_hold_for_folded_lines(lenient):
    many = b"X: a" + b"\r\n b" * 2100
    assert answer(lenient, head(many)).status == 431


# --- permit_unconventional_http_method, casefold_http_method ---

@pytest.mark.parametrize("method", ["get", "Get", "#x", "m", "A" * 60])
def test_permit_unconventional_http_method(strict, lenient, method):
    data = head(start=method.encode() + b" / HTTP/1.1")
    assert answer(strict, data).status == 400
    assert environ(answer(lenient, data))["REQUEST_METHOD"] == method


@pytest.mark.parametrize("method", ["G(T", "G\0T", "G,T", "G\u00e9T"])
def test_a_method_is_a_token_all_the_same(lenient, method):
    assert answer(lenient, head(start=method.encode() + b" / HTTP/1.1")).status == 400


def test_casefold_http_method(server):
    """A method that reaches the application is the one by which the response is framed."""
    running = server(ECHO, "--casefold-http-method", "--keep-alive", "30", "--access-logfile", "access")
    assert environ(answer(running, head(start=b"pOsT / HTTP/1.1")))["REQUEST_METHOD"] == "POST"
    assert answer(running, head(start=b"ge#t / HTTP/1.1")).status == 400
    with running.connect() as connection:
        connection.send(head(start=b"head / HTTP/1.1"))
        assert connection.read_response("HEAD").status == 200
        assert connection.exchange().status == 200
        connection.send(b"g", b"e", head(start=b"t /dripped HTTP/1.1"))
        assert environ(connection.read_response())["REQUEST_METHOD"] == "GET"
        connection.send(head(start=b"connect test:80 HTTP/1.1"))
        assert connection.read_response().status == 501


# --- permit_unconventional_http_version ---

@pytest.mark.parametrize("version, served", [("2.0", "HTTP/1.1"), ("1.2", "HTTP/1.1"), ("9.9", "HTTP/1.1"), ("0.9", "HTTP/1.0")])
def test_permit_unconventional_http_version(strict, lenient, version, served):
    data = head(start=b"GET / HTTP/" + version.encode())
    assert answer(strict, data).status in (400, 505)
    response = answer(lenient, data)
    assert environ(response)["SERVER_PROTOCOL"] == served
    # The answer is of the version that is spoken here, and 1.0 does not persist.
    assert response.version == "HTTP/1.1" and response.closing == (served == "HTTP/1.0")


@pytest.mark.parametrize("version", ["HTTP/2", "HTTP/1.10", "http/1.1", "HTTP/x.y", "ICY/1.1", "HTTP/1.1 "])
def test_what_is_no_version_is_refused_all_the_same(lenient, version):
    assert answer(lenient, head(start=b"GET / " + version.encode())).status in (400, 505)


def test_an_old_version_has_no_chunks(lenient):
    data = head(b"Transfer-Encoding: chunked", start=b"POST / HTTP/0.9") + wire.chunked(b"x")
    assert answer(lenient, data).status == 400


# --- settings without effect, and one that is not there ---

@pytest.mark.parametrize("word", ["auto", "python", "fast"])
def test_http_parser_is_accepted(server, word):
    assert environ(server(ECHO, "--http-parser", word).get())["PATH_INFO"] == "/"


def test_uwsgi_allow_ips_is_accepted(server):
    running = server(ECHO, "--uwsgi-allow-from", "10.0.0.1", "--protocol", "http", config="http_parser = 'fast'\n")
    assert environ(running.get())["REMOTE_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("arguments, words", [
    (["--protocol", "uwsgi"], "--protocol: 'uwsgi' is not available yet, use http"),
    (["--protocol", "ftp"], "--protocol: 'ftp' is not one of: http, uwsgi"),
    (["--http-parser", "slow"], "--http-parser: 'slow' is not one of: auto, python, fast"),
    (["--uwsgi-allow-from", "somewhere"], "--uwsgi-allow-from: 'somewhere' is not an IP address"),
    (["--root-path", "shop"], "--root-path: 'shop' is not a path like /shop"),
    (["--header-map", "keep"], "--header-map: 'keep' is not one of: drop, refuse, dangerous"),
])
def test_what_cannot_be_is_refused(arguments, words):
    done = run("-b", "127.0.0.1:0", *arguments, ECHO)
    assert done.returncode == 2 and words in done.stderr, done.stderr


# --- limit_request_* ---

def test_limit_request_line_fields_and_field_size(server):
    running = server(ECHO, "--limit-request-line", "30", "--limit-request-fields", "3", "--limit-request-field_size", "20")
    assert answer(running, head(start=b"GET /" + b"a" * 16 + b" HTTP/1.1")).status == 200
    assert answer(running, head(start=b"GET /" + b"a" * 17 + b" HTTP/1.1")).status == 414
    assert answer(running, head(b"A: 1", b"B: 2")).status == 200
    assert answer(running, head(b"A: 1", b"B: 2", b"C: 3")).status == 431
    assert answer(running, head(b"A: " + b"a" * 15)).status == 200
    assert answer(running, head(b"A: " + b"a" * 16)).status == 431


# --- header_map, forwarder_headers, secure_scheme_headers ---

UNDERSCORED = [("X_Name", "1"), ("Script_Name", "/a"), ("Content_Length", "5"), ("Transfer_Encoding", "chunked")]


@pytest.mark.parametrize("options, names", [
    ([], ["SCRIPT_NAME"]),
    (["--header-map", "dangerous"], ["SCRIPT_NAME", "X_NAME"]),
    (["--forwarder-headers", "X_NAME"], ["X_NAME"]),
    (["--forwarder-headers", "*"], ["SCRIPT_NAME", "X_NAME"]),
    (["--forwarded-allow-ips", "10.0.0.1"], []),
    (["--forwarded-allow-ips", "10.0.0.1", "--forwarder-headers", "*"], []),
    (["--forwarded-allow-ips", "10.0.0.1", "--header-map", "dangerous"], ["SCRIPT_NAME", "X_NAME"]),
    (["--header-map", "refuse"], None),
    (["--header-map", "refuse", "--forwarder-headers", "*"], None),
])
def test_header_map_and_forwarder_headers(server, options, names):
    """Names that could pose as framing fields never reach the application, whoever sends them."""
    running = server(ECHO, *options)
    response = running.get("/a/b", UNDERSCORED)
    if names is None:
        assert response.status == 400
        return
    found = environ(response)
    assert sorted(k[5:] for k in found if k.startswith("HTTP_") and k[5:] not in ("HOST", "CONNECTION")) == names
    # Only what a trusted peer says of the mount point counts.
    trusted = "SCRIPT_NAME" in names and "10.0.0.1" not in options
    assert found["SCRIPT_NAME"] == ("/a" if trusted else "")


def test_secure_scheme_headers(server):
    running = server(ECHO, config="secure_scheme_headers = {'X-Scheme': 'tls'}\n")

    def scheme(*headers):
        return environ(running.get("/", headers))["wsgi.url_scheme"]
    assert scheme(("X-Scheme", "tls")) == "https"
    assert scheme(("X-Scheme", "TLS")) == "http"
    assert scheme(("X-Forwarded-Proto", "https")) == "http"
    assert running.get("/", [("X-Scheme", "tls"), ("X-Scheme", "no")]).status == 400


def test_ipv4_peers_of_a_dual_stack_listener(server):
    """Such a peer looks like ::ffff:127.0.0.1; gunicorn does not know it again."""
    running = server(ECHO, "-b", "[::]:0", "--forwarded-allow-ips", "127.0.0.1")
    with wire.Connection(("127.0.0.1", running.port)) as connection:
        response = connection.exchange("GET", "/", [("X-Forwarded-Proto", "https")])
        assert environ(response)["wsgi.url_scheme"] == "https"


# --- root_path ---

@pytest.fixture(scope="module")
def mounted(module_server):
    return module_server("apps.echo:validated", "--root-path", "/shop/", "--access-logfile", "-", "--access-logformat", "%(U)s %(r)s")


@pytest.mark.parametrize("target, path", [
    ("/shop/page?q", "/page"), ("/shop", ""), ("/shop/", "/"), ("/shop/shop/x", "/shop/x"), ("/shop/a%20b", "/a b"),
    ("/page", "/page"), ("/shopping", "/shopping"), ("/", "/"),
])
def test_root_path(mounted, target, path):
    """It is taken off where the proxy has left it, and not missed where the proxy has taken it off."""
    found = environ(mounted.get(target))
    assert (found["SCRIPT_NAME"], found["PATH_INFO"], found["RAW_URI"]) == ("/shop", path, target)


def test_root_path_on_one_connection(mounted):
    with mounted.connect() as connection:
        for target, path in (("/shop/a", "/a"), ("/b", "/b"), ("/shop/c", "/c")):
            found = environ(connection.exchange("GET", target))
            assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/shop", path)


def test_script_name_comes_before_root_path(server):
    running = server(ECHO, "--root-path", "/shop", env={"SCRIPT_NAME": "/env"})
    running.expect_errors(r"SCRIPT_NAME")
    found = environ(running.get("/env/page"))
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/env", "/page")
    # As in gunicorn, the variable is no guess: a path outside of it is a mistake in the configuration.
    assert running.get("/shop/page").status == 500
    found = environ(running.get("/field/page", [("SCRIPT_NAME", "/field")]))
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/field", "/page")


def test_a_field_comes_before_root_path(server):
    running = server(ECHO, config="root_path = '/shop'\n")
    found = environ(running.get("/field/page", [("SCRIPT_NAME", "/field")]))
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/field", "/page")
    assert environ(running.get("/shop/page"))["PATH_INFO"] == "/page"
