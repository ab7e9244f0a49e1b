"""Faults of what is around: disks, pipes, clocks, the interpreter. Under traffic, with a ledger.

The numbers are the rows of docs/faults.md.
"""
import glob
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from signal import SIGUSR1

import pytest

import harness
from crowd import Crowd, pid_of
from faulty import (ANSWERED, FAULTY, REFUSED, compare_all, lost_in, start, traffic, wait_replaced, wait_until,
                    worker_of)


def test_row_10_a_full_disk_costs_access_lines_and_no_request(server, tmp_path):
    """They are counted, and with room again there are lines again."""
    path = str(tmp_path / "access")
    os.symlink("/dev/full", path)
    running = start(server, "-w", "2", "--access-logfile", path)
    with traffic(running) as clients:
        clients.wait_answers(200)
        # Once for each worker.
        running.wait_log(r"\[WARNING\] Lines of the access log are lost: No space left on device", count=2)
        os.remove(path)
        running.signal(SIGUSR1)
        running.wait_log(LOST % "it could not be written", count=2)
        clients.wait_answers(40)
    compare_all(running, clients)
    assert running.stop() == 0
    assert running.log().count("Lines of the access log are lost") == 2
    answered = [name for name, what in clients.told().items() if what == ANSWERED]
    assert lost_lines(running) + harness.read_text(path).count("\n") >= len(answered)


LOST = r"(\d+) line\(s\) of the access log were lost, as %s"


def lost_lines(running):
    return sum(map(int, re.findall(LOST % ".*", running.log())))


CHATTY = """
    def app(environ, start_response):
        environ["wsgi.errors"].write("x" * 2000 + "\\n")
        environ["wsgi.errors"].flush()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]
"""
QUIET = "def when_ready(server):\n    open('ready', 'w').close()\n"


def start_unheard(server, app, *options, **settings):
    """A server whose error log cannot be read: where it listens is known beforehand."""
    port = free_port()
    running = server(app, "-w", "2", *options, bind="127.0.0.1:%d" % port, wait=False, **settings)
    running.announced = ["http://127.0.0.1:%d" % port]
    wait_until(lambda: running.exists("ready"))
    return running


