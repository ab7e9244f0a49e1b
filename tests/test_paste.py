"""PasteDeploy: an ini file that describes application and server, under `pserve` and by `--paste`."""

import os
import signal
import subprocess
import sys

import pytest

from harness import clean_environment, run, wait_until

# The form that Pyramid's cookiecutter writes, with this server in it.
INI = """
[app:main]
use = call:site_of_paste:main
pyramid.reload_templates = false
greeting = Hello from %(here)s

[server:main]
use = egg:rgunicorn#main
"""

SITE = """
from pyramid.config import Configurator
from pyramid.response import Response


def main(global_config, **settings):
    def hello(request):
        return Response(settings["greeting"], content_type="text/plain")

    with Configurator(settings=settings) as config:
        config.add_route("hello", "/")
        config.add_view(hello, route_name="hello")
        return config.make_wsgi_app()
"""


def pserve(*words):
    return [os.path.join(os.path.dirname(sys.executable), "pserve"), *words]


def writer(path, text):
    """A function that writes an ini file, this text and the lines it is given, and gives its path."""
    def write(*lines):
        path.write_text(text + "\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def site(tmp_path):
    """Writes the ini file with these lines in its server section, and gives its path."""
    (tmp_path / "site_of_paste.py").write_text(SITE)
    return writer(tmp_path / "production.ini", INI)


def start(server, path, **settings):
    environment = {"PYTHONPATH": str(path.parent), **settings.pop("env", {})}
    return server(None, leading=pserve(str(path)), bind=None, env=environment, **settings)


def test_pserve_serves_a_pyramid_site(server, site):
    path = site("host = 127.0.0.1", "port = 0", "workers = 2", "threads = 3")
    running = start(server, path)
    response = running.get("/")
    assert (response.status, response.text) == (200, "Hello from %s" % path.parent)
    assert running.get("/nothing").status == 404
    assert len(running.wait_workers(2)) == 2
    assert "threads in each: 3" in running.log()
    assert running.stop(signal.SIGTERM) == 0


def test_a_reload_keeps_the_section(server, site):
    running = start(server, site("bind = 127.0.0.1:0", "workers = 2"))
    running.wait_workers(2)
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete: 2 new worker")
    assert running.get("/").status == 200


def test_the_section_wins_over_the_config_file(server, site):
    path = site("host = 127.0.0.1", "port = 0", "workers = 2", "config = %s/settings.py" % site().parent)
    (path.parent / "settings.py").write_text(
        "workers = 1\nkeepalive = 7\ndef when_ready(server):\n    print(server.cfg.workers, server.cfg.keepalive, flush=True)\n")
    running = start(server, path)
    running.wait_workers(2)
    assert running.stdout().splitlines()[-1] == "2 7"


def test_several_hosts(server, site, tmp_path):
    running = start(server, site("host = 127.0.0.1:0, unix:%s/s" % tmp_path))
    assert len(running.addresses) == 2


@pytest.mark.parametrize(["line", "sentence"], [
    ("workers = many", "rgunicorn: workers: 'many' is not a whole number ≥ 1"),
    ("wrokers = 2", "rgunicorn: No configuration setting for: wrokers (did you mean 'workers'?)"),
    ("config = missing.py", "missing.py"),
])
def test_sections_that_are_wrong(site, line, sentence):
    path = site(line)
    done = subprocess.run(pserve(str(path)), env=clean_environment({"PYTHONPATH": str(path.parent)}), cwd=path.parent,
                          capture_output=True, text=True, timeout=60)
    # The exit code is pserve's: it takes every SystemExit for an orderly end.
    assert sentence in done.stderr + done.stdout and "Traceback" not in done.stderr, done.stderr


# --- --paste ---

# Two applications, and what the first is given.
FILE = """
[DEFAULT]
color = red

[app:main]
use = call:site_of_file:main
greeting = Hello from %(here)s in %(color)s

[app:second]
use = call:site_of_file:second
"""

SITE_OF_FILE = """
import os


def _app(text):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]
    return app


def main(global_conf, greeting):
    print("loaded in", os.getpid(), flush=True)
    return _app("%s, %s" % (greeting, global_conf.get("a=b", "-")))


def second(global_conf):
    return _app("second")
"""


@pytest.fixture
def file(tmp_path):
    """Writes an ini file with these lines after its applications, and gives its path."""
    (tmp_path / "site_of_file.py").write_text(SITE_OF_FILE)
    return writer(tmp_path / "shop.ini", FILE)


def paste(server, path, *options, **settings):
    environment = {"PYTHONPATH": str(path.parent), **settings.pop("env", {})}
    return server(None, *options, env=environment, **settings)


def loaded_in(running):
    return [int(line.split()[-1]) for line in running.stdout().splitlines() if line.startswith("loaded in")]


def test_paste_serves_a_pyramid_site(server, site):
    running = paste(server, site("workers = 2"), "--paste", site("workers = 2"), "--threads", 3)
    response = running.get("/")
    assert (response.status, response.text) == (200, "Hello from %s" % site().parent)
    assert running.get("/nothing").status == 404
    assert len(running.wait_workers(2)) == 2 and "threads in each: 3" in running.log()
    assert running.stop(signal.SIGTERM) == 0


def test_paste_global(server, file):
    running = paste(server, file(), "--paste", file(), "--paste-global", r"a\=b=c\=d=e", "--paste-global", "color=blue")
    # As under pserve, the file's own variables win.
    assert running.get("/").text == "Hello from %s in red, c=d=e" % file().parent


def test_paste_chooses_an_application_of_the_file(server, file):
    running = paste(server, file(), "--paster", "%s#second" % file())
    assert running.get("/").text == "second"


def test_paste_loads_in_workers_and_again_at_a_reload(server, file):
    """The path is that of the folder that the server was started in, wherever it goes."""
    path = file()
    (path.parent / "elsewhere").mkdir()
    running = paste(server, path, "--paste", path.name, "--chdir", "elsewhere", "-w", 2, cwd=path.parent)
    running.wait_log("Worker ready", count=2)
    workers = running.wait_workers(2)
    assert running.get("/").text == "Hello from %s in red, -" % path.parent
    assert sorted(loaded_in(running)) == workers
    path.write_text(FILE.replace("red", "green"))
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete: 2 new worker")
    # An old one may answer once more, before it hears that it is to go.
    running.wait_workers(2)
    assert running.get("/").text == "Hello from %s in green, -" % path.parent
    assert running.pid not in loaded_in(running)


def test_paste_with_preload(server, file):
    running = paste(server, file(), "--paste", file(), "--preload", "-w", 2)
    workers = running.wait_workers(2)
    assert running.get("/").status == 200
    (mold,) = loaded_in(running)
    assert mold not in workers + [running.pid]


def test_paste_from_the_environment_gives_way_to_the_command_line(server, file):
    env = {"GUNICORN_CMD_ARGS": "--paste %s" % file()}
    assert paste(server, file(), env=env).get("/").text.startswith("Hello from")
    assert server("apps.hello:app", env=env).get("/").body == b"Hello, world!\n"


SECTION = ["[server:main]", "use = egg:EGG#main", "workers = 2", "keepalive = 7", "host = 127.0.0.1", "port = %(port)s",
           "get threads = shop_threads"]
PRINT = "def when_ready(server):\n    print('settings', server.cfg.workers, server.cfg.threads, server.cfg.keepalive, flush=True)\n"


@pytest.mark.parametrize("egg", ["rgunicorn", "gunicorn"])
def test_the_server_section_is_below_every_other_source(server, file, egg):
    path = file(*[line.replace("EGG", egg) for line in SECTION])
    variables = ["--paste-global", "port=0", "--paste-global", "shop_threads=3"]
    env = {"WEB_CONCURRENCY": "5"}
    running = paste(server, path, "--paste", path, *variables, config=PRINT, bind=None, env=env)
    wait_until(lambda: "settings 2 3 7\n" in running.stdout(), what=running.log)
    running = paste(server, path, "--paste", path, "-w", 1, *variables, config="keepalive = 8\n" + PRINT, env=env)
    wait_until(lambda: "settings 1 3 8\n" in running.stdout(), what=running.log)


def test_the_server_section_of_another_server_is_left_alone(server, file):
    path = file("[server:main]", "use = egg:waitress#main", "workers = many", "threads = 4")
    running = paste(server, path, "--paste", path)
    assert running.get("/").status == 200 and "threads in each: 1" in running.log()


LOGGERS = """
[loggers]
keys = root, gunicorn.error

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = INFO
handlers = console

[logger_gunicorn.error]
level = INFO
handlers = console
qualname = gunicorn.error
propagate = 0

[handler_console]
class = StreamHandler
args = (sys.stdout,)
formatter = plain

[formatter_plain]
format = from the ini file: %(message)s
"""


def test_paste_takes_the_loggers_of_the_file(server, file):
    path = file(LOGGERS)
    running = paste(server, path, "--paste", path, wait=False)
    wait_until(lambda: "from the ini file: Listening at" in running.stdout(), what=lambda: running.log())


@pytest.mark.parametrize(["location", "lines", "code", "sentence"], [
    ("missing.ini", [], 1, "rgunicorn: --paste: '{folder}/missing.ini' is not a file that can be read: No such file or directory"),
    ("shop.ini", ["no section"], 1, "rgunicorn: --paste: '{folder}/shop.ini' is not an ini file: "),
    ("shop.ini", ["[server:main]", "use = egg:rgunicorn", "workers = many"], 1,
     "rgunicorn: {folder}/shop.ini:13: workers: 'many' is not a whole number ≥ 1"),
    ("shop.ini", ["[server:main]", "use = egg:rgunicorn", "workers = %(cores)s"], 1,
     "rgunicorn: --paste: '{folder}/shop.ini' has a [server:main] that cannot be read: Bad value substitution: "),
    ("shop.ini#third", [], 1, "--paste: '{folder}/shop.ini' does not describe the application: No section 'third'"),
])
def test_paste_files_that_are_wrong(file, location, lines, code, sentence):
    path = file(*lines)
    if lines == ["no section"]:
        path.write_text("no section\n")
    done = run("--paste", location, "--check-config", env={"PYTHONPATH": str(path.parent)}, cwd=path.parent)
    assert sentence.format(folder=path.parent) in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr


def test_paste_without_pastedeploy(file):
    path = file()
    (path.parent / "sitecustomize.py").write_text("import sys\nsys.modules['paste.deploy'] = None\n")
    done = run("--paste", path, "-b", "127.0.0.1:0", env={"PYTHONPATH": str(path.parent)})
    assert "--paste: '%s' cannot be served: PasteDeploy is not installed (pip install PasteDeploy)" % path in done.stderr
    assert done.returncode == 4 and "Traceback" not in done.stderr


def test_what_the_application_raises_has_its_traceback(file):
    path = file()
    (path.parent / "site_of_file.py").write_text("def main(global_conf, greeting):\n    raise LookupError('of its own')\n")
    done = run("--paste", path, "--check-config", env={"PYTHONPATH": str(path.parent)})
    assert "LookupError: of its own" in done.stderr and "Traceback" in done.stderr
    assert done.returncode not in (0, 4), done.stderr


def test_check_config_loads_what_the_file_describes(file):
    done = run("--paste", file(), "--check-config", env={"PYTHONPATH": str(file().parent)})
    assert (done.returncode, "loaded in" in done.stdout) == (0, True), done.stderr


def test_the_command_as_a_class_serves_the_file(server, file):
    program = [sys.executable, "-c", "from rgunicorn.app.wsgiapp import WSGIApplication; WSGIApplication().run()"]
    running = paste(server, file(), "--paste", "%s#second" % file(), leading=program)
    assert running.get("/").text == "second"


def test_a_saved_file_is_served_where_code_is(server, file):
    """With `--reload` the file is watched, too: one that is wrong is told of, and the one that was fixed is served."""
    path = file()
    running = paste(server, path, "--paste", path, "--reload")

    def serves(color):
        answer = "Hello from %s in %s, -" % (path.parent, color)
        wait_until(lambda: running.get().text == answer, what=running.log)

    serves("red")
    path.write_text(FILE.replace("red", "green"))
    serves("green")
    running.expect_errors("Reload failed")
    path.write_text("[server:main]\nuse = egg:rgunicorn\nworkers = many\n")
    running.wait_log("Reload failed, the old configuration stays: .*shop.ini:3: workers: 'many' is not a whole number")
    serves("green")
    path.write_text(FILE.replace("red", "blue"))
    serves("blue")
