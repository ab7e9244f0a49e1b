"""Processes that an application, a hook or a logger forks: they end where they come back to the server, and signals do to them
what they do to any Python process."""
import ast
import os
import re
import subprocess
import sys
import textwrap

import pytest

from harness import wait_until

# Forks once, where PLACE says. The child leaves as ENDING says, and the parent writes down with what.
BOTH = """
import atexit, os, sys

def both(place):
    if place != os.environ["PLACE"] or os.path.exists("code"):
        return
    open("code", "w").close()
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with open("code.new", "w") as f:
            f.write(str(code))
        os.rename("code.new", "code")
        return
    sys.kept = open("kept", "w")
    sys.kept.write("buffered")
    atexit.register(lambda: open("exits", "a").write("child "))
    print("printed")
    if os.environ["ENDING"] != "return":
        raise {"exit": SystemExit(7), "error": ValueError("on purpose")}[os.environ["ENDING"]]
"""

APP = """
    import os, signal
    from both import both

    both("import")

    class Closed(list):
        def close(self):
            both("close")

    class Deleted:
        def __del__(self):
            both("finaliser")

    def blocks():
        both("block")
        yield b"served"

    def handle(*_):
        both("signal")

    signal.signal(signal.SIGHUP, handle)

    def make():
        both("factory")
        return app

    def app(environ, start_response):
        both("call")
        if os.environ["PLACE"] == "signal":
            signal.raise_signal(signal.SIGHUP)
        write = start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        if os.environ["PLACE"] == "block":
            return blocks()
        if os.environ["PLACE"] == "finaliser":
            deleted = Deleted()
        return Closed([b"served"])
"""

CONFIG = """
import os
from both import both
from rgunicorn.glogging import Logger

both("config file")

def on_starting(server): both("on_starting")
def when_ready(server): both("when_ready")
def pre_fork(server, worker): both("pre_fork")
def post_fork(server, worker): both("post_fork")
def post_worker_init(worker): both("post_worker_init")
def nworkers_changed(server, new, old): both("nworkers_changed")
def on_exit(server): both("on_exit")
def worker_int(worker): both("worker_int")
def worker_exit(server, worker): both("worker_exit")
def child_exit(server, worker): both("child_exit")

if os.environ["PLACE"] in ("pre_request", "post_request"):
    def pre_request(worker, req): both("pre_request")
    def post_request(worker, req, environ, resp): both("post_request")

class Talkative(Logger):
    def access(self, *args):
        both("access")
    def info(self, text, *args, **kwargs):
        if "Booting worker" in text:
            both("line")
        super().info(text, *args, **kwargs)

if os.environ["PLACE"] in ("access", "line"):
    logger_class = Talkative
    accesslog = "-"
"""

HOOKS = ["on_starting", "when_ready", "pre_fork", "post_fork", "post_worker_init", "nworkers_changed", "on_exit", "worker_int",
         "worker_exit", "child_exit", "pre_request", "post_request"]
# What the log calls it.
PLACES = {"import": "loading the application", "factory": "loading the application", "config file": "config file gunicorn.conf.py",
          "call": "GET /", "block": "GET /", "finaliser": "GET /", "close": r"close\(\) of the response to GET /", "signal": "GET /",
          "access": r"access\(\) of the logger", "line": "the logger", **{hook: "the %s hook" % hook for hook in HOOKS}}
# Python swallows what these raise.
SWALLOWED = {"finaliser"}


def start(server, tmp_path, place, ending, *options, **settings):
    (tmp_path / "modules").mkdir(exist_ok=True)
    (tmp_path / "modules" / "both.py").write_text(BOTH)
    (tmp_path / "modules" / "forking.py").write_text(textwrap.dedent(APP))
    env = {"PLACE": place, "ENDING": ending, "PYTHONPATH": str(tmp_path / "modules")}
    app = "forking:make()" if place == "factory" else "forking:app"
    return server(app, *options, config=CONFIG, env=env, **settings)


