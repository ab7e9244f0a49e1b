"""The process the user started: it keeps workers alive, replaces them without losing a request, and obeys its signals."""
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from signal import (SIGCHLD, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGWINCH)

import pytest

import harness
import wire
from harness import Threads, alive, wait_until

# The application is told what to do by files in its directory and tells by files what it does.
APP = """
    import os, sys, time

    VERSION = "one"

    def wait_for(name, seconds=60):
        deadline = time.monotonic() + seconds
        while not os.path.exists(name):
            if time.monotonic() > deadline:
                raise RuntimeError("nobody made " + name)
            time.sleep(0.005)

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/wait":
            open("inside", "w").close()
            wait_for("go")
        if path == "/stuck":
            open("inside", "w").close()
            time.sleep(600)
        if path == "/busy":
            open("inside", "w").close()
            sum(range(10 ** 12))
        if path == "/raise":
            raise ValueError("on purpose")
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid())), ("X-Version", VERSION)])
        return [VERSION.encode()]

    open("loaded-%d" % os.getpid(), "w").close()
"""


# How the log may tell of a worker that a test has killed.
DEATH = (r"SIGKILL", r"exited", r"died", r"killed", r"was running")


def version(running):
    return running.get("/").header("x-version")


def pid_of(running):
    return int(running.get("/").header("x-pid"))


def loaded_workers(running, count):
    """The workers, once so many are there and all have imported the application; its file may change now."""
    return wait_until(lambda: len(running.workers()) == count
                      and all(running.exists("loaded-%d" % pid) for pid in running.workers())
                      and running.workers(), 20, running.log)


def release(running, text):
    """A new version of the application."""
    running.write("app.py", APP.replace('VERSION = "one"', 'VERSION = "%s"' % text))


def deploy(running, text):
    """The same, taken over."""
    release(running, text)
    running.signal(SIGHUP)
    wait_until(lambda: version(running) == text, 20, running.log)


def enter(running, connection, path):
    """Asks for it; the application has the request then."""
    connection.send_request("GET", path)
    wait_until(lambda: running.exists("inside"))


class Clients(Threads):
    """Clients that never pause. Every request of theirs must be answered; they reconnect only where the server said so."""

    def __init__(self, running, count=3, keep_alive=True):
        super().__init__(count, self.work)
        self.address = running.address
        self.headers = [] if keep_alive else [("Connection", "close")]
        self.answers = []

    def work(self, _, over):
        connection = None
        try:
            while not over.is_set():
                if connection is None:
                    connection = wire.Connection(self.address)
                response = connection.exchange("GET", "/", self.headers)
                assert response.status == 200, response
                self.answers.append(response)
                if response.closing:
                    connection.expect_eof()
                    connection.close()
                    connection = None
        finally:
            if connection:
                connection.close()

    def wait_answers(self, count):
        goal = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= goal or self.faults, 40)
        assert not self.faults

    def wait_version(self, text):
        wait_until(lambda: (self.answers and self.answers[-1].header("x-version") == text) or self.faults, 40)
        assert not self.faults


# --- children ---

def test_workers_start_and_say_so(server):
    running = server(APP, "-w", "3")
    workers = running.wait_workers(3)
    assert running.get("/").status == 200
    assert {"Starting", "Listening"} <= {message.split()[0] for _, _, message in running.lines("INFO")}
    assert {pid for pid, _, message in running.lines() if message.startswith("Starting")} == {running.pid}
    assert running.stop() == 0
    for pid in workers:
        assert re.search(r"Worker exiting \(pid: %d\)" % pid, running.log())


def test_a_killed_worker_is_replaced(server):
    running = server(APP, "-w", "2")
    running.expect_errors(*DEATH)
    workers = running.wait_workers(2)
    os.kill(workers[0], SIGKILL)
    wait_until(lambda: len(running.workers()) == 2 and workers[0] not in running.workers())
    assert workers[1] in running.workers()
    running.wait_log(r"(?i)worker.*%d.*(SIGKILL|signal 9|signal: 9)" % workers[0])
    assert all(running.get("/").status == 200 for _ in range(20))


def test_all_workers_killed_at_once(server):
    running = server(APP, "-w", "3")
    running.expect_errors(*DEATH)
    before = running.wait_workers(3)
    for pid in before:
        os.kill(pid, SIGKILL)
    assert version(running) == "one"
    wait_until(lambda: len(running.workers()) == 3 and not set(before) & set(running.workers()))


def test_a_killed_worker_costs_only_its_own_request(server):
    """The connection that it was answering ends; the backlog is everybody's."""
    running = server(APP)
    running.expect_errors(*DEATH)
    with running.connect() as victim, running.connect() as other:
        victim.send_request("GET", "/wait")
        wait_until(lambda: running.exists("inside"))
        with running.connect() as waiting:
            waiting.send_request()
            os.kill(running.workers()[0], SIGKILL)
            assert victim.expect_closed() == b""
            assert waiting.read_response().status == 200
        other.close()
    running.touch("go")


def test_a_worker_that_is_told_to_end_is_replaced(server):
    """TERM to a worker, as an operator sends it: it finishes its request first."""
    running = server(APP)
    worker = running.wait_workers(1)[0]
    with running.connect() as connection:
        enter(running, connection, "/wait")
        os.kill(worker, SIGTERM)
        running.touch("go")
        response = connection.read_response()
        assert (response.status, response.header("x-pid")) == (200, str(worker))
    wait_until(lambda: running.workers() and running.workers() != [worker])
    assert running.get("/").status == 200


