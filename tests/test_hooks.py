"""The operator's functions (gunicorn's server hooks): in the right process, at the right moment, with the right arguments."""
import os
import re
from signal import SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU

import pytest

import harness
from harness import wait_until

APP = """
    import os, time

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/stuck":
            open("inside", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.01)
        if environ["PATH_INFO"] == "/raise":
            raise ValueError("on purpose")
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [b"hello"]

    with open("trace", "a") as trace:
        trace.write("%d load\\n" % os.getpid())
"""

# Every hook leaves a line: process, name, and what its arguments say.
TRACE = """
import os

def note(name, *words):
    line = " ".join([str(os.getpid()), name] + [str(word) for word in words]) + "\\n"
    fd = os.open("trace", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)

def on_starting(server): note("on_starting", server.pid, len(server.LISTENERS))
def on_reload(server): note("on_reload", server.pid, server.cfg.workers)
def when_ready(server): note("when_ready", len(server.LISTENERS), len(server.WORKERS))
def pre_fork(server, worker): note("pre_fork", worker.pid, worker.age)
def post_fork(server, worker): note("post_fork", worker.pid, worker.age, server.pid, worker.ppid)
def post_worker_init(worker): note("post_worker_init", worker.pid, worker.booted, worker.wsgi.__name__)
def worker_int(worker): note("worker_int", worker.pid, worker.alive)
def worker_abort(worker): note("worker_abort", worker.pid, worker.aborted)
def pre_exec(server): note("pre_exec")
def pre_request(worker, req): note("pre_request", req.method, req.path)
def post_request(worker, req, environ, resp): note("post_request", req.path, len(environ) > 0, resp and resp.status)
def child_exit(server, worker): note("child_exit", worker.pid, worker.pid in server.WORKERS)
def worker_exit(server, worker): note("worker_exit", server.pid, worker.pid, worker.alive)
def nworkers_changed(server, new, old): note("nworkers_changed", new, old, server.num_workers)
def on_exit(server): note("on_exit", len(server.WORKERS))
"""


def trace(running, name=None):
    """(pid, hook, words) of each line."""
    lines = [line.split() for line in running.read("trace").splitlines()]
    return [(int(pid), hook, words) for pid, hook, *words in lines if name in (None, hook)]


def wait_trace(running, name, count=1):
    return wait_until(lambda: len(trace(running, name)) >= count and trace(running, name), 20,
                      lambda: "%s %d times:\n%s\n%s" % (name, count, running.read("trace"), running.log()))


# --- order, process, arguments ---

@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_the_whole_life(server, preload):
    running = server(APP, *preload, config=TRACE)
    worker = running.wait_workers(1)[0]
    assert running.get("/x").status == 200
    wait_trace(running, "post_request")
    assert running.stop() == 0
    arbiter = running.pid
    arbiters = [(hook, words) for pid, hook, words in trace(running) if pid == arbiter]
    assert arbiters == [
        ("nworkers_changed", ["1", "None", "1"]),
        ("on_starting", [str(arbiter), "0"]),
        ("when_ready", ["1", "0"]),
        ("pre_fork", ["[booting]", "1"]),
        ("child_exit", [str(worker), "False"]),
        ("on_exit", ["0"]),
    ]
    workers = [(hook, words) for pid, hook, words in trace(running) if pid == worker and hook != "load"]
    assert workers == [
        ("post_fork", [str(worker), "1", str(arbiter), str(arbiter)]),
        ("post_worker_init", [str(worker), "False", "app"]),
        ("pre_request", ["GET", "/x"]),
        ("post_request", ["/x", "True", "200", "OK"]),
        ("worker_exit", [str(arbiter), str(worker), "False"]),
    ]
    order = [hook for _, hook, _ in trace(running)]
    loaded = ["load", "pre_fork", "post_fork"] if preload else ["pre_fork", "post_fork", "load"]
    assert [hook for hook in order if hook in loaded] == loaded


def test_the_file_of_the_pid_is_there_at_the_start_and_gone_at_the_end(server):
    running = server(APP, "--pid", "pid", config="""
import os
def look(name): open(name, "w").write(str(os.path.exists("pid")))
def on_starting(server): look("starting")
def on_exit(server): look("exit")
""")
    assert running.stop() == 0
    assert (running.read("starting"), running.read("exit")) == ("True", "False")


