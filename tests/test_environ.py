"""The environ as gunicorn builds it: the server's and the peer's names, whom to believe about the scheme, SCRIPT_NAME."""
import itertools
import json
import socket

import pytest

import wire
from harness import run

ECHO = "apps.echo:validated"


def environ(running, target="/", headers=(), **settings):
    with running.connect() as connection:
        response = connection.exchange("GET", target, headers, **settings)
        assert response.status == 200, response
        return json.loads(response.text)["environ"]


def scheme(running, *headers):
    return environ(running, "/", headers)["wsgi.url_scheme"]


@pytest.fixture(scope="module")
def echo(module_server):
    return module_server(ECHO, "--keep-alive", "30")


def test_everything(echo):
    with echo.connect() as connection:
        response = connection.exchange("POST", "/a%20b/c?x=1&y", [("Host", "example.com:81"), ("Content-Type", "text/x"),
                                                                   ("X-More", "1")], b"body")
        seen = json.loads(response.text)
        found = seen["environ"]
        wanted = {
            "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/a b/c", "QUERY_STRING": "x=1&y",
            "RAW_URI": "/a%20b/c?x=1&y", "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(echo.port), "REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": str(connection.local_port),
            "CONTENT_TYPE": "text/x", "CONTENT_LENGTH": "4", "HTTP_HOST": "example.com:81", "HTTP_X_MORE": "1",
            "wsgi.version": [1, 0], "wsgi.url_scheme": "http", "wsgi.multithread": found["wsgi.multithread"],
            "wsgi.multiprocess": False, "wsgi.run_once": False, "wsgi.input_terminated": True,
        }
        assert {key: found.get(key) for key in wanted} == wanted
        assert "gunicorn/" in found["SERVER_SOFTWARE"]
        assert {"wsgi.input", "wsgi.errors", "wsgi.file_wrapper"} <= set(seen["types"])
        assert not {"REMOTE_HOST", "REMOTE_USER", "GATEWAY_INTERFACE", "AUTH_TYPE"} & set(found)
        assert {seen["types"][k] for k in found if k.isupper()} == {"str"}


def test_each_request_has_its_own(server):
    """What an application puts into its environ is gone with the request; what a client sent belongs to it alone."""
    running = server("""
        def app(environ, start_response):
            left = sorted(k for k in environ if k.startswith(("mine", "HTTP_X")))
            environ["mine"] = environ["PATH_INFO"]
            environ.pop("SERVER_NAME")
            environ["wsgi.url_scheme"] = "broken"
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [" ".join(left + [environ["REMOTE_PORT"], environ["PATH_INFO"]]).encode()]
    """, "--keep-alive", "30")
    with running.connect() as one, running.connect() as two:
        for n in range(3):
            assert one.exchange("GET", "/%d" % n, [("X-One", "1")]).text == "HTTP_X_ONE %d /%d" % (one.local_port, n)
            assert two.exchange("GET", "/%d" % n).text == "%d /%d" % (two.local_port, n)
            assert one.exchange("GET", "/%d" % n, [("X-Two", "2")]).text == "HTTP_X_TWO %d /%d" % (one.local_port, n)


def test_each_client_has_its_address(echo):
    """Two clients at once, from different addresses."""
    with echo.connect() as one, socket.create_connection(echo.address, 20, ("127.0.0.2", 0)) as raw:
        assert json.loads(one.exchange().text)["environ"]["REMOTE_ADDR"] == "127.0.0.1"
        raw.sendall(wire.request_bytes(headers=[("Connection", "close")]))
        with raw.makefile("rb") as answer:
            two = answer.read().partition(b"\r\n\r\n")[2]
        assert json.loads(one.exchange().text)["environ"]["REMOTE_ADDR"] == "127.0.0.1"
        assert json.loads(two)["environ"]["REMOTE_ADDR"] == "127.0.0.2"