def test_signals_to_a_worker_that_mean_nothing_there(server):
    """`pkill -HUP` reaches the workers too; under gunicorn that kills them."""
    running = server(APP, "-w", "2")
    workers = running.wait_workers(2)
    for pid in workers:
        for number in (SIGWINCH, SIGHUP, SIGTTIN, SIGTTOU, SIGCHLD, SIGUSR1):
            os.kill(pid, number)
    assert {pid_of(running) for _ in range(20)} <= set(workers)
    assert running.workers() == workers


def test_a_worker_that_dies_at_once_is_not_forked_in_a_frenzy(server):
    """It boots, and a moment later it is gone, again and again."""
    running = server("""
        import os, threading
        threading.Timer(0.03, os._exit, [9]).start()

        def app(environ, start_response):
            start_response("200 OK", [])
            return []
    """)
    running.expect_errors()
    boots = r"Booting worker with pid"
    running.wait_log(boots)
    until = time.monotonic() + 6
    wait_until(lambda: time.monotonic() > until or not running.running(), 10)
    assert running.running()
    count = len(re.findall(boots, running.log()))
    assert 2 <= count <= 20, count


def test_a_worker_that_dies_again_later_comes_back_fast_enough(server):
    """Backoff is for frenzies: single deaths, far apart in requests, are repaired each time."""
    running = server(APP)
    running.expect_errors(*DEATH)
    for _ in range(3):
        os.kill(running.wait_workers(1)[0], SIGKILL)
        assert running.get("/").status == 200


def test_grandchildren_are_not_workers(server):
    """A program that the application leaves behind does not disturb the arbiter when it ends."""
    running = server("""
        import subprocess

        def app(environ, start_response):
            subprocess.Popen("sleep 0.05 & exec sleep 0.05", shell=True, stdin=subprocess.DEVNULL)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "-w", "2")
    workers = running.wait_workers(2)
    for _ in range(10):
        assert running.get("/").status == 200
    wait_until(lambda: set(running.processes()) <= {running.pid} | set(harness.descendants(running.pid)))
    assert running.workers() == workers


# --- stopping ---

def test_term_finishes_what_is_begun(server, tmp_path):
    running = server(APP, "--keep-alive", "60", bind="unix:%s/s" % tmp_path)
    with running.connect() as idle, running.connect() as connection:
        assert idle.exchange().status == 200
        enter(running, connection, "/wait")
        running.signal(SIGTERM)
        running.wait_log(r"Handling signal: term")
        running.touch("go")
        response = connection.read_response()
        assert (response.status, response.body) == (200, b"one")
        connection.expect_eof()
        idle.expect_eof()
    assert running.wait_exit() == 0
    assert not (tmp_path / "s").exists()
    assert not running.processes()


def test_term_finishes_a_download(server):
    """Also what the loop still sends after the application is done."""
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"x" * 20000000]
    """)
    with wire.Connection(running.address, receive_buffer=4096) as connection:
        connection.send_request()
        response = connection.read_head()
        running.signal(SIGTERM)
        running.wait_log(r"Handling signal: term")
        assert len(connection.read_body(response).body) == 20000000
    assert running.wait_exit() == 0


def test_term_with_a_stuck_request_ends_after_the_graceful_timeout(server):
    running = server(APP, "--graceful-timeout", "1")
    running.expect_errors()
    with running.connect() as connection:
        enter(running, connection, "/stuck")
        assert running.stop(SIGTERM, timeout=15) == 0
    assert not running.processes()


def test_graceful_timeout_is_patient_until_then(server):
    running = server(APP, "--graceful-timeout", "40")
    with running.connect() as connection:
        enter(running, connection, "/wait")
        running.signal(SIGTERM)
        assert not connection.readable(2.5)
        running.touch("go")
        assert connection.read_response().status == 200
    assert running.wait_exit() == 0


@pytest.mark.parametrize("number", [SIGINT, SIGQUIT])
def test_int_and_quit_do_not_wait(server, number):
    """For requests; the graceful timeout is 30 s here."""
    running = server(APP, "-w", "2", "--keep-alive", "60")
    running.expect_errors()
    with running.connect() as idle, running.connect() as connection:
        assert idle.exchange().status == 200
        enter(running, connection, "/stuck")
        assert running.stop(number, timeout=15) == 0
    running.wait_log(r"Handling signal: %s" % ("int" if number == SIGINT else "quit"))
    assert not running.processes()


def test_quit_cuts_a_graceful_stop_short(server):
    running = server(APP, "--graceful-timeout", "60")
    running.expect_errors()
    with running.connect() as connection:
        enter(running, connection, "/stuck")
        running.signal(SIGTERM)
        running.wait_log(r"Handling signal: term")
        running.signal(SIGQUIT)
        assert running.wait_exit(15) == 0


def test_stop_while_workers_boot(server):
    running = server("""
        import time
        open("importing", "w").close()
        time.sleep(600)
    """, "-w", "2", "--graceful-timeout", "2")
    running.expect_errors()
    wait_until(lambda: running.exists("importing"))
    assert running.stop(SIGTERM, timeout=20) == 0
    assert not running.processes()


