"""The PROXY protocol, versions 1 and 2: by raw clients in the place of the proxy, and by a real Nginx."""
import glob
import itertools
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import time

import pytest

import nginx
import wire
from crowd import Crowd, wait_ready
from harness import run, wait_until

ECHO = "apps.echo"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.9 40000 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = {"REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "40000", "PROXY_PROTOCOL": "TCP4", "PROXY_ADDR": "198.51.100.9",
          "PROXY_PORT": "443"}
NAMES = ("PROXY_PROTOCOL", "PROXY_ADDR", "PROXY_PORT")


def v2(client="192.0.2.7", proxy="198.51.100.9", ports=(40000, 443), command=1, family=None, more=b""):
    kind = socket.AF_INET6 if ":" in client else socket.AF_INET
    block = socket.inet_pton(kind, client) + socket.inet_pton(kind, proxy) + struct.pack("!HH", *ports) + more
    family = family if family is not None else 0x21 if ":" in client else 0x11
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(block)) + block


def environ(response):
    assert response.status == 200, response
    return json.loads(response.text)["environ"]


def introduced(running, header, *segments):
    """What the application is told of a connection that begins with `header`."""
    with running.connect() as connection:
        connection.send(header, *segments)
        return environ(connection.exchange())


def part(found, wanted=CLIENT):
    return {name: found.get(name) for name in wanted}


@pytest.fixture(scope="module")
def auto(module_server):
    return module_server(ECHO, "--proxy-protocol", "--keep-alive", "30", "--access-logfile", "-")


@pytest.mark.parametrize("header", [V1, v2(), v2(more=b"\x04\0\x03abc")], ids=["v1", "v2", "v2 with a TLV"])
def test_the_client_is_the_one_that_is_named(auto, header):
    found = introduced(auto, header)
    assert part(found) == CLIENT
    assert found["SERVER_PORT"] == str(auto.port)