def test_values_of_one_connection_do_not_stick(echo):
    with echo.connect() as connection:
        first = json.loads(connection.exchange("POST", "/?q", [("Content-Type", "a/b"), ("Cookie", "c=1")], b"x").text)
        assert first["environ"]["HTTP_COOKIE"] == "c=1"
        second = json.loads(connection.exchange("GET", "/").text)["environ"]
        assert not {"CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_COOKIE"} & set(second)
        assert second["QUERY_STRING"] == ""
        third = json.loads(connection.exchange("GET", "/", [("Cookie", "c=2")]).text)["environ"]
        assert third["HTTP_COOKIE"] == "c=2"


def test_many_different_names(echo):
    """Names nobody knows are cached somewhere: more of them than any cache holds."""
    with echo.connect() as connection:
        for n in range(0, 2000, 50):
            found = json.loads(connection.exchange("GET", "/", [("X-%d" % m, str(m)) for m in range(n, n + 50)]).text)
            names = {k: v for k, v in found["environ"].items() if k.startswith("HTTP_X_")}
            assert names == {"HTTP_X_%d" % m: str(m) for m in range(n, n + 50)}


# --- unix sockets ---

@pytest.fixture(scope="module")
def over_unix(module_server, tmp_path_factory):
    return module_server(ECHO, bind="unix:%s/web.sock" % tmp_path_factory.mktemp("s"))


def test_unix_peer(over_unix):
    found = environ(over_unix)
    assert found["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in found


@pytest.mark.parametrize("host, name, port", [
    ("example.com:81", "example.com", "81"), ("example.com", "example.com", "80"),
])
def test_unix_server_name_is_the_hosts(over_unix, host, name, port):
    found = environ(over_unix, "/", [("Host", host)])
    assert (found["SERVER_NAME"], found["SERVER_PORT"]) == (name, port)


def test_unix_without_host(over_unix):
    found = environ(over_unix, version="HTTP/1.0")
    assert isinstance(found["SERVER_NAME"], str) and isinstance(found["SERVER_PORT"], str)


def test_unix_peers_are_believed(over_unix, server, tmp_path):
    """As gunicorn documents: forwarded_allow_ips does not apply to them."""
    assert scheme(over_unix, ("X-Forwarded-Proto", "https")) == "https"
    running = server(ECHO, bind="unix:%s/s" % tmp_path, env={"FORWARDED_ALLOW_IPS": "192.0.2.1"})
    assert scheme(running, ("X-Forwarded-Proto", "https")) == "https"


# --- the scheme ---

@pytest.mark.parametrize("name, value, wanted", [
    ("X-Forwarded-Proto", "https", "https"), ("X-Forwarded-Proto", "http", "http"), ("X-Forwarded-Proto", "HTTPS", "http"),
    ("X-Forwarded-Proto", "ftp", "http"), ("X-Forwarded-Proto", "", "http"), ("X-Forwarded-Protocol", "ssl", "https"),
    ("X-Forwarded-Protocol", "https", "http"), ("X-Forwarded-Ssl", "on", "https"), ("X-Forwarded-Ssl", "off", "http"),
    ("x-forwarded-proto", "https", "https"), ("X_Forwarded_Proto", "https", "http"), ("Forwarded", "proto=https", "http"),
])
def test_scheme_from_the_local_proxy(echo, name, value, wanted):
    """The loopback peer is trusted by default."""
    assert scheme(echo, (name, value)) == wanted


def test_scheme_headers_that_agree(echo):
    assert scheme(echo, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "on")) == "https"