@pytest.mark.parametrize("number", [SIGTERM, SIGQUIT])
def test_stop_while_an_import_swallows_it(server, number):
    """Whatever way the import is told, it may not notice; the worker then ends when the import is over."""
    running = server("""
        import os, time
        deadline = time.monotonic() + 60
        while not os.path.exists("go") and time.monotonic() < deadline:
            try:
                open("importing", "w").close()
                time.sleep(0.005)
            except BaseException:
                open("swallowed", "w").close()

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """)
    running.expect_errors()
    wait_until(lambda: running.exists("importing"))
    running.signal(number)
    running.wait_log(r"Handling signal")
    running.touch("go")
    assert running.wait_exit(15) == 0
    assert not running.processes()


@pytest.mark.parametrize("raises", ["raise LookupError('late')", "raise LookupError('late') from error"])
def test_stop_while_an_import_makes_another_exception_of_it(server, raises):
    """As Python does itself within a class (`__set_name__`, before 3.12). It is no failure of the application's."""
    running = server("""
        import time
        try:
            open("importing", "w").close()
            time.sleep(600)
        except BaseException as error:
            %s
    """ % raises)
    wait_until(lambda: running.exists("importing"))
    assert running.stop(SIGTERM, timeout=20) == 0
    assert "LookupError" not in running.log()


def test_two_signals_at_once_in_a_worker_that_boots(server, tmp_path):
    """As from a terminal, where the arbiter adds its own: the second one still waits when the first has ended the factory."""
    (tmp_path / "told.py").write_text(textwrap.dedent("""
        import os
        from signal import SIG_BLOCK, SIG_UNBLOCK, SIGINT, SIGQUIT, pthread_sigmask

        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"served"]

        def factory():
            if not os.path.exists("told"):
                open("told", "w").close()
                pthread_sigmask(SIG_BLOCK, {SIGINT, SIGQUIT})
                os.kill(os.getpid(), SIGINT)
                os.kill(os.getpid(), SIGQUIT)
                pthread_sigmask(SIG_UNBLOCK, {SIGINT, SIGQUIT})
            return app
    """))
    running = server("told:factory()", env={"PYTHONPATH": str(tmp_path)})
    assert running.get("/").text == "served"
    assert len(re.findall("Booting worker", running.log())) == 2
    assert "Traceback" not in running.log() and "ignored" not in running.log()


@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGQUIT])
def test_stop_while_a_request_swallows_it(server, number):
    """A request that will not end does not keep the server beyond the graceful timeout."""
    running = server("""
        import time

        def app(environ, start_response):
            open("inside", "w").close()
            while True:
                try:
                    time.sleep(600)
                except BaseException:
                    pass
    """, "--graceful-timeout", "2")
    running.expect_errors()
    with running.connect() as connection:
        connection.send_request()
        wait_until(lambda: running.exists("inside"))
        assert running.stop(number, timeout=15) == 0
    assert not running.processes()


def test_stop_at_once(server):
    """A signal in the first moments is not lost, whatever it interrupts."""
    for written in (1, 60, 120, 180, 240, 300):
        running = server(APP, "-w", "2", wait=False)
        wait_until(lambda: len(running.log()) >= written)
        listening = "Listening at" in running.log()
        running.signal(SIGTERM)
        assert running.wait_exit(20) in ((0,) if listening else (0, -SIGTERM))
        wait_until(lambda: not running.processes())


def test_orphaned_workers_end(server):
    """Nobody supervises them any more, so they give the address back."""
    running = server(APP, "-w", "2", "--keep-alive", "60")
    running.wait_workers(2)
    with running.connect() as idle:
        assert idle.exchange().status == 200
        os.kill(running.pid, SIGKILL)
        running.wait_exit()
        wait_until(lambda: not running.processes(), 20)


def test_orphaned_worker_finishes_its_request(server):
    running = server(APP)
    with running.connect() as connection:
        enter(running, connection, "/wait")
        os.kill(running.pid, SIGKILL)
        running.wait_exit()
        running.touch("go")
        assert connection.read_response().status == 200
    wait_until(lambda: not running.processes(), 20)


# --- HUP ---

def test_hup_serves_the_new_release(server):
    running = server(APP, "-w", "2", config="workers = 1\n")
    old = loaded_workers(running, 2)
    release(running, "two")
    running.signal(SIGHUP)
    running.wait_log(r"Handling signal: hup")
    wait_until(lambda: version(running) == "two")
    wait_until(lambda: not set(old) & set(running.workers()))
    assert {version(running) for _ in range(20)} == {"two"}
    assert len(loaded_workers(running, 2)) == 2
    assert running.running()


def test_hup_reads_the_configuration_again(server):
    running = server(APP, config="workers = 1\ntimeout = 30\n")
    [first] = loaded_workers(running, 1)
    running.write("gunicorn.conf.py", "workers = 3\naccesslog = 'access.log'\nloglevel = 'debug'\n")
    running.signal(SIGHUP)
    # It has no access log.
    wait_until(lambda: first not in running.workers())
    old = set(loaded_workers(running, 3))
    running.get("/after-hup")
    wait_until(lambda: "/after-hup" in running.read("access.log"))
    running.write("gunicorn.conf.py", "workers = 1\n")
    running.signal(SIGHUP)
    wait_until(lambda: len(running.workers()) == 1 and not old & set(running.workers()))