def test_row_10_a_full_disk_costs_error_lines_and_no_request(server, tmp_path):
    """What the application writes to `wsgi.errors` too. They are counted, and with room again that is said."""
    path = str(tmp_path / "errors")
    os.symlink("/dev/full", path)
    # In the file, as the harness would read what the flag names.
    running = start_unheard(server, CHATTY, config=QUIET + "errorlog = %r\n" % path)
    for _ in range(50):
        assert running.get("/").text == "hello"
    os.remove(path)
    running.signal(SIGUSR1)

    def told():
        assert running.get("/").text == "hello"
        counts = re.findall(r"(\d+) line\(s\) of this log were lost, as it could not be written", harness.read_text(path))
        return sum(map(int, counts)) >= 50
    wait_until(told)
    assert running.stop() == 0


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("kind", ["fifo", "standard output"])
def test_row_10_a_reader_of_the_log_that_stops_reading_stops_nobody(server, tmp_path, kind):
    """More lines than the pipe holds: they are lost, the requests are not."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # 64 KiB is what a pipe holds; a line is a thousand octets.
    format = "%(r)s " + "x" * 1000
    if kind == "fifo":
        running = start(server, "-w", "2", "--access-logfile", fifo, "--access-logformat", format)
    else:
        running = start(server, "-w", "2", "--access-logfile", "-", "--access-logformat", format,
                        prefix=["sh", "-c", "exec \"$@\" >%s" % fifo, "sh"])
    with ExitStack() as later:
        with traffic(running) as clients:
            clients.wait_answers(1000)
            # Both workers have more than the pipe and their queues hold. With a reader again they say what is missing.
            read = later.enter_context(pipe_drain(reader))
            running.wait_log(LOST % "nobody read it", count=2)
            clients.wait_answers(40)
        compare_all(running, clients)
        assert running.stop() == 0
    # Each is whole, and each that is not there has been counted.
    told = clients.told()
    lines = b"".join(read).decode().splitlines()
    torn = [line for line in lines if not re.match(r"(GET|POST) /\?[\d&.-]+ (HTTP/1\.1|-) x{1000}$", line)]
    assert not torn
    answered = sum(what == ANSWERED for what in told.values())
    assert answered <= len(lines) + lost_lines(running) <= len(told)


@contextmanager
def pipe_drain(reader):
    """Reads it meanwhile, up to its end if that comes; what was read, in pieces."""
    over, read = threading.Event(), []

    def drain():
        while not over.is_set():
            if select.select([reader], [], [], 0.05)[0]:
                read.append(os.read(reader, 65536))
                if not read[-1]:
                    break
    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        over.set()
        thread.join(20)
        # What came before the end of whoever writes.
        while select.select([reader], [], [], 0)[0] and (read[-1] if read else True):
            read.append(os.read(reader, 65536))
        os.close(reader)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_row_10_a_reader_of_the_error_log_that_stops_reading_stops_nobody(server, kind):
    """A socket is what systemd gives."""
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    redirect = "import os, sys; os.dup2(%d, 2); os.execvp(sys.argv[1], sys.argv[1:])" % writer
    running = start_unheard(server, CHATTY, config=QUIET, prefix=[sys.executable, "-c", redirect], pass_fds=[writer])
    os.close(writer)
    for _ in range(400):
        assert running.get("/").status == 200
    # With a reader again, the log goes on, and says how much is missing.
    with pipe_drain(reader) as read:
        def whole():
            lines = b"".join(read).decode().split("\n")[:-1]
            lost = [int(count) for line in lines for count in re.findall(r"(\d+) line\(s\) of this log were lost, as nobody read it", line)]
            assert all(len(line) == 2000 for line in lines if line.startswith("x"))
            return lost and sum(lost) + sum(line.startswith("x") for line in lines) == 400
        wait_until(whole, 20, lambda: b"".join(read)[-3000:])
        assert running.get("/").status == 200
        assert running.stop() == 0


@pytest.mark.parametrize("number", ["1", "2"], ids=["access log", "error log"])
def test_row_10_a_reader_of_the_log_that_goes_away_stops_nobody(server, tmp_path, number):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    running = start_unheard(server, CHATTY, "--access-logfile", "-", config=QUIET,
                            prefix=["sh", "-c", "exec \"$@\" %s>%s" % (number, fifo), "sh"])
    running.expect_errors(r"lost")
    assert running.get("/").text == "hello"
    os.close(reader)
    for _ in range(50):
        assert running.get("/").text == "hello"
    assert running.stop() == 0


@pytest.fixture
def faked_clock(tmp_path):
    """A variable environment in which CLOCK_REALTIME is what a file says, and the file."""
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not found:
        pytest.skip("libfaketime is not installed")
    if harness.SANITIZED:
        pytest.skip("libfaketime and AddressSanitizer wait for each other before a program begins")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    return {"LD_PRELOAD": found[0], "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}, offset


@pytest.mark.parametrize("jump", ["+1d", "-1d"])
def test_row_16_a_jump_of_the_clock_changes_the_dates_and_nothing_else(server, faked_clock, jump):
    environment, offset = faked_clock
    # The library's own sleep does not know which clock it is.
    application = FAULTY.replace("time.sleep(float(seconds))", "pass")
    running = start(server, "-w", "2", "--timeout", "5", env=environment, app=application)
    workers = running.workers()
    with traffic(running) as clients:
        clients.wait_answers(40)
        before = running.get("/?before").header("date")
        offset.write_text(jump + "\n")
        wait_until(lambda: running.get("/?after").header("date")[:7] != before[:7])
        until = time.monotonic() + 3
        wait_until(lambda: time.monotonic() > until)
        clients.wait_answers(40)
    compare_all(running, clients)
    assert running.workers() == workers


# The worker ends by itself: that somebody has to kill it is not among these.
STUCK = (r"WORKER TIMEOUT", r"has been running", r"keeps the interpreter to itself", r"Stacks")


@pytest.mark.parametrize("threads", ["1", "3"])
def test_row_22_code_that_keeps_the_interpreter(server, threads):
    """The thread that holds it cannot be interrupted: its client is told, the others go elsewhere, the worker is replaced."""
    running = start(server, "-w", "2", "--threads", threads, "--timeout", "1", "--graceful-timeout", "1")
    running.expect_errors(*STUCK)
    # A request in another thread of the same worker has a deadline of its own.
    with traffic(running, refusals=(504,)) as clients:
        clients.wait_answers(40)
        with running.connect() as connection:
            connection.send_request("GET", "/grab?grabbed")
            victim = worker_of(running, "grabbed")
            response = connection.read_response()
            assert response.status == 504 and response.closing
        # By faulthandler, which can do without the interpreter.
        running.wait_log(r"^  File .*app\.py\", line \d+ in app$")
        wait_replaced(running, victim, 2)
        clients.wait_answers(40)
    # What the other threads of that worker had begun is with it, and nothing else.
    lost = sum(lost_in(running, clients, {victim}).values())
    refused = sum(what == REFUSED for what in clients.told().values())
    assert lost + refused < int(threads)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_row_22_who_comes_while_the_interpreter_is_kept_goes_elsewhere(server, threads):
    """Threads that are free could only wait for it."""
    running = start(server, "-w", "2", "--threads", threads, "--timeout", "1", "--graceful-timeout", "1")
    running.expect_errors(*STUCK)
    with Crowd(running, 8) as crowd, running.connect() as connection:
        crowd.spread(2)
        connection.send_request("GET", "/grab?grabbed")
        victim = worker_of(running, "grabbed")
        assert connection.read_response().status == 504
        # Known ones, some of which are the stuck worker's, and new ones.
        assert victim not in set(map(pid_of, crowd.ask()))
        with Crowd(running, 8) as others:
            assert victim not in set(map(pid_of, others.ask()))
        wait_replaced(running, victim, 2)


def test_row_30_an_operator_is_answered_while_everybody_is_busy(server):
    """The arbiter, which has nothing to do with requests, knows what they are."""
    running = start(server, "-w", "2", "--control-socket", "control")
    with running.connect() as one, running.connect() as other:
        for connection, name in ((one, "one"), (other, "other")):
            connection.send_request("GET", "/wait?" + name)
            worker_of(running, name)
        client = os.path.join(os.path.dirname(harness.command()[0]), "rgunicornc")
        for words in ("show workers", "show stats"):
            done = subprocess.run([client, "-s", running.path("control"), "-j", "-c", words], capture_output=True, timeout=20)
            assert done.returncode == 0, done
            shown = json.loads(done.stdout)
            assert shown.get("busy_threads", 2) == 2
            assert {worker["running"][0]["path"] for worker in shown.get("workers", [])} <= {"/wait?one", "/wait?other"}
        running.touch("go")
        assert one.read_response().status == other.read_response().status == 200