@pytest.mark.parametrize("number", [SIGINT, SIGQUIT])
@pytest.mark.parametrize("threads", [1, 3])
def test_worker_int_before_worker_exit(server, number, threads):
    running = server(APP, "-w", "2", "--threads", threads, config=TRACE)
    workers = running.wait_workers(2)
    wait_trace(running, "post_worker_init", 2)
    assert running.stop(number) == 0
    for worker in workers:
        hooks = [hook for pid, hook, _ in trace(running) if pid == worker]
        assert hooks[-2:] == ["worker_int", "worker_exit"]
    assert all(words[1] == "False" for _, _, words in trace(running, "worker_int"))


def test_worker_int_breaks_in_while_a_request_runs(server):
    running = server(APP, config=TRACE)
    with running.connect() as connection:
        connection.send_request("GET", "/stuck")
        wait_until(lambda: running.exists("inside"))
        assert running.stop(SIGQUIT) == 0
    hooks = [hook for _, hook, _ in trace(running)]
    assert [hook for hook in hooks if hook in ("worker_int", "post_request", "worker_exit")] == [
        "worker_int", "post_request", "worker_exit"]


def test_worker_abort(server):
    running = server(APP, config=TRACE)
    running.expect_errors()
    worker = running.wait_workers(1)[0]
    wait_trace(running, "post_worker_init")
    os.kill(worker, SIGABRT)
    assert wait_trace(running, "worker_abort")[0] == (worker, "worker_abort", [str(worker), "True"])
    wait_trace(running, "child_exit")


def test_worker_abort_when_a_request_runs_too_long(server):
    running = server(APP, "-t", "1", config=TRACE)
    running.expect_errors()
    worker = running.wait_workers(1)[0]
    assert running.get("/stuck").status == 504
    assert wait_trace(running, "worker_abort")[0][0] == worker
    response = wait_trace(running, "post_request")[0]
    assert response == (worker, "post_request", ["/stuck", "True", "504"])
    wait_trace(running, "child_exit")
    running.touch("go")


def test_worker_abort_for_a_request_in_any_thread(server):
    """Two requests are stuck, so one is not in the main thread; the hook comes for each."""
    running = server(APP, "-t", "1", "--threads", "2", config=TRACE)
    running.expect_errors()
    worker = running.wait_workers(1)[0]
    with running.connect() as one, running.connect() as two:
        for connection in (one, two):
            connection.send_request("GET", "/stuck")
        assert [connection.read_response().status for connection in (one, two)] == [504, 504]
        calls = wait_trace(running, "worker_abort", 2)
        assert [call[0] for call in calls] == [worker] * 2 and {call[2][1] for call in calls} == {"True"}
        running.touch("go")
    wait_trace(running, "child_exit")


def test_the_number_of_workers(server):
    running = server(APP, config=TRACE)
    running.wait_workers(1)
    running.signal(SIGTTIN)
    running.wait_workers(2)
    running.signal(SIGTTOU)
    running.wait_workers(1)
    running.signal(SIGTTOU)
    running.wait_log("Handling signal: ttou", count=2)
    running.signal(SIGHUP)
    wait_trace(running, "on_reload")
    changes = [words for _, _, words in trace(running, "nworkers_changed")]
    assert changes == [["1", "None", "1"], ["2", "1", "2"], ["1", "2", "1"], ["1", "1", "1"]]


# --- reload ---

def test_a_reload_brings_its_own_hooks(server):
    def config(version):
        return TRACE.replace("def note(name, *words):", "def note(name, *words):\n    name += '-%s'" % version)
    running = server(APP, config=config("one"))
    old = running.wait_workers(1)[0]
    wait_trace(running, "post_worker_init-one")
    running.write("gunicorn.conf.py", config("two"))
    running.signal(SIGHUP)
    wait_trace(running, "child_exit-two")
    new = running.wait_workers(1)[0]
    order = [hook for _, hook, _ in trace(running)]
    later = order[order.index("nworkers_changed-two"):]
    later = [hook for hook in later if hook != "load"]
    assert later[:5] == ["nworkers_changed-two", "on_reload-two", "pre_fork-two", "post_fork-two",
                         "post_worker_init-two"]
    # The old worker keeps the hooks that it was born with.
    assert trace(running, "worker_exit-one")[0][0] == old
    assert running.get("/").status == 200
    assert wait_trace(running, "pre_request-two")[0][0] == new
    assert "on_starting-two" not in order and "when_ready-two" not in order