def test_hup_with_a_new_address(server, tmp_path):
    """The listener follows the configuration."""
    config = "bind = 'unix:%s/%s.sock'\n"
    running = server(APP, config=config % (tmp_path, "one"), bind=None)
    assert running.get("/").status == 200
    running.write("gunicorn.conf.py", config % (tmp_path, "two"))
    running.signal(SIGHUP)
    wait_until(lambda: (tmp_path / "two.sock").exists())
    with wire.Connection(str(tmp_path / "two.sock")) as connection:
        assert connection.exchange().status == 200
    wait_until(lambda: not (tmp_path / "one.sock").exists())


def test_hup_waits_for_the_new_workers(server):
    """Until they are ready the old ones serve."""
    running = server(APP, "-w", "2")
    old = loaded_workers(running, 2)
    running.write("app.py", harness.textwrap.dedent(APP).replace(
        "def app(", "open('importing', 'w').close()\nwait_for('import')\nVERSION = 'two'\n\ndef app("))
    running.signal(SIGHUP)
    wait_until(lambda: running.exists("importing"))
    for _ in range(20):
        assert version(running) == "one"
    assert set(old) <= set(running.workers())
    running.touch("import")
    wait_until(lambda: version(running) == "two")
    wait_until(lambda: not set(old) & set(running.workers()))


def test_hup_finishes_requests_in_flight(server):
    running = server(APP)
    old = loaded_workers(running, 1)
    with running.connect() as connection:
        enter(running, connection, "/wait")
        deploy(running, "two")
        running.touch("go")
        response = connection.read_response()
        assert (response.status, response.body, response.header("x-pid")) == (200, b"one", str(old[0]))
    wait_until(lambda: not set(old) & set(running.workers()))


def test_hup_does_not_wait_for_ever(server):
    """An old worker that does not come to an end is ended after the graceful timeout."""
    running = server(APP, "--graceful-timeout", "1")
    running.expect_errors()
    old = loaded_workers(running, 1)
    with running.connect() as connection:
        enter(running, connection, "/stuck")
        deploy(running, "two")
        wait_until(lambda: not alive(old[0]))
        connection.expect_closed()


def test_hup_keeps_idle_connections(server):
    """A client whose connection is at rest does not learn of the reload: its next request is answered."""
    running = server(APP, "-w", "2", "--keep-alive", "60")
    old = loaded_workers(running, 2)
    connections = [running.connect() for _ in range(10)]
    for connection in connections:
        assert connection.exchange().header("x-version") == "one"
    deploy(running, "two")
    for connection in connections:
        response = connection.exchange()
        assert response.status == 200
        connection.close()
    wait_until(lambda: not set(old) & set(running.workers()))


@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "connections"])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_hup_loses_no_request(server, keep_alive, threads):
    running = server(APP, "-w", "2", "--threads", threads, "--keep-alive", "60")
    loaded_workers(running, 2)
    with Clients(running, keep_alive=keep_alive) as clients:
        clients.wait_answers(30)
        for text in ("two", "three", "four"):
            release(running, text)
            running.signal(SIGHUP)
            clients.wait_version(text)
            clients.wait_answers(30)


@pytest.mark.parametrize("broken, words", [
    ("raise RuntimeError('broken release 42')\n", "broken release 42"),
    ("def app(:\n", "SyntaxError"),
    ("import no_such_module_z\n", "no_such_module_z"),
    ("application = None\n", "app"),
    ("import sys\nsys.exit(3)\n", ""),
    ("import os\nos._exit(1)\n", ""),
    ("import os\nos.kill(os.getpid(), 9)\n", ""),
], ids=["raise", "syntax", "import", "no app", "sys.exit", "os._exit", "kill"])
def test_a_release_that_cannot_boot_is_dropped(server, broken, words):
    """The old one goes on serving, the log says why, and the next release that works is taken."""
    running = server(APP, "-w", "2")
    running.expect_errors()
    old = loaded_workers(running, 2)
    lines = len(running.log())
    running.write("app.py", broken)
    running.signal(SIGHUP)
    wait_until(lambda: re.search(r"\[(ERROR|CRITICAL)\]", running.log()[lines:]), 20, running.log)
    wait_until(lambda: words in running.log()[lines:], 20, running.log)
    wait_until(lambda: running.workers() == old or not running.running(), 20, running.log)
    for _ in range(20):
        assert version(running) == "one"
    assert running.running() and "panicked" not in running.log()
    deploy(running, "two")


@pytest.mark.parametrize("broken", ["raise RuntimeError('broken config 42')\n", "workers = 'many'\n", "workers = -5\n",
                                    "workers = \n"])
def test_a_broken_configuration_is_not_taken(server, broken):
    running = server(APP, config="workers = 2\n", bind="127.0.0.1:0")
    running.expect_errors()
    old = loaded_workers(running, 2)
    lines = len(running.log())
    running.write("gunicorn.conf.py", broken)
    running.signal(SIGHUP)
    wait_until(lambda: re.search(r"\[(ERROR|CRITICAL)\]", running.log()[lines:]), 20, running.log)
    assert running.running() and running.workers() == old
    assert version(running) == "one"
    running.write("gunicorn.conf.py", "workers = 1\n")
    running.signal(SIGHUP)
    wait_until(lambda: len(running.workers()) == 1 and running.workers()[0] not in old, 20, running.log)
    assert version(running) == "one"