def test_scheme_headers_that_contradict(echo):
    with echo.connect() as connection:
        response = connection.exchange("GET", "/", [("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "off")])
        assert response.status == 400 and response.closing
        connection.expect_eof()


@pytest.mark.parametrize("allowed, believed", [
    ("127.0.0.1", True), ("192.0.2.1,127.0.0.1", True), ("192.0.2.1, 127.0.0.1", True), ("127.0.0.0/8", True), ("*", True),
    ("192.0.2.1", False), ("10.0.0.0/8", False), ("", False), ("::1", False),
])
def test_who_is_believed(server, allowed, believed):
    running = server(ECHO, env={"FORWARDED_ALLOW_IPS": allowed})
    assert scheme(running, ("X-Forwarded-Proto", "https")) == ("https" if believed else "http")
    if not believed:
        headers = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "off")]
        assert environ(running, "/", headers)["HTTP_X_FORWARDED_SSL"] == "off"


def test_bad_list_of_peers():
    done = run("-b", "127.0.0.1:0", ECHO, env={"FORWARDED_ALLOW_IPS": "not-an-address"})
    assert done.returncode in (1, 2)
    assert "not-an-address" in done.stderr


def test_forwarded_for_is_not_the_peer(echo):
    found = environ(echo, "/", [("X-Forwarded-For", "192.0.2.7"), ("X-Real-Ip", "192.0.2.8")])
    assert found["REMOTE_ADDR"] == "127.0.0.1"
    assert found["HTTP_X_FORWARDED_FOR"] == "192.0.2.7"


def test_scheme_of_one_request_does_not_stick(echo):
    with echo.connect() as connection:
        for value, wanted in (("https", "https"), (None, "http"), ("https", "https"), ("http", "http")):
            headers = [("X-Forwarded-Proto", value)] if value else []
            assert json.loads(connection.exchange("GET", "/", headers).text)["environ"]["wsgi.url_scheme"] == wanted


# --- SCRIPT_NAME ---

@pytest.fixture(scope="module")
def mounted(module_server):
    running = module_server(ECHO, env={"SCRIPT_NAME": "/mount"})
    running.expect_errors(r"SCRIPT_NAME", r"Error handling request")
    return running


@pytest.mark.parametrize("target, path", [("/mount/page?q", "/page"), ("/mount", ""), ("/mount/", "/"),
                                          ("/mount/mount/x", "/mount/x"), ("/mount/%2Fx", "//x")])
def test_script_name_from_the_environment(mounted, target, path):
    found = environ(mounted, target)
    assert (found["SCRIPT_NAME"], found["PATH_INFO"], found["RAW_URI"]) == ("/mount", path, target)


def test_path_outside_of_script_name(mounted):
    response = mounted.get("/elsewhere")
    assert response.status in (400, 500)
    assert environ(mounted, "/mount/page")["PATH_INFO"] == "/page"


def test_script_name_from_a_trusted_peer(server):
    running = server(ECHO, env={"FORWARDED_ALLOW_IPS": "127.0.0.1"})
    found = environ(running, "/app/page", [("SCRIPT_NAME", "/app")])
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/app", "/page")
    assert environ(running, "/app/page")["SCRIPT_NAME"] == ""


@pytest.mark.parametrize("name", ["Script-Name", "SCRIPT-NAME", "script-name"])
def test_script_name_with_a_dash_is_a_clients(server, name):
    """Nginx keeps names with an underscore from clients, and passes this one on: by it a client would choose which part of the
    path the application sees, past whatever the proxy has allowed."""
    running = server(ECHO)
    found = environ(running, "/open/admin", [(name, "/open")])
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("", "/open/admin")
    for fields in ([(name, "/evil"), ("SCRIPT_NAME", "/open")], [("SCRIPT_NAME", "/open"), (name, "/evil")]):
        found = environ(running, "/open/page", fields)
        assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/open", "/page")


def test_two_script_names_are_none(server):
    running = server(ECHO)
    running.expect_errors(r"SCRIPT_NAME", r"Error handling request")
    assert running.get("/open/page", [("SCRIPT_NAME", "/open"), ("SCRIPT_NAME", "/evil")]).status == 500


def test_script_name_from_a_stranger(server):
    running = server(ECHO, env={"FORWARDED_ALLOW_IPS": "192.0.2.1"})
    found = environ(running, "/app/page", [("SCRIPT_NAME", "/app"), ("PATH_INFO", "/evil")])
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("", "/app/page")
    assert not {"HTTP_SCRIPT_NAME", "HTTP_PATH_INFO"} & set(found)


@pytest.mark.parametrize("options, kept", [
    (["--forwarder-headers", "SCRIPT_NAME,REMOTE_USER"], "proxy"),
    (["--forwarder-headers", "*"], "proxy"),
    (["--forwarder-headers", "REMOTE_USER", "--header-map", "dangerous"], "proxy"),
    (["--forwarder-headers", "REMOTE_USER", "--header-map", "refuse"], None),
    (["--forwarder-headers", "REMOTE_USER", "--header-map", "dangerous", "--forwarded-allow-ips", "192.0.2.1"], "client,proxy"),
    (["--header-map", "dangerous"], "client,proxy"),
], ids=str)
def test_a_name_with_a_dash_does_not_replace_the_forwarders(server, options, kept):
    """Nginx sets REMOTE_USER and passes Remote-User on, which has the same environ key: in no order may it count instead."""
    running = server(ECHO, *options)
    fields = [("REMOTE_USER", "proxy"), ("Remote-User", "client"), ("X-Other", "1")]
    for order in itertools.permutations(fields):
        with running.connect() as connection:
            response = connection.exchange("GET", "/", order)
        assert response.status == (200 if kept else 400), order
        if kept:
            assert json.loads(response.text)["environ"]["HTTP_REMOTE_USER"] == kept, order


def test_a_forwarder_that_says_nothing_leaves_no_place_for_a_client(server):
    running = server(ECHO, "--forwarder-headers", "REMOTE_USER,SCRIPT_NAME")
    assert not {"HTTP_REMOTE_USER", "HTTP_SCRIPT_NAME"} & set(environ(running, "/", [("Remote-User", "a"), ("Script-Name", "/")]))


@pytest.mark.parametrize("options", [["--forwarder-headers", "*"], ["--header-map", "dangerous"]], ids=str)
def test_the_scheme_has_one_spelling(server, options):
    running = server(ECHO, *options)
    for first, second in itertools.permutations([("X-Forwarded-Proto", "https"), ("X_Forwarded_Proto", "http")]):
        found = environ(running, "/", [first, second])
        assert (found["wsgi.url_scheme"], found["HTTP_X_FORWARDED_PROTO"]) == ("https", "https")
    assert environ(running, "/", [("X_Forwarded_Proto", "https")])["wsgi.url_scheme"] == "http"


def test_path_info_header_is_not_the_path(server):
    running = server(ECHO, env={"FORWARDED_ALLOW_IPS": "127.0.0.1"})
    assert environ(running, "/page", [("PATH_INFO", "/evil")])["PATH_INFO"] == "/page"


# --- flags ---

@pytest.mark.parametrize("options, multithread, multiprocess", [
    (["-w", "1"], False, False), (["-w", "2"], False, True), (["-w", "1", "--threads", "2"], True, False),
    (["-w", "2", "--threads", "2"], True, True),
])
def test_flags_tell_the_configuration(server, options, multithread, multiprocess):
    found = environ(server(ECHO, *options))
    assert (found["wsgi.multithread"], found["wsgi.multiprocess"]) == (multithread, multiprocess)


def test_raw_env_reaches_the_application(server):
    """A setting of gunicorn.conf.py, as deployments use it."""
    running = server("""
        import os
        value = os.environ.get("FROM_CONFIG", "none")

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [value.encode()]
    """, config="raw_env = ['FROM_CONFIG=yes=1']\n")
    assert running.get("/").text == "yes=1"


def test_two_listeners_have_their_own_port(server):
    running = server(ECHO, "-b", "127.0.0.1:0", "-b", "127.0.0.1:0")
    for address in running.addresses:
        with wire.Connection(address) as connection:
            assert json.loads(connection.exchange().text)["environ"]["SERVER_PORT"] == str(address[1])
