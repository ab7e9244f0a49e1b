"""The binary upgrade: USR2 starts a second server beside the first, which takes its place or goes again.

RGUNICORN_BIG=1 makes the load 100 000 requests instead of 5 000.
"""
import os
import re
import socket
import subprocess
import sys
import threading
from signal import SIGHUP, SIGKILL, SIGQUIT, SIGTERM, SIGUSR2, SIGWINCH

import pytest

import harness
import wire
from crowd import Crowd, begin, pid_of
from harness import alive, wait_until
from test_systemd import Manager, activated, listener

REQUESTS = 100000 if os.environ.get("RGUNICORN_BIG") else 5000

APP = """
    import os, time

    while os.path.exists("hold"):
        time.sleep(0.01)
    VERSION = "one"

    def app(environ, start_response):
        body = environ["wsgi.input"].read()
        if environ["PATH_INFO"] == "/env":
            names = [n for n in os.environ if n.startswith(("GUNICORN_", "LISTEN_", "RGUNICORN_KIN"))]
            body = " ".join(sorted(names)).encode()
        if environ["PATH_INFO"] == "/version":
            body = VERSION.encode()
        if environ["PATH_INFO"] == "/wait":
            open("inside-" + environ["QUERY_STRING"], "w").write(str(os.getpid()))
            while not os.path.exists("go"):
                time.sleep(0.01)
        start_response("200 OK", [("Content-Length", str(len(body))), ("X-Pid", str(os.getpid())),
                                  ("X-Parent", str(os.getppid()))])
        return [body]
"""
FAILED = (r"Upgrade failed", r"Exception in worker", r"Worker \(pid:\d+\) exited with code 3", r"Reason:", r"Shutting down: Master",
          r"failed to boot")