def test_many_hups(server):
    """In a row faster than they can be done: the last one counts, nothing piles up."""
    running = server(APP, "-w", "2", "--keep-alive", "60")
    running.expect_errors(r"(?i)reload")  # those that a later one overtook
    loaded_workers(running, 2)
    with Clients(running) as clients:
        for n in range(10):
            release(running, "v%d" % n)
            running.signal(SIGHUP)
            clients.wait_answers(5)
        clients.wait_version("v9")
    loaded_workers(running, 2)
    wait_until(lambda: {version(running) for _ in range(5)} == {"v9"})


@pytest.mark.parametrize("end", ["overtaken", "fails"])
def test_a_generation_that_is_given_up_finishes_its_requests(server, end):
    """One of its workers was ready and serves a request when the next reload comes, or when its sibling cannot boot."""
    running = server(APP, "-w", "2")
    running.expect_errors()
    old = loaded_workers(running, 2)
    running.write("app.py", harness.textwrap.dedent(APP).replace('VERSION = "one"', 'VERSION = "two"').replace("def app(", """
try:
    os.mkdir("first")
except FileExistsError:
    open("second", "w").close()
    wait_for("import")
    raise RuntimeError("the second cannot boot")

def app(""").replace('"/wait"', '"/wait-in-two"'))
    running.signal(SIGHUP)
    wait_until(lambda: running.exists("second"))
    new = wait_until(lambda: [p for p in running.workers() if p not in old and running.exists("loaded-%d" % p)])[0]
    connections = []
    for _ in range(60):
        connections.append(running.connect())
        connections[-1].send_request("GET", "/wait-in-two")
        wait_until(lambda: running.exists("inside") or connections[-1].readable())
        if running.exists("inside"):
            break
    # A server may also keep the whole generation from serving until it is complete; then there is nothing to lose.
    if end == "overtaken":
        deploy(running, "three")
    else:
        running.touch("import")
        running.wait_log(r"the second cannot boot")
        assert version(running) == "one"
    running.touch("go")
    for connection in connections:
        assert connection.read_response().status == 200
        connection.close()
    wait_until(lambda: not alive(new))


def test_hup_while_stopping_does_not_start_again(server):
    running = server(APP)
    with running.connect() as connection:
        enter(running, connection, "/wait")
        running.signal(SIGTERM)
        running.wait_log(r"Handling signal: term")
        running.signal(SIGHUP)
        running.touch("go")
        assert connection.read_response().status == 200
    assert running.wait_exit() == 0
    assert not running.processes()


# --- preload ---

PRELOADED = APP.replace('VERSION = "one"', '''
    VERSION = "one"
    with open("imports", "a") as f:
        f.write("%d\\n" % os.getpid())
''')


def test_a_failed_reload_leaves_the_mold_able_to_fork(server):
    """Also one that wanted more threads, and so a larger scoreboard than the serving mold has."""
    running = server(PRELOADED, "--preload", config="threads = 1\n", bind="127.0.0.1:0")
    running.expect_errors()
    assert version(running) == "one"
    running.write("gunicorn.conf.py", "threads = 8\n")
    running.write("app.py", "raise RuntimeError('broken release 42')\n")
    running.signal(SIGHUP)
    running.wait_log(r"Reload failed")
    ready = len(re.findall("Worker ready", running.log()))
    for pid in map(int, re.findall(r"Worker ready \(pid: (\d+)\)", running.log())):
        os.kill(pid, SIGKILL)
    wait_until(lambda: len(re.findall("Worker ready", running.log())) > ready, 20, running.log)
    assert version(running) == "one"


def test_preload_imports_once(server):
    running = server(PRELOADED, "-w", "3", "--preload")
    workers = running.wait_workers(3)
    assert version(running) == "one"
    imports = running.read("imports").split()
    assert len(imports) == 1 and int(imports[0]) not in workers


def test_without_preload_each_worker_imports(server):
    running = server(PRELOADED, "-w", "3")
    workers = running.wait_workers(3)
    wait_until(lambda: len(running.read("imports").split()) == 3)
    assert sorted(map(int, running.read("imports").split())) == workers


def test_preload_and_a_killed_worker(server):
    """Its replacement is forked, not imported."""
    running = server(PRELOADED, "-w", "2", "--preload")
    running.expect_errors(*DEATH)
    workers = running.wait_workers(2)
    assert version(running) == "one"
    os.kill(workers[0], SIGKILL)
    wait_until(lambda: len(running.workers()) == 2 and workers[0] not in running.workers())
    running.signal(SIGTTIN)
    running.wait_workers(3)
    assert version(running) == "one"
    assert len(running.read("imports").split()) == 1


def test_preload_and_hup(server):
    """Under gunicorn the old code stays; here HUP means what it says."""
    running = server(PRELOADED, "-w", "2", "--preload", "--keep-alive", "60")
    old = running.wait_workers(2)
    assert version(running) == "one"
    with Clients(running) as clients:
        running.write("app.py", harness.textwrap.dedent(PRELOADED).replace('VERSION = "one"', 'VERSION = "two"'))
        running.signal(SIGHUP)
        clients.wait_version("two")
        clients.wait_answers(20)
    wait_until(lambda: not set(old) & set(running.workers()))
    assert len(running.read("imports").split()) == 2


