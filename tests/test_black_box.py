"""Why a worker died: one line of the log, true for each kind of death, and what it was running.

Rows of DEATHS: how a worker is brought to its end, what the line says after `Worker (pid:N) `.
"""
import os
import re
import signal
import uuid

import pytest

from crowd import begin, wait_ready
from harness import alive, wait_until

APP = "apps.doom"
LINE = r"Worker \(pid:%d\) (?!exiting).*$"

CRASHED = r"was killed by %s( \(core dumped\))?\. It crashed in C code"
OUTSIDE = r"was killed by %s\. The signal came from outside or from the application itself"
BY_CODE = r"exited with code %d\. Nobody had told it to: something in the application called os\._exit or exit\."

# The application does it to itself, by this path.
BY_REQUEST = {
    "segv": CRASHED % "SIGSEGV",
    "bus": CRASHED % "SIGBUS",
    "fpe": CRASHED % "SIGFPE",
    "ill": CRASHED % "SIGILL",
    "overflow": r"was killed by SIGSEGV( \(core dumped\))?\. A thread's C stack was full",
    "abort": r"was killed by SIGABRT( \(core dumped\))?\. It was aborted",
    "fatal": r"was killed by SIGABRT( \(core dumped\))?\. It was aborted: by Python's own checks",
    "_exit": BY_CODE % 7,
    "_exit0": BY_CODE % 0,
    "c-exit": BY_CODE % 9,
    "kill": r"was killed by SIGKILL\. Not by this server, and the kernel has killed nothing|was sent SIGKILL! Perhaps out of memory\? Not by this server",
    "alarm": OUTSIDE % "SIGALRM",
    "cpu": OUTSIDE % "SIGXCPU",
}
# Somebody sends it to the worker.
BY_SIGNAL = {
    "SIGKILL": BY_REQUEST["kill"],
    "SIGSEGV": CRASHED % "SIGSEGV",
    "SIGALRM": OUTSIDE % "SIGALRM",
    "SIGVTALRM": OUTSIDE % "SIGVTALRM",
    "SIGSYS": r"was killed by SIGSYS( \(core dumped\))?\. The signal came from outside",
}


def death(running, pid):
    """The one line about it."""
    line = running.wait_log(LINE % pid).group(0)
    assert len(re.findall(LINE % pid, running.log(), re.M)) == 1
    return line


def start(server, *options, **settings):
    running = server(settings.pop("app", APP), "--keep-alive", "60", *options, **settings)
    running.expect_errors(r"Worker \(pid:\d+\)", r"It was running")
    return running


def check(running, pid, says):
    assert re.search(r"Worker \(pid:%d\) (%s)" % (pid, says), death(running, pid)), death(running, pid)


@pytest.mark.parametrize("way", BY_REQUEST)
def test_the_application_brings_its_worker_to_an_end(server, way):
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        assert victim.exchange("GET", "/?first").status == 200
        victim.send_request("GET", "/%s?victim" % way)
        answer = victim.expect_closed()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")
    check(running, old, BY_REQUEST[way])
    assert re.search(r"It lived for \d+ s and took 2 request\(s\)\.$", death(running, old))
    running.wait_log(r"It was running GET /%s\?victim for \d+ s$" % way)
    wait_ready(running, 1)
    assert running.get("/?after").status == 200


@pytest.mark.parametrize("name", BY_SIGNAL)
def test_a_signal_brings_a_worker_to_its_end(server, name):
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, "/wait", "victim")
        os.kill(old, getattr(signal, name))
        victim.expect_closed()
    check(running, old, BY_SIGNAL[name])
    running.wait_log(r"It was running GET /wait\?victim for \d+ s$")


