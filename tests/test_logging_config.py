"""A logger in Python: logconfig in its three forms and logger_class; HUP, USR1, threads, preload; what is done about a
configuration that is wrong and an interpreter that is stuck. And the settings about standard output."""
import json
import os
import re
import textwrap
from signal import SIGHUP, SIGUSR1

import pytest

import harness
from harness import read_text, wait_until

APP = """
    import logging, sys

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/raise":
            raise ValueError("on purpose")
        if path == "/print":
            print("printed by the application", flush=True)
            print("complained by the application", file=sys.stderr, flush=True)
        if path == "/log":
            logging.getLogger("shop").warning("said by the application")
        start_response("200 OK", [("X-Answer", "yes"), ("Content-Length", "5")])
        return [b"hello"]
"""

VARIANTS = pytest.mark.parametrize(
    "options", [[], ["--threads", "3"], ["--preload", "--threads", "2"]], ids=["plain", "threads", "preload"])

# error.log and access.log in the working directory.
DICT = {
    "version": 1,
    "formatters": {"plain": {"format": "%(name)s|%(levelname)s|%(process)d|%(message)s"}},
    "handlers": {
        "error": {"class": "logging.FileHandler", "filename": "error.log", "formatter": "plain"},
        "access": {"class": "logging.FileHandler", "filename": "access.log", "formatter": "plain"},
    },
    "root": {"level": "INFO", "handlers": ["error"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["error"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": ["access"], "propagate": False},
    },
}
INI = """
    [loggers]
    keys = root, error, access

    [handlers]
    keys = error, access

    [formatters]
    keys = plain

    [logger_root]
    level = INFO
    handlers = error

    [logger_error]
    qualname = gunicorn.error
    level = INFO
    handlers = error
    propagate = 0

    [logger_access]
    qualname = gunicorn.access
    level = INFO
    handlers = access
    propagate = 0

    [handler_error]
    class = FileHandler
    formatter = plain
    args = ('%(here)s/error.log',)

    [handler_access]
    class = FileHandler
    formatter = plain
    args = ('%(here)s/access.log',)

    [formatter_plain]
    format = %(name)s|%(levelname)s|%(process)d|%(message)s
"""


def start(server, tmp_path, *options, config=None, app=APP):
    """A server whose log is error.log; waits until it serves."""
    directory = tmp_path / "here"
    directory.mkdir(exist_ok=True)
    running = server(app, *options, config=config, directory=directory, wait=False)
    running.error_logfile = running.path("error.log")
    running.wait_listening()
    return running


def written(tmp_path, form):
    """(options, config) for a form of the same configuration."""
    directory = tmp_path / "here"
    directory.mkdir()
    if form == "dict":
        return [], "logconfig_dict = %r" % DICT
    if form == "json":
        (directory / "log.json").write_text(json.dumps(DICT))
        return ["--log-config-json", "log.json"], None
    if form == "toml":
        return ["-c", "rgunicorn.toml"], None
    path = directory / "log.ini"
    path.write_text(textwrap.dedent(INI))
    return ["--log-config", str(path)], None


@VARIANTS
@pytest.mark.parametrize("form", ["dict", "json", "ini"])
def test_logconfig_gets_the_lines_of_arbiter_and_workers(server, tmp_path, form, options):
    more, config = written(tmp_path, form)
    running = start(server, tmp_path, *options, *more, config=config)
    assert running.get("/shelf?x").status == 200
    running.wait_log(r"^gunicorn\.error\|INFO\|%d\|Listening at: http" % running.pid)
    worker = running.wait_workers(1)[0]
    running.wait_log(r"^gunicorn\.error\|INFO\|%d\|Booting worker with pid: %d$" % (worker, worker))
    wait_until(lambda: running.read("access.log"))
    assert re.fullmatch(r'gunicorn\.access\|INFO\|%d\|127\.0\.0\.1 - - \[.*\] "GET /shelf\?x HTTP/1\.1" 200 5 "-" "-"\n'
                        % worker, running.read("access.log"))
    running.get("/log")
    running.wait_log(r"^shop\|WARNING\|%d\|said by the application$" % worker)
    running.expect_errors(r"Error handling", r"on purpose")
    assert running.get("/raise").status == 500
    running.wait_log(r"^gunicorn\.error\|ERROR\|%d\|Error handling request GET /raise\nTraceback" % worker)
    # Nothing of it went where it would have gone without.
    assert "Booting" not in read_text(running.stderr_path)
    assert running.stop() == 0
    running.wait_log(r"Worker exiting \(pid: %d\)" % worker)
    running.wait_log(r"Shutting down: Master")


def test_logconfig_dict_in_toml(server, tmp_path):
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "rgunicorn.toml").write_text(textwrap.dedent("""
        [logconfig_dict]
        version = 1
        [logconfig_dict.formatters.plain]
        format = "toml|%(message)s"
        [logconfig_dict.handlers.error]
        class = "logging.FileHandler"
        filename = "error.log"
        formatter = "plain"
        [logconfig_dict.root]
        handlers = ["error"]
        [logconfig_dict.loggers."gunicorn.error"]
        handlers = ["error"]
        propagate = false
        [logconfig_dict.loggers."gunicorn.access"]
        handlers = ["error"]
        propagate = false
    """))
    running = start(server, tmp_path)
    running.wait_log(r"^toml\|Listening at")


def test_a_dictionary_goes_before_json_and_that_before_a_file(server, tmp_path):
    directory = tmp_path / "here"
    directory.mkdir()
    for name, mark in [("a", "json"), ("b", "dict")]:
        other = json.loads(json.dumps(DICT))
        other["formatters"]["plain"]["format"] = mark + "|%(message)s"
        (directory / (name + ".json")).write_text(json.dumps(other))
    (directory / "log.ini").write_text(textwrap.dedent(INI))
    running = start(server, tmp_path, "--log-config", "log.ini", "--log-config-json", "a.json")
    running.wait_log(r"^json\|Listening at")
    assert running.stop() == 0
    config = "import json\nlogconfig_dict = json.load(open('b.json'))"
    running = start(server, tmp_path, "--log-config", "log.ini", "--log-config-json", "a.json", config=config)
    running.wait_log(r"^dict\|Listening at")


def test_defaults_are_replaced_key_by_key(server):
    """What is not given is gunicorn's: the handlers, the formatters."""
    config = 'logconfig_dict = {"formatters": {"generic": {"format": "mine|%(name)s|%(message)s"}}}'
    running = server(APP, config=config, wait=False)
    running.wait_log(r"^mine\|gunicorn\.error\|Listening at")
    running.wait_listening()
    running.get("/shelf")
    wait_until(lambda: re.search(r'^mine\|gunicorn\.access\|.*"GET /shelf HTTP/1\.1" 200 5', running.stdout(), re.M))


def test_the_level_is_that_of_the_configuration(server, tmp_path):
    config = dict(DICT, loggers={"gunicorn.error": {"level": "DEBUG", "handlers": ["error"], "propagate": False}})
    running = start(server, tmp_path, config="logconfig_dict = %r\ndef when_ready(server): server.log.debug('deep')" % config)
    running.wait_log(r"\|DEBUG\|\d+\|deep")


@pytest.mark.parametrize("options, config, sentence", [
    (["--log-config", "missing.ini"], None, r"--log-config: 'missing\.ini' is not a file that can be read.*"),
    (["--log-config", "bad"], None, r"--log-config: log config 'bad': .+"),
    (["--log-config-json", "missing.json"], None, r"--log-config-json: 'missing\.json' is not a file that can be read.*"),
    (["--log-config-json", "bad"], None, r"--log-config-json: log config 'bad': Expecting value.*"),
    ([], "logconfig = 'bad'", r"gunicorn\.conf\.py:1: logconfig: log config 'bad': .+"),
    ([], "\nlogconfig_dict = {'handlers': {}}", r"gunicorn\.conf\.py:2: logconfig_dict: .*handler.*"),
    ([], "logconfig_dict = {'version': 7}", r"gunicorn\.conf\.py:1: logconfig_dict: Unsupported version: 7"),
    ([], "logconfig_dict = 'x'", r"gunicorn\.conf\.py:1: logconfig_dict: 'x' is not a dictionary"),
    (["--logger-class", "nowhere.Logger"], None,
     r"--logger-class: 'nowhere\.Logger' cannot be used: ModuleNotFoundError: No module named 'nowhere'"),
    (["--logger-class", "logging.Nothing"], None, r"--logger-class: 'logging\.Nothing' cannot be used: AttributeError: .*"),
    ([], "logger_class = 3", r"gunicorn\.conf\.py:1: logger_class: 3 is neither a class nor MODULE\.NAME"),
])
def test_a_configuration_that_cannot_be_used_is_one_sentence(tmp_path, options, config, sentence):
    (tmp_path / "bad").write_text("[what")
    (tmp_path / "gunicorn.conf.py").write_text(config or "")
    for more in [[], ["-D"], ["--check-config"]]:
        done = harness.run("-b", "127.0.0.1:0", *options, *more, "app:app", cwd=str(tmp_path))
        assert done.returncode == 1, done.stderr
        assert re.fullmatch("rgunicorn: " + sentence + "\n", done.stderr), done.stderr


# --- reload, reopen ---

@VARIANTS
def test_a_reload_applies_another_configuration_to_all(server, tmp_path, options):
    running = start(server, tmp_path, *options, config="logconfig_dict = %r" % DICT)
    old = running.wait_workers(1)
    changed = json.loads(json.dumps(DICT))
    changed["formatters"]["plain"]["format"] = "new|%(name)s|%(process)d|%(message)s"
    running.write("gunicorn.conf.py", "logconfig_dict = %r" % changed)
    running.signal(SIGHUP)
    running.wait_log(r"^new\|gunicorn\.error\|%d\|Reload complete" % running.pid)
    wait_until(lambda: not set(old) & set(running.workers()) and running.workers())
    running.get("/after")
    wait_until(lambda: re.search(r"^new\|gunicorn\.access\|%d\|.*/after" % running.workers()[0],
                                 running.read("access.log"), re.M))


@pytest.mark.parametrize("bad", [
    "logconfig_dict = {'handlers': {}}",
    "logconfig = 'missing.ini'",
    "logger_class = 'nowhere.Logger'",
])
def test_a_reload_with_a_wrong_configuration_is_refused(server, tmp_path, bad):
    running = start(server, tmp_path, config="logconfig_dict = %r" % DICT)
    running.expect_errors(r"Reload failed")
    worker = running.wait_workers(1)
    running.write("gunicorn.conf.py", bad)
    running.signal(SIGHUP)
    running.wait_log(r"^gunicorn\.error\|ERROR\|%d\|Reload failed, the old configuration stays: .+" % running.pid)
    assert running.get("/still").status == 200
    assert running.workers() == worker
    wait_until(lambda: "/still" in running.read("access.log"))
    # And the old one is in force in the arbiter.
    running.signal(SIGUSR1)
    running.wait_log(r"^gunicorn\.error\|INFO\|%d\|Handling signal: usr1" % running.pid)


def test_a_reload_that_fails_later_puts_the_old_logging_back(server, tmp_path):
    running = start(server, tmp_path, config="logconfig_dict = %r" % DICT)
    running.expect_errors(r".")
    running.wait_log(r"Worker ready")
    running.write("app.py", "raise ValueError('half copied')")
    changed = json.loads(json.dumps(DICT))
    changed["formatters"]["plain"]["format"] = "new|%(message)s"
    running.write("gunicorn.conf.py", "logconfig_dict = %r" % changed)
    running.signal(SIGHUP)
    running.wait_log(r"Reload failed, the old workers serve on")
    running.signal(SIGUSR1)
    running.wait_log(r"^gunicorn\.error\|INFO\|%d\|Handling signal: usr1" % running.pid)


def test_a_reload_from_rust_to_python_and_back(server, tmp_path):
    running = server(APP, "--access-logfile", "access.txt", config="")
    running.get("/one")
    wait_until(lambda: "/one" in running.read("access.txt"))
    running.write("gunicorn.conf.py", "logconfig_dict = %r" % DICT)
    running.signal(SIGHUP)
    wait_until(lambda: "Reload complete" in running.read("error.log"))
    wait_until(lambda: running.get("/two").status == 200 and "/two" in running.read("access.log"))
    running.write("gunicorn.conf.py", "")
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete")
    wait_until(lambda: running.get("/three").status == 200 and "/three" in running.read("access.txt"))


@VARIANTS
def test_usr1_reopens_the_files_of_all_handlers(server, tmp_path, options):
    running = start(server, tmp_path, *options, config="logconfig_dict = %r" % DICT)
    running.get("/before")
    wait_until(lambda: "/before" in running.read("access.log"))
    for name in ["error.log", "access.log"]:
        os.rename(running.path(name), running.path(name + ".1"))
    running.signal(SIGUSR1)
    # The worker has reopened its own when its file is there again.
    wait_until(lambda: running.get("/after").status == 200 and "/after" in running.read("access.log"))
    assert "Handling signal: usr1" in running.read("error.log.1")
    running.get("/log")
    running.wait_log(r"said by the application")
    assert running.stop() == 0
    running.wait_log(r"Shutting down: Master")
    assert "Shutting down" not in running.read("error.log.1")


@pytest.mark.parametrize("options", [[], ["--threads", "3"]], ids=["plain", "threads"])
def test_usr1_reopens_what_the_application_logs_to_without_any_of_it(server, options):
    app = """
        import logging
        logging.basicConfig(filename="shop.log", level=logging.INFO)

        def app(environ, start_response):
            logging.info("asked for %s", environ["PATH_INFO"])
            start_response("200 OK", [])
            return [b"hello"]
    """
    running = server(app, *options)
    running.get("/before")
    assert "asked for /before" in running.read("shop.log")
    os.rename(running.path("shop.log"), running.path("shop.log.1"))
    running.signal(SIGUSR1)
    wait_until(lambda: running.get("/after").status == 200 and "asked for /after" in running.read("shop.log"))


# --- logger_class ---

CLASS = """
    from rgunicorn.glogging import Logger

    class Mine(Logger):
        def setup(self, cfg):
            self.datefmt = "when"
            super().setup(cfg)

        def atoms(self, resp, req, environ, request_time):
            atoms = super().atoms(resp, req, environ, request_time)
            atoms["mine"] = "%s %s %s" % (req.method, resp.status, type(request_time).__name__)
            return atoms

        def info(self, msg, *args, **kwargs):
            super().info("mine: " + msg, *args, **kwargs)

        def critical(self, msg, *args, **kwargs):
            super().critical("mine: " + msg, *args, **kwargs)

        def exception(self, msg, *args, **kwargs):
            kind = kwargs["exc_info"][0].__name__
            super().exception("mine, " + kind + ": " + msg, *args, **kwargs)
"""
HOOKS = """
    logger_class = %s
    accesslog = "access.log"
    access_log_format = "%%(mine)s|%%({x-answer}o)s|%%({host}i)s|%%({wsgi.url_scheme}e)s|%%(B)s"

    def when_ready(server):
        server.log.info("hook of %%s", type(server.log).__name__)

    def post_worker_init(worker):
        worker.log.info("hook of %%s in a worker", type(worker.log).__name__)
"""


@VARIANTS
@pytest.mark.parametrize("named", [True, False], ids=["by name", "the class"])
def test_logger_class(server, options, named, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "mylog.py").write_text(textwrap.dedent(CLASS))
    head = "" if named else "from mylog import Mine\n"
    config = head + textwrap.dedent(HOOKS) % ("'mylog.Mine'" if named else "Mine")
    running = server(APP, *options, config=config, directory=tmp_path / "server", wait=False)
    running.wait_log(r"^when \[%d\] \[INFO\] mine: Listening at: " % running.pid)
    running.wait_listening()
    running.wait_log(r"mine: hook of Mine$")
    worker = running.wait_workers(1)[0]
    running.wait_log(r"^when \[%d\] \[INFO\] mine: Booting worker with pid: %d" % (worker, worker))
    running.wait_log(r"^when \[%d\] \[INFO\] mine: hook of Mine in a worker$" % worker)
    running.get("/shelf")
    wait_until(lambda: running.read("access.log") == "GET 200 OK timedelta|yes|test|http|5\n")
    running.expect_errors(r"on purpose", r"Error handling")
    assert running.get("/raise").status == 500
    running.wait_log(r"^when \[%d\] \[ERROR\] mine, ValueError: Error handling request GET /raise$" % worker)
    wait_until(lambda: running.read("access.log").endswith("GET 500 Internal Server Error timedelta|-|test|http|0\n"))


def test_the_user_and_the_group_in_cfg_are_numbers(server):
    """gunicorn's own Logger, and classes derived from it, give their files to them."""
    config = """
        import os
        from rgunicorn.glogging import Logger

        class Mine(Logger):
            def setup(self, cfg):
                super().setup(cfg)
                os.chown("gunicorn.conf.py", cfg.user, cfg.group)
                self.info("files are of %s and %s", cfg.user, cfg.group)

        logger_class = Mine
    """
    running = server(APP, config=textwrap.dedent(config))
    running.wait_log(r"files are of %d and %d$" % (os.geteuid(), os.getegid()))


def test_access_can_be_overridden_without_an_access_log(server):
    config = """
        from rgunicorn.glogging import Logger

        class Mine(Logger):
            def access(self, resp, req, environ, request_time):
                with open("seen", "a") as file:
                    file.write("%s %s %s %s\\n" % (req.method, environ["RAW_URI"], resp.status.split()[0],
                                                  environ["REMOTE_ADDR"]))

        logger_class = Mine
    """
    running = server(APP, config=textwrap.dedent(config))
    running.get("/shelf?x")
    # Refused before there was a request, and by the environ.
    with running.connect() as connection:
        connection.send(b"GET / HTTP/9.9\r\n\r\n")
        connection.read_response()
    wait_until(lambda: running.read("seen").splitlines()[:1] == ["GET /shelf?x 200 127.0.0.1"])
    wait_until(lambda: len(running.read("seen").splitlines()) == 2)
    assert re.fullmatch(r"- - [45]\d\d 127\.0\.0\.1", running.read("seen").splitlines()[1])


@pytest.mark.parametrize("method", ["access", "info"])
def test_a_logger_that_raises_fails_no_request_and_loses_no_line(server, method):
    config = """
        from rgunicorn.glogging import Logger

        class Mine(Logger):
            def %s(self, *args, **kwargs):
                raise RuntimeError("the logger is broken")

        logger_class = Mine
        accesslog = "access.log"
    """ % method
    running = server(APP, config=textwrap.dedent(config))
    running.expect_errors(r"Exception in", r"broken")
    assert [running.get().status for _ in range(5)] == [200] * 5
    running.wait_log(r"RuntimeError: the logger is broken")


@pytest.mark.parametrize("name", ["gunicorn.glogging.Logger", "rgunicorn.glogging.Logger", "egg:gunicorn#simple", "simple"])
def test_the_default_class_by_name_is_rust_and_imports_no_logging(server, name):
    app = """
        import sys
        found = "logging" in sys.modules

        def app(environ, start_response):
            start_response("200 OK", [])
            return [str(found).encode()]
    """
    running = server(app, "--logger-class", name, "--access-logfile", "-")
    assert running.get().body == b"False"
    wait_until(lambda: "GET /" in running.stdout())


def test_syslog_of_a_logger_in_python(server, tmp_path):
    from collector import Collector
    log = Collector("unix-dgram", str(tmp_path / "log"))
    config = "from rgunicorn.glogging import Logger\nclass Mine(Logger): pass\nlogger_class = Mine"
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url, "-n", "shop", config=config)
    running.get("/shelf")
    worker = running.wait_workers(1)[0]
    log.wait(lambda m: m.startswith("<14>gunicorn.shop.error: [%d] Listening at" % running.pid))
    log.wait(lambda m: m.startswith("<14>gunicorn.shop.access: [%d] 127.0.0.1" % worker) and "/shelf" in m)
    log.close()
    assert running.get("/gone").status == 200