def test_preload_of_a_release_that_cannot_boot(server):
    running = server(PRELOADED, "-w", "2", "--preload")
    running.expect_errors()
    old = running.wait_workers(2)
    running.write("app.py", "raise RuntimeError('broken release 42')\n")
    running.signal(SIGHUP)
    running.wait_log(r"broken release 42")
    assert version(running) == "one"
    assert running.workers() == old


@pytest.mark.parametrize("spec, code", [("no_such_module_x", 3), ("apps.hello:missing", 4)])
def test_preload_of_an_app_that_cannot_be_loaded(spec, code):
    done = harness.run("-b", "127.0.0.1:0", "--preload", spec)
    assert done.returncode in (1, code), done.stderr
    assert done.returncode and spec.split(":")[-1] in done.stderr


# --- the other signals ---

def test_usr1_reopens_the_logs(server):
    running = server(APP, "-w", "2", "--access-logfile", "access.log", "--error-logfile", "error.log")
    running.expect_errors(r"Error handling request", r"on purpose")
    running.wait_workers(2)
    running.get("/before")
    wait_until(lambda: "/before" in running.read("access.log"))
    os.rename(running.path("access.log"), running.path("access.old"))
    os.rename(running.path("error.log"), running.path("error.old"))
    running.signal(SIGUSR1)
    wait_until(lambda: running.exists("access.log") and running.exists("error.log"))

    def both_write_there():
        running.get("/after")
        running.get("/raise")
        return "/after" in running.read("access.log") and "on purpose" in running.read("error.log")
    wait_until(both_write_there)
    # When every worker has heard of it, nothing goes to the old files any more.
    def quiet():
        size = len(running.read("access.old")) + len(running.read("error.old"))
        for _ in range(20):
            running.get("/later")
            running.get("/raise")
        return size == len(running.read("access.old")) + len(running.read("error.old"))
    wait_until(quiet)
    assert len(running.workers()) == 2 and "/before" not in running.read("access.log")


def test_usr1_loses_no_line(server):
    running = server(APP, "--access-logfile", "access.log", "--keep-alive", "60")
    with Clients(running, count=2) as clients:
        for n in range(5):
            clients.wait_answers(20)
            os.rename(running.path("access.log"), running.path("access.%d" % n))
            running.signal(SIGUSR1)
            wait_until(lambda: running.exists("access.log"))
    assert running.stop() == 0
    written = sum(running.read(name).count("\n") for name in ["access.log"] + ["access.%d" % n for n in range(5)])
    assert written == len(clients.answers)


def test_ttin_and_ttou(server):
    running = server(APP)
    oldest = running.wait_workers(1)[0]
    running.signal(SIGTTIN)
    running.wait_workers(2)
    running.signal(SIGTTIN)
    running.wait_workers(3)
    assert oldest in running.workers()
    for count in (2, 1):
        running.signal(SIGTTOU)
        running.wait_workers(count)
    running.signal(SIGTTOU)
    running.wait_log(r"Handling signal: ttou", count=3)
    assert version(running) == "one"
    assert len(running.workers()) == 1


def test_ttou_finishes_requests(server):
    running = server(APP, "-w", "2", "--threads", "2")
    running.wait_workers(2)
    connections = [running.connect() for _ in range(4)]
    for connection in connections:
        enter(running, connection, "/wait")
    running.signal(SIGTTOU)
    running.wait_log(r"Handling signal: ttou")
    running.touch("go")
    for connection in connections:
        assert connection.read_response().status == 200
        connection.close()
    running.wait_workers(1)


def test_winch_means_nothing_in_the_foreground(server):
    """A terminal sends it whenever its window changes."""
    running = server(APP, "-w", "2")
    workers = running.wait_workers(2)
    running.signal(SIGWINCH)
    running.signal(SIGTTIN)
    running.wait_workers(3)
    assert set(workers) <= set(running.workers())


def test_a_burst_of_signals(server):
    running = server(APP, "--access-logfile", "access.log")
    running.wait_workers(1)
    for _ in range(50):
        for number in (SIGUSR1, SIGWINCH, SIGCHLD):
            running.signal(number)
    assert version(running) == "one"
    running.signal(SIGTTIN)
    running.wait_workers(2)


# --- timeout ---

@pytest.mark.parametrize("path", ["/stuck", "/busy"])
@pytest.mark.parametrize("options", [[], ["--threads", "2"]], ids=["plain", "threads"])
def test_timeout_ends_a_stuck_request(server, path, options):
    """Waiting or computing, in Python or in C: the log names the request, the worker is replaced."""
    running = server(APP, "--timeout", "1", *options)
    running.expect_errors()
    old = running.wait_workers(1)
    with running.connect() as connection:
        connection.send_request("GET", path + "?query")
        said = connection.expect_closed()
        assert said == b"" or said.startswith((b"HTTP/1.1 504", b"HTTP/1.1 500")), said
    line = running.wait_log(r"\[CRITICAL\].*WORKER TIMEOUT \(pid: ?%d\).*" % old[0])
    wait_until(lambda: "GET" in running.log()[line.start():] and path in running.log()[line.start():], 10, running.log)
    wait_until(lambda: running.workers() and running.workers() != old)
    assert version(running) == "one"
    wait_until(lambda: not alive(old[0]))


