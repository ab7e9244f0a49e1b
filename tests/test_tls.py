"""HTTPS, spoken to by Python's own `ssl`: handshakes, both directions, client certificates, reloads, what is refused."""
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
import warnings

import pytest

import harness
import wire

BIG = 8 * 1024 * 1024


# --- certificates ---

class Authority:
    """A certification authority in a folder, made by the `openssl` command."""

    def __init__(self, folder, name):
        self.folder, self.name = str(folder), name
        self.certificate, self.key = self.path(name + ".crt"), self.path(name + ".key")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                "-subj", "/CN=" + name, "-keyout", self.key, "-out", self.certificate)

    def path(self, name):
        return os.path.join(self.folder, name)

    def issue(self, name, algorithm=("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")):
        """(certificate file, key file), for localhost and 127.0.0.1."""
        certificate, key, request = (self.path(name + ending) for ending in (".crt", ".key", ".csr"))
        extensions = self.path(name + ".ext")
        with open(extensions, "w") as f:
            f.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        openssl("req", "-new", "-newkey", *algorithm, "-nodes", "-subj", "/CN=" + name, "-keyout", key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                "-days", "30", "-extfile", extensions, "-out", certificate)
        return certificate, key


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def site(authority):
    """(certificate file, key file) of the server."""
    return authority.issue("site")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def https(site, *more):
    return ["--certfile", site[0], "--keyfile", site[1], *more]


def client_context(authority, version=None, identity=None):
    context = wire.strict(ssl.create_default_context(cafile=authority.certificate))
    if version:
        context.minimum_version = context.maximum_version = version
    if identity:
        context.load_cert_chain(*identity)
    return context


class Secure(wire.Connection):
    """A `wire.Connection` with TLS on it."""

    def __init__(self, running, context, session=None, receive_buffer=None):
        super().__init__(running.address, receive_buffer=receive_buffer)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost", session=session)
        except BaseException:
            self.sock.close()
            raise


def environ(connection, target="/"):
    return json.loads(connection.exchange("GET", target).body)["environ"]


@pytest.fixture(scope="module")
def echo(module_server, site):
    return module_server("apps.echo:app", *https(site), "--keep-alive", "10")


# --- the handshake ---

@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_and_what_the_application_is_told(echo, authority, version):
    with Secure(echo, client_context(authority, version)) as connection:
        seen = environ(connection)
        assert seen["wsgi.url_scheme"] == "https"
        assert seen["HTTPS"] == "on"
        assert seen["SSL_PROTOCOL"] == connection.sock.version()
        assert seen["SSL_CIPHER"] == connection.sock.cipher()[0]
        assert seen["SSL_CLIENT_VERIFY"] == "NONE"
        assert "SSL_CLIENT_CERT" not in seen


def test_the_log_names_the_scheme(echo):
    assert all(address.startswith("https://127.0.0.1:") for address in echo.listening)


def test_the_older_versions_are_not_spoken(echo, authority):
    context = client_context(authority)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
        except (ValueError, ssl.SSLError):
            pytest.skip("this OpenSSL does not speak them either")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Secure(echo, context)
    assert echo.running()