# --- gunicorn's loggers, where nothing is set ---

@VARIANTS
def test_handlers_of_gunicorn_error_lead_to_the_log(server, options):
    """What half of the world has copied for Flask."""
    app = """
        import logging
        theirs = logging.getLogger("gunicorn.error")
        mine = logging.getLogger("shop")
        mine.handlers = theirs.handlers
        mine.setLevel(theirs.level)
        mine.propagate = False

        def app(environ, start_response):
            mine.info("said by %s", "the shop")
            mine.debug("not said")
            theirs.warning("said to the server")
            start_response("200 OK", [])
            return [b"hello"]
    """
    running = server(app, "--access-logfile", "access.log", *options)
    assert running.get().status == 200
    worker = running.workers()[0]
    running.wait_log(r"^\[\d{4}-.*\] \[%d\] \[INFO\] said by the shop$" % worker)
    running.wait_log(r"^\[\d{4}-.*\] \[%d\] \[WARNING\] said to the server$" % worker)
    assert "not said" not in running.log()
    wait_until(lambda: "GET / " in running.read("access.log"))


FILTER = """
    import logging

    class Health(logging.Filter):
        def filter(self, record):
            return "/health" not in record.getMessage()

    logging.getLogger("gunicorn.access").addFilter(Health())
"""