def test_timeout_is_not_for_idle_workers(server):
    running = server(APP, "--timeout", "1", "--keep-alive", "60")
    with running.connect() as connection:
        pid = connection.exchange().header("x-pid")
        assert not connection.readable(3)
        assert connection.exchange().header("x-pid") == pid
    assert "TIMEOUT" not in running.log()


def test_timeout_is_for_each_request_alone(server):
    """Many short ones, together much longer than the limit, are no reason."""
    running = server("""
        import os, time

        def app(environ, start_response):
            time.sleep(0.2)
            start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
            return [b"hello"]
    """, "--timeout", "1", "--keep-alive", "60")
    with running.connect() as connection:
        connection.send(wire.request_bytes() * 15)
        assert len({connection.read_response().header("x-pid") for _ in range(15)}) == 1
    assert "TIMEOUT" not in running.log()


def test_timeout_zero_is_none(server):
    running = server(APP, "--timeout", "0")
    with running.connect() as connection:
        enter(running, connection, "/wait")
        assert not connection.readable(2)
        running.touch("go")
        assert connection.read_response().status == 200


def test_timeout_spares_the_other_workers(server):
    running = server(APP, "-w", "2", "--timeout", "1")
    running.expect_errors()
    workers = running.wait_workers(2)
    with running.connect() as stuck:
        stuck.send_request("GET", "/stuck")
        stuck.expect_closed()

    def replaced():
        # Three at first: the replacement is ready before the stuck one goes.
        now = running.workers()
        return now if len(now) == 2 and set(now) != set(workers) else None
    assert len(set(workers) & set(wait_until(replaced, what=running.log))) == 1


# --- max_requests ---

@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "connections"])
@pytest.mark.parametrize("options", [["-w", "1"], ["-w", "2", "--threads", "3"]], ids=["one", "threads"])
def test_max_requests_loses_no_request(server, keep_alive, options):
    running = server(APP, "--max-requests", "20", "--max-requests-jitter", "10", "--keep-alive", "60", *options)
    with Clients(running, keep_alive=keep_alive) as clients:
        wait_until(lambda: len({a.header("x-pid") for a in list(clients.answers)}) >= 6 or clients.faults, 60)


def test_max_requests_replacement_is_ready_first(server):
    """While the replacement boots the old worker serves on."""
    running = server(APP, "--max-requests", "3")
    old = loaded_workers(running, 1)[0]
    running.write("app.py", harness.textwrap.dedent(APP).replace(
        "def app(", "open('importing', 'w').close()\nwait_for('import')\n\ndef app("))
    wait_until(lambda: pid_of(running) and running.exists("importing"))
    assert {pid_of(running) for _ in range(10)} == {old}
    running.touch("import")
    wait_until(lambda: pid_of(running) != old)
    wait_until(lambda: not alive(old))


def test_max_requests_zero_is_never(server):
    running = server(APP, "--max-requests", "0", "--max-requests-jitter", "5")
    assert len({pid_of(running) for _ in range(60)}) == 1


# --- boot ---

def test_exit_code_3_when_no_worker_boots(server):
    running = server("raise RuntimeError('import on purpose')\n\n", "-w", "4", wait=False)
    running.expect_errors()
    assert running.wait_exit() == 3
    assert "import on purpose" in running.log() and "failed to boot" in running.log()
    assert not running.processes()