@pytest.mark.parametrize("code, source, says", [
    (3, "raise ValueError('broken')", r"exited with code 3\. It could not boot, for the reason above\. It had not finished booting\."),
    (3, "import sys; sys.exit(5)", r"exited with code 3\. It could not boot"),
    (4, "other = 1", r"exited with code 4\. The application was not found or cannot be called, for the reason above"),
    (4, "app = 1", r"exited with code 4\. The application was not found or cannot be called, for the reason above"),
    (0, "import os; os._exit(0)", BY_CODE % 0 + r" It had not finished booting"),
    (0, "import os; os._exit(6)", BY_CODE % 6 + r" It had not finished booting"),
    (0, "import ctypes; ctypes.string_at(0)", CRASHED % "SIGSEGV" + r".* It had not finished booting"),
    (0, "import os; os.abort()", BY_REQUEST["abort"] + r".* It had not finished booting"),
    (0, "from apps.doom import overflow; overflow()", BY_REQUEST["overflow"] + r".* It had not finished booting"),
    (0, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", BY_REQUEST["kill"]),
], ids=["raises", "sys.exit", "no app", "no callable", "_exit 0", "_exit 6", "segv", "abort", "overflow", "kill"])
def test_a_worker_that_does_not_boot(server, tmp_path, code, source, says):
    """`code` is the server's, when a worker that cannot boot ends it."""
    (tmp_path / "broken.py").write_text(source + "\n")
    running = server("broken:app", env={"PYTHONPATH": "%s:%s" % (tmp_path, os.path.dirname(__file__))}, wait=False)
    running.expect_errors()
    old = int(running.wait_log(r"Booting worker with pid: (\d+)").group(1))
    check(running, old, says)
    if code:
        assert running.wait_exit() == code


@pytest.mark.parametrize("way", ["segv", "abort", "overflow"])
@pytest.mark.parametrize("role", ["worker", "mold"])
def test_a_crash_while_the_application_is_imported_shows_where(server, tmp_path, role, way):
    (tmp_path / "broken.py").write_text("from apps.doom import WAYS\n\nWAYS[%r]()\n" % way)
    running = server("broken:app", *(["--preload"] if role == "mold" else []), wait=False,
                     env={"PYTHONPATH": "%s:%s" % (tmp_path, os.path.dirname(__file__))})
    running.expect_errors()
    dead = running.wait_log(r"^Fatal error: SIG\w+ in %s \(pid:(\d+)\)" % role).group(1)
    running.wait_log(r'^  File ".*broken\.py", line 3 in <module>$')
    what = "finished booting" if role == "worker" else "loaded the application"
    # A mold has no place on the scoreboard; that its stack was full, its own line says.
    says = CRASHED % "SIGSEGV" if (role, way) == ("mold", "overflow") else BY_REQUEST[way]
    running.wait_log(r"\[ERROR\] %s \(pid:%s\) (%s).* It had not %s\." % (role.title(), dead, says, what))
    assert (", its C stack is full. " in running.log()) == (way == "overflow")


@pytest.mark.parametrize("way, says", [
    (None, r"exited with code 3\. It could not boot"),
    ("_exit", BY_CODE % 7),
    ("kill", BY_REQUEST["kill"]),
])
def test_a_mold_that_does_not_load_the_application(server, tmp_path, way, says):
    (tmp_path / "broken.py").write_text("from apps.doom import WAYS\nWAYS[%r]()\n" % way)
    running = server("broken:app", "--preload", wait=False,
                     env={"PYTHONPATH": "%s:%s" % (tmp_path, os.path.dirname(__file__))})
    running.expect_errors()
    running.wait_log(r"\[ERROR\] Mold \(pid:\d+\) (%s).* It had not loaded the application\. It lived for \d+ s\.$" % says)


def test_a_mold_that_is_killed(server):
    running = start(server, "--preload", "-w", "2")
    running.expect_errors()
    workers = wait_ready(running, 2)
    [mold] = [pid for pid in running.processes() if pid not in workers + [running.pid]]
    os.kill(mold, signal.SIGKILL)
    line = running.wait_log(r"\[ERROR\] Mold \(pid:%d\) was (killed by|sent) SIGKILL.*$" % mold).group(0)
    assert re.search(r"Not by this server|From outside, or by this server", line)
    assert running.get("/?after").status == 200


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGABRT"])
def test_a_worker_that_somebody_else_tells_to_go(server, name):
    """It goes in order, and is replaced."""
    running = start(server, "--log-level", "debug")
    running.allowed = []
    [old] = wait_ready(running, 1)
    os.kill(old, getattr(signal, name))
    running.wait_log(r"\[DEBUG\] Worker \(pid:%d\) exited with code 0\. It was told to\. It lived" % old)
    assert wait_ready(running, 1) != [old]


def test_an_exit_handler_that_crashes(server):
    running = start(server, app="""
        import atexit
        from apps.doom import application, segv
        app = application
        atexit.register(segv)
    """)
    assert running.get("/?first").status == 200
    assert running.stop() == 0
    running.wait_log(r"^Fatal error: SIGSEGV in worker \(pid:(\d+)\)")
    running.wait_log(r"\[ERROR\] Worker \(pid:\d+\) (%s)" % (CRASHED % "SIGSEGV"))


@pytest.mark.parametrize("way, says", [("segv", CRASHED % "SIGSEGV"), ("kill", BY_REQUEST["kill"]),
                                       ("_exit", r"exited with code 7\. It was told to end, and on its way something")])
def test_a_worker_that_dies_while_the_server_stops(server, way, says):
    running = start(server)
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, "/wait/" + way, "victim")
        running.signal(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        running.touch("go")
        victim.expect_closed()
    assert running.wait_exit() == 0
    check(running, old, says)
    running.wait_log(r"\[ERROR\] It was running GET /wait/%s\?victim for \d+ s$" % way)


def test_this_server_has_killed_it_at_its_own_end(server):
    running = start(server, "--graceful-timeout", "1")
    running.expect_errors(r"Killing worker")
    [old] = wait_ready(running, 1)
    with running.connect() as victim:
        begin(running, victim, "/wait", "victim")
        os.kill(old, signal.SIGSTOP)
        running.signal(signal.SIGTERM)
        assert victim.expect_closed() == b""
    assert running.wait_exit() == 0
    check(running, old, r"was killed by SIGKILL\. This server killed it, as it did not stop in time \(--graceful-timeout\)\.")
    running.wait_log(r"\[ERROR\] It was running GET /wait\?victim for \d+ s$")


def test_a_target_is_shown_as_in_the_access_log(server):
    """With its query, as it was sent: what is escaped stays so."""
    running = start(server, "--access-logfile", "-")
    wait_ready(running, 1)
    target = "/segv?token=secret%0A[1]%20[ERROR]%20forged"
    assert running.get("/?" + target[6:]).status == 200
    # Before the crash, which may take the last lines with it.
    wait_until(lambda: target[6:] in running.stdout(), 20, running.stdout)
    assert running.get(target).status == 500
    running.wait_log(r"It was running GET %s for \d+ s$" % re.escape(target))


@pytest.mark.parametrize("option", ["--timeout", "--graceful-timeout"])
def test_this_server_has_killed_it(server, option):
    """It cannot do anything itself, as it is stopped."""
    running = start(server, option, "1", "-w", "2")
    running.expect_errors(r"WORKER TIMEOUT", r"Killing worker")
    wait_ready(running, 2)
    with running.connect() as victim:
        old = begin(running, victim, "/wait", "victim")
        if option == "--graceful-timeout":
            os.kill(old, signal.SIGTERM)
            running.wait_log(r"Booting worker", count=3)
        os.kill(old, signal.SIGSTOP)
        victim.expect_closed()
    check(running, old, r"was killed by SIGKILL\. This server killed it, as it .* \(%s\)\." % option)
    assert "memory" not in death(running, old)
    running.wait_log(r"It was running GET /wait\?victim for \d+ s$")


def test_an_end_in_order_is_no_death(server):
    running = server(APP, "--max-requests", "2", "--log-level", "debug")
    [old] = wait_ready(running, 1)
    assert running.get("/?one").status == running.get("/?two").status == 200
    wait_until(lambda: not alive(old), 20, running.log)
    running.wait_log(r"\[DEBUG\] Worker \(pid:%d\) exited with code 0\. It was told to\." % old)


@pytest.mark.parametrize("way", ["segv", "kill", "_exit"])
def test_every_request_in_flight_is_named(server, way):
    running = start(server, "--threads", "4")
    [old] = wait_ready(running, 1)
    connections = [running.connect() for _ in range(4)]
    for number, connection in enumerate(connections):
        begin(running, connection, "/wait/" + way, "r%d" % number)
    running.touch("go-r1")
    for number, connection in enumerate(connections):
        connection.expect_closed()
        running.wait_log(r"It was running GET /wait/%s\?r%d for \d+ s$" % (way, number))
        connection.close()


def test_what_a_client_sends_is_bounded(server):
    running = start(server)
    [old] = wait_ready(running, 1)
    assert running.get("/segv?long&" + "x" * 3000).status == 500
    line = running.wait_log(r"It was running GET /segv\?long&x+ for \d+ s$").group(0)
    assert len(line) < 400


# --- out of memory ---

HUNGRY = """
    import os
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/eat":
            hoard = []
            while True:
                hoard.append(b"x" * 1000000)
        start_response("200 OK", [])
        return [b"fed"]
"""
VERSIONS = {"v1": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), "v2": ("/sys/fs/cgroup", "memory.max")}