def test_a_reload_with_a_wrong_hook_changes_nothing(server):
    running = server(APP, config=TRACE)
    running.expect_errors("Reload failed")
    running.wait_workers(1)
    running.write("gunicorn.conf.py", "def child_exit(server): pass\n")
    running.signal(SIGHUP)
    running.wait_log(r"Reload failed.*child_exit: it has to take 2 arguments, and the function takes 1")
    assert running.get("/").status == 200
    assert running.stop() == 0
    assert trace(running)[-1][1] == "on_exit"


def test_a_reload_that_fails_to_boot_gives_the_server_back_to_the_old_hooks(server):
    running = server(APP, config=TRACE)
    running.expect_errors()
    running.wait_workers(1)
    running.write("gunicorn.conf.py", TRACE + "\nworkers = 2\ndef post_worker_init(worker): raise ValueError('no')\n")
    running.signal(SIGHUP)
    running.wait_log("Reload failed")
    assert running.get("/").status == 200
    running.signal(SIGTTIN)
    # At the start, by the reload, and now from the number that there was before it.
    assert wait_trace(running, "nworkers_changed", 3)[-1][2] == ["2", "1", "2"]
    running.wait_workers(2)


# --- where hooks come from ---

def test_functions_by_name_in_python_and_toml(server, tmp_path):
    (tmp_path / "elsewhere.py").write_text(TRACE)
    names = ["on_starting", "post_fork", "post_request"]
    env = {"PYTHONPATH": "%s:%s" % (tmp_path, harness.TESTS)}
    config = "".join("%s = 'elsewhere.%s'\n" % (name, name) for name in names)
    for running in [server(APP, config=config, env=env), toml_server(server, config, env)]:
        assert running.get("/").status == 200
        wait_trace(running, "post_request")
        assert {hook for _, hook, _ in trace(running)} == set(names) | {"load"}


def toml_server(server, config, env):
    path = env["PYTHONPATH"].split(":")[0] + "/rgunicorn.toml"
    with open(path, "w") as file:
        file.write(config)
    return server(APP, "-c", path, env=env)


WRONG = [
    ("def post_fork(server): pass", "post_fork: it has to take 2 arguments, and the function takes 1"),
    ("def on_exit(a, b=1): pass", "on_exit: it has to take 1 argument, and the function takes 2"),
    ("def pre_fork(*args): pass", "pre_fork: it has to take 2 arguments, and the function takes 0"),
    ("def nworkers_changed(a, b): pass", "nworkers_changed: it has to take 3 arguments, and the function takes 2"),
    ("def post_request(a): pass", "post_request: it has to take 4, 3, 2 arguments, and the function takes 1"),
    ("post_fork = 3", "post_fork: 3 is neither a function nor MODULE.NAME"),
    ("post_fork = 'name'", "post_fork: 'name' is not MODULE.NAME"),
    ("post_fork = 'nowhere.to.find'", "post_fork: cannot import 'nowhere.to': No module named 'nowhere'"),
    ("post_fork = 'os.nothing'", "post_fork: there is no 'nothing' in 'os'"),
    ("post_fork = 'os.sep'", "post_fork: it is not a function"),
]


@pytest.mark.parametrize("source, sentence", WRONG, ids=[source for source, _ in WRONG])
def test_hooks_that_cannot_be_used(tmp_path, source, sentence):
    (tmp_path / "gunicorn.conf.py").write_text(source + "\n")
    for arguments in [("apps.hello:app",), ("--check-config", "apps.hello:app")]:
        done = harness.run(*arguments, cwd=str(tmp_path))
        assert done.returncode == 1
        assert "gunicorn.conf.py:1: " + sentence in done.stderr


def test_other_callables(server):
    running = server(APP, config="""
import functools

class Hook:
    def __call__(self, server, worker): open("instance", "w").close()
    def method(self, worker): open("method", "w").close()

pre_fork = Hook()
post_worker_init = Hook().method
when_ready = functools.partial(lambda name, server: open(name, "w").close(), "partial")
on_exit = None
""")
    wait_until(lambda: all(running.exists(name) for name in ["instance", "method", "partial"]))


# --- hooks that raise ---

