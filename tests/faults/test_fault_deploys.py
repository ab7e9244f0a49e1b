"""Faults of deployments: a port that is taken, a release that does not start, signals that cross. Under traffic, with a ledger.

The numbers are the rows of docs/faults.md.
"""
import glob
import itertools
import re
import socket
import textwrap
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2

import pytest

import harness
from faulty import DEATH, FAULTY, alive, compare, compare_all, start, traffic, wait_ready, wait_until

BROKEN = pytest.mark.parametrize("broken", [
    "import nowhere_to_be_found",
    "def app(:",
    "raise SystemExit(3)",
    "import os; os._exit(9)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
], ids=["missing", "syntax", "exit", "vanish", "crash"])


@pytest.fixture
def taken():
    """A port that another server listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield "127.0.0.1:%d" % other.getsockname()[1]


def test_row_11_a_port_that_is_taken_at_the_start(taken, tmp_path):
    (tmp_path / "app.py").write_text("def app(environ, start_response): pass\n")
    done = harness.run("app:app", "-b", taken, cwd=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("Connection in use: " + taken) >= 3
    assert "bind %s: Address already in use (--bind)" % taken in done.stderr.splitlines()[-1]


def test_row_11_a_port_that_is_taken_at_a_reload(server, taken):
    # Port 0 of the start would be another one at the reload.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bound = "127.0.0.1:%d" % free.getsockname()[1]
    running = server(FAULTY, "--keep-alive", "60", "-w", "2", bind=None, config="bind = [%r]\nworkers = 2\n" % bound)
    wait_ready(running, 2)
    running.expect_errors(r"Reload failed")
    with traffic(running) as clients:
        clients.wait_answers(40)
        running.write("gunicorn.conf.py", "bind = [%r, %r]\nworkers = 2\n" % (bound, taken))
        running.signal(SIGHUP)
        running.wait_log(r"Reload failed, the old configuration stays: bind %s: Address already in use" % re.escape(taken))
        clients.wait_answers(40)
    compare_all(running, clients)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["workers", "preload"])
@BROKEN
def test_row_12_an_application_that_does_not_load_at_the_start(tmp_path, broken, preload):
    (tmp_path / "app.py").write_text(broken + "\n")
    done = harness.run("app:app", "-b", "127.0.0.1:0", "-w", "2", *preload, cwd=str(tmp_path))
    assert done.returncode == 3
    assert "Worker failed to boot" in done.stderr
    # What has raised says what it was.
    assert ("No module named 'nowhere_to_be_found'" in done.stderr) == ("nowhere" in broken)
    assert ("SyntaxError: " in done.stderr) == broken.startswith("def")
    # No storm of processes that are bound to fail: six, and who was on the way by then.
    assert len(re.findall(r"Booting worker with pid|Mold .* (?:exited|was killed)", done.stderr)) <= 8


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["workers", "preload"])
@BROKEN
def test_row_13_an_application_that_does_not_load_at_a_reload(server, broken, preload):
    running = start(server, "-w", "2", *preload)
    running.expect_errors(*DEATH, r"Reload failed", r"Exception in worker", r"[Mm]old", r"[Ww]orker", r"No module|ModuleNotFound|nowhere")
    before = set(running.processes())
    with traffic(running) as clients:
        clients.wait_answers(40)
        running.write("app.py", broken + "\n")
        running.signal(SIGHUP)
        running.wait_log(r"Reload failed, the old workers serve on: (a new worker|its mold) (exited with code \d|was killed by SIGSEGV)")
        clients.wait_answers(40)
        # All of them, and nothing is left of the new ones.
        wait_until(lambda: set(running.processes()) == before, 20, running.log)
    compare_all(running, clients)


# Long after the first one, if that were enough, would have taken over.
SECOND_FAILS = """
try:
    os.mkdir("first")
except FileExistsError:
    time.sleep(2)
    raise