def check_end(running, place, ending):
    """The child has ended as a plain Python program does, and the log says where."""
    code = wait_until(lambda: running.read("code"), 30, running.log)
    expected = 0 if ending == "return" or place in SWALLOWED else {"exit": 7, "error": 1}[ending]
    if ending == "error":
        running.expect_errors()
    # At first there is no log.
    mark = "rgunicorn: " if place == "config file" else r"\] "
    how = "has returned from" if ending == "return" or place in SWALLOWED else "has left by an exception:"
    running.wait_log(mark + "A process that the application forked %s %s; it is none of the server's and ends" % (how, PLACES[place]))
    assert (int(code), running.read("kept")) == (expected, "buffered"), running.log()
    assert "child" in running.read("exits").split()


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_child_that_comes_back_ends_there(server, tmp_path, place):
    running = start(server, tmp_path, place, "return")
    if place == "nworkers_changed":
        running.wait_workers(1)
    [worker] = running.wait_workers(1)
    running.wait_log("Worker ready")
    with running.connect() as connection:
        for _ in range(3):
            answer = connection.exchange("GET", "/")
            assert (answer.status, answer.text, int(answer.header("x-pid"))) == (200, "served", worker)
    if place == "worker_int":
        os.kill(worker, 3)
        wait_until(lambda: worker not in running.workers())
    if place in ("on_exit", "worker_exit", "child_exit"):
        assert running.stop() == 0
    else:
        running.wait_workers(1)
    check_end(running, place, "return")
    if running.running():
        assert running.get("/").text == "served"
        wait_until(lambda: len(running.processes()) == 2, 20, running.log)


@pytest.mark.parametrize("ending", ["exit", "error"])
@pytest.mark.parametrize("place", ["import", "call", "block", "pre_request", "post_request", "access", "when_ready", "config file",
                                   "post_worker_init"])
def test_a_child_that_raises_ends_with_the_code_of_that(server, tmp_path, place, ending):
    running = start(server, tmp_path, place, ending)
    [worker] = running.wait_workers(1)
    for _ in range(2):
        assert running.get("/").text == "served"
    check_end(running, place, ending)
    wait_until(lambda: len(running.processes()) == 2, 20, running.log)
    assert running.workers() == [worker]
    if ending == "error":
        assert "ValueError: on purpose" in running.log()


@pytest.mark.parametrize("place, ending", [("import", "return"), ("import", "exit"), ("factory", "return"), ("call", "return")])
def test_a_child_of_a_mold_ends_too(server, tmp_path, place, ending):
    running = start(server, tmp_path, place, ending, "--preload", "-w", "2")
    workers = running.wait_workers(2)
    assert running.get("/").text == "served"
    check_end(running, place, ending)
    wait_until(lambda: len(running.processes()) == 4, 20, running.log)
    assert running.workers() == workers


@pytest.mark.parametrize("place", ["call", "close", "post_request"])
def test_in_a_thread_of_the_worker_too(server, tmp_path, place):
    running = start(server, tmp_path, place, "return", "--threads", "3")
    running.wait_workers(1)
    for _ in range(3):
        assert running.get("/").text == "served"
    check_end(running, place, "return")
    wait_until(lambda: len(running.processes()) == 2, 20, running.log)


def test_a_check_of_the_configuration_ends_once(server, tmp_path):
    running = start(server, tmp_path, "import", "return", "--check-config", wait=False)
    assert running.wait_exit() == 0
    check_end(running, "import", "return")


# --- signals ---