class Upgrade:
    """A server, and the one that USR2 starts beside it."""

    def __init__(self, running):
        self.running = running
        self.old = running.pid
        self.new = None

    def start(self, ready=True):
        before = len(self.started())
        os.kill(self.old, SIGUSR2)
        wait_until(lambda: len(self.started()) > before, 20, self.running.log)
        self.new = self.started()[-1]
        if ready:
            self.wait_ready()
        return self

    def started(self):
        return [int(pid) for pid in re.findall(r"Started a new server beside this one \(pid: (\d+)\)", self.running.log())]

    def wait_ready(self):
        self.running.wait_log(r"The new server is ready \(pid: %d\)" % self.new)

    def workers(self, arbiter):
        """Its workers that are ready."""
        ready = {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", self.running.log())}
        return sorted(pid for pid in harness.children(arbiter) if pid in ready and alive(pid))

    def wait_workers(self, arbiter, count):
        return wait_until(lambda: len(self.workers(arbiter)) == count and self.workers(arbiter) or count == 0
                          and not self.workers(arbiter), 20, self.running.log)

    def servers(self):
        """The arbiters that answer new connections, in many tries."""
        return {int(self.running.get().header("x-parent")) for _ in range(20)}

    def end_old(self, number=SIGTERM):
        os.kill(self.old, number)
        assert self.running.wait_exit() == 0
        self.running.wait_log(r"\[%d\] \[INFO\] Master has been promoted" % self.new)
        return self

    def end(self, pid, number=SIGTERM):
        """Ends one of the two; the old one has reaped the new one then."""
        os.kill(pid, number)
        wait_until(lambda: not alive(pid) and (harness.stat(pid) or (0, 0))[1] != self.old, 20, self.running.log)


@pytest.fixture
def upgrade(server):
    """`upgrade(app, …)` → an `Upgrade`; whatever became of it, nothing is left at the end."""
    made = []

    def start(app, *options, **settings):
        made.append(Upgrade(server(app, *options, **settings)))
        return made[-1]
    yield start
    for one in made:
        for pid in one.started():
            if alive(pid):
                os.kill(pid, SIGQUIT)


def held(upgrade):
    """Its new server cannot get ready before `let_go`."""
    both = upgrade(APP)
    both.wait_workers(both.old, 1)
    both.running.touch("hold")
    return both.start(ready=False)


def let_go(both):
    os.unlink(both.running.path("hold"))


def put_off(both):
    """Tells the old server to stop while the new one cannot serve yet."""
    os.kill(both.old, SIGTERM)
    both.running.wait_log("Waiting for the new server")


@pytest.mark.parametrize("number", [SIGTERM, SIGQUIT])
def test_the_new_server_takes_the_place_of_the_old(upgrade, number):
    both = upgrade(APP, "-w", "2")
    both.wait_workers(both.old, 2)
    both.running.write("app.py", open(both.running.path("app.py")).read().replace("one", "two"))
    both.start()
    both.wait_workers(both.new, 2)
    assert both.servers() <= {both.old, both.new}
    both.end_old(number)
    assert both.servers() == {both.new}
    assert both.running.get("/version").text == "two"
    # And it can be replaced in its turn.
    promoted = Upgrade(both.running)
    promoted.old = both.new
    promoted.start()
    assert promoted.new != promoted.old
    promoted.end(promoted.old)
    both.running.wait_log(r"\[%d\] \[INFO\] Master has been promoted" % promoted.new)
    assert promoted.servers() == {promoted.new}
    promoted.end(promoted.new)


def test_until_it_is_ready_the_new_server_takes_nothing(upgrade):
    both = held(upgrade)
    both.running.wait_log(r"\[%d\] \[INFO\] Listening" % both.new)
    assert both.servers() == {both.old}
    assert "is ready (pid: %d)" % both.new not in both.running.log()
    let_go(both)
    both.wait_ready()
    both.end_old()
    assert both.servers() == {both.new}
    both.end(both.new)


def test_term_to_the_old_waits_for_the_new(upgrade):
    """As in a script that sends USR2 and, some seconds later, TERM."""
    both = held(upgrade)
    put_off(both)
    assert both.servers() == {both.old}
    let_go(both)
    assert both.running.wait_exit() == 0
    assert both.servers() == {both.new}
    both.end(both.new)


def test_term_is_obeyed_all_the_same_when_the_new_server_fails(upgrade):
    both = held(upgrade)
    both.running.expect_errors(*FAILED)
    put_off(both)
    os.kill(both.new, SIGKILL)
    assert both.running.wait_exit() == 0
    let_go(both)


def test_a_second_term_does_not_wait(upgrade):
    both = held(upgrade)
    put_off(both)
    os.kill(both.old, SIGTERM)
    assert both.running.wait_exit() == 0
    both.running.wait_log("Master has been promoted")
    let_go(both)
    assert both.servers() == {both.new}
    both.end(both.new)


def test_another_usr2_is_ignored_with_a_warning(upgrade):
    both = upgrade(APP).start()
    os.kill(both.old, SIGUSR2)
    both.running.wait_log(r"WARNING.*USR2 is ignored: an upgrade is under way already \(pid: %d\)" % both.new)
    os.kill(both.new, SIGUSR2)
    both.running.wait_log(r"WARNING.*USR2 is ignored: %d has not ended" % both.old)
    assert both.started() == [both.new]
    both.end(both.new)


# --- rollback ---

def test_the_new_server_is_sent_away(upgrade):
    both = upgrade(APP, "-w", "2").start()
    old = both.wait_workers(both.old, 2)
    both.end(both.new)
    both.running.wait_log(r"The new server \(pid:%d\) has stopped" % both.new)
    assert both.servers() == {both.old} and both.workers(both.old) == old
    both.start()
    both.end_old()
    both.end(both.new)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["plain", "preload"])
def test_winch_and_hup_to_the_old_go_there_and_back(upgrade, preload):
    both = upgrade("apps.tail", "-w", "2", "--keep-alive", "60", *preload)
    both.wait_workers(both.old, 2)
    with Crowd(both.running, 12).spread(2) as crowd:
        both.start()
        for _ in range(2):
            os.kill(both.old, SIGWINCH)
            both.wait_workers(both.old, 0)
            assert set(crowd.pids()) <= set(both.wait_workers(both.new, 2))
            os.kill(both.old, SIGHUP)
            both.wait_workers(both.old, 2)
        both.end(both.new)
        assert set(crowd.pids()) <= set(both.workers(both.old))
    assert both.running.running()