@VARIANTS
@pytest.mark.parametrize("where", ["configuration", "application"])
def test_a_filter_on_gunicorn_access_sees_the_lines(server, where, options):
    app, config = APP, FILTER
    if where == "application":
        app, config = textwrap.dedent(FILTER) + textwrap.dedent(APP), ""
    running = server(app, "--access-logfile", "access.log", *options, config=textwrap.dedent(config))
    assert running.get("/health").status == 200
    assert running.get("/shelf").status == 200
    wait_until(lambda: "/shelf" in running.read("access.log"))
    assert "/health" not in running.read("access.log")
    assert running.read("access.log").count("\n") == 1
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete")
    running.get("/health")
    wait_until(lambda: running.get("/after").status == 200 and "/after" in running.read("access.log"))
    assert "/health" not in running.read("access.log")
    # No line of the server's was doubled or lost by it.
    assert len(re.findall(r"Listening at", running.log())) == 1
    assert running.stop() == 0
    assert len(re.findall(r"Shutting down: Master", running.log())) == 1


def test_wsgi_errors_goes_where_the_log_goes(server, tmp_path):
    app = """
        def app(environ, start_response):
            environ["wsgi.errors"].write("complained\\n")
            environ["wsgi.errors"].writelines(["again\\n"])
            environ["wsgi.errors"].flush()
            start_response("200 OK", [])
            return [b"hello"]
    """
    running = start(server, tmp_path, config="logconfig_dict = %r" % DICT, app=app)
    assert running.get().status == 200
    # A line of the arbiter's may come between the two.
    running.wait_log(r"^complained\n(.*\n)*again$")