@pytest.mark.parametrize("hook", ["nworkers_changed", "on_starting", "when_ready", "pre_fork"])
def test_at_the_start_the_arbiter_ends(server, hook):
    raising = TRACE + "\ndef raising(%s): raise ValueError('on purpose')\n%s = raising\n"
    arguments = {"nworkers_changed": "a, b, c", "pre_fork": "a, b"}.get(hook, "a")
    running = server(APP, "--pid", "pid", config=raising % (arguments, hook), wait=False)
    running.expect_errors()
    assert running.wait_exit() == 1
    assert re.search(r"Exception in %s hook\nTraceback(.|\n)*ValueError: on purpose" % hook, running.log())
    assert not running.exists("pid") and not trace(running, "post_fork")


def test_later_it_goes_on(server):
    running = server(APP, config=TRACE + """
import os
for name in ["nworkers_changed", "pre_fork", "child_exit", "on_reload", "on_exit", "worker_int", "worker_exit"]:
    def wrap(name, function):
        def one(a):
            function(a)
            if os.path.exists("armed"): raise ValueError(name)
        def two(a, b):
            function(a, b)
            if os.path.exists("armed"): raise ValueError(name)
        def three(a, b, c):
            function(a, b, c)
            if os.path.exists("armed"): raise ValueError(name)
        return {"nworkers_changed": three, "pre_fork": two, "child_exit": two, "worker_exit": two}.get(name, one)
    globals()[name] = wrap(name, globals()[name])
""")
    running.expect_errors()
    running.wait_workers(1)
    assert running.get("/").status == 200
    running.touch("armed")
    running.signal(SIGTTIN)
    running.wait_workers(2)
    running.signal(SIGHUP)
    wait_trace(running, "child_exit", 2)
    running.wait_workers(1)
    assert running.get("/").status == 200
    assert running.stop(SIGQUIT) == 0
    log = running.log()
    for name in ["nworkers_changed", "pre_fork", "child_exit", "on_reload", "on_exit", "worker_int", "worker_exit"]:
        assert "Exception in %s hook" % name in log, name


@pytest.mark.parametrize("hook", ["def post_fork(server, worker)", "def post_worker_init(worker)"])
def test_a_worker_whose_hook_raises_does_not_boot(server, hook):
    running = server(APP, config=TRACE + "\n%s: raise ValueError('on purpose')\n" % hook, wait=False)
    running.expect_errors()
    assert running.wait_exit() == 3
    assert "ValueError: on purpose" in running.log()
    assert trace(running, "worker_exit") and trace(running)[-1][1] == "on_exit"


def test_requests_whose_hooks_raise(server):
    running = server(APP, config="""
def pre_request(worker, req):
    if req.path == "/pre": raise ValueError("before")
def post_request(worker, req, environ, resp):
    open("seen", "w").write("%s %s" % (environ, resp))
    raise ValueError("after")
""")
    running.expect_errors()
    assert running.get("/pre").status == 500
    wait_until(lambda: running.read("seen") == "{} None")
    with running.connect() as connection:
        for _ in range(3):
            response = connection.exchange("GET", "/")
            assert (response.status, response.body) == (200, b"hello")
    running.wait_log(r"Error handling request GET /pre\nTraceback(.|\n)*ValueError: before")
    running.wait_log(r"Exception in post_request hook\nTraceback.*\n.*\n.*\n(.*\n)?ValueError: after", count=4)


# --- what they are given ---