def test_hup_brings_workers_back_even_with_a_broken_configuration(upgrade):
    both = upgrade(APP, config="workers = 2\n").start()
    both.running.expect_errors(r"Reload failed")
    os.kill(both.old, SIGWINCH)
    both.wait_workers(both.old, 0)
    both.running.write("gunicorn.conf.py", "raise RuntimeError('on purpose')\n")
    os.kill(both.old, SIGHUP)
    both.wait_workers(both.old, 2)
    both.end(both.new)
    assert both.servers() == {both.old}


def test_winch_without_an_upgrade_is_a_terminal_that_was_resized(upgrade):
    both = upgrade(APP)
    both.wait_workers(both.old, 1)
    os.kill(both.old, SIGWINCH)
    both.running.wait_log("Handling signal: winch")
    both.running.touch("hold")
    both.start(ready=False)
    os.kill(both.old, SIGWINCH)
    both.running.wait_log("Handling signal: winch", count=2)
    assert both.servers() == {both.old}
    let_go(both)
    both.wait_ready()
    both.end(both.new)


# --- a new server that fails ---

@pytest.mark.parametrize("broken, code", [("app.py", 3), ("gunicorn.conf.py", 1)])
def test_a_new_server_that_does_not_start_changes_nothing(upgrade, broken, code):
    both = upgrade(APP, config="workers = 1\n")
    both.wait_workers(both.old, 1)
    both.running.expect_errors(*FAILED)
    kept = both.running.read(broken)
    both.running.write(broken, "raise RuntimeError('on purpose')\n")
    both.start(ready=False)
    both.running.wait_log(r"Upgrade failed: the new server \(pid:%d\) exited with code %d" % (both.new, code))
    assert both.servers() == {both.old}
    both.running.write(broken, kept)
    both.start()
    both.end_old()
    assert both.servers() == {both.new}
    both.end(both.new)


def test_a_new_server_that_is_killed_changes_nothing(upgrade):
    both = upgrade(APP).start()
    both.running.expect_errors(*FAILED)
    new = both.workers(both.new)
    os.kill(both.new, SIGKILL)
    both.running.wait_log(r"Upgrade failed: the new server \(pid:%d\) was killed by SIGKILL" % both.new)
    wait_until(lambda: not any(map(alive, new)))
    assert both.servers() == {both.old}


def test_an_old_server_that_is_killed_is_replaced(upgrade):
    both = upgrade("apps.tail", "--keep-alive", "60", "--pid", "pid").start()
    with Crowd(both.running, 8) as crowd:
        crowd.pids()
        os.kill(both.old, SIGKILL)
        both.running.process.wait(20)
        both.running.wait_log("Master has been promoted")
        wait_until(lambda: both.running.read("pid") == "%d\n" % both.new)
        wait_until(lambda: set(crowd.pids()) == set(both.workers(both.new)), 20, both.running.log)
    both.end(both.new)


# --- files ---

def test_the_pid_files(upgrade):
    both = upgrade(APP, "--pid", "pid").start()
    files = {name: both.running.read(name) for name in ("pid", "pid.2")}
    assert files == {"pid": "%d\n" % both.old, "pid.2": "%d\n" % both.new}
    both.end(both.new)
    assert not both.running.exists("pid.2") and both.running.read("pid") == "%d\n" % both.old
    both.start().end_old()
    wait_until(lambda: both.running.read("pid") == "%d\n" % both.new)
    assert not both.running.exists("pid.2")
    # It has the lock, so that nobody starts a third one.
    third = harness.run("apps.hello", "--pid", both.running.path("pid"), "-b", "127.0.0.1:0")
    assert third.returncode == 1 and "Already running on PID %d" % both.new in third.stderr
    both.end(both.new)
    assert not both.running.exists("pid")


def test_the_file_of_a_unix_socket(upgrade, tmp_path):
    path = str(tmp_path / "app.sock")
    both = upgrade(APP, bind="unix:" + path)

    def answered():
        with wire.Connection(path) as connection:
            return int(connection.exchange().header("x-parent"))
    inode = os.stat(path).st_ino
    both.start()
    both.end(both.new)
    assert os.stat(path).st_ino == inode and answered() == both.old
    both.start().end_old()
    assert os.stat(path).st_ino == inode and answered() == both.new
    both.end(both.new)
    assert not os.path.exists(path)


