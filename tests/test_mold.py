"""The mold of `--preload`: what it shares, what it warns of, what happens when it dies."""
import os
import re
import socket
import threading
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP

import pytest

import harness
from harness import compile_library, alive, children, wait_until
from users import IMPORTS, commons, nobody  # noqa: F401

APP = """
    import os

    with open("imports", "a") as f:
        f.write("%d\\n" % os.getpid())

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [b"served"]
"""


def preloaded(server, app=APP, *options, **settings):
    return server(app, "--preload", *options, **settings)


def imports(running):
    return [int(pid) for pid in running.read("imports").split()]


def mold(running):
    """The pid of the process that forks the workers now."""
    found = [pid for pid in imports(running) if alive(pid) and pid in children(running.pid)]
    assert len(found) == 1, (found, running.log())
    return found[0]


def ready_workers(running):
    return [int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", running.log())]


def wait_ready(running, count):
    return wait_until(lambda: len(ready_workers(running)) >= count and ready_workers(running), 30, running.log)


def replaced(running, worker):
    """Kills a worker and returns its successor, once that is ready."""
    before = len(ready_workers(running))
    os.kill(worker, SIGKILL)
    return wait_ready(running, before + 1)[before]


# --- a mold that dies ---

def test_a_killed_mold_is_rebuilt_while_workers_serve(server):
    """Row 4 of the fault matrix: nobody notices, and later workers come from the new one."""
    running = preloaded(server, APP, "-w", "2")
    # A request may be answered, and not be over yet for the worker.
    running.expect_errors(r"Mold .* was killed by SIGKILL", r"Worker .* was killed by SIGKILL", r"It was running GET / for 0 s")
    workers = sorted(wait_ready(running, 2))
    first = mold(running)
    with running.connect() as connection:
        assert connection.exchange("GET", "/").text == "served"
        os.kill(first, SIGKILL)
        wait_until(lambda: len(imports(running)) == 2, 20, running.log)
        assert connection.exchange("GET", "/").text == "served"
    assert running.workers() == workers
    wait_until(lambda: mold(running) != first, 20, running.log)
    replaced(running, workers[0])
    assert len(imports(running)) == 2, "the successor was imported, not forked"


def test_a_worker_that_dies_without_a_mold_waits_for_the_next_one(server):
    app = APP.replace("    def app(", """
    import time
    while len(open("imports").read().split()) == 2 and not os.path.exists("go"):
        time.sleep(0.01)

    def app(""", 1)
    running = preloaded(server, app, "-w", "2")
    running.expect_errors(r"was killed by SIGKILL")
    first, second = wait_ready(running, 2)
    os.kill(mold(running), SIGKILL)
    wait_until(lambda: len(imports(running)) == 2, 20, running.log)
    os.kill(first, SIGKILL)
    wait_until(lambda: not alive(first))
    assert running.get("/").header("X-Pid") == str(second)
    running.touch("go")
    assert wait_ready(running, 3)[2] not in (first, second)


def test_a_mold_that_cannot_be_rebuilt_leaves_the_workers_alone(server):
    running = preloaded(server, APP, "-w", "2")
    running.expect_errors()
    workers = sorted(wait_ready(running, 2))
    running.write("app.py", "raise RuntimeError('a release that is broken')\n")
    os.kill(mold(running), SIGKILL)
    running.wait_log(r"a release that is broken", count=2)
    assert running.workers() == workers and running.get("/").text == "served"
    running.write("app.py", harness.textwrap.dedent(APP))
    wait_until(lambda: len(imports(running)) == 2, 40, running.log)
    replaced(running, workers[0])
    assert running.running()


def test_a_mold_that_does_not_answer_is_replaced(server):
    running = preloaded(server)
    running.expect_errors(r"was killed by SIGKILL", r"of no use any more and is replaced: timed out")
    worker = wait_ready(running, 1)[0]
    stopped = mold(running)
    os.kill(stopped, SIGSTOP)
    try:
        successor = replaced(running, worker)
    finally:
        if alive(stopped):
            os.kill(stopped, SIGCONT)
    assert not alive(stopped)
    assert running.get("/").header("X-Pid") == str(successor)


FORGED = """
    import os, socket, struct

    with open("imports", "a") as f:
        f.write("%d\\n" % os.getpid())

    def arbiters_ear():
        for name in os.listdir("/proc/self/fd"):
            try:
                found = socket.socket(fileno=os.dup(int(name)))
            except OSError:
                continue
            if found.family == socket.AF_UNIX and found.type == socket.SOCK_SEQPACKET:
                yield found

    PARENT = int(open("victim").read())
    REAL_FORK = os.fork

    def fork():
        if os.path.exists("honest"):
            return REAL_FORK()
        for ear in arbiters_ear():
            ear.setblocking(False)
            for number in (PARENT, 1, os.getpid(), 2**40, -2**63):
                try:
                    ear.send(struct.pack("=3q", number, 0, 0))
                except OSError:
                    pass
        os._exit(0)

    os.fork = fork

    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"served"]
"""


def test_a_mold_that_names_another_process_as_its_worker_harms_nobody(server, tmp_path):
    """The application runs in the mold and may say anything; the arbiter would later signal whom it took for a worker."""
    victim = harness.subprocess.Popen(["sleep", "600"])
    try:
        (tmp_path / "victim").write_text(str(victim.pid))
        running = preloaded(server, FORGED, directory=tmp_path, wait=False)
        running.expect_errors()
        running.wait_log(r"of no use any more and is replaced", 40)
        running.touch("honest")
        wait_ready(running, 1)
        assert running.get("/").text == "served"
        assert running.stop() == 0
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_mold_that_names_another_child_of_the_arbiter_harms_nobody(server, commons):
    """One that a hook has started as root: the arbiter's child indeed, but nobody whom the mold could have forked."""
    user = nobody()
    config = IMPORTS + ("import socket, struct, subprocess\n"
                        "def on_starting(server):\n"
                        "    child = subprocess.Popen(['sleep', '600'])\n"
                        "    open('victim', 'w').write(str(child.pid))\n")
    os.chmod(commons, 0o777)
    running = preloaded(server, FORGED, "-u", user.pw_name, directory=commons, config=config, wait=False)
    running.expect_errors()
    try:
        running.wait_log(r"of no use any more and is replaced: it says that", 40)
        running.touch("honest")
        wait_ready(running, 1)
        assert running.get("/").text == "served"
        victim = int(running.read("victim"))
        assert running.stop() == 0
        assert alive(victim)
    finally:
        if running.read("victim"):
            harness.subprocess.run(["kill", "-9", running.read("victim")])


# --- the heap ---

def test_workers_have_a_frozen_heap_and_a_collector_that_runs(server):
    running = preloaded(server, """
        import gc
        DURING = gc.get_threshold()[0]

        def app(environ, start_response):
            start_response("200 OK", [])
            return [repr((DURING, gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 1000)).encode()]
    """)
    import gc
    assert running.get("/").text == repr((0, True, gc.get_threshold(), True))


@pytest.mark.parametrize("wish, enabled, threshold", [
    ("gc.disable()", False, None), ("gc.set_threshold(5000, 20, 30)", True, 5000),
])
def test_what_the_application_wants_of_the_collector_stands(server, wish, enabled, threshold):
    running = preloaded(server, """
        import gc
        %s

        def app(environ, start_response):
            start_response("200 OK", [])
            return [repr((gc.isenabled(), gc.get_threshold()[0])).encode()]
    """ % wish)
    import gc
    assert running.get("/").text == repr((enabled, threshold or gc.get_threshold()[0]))


def test_a_worker_imports_nothing_that_its_mold_has_not(server):
    """Each worker would have it for itself, and be ready later."""
    running = preloaded(server, """
        import logging.handlers
        import sys
        LOADED = set(sys.modules)

        def app(environ, start_response):
            start_response("200 OK", [])
            return [repr(sorted(set(sys.modules) - LOADED)).encode()]
    """, "--access-logfile", "access.log")
    assert running.get("/").text == "[]"


# --- the fork doctor ---

def warnings(running):
    return [message for _, level, message in running.lines("WARNING") if "(--preload)" in message]


def listener():
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(8)
    return listening


SERVES = """

    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"served"]
"""


def test_an_application_without_a_flaw_is_not_warned_of(server):
    running = preloaded(server, """
        import socket, subprocess, threading
        subprocess.run(["true"], check=True)
        ended = threading.Thread(target=int)
        ended.start()
        ended.join()
        PAIR = socket.socketpair()
        LISTENER = socket.socket()
        LISTENER.listen()
        DATAGRAM = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        DATAGRAM.connect(("127.0.0.1", 9))
    """ + SERVES.replace("\n    ", "\n        "))
    assert running.get("/").text == "served"
    assert warnings(running) == []


def test_threads_are_named(server):
    running = preloaded(server, """
        import threading
        for name in ("poller", "evil\\n[2026-01-01 00:00:00 +0000] [1] [ERROR] forged"):
            threading.Thread(target=threading.Event().wait, name=name, daemon=True).start()
    """ + SERVES.replace("\n    ", "\n        "))
    running.expect_errors(r"thread 'evil")
    assert running.get("/").text == "served"
    said = sorted(warnings(running))
    assert len(said) == 2
    assert "thread 'evil\\n[2026-01-01" in said[0]
    assert "thread 'poller' while it was loaded" in said[1]
    assert "post_fork or post_worker_init" in said[1] and "lock" in said[1]
    assert "forged" not in [message for _, _, message in running.lines("ERROR")]


def test_a_thread_that_is_not_pythons(server):
    running = preloaded(server, """
        import _thread, threading
        _thread.start_new_thread(threading.Event().wait, ())
    """ + SERVES.replace("\n    ", "\n        "))
    assert running.get("/").text == "served"
    assert len(warnings(running)) == 1 and "a thread named '" in warnings(running)[0] and "unknown to Python" in warnings(running)[0]


def test_a_librarys_pool_is_one_warning_with_the_variable_that_helps(server, tmp_path):
    library = compile_library(tmp_path / "libopenblas-7.so", """
        #include <pthread.h>
        #include <unistd.h>
        static void *work(void *nothing) { for (;;) pause(); return nothing; }
        __attribute__((constructor)) static void start(void) {
            pthread_t thread;
            for (int i = 0; i < 3; i++) pthread_create(&thread, 0, work, 0);
        }
    """)
    running = preloaded(server, """
        import ctypes, threading
        ctypes.CDLL(%r)
        threading.Thread(target=threading.Event().wait, name="of Python", daemon=True).start()
    """ % library + SERVES.replace("\n    ", "\n        "))
    assert running.get("/").text == "served"
    [native, python] = sorted(warnings(running))
    assert "A library has started 3 threads named '" in native and "unknown to Python" in native
    assert "Loaded is OpenBLAS: set OPENBLAS_NUM_THREADS=1 in the environment or in raw_env" in native
    assert "thread 'of Python' while it was loaded" in python and "post_fork or post_worker_init" in python


def test_connections_are_named(server, tmp_path):
    path = str(tmp_path / "db.sock")
    with listener() as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen(8)
        running = preloaded(server, """
            import socket
            TCP = socket.create_connection(("127.0.0.1", %d))
            UNIX = socket.socket(socket.AF_UNIX)
            UNIX.connect(%r)
        """ % (tcp.getsockname()[1], path) + SERVES.replace("\n    ", "\n            "))
        assert running.get("/").text == "served"
        said = sorted(warnings(running))
        assert len(said) == 2
        assert "connected to %s (unix socket, descriptor " % path in said[0]
        assert "connected to 127.0.0.1:%d (TCP, descriptor " % tcp.getsockname()[1] in said[1]
        assert all("read each other's answers" in line and "post_fork or post_worker_init" in line for line in said)


def test_an_event_loop_is_named(server):
    running = preloaded(server, """
        import asyncio
        LOOP = asyncio.new_event_loop()
    """ + SERVES.replace("\n    ", "\n        "))
    assert running.get("/").text == "served"
    assert len(warnings(running)) == 1 and "made an event loop (epoll" in warnings(running)[0]


def test_what_hooks_and_the_server_have_open_is_not_the_applications(server):
    with listener() as tcp:
        config = "import socket\nHELD = socket.create_connection(('127.0.0.1', %d))\n" % tcp.getsockname()[1]
        running = preloaded(server, APP, "--threads", "2", config=config)
        assert running.get("/").text == "served"
        assert warnings(running) == []


def test_each_mold_is_examined_once(server):
    running = preloaded(server, """
        import threading
        threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
    """ + SERVES.replace("\n    ", "\n        "), "-w", "3")
    wait_ready(running, 3)
    assert len(warnings(running)) == 1
    running.signal(SIGHUP)
    running.wait_log("Reload complete")
    assert len(warnings(running)) == 2


# --- many at once ---

def test_workers_that_die_together_are_all_replaced_from_the_mold(server):
    running = preloaded(server, APP, "-w", "4")
    running.expect_errors(r"was killed by SIGKILL")
    before = set(wait_ready(running, 4))
    killers = [threading.Thread(target=os.kill, args=(pid, SIGKILL)) for pid in before]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()
    wait_ready(running, 8)
    wait_until(lambda: len(running.workers()) == 4)
    assert not before & set(running.workers()) and len(imports(running)) == 1