# --- an interpreter that cannot be had ---

@pytest.mark.parametrize("options", [[], ["--threads", "2"]], ids=["plain", "threads"])
def test_what_an_interpreter_that_is_stuck_keeps_from_the_logger_goes_to_the_file(server, options):
    app = """
        import ctypes

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/stuck":
                ctypes.PyDLL(None).sleep(60)
            start_response("200 OK", [])
            return [b"hello"]
    """
    config = "from rgunicorn.glogging import Logger\nclass Mine(Logger): pass\nlogger_class = Mine"
    running = server(app, "-t", "1", *options, config=config)
    running.expect_errors(r".")
    worker = running.wait_workers(1)[0]
    assert running.get("/stuck").status == 504
    running.wait_log(r"\[%d\] \[CRITICAL\] WORKER TIMEOUT \(pid:%d\)" % (worker, worker))
    running.wait_log(r"\[%d\] \[CRITICAL\] GET /stuck from ip=127\.0\.0\.1 has been running for" % worker)
    running.wait_log(r"in app$")
    # Its replacement logs by the logger.
    wait_until(lambda: running.get().status == 200)


@pytest.mark.parametrize("options", [[], ["--threads", "3"]], ids=["plain", "threads"])
def test_a_handler_that_hangs_stops_nobody(server, options):
    config = """
        import logging, time
        from rgunicorn.glogging import Logger

        class Hangs(logging.Handler):
            def emit(self, record):
                if "Invalid request" in record.getMessage():
                    time.sleep(3600)

        class Mine(Logger):
            def setup(self, cfg):
                super().setup(cfg)
                self.error_log.addHandler(Hangs())

        logger_class = Mine
    """
    running = server(APP, *options, "-w", "1", config=textwrap.dedent(config))
    running.expect_errors(r".")

    def refuse():
        with running.connect() as connection:
            connection.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto : x\r\n\r\n")
            return connection.read_response().status
    assert [refuse() for _ in range(5)] == [400] * 5
    assert [running.get().status for _ in range(20)] == [200] * 20
    # The first is stuck in the handler; the others come by the file.
    running.wait_log(r"\[WARNING\] Invalid request", count=4)
    running.kill()


