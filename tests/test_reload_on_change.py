"""`--reload`: what is noticed, what is not, and what is served meanwhile. `--spew` beside it."""
import os
import re
import shutil
from signal import SIGHUP, SIGTERM

import pytest

import harness
from harness import wait_until

ENGINES = ["auto", "poll", "inotify"]
BROKEN = r"Exception in worker process"


def source(answer, before=""):
    return before + """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [%r]
""" % answer.encode()


@pytest.fixture
def start(server, tmp_path):
    """A server with `--reload` on `site.py` of this text, and other files by their names."""
    def begin(text, *options, files=(), **settings):
        directory = tmp_path / "project"
        directory.mkdir()
        for name, content in dict(files).items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (directory / "site_.py").write_text(text)
        # As for a user, compiled code is cached.
        env = dict({"PYTHONDONTWRITEBYTECODE": ""}, **settings.pop("env", {}))
        running = server("site_:app", "--reload", *options, directory=directory, env=env, **settings)
        running.wait_log(r"Worker ready")
        return running
    return begin


def serves(running, answer):
    """Waits until the answer is this one, whatever the others were."""
    body = answer.encode()
    wait_until(lambda: running.get().body == body, 20, lambda: "%r; the log:\n%s" % (answer, running.log()))


def save(running, name, text):
    """In place, as simple editors do; the harness's `write` is the other way, by renaming."""
    with open(running.path(name), "w") as f:
        f.write(text)


def reloads(running):
    return len(re.findall(r"Worker reloading: ", running.log()))


# --- what is noticed ---

@pytest.mark.parametrize("engine", ENGINES)
def test_saved_code_is_served(start, engine):
    running = start(source("one"), "--reload-engine", engine, "-w", 2)
    serves(running, "one")
    save(running, "site_.py", source("two"))
    serves(running, "two")
    running.wait_log(r"\[INFO\] Worker reloading: %s modified$" % re.escape(running.path("site_.py")))
    running.write("site_.py", source("six"))
    serves(running, "six")
    running.wait_workers(2)


@pytest.mark.parametrize("engine", ENGINES)
def test_modules_that_are_imported_late_and_packages(start, engine):
    late = """
def app(environ, start_response):
    from shop import prices
    start_response("200 OK", [])
    return [prices.text.encode()]
"""
    running = start(late, "--reload-engine", engine, files={"shop/__init__.py": "", "shop/prices.py": "text = 'low'"})
    serves(running, "low")
    save(running, "shop/prices.py", "text = 'mid'")
    serves(running, "mid")
    save(running, "shop/__init__.py", "import sys; sys.modules['shop.prices'] = type('P', (), {'text': 'odd'})\n"
                                      "prices = sys.modules['shop.prices']")
    serves(running, "odd")


@pytest.mark.parametrize("engine", ENGINES)
def test_extra_files_and_patterns(start, engine):
    reads = """
import glob
TEXT = open("data.txt").read() + "".join(sorted(open(n).read() for n in glob.glob("t/**/*.html", recursive=True)))
""" + source("").replace("b''", "TEXT.encode()")
    running = start(reads, "--reload-engine", engine, "--reload-extra-file", "data.txt",
                    "--reload-extra-file", "t/**/*.html", files={"data.txt": "d1", "t/a.html": "a1"})
    serves(running, "d1a1")
    save(running, "data.txt", "d2")
    serves(running, "d2a1")
    save(running, "t/a.html", "a2")
    serves(running, "d2a2")
    os.makedirs(running.path("t/deep"))
    save(running, "t/deep/b.html", "b1")
    serves(running, "d2a2b1")
    os.remove(running.path("t/a.html"))
    serves(running, "d2b1")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_editors_leave_is_not_noticed(start, engine):
    running = start(source("one"), "--reload-engine", engine, "--reload-extra-file", "t/*",
                    files={"t/a.html": "", "pkg/__init__.py": ""})
    serves(running, "one")
    for name in ["site_.py~", ".site_.py.swp", "4913", "#site_.py#", "t/a.html~", "t/.a.html.swp", "t/4913",
                 "__pycache__/site_.cpython-311.pyc", "notes.txt", "other.py"]:
        os.makedirs(os.path.dirname(running.path(name)), exist_ok=True)
        save(running, name, "noise")
        os.remove(running.path(name))
    # Everything before this has been seen when this has.
    save(running, "site_.py", source("two"))
    serves(running, "two")
    assert reloads(running) == 1, running.log()


def test_many_files_at_once_are_one_reload(start):
    files = {"part%d.py" % i: "x = 1" for i in range(60)}
    text = "".join("import part%d\n" % i for i in range(60))
    running = start(source("one", text), files=files)
    serves(running, "one")
    for name in files:
        save(running, name, "x = 22")
    save(running, "site_.py", source("two", text))
    serves(running, "two")
    # A machine that stands still in the middle may make two of it, but not sixty.
    assert reloads(running) <= 3, running.log()
    running.wait_log(r"Worker reloading: .* modified, and \d+ more$")