def test_sockets_of_every_kind_are_handed_over(upgrade, tmp_path):
    abstract = "rgunicorn-upgrade-%d" % os.getpid()
    path = str(tmp_path / "app.sock")
    binds = ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0", "unix:@" + abstract, "unix:" + path]
    options = [word for bind in binds for word in ("-b", bind)]
    both = upgrade(APP, "--reuse-port", *options)
    before = both.running.listening
    both.start().end_old()
    assert both.running.listening == before and len(set(before)) == 5
    for address in both.running.addresses:
        if isinstance(address, str):
            address = address.replace("@", "\0", 1)
        with wire.Connection(address) as connection:
            assert int(connection.exchange().header("x-parent")) == both.new
    both.end(both.new)
    assert not os.path.exists(path)


def test_an_upgrade_may_change_the_addresses(upgrade, tmp_path):
    kept, gone, fresh = (str(tmp_path / name) for name in ("kept", "gone", "fresh"))
    both = upgrade(APP, config="bind = ['unix:%s', 'unix:%s']\n" % (kept, gone), bind=None)
    both.running.write("gunicorn.conf.py", "bind = ['unix:%s', 'unix:%s']\n" % (fresh, kept))
    both.start()
    both.running.wait_log(r"WARNING.*unix:%s is not served any more" % gone)
    for path in (kept, gone, fresh):
        with wire.Connection(path) as connection:
            connection.exchange()
    both.end(both.new)
    assert not os.path.exists(fresh) and os.path.exists(kept) and os.path.exists(gone)
    both.start().end_old()
    both.end(both.new)
    assert not os.path.exists(fresh) and not os.path.exists(kept)


# --- its process ---

def test_the_environment_is_that_of_the_start_and_the_application_finds_nothing_of_the_upgrade(upgrade):
    both = upgrade(APP, "-e", "GUNICORN_RAW=1", env={"PORT": "1", "GUNICORN_CMD_ARGS": "--workers 2"})
    both.wait_workers(both.old, 2)
    both.start()
    both.wait_workers(both.new, 2)
    environ = harness.environ_bytes(both.new).split(b"\0")
    assert b"GUNICORN_PID=%d" % both.old in environ and b"GUNICORN_CMD_ARGS=--workers 2" in environ
    assert any(re.match(rb"GUNICORN_FD=\d+$", pair) for pair in environ)
    assert not any(pair.startswith(b"GUNICORN_RAW") for pair in environ)
    both.end_old()
    assert both.running.get("/env").text == "GUNICORN_CMD_ARGS GUNICORN_RAW"
    # What it starts finds no descriptor of ours.
    both.end(both.new)


HOOKS = """
import os

def note(text):
    with open("notes", "a") as f:
        f.write(text + "\\n")

def pre_exec(server):
    note("pre_exec %d %d %d" % (os.getppid(), server.pid, len(server.LISTENERS)))
    if os.path.exists("raise"):
        raise RuntimeError("on purpose")

def when_ready(server):
    note("when_ready %d %d %s" % (server.pid, server.master_pid, server.proc_name))

def child_exit(server, worker):
    note("child_exit %d %d" % (server.master_pid, server.reexec_pid))
"""


def test_pre_exec_is_called_in_the_child(upgrade):
    both = upgrade(APP, "-n", "shop", config=HOOKS).start()
    assert both.running.read("notes").splitlines() == [
        "when_ready %d 0 shop" % both.old,
        "pre_exec %d %d 1" % (both.old, both.old),
        "when_ready %d %d shop.2" % (both.new, both.old),
    ]
    both.end_old()
    assert "child_exit 0 %d" % both.new in both.running.read("notes")
    both.end(both.new)
    assert both.running.read("notes").splitlines()[-1] == "child_exit 0 0"