def test_the_configuration_and_the_server(server):
    running = server(APP, "-w", "2", "-t", "7", "--env", "COLOUR=red=ish", config="""
import os
proxy_note = 1
graceful_timeout = 2.5
def when_ready(server):
    cfg = server.cfg
    facts = [cfg.workers, cfg.timeout, cfg.graceful_timeout, cfg.bind, cfg.address, cfg.env, cfg.raw_env,
             cfg.accesslog, cfg.errorlog, cfg.loglevel, cfg.preload_app, cfg.pidfile, cfg.certfile, cfg.config,
             cfg.forwarded_allow_ips, cfg.secure_scheme_headers["X-FORWARDED-SSL"], cfg.when_ready is when_ready,
             cfg.worker_class, os.environ["COLOUR"], cfg.chdir == os.getcwd()]
    assert facts == [2, 7, 2.5, ["127.0.0.1:0"], [("127.0.0.1", 0)], {"COLOUR": "red=ish"}, ["COLOUR=red=ish"],
                     None, "-", "info", False, None, None, "gunicorn.conf.py",
                     ["127.0.0.1", "::1"], "on", True, "sync", "red=ish", True], facts
    assert isinstance(cfg.timeout, int)
    try: cfg.nothing
    except AttributeError as error: assert "nothing" in str(error)
    else: assert False
    assert (server.pid, server.master_pid, server.num_workers, server.WORKERS) == (os.getpid(), 0, 2, {})
    assert (server.address, server.proc_name) == ([("127.0.0.1", 0)], "app:app")
    listener = server.LISTENERS[0]
    host, port = listener.getsockname()
    assert (host, str(listener)) == ("127.0.0.1", "http://127.0.0.1:%d" % port)
    assert listener.sock.getsockname() == (host, port) and listener.fileno() > 2
def post_worker_init(worker):
    assert worker.pid == os.getpid() and worker.ppid == os.getppid() and worker.alive and not worker.aborted
    assert worker.cfg.workers == 2 and worker.timeout == 3.5 and worker.nr == 0
    assert worker.app.wsgi() is worker.wsgi and worker.max_requests > 10 ** 9
    assert len(worker.sockets) == 1 and str(worker) == "<Worker %d>" % os.getpid()
""")
    running.wait_workers(2)
    assert running.get("/").status == 200
    assert running.stop() == 0


def test_the_workers_of_the_server(server):
    running = server(APP, "-w", "3", "--max-requests", "5", config=TRACE + """
def on_reload(server):
    note("table", *["%d=%d" % (pid, worker.pid) for pid, worker in sorted(server.WORKERS.items())])
def child_exit(server, worker): note("served", worker.pid, worker.max_requests)
""")
    workers = running.wait_workers(3)
    running.signal(SIGHUP)
    assert wait_trace(running, "table")[0][2] == ["%d=%d" % (pid, pid) for pid in workers]
    assert all(words[1] == "5" for _, _, words in wait_trace(running, "served", 3))


def test_the_log(server):
    running = server(APP, "--log-level", "debug", config="""
def when_ready(server):
    log = server.log
    log.debug("at %s", "debug")
    log.info("at %(level)s", {"level": "info"})
    log.warning("100%")
    log.error("at %d of %s", 1, "error")
    log.critical("at critical")
    log.log("warning", "by %s", "name")
    log.log(20, "by number")
    log.info("a slip %d", "x")
    try: 1 / 0
    except ZeroDivisionError: log.exception("caught")
""")
    running.expect_errors()
    running.wait_log("ZeroDivisionError")
    said = [(level, text) for _, level, text in running.lines()]
    for line in [("DEBUG", "at debug"), ("INFO", "at info"), ("WARNING", "100%"), ("ERROR", "at 1 of error"),
                 ("CRITICAL", "at critical"), ("WARNING", "by name"), ("INFO", "by number"),
                 ("INFO", "a slip %d ('x',)"), ("ERROR", "caught")]:
        assert line in said, line
    assert re.search(r"caught\nTraceback(.|\n)*ZeroDivisionError", running.log())


REQUESTS = TRACE + """
import json
def pre_request(worker, req):
    req.begun = worker.nr
    if req.path == "/read": req.early = req.body.read().decode()
def post_request(worker, req, environ, resp):
    with open("facts", "a") as file:
        file.write(json.dumps({
            "line": [req.method, req.uri, req.path, req.query, req.fragment, req.version, req.scheme],
            "headers": req.headers, "peer": [req.remote_addr, req.peer_addr], "begun": req.begun,
            "early": getattr(req, "early", None), "seen": environ.get("seen"),
            "resp": resp and [resp.status, resp.status_code, resp.headers, resp.sent, resp.response_length,
                              resp.headers_sent, resp.chunked],
        }) + "\\n")
"""

BODIES = """
    def app(environ, start_response):
        environ["seen"] = environ["wsgi.input"].read().decode()
        path = environ["PATH_INFO"]
        if path == "/raise":
            raise ValueError("on purpose")
        if path == "/none":
            start_response("204 Nothing", [])
            return []
        start_response("201 Made", [("X-One", "a: b"), ("X-One", "2")])
        return iter([b"12", b"345"]) if path == "/stream" else [b"12345"]
"""