def test_the_configuration_file_and_what_it_imports(start, tmp_path):
    running = start(source("one"), config="from shared import count\nworkers = count\n", files={"shared.py": "count = 1"},
                    env={"PYTHONPATH": str(tmp_path / "project") + os.pathsep + harness.TESTS})
    serves(running, "one")
    running.wait_workers(1)
    save(running, "shared.py", "count = 3")
    running.wait_workers(3)
    save(running, "gunicorn.conf.py", "workers = 2\n")
    running.wait_workers(2)
    running.expect_errors("Reload failed")
    save(running, "gunicorn.conf.py", "workers = two\n")
    running.wait_log(r"\[ERROR\] Reload failed, the old configuration stays")
    serves(running, "one")
    save(running, "gunicorn.conf.py", "workers = 1\n")
    running.wait_workers(1)


# --- code that cannot be loaded ---

FAULTS = {
    "syntax": ("def app(:\n", "SyntaxError"),
    "name": ("surely_not_defined['<b>']\n", "NameError"),
    "import": ("import no_such_module_x\n", "ModuleNotFoundError"),
    "exit": ("import sys; sys.exit('<script>')\n", "SystemExit"),
    "no application": ("x = 1\n", "Failed to find attribute"),
}


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_starts_with_broken_code_waits(start, fault, preload):
    text, name = FAULTS[fault]
    running = start(text, "-w", 2, *preload)
    running.expect_errors(BROKEN, "Failed to find")
    shown(running, name)
    assert name in running.log()
    save(running, "site_.py", source("fixed"))
    serves(running, "fixed")


def test_a_stop_is_no_failure_of_the_hook_of_a_worker_that_shows_broken_code(server):
    running = server("import no_such_module\n", "--reload", wait=False, config="""
import time

def post_worker_init(worker):
    open("inside", "w").close()
    time.sleep(600)
""")
    running.expect_errors(BROKEN)
    wait_until(lambda: running.exists("inside"), 20, running.log)
    assert running.stop(SIGTERM) == 0
    assert "post_worker_init hook" not in running.log()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_code_is_shown_until_it_is_fixed(start, fault, engine):
    text, name = FAULTS[fault]
    running = start(source("one"), "--reload-engine", engine)
    serves(running, "one")
    running.expect_errors(BROKEN, "Failed to find")
    save(running, "site_.py", text)
    # Until then it may still be asked.
    running.wait_log(r"Worker exiting")
    shown(running, name)
    save(running, "site_.py", source("two"))
    serves(running, "two")


def shown(running, name):
    def page():
        """An old worker may answer once more, before it hears that it is to go."""
        response = running.get("/any?thing")
        return response.status == 500 and response
    response = wait_until(page, 20, running.log)
    body = response.body.decode()
    assert response.header("content-type") == "text/html; charset=utf-8" and name in body
    assert "<script>" not in body and "<b>" not in body
    wait_until(lambda: running.request("HEAD").status == 500, 20, running.log)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_module_is_written(start, engine):
    running = start(source("one", "import helper\nfrom shop import views\n"), "--reload-engine", engine,
                    files={"shop/__init__.py": ""})
    running.expect_errors(BROKEN)
    shown(running, "helper")
    save(running, "helper.py", "x = 1\n")
    wait_until(lambda: b"views" in running.get().body, 20, running.log)
    save(running, "shop/views.py", "x = 1\n")
    serves(running, "one")


def test_the_application_itself_is_missing(start):
    running = start(source("one"), "--reload")
    running.expect_errors(r"No module named 'site_'")
    os.rename(running.path("site_.py"), running.path("away.py"))
    shown(running, "No module named")
    os.rename(running.path("away.py"), running.path("site_.py"))
    serves(running, "one")


def test_a_hook_that_fails_on_the_application_is_shown(start):
    running = start(source("one"), config="def post_worker_init(worker):\n    raise KeyError('oops')\n")
    running.expect_errors(BROKEN)
    shown(running, "oops")
    save(running, "gunicorn.conf.py", "def post_worker_init(worker):\n    pass\n")
    serves(running, "one")


def test_a_new_module_that_ends_the_process(start):
    """Its generation never serves, and what it depended on is watched all the same."""
    running = start(source("one"), files={"dead.py": "import os\nos._exit(9)\n"})
    running.expect_errors("exited with code 9", "Reload failed")
    serves(running, "one")
    save(running, "site_.py", source("two", "import dead\n"))
    running.wait_log(r"Reload failed")
    serves(running, "one")
    save(running, "dead.py", "x = 1\n")
    serves(running, "two")