def test_a_burst_of_lines_keeps_its_order(server):
    config = """
        from rgunicorn.glogging import Logger
        class Mine(Logger): pass
        logger_class = Mine
        accesslog = "-"
        access_log_format = "%(U)s"
    """
    running = server(APP, "--threads", "2", config=textwrap.dedent(config))
    with running.connect() as connection:
        for number in range(300):
            assert connection.exchange("GET", "/%d" % number).status == 200
    wait_until(lambda: running.stdout().splitlines() == ["/%d" % number for number in range(300)])


# --- standard output ---

@VARIANTS
def test_capture_output(server, options):
    running = server(APP, "--capture-output", "--error-logfile", "error.log", *options)
    running.get("/print")
    running.wait_log(r"^printed by the application$")
    running.wait_log(r"^complained by the application$")
    assert "application" not in running.stdout() + read_text(running.stderr_path)
    os.rename(running.path("error.log"), running.path("error.log.1"))
    running.signal(SIGUSR1)
    wait_until(lambda: running.get("/print").status == 200 and "printed by" in running.read("error.log"))


def test_capture_output_needs_a_file(server):
    running = server(APP, "--capture-output")
    running.get("/print")
    wait_until(lambda: "printed by the application" in running.stdout())
    wait_until(lambda: "complained by the application" in read_text(running.stderr_path))