def test_the_protocol_is_agreed_upon(echo, authority):
    context = client_context(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with Secure(echo, context) as connection:
        assert connection.sock.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_by_every_worker(server, site, authority, version):
    running = server("apps.echo:app", *https(site), "-w", 3)
    running.wait_log("Worker ready", count=3)
    context = client_context(authority, version)
    with Secure(running, context) as connection:
        environ(connection)
        # One of them is good for one connection.
        sessions = [connection.sock.session]
        assert not connection.sock.session_reused
    seen = set()

    def resumed():
        with Secure(running, context, session=sessions.pop()) as connection:
            body = json.loads(connection.exchange().body)
            assert connection.sock.session_reused
            sessions.append(connection.sock.session)
            seen.add(body["pid"])
        return len(seen) > 1
    harness.wait_until(resumed)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_across_a_change_of_keys_and_a_reload(server, site, authority, version, tmp_path):
    """The arbiter changes the keys for all workers at once. The key before still opens, until the next change."""
    planted = tmp_path / "planted"
    planted.mkdir()
    running = server("apps.echo:app", *https(site), "-w", 2, env={"RGUNICORN_DEFECTS": str(planted)})
    running.wait_log("Worker ready", count=2)
    context = client_context(authority, version)

    def use(session=None):
        """The worker, whether the session was resumed, and another session."""
        with Secure(running, context, session=session) as connection:
            pid = json.loads(connection.exchange().body)["pid"]
            return pid, connection.sock.session_reused, connection.sock.session

    def made_by_both():
        """Sessions, some from each worker."""
        found = {}

        def enough():
            pid, _, session = use()
            found.setdefault(pid, []).append(session)
            return len(found) == 2
        harness.wait_until(enough)
        return [session for sessions in found.values() for session in sessions[:4]]

    def resumed(sessions):
        return {use(session)[1] for session in sessions}

    def change():
        (planted / "rotate_tickets").touch()
        running.signal(signal.SIGWINCH)
        harness.wait_until(lambda: not (planted / "rotate_tickets").exists())

    kept, lost = made_by_both(), made_by_both()
    change()
    assert resumed(kept) == {True}
    running.signal(signal.SIGHUP)
    running.wait_log("Worker ready", count=4)
    harness.wait_until(lambda: len(running.workers()) == 2)
    later, last = made_by_both(), made_by_both()
    assert resumed(later) == {True}
    change()
    assert resumed(lost) == {False}
    assert resumed(last) == {True}


def test_a_session_is_not_resumed_where_other_authorities_are_asked_for(server, site, authority, stranger):
    """A session's state holds the client's certificate, which nobody looks at again."""
    config = "certfile, keyfile = %r\ncert_reqs = 2\nca_certs = %%r\n" % (site,)
    running = server("apps.echo:app", config=config % authority.certificate)
    context = client_context(authority, ssl.TLSVersion.TLSv1_2, authority.issue("visitor"))
    with Secure(running, context) as connection:
        environ(connection)
        session = connection.sock.session
    with Secure(running, context, session=session) as connection:
        assert environ(connection)["SSL_CLIENT_VERIFY"] == "SUCCESS"
        assert connection.sock.session_reused
    running.write("gunicorn.conf.py", config % stranger.certificate)
    (worker,) = running.workers()
    running.signal(signal.SIGHUP)
    harness.wait_until(lambda: running.workers() and worker not in running.workers())
    with pytest.raises((ssl.SSLError, wire.ProtocolError, ConnectionError)):
        with Secure(running, context, session=session) as connection:
            environ(connection)


def records(octets):
    """TLS records of a handshake message that begins like this."""
    return b"".join(b"\x16\x03\x01" + struct.pack("!H", len(octets[n:n + 16384])) + octets[n:n + 16384]
                    for n in range(0, len(octets), 16384))


def test_a_hello_without_end_is_refused_and_one_that_is_not_ended_costs_little(server, site, authority):
    running = server("apps.echo:app", *https(site), "--header-timeout", "100")
    worker = running.wait_workers(1)[0]
    with running.connect() as connection:
        # A client's hello of 16 MB.
        connection.send(records(b"\x01\xff\xff\xff" + b"x" * 40000))
        assert connection.expect_closed() == b""
    connections = [running.connect() for _ in range(100)]
    try:
        before = harness.memory_of(worker)
        for connection in connections:
            connection.send(records(b"\x01\x00\xff\xf0" + b"x" * 60000))
        # Who comes last is served last.
        with Secure(running, client_context(authority)) as connection:
            assert connection.exchange().status == 200
        grown = harness.memory_of(worker) - before
        assert grown < 100 * 160, "%d kB for 100 handshakes" % grown
    finally:
        for connection in connections:
            connection.close()


def test_a_slow_handshake_holds_nobody_up(server, site, authority):
    running = server("apps.hello:app", *https(site), "--header-timeout", "2")
    silent, halfway = wire.Connection(running.address), wire.Connection(running.address)
    halfway.send(b"\x16\x03\x01\x02\x00\x01\x00")
    for _ in range(3):
        with Secure(running, client_context(authority)) as connection:
            assert connection.exchange().status == 200
    for waiting in silent, halfway:
        assert waiting.expect_closed() == b""
        waiting.close()


def test_an_rsa_certificate_and_a_chosen_cipher(server, authority):
    site = authority.issue("rsa", ("rsa:2048",))
    chosen = "ECDHE-RSA-AES128-GCM-SHA256:TLS_AES_128_GCM_SHA256"
    running = server("apps.hello:app", *https(site, "--ciphers", chosen))
    for version, cipher in zip([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], chosen.split(":")):
        with Secure(running, client_context(authority, version)) as connection:
            assert connection.sock.cipher()[0] == cipher
            assert connection.exchange().status == 200
    context = client_context(authority, ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-RSA-AES256-GCM-SHA384")
    with pytest.raises(ssl.SSLError):
        Secure(running, context)


def test_certificate_and_key_in_one_file(server, site, authority, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(open(path, "rb").read() for path in site))
    running = server("apps.hello:app", config="certfile = %r\n" % str(both))
    with Secure(running, client_context(authority)) as connection:
        assert connection.exchange().status == 200


# --- requests and responses ---

def test_connections_persist_and_requests_may_come_ahead(echo, authority):
    with Secure(echo, client_context(authority)) as connection:
        for number in range(5):
            assert environ(connection, "/%d" % number)["PATH_INFO"] == "/%d" % number
        requests = [wire.request_bytes("GET", "/ahead%d" % number) for number in range(50)]
        connection.send(b"".join(requests))
        for number in range(50):
            body = json.loads(connection.read_response().body)
            assert body["environ"]["PATH_INFO"] == "/ahead%d" % number


def test_a_request_octet_by_octet(echo, authority):
    with Secure(echo, client_context(authority)) as connection:
        for octet in wire.request_bytes("POST", "/slow", body=b"hello"):
            connection.send(bytes([octet]))
        assert json.loads(connection.read_response().body)["body"] == "hello"


@pytest.mark.parametrize("chunked", [False, True])
def test_big_uploads(echo, authority, chunked):
    body = os.urandom(BIG)
    with Secure(echo, client_context(authority)) as connection:
        if chunked:
            pieces = [body[at:at + 100_000] for at in range(0, BIG, 100_000)]
            connection.send_request("POST", "/", [("Transfer-Encoding", "chunked")], wire.chunked(*pieces))
        else:
            connection.send_request("POST", "/", body=body)
        seen = json.loads(connection.read_response("POST").body)
        assert (seen["length"], seen["sha256"]) == (BIG, hashlib.sha256(body).hexdigest())
        assert environ(connection, "/after")["PATH_INFO"] == "/after"


def test_an_upload_that_nobody_reads(echo, authority):
    with Secure(echo, client_context(authority)) as connection:
        connection.send_request("POST", "/?read=no", body=b"x" * 200_000)
        assert connection.read_response("POST").status == 200


def test_an_upload_that_waits_for_leave(echo, authority):
    with Secure(echo, client_context(authority)) as connection:
        headers = [("Expect", "100-continue"), ("Content-Length", "5")]
        connection.send_request("POST", "/", headers)
        assert connection.read_head("POST").status == 100
        connection.send(b"hello")
        assert json.loads(connection.read_response("POST").body)["body"] == "hello"


DOWNLOADS = """
    import io, os
    SIZE = %d
    def app(environ, start_response):
        path = environ["PATH_INFO"]
        block = bytes(range(256)) * 256
        if path == "/list":
            start_response("200 OK", [("Content-Length", str(SIZE))])
            return [block * (SIZE // len(block))]
        if path == "/generator":
            start_response("200 OK", [])
            return (block for _ in range(SIZE // len(block)))
        if path == "/write":
            write = start_response("200 OK", [])
            for _ in range(SIZE // len(block)):
                write(block)
            return []
        if not os.path.exists("file"):
            with open("file", "wb") as f:
                f.write(block * (SIZE // len(block)))
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return environ["wsgi.file_wrapper"](open("file", "rb"))
""" % BIG


@pytest.fixture(scope="module", params=["1", "4"])
def downloads(request, module_server, site):
    return module_server(DOWNLOADS, *https(site), "--threads", request.param, "--keep-alive", "10")


@pytest.mark.parametrize("path", ["/list", "/generator", "/write", "/file"])
def test_big_downloads(downloads, authority, path):
    with Secure(downloads, client_context(authority), receive_buffer=16_384) as connection:
        for _ in range(2):
            response = connection.exchange("GET", path)
            assert response.body == bytes(range(256)) * (BIG // 256)


@pytest.mark.parametrize("path", ["/list", "/file"])
def test_a_client_that_reads_slowly_holds_no_thread(downloads, authority, path):
    with Secure(downloads, client_context(authority), receive_buffer=16_384) as slow:
        slow.send_request("GET", path)
        for _ in range(4):
            with Secure(downloads, client_context(authority)) as quick:
                assert len(quick.exchange("GET", "/list").body) == BIG
        assert len(slow.read_response().body) == BIG


def test_blocks_arrive_when_they_are_made(server, site, authority):
    running = server("""
        import os, time
        def app(environ, start_response):
            start_response("200 OK", [])
            yield b"first"
            while not os.path.exists("go"):
                time.sleep(0.01)
            yield b"second"
    """, *https(site))
    with Secure(running, client_context(authority)) as connection:
        connection.send_request()
        pieces = connection.body_pieces(connection.read_head())
        assert next(pieces) == b"first"
        running.touch("go")
        assert b"".join(pieces) == b"second"


def test_many_clients_at_once(downloads, authority):
    failures = []

    def client():
        try:
            for _ in range(3):
                with Secure(downloads, client_context(authority)) as connection:
                    assert len(connection.exchange("GET", "/list").body) == BIG
        except Exception as e:  # noqa: BLE001
            failures.append(e)
    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_standard_client(echo, authority):
    client = http.client.HTTPSConnection("localhost", echo.port, context=client_context(authority), timeout=20)
    for method in ["GET", "POST", "PUT"]:
        client.request(method, "/path", body=b"body" if method != "GET" else None)
        assert json.loads(client.getresponse().read())["environ"]["REQUEST_METHOD"] == method
    client.close()


def test_new_connections_go_round_a_slow_request(server, site, authority):
    running = server("""
        import os, time
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/slow":
                open("begun", "w").close()
                while not os.path.exists("go"):
                    time.sleep(0.01)
            start_response("200 OK", [])
            return [b"done"]
    """, *https(site), "-w", 2)
    running.wait_log("Worker ready", count=2)
    with Secure(running, client_context(authority)) as slow:
        slow.send_request("GET", "/slow")
        harness.wait_until(lambda: running.exists("begun"))
        for _ in range(20):
            with Secure(running, client_context(authority)) as quick:
                assert quick.exchange().body == b"done"
        running.touch("go")
        assert slow.read_response().body == b"done"


# --- the end ---

def test_the_end_is_said(echo, authority):
    context = client_context(authority)
    with Secure(echo, context) as connection:
        connection.exchange("GET", "/", [("Connection", "close")])
        # `recv` would raise at an end without TLS's own.
        connection.sock.suppress_ragged_eofs = False
        assert connection.sock.recv(100) == b""


def test_an_idle_connection_is_closed_in_order(server, site, authority):
    running = server("apps.hello:app", *https(site), "--keep-alive", "1")
    with Secure(running, client_context(authority)) as connection:
        connection.exchange()
        connection.sock.suppress_ragged_eofs = False
        assert connection.sock.recv(100) == b""


def test_a_client_that_has_said_all_is_answered(echo, authority):
    with Secure(echo, client_context(authority)) as connection:
        connection.send_request()
        socket.socket.shutdown(connection.sock, socket.SHUT_WR)
        assert connection.read_response().status == 200


def test_a_client_that_ends_its_side_in_order(echo, authority):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with wire.Connection(echo.address) as connection:
        def step(action):
            while True:
                try:
                    return action()
                except ssl.SSLWantReadError:
                    connection.send(outgoing.read())
                    incoming.write(connection.sock.recv(65536))
        step(tls.do_handshake)
        tls.write(wire.request_bytes())
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        connection.send(outgoing.read())
        # OpenSSL reads no more once it has said that it ends; so much is not just an alert.
        assert len(connection.expect_closed()) > 300


def test_a_response_that_breaks_off_is_no_whole_one(server, site, authority):
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", "10")])
            yield b"hello"
            raise RuntimeError("broken")
    """, *https(site))
    running.expect_errors("Error handling request", "shorter than its Content-Length", "RuntimeError")
    with Secure(running, client_context(authority)) as connection:
        connection.send_request()
        with pytest.raises((wire.ProtocolError, OSError)):
            connection.read_response()


def test_a_request_that_takes_too_long_is_answered(server, site, authority):
    running = server("""
        import time
        def app(environ, start_response):
            time.sleep(30)
    """, *https(site), "--timeout", "1", "-w", 2)
    running.expect_errors()
    with Secure(running, client_context(authority)) as connection:
        assert connection.exchange().status == 504
    running.wait_log("answered 504")


# --- what is no TLS ---

def test_plain_http_is_told_where_it_is(echo):
    with wire.Connection(echo.address) as connection:
        response = connection.exchange("GET", "/")
        assert response.status == 400
        assert b"The plain HTTP request was sent to HTTPS port" in response.body
        connection.expect_eof()


@pytest.mark.parametrize("octets", [b"\x00" * 100, b"\x16\x03\x01\x00\x05hello", b"\x80\x2e\x01\x03\x01" + b"\x00" * 50])
def test_noise_is_closed_upon(echo, octets):
    with wire.Connection(echo.address) as connection:
        connection.send(octets)
        connection.half_close()
        connection.expect_closed()
    assert echo.running()


def test_a_name_that_is_no_name_of_a_server_is_said(server, site, authority):
    """rustls refuses it. The client is told by an alert, the operator by a line, once a minute."""
    running = server("apps.echo:app", *https(site))
    context = client_context(authority)
    context.check_hostname = False
    for name in ("localhost:8443", "127.0.0.1:8443", "localhost:8443"):
        sock = socket.create_connection(running.address, 20)
        with sock, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(sock, server_hostname=name)
    line = r"TLS with ip=127\.0\.0\.1 failed: the server name that it asks for is no DNS name, such as one with a port"
    running.wait_log(line)
    with Secure(running, client_context(authority)) as connection:
        environ(connection)
    assert len([message for _, _, message in running.lines("WARNING") if "no DNS name" in message]) == 1


def test_noise_within_a_session(echo, authority):
    with Secure(echo, client_context(authority)) as connection:
        environ(connection)
        os.write(connection.sock.fileno(), b"\x17\x03\x03\x00\x20" + b"\x00" * 32)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connection.sock.recv(100)
            raise ConnectionError


# --- client certificates ---

@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("required", [1, 2])
def test_client_certificates(server, site, authority, stranger, required, version):
    running = server("apps.echo:app", *https(site), "--ca-certs", authority.certificate, "--cert-reqs", required)
    identity = authority.issue("client")
    with Secure(running, client_context(authority, version, identity)) as connection:
        for _ in range(2):
            seen = environ(connection)
            assert seen["SSL_CLIENT_VERIFY"] == "SUCCESS"
            with open(identity[0]) as f:
                assert seen["SSL_CLIENT_CERT"].split() == f.read().split()
    refused = [client_context(authority, version, stranger.issue("client"))]
    anonymous = client_context(authority, version)
    if required == 1:
        with Secure(running, anonymous) as connection:
            assert environ(connection)["SSL_CLIENT_VERIFY"] == "NONE"
    else:
        refused.append(anonymous)
    for context in refused:
        # In TLS 1.3 the client learns of it with its first read.
        with pytest.raises((ssl.SSLError, wire.ProtocolError, ConnectionError)):
            with Secure(running, context) as connection:
                connection.exchange()


def test_a_config_file_may_use_the_constants_of_ssl(server, site, authority):
    config = "import ssl\ncertfile, keyfile = %r\nca_certs = %r\n" % (site, authority.certificate)
    config += "cert_reqs = ssl.CERT_REQUIRED\nssl_version = ssl.PROTOCOL_TLS_SERVER\nsuppress_ragged_eofs = False\n"
    running = server("apps.echo:app", config=config + "do_handshake_on_connect = True\nssl_context = None\n")
    running.wait_log("ssl_version is ignored: TLS 1.2 and 1.3 are spoken")
    with Secure(running, client_context(authority, identity=authority.issue("client"))) as connection:
        assert environ(connection)["SSL_CLIENT_VERIFY"] == "SUCCESS"


# --- unix sockets, reloads ---

def test_over_a_unix_socket(server, site, authority, tmp_path):
    running = server("apps.echo:app", *https(site), bind="unix:%s" % (tmp_path / "s"))
    with Secure(running, client_context(authority)) as connection:
        assert environ(connection)["wsgi.url_scheme"] == "https"


def certificate_of(running, authority):
    with Secure(running, client_context(authority)) as connection:
        connection.exchange()
        return dict(part[0] for part in connection.sock.getpeercert()["subject"])["commonName"]


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_a_reload_takes_a_new_certificate_and_refuses_a_bad_one(server, authority, tmp_path, preload):
    files = [tmp_path / "cert.pem", tmp_path / "key.pem"]

    def put(name):
        for source, target in zip(authority.issue(name), files):
            target.write_bytes(open(source, "rb").read())
    put("first")
    running = server("apps.hello:app", *https([str(f) for f in files]), "-w", 2, *preload)
    running.expect_errors("Reload failed")
    assert certificate_of(running, authority) == "first"
    files[1].write_bytes(open(authority.key, "rb").read())
    running.signal(signal.SIGHUP)
    running.wait_log("Reload failed.*is not that of the certificate in")
    assert certificate_of(running, authority) == "first"
    put("second")
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete")
    running.wait_workers(2)
    assert certificate_of(running, authority) == "second"


def test_a_reload_ends_idle_connections_in_order(server, site, authority):
    running = server("apps.hello:app", *https(site), "--keep-alive", "60")
    idle, busy = (Secure(running, client_context(authority)) for _ in range(2))
    idle.exchange()
    busy.exchange()
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete")
    with idle, busy:
        # Within a moment one more request is answered.
        last = busy.exchange()
        assert last.status == 200
        harness.wait_until(lambda: last.closing or busy.exchange().closing)
        idle.sock.suppress_ragged_eofs = False
        assert idle.sock.recv(100) == b""
    running.wait_workers(1)


def test_a_request_under_way_during_a_reload_is_finished(server, site, authority):
    running = server("""
        import os, time
        def app(environ, start_response):
            open("begun", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)
            start_response("200 OK", [])
            return [b"done"]
    """, *https(site))
    with Secure(running, client_context(authority)) as connection:
        connection.send_request()
        harness.wait_until(lambda: running.exists("begun"))
        running.signal(signal.SIGHUP)
        running.wait_log("Reload complete")
        # The old worker hears of it in its own time, and after the request has been answered at the latest.
        running.touch("go")
        assert connection.read_response().body == b"done"
        assert connection.expect_closed() == b""
    running.wait_workers(1)


# --- what is refused ---

def refusal(*options, config=None, tmp_path=None):
    if config:
        (tmp_path / "gunicorn.conf.py").write_text(config)
    done = harness.run("-b", "127.0.0.1:0", *options, "apps.hello:app", cwd=str(tmp_path or "/"))
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if "rgunicorn: " in line]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0].split("rgunicorn: ", 1)[1]


def test_files_that_cannot_be_used(site, authority, stranger, tmp_path):
    certificate, key = site
    empty, encrypted = tmp_path / "empty.pem", str(tmp_path / "encrypted.pem")
    empty.write_text("nothing\n")
    openssl("pkcs8", "-topk8", "-in", key, "-out", encrypted, "-passout", "pass:secret")
    other = stranger.key
    rows = [
        (("--certfile", "/nope"), "--certfile: '/nope' is not a file that can be read: No such file or directory"),
        (("--certfile", empty), "%s has no certificate in PEM form in it (--certfile)" % empty),
        (("--certfile", certificate), "%s has no private key in PEM form in it (--keyfile)" % certificate),
        (("--certfile", certificate, "--keyfile", "/nope"), "--keyfile: '/nope' is not a file that can be read: No such file or directory"),
        (("--certfile", certificate, "--keyfile", other),
         "the key in %s is not that of the certificate in %s (--keyfile)" % (other, certificate)),
        (("--certfile", certificate, "--keyfile", encrypted),
         "the key in %s is encrypted; decrypt it, as nobody is there to be asked for its passphrase (--keyfile)" % encrypted),
        (("--keyfile", key), "--keyfile: there is no certificate to go with it (--certfile)"),
        (("--ca-certs", authority.certificate), "--ca-certs: there is no certificate to go with it (--certfile)"),
        ((*https(site), "--cert-reqs", "2"),
         "cert_reqs: no authority is named that client certificates come from (--ca-certs)"),
        ((*https(site), "--cert-reqs", "1", "--ca-certs", empty),
         "%s has no certificate in PEM form in it (--ca-certs)" % empty),
    ]
    for options, sentence in rows:
        assert refusal(*options) == sentence
        assert refusal("--check-config", *options) == sentence
    sentence = refusal(*https(site), "--ciphers", "HIGH:!aNULL")
    assert sentence.startswith("ciphers: 'HIGH' is not one of: TLS_AES_256_GCM_SHA384, ")
    assert sentence.endswith(" (--ciphers)")