def test_without_reload_the_exit_codes_stay(server):
    assert harness.run("-b", "127.0.0.1:0", "no_such_module_x:app").returncode == 3
    assert harness.run("-b", "127.0.0.1:0", "os:no_such_name").returncode == 4
    assert harness.run("--check-config", "--reload", "no_such_module_x:app").returncode == 1


# --- meanwhile ---

SLOW = """
import os, time
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open("started", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
    start_response("200 OK", [])
    return [b"one"]
"""


@pytest.mark.parametrize("options", [(), ("--preload",), ("--threads", 3)], ids=["plain", "preload", "threads"])
def test_requests_under_way_are_finished(start, options):
    running = start(SLOW, "-w", 1, *options)
    with running.connect() as connection:
        connection.send_request("GET", "/slow")
        wait_until(lambda: running.exists("started"))
        save(running, "site_.py", source("two"))
        serves(running, "two")
        running.touch("go")
        assert connection.read_response().body == b"one"


def test_over_a_unix_socket(start, tmp_path):
    running = start(source("one"), "--threads", 2, bind="unix:%s" % (tmp_path / "sock"))
    serves(running, "one")
    save(running, "site_.py", source("two"))
    serves(running, "two")


def test_fifty_saves_leave_nothing_behind(start):
    running = start(source("0"), "-w", 2)
    # A file that is written in place is empty for a moment.
    running.expect_errors("Failed to find attribute")
    serves(running, "0")
    def held():
        return sorted(os.listdir("/proc/%d/fd" % running.pid))
    save(running, "site_.py", source("1"))
    serves(running, "1")
    running.wait_workers(2)
    before = wait_until(lambda: len(harness.children(running.pid)) == 2 and held())
    for number in range(50):
        save(running, "site_.py", source(str(100 + number)))
        if number % 5 == 4:
            serves(running, str(100 + number))
    serves(running, "149")
    wait_until(lambda: len(harness.children(running.pid)) == 2, 20, running.log)
    wait_until(lambda: len(held()) == len(before), 20, lambda: "%s, were %s" % (held(), before))
    assert reloads(running) <= 52
    for pid in running.workers():
        assert len(os.listdir("/proc/%d/fd" % pid)) < 30


def test_the_same_second_and_size(start):
    """The compiled code of a source is known by second and size, which two saves may share."""
    running = start(source("a"))
    for text in "bcdefgh":
        save(running, "site_.py", source(text))
        serves(running, text)


def test_a_reload_by_signal_still_works(start):
    running = start(source("one"))
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete")
    save(running, "site_.py", source("two"))
    serves(running, "two")


def test_workers_are_told_by_worker_int(start):
    running = start(source("one"), config="""
def worker_int(worker):
    worker.log.info("interrupted %s", worker.pid)
""")
    (old,) = running.wait_workers(1)
    save(running, "site_.py", source("two"))
    running.wait_log(r"interrupted %d$" % old)
    serves(running, "two")
    (new,) = running.wait_workers(1)
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete", count=2)
    running.wait_log(r"Worker exiting \(pid: %d\)" % new)
    assert "interrupted %d" % new not in running.log()


# --- settings ---

@pytest.mark.parametrize("name, why", [("no-such-file.txt", "there is no such file"), ("a/[", "attern")])
def test_an_extra_file_that_is_not_there(name, why):
    done = harness.run("--reload-extra-file", name, "apps.hello:app")
    assert done.returncode == 1
    assert "--reload-extra-file: '%s'" % name in done.stderr and why in done.stderr


def test_an_engine_that_is_none():
    done = harness.run("--reload-engine", "magic", "apps.hello:app")
    assert done.returncode != 0 and "auto, poll, inotify" in done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs a user namespace of its own")
def test_polling_takes_over_where_no_watch_is_left(start):
    """inotify's limit is the namespace's."""
    limit = "echo 0 > /proc/sys/user/max_inotify_watches && exec \"$@\""
    running = start(source("one"), prefix=["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"])
    running.wait_log(r"\[INFO\] reload: no inotify watch is left, the other files are polled")
    save(running, "site_.py", source("two"))
    serves(running, "two")


# --- spew ---

@pytest.mark.parametrize("options", [(), ("--threads", 2), ("--preload",)], ids=["plain", "threads", "preload"])
def test_spew(server, options):
    running = server("""
    def app(environ, start_response):
        start_response("200 OK", [])
        marked = 5
        return [b"ok"]
    """, "--spew", *options)
    assert running.get().body == b"ok"
    wait_until(lambda: re.search(r"^app:\d+:     marked = 5$", running.stdout(), re.M), 20, running.stdout)
