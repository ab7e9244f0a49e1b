"""Commands and files as projects publish them for gunicorn, in tests/published, run as a new user runs them: unchanged but for
the one word. Where a page fixes no port the test chooses a free one by PORT or GUNICORN_CMD_ARGS, from outside."""
import configparser
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from signal import SIGTERM

import pytest

import harness
import wire
from harness import wait_until
from test_real_apps import require_packages

PUBLISHED = os.path.join(harness.TESTS, "published")
ANY_PORT = {"PORT": "0"}


@pytest.fixture
def site(tmp_path):
    """`site(name)` → a copy of that folder of published files."""
    def copy(name):
        return shutil.copytree(os.path.join(PUBLISHED, name), str(tmp_path / name))
    return copy


def words(line):
    """The words of a published command, without the one that is changed."""
    first, *rest = shlex.split(line)
    assert os.path.basename(first) == "gunicorn", line
    return rest


def command_of(folder):
    [line] = [line for line in harness.read_text(os.path.join(folder, "command")).splitlines() if not line.startswith("#")]
    return words(line)


def start(server, folder, arguments, **settings):
    settings.setdefault("env", ANY_PORT)
    return server(None, *arguments, bind=None, directory=folder, **settings)


def test_django_with_whitenoise(server, site):
    require_packages("django", "whitenoise")
    folder = site("django")
    subprocess.run([sys.executable, "-m", "django", "collectstatic", "--noinput", "--settings", "myproject.settings",
                    "--pythonpath", "."], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    running = start(server, folder, command_of(folder))
    path = running.get("/").text
    assert re.fullmatch(r"/static/site\.[0-9a-f]+\.css", path)
    style = running.get(path)
    assert style.status == 200 and "immutable" in style.header("cache-control")
    assert style.body == harness.read_text(os.path.join(folder, "assets", "site.css")).encode()
    packed = running.get(path, [("Accept-Encoding", "gzip")])
    assert packed.header("content-encoding") == "gzip" and len(packed.body) < len(style.body)
    assert running.get(path, [("If-None-Match", style.header("etag") or "none"),
                              ("If-Modified-Since", style.header("last-modified"))]).status == 304
    part = running.get(path, [("Range", "bytes=0-3")])
    assert (part.status, part.body) == (206, b"body")
    assert running.get("/static/none.css").status == 404


def test_flask_factory(server, site):
    require_packages("flask")
    folder = site("flask")
    running = start(server, folder, command_of(folder))
    workers = running.wait_workers(4)
    assert int(running.get("/").text) in workers
    assert running.get("/none").status == 404


def test_falcon(server, site):
    require_packages("falcon")
    folder = site("falcon")
    running = start(server, folder, command_of(folder))
    running.wait_workers(2)
    assert running.get("/things").text == "Two things awe me most"
    posted = running.request("POST", "/things", [("Content-Type", "application/json")], b'{"n": [1, 2]}')
    assert (posted.status, json.loads(posted.text)) == (201, {"seen": {"n": [1, 2]}})
    assert running.request("DELETE", "/things").status == 405


def test_prometheus_multiprocess(server, site, tmp_path):
    require_packages("prometheus_client")
    folder, metrics = site("prometheus"), tmp_path / "metrics"
    metrics.mkdir()
    running = start(server, folder, command_of(folder), env=dict(ANY_PORT, PROMETHEUS_MULTIPROC_DIR=str(metrics)))
    # The library itself trips over the file of a process that is about to make it.
    running.expect_errors("SIGTERM", "Error handling request .*/metrics")

    def living():
        return {int(pid) for pid in re.findall(r'^up_processes\{pid="(\d+)"\} 1', running.get("/metrics").text, re.M)}
    before = set(running.wait_workers(2))
    wait_until(lambda: living() == before)
    for _ in range(5):
        assert running.get("/").status == 200
    os.kill(min(before), SIGTERM)
    wait_until(lambda: len(living()) == 2 and living() == set(running.workers()) and min(before) not in living())
    assert "my_requests_total 5.0" in running.get("/metrics").text


@pytest.fixture
def commands(tmp_path):
    """A folder for PATH in which the one word is changed: files of others that name `gunicorn` start the server under test."""
    folder = tmp_path / "commands"
    folder.mkdir()
    [program] = harness.command()
    (folder / "gunicorn").symlink_to(program)
    return str(folder)


def test_procfile(server, site, commands):
    """Honcho reads the Procfile, gives PORT, and passes the end on."""
    require_packages("honcho")
    folder = site("heroku")
    path = commands + os.pathsep + os.environ["PATH"]
    running = server(None, "start", "-p", "0", "web", bind=None, directory=folder, wait=False,
                     leading=[sys.executable, "-m", "honcho"], env={"PATH": path, "PYTHONUNBUFFERED": "1"})
    found = wait_until(lambda: re.search(r"Listening at: http://0\.0\.0\.0:(\d+)", running.stdout()), 30,
                       lambda: "listening:\n" + running.stdout() + running.log())
    with wire.Connection(("127.0.0.1", int(found.group(1)))) as connection:
        headers = [("X-Forwarded-Proto", "https"), ("X-Request-Id", "abc-1")]
        assert connection.exchange("GET", "/", headers).text == "https"
    wait_until(lambda: re.search(r'127\.0\.0\.1 "GET / HTTP/1\.1" 200 5 \d+ "abc-1"', running.stdout()), 20, running.stdout)
    assert "Using worker: gthread" in running.stdout()
    running.stop(SIGTERM)
    wait_until(lambda: not running.processes())
    assert "Shutting down: Master" in running.stdout() or "Handling signal: term" in running.stdout()


def dockerfile(folder):
    """(environment, the words of CMD) of a Dockerfile."""
    text = harness.read_text(os.path.join(folder, "Dockerfile")).replace("\\\n", " ")
    environment = {}
    for line in re.findall(r"^ENV (.*)$", text, re.M):
        environment.update(pair.split("=", 1) for pair in shlex.split(line))
    return environment, json.loads(re.search(r"^CMD (\[.*\])$", text, re.M).group(1))


def test_dockerfile(server, site):
    """The exec form: no shell is between, and the server is what the container's TERM reaches."""
    folder = site("docker")
    environment, command = dockerfile(folder)
    assert command[0] == "gunicorn"
    running = start(server, folder, command[1:], env=dict(environment, **ANY_PORT))
    running.wait_workers(2)
    assert running.get("/").text == "1 1"
    wait_until(lambda: '"GET / HTTP/1.1" 200' in running.stdout())
    assert "imported" in running.stdout()
    assert running.stop(SIGTERM) == 0


def unit(folder, name):
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read(os.path.join(folder, name))
    return parser


@pytest.mark.parametrize("activator", ["systemd-socket-activate", "harness"])
def test_systemd_socket_and_unit(server, site, tmp_path, activator):
    """ExecStart with the socket that systemd has opened, in the unit's folder, with READY told to the manager."""
    folder = site("systemd")
    service, unit_socket = unit(folder, "gunicorn.service")["Service"], unit(folder, "gunicorn.socket")["Socket"]
    assert service["Type"] == "notify" and service["ExecReload"] == "/bin/kill -s HUP $MAINPID"
    arguments = words(service["ExecStart"])
    address = str(tmp_path / os.path.basename(unit_socket["ListenStream"]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        running = activated(server, folder, arguments, address, activator, {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert wait_until(lambda: b"READY=1" in manager.recv(4096))
        worker = asked(address)
        assert harness.stat(worker)[1] == running.pid
        # ExecReload
        subprocess.run(["/bin/sh", "-c", service["ExecReload"]], env={"MAINPID": str(running.pid)}, check=True)
        assert wait_until(lambda: b"RELOADING=1" in manager.recv(4096))
        assert wait_until(lambda: b"READY=1" in manager.recv(4096))
    wait_until(lambda: asked(address) != worker)
    assert running.stop(SIGTERM) == 0
    assert os.path.exists(address), "the socket is systemd's"


def asked(address):
    """The worker that answers."""
    with wire.Connection(address) as connection:
        return int(connection.exchange().text)


def activated(server, folder, arguments, address, activator, env):
    if activator == "systemd-socket-activate":
        program = shutil.which(activator)
        if not program:
            pytest.skip("systemd-socket-activate is not installed")
        passed = ["PYTHONPATH", "RGUNICORN_TEST", "NOTIFY_SOCKET", "LD_PRELOAD", "ASAN_OPTIONS", "PYTHONMALLOC"]
        prefix = [program, "-l", address] + [word for name in passed for word in ("-E", name)]
        running = start(server, folder, arguments, prefix=prefix, env=env, wait=False)
        # It starts the server when somebody connects.
        wait_until(lambda: os.path.exists(address))
        with socket.socket(socket.AF_UNIX) as first:
            wait_until(lambda: first.connect_ex(address) == 0)
            running.wait_listening()
        return running
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        give = "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3); os.environ.update(LISTEN_PID=str(os.getpid()), " \
               "LISTEN_FDS='1'); os.execv(sys.argv[2], sys.argv[2:])"
        prefix = [sys.executable, "-c", give, str(listener.fileno())]
        return start(server, folder, arguments, prefix=prefix, env=env, pass_fds=[listener.fileno()])


class Collector(HTTPServer):
    """Takes what Sentry's package sends."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Take)
        self.envelopes = []


class Take(BaseHTTPRequestHandler):
    def do_POST(self):
        import gzip

        octets = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            octets = gzip.decompress(octets)
        self.server.envelopes.append(octets.decode("utf-8", "replace"))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def test_sentry(server, site):
    """The real package: started in post_fork, it sends from a thread of its own while the worker serves."""
    require_packages("sentry_sdk")
    folder = site("sentry")
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            dsn = "http://key@127.0.0.1:%d/1" % collector.server_address[1]
            running = start(server, folder, command_of(folder), env=dict(ANY_PORT, SENTRY_DSN=dsn))
            [worker] = running.wait_workers(1)
            running.wait_log("sentry starts in worker %d" % worker)
            assert running.get("/").body == b"fine"
            assert running.get("/fails").status == 500
            running.expect_errors(r"Error handling request .*/fails")
            told = wait_until(lambda: [e for e in collector.envelopes if "on purpose" in e], 30)
            assert '"release":"shop@1"' in told[0] and '"worker":' in told[0]
            assert running.stop() == 0
        finally:
            collector.shutdown()
            thread.join()


def test_datadog_profiler(server, site):
    """A stand-in of the same shape, as the package is heavy: the sampling thread sees the application at work, in every thread."""
    folder = site("datadog")
    running = start(server, folder, command_of(folder))
    [worker] = running.wait_workers(1)
    assert running.get("/").body == b"fine"
    assert running.stop() == 0
    assert {"wait_for_the_database", "app"} <= set(running.read("profile.%d" % worker).split())
