"""A worker ends as a Python program does: by SystemExit, through the frames of whoever started the server, and within a time."""
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

import harness
from harness import alive, wait_until

APP = """
    import atexit, os, sys, threading, time

    kept = open("kept-%d" % os.getpid(), "w")

    def note(*words):
        with open("notes", "a") as f:
            f.write(" ".join(map(str, words)) + "\\n")

    class Finalised:
        # At that moment there are no names any more.
        def __del__(self, open=os.open, write=os.write, flags=os.O_WRONLY | os.O_CREAT | os.O_APPEND, pid=os.getpid):
            write(open("notes", flags), b"finalised %d\\n" % pid())

    finalised = Finalised()

    def hold():
        note("exiting", os.getpid())
        while not os.path.exists("go"):
            time.sleep(0.01)
        note("exited", os.getpid())

    def app(environ, start_response):
        path = environ["PATH_INFO"][1:]
        if path == "keep":
            app.left = open("left", "w")
            app.left.write("buffered")
            atexit.register(note, "atexit", os.getpid())
            thread = threading.Thread(target=lambda: (threading.main_thread().join(), note("thread", os.getpid())), daemon=False)
            thread.start()
        elif path == "hold":
            atexit.register(hold)
        elif path == "stuck-thread":
            threading.Thread(target=time.sleep, args=(1000,), name="stuck one", daemon=False).start()
        elif path == "stuck-exit":
            atexit.register(lambda: time.sleep(1000))
        elif path == "stuck-native":
            import ctypes
            atexit.register(lambda: ctypes.PyDLL(None).sleep(1000))
        elif path == "daemon":
            def run():
                while True:
                    sum(range(1000))
            threading.Thread(target=run, daemon=True).start()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % os.getpid()]
"""

MODES = pytest.mark.parametrize("options", [(), ("--threads", "3"), ("--preload",), ("--preload", "--threads", "2")],
                                ids=["plain", "threads", "preload", "preload-threads"])


def notes(running):
    return running.read("notes").splitlines() if running.exists("notes") else []


@MODES
@pytest.mark.parametrize("how", ["stop", "quit", "reload", "max requests"])
def test_what_a_program_does_at_its_end_is_done(server, options, how):
    """Threads are waited for, exit handlers run, files are closed, objects are finalised."""
    running = server(APP, *options, *(["--max-requests", "1"] if how == "max requests" else []))
    running.wait_workers(1)
    running.wait_log("Worker ready")
    worker = int(running.get("/keep").text)
    if how in ("stop", "quit"):
        assert running.stop(signal.SIGTERM if how == "stop" else signal.SIGQUIT) == 0
    elif how == "reload":
        running.signal(signal.SIGHUP)
    wait_until(lambda: not alive(worker), 20, running.log)
    for note in ("thread", "atexit", "finalised"):
        assert "%s %d" % (note, worker) in notes(running), running.log()
    assert running.read("left") == "buffered"


@MODES
def test_signals_do_not_cut_the_end_short(server, options):
    """As in a worker that serves they mean that it is to leave, which it does."""
    running = server(APP, *options)
    running.wait_workers(1)
    worker = int(running.get("/hold").text)
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: "exiting %d" % worker in notes(running), 20, running.log)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker, number)
    running.touch("go")
    wait_until(lambda: not alive(worker), 20, running.log)
    assert "exited %d" % worker in notes(running)
    running.wait_workers(1)
    assert not re.search(r"Worker \(pid:%d\) (was killed|exited)" % worker, running.log())


@MODES
@pytest.mark.parametrize("way, held", [
    ("stuck-thread", r"it waits for threads that are no daemons: 'stuck one'"),
    ("stuck-exit", r"an exit handler \(atexit\), or what follows run\(\), does not return"),
    ("stuck-native", r"something keeps the interpreter")])
def test_the_end_is_bounded(server, options, way, held):
    """The log says what held the process."""
    running = server(APP, "--graceful-timeout", "1", *options)
    running.expect_errors(r"\[ERROR\] (Worker \(pid:\d+\) has not ended within \d+ s and is ended|Stacks of all threads)")
    running.wait_workers(1)
    worker = int(running.get("/" + way).text)
    assert running.stop() == 0
    assert re.search(r"\[%d\] \[ERROR\] Worker \(pid:%d\) has not ended within \d+ s and is ended: %s \(--graceful-timeout\)"
                     % (worker, worker, held), running.log()), running.log()
    assert "File " in running.log()
    assert "Killing worker" not in running.log()


@MODES
def test_a_daemon_thread_holds_nobody(server, options):
    running = server(APP, *options)
    running.wait_workers(1)
    running.get("/daemon")
    assert running.stop() == 0
    assert "has not ended" not in running.log()