SIGNALS = """
    import multiprocessing, os, re, signal, subprocess, sys, time
    fork = multiprocessing.get_context("fork")

    def own(*_):
        os._exit(33)

    if os.environ.get("OWN"):
        signal.signal(signal.SIGUSR2, own)

    def sleep():
        time.sleep(60)

    def square(number):
        return number * number

    def ended(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def masks():
        with open("/proc/self/status") as f:
            return re.findall(r"^(?:SigBlk|SigCgt|SigIgn):\\t(\\w+)$", f.read(), re.M)

    def process(query):
        child = fork.Process(target=sleep)
        child.start()
        child.terminate()
        child.join(20)
        return child.exitcode

    def pool(query):
        with fork.Pool(2) as pool:
            found = sum(pool.map(square, range(10)))
            processes = list(pool._pool)
        for process in processes:
            process.join(20)
        return found, [process.exitcode for process in processes]

    def raised(query):
        number = int(query)
        pid = os.fork()
        if not pid:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                os._exit(44)
            os._exit(55)
        return ended(pid)

    def in_c(query):
        import ctypes
        # Which keeps the interpreter, so that no other thread has it in the child.
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            ctypes.PyDLL(None)["raise"](int(query))
            os._exit(55)
        return ended(pid)

    def plain(query):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            found = masks(), [str(signal.getsignal(number)) for number in range(1, 32)], str(signal.set_wakeup_fd(-1))
            os.write(write, repr(found).encode())
            os._exit(0)
        os.close(write)
        with open(read) as f:
            return f.read(), ended(pid)

    def run(query):
        return subprocess.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), %s)" % query],
                              preexec_fn=(lambda: None)).returncode

    def app(environ, start_response):
        text = repr(globals()[environ["PATH_INFO"][1:]](environ["QUERY_STRING"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]
"""

OPTIONS = pytest.mark.parametrize("options", [(), ("--threads", "2"), ("--preload",)], ids=["plain", "threads", "preload"])


@OPTIONS
def test_children_end_by_signals_as_those_of_any_python_process(server, options):
    """The server's handlers are none of theirs, however they were forked, and the worker hears of nothing."""
    running = server(SIGNALS, *options)
    workers = running.wait_workers(1)
    running.wait_log("Worker ready")
    for _ in range(5):
        assert running.get("/process").text == "-15"
    # Some have been told by the pool before it terminates the rest.
    assert re.fullmatch(r"\(285, \[(0|-15), (0|-15)\]\)", running.get("/pool").text)
    for number in (1, 3, 6, 10, 12, 14, 15, 41):
        assert running.get("/raised?%d" % number).text == str(-number), number
    for number in (1, 2, 3, 10, 12, 15):
        assert running.get("/in_c?%d" % number).text == str(-number), number
    assert running.get("/raised?2").text == "44"
    for number in (17, 28):
        assert running.get("/raised?%d" % number).text == "55"
    assert running.get("/run?15").text == "-15"
    assert running.workers() == workers
    assert "Handling signal" not in running.log()


@OPTIONS
def test_a_child_has_the_signals_of_a_plain_python_process(server, options, tmp_path):
    running = server(SIGNALS, *options, env={"PYTHONFAULTHANDLER": "", "PYTHONDEVMODE": ""})
    found, code = ast.literal_eval(running.get("/plain").text)
    assert code == 0
    masks, handlers, wakeup = ast.literal_eval(found)
    source = textwrap.dedent(SIGNALS) + "\nprint(plain('')[0])\n"
    bare = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    plain_masks, plain_handlers, plain_wakeup = ast.literal_eval(bare.stdout)
    hide = lambda text: re.sub(r"0x\w+", "", text)
    # Two that the C library has for itself where there are threads (nptl(7)); who started the tests may have them ignored.
    without_own = lambda masks: [int(mask, 16) & ~(3 << 31) for mask in masks]
    assert without_own(masks) == without_own(plain_masks)
    assert [hide(text) for text in handlers] == [hide(text) for text in plain_handlers]
    assert wakeup == plain_wakeup


@OPTIONS
def test_handlers_that_the_application_has_installed_stay(server, options):
    running = server(SIGNALS, *options, env={"OWN": "1"})
    assert running.get("/raised?12").text == "33"
    assert running.get("/raised?15").text == "-15"


def test_a_child_of_a_hook_has_them_too(server):
    running = server("apps.hello:app", config="""
import os, signal, time

def when_ready(server):
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    with open("code", "w") as f:
        f.write(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
""")
    running.wait_workers(1)
    assert running.read("code") == "-15"
    assert running.get("/").status == 200
    assert "Handling signal" not in running.log()