def facts(running, count):
    import json
    wait_until(lambda: running.read("facts").count("\n") >= count, 20, running.log)
    return [json.loads(line) for line in running.read("facts").splitlines()]


@pytest.mark.parametrize("threads", [1, 4])
def test_requests_and_responses(server, threads):
    running = server(BODIES, "--threads", threads, config=REQUESTS)
    running.expect_errors()
    with running.connect() as connection:
        connection.exchange("POST", "/a%20b?x=1", [("X-Forwarded-Proto", "https"), ("X-A", "\xe9")], b"body")
        connection.exchange("POST", "/read", [], b"body")
        connection.exchange("GET", "/stream")
        connection.exchange("HEAD", "/")
        connection.exchange("GET", "/none")
        local = connection.sock.getsockname()
    assert running.get("/raise").status == 500
    post, read, stream, head, none, broken = facts(running, 6)
    assert post["line"] == ["POST", "/a%20b?x=1", "/a%20b", "x=1", "", [1, 1], "https"]
    assert ["X-A", "\xe9"] in post["headers"] and ["X-FORWARDED-PROTO", "https"] in post["headers"]
    assert post["peer"][0] == post["peer"][1] and post["peer"][0][0] == "127.0.0.1"
    assert post["peer"][0][1] == local[1]
    assert (post["seen"], post["begun"]) == ("body", 1)
    headers = [["X-One", "a: b"], ["X-One", "2"]]
    assert post["resp"] == ["201 Made", 201, headers + [["Content-Length", "5"]], 5, 5, True, False]
    assert (read["early"], read["seen"]) == ("body", "")
    assert stream["resp"] == ["201 Made", 201, headers, 5, None, True, True]
    assert head["resp"][:2] == ["201 Made", 201] and head["resp"][3] == 0
    assert none["resp"] == ["204 Nothing", 204, [], 0, None, True, False]
    assert broken["resp"][:2] == ["500 Internal Server Error", 500]


def test_over_a_unix_socket(server, tmp_path):
    running = server(BODIES, config=REQUESTS, bind="unix:%s/s" % tmp_path)
    assert running.get("/").status == 201
    assert facts(running, 1)[0]["peer"] == ["", ""]


@pytest.mark.parametrize("arguments", ["worker, req", "worker, req, environ", "worker, req, environ, resp"])
def test_post_request_takes_two_to_four(server, arguments):
    running = server(APP, config="""
def post_request(%s):
    open("given", "w").write(" ".join(sorted(locals())) + " " + req.path)
""" % arguments)
    assert running.get("/p").status == 200
    wait_until(lambda: running.read("given") == " ".join(sorted(arguments.split(", "))) + " /p")


