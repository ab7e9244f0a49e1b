"""Under systemd: listeners that it opened, and what it is told, on a real datagram socket."""
import os
import re
import socket
import sys
from signal import SIGHUP

import pytest

import harness
import wire

APP = """
    import os, time

    while os.path.exists("hold"):
        time.sleep(0.01)

    def app(environ, start_response):
        names = [n for n in os.environ if n.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [" ".join(sorted(names)).encode()]
"""


class Manager:
    """The receiving end of sd_notify."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)
        self.env = {"NOTIFY_SOCKET": address.replace("\0", "@", 1)}
        self.heard = []

    def next(self):
        notice = dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())
        self.heard.append(notice)
        return notice

    def wait(self, name):
        """The next notice that says so much."""
        while True:
            notice = self.next()
            if name in notice:
                return notice

    def quiet(self, seconds=0.3):
        self.socket.settimeout(seconds)
        try:
            return not self.next()
        except socket.timeout:
            return True
        finally:
            self.socket.settimeout(20)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = str(tmp_path / "notify") if request.param == "path" else "\0rgunicorn-test-%d" % os.getpid()
    manager = Manager(address)
    yield manager
    manager.socket.close()


def held(server, tmp_path, *options, **settings):
    """A server whose workers do not get through the import before `hold` is removed."""
    directory = tmp_path / "held"
    directory.mkdir()
    (directory / "hold").touch()
    return server(APP, *options, directory=directory, **settings)


def test_ready_when_the_first_worker_is(server, tmp_path, manager):
    running = held(server, tmp_path, "-w", "2", env=manager.env)
    assert manager.quiet()
    os.unlink(running.path("hold"))
    notice = manager.next()
    assert notice["READY"] == "1" and re.match(r"[12] of 2 worker", notice["STATUS"])
    assert running.get("/").text == ""
    assert running.stop() == 0
    assert "STOPPING" in manager.wait("STOPPING")


def test_ready_is_not_said_by_a_server_that_never_is(server, tmp_path, manager):
    running = server("import no_such_module\nnothing = 1\n", env=manager.env, wait=False)
    running.expect_errors()
    assert running.wait_exit() == 3
    assert all("READY" not in notice for notice in [manager.wait("STOPPING")] + manager.heard)


def test_a_reload_is_told(server, manager):
    running = server(APP, env=manager.env)
    manager.wait("READY")
    running.signal(SIGHUP)
    notice = manager.wait("RELOADING")
    assert 0 < int(notice["MONOTONIC_USEC"]) <= harness.time.monotonic() * 1e6
    assert "complete" in manager.wait("READY")["STATUS"]
    assert running.get("/").status == 200


@pytest.mark.parametrize("broken", ["app.py", "gunicorn.conf.py"])
def test_a_reload_that_fails_is_over_too(server, manager, broken):
    running = server(APP, config="workers = 1\n", env=manager.env)
    manager.wait("READY")
    running.expect_errors()
    running.write(broken, "raise RuntimeError('on purpose')\n")
    running.signal(SIGHUP)
    manager.wait("RELOADING")
    assert "failed" in manager.wait("READY")["STATUS"]
    assert running.get("/").status == 200


def test_a_mold_is_no_readiness(server, tmp_path, manager):
    running = held(server, tmp_path, "--preload", env=manager.env)
    assert manager.quiet()
    os.unlink(running.path("hold"))
    assert manager.wait("READY")
    assert running.get("/").text == ""


def test_the_watchdog_is_fed(server, manager):
    running = server(APP, env=dict(manager.env, WATCHDOG_USEC="200000"))
    for _ in range(3):
        manager.wait("WATCHDOG")
    assert running.get("/").status == 200


def test_a_watchdog_of_another_process_is_not_ours(server, manager):
    server(APP, env=dict(manager.env, WATCHDOG_USEC="20000", WATCHDOG_PID="1"))
    manager.wait("READY")
    assert manager.quiet()


def test_nobody_listens(server, tmp_path):
    running = server(APP, env={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert running.get("/").status == 200
    running.wait_log(r"WARNING.*NOTIFY_SOCKET")


# --- listeners ---

# What systemd does between fork and exec.
EXEC = [sys.executable, "-c", """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
copies = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]
for i, fd in enumerate(copies):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES="x")
os.execv(sys.argv[2], sys.argv[2:])
"""]


def listener(address, family=socket.AF_INET):
    made = socket.socket(family, socket.SOCK_STREAM)
    made.bind(address)
    made.listen(16)
    return made


def activated(server, *sockets, **settings):
    options = settings.pop("options", ())
    fds = [s.fileno() for s in sockets]
    prefix = EXEC + [",".join(map(str, fds))]
    return server(APP, *options, prefix=prefix, pass_fds=fds, **settings)


def test_sockets_are_passed(server, tmp_path):
    path = str(tmp_path / "passed.sock")
    with listener(("127.0.0.1", 0)) as tcp, listener(path, socket.AF_UNIX) as unix:
        # In the queue before there is a server.
        early = wire.Connection(tcp.getsockname())
        running = activated(server, tcp, unix, bind=None)
        port = tcp.getsockname()[1]
        assert running.listening == ["http://127.0.0.1:%d" % port, "unix:" + path]
        assert early.exchange("GET", "/").text == ""
        early.close()
        for address in (("127.0.0.1", port), path):
            with wire.Connection(address) as connection:
                assert connection.exchange("GET", "/").status == 200
        assert "WARNING" not in running.log()
        running.signal(SIGHUP)
        running.wait_log("Reload complete")
        assert running.get("/").status == 200
        assert running.stop() == 0
        assert os.path.exists(path)


def test_passed_sockets_replace_bind_with_one_warning(server):
    with listener(("127.0.0.1", 0)) as tcp:
        running = activated(server, tcp, options=["-b", "127.0.0.1:1"])
        assert running.listening == ["http://127.0.0.1:%d" % tcp.getsockname()[1]]
        running.signal(SIGHUP)
        running.wait_log("Reload complete")
        assert len(re.findall(r"bind is not used", running.log())) == 1


def test_sockets_of_another_process_are_left_alone(server):
    running = server(APP, env={"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    assert running.get("/").text == ""


def test_a_descriptor_that_is_not_open():
    wrapper = [sys.executable, "-c", "import os, sys\nos.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
               "os.closerange(3, 50)\nos.execv(sys.argv[1], sys.argv[1:])"]
    done = harness.subprocess.run(wrapper + harness.command() + ["apps.hello"], env=harness.clean_environment(),
                                  stderr=harness.subprocess.PIPE, timeout=40)
    assert done.returncode == 1
    assert b"fd://3" in done.stderr and b"Traceback" not in done.stderr