"""


def test_row_13_an_application_that_not_every_worker_can_load(server):
    """The first new worker is ready, and it is not enough."""
    running = start(server, "-w", "2")
    running.expect_errors(*DEATH, r"Reload failed", r"Exception in worker", r"[Ww]orker", r"FileExistsError")
    before = set(running.processes())
    with traffic(running) as clients:
        clients.wait_answers(40)
        running.write("app.py", textwrap.dedent(FAULTY) + SECOND_FAILS)
        running.signal(SIGHUP)
        running.wait_log(r"Reload failed, the old workers serve on: a new worker exited with code 3")
        clients.wait_answers(40)
        wait_until(lambda: set(running.processes()) == before, 20, running.log)
    compare_all(running, clients)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["workers", "preload"])
def test_row_13_an_application_that_hangs_at_a_reload(server, preload):
    running = start(server, "-w", "2", "--boot-timeout", "1", *preload)
    running.expect_errors(*DEATH, r"Reload failed", r"[Mm]old", r"[Ww]orker")
    before = set(running.processes())
    with traffic(running) as clients:
        clients.wait_answers(40)
        running.write("app.py", "import time\ntime.sleep(600)\n")
        running.signal(SIGHUP)
        running.wait_log(r"Reload failed, the old workers serve on.*boot-timeout")
        clients.wait_answers(40)
        wait_until(lambda: set(running.processes()) == before, 20, running.log)
    compare_all(running, clients)


SERIALS = itertools.count()
RELEASED = FAULTY.replace("def app(", "def faulty(") + """
    try:
        from release import RELEASE
    except ImportError:
        RELEASE = 0

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/release":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % RELEASE]
        return faulty(environ, start_response)
"""


@pytest.mark.parametrize("options", [[], ["--threads", "2"], ["--preload"]], ids=["workers", "threads", "preload"])
def test_row_24_reloads_that_overtake_one_another(server, options):
    running = start(server, "-w", "2", *options, app=RELEASED)
    running.expect_errors(r"Reload failed")
    with traffic(running) as clients:
        for release in range(1, 7):
            clients.wait_answers(5)
            running.write("release.py", "RELEASE = %d\n" % release)
            for _ in range(3):
                running.signal(SIGHUP)
        # The last one wins, and nothing is left of the others.
        wait_until(lambda: set(served_by_release(running)) == {"6"}, 30, running.log)
        workers = wait_ready(running, 2)
        wait_until(lambda: len(running.processes()) == (4 if "--preload" in options else 3), 20, running.log)
        clients.wait_answers(40)
    compare_all(running, clients)
    assert set(served_by_release(running)) == {"6"} and running.workers() == workers


def served_by_release(running):
    """The releases that answer, asked often enough to come to each worker."""
    return [running.get("/release?%d" % next(SERIALS)).text for _ in range(12)]


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["workers", "preload"])
@pytest.mark.parametrize("stop", [SIGTERM, SIGINT, SIGQUIT])
def test_row_24_a_stop_wins_over_a_reload_that_hangs(server, stop, preload):
    running = start(server, "-w", "2", *preload)
    workers = running.workers()
    running.write("app.py", "import os, time\nos.mkdir('importing-%d' % os.getpid())\ntime.sleep(600)\n")
    running.signal(SIGHUP)
    wait_until(lambda: glob.glob(running.path("importing-*")), 20, running.log)
    running.signal(stop)
    assert running.wait_exit() == 0
    assert not any(map(alive, workers)) and not running.processes()


def test_row_24_a_stop_wins_over_a_reload(server):
    running = start(server, "-w", "2")
    running.expect_errors(r"Reload failed")
    with traffic(running) as clients:
        clients.wait_answers(40)
        running.signal(SIGHUP)
        running.signal(SIGHUP)
        running.signal(SIGTERM)
        assert running.wait_exit() == 0
    compare(running, clients, set())


def test_row_27_an_upgrade_that_does_not_start(server):
    running = start(server, "-w", "2")
    running.expect_errors(r".")
    workers = running.workers()
    with traffic(running) as clients:
        clients.wait_answers(40)
        running.write("app.py", "import nowhere_to_be_found\n")
        running.signal(SIGUSR2)
        running.wait_log(r"(?i)upgrade.*(failed|ended|exit)")
        clients.wait_answers(40)
        assert running.workers() == workers
    compare_all(running, clients)
    # The old one can be told again, and stops as ever.
    assert running.stop() == 0


@pytest.mark.parametrize("options", [[], ["--threads", "2"], ["--preload"]], ids=["workers", "threads", "preload"])
def test_row_28_all_workers_reach_max_requests_at_once(server, options):
    running = start(server, "-w", "3", "--max-requests", "25", *options)
    with traffic(running) as clients:
        clients.wait_answers(600)
    compare_all(running, clients)


def test_row_28_there_are_never_fewer_workers_than_wanted(server):
    """By the log, which is written in the order of what happens: a worker goes only when another is ready."""
    running = start(server, "-w", "3", "--max-requests", "25")
    with traffic(running) as clients:
        running.wait_log(r"Worker exiting", 60, count=10)
    compare_all(running, clients)
    there, counts = set(), []
    for ready, exiting in re.findall(r"Worker ready \(pid: (\d+)\)|Worker exiting \(pid: (\d+)\)", running.log()):
        there = there | {ready} if ready else there - {exiting}
        counts.append(len(there))
    assert len(counts) > 20 and min(counts[2:]) == 3