@pytest.fixture
def small_cgroup():
    """One with 150 MB, where this machine lets us make it."""
    for root, limit in VERSIONS.values():
        group = os.path.join(root, "rgunicorn-test-" + uuid.uuid4().hex)
        if not os.path.exists(os.path.join(root, "cgroup.procs")):
            continue
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            with open(os.path.join(group, limit), "w") as f:
                f.write("150000000")
            yield group
            return
        except OSError:
            continue
        finally:
            wait_until(lambda: not open(os.path.join(group, "cgroup.procs")).read(), 20)
            os.rmdir(group)
    pytest.skip("no memory cgroup can be made here")


def test_out_of_memory(small_cgroup, tmp_path):
    from conftest import Servers
    enter = ("sh", "-c", 'echo $$ > %s/cgroup.procs && exec "$@"' % small_cgroup, "sh")
    servers = Servers(lambda: tmp_path)
    running = servers(HUNGRY, prefix=enter)
    try:
        running.expect_errors(r"Worker \(pid:\d+\)", r"It was running")
        [old] = wait_ready(running, 1)
        with running.connect() as victim:
            victim.send_request("GET", "/eat")
            assert victim.expect_closed() == b""
        check(running, old, r"was sent SIGKILL! Perhaps out of memory\? It was out of memory: the kernel has killed 1 process")
        [new] = wait_ready(running, 1)
        os.kill(new, signal.SIGKILL)
        check(running, new, r"was killed by SIGKILL\. Not by this server, and the kernel has killed nothing")
        wait_ready(running, 1)
        assert running.get("/").text == "fed"
    finally:
        servers.finish()


# --- what the application forks ---

@pytest.mark.parametrize("threads", [1, 2], ids=["plain", "threads"])
@pytest.mark.parametrize("path", ["fork-and-return", "stream-fork", "fork-in-c"])
def test_a_child_that_returns_from_the_application_is_no_worker(server, threads, path):
    """It ends; the answer is its parent's, once, and the connection goes on."""
    running = start(server, "--threads", threads)
    [old] = wait_ready(running, 1)
    running.wait_log("Worker ready")
    before = sorted(running.processes())
    with running.connect() as connection:
        for number in range(3):
            answer = connection.exchange("GET", "/%s?r%d" % (path, number))
            assert (answer.status, answer.text, int(answer.header("x-pid"))) == (200, "parent", old)
        wait_until(lambda: sorted(running.processes()) == before, 20, running.log)
        assert connection.exchange("GET", "/?after").text == "after"
    assert running.workers() == [old]
    running.wait_log(r"\[WARNING\] A process that the application forked has returned from GET /%s\?r0" % path)