def test_a_request_that_never_ends_has_exit_handlers_beside_it(server):
    """In a thread that comes back to Python again and again: the interpreter is not taken apart under it."""
    running = server("""
        import atexit, os, threading, time

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/compute":
                if threading.current_thread() is threading.main_thread():
                    while not os.path.exists("begun"):
                        time.sleep(0.01)
                else:
                    open("begun", "w").close()
                    while True:
                        time.sleep(0.001)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]

        atexit.register(lambda: open("atexit", "w").close())
    """, "--threads", "2", "--graceful-timeout", "1", "--timeout", "60")
    running.expect_errors()
    running.wait_workers(1)
    worker = int(running.get("/").text)
    with running.connect() as one, running.connect() as two:
        for connection in (one, two):
            connection.send_request("GET", "/compute")
        wait_until(lambda: running.exists("begun"))
        assert running.stop() == 0
    assert running.exists("atexit"), running.log()
    assert not re.search(r"Worker \(pid:%d\) was killed" % worker, running.log()), running.log()


# --- who started the server ---

PROGRAM = """
import atexit, multiprocessing, os, sys
from rgunicorn.app.base import BaseApplication

def note(*words):
    with open("notes", "a") as f:
        f.write(" ".join(map(str, words)) + "\\n")

class Server(BaseApplication):
    def load_config(self):
        self.cfg.set("bind", sys.argv[1])
        self.cfg.set("workers", 2)
        self.cfg.set("preload_app", len(sys.argv) > 2)

    def load(self):
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]
        return app

def serve():
    atexit.register(note, "atexit of the server", os.getpid())
    try:
        Server().run()
    except SystemExit as end:
        note("SystemExit", end.code, os.getpid())
        raise
    finally:
        note("finally", os.getpid())

if __name__ == "__main__":
    atexit.register(note, "atexit of the program", os.getpid())
    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    note("arbiter", process.pid)
    process.join()
    note("joined", process.exitcode)
"""


@pytest.mark.parametrize("preload", [(), ("preload",)], ids=["plain", "preload"])
def test_a_server_in_a_process_of_a_program(tmp_path, preload):
    """`finally` runs in each worker as in the arbiter, exit handlers of the program in the program alone."""
    (tmp_path / "program.py").write_text(PROGRAM)
    path = tmp_path / "socket"
    program = subprocess.Popen([sys.executable, "program.py", "unix:%s" % path, *preload], cwd=str(tmp_path),
                               env=harness.clean_environment(), stderr=subprocess.PIPE, text=True)
    read = lambda: (tmp_path / "notes").read_text() if (tmp_path / "notes").exists() else ""
    try:
        arbiter = int(wait_until(lambda: re.search(r"^arbiter (\d+)$", read(), re.M)).group(1))
        log = []
        for line in program.stderr:
            log.append(line)
            if sum("Worker ready" in line for line in log) == 2:
                break
        workers = {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", "".join(log))}
        os.kill(arbiter, signal.SIGTERM)
        log.append(program.stderr.read())
        assert program.wait(30) == 0
    finally:
        program.kill()
    assert len(workers) == 2 and "joined 0" in read(), "".join(log)
    for word in ("SystemExit 0", "finally"):
        told = {int(pid) for pid in re.findall(r"^%s (\d+)$" % word, read(), re.M)}
        assert told >= workers | {arbiter}, read()
    assert re.findall(r"^atexit of the program (\d+)$", read(), re.M) == [str(program.pid)], read()


def test_the_modules_that_run_programs_see_all_of_it(server):
    """`python -m trace` has its counts when the program has ended, as `python -m coverage run` has."""
    app = """
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"traced"]
    """
    running = server(app, leading=[sys.executable, "-m", "trace", "--count", "--file", "counts", "--coverdir", "cover",
                                   "--module", "rgunicorn"])
    running.wait_workers(1)
    for _ in range(3):
        assert running.get("/").text == "traced"
    assert running.stop() == 0
    cover = wait_until(lambda: running.exists("cover/app.cover") and running.read("cover/app.cover"), 20, running.log)
    assert re.search(r"^ +3: +return \[b\"traced\"\]$", cover, re.M), cover


def test_coverage_records_what_workers_run(server):
    pytest.importorskip("coverage")
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"covered"]
    """, "-w", "2", leading=[sys.executable, "-m", "coverage", "run", "--parallel-mode", "--include", "app.py", "-m", "rgunicorn"])
    running.wait_workers(2)
    assert running.get("/").text == "covered"
    assert running.stop() == 0
    done = subprocess.run(
        [sys.executable, "-m", "coverage", "combine"], cwd=running.cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = subprocess.run(
        [sys.executable, "-m", "coverage", "report", "-m"], cwd=running.cwd, capture_output=True, text=True)
    assert re.search(r"^app\.py +3 +0 +100%", report.stdout, re.M), report.stdout + report.stderr


def test_a_worker_that_cannot_boot_ends_as_a_program_too(server):
    running = server("""
        import atexit
        left = open("left", "w")
        left.write("buffered")
        atexit.register(lambda: open("atexit", "w").close())
        raise ValueError("on purpose")
    """, wait=False)
    running.expect_errors()
    assert running.wait_exit() == 3
    assert running.exists("atexit") and running.read("left") == "buffered"