def test_a_pre_exec_that_raises_keeps_the_new_server_from_starting(upgrade):
    both = upgrade(APP, config=HOOKS)
    both.running.expect_errors(r"Exception in pre_exec hook", *FAILED)
    both.running.touch("raise")
    both.start(ready=False)
    both.running.wait_log("RuntimeError: on purpose")
    both.running.wait_log("Upgrade failed")
    assert both.servers() == {both.old}
    os.unlink(both.running.path("raise"))
    both.start().end_old()
    both.end(both.new)


@pytest.mark.parametrize("started", ["script", "module", "daemon"])
def test_the_same_command_is_run_again(upgrade, started):
    leading = [sys.executable, "-X", "utf8", "-m", "rgunicorn"] if started == "module" else None
    options = ("--daemon", "--error-logfile", "log") if started == "daemon" else ()
    both = upgrade(APP, "--pid", "pid", *options, leading=leading, wait=started != "daemon")
    wait_until(lambda: both.running.read("pid").strip(), 20, both.running.log)
    both.old = int(both.running.read("pid"))
    both.wait_workers(both.old, 1)
    both.start()
    lines = [open("/proc/%d/cmdline" % pid).read() for pid in (both.old, both.new)]
    assert lines[0].split("\0")[1:] == lines[1].split("\0")[1:]
    assert os.readlink("/proc/%d/cwd" % both.new) == both.running.cwd
    both.end(both.old)
    both.running.wait_log("Master has been promoted")
    assert both.servers() == {both.new}
    both.end(both.new)


def test_a_stale_variable_is_no_upgrade(server):
    """gunicorn leaves its variables to whatever its application starts."""
    running = server(APP, env={"GUNICORN_PID": "1", "GUNICORN_FD": "0,7"})
    running.wait_log(r"WARNING.*1 is not the parent of this process.*GUNICORN_PID")
    assert running.get("/env").text == ""


def test_gunicorns_variables_are_enough(server, tmp_path):
    """As gunicorn sets them for the command that it runs again."""
    parent = """
import os, socket, subprocess, sys
made = socket.socket()
made.bind(("127.0.0.1", 0))
made.listen(16)
os.environ.update(GUNICORN_PID=str(os.getpid()), GUNICORN_FD=str(made.fileno()))
bind = "127.0.0.1:%d" % made.getsockname()[1]
child = subprocess.Popen(sys.argv[1:] + ["-b", bind], pass_fds=[made.fileno()])
sys.stdin.readline()
"""
    read, write = os.pipe()
    log = tmp_path / "log"
    with open(str(log), "wb") as err:
        process = subprocess.Popen([sys.executable, "-c", parent] + harness.command() + ["apps.hello", "--pid", "pid"],
                                   env=harness.clean_environment(), stdin=read, stderr=err, cwd=str(tmp_path))
    try:
        wait_until(lambda: "Worker ready" in log.read_text(), 20, log.read_text)
        assert (tmp_path / "pid.2").exists()
    finally:
        os.close(write)
        os.close(read)
        process.wait(20)
    wait_until(lambda: (tmp_path / "pid").exists(), 20, log.read_text)
    assert "Master has been promoted" in log.read_text()
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, SIGTERM)
    wait_until(lambda: not alive(pid), 20, log.read_text)


# --- systemd ---