def test_a_request_that_is_refused_has_no_environ(server):
    running = server(APP, config=TRACE)
    headers = [("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "off")]
    assert running.get("/", headers).status == 400
    assert wait_trace(running, "post_request")[0][2] == ["/", "False", "None"]


def test_a_hook_may_end_its_worker(server):
    """`worker.alive = False`, as memory watchers do under gunicorn: this request is answered, the next has a new worker."""
    running = server(APP, config="""
def post_request(worker, req):
    if req.path == "/last": worker.alive = False
""")
    worker = running.wait_workers(1)[0]
    assert running.get("/last").status == 200
    wait_until(lambda: running.workers() and worker not in running.workers())
    assert running.get("/").status == 200


def test_in_every_thread(server):
    running = server("""
        import threading
        barrier = threading.Barrier(4)

        def app(environ, start_response):
            barrier.wait(20)
            start_response("200 OK", [])
            return [b"x"]
    """, "--threads", "4", config="""
import threading
def pre_request(worker, req): req.thread = threading.get_ident()
def post_request(worker, req):
    assert req.thread == threading.get_ident()
    open("threads", "a").write("%d\\n" % req.thread)
""")
    connections = [running.connect() for _ in range(4)]
    for connection in connections:
        connection.send_request()
    for connection in connections:
        assert connection.read_response().status == 200
        connection.close()
    wait_until(lambda: len(running.read("threads").split()) == 4)
    assert len(set(running.read("threads").split())) == 4


# --- as they are used ---

TICKER = """
import threading, time

def post_worker_init(worker):
    def tick():
        count = 0
        while worker.alive:
            count += 1
            worker.ticks = count
            time.sleep(0.002)
        open("ended", "w").close()
    threading.Thread(target=tick, daemon=True).start()

def post_request(worker, req, environ, resp):
    open("ticks", "a").write("%d\\n" % worker.ticks)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_background_thread_runs_while_idle_and_under_load(server, threads):
    running = server(APP, "--threads", threads, config=TICKER)

    def ticks():
        with running.connect() as connection:
            assert connection.exchange().status == 200
            connection.close()
        wait_until(lambda: running.read("ticks").endswith("\n"))
        return int(running.read("ticks").split()[-1])
    first = ticks()
    wait_until(lambda: ticks() > first + 20)
    with running.connect() as connection:
        seen = ticks()

        def advanced():
            for _ in range(100):
                assert connection.exchange().status == 200
            return int(running.read("ticks").split()[-1]) > seen + 20
        wait_until(advanced)
        connection.close()
    assert running.stop() == 0


def test_an_initialiser_in_post_fork_patches_what_the_application_uses(server):
    """The way of Sentry and New Relic: wrap modules, register an exit handler, all before the application is imported."""
    running = server("""
        import json
        import agent

        def app(environ, start_response):
            start_response("200 OK", [])
            return [json.dumps({"n": 1}).encode(), agent.STATE.encode()]
    """, config="""
def post_fork(server, worker):
    import atexit, json, sys, types
    plain = json.dumps
    json.dumps = lambda value: "traced " + plain(value)
    sys.modules["agent"] = types.SimpleNamespace(STATE=" in %d" % worker.pid)
    atexit.register(lambda: open("flushed", "w").write(str(worker.pid)))
""")
    worker = running.wait_workers(1)[0]
    assert running.get("/").body == b'traced {"n": 1} in %d' % worker
    assert running.stop() == 0
    assert running.read("flushed") == str(worker)


def test_prometheus_in_several_processes(server, tmp_path):
    """Gauges of the living are told from those of the dead by `child_exit`, the commonest hook there is."""
    pytest.importorskip("prometheus_client")
    folder = tmp_path / "metrics"
    folder.mkdir()
    running = server("""
        import os
        from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess

        requests = Counter("served", "Requests")
        living = Gauge("living", "Processes", multiprocess_mode="liveall")
        living.set(1)

        def app(environ, start_response):
            if environ["PATH_INFO"] != "/metrics":
                requests.inc()
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [generate_latest(registry)]
    """, "-w", "2", "--env", "PROMETHEUS_MULTIPROC_DIR=%s" % folder, config="""
def child_exit(server, worker):
    from prometheus_client import multiprocess
    multiprocess.mark_process_dead(worker.pid)
""")
    # The library itself trips over the file of a process that is about to make it.
    running.expect_errors("SIGTERM", "SIGKILL", "Error handling request .*/metrics")

    def living():
        text = running.get("/metrics").body.decode()
        return {int(pid) for pid in re.findall(r'^living\{pid="(\d+)"\} 1', text, re.M)}
    before = set(running.wait_workers(2))
    wait_until(lambda: living() == before)
    for _ in range(7):
        assert running.get("/").status == 200
    os.kill(min(before), SIGTERM)
    wait_until(lambda: living() == set(running.workers()) and len(living()) == 2 and min(before) not in living())
    running.signal(SIGHUP)
    wait_until(lambda: living() == set(running.workers()) and len(living()) == 2 and not living() & before)
    # Counters of the dead stay in the sum.
    assert re.search(r"^served_total 7", running.get("/metrics").body.decode(), re.M)


def test_raw_env_follows_the_configuration(server):
    config = "import os\nraw_env = ['A=%s', '%s=1']\n" + """
def pre_fork(server, worker): open("seen", "a").write(" ".join(os.environ.get(n, "-") for n in "ABC") + "\\n")
"""
    running = server(APP, config=config % ("one", "B"), env={"A": "zero"})
    wait_until(lambda: running.read("seen") == "one 1 -\n")
    running.wait_workers(1)
    running.write("gunicorn.conf.py", "assert __import__('os').environ['A'] == 'zero'\n" + config % ("two", "C"))
    running.signal(SIGHUP)
    wait_until(lambda: running.read("seen") == "one 1 -\ntwo - 1\n", 20, running.log)