def test_ipv6(auto):
    wanted = {"REMOTE_ADDR": "2001:db8::7", "REMOTE_PORT": "1", "PROXY_PROTOCOL": "TCP6", "PROXY_ADDR": "::1", "PROXY_PORT": "2"}
    for header in (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", v2("2001:db8::7", "::1", (1, 2))):
        assert part(introduced(auto, header), wanted) == wanted


@pytest.mark.parametrize("header", [
    b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 whatever 1\r\n", v2(command=0), v2(family=0), SIGNATURE + b"\x20\0\0\0",
    SIGNATURE + b"\x21\x31" + struct.pack("!H", 216) + b"/run/client.sock".ljust(216, b"\0"),
], ids=["v1 UNKNOWN", "v1 UNKNOWN with more", "v2 LOCAL", "v2 UNSPEC", "v2 LOCAL, nothing", "v2 AF_UNIX"])
def test_a_connection_that_speaks_for_itself(auto, header):
    """A health check of the proxy's own, a client without an address: REMOTE_ADDR is the peer's, and a str."""
    with auto.connect() as connection:
        connection.send(header)
        found = environ(connection.exchange())
        assert (found["REMOTE_ADDR"], found["REMOTE_PORT"]) == ("127.0.0.1", str(connection.local_port))
        assert not set(NAMES) & set(found)


def test_every_request_of_the_connection_has_it(auto):
    """Also those whose fields differ, and the one that came right behind the header."""
    with auto.connect() as connection:
        connection.send(V1 + wire.request_bytes() + wire.request_bytes("GET", "/again"))
        for _ in range(2):
            assert part(environ(connection.read_response())) == CLIENT
        for n in range(4):
            assert part(environ(connection.exchange("GET", "/%d" % n, [("X-N", str(n // 2))]))) == CLIENT


def test_it_comes_once(auto):
    with auto.connect() as connection:
        connection.send(V1)
        assert connection.exchange().status == 200
        connection.send(V1 + wire.request_bytes())
        assert connection.read_response().status == 400
        connection.expect_eof()


@pytest.mark.parametrize("header", [V1, v2()], ids=["v1", "v2"])
def test_any_segmentation(auto, header):
    data = header + wire.request_bytes()
    assert part(introduced(auto, b"", *(header[i:i + 1] for i in range(len(header))))) == CLIENT
    for cut in range(1, len(header) + 3, 5):
        with auto.connect() as connection:
            connection.send(data[:cut], data[cut:])
            assert part(environ(connection.read_response())) == CLIENT


@pytest.mark.parametrize("data", [
    wire.request_bytes(), b"\r\n" + wire.request_bytes(), V1.replace(b"TCP4", b"TCP5"), V1.replace(b"\r\n", b"\n"),
    V1.replace(b"40000", b"+4000"), V1.replace(b"40000", b"040000"), V1.replace(b" 443", b""), V1.replace(b"192", b"392"),
    b"PROXY UNKNOWN " + b"x" * 200, v2(command=2), v2(family=0x12), v2(family=0x44), SIGNATURE + b"\x31\x11\0\0",
    SIGNATURE + b"\x21\x11\0\x0b" + b"x" * 11, SIGNATURE + b"\x21\x11\xff\xff", b"\x16\x03\x01\x02\0\x01\0",
], ids=["none", "none, empty line", "family", "LF", "port with a sign", "port with a zero", "no port", "address", "endless",
        "command", "UDP", "v2 family", "version 3", "short", "long", "TLS"])
def test_without_a_good_header_nothing_is_served(auto, data):
    """"The receiver must not try to guess": what is missing, or not exactly as specified, is refused."""
    with auto.connect() as connection:
        connection.send(data)
        response = connection.read_response()
        assert response.status == 400 and response.closing
        connection.expect_eof()


def test_it_is_in_the_logs(auto):
    with auto.connect() as connection:
        connection.send(V1 + b"GET /in-the-log HTTP/1.1\r\n\r\n" + b"BAD\r\n\r\n")
        assert connection.read_response().status == 200
        assert connection.read_response().status == 400
    wait_until(lambda: "/in-the-log" in auto.stdout())
    lines = auto.stdout().splitlines()
    assert [line for line in lines if "/in-the-log" in line][0].startswith("192.0.2.7 ")
    auto.wait_log("Invalid request from ip=192.0.2.7: ")
    with auto.connect() as connection:
        connection.send(wire.request_bytes())
        connection.read_response()
    auto.wait_log("Invalid request from ip=127.0.0.1: Invalid or missing PROXY protocol header")


# --- which version, from whom ---

@pytest.mark.parametrize("options, config, one, two", [
    (["--proxy-protocol", "v1"], "", 200, 400), (["--proxy-protocol=v2"], "", 400, 200), (["--proxy-protocol", "auto"], "", 200, 200),
    ([], "proxy_protocol = True\n", 200, 200), ([], "proxy_protocol = 'v1'\n", 200, 400), ([], "proxy_protocol = False\n", 400, 400),
    ([], "", 400, 400), (["--proxy-protocol", "off"], "proxy_protocol = True\n", 400, 400),
], ids=["v1", "v2", "auto", "True", "file", "False", "default", "off"])
def test_the_version_that_was_chosen(server, options, config, one, two):
    running = server(ECHO, *options, config=config)
    for header, status in ((V1, one), (v2(), two)):
        with running.connect() as connection:
            connection.send(header + wire.request_bytes())
            assert connection.read_response().status == status
    # Without one it is served where none is asked for.
    with running.connect() as connection:
        assert connection.exchange().status == (200 if (one, two) == (400, 400) else 400)


@pytest.mark.parametrize("allowed, due", [
    ("127.0.0.1", True), ("10.0.0.1,127.0.0.0/8", True), ("*", True), ("10.0.0.0/8", False), ("::1", False),
])
def test_who_must_send_it_and_who_must_not(server, allowed, due):
    running = server(ECHO, "--proxy-protocol", "--proxy-allow-from", allowed)
    for header in (V1, v2()):
        with running.connect() as connection:
            connection.send(header + wire.request_bytes())
            response = connection.read_response()
            assert response.status == (200 if due else 403)
            if due:
                assert part(environ(response)) == CLIENT
    with running.connect() as connection:
        response = connection.exchange()
        assert response.status == (400 if due else 200)
        if not due:
            assert environ(response)["REMOTE_ADDR"] == "127.0.0.1"


def test_a_method_of_that_name_is_no_header(server):
    running = server(ECHO, "--proxy-protocol", "--proxy-allow-from", "10.0.0.1")
    assert environ(running.request("PROXY", "/"))["REQUEST_METHOD"] == "PROXY"


FORWARDED = [("X-Forwarded-Proto", "https"), ("SCRIPT_NAME", "/mount"), ("REMOTE_USER", "root")]


def believed(response):
    """Whether what the fields of FORWARDED say has been taken for the truth; all of it, or nothing."""
    found = environ(response)
    seen = (found["wsgi.url_scheme"], found["SCRIPT_NAME"], found.get("HTTP_REMOTE_USER"))
    assert seen in (("https", "/mount", "root"), ("http", "", None)), seen
    return found["SCRIPT_NAME"] != ""


def ask(connection):
    return believed(connection.exchange("GET", "/mount/page", FORWARDED))


TRUST = ("--proxy-protocol", "--forwarder-headers", "SCRIPT_NAME,REMOTE_USER", "--forwarded-allow-ips")


@pytest.mark.parametrize("trusted, named, itself", [
    ("127.0.0.1", False, True), ("192.0.2.7", True, False), ("*", True, True), ("127.0.0.1,192.0.2.0/24", True, True),
])
def test_trust_is_about_the_client_that_is_named(server, trusted, named, itself):
    """A balancer of connections passes on what its client sends: the fields are the client's words, not the balancer's."""
    running = server(ECHO, *TRUST, trusted, "--keep-alive", "30")
    for header, wanted in [(V1, named), (v2(), named), (v2(command=0), itself)]:
        with running.connect() as connection:
            connection.send(header)
            assert [ask(connection) for _ in range(3)] == [wanted] * 3, header


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(family=0), SIGNATURE + b"\x21\x31" + struct.pack("!H", 216) + bytes(216)],
                         ids=["v1 UNKNOWN", "v2 UNSPEC", "v2 AF_UNIX"])
def test_a_client_without_a_name_is_not_the_balancer(server, header):
    running = server(ECHO, *TRUST, "127.0.0.1", "--keep-alive", "30")
    with running.connect() as connection:
        connection.send(header)
        assert not ask(connection) and not ask(connection)


def test_a_client_of_a_balancer_on_a_unix_socket_is_not_the_balancer(server, tmp_path):
    running = server(ECHO, *TRUST, "127.0.0.1", bind="unix:%s/s" % tmp_path)
    with running.connect() as connection:
        connection.send(V1)
        assert not ask(connection)


def test_trust_travels_with_the_connection(server):
    running = server(ECHO, *TRUST, "127.0.0.1", "--keep-alive", "60", "--header-timeout", "60")
    headers = [(V1, False), (b"PROXY UNKNOWN\r\n", False), (v2(command=0), True)]
    with Crowd(running, 6) as crowd:
        for connection, (header, wanted) in zip(crowd.connections, headers):
            connection.send(header)
            assert ask(connection) == wanted
        for connection, (header, _) in zip(crowd.connections[3:], headers):
            connection.send(header[:13])
        old = wait_ready(running, 1)
        running.signal(signal.SIGHUP)
        wait_until(lambda: not set(old) & set(running.workers()), 20, running.log)
        for connection, (header, wanted) in zip(crowd.connections[3:], headers):
            connection.send(header[13:])
            assert ask(connection) == wanted, header
        for connection, (header, wanted) in zip(crowd.connections, headers):
            assert ask(connection) == wanted, header


def test_when_a_request_began_is_a_clients_word_too(server):
    """X-Request-Start decides how long a request has waited (queue_timeout)."""
    running = server(ECHO, *TRUST, "127.0.0.1", "--queue-timeout", "5")
    long_ago = [("X-Request-Start", "t=%.3f" % (time.time() - 60))]
    for header, status in [(V1, 200), (v2(command=0), 503)]:
        with running.connect() as connection:
            connection.send(header)
            assert connection.exchange("GET", "/", long_ago).status == status


def test_over_a_unix_socket(server, tmp_path):
    """Who may open it may introduce; REMOTE_PORT is there with the address."""
    running = server(ECHO, "--proxy-protocol", "--proxy-allow-from", "10.0.0.1", bind="unix:%s/s" % tmp_path)
    assert part(introduced(running, V1)) == CLIENT


@pytest.mark.parametrize("arguments, words", [
    (["--proxy-protocol", "v3"], "--proxy-protocol: 'v3' is not one of: off, v1, v2, auto"),
    (["--proxy-protocol", "--proxy-allow-from", "proxy.example"], "--proxy-allow-from: 'proxy.example' is not an IP address"),
    (["--proxy-protocol", "--proxy-allow-from", "10.0.0.1/8"], "--proxy-allow-from: '10.0.0.1/8' is neither"),
])
def test_bad_values(arguments, words):
    done = run("-b", "127.0.0.1:0", *arguments, ECHO)
    assert done.returncode == 2 and words in done.stderr


# --- time ---

@pytest.mark.parametrize("begin", [b"", V1[:20], v2()[:14], V1, V1 + b"GET / HTTP/1.1\r\nHost: t"],
                         ids=["nothing", "in v1", "in v2", "nothing behind it", "in the head"])
def test_the_header_has_the_time_of_a_head(server, begin):
    running = server(ECHO, "--proxy-protocol", "--header-timeout", "1")
    with running.connect() as connection:
        connection.send(begin)
        said = connection.expect_closed()
        assert said.startswith(b"HTTP/1.1 408") if begin.endswith(b"t") else said == b""


def test_its_time_cannot_be_stretched(server):
    """An octet now and then, of a header of the greatest length: the connection ends by its first deadline."""
    running = server(ECHO, "--proxy-protocol", "--header-timeout", "1")
    data = SIGNATURE + b"\x21\x11\x10\0" + b"x" * 4096
    with running.connect() as connection:
        for octet in (data[i:i + 1] for i in range(len(data))):
            if connection.readable(0.05):
                break
            connection.send(octet)
        else:
            pytest.fail("it was never closed")
        assert connection.expect_closed() == b""


# --- hooks, workers, TLS ---

def test_hooks_are_told(server):
    running = server(ECHO, "--proxy-protocol", "auto", config="""
        import json

        def pre_request(worker, req):
            with open("facts", "a") as f:
                f.write(json.dumps([req.proxy_protocol_info, req.remote_addr, req.peer_addr]) + "\\n")
    """)
    with running.connect() as connection:
        connection.send(V1)
        assert connection.exchange().status == connection.exchange().status == 200
        peer = ["127.0.0.1", connection.local_port]
    with running.connect() as connection:
        connection.send(v2(command=0))
        assert connection.exchange().status == 200
        local = ["127.0.0.1", connection.local_port]
    info = {"proxy_protocol": "TCP4", "client_addr": "192.0.2.7", "client_port": 40000, "proxy_addr": "198.51.100.9",
            "proxy_port": 443}
    facts = [json.loads(line) for line in running.read("facts").splitlines()]
    assert facts == [[info, ["192.0.2.7", 40000], peer]] * 2 + [[None, local, local]]


def test_it_travels_with_the_connection(server):
    """Kept-alive connections, introduced or only half so, go on in the workers of a reload."""
    running = server(ECHO, "-w", "2", "--proxy-protocol", "--keep-alive", "60", "--header-timeout", "60")
    old = wait_ready(running, 2)
    with Crowd(running, 9) as crowd:
        known, half, silent = crowd.connections[:3], crowd.connections[3:6], crowd.connections[6:]
        for connection in known:
            connection.send(V1)
            assert part(environ(connection.exchange())) == CLIENT
        for connection, header in zip(half, (V1, v2(), v2())):
            connection.send(header[:13])
        for turn in range(2):
            running.signal(signal.SIGHUP)
            wait_until(lambda: not set(old) & set(running.workers()), 20, running.log)
            old = wait_ready(running, 2)
            for connection in known:
                assert part(environ(connection.exchange("GET", "/", [("X-Turn", str(turn))]))) == CLIENT
        for connection, header in zip(half, (V1, v2(), v2())):
            connection.send(header[13:])
            assert part(environ(connection.exchange())) == CLIENT
        for connection in silent:
            connection.send(wire.request_bytes())
            assert connection.read_response().status == 400


def test_a_busy_worker_passes_them_on(server):
    running = server("apps.tail", "-w", "2", "--proxy-protocol", "--keep-alive", "60", "--access-logfile", "access")
    wait_ready(running, 2)
    with Crowd(running, 8) as crowd:
        for connection in crowd.connections:
            connection.send(V1)
        crowd.spread(2)
        first = crowd.connections[0]
        first.send_request("GET", "/wait?held")
        wait_until(lambda: running.exists("inside-held"), 20, running.log)
        for connection in crowd.connections[1:]:
            assert connection.exchange("GET", "/passed").status == 200
        running.touch("go")
        assert first.read_response().status == 200
    wait_until(lambda: running.read("access").count("/passed") == 7)
    assert {line.split()[0] for line in running.read("access").splitlines()} == {"192.0.2.7"}


def test_the_time_out_names_the_client(server):
    running = server("""
        import time

        def app(environ, start_response):
            time.sleep(60)
    """, "--proxy-protocol", "--timeout", "1")
    running.expect_errors()
    with running.connect() as connection:
        connection.send(V1 + wire.request_bytes())
        assert connection.read_response().status == 504
    running.wait_log(r"GET / from ip=192\.0\.2\.7 has been running")


def test_a_crash_leaves_nobody_under_a_wrong_name(server):
    """What a worker has learnt of its connections dies with it: they end, rather than go on as the balancer's own."""
    running = server("""
        import os, signal

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [environ["REMOTE_ADDR"].encode()]
    """, "-w", "2", "--proxy-protocol", "--keep-alive", "60", "--header-timeout", "60")
    running.expect_errors()
    wait_ready(running, 2)
    with Crowd(running, 8) as crowd:
        known, silent = crowd.connections[:6], crowd.connections[6:]
        for connection in known:
            connection.send(V1)
            assert connection.exchange().text == "192.0.2.7"
        for _ in range(4):
            with running.connect() as killer:
                killer.send(V1 + wire.request_bytes("GET", "/crash"))
                killer.expect_closed()
        for connection in known + silent:
            try:
                connection.send(wire.request_bytes())
            except OSError:
                continue  # It has been closed.
            if connection in silent:
                said = connection.expect_closed()
                assert said == b"" or re.match(rb"HTTP/1.1 (400|500|503) ", said), said
                continue
            try:
                response = connection.read_response()
            except wire.ProtocolError as error:
                assert "the stream ended inside a line: b''" in str(error) or "reset; before it: b''" in str(error)
                continue
            assert response.text == "192.0.2.7" or response.status in (500, 503), response


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tls"))
    files = os.path.join(folder, "site.crt"), os.path.join(folder, "site.key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                    "-subj", "/CN=site", "-addext", "subjectAltName=DNS:localhost", "-keyout", files[1], "-out", files[0]],
                   check=True, capture_output=True)
    return files


def test_it_comes_before_tls(server, certificate):
    running = server(ECHO, "--proxy-protocol", "--certfile", certificate[0], "--keyfile", certificate[1], "--keep-alive", "30")
    context = ssl.create_default_context(cafile=certificate[0])
    for header in (V1, v2(), v2(more=b"\x04\0\x00")):
        with running.connect() as connection:
            connection.send(header[:9], header[9:])
            connection.sock = context.wrap_socket(connection.sock, server_hostname="localhost")
            for _ in range(2):
                found = environ(connection.exchange("GET", "/a", [("SCRIPT_NAME", "/a"), ("X-Forwarded-Proto", "http")]))
                assert part(found) == CLIENT and (found["wsgi.url_scheme"], found["SCRIPT_NAME"]) == ("https", "")
    # A handshake at once is no header: nothing is served, and the log says to whom.
    with running.connect() as connection, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(connection.sock, server_hostname="localhost")
    running.wait_log("Invalid request from ip=127.0.0.1: Invalid or missing PROXY protocol header")


# --- a real proxy ---

MODULES = [path for folder in ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
           for path in glob.glob(folder + "/ngx_stream_module.so")]


@pytest.fixture
def stream(tmp_path):
    """Nginx as a balancer of connections, which introduces its clients to `upstream` in version 1."""
    nginx.require()
    if not MODULES:
        message = "Nginx has no stream module"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    started = []
    numbers = itertools.count()

    def start(upstream):
        directory = tmp_path / ("nginx%d" % next(numbers))
        directory.mkdir()

        def config(port):
            return """
                %s
                load_module %s;
                worker_processes 1;
                daemon off;
                pid nginx.pid;
                error_log error.log info;
                events { worker_connections 512; }
                stream { server { listen 127.0.0.1:%d; proxy_pass %s; proxy_protocol on; } }
            """ % ("user root;" if os.getuid() == 0 else "", MODULES[0], port, upstream)
        started.append(nginx.Nginx(directory, config))
        return started[-1]
    yield start
    for front in started:
        front.finish()


def test_nginx_introduces_its_clients(server, stream, tmp_path):
    """Over TCP and over a unix socket. Nginx itself is at 127.0.0.1, its clients come from elsewhere."""
    for bind, upstream in (("127.0.0.1:0", "127.0.0.1:%d"), ("unix:%s/s" % tmp_path, "unix:%s/s" % tmp_path)):
        running = server(ECHO, "--proxy-protocol", "v1", "--keep-alive", "30", bind=bind)
        front = stream(upstream % running.port if "%d" in upstream else upstream)
        for source in ("127.0.0.2", "127.0.0.3"):
            with wire.Connection(front.address, source=source) as connection:
                for _ in range(3):
                    found = environ(connection.exchange())
                    assert (found["REMOTE_ADDR"], found["REMOTE_PORT"]) == (source, str(connection.local_port))
                    assert (found["PROXY_ADDR"], found["PROXY_PORT"]) == ("127.0.0.1", str(front.port))