def test_systemd_is_told_of_the_new_process_when_the_old_one_leaves(upgrade, tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    both = upgrade(APP, env=dict(manager.env, WATCHDOG_USEC="30000000"))
    manager.wait("READY")
    both.start()
    both.end(both.new)
    both.start()
    # Neither the new servers' readiness nor an end of one is the service's.
    told = [notice for notice in drained(manager) if "WATCHDOG" not in notice]
    assert all(set(notice) == {"STATUS"} for notice in told), told
    os.kill(both.old, SIGTERM)
    assert manager.wait("MAINPID")["MAINPID"] == str(both.new)
    assert manager.wait("MAINPID")["MAINPID"] == str(both.new)
    assert "1 of 1" in manager.wait("READY")["STATUS"]
    both.running.wait_exit()
    both.running.wait_log("Master has been promoted")
    both.end(both.new)
    manager.wait("STOPPING")
    assert sum("STOPPING" in notice for notice in manager.heard) == 1
    manager.socket.close()


def drained(manager):
    """What has been said by now."""
    manager.socket.setblocking(False)
    told = []
    while True:
        try:
            told.append(manager.next())
        except BlockingIOError:
            manager.socket.settimeout(20)
            return told


def test_sockets_that_systemd_has_opened_go_to_the_new_server(server, tmp_path):
    path = str(tmp_path / "passed.sock")
    with listener(("127.0.0.1", 0)) as tcp, listener(path, socket.AF_UNIX) as unix:
        both = Upgrade(activated(server, tcp, unix, bind=None))
        before = both.running.listening
        both.start()
        environ = harness.environ_bytes(both.new).split(b"\0")
        assert b"LISTEN_PID=%d" % both.new in environ and b"LISTEN_FDS=2" in environ
        assert not any(pair.startswith(b"GUNICORN_FD") for pair in environ)
        both.end_old()
        assert both.running.listening == before
        for address in (tcp.getsockname(), path):
            with wire.Connection(address) as connection:
                assert connection.exchange("GET", "/env").text == ""
        both.end(both.new)
        assert os.path.exists(path)


# --- traffic ---

class Client(threading.Thread):
    """Posts on one keep-alive connection as an HTTP client does: when the server has ended the connection before an octet
    of the answer came, the request goes out again on a new one, which is counted. Anything else is a loss."""

    def __init__(self, address, share):
        super().__init__()
        self.address, self.share = address, share
        self.done, self.again, self.announced, self.lost = 0, 0, 0, []

    def run(self):
        connection = wire.Connection(self.address)
        for number in range(self.share):
            body = b"%d-%d" % (id(self), number)
            for attempt in range(3):
                try:
                    answer = connection.exchange("POST", "/", (), body)
                except (wire.ProtocolError, OSError) as error:
                    self.again += 1
                    if connection.buffer or attempt == 2:
                        self.lost.append(repr(error))
                        return
                    connection.close()
                    connection = wire.Connection(self.address)
                    continue
                break
            if answer.status != 200 or answer.body != body:
                self.lost.append(repr(answer))
                return
            self.done += 1
            if answer.closing:
                self.announced += 1
                connection.close()
                connection = wire.Connection(self.address)
        connection.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("last", [SIGTERM, SIGQUIT])
@pytest.mark.parametrize("options", [("-w", "2"), ("-w", "2", "--threads", "2")], ids=["workers", "threads"])
def test_no_request_is_lost(upgrade, options, last):
    both = upgrade(APP, "--keep-alive", "60", *options)
    both.wait_workers(both.old, 2)
    clients = [Client(both.running.address, REQUESTS // 8) for _ in range(8)]
    with Crowd(both.running, 16) as idle:
        idle.pids()
        for client in clients:
            client.start()
        done = lambda: sum(client.done for client in clients)
        wait_until(lambda: done() >= REQUESTS // 10, 300, done)
        both.start()
        os.kill(both.old, SIGWINCH)
        both.wait_workers(both.old, 0)
        both.end_old(last)
        middle = done()
        for client in clients:
            client.join()
        assert set(idle.pids()) <= set(both.workers(both.new))
    assert [client.lost for client in clients] == [[]] * 8
    print("%d requests, %d of them when the old server was gone, %d sent again, %d connections closed with notice" % (
        done(), middle, sum(client.again for client in clients), sum(client.announced for client in clients)))
    assert done() == REQUESTS // 8 * 8
    assert sum(client.again for client in clients) == 0
    both.end(both.new)


def test_requests_under_way_are_finished(upgrade):
    both = upgrade(APP, "-w", "2", "--keep-alive", "60")
    both.wait_workers(both.old, 2)
    with both.running.connect() as slow:
        inside = begin(both.running, slow, "/wait", "slow")
        both.start()
        os.kill(both.old, SIGQUIT)
        both.running.wait_log("Handling signal: quit")
        wait_until(lambda: both.servers() == {both.new})
        both.running.touch("go")
        answer = slow.read_response()
        assert pid_of(answer) == inside and not answer.closing
        assert both.running.wait_exit() == 0
        both.running.wait_log("Master has been promoted")
        assert int(slow.exchange().header("x-parent")) == both.new
    both.end(both.new)