def test_a_reload_ends_the_capture(server):
    running = server(APP, "--error-logfile", "error.log", config="capture_output = True")
    running.get("/print")
    running.wait_log(r"^printed by the application$")
    running.write("gunicorn.conf.py", "")
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete")
    wait_until(lambda: running.get("/print").status == 200 and "printed by" in running.stdout())


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "dropped"])
def test_standard_output_of_a_daemon(server, kept):
    flag = ["-R"] if kept else []
    running = server(APP, "-D", "--error-logfile", "error.log", "-p", "pid", *flag, wait=False)
    assert running.wait_exit() == 0
    running.wait_log(r"Worker ready")
    running.pid = int(wait_until(lambda: running.read("pid").strip()))
    running.get("/print")
    if kept:
        wait_until(lambda: "printed by the application" in running.stdout())
        wait_until(lambda: "complained by the application" in read_text(running.stderr_path))
    else:
        assert running.stdout() == ""
    os.kill(running.pid, harness.SIGTERM)
    running.wait_log(r"Shutting down: Master")
    assert kept or running.stdout() + read_text(running.stderr_path) == ""


# --- JSON ---

def test_a_json_access_log_cannot_be_forged(server):
    template = json.dumps({"host": "%(h)s", "request": "%(r)s", "agent": "%(a)s", "status": "STATUS", "head": "%({x-head}i)s"})
    template = template.replace('"STATUS"', "%(s)s")
    running = server(APP, "--access-logfile", "access.log", "--access-logformat", template)
    evil = [b'", "status": 1, "x": "', b"back\\slash\\", b"\xff\xfe raw", "é\u2028".encode(), b"tab\there", b"plain"]
    for value in evil:
        with running.connect() as connection:
            connection.send(b"GET /%22 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: " + value
                            + b"\r\nX-Head: " + value + b"\r\n\r\n")
            assert connection.read_response().status == 200
    wait_until(lambda: running.read("access.log").count("\n") == len(evil))
    with open(running.path("access.log"), "rb") as file:
        lines = [json.loads(line.decode("utf-8", "strict")) for line in file]
    shown = ['", "status": 1, "x": "', "back\\slash\\", "\\xFF\\xFE raw", "é\u2028", "tab\there", "plain"]
    assert [line["agent"] for line in lines] == [line["head"] for line in lines] == shown
    assert all(line == dict(line, host="127.0.0.1", request="GET /%22 HTTP/1.1", status=200) for line in lines)
    assert all(set(line) == {"host", "request", "agent", "status", "head"} for line in lines)