def test_a_request_waits_for_the_first_boot(server):
    """The address is taken at once; who connects early is served when the application is there."""
    running = server("""
        import os, time
        deadline = time.monotonic() + 30
        open("importing", "w").close()
        while not os.path.exists("go") and time.monotonic() < deadline:
            time.sleep(0.005)

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "-w", "2")
    wait_until(lambda: running.exists("importing"))
    with running.connect() as connection:
        connection.send_request()
        assert not connection.readable(0.2)
        running.touch("go")
        assert connection.read_response().body == b"hello"


def test_a_worker_is_not_asked_before_it_is_ready(server):
    """One of two boots slowly: the other serves everything meanwhile."""
    running = server("""
        import os, time
        deadline = time.monotonic() + 30
        try:
            os.mkdir("first")
        except FileExistsError:
            open("second", "w").close()
            while not os.path.exists("go") and time.monotonic() < deadline:
                time.sleep(0.005)

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]
    """, "-w", "2")
    wait_until(lambda: running.exists("second"))
    assert len({running.get("/", timeout=10).text for _ in range(30)}) == 1
    running.touch("go")
    wait_until(lambda: len({running.get("/").text for _ in range(10)}) == 2, 30)


# --- daemon, pid file, PID 1 ---

def daemon_of(running):
    """The pid that the daemon wrote, once the command itself has returned."""
    assert running.wait_exit() == 0
    return int(wait_until(lambda: running.read("server.pid").strip()))


def test_daemon(server, tmp_path):
    running = server(APP, "--daemon", "--pid", "server.pid", "--error-logfile", "error.log", "-w", "2",
                     bind="unix:%s/s" % tmp_path, wait=False)
    pid = daemon_of(running)
    try:
        assert pid != running.pid and harness.stat(pid)[3] != harness.stat(os.getpid())[3]
        wait_until(lambda: (tmp_path / "s").exists())
        with wire.Connection(str(tmp_path / "s")) as connection:
            assert connection.exchange().status == 200
        for stream in (0, 1, 2):
            assert os.readlink("/proc/%d/fd/%d" % (pid, stream)) == "/dev/null"
    finally:
        os.kill(pid, SIGTERM)
        wait_until(lambda: not alive(pid) and not running.processes(), 20)
    assert not running.exists("server.pid") and not (tmp_path / "s").exists()


def test_winch_drops_the_workers_of_a_daemon(server, tmp_path):
    running = server(APP, "--daemon", "--pid", "server.pid", "--error-logfile", "error.log", "-w", "2",
                     bind="unix:%s/s" % tmp_path, wait=False)
    pid = daemon_of(running)
    try:
        wait_until(lambda: len(daemon_workers(running, pid)) == 2)
        os.kill(pid, SIGWINCH)
        wait_until(lambda: not daemon_workers(running, pid))
        assert alive(pid)
        os.kill(pid, SIGHUP)
        wait_until(lambda: len(daemon_workers(running, pid)) == 2)
        with wire.Connection(str(tmp_path / "s")) as connection:
            assert connection.exchange().status == 200
    finally:
        os.kill(pid, SIGTERM)
        wait_until(lambda: not alive(pid) and not running.processes(), 20)


def daemon_workers(running, pid):
    booted = {int(found) for found in re.findall(r"Booting worker with pid: (\d+)", running.log())}
    return [p for p in harness.descendants(pid) if p in booted and alive(p)]


def test_daemon_tells_early_mistakes(tmp_path):
    done = harness.run("--daemon", "--workers", "many", "apps.hello")
    assert done.returncode == 2 and "many" in done.stderr


def can_unshare():
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no right to make a PID namespace")
def test_as_pid_1(server):
    """In a container: TERM works though PID 1 has no default dispositions, and orphans of the application are reaped."""
    running = server("""
        import os

        def app(environ, start_response):
            if not os.fork():
                if not os.fork():
                    os._exit(0)  # the grandchild, an orphan now or soon
                os._exit(0)
            os.wait()
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getppid()]
    """, "-w", "2", prefix=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
    first = harness.children(running.pid)[0]
    for _ in range(10):
        assert running.get("/").text == "1"

    def zombies():
        return [p for p in harness.all_pids() if (harness.stat(p) or " 0")[:2] == ("Z", first)]
    wait_until(lambda: not zombies())
    os.kill(first, SIGTERM)
    assert running.wait_exit() == 0
    running.wait_log(r"Handling signal: term")


def test_no_zombies(server):
    running = server(APP, "-w", "2")
    running.expect_errors(*DEATH)
    for _ in range(3):
        old = running.wait_workers(2)
        os.kill(old[0], SIGKILL)
        wait_until(lambda: len(running.workers()) == 2 and old[0] not in running.workers())
    assert not [p for p in harness.children(running.pid) if (harness.stat(p) or "R")[0] == "Z"]


# --- at rest ---

@pytest.mark.parametrize("options", [["-w", "2"], ["-w", "1", "--threads", "4"], ["-w", "2", "--preload"]],
                         ids=["workers", "threads", "preload"])
def test_an_idle_server_sleeps(server, options):
    """Fewer than two wake-ups a second and process, all threads together, also with a connection at rest."""
    running = server(APP, "--keep-alive", "100", *options)
    with running.connect() as resting:
        assert resting.exchange().status == 200

        def wakeups():
            """The most of any process within two seconds, per second."""
            before = {pid: harness.thread_switches(pid) for pid in running.processes()}
            started = time.monotonic()
            assert not resting.readable(2)
            seconds = time.monotonic() - started
            after = {pid: harness.thread_switches(pid) for pid in running.processes()}
            return max(sum(count - before.get(pid, {}).get(thread, 0) for thread, count in threads.items()) / seconds
                       for pid, threads in after.items())
        # The first moments are for settling down; a server that polls never does.
        wait_until(lambda: wakeups() < 2, 12)


def test_the_arbiter_does_not_import_the_application(server):
    """It must survive what the application does at import; so the application is not there at all."""
    running = server("""
        import os
        open("imported-by-%d" % os.getpid(), "w").close()

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]
    """, "--preload", "-w", "2")
    assert running.get("/").status == 200
    assert not running.exists("imported-by-%d" % running.pid)


def test_descriptors_do_not_pile_up(server):
    """Neither in the arbiter with its reloads nor in a worker with its connections."""
    def open_files(pid):
        return len(os.listdir("/proc/%d/fd" % pid))
    running = server(APP, "-w", "1")
    worker = loaded_workers(running, 1)[0]
    assert running.get("/").status == 200
    in_worker = open_files(worker)
    for _ in range(50):
        assert running.get("/").status == 200
        running.connect().reset()
    wait_until(lambda: open_files(worker) <= in_worker + 1)
    counts = []
    for n in range(6):
        release(running, "v%d" % n)
        old = running.workers()
        running.signal(SIGHUP)
        wait_until(lambda: version(running) == "v%d" % n and len(running.workers()) == 1 and running.workers() != old)
        counts.append(open_files(running.pid))
    assert counts[-1] <= counts[1] + 1, counts


def test_python_interpreter_is_the_commands(server):
    running = server("""
        import sys

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [("%d.%d" % sys.version_info[:2]).encode()]
    """)
    if os.path.dirname(harness.command()[0]) != os.path.dirname(sys.executable):
        pytest.skip("the command under test is not in this environment")
    assert running.get("/").text == "%d.%d" % sys.version_info[:2]
