"""What people import: servers of one's own making by `rgunicorn.app.base`, settings as objects, the modules beside them."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from harness import clean_environment

# gunicorn's documentation has it in this form, with another import.
RECIPE = """
    import multiprocessing
    import os
    import sys

    import rgunicorn.app.base


    def number_of_workers():
        return 2


    def handler_app(environ, start_response):
        response_body = b"Works fine"
        status = "200 OK"
        response_headers = [("Content-Type", "text/plain")]
        start_response(status, response_headers)
        return [response_body]


    class StandaloneApplication(rgunicorn.app.base.BaseApplication):

        def __init__(self, app, options=None):
            self.options = options or {}
            self.application = app
            super().__init__()

        def load_config(self):
            config = {key: value for key, value in self.options.items()
                      if key in self.cfg.settings and value is not None}
            for key, value in config.items():
                self.cfg.set(key.lower(), value)

        def load(self):
            return self.application
"""


@pytest.fixture
def program(server, tmp_path):
    """`program(source, *arguments)` → a running server that a Python script of one's own started."""

    def start(source, *arguments, **settings):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(source))
        return server(None, *arguments, leading=[sys.executable, str(path)], bind=None, **settings)

    return start


def script(tmp_path, source, *arguments, **environment):
    """A script run to its end."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(source))
    return subprocess.run([sys.executable, str(path), *arguments], cwd=tmp_path, env=clean_environment(environment),
                          capture_output=True, text=True, timeout=60)


def test_the_published_recipe(program):
    running = program(RECIPE + """
    if __name__ == "__main__":
        options = {"bind": "%s:%s" % ("127.0.0.1", "0"), "workers": number_of_workers()}
        StandaloneApplication(handler_app, options).run()
    """)
    for _ in range(5):
        response = running.get("/")
        assert (response.status, response.body) == (200, b"Works fine")
    assert len(running.wait_workers(2)) == 2
    assert running.stop(signal.SIGTERM) == 0


def test_threads_hooks_and_the_environment(program):
    running = program(RECIPE + """
    log = []

    def where(environ, start_response):
        import threading
        barrier.wait(20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d %s" % (os.getppid(), ",".join(log).encode())]

    def post_fork(server, worker):
        global barrier
        import threading
        barrier = threading.Barrier(2)
        log.append("post_fork %s %s" % (worker.age, worker.app is app))

    def post_worker_init(worker):
        log.append("init %s" % (worker.wsgi is where and worker.app.callable is where))

    options = {"bind": "127.0.0.1:0", "threads": 2, "post_fork": post_fork, "post_worker_init": post_worker_init,
               "raw_env": ["COLOUR=blue"], "on_starting": lambda server: print(server.app is app, server.cfg.threads,
               app.cfg.forwarded_allow_ips, os.environ["COLOUR"], flush=True)}
    app = StandaloneApplication(where, options)
    app.run()
    """, env={"FORWARDED_ALLOW_IPS": "10.0.0.1"})
    first, second = running.connect(), running.connect()
    first.send_request()
    second.send_request()
    parent, _, log = first.read_response().body.decode().partition(" ")
    assert second.read_response().status == 200
    assert int(parent) == running.pid
    assert log.split(",") == ["post_fork 1 True", "init True"]
    assert running.stdout() == "True 2 ['10.0.0.1'] blue\n"


def test_the_application_is_loaded_in_the_worker_only(program):
    running = program("""
    import os
    from rgunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            self.cfg.set("bind", ["127.0.0.1:0"])

        def load(self):
            loaded = os.getpid()
            def app(environ, start_response):
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"%d %d" % (loaded, os.getpid())]
            return app

    Server().run()
    """)
    loaded, serving = map(int, running.get("/").body.split())
    assert loaded == serving != running.pid


def test_preload_loads_once_in_the_mold(program):
    running = program("""
    import os
    from rgunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            for name, value in {"bind": "127.0.0.1:0", "preload_app": True, "workers": 2}.items():
                self.cfg.set(name, value)

        def load(self):
            with open("loads", "a") as log:
                print(os.getpid(), file=log)
            loaded = os.getpid()
            def app(environ, start_response):
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [b"%d" % loaded]
            return app

    Server().run()
    """)
    running.wait_workers(2)
    (loaded,) = {int(running.get("/").body) for _ in range(4)}
    assert running.read("loads").split() == [str(loaded)]
    assert loaded != running.pid and loaded not in running.workers()


def test_a_reload_reads_the_configuration_again(program):
    running = program("""
    import json
    from rgunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            with open("settings.json") as file:
                settings = json.load(file)
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self):
            text = self.cfg.env["TEXT"].encode()
            def app(environ, start_response):
                start_response("200 OK", [("Content-Type", "text/plain")])
                return [text]
            return app

    with open("settings.json", "x") as file:
        json.dump({"bind": "127.0.0.1:0", "workers": 1, "raw_env": ["TEXT=old"]}, file)
    Server().run()
    """)
    running.wait_log("Worker ready")
    assert running.get("/").body == b"old"
    settings = {"bind": "127.0.0.1:0", "workers": 2, "raw_env": ["TEXT=new"]}

    running.expect_errors("Reload failed")
    running.write("settings.json", json.dumps({**settings, "workers": "many"}))
    running.signal(signal.SIGHUP)
    running.wait_log(r"Reload failed, the old configuration stays: workers: 'many' is not a whole number ≥ 1$")
    running.write("settings.json", "{")
    running.signal(signal.SIGHUP)
    running.wait_log(r"JSONDecodeError", count=2)
    assert running.get("/").body == b"old"

    running.write("settings.json", json.dumps(settings))
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete: 2 new worker")
    running.wait_workers(2)
    assert running.get("/").body == b"new"
    assert running.stop() == 0


def test_what_follows_run_happens_in_every_process_with_its_exit_code(program):
    """As in gunicorn, whose workers leave through the frames of whoever started it."""
    running = program(RECIPE + """
    import atexit
    print("before run")
    try:
        StandaloneApplication(handler_app, {"bind": "127.0.0.1:0", "workers": 2}).run()
    except SystemExit as end:
        print("ended with", end.code, os.getpid())
        sys.exit(7)
    """)
    running.expect_errors(r"exited with code 7\. It was told to end")
    workers = running.wait_workers(2)
    running.wait_log("Worker ready", count=2)
    assert running.stop(signal.SIGTERM) == 7
    first, *ends = running.stdout().splitlines()
    assert first == "before run" and sorted(ends) == sorted("ended with 0 %d" % pid for pid in [running.pid, *workers])


@pytest.mark.parametrize(["options", "sentence"], [
    ({"workers": "many"}, "rgunicorn: workers: 'many' is not a whole number ≥ 1\n"),
    ({"bind": "::1"}, "rgunicorn: bind: "),
    ({"timeout": []}, "rgunicorn: timeout: a list is not a number of seconds ≥ 0\n"),
    ({"post_fork": 3}, "rgunicorn: post_fork: 3 is neither a function nor MODULE.NAME\n"),
    ({"certfile": "/nonexistent/cert.pem"}, "certfile"),
])
def test_values_that_are_wrong(tmp_path, options, sentence):
    done = script(tmp_path, RECIPE + "\n    StandaloneApplication(handler_app, %r).run()\n    print('not reached')" % options)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout == ""


def test_a_setting_that_is_none(tmp_path):
    done = script(tmp_path, """
    from rgunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            self.cfg.set("thread", 3)

    Server()
    """)
    assert done.returncode == 1
    assert done.stderr == "rgunicorn: No configuration setting for: thread (did you mean 'threads'?)\n"


def test_a_mistake_in_load_config_is_shown_with_its_place(tmp_path):
    done = script(tmp_path, """
    from rgunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            {}["nothing"]

    Server()
    """)
    assert done.returncode == 1
    assert '{}["nothing"]' in done.stderr and done.stderr.endswith("KeyError: 'nothing'\n")


@pytest.mark.parametrize(["body", "code", "words"], [
    ("raise RuntimeError('on purpose')", 3, "RuntimeError: on purpose"),
    ("return rgunicorn.util.import_app('os:nothing')", 4, "Failed to find attribute 'nothing' in 'os'."),
    ("import no_such_module_here", 3, "no_such_module_here"),
    ("return None", 4, "load() of Server gave None"),
])
def test_an_application_that_cannot_be_loaded(tmp_path, body, code, words):
    done = script(tmp_path, """
    import rgunicorn.util
    from rgunicorn.app.base import BaseApplication

    class Server(BaseApplication):
        def load_config(self):
            self.cfg.set("bind", "127.0.0.1:0")

        def load(self):
            %s

    Server().run()
    """ % body)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_an_address_in_use_is_exit_code_1(tmp_path):
    done = script(tmp_path, RECIPE + "\n    StandaloneApplication(handler_app, {'bind': 'unix:/nonexistent/s'}).run()")
    assert done.returncode == 1
    assert "rgunicorn: bind unix:/nonexistent/s" in done.stderr


def test_worker_classes(tmp_path, program):
    own = """
    import rgunicorn.workers.sync

    class Mine(rgunicorn.workers.sync.SyncWorker):
        def handle_request(self, listener, req, client, addr):
            pass

    StandaloneApplication(handler_app, {"worker_class": Mine, "bind": "127.0.0.1:0"}).run()
    """
    done = script(tmp_path, RECIPE + own)
    assert done.returncode == 1
    assert "worker_class: '__main__.Mine' cannot be honoured: a worker is sync or gthread" in done.stderr
    running = program(RECIPE + """
    from rgunicorn.workers.gthread import ThreadWorker
    app = StandaloneApplication(handler_app, {"worker_class": ThreadWorker, "threads": 2, "bind": "127.0.0.1:0"})
    assert app.cfg.worker_class is ThreadWorker and app.cfg.worker_class_str == "rgunicorn.workers.gthread.ThreadWorker"
    app.run()
    """)
    assert running.get("/").status == 200


# --- with a command line


COMMAND = """
    import sys
    from rgunicorn.app.base import Application

    def handler(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"command"]

    class Server(Application):
        def init(self, parser, opts, args):
            if args and args[0] == "wrong":
                parser.error("no such thing")
            return {"bind": "127.0.0.1:0", "threads": 5, "WORKERS": 6, "timeout": 7}

        def load(self):
            return handler
"""


def test_the_command_line_wins_over_init(program, tmp_path):
    show = """
    def when_ready(server):
        print(server.cfg.threads, server.cfg.workers, server.cfg.timeout, server.cfg.keepalive, flush=True)
    threads = 4
    workers = 2
    """
    running = program(COMMAND + """
    app = Server()
    print(app.cfg.threads, app.cfg.workers, app.cfg.timeout, app.cfg.keepalive, app.cfg.when_ready.__name__)
    app.run()
    """, "-w", "1", "-c", "gunicorn.conf.py", config=show, env={"GUNICORN_CMD_ARGS": "-w 3 --keep-alive 11"})
    assert running.get("/").body == b"command"
    assert len(running.wait_workers(1)) == 1
    assert running.stdout() == "4 1 7 11 when_ready\n4 1 7 11\n"
    running.write("gunicorn.conf.py", "threads = 3\n")
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete")
    assert running.get("/").body == b"command"


def test_a_command_line_that_is_wrong(tmp_path):
    start = COMMAND + "\n    Server().run()"
    cases = [
        (["-w", "x"], 2, "rgunicorn: --workers: 'x' is not a whole number ≥ 1\n"),
        (["--wrokers", "3"], 2, "rgunicorn: unknown option --wrokers (did you mean --workers?)\n"),
        (["-c", "missing.py"], 1, "rgunicorn: --config: the file 'missing.py' does not exist\n"),
        (["wrong"], 2, "error: no such thing\n"),
    ]
    for words, code, sentence in cases:
        done = script(tmp_path, start, *words)
        assert done.returncode == code, done.stderr
        assert done.stderr.endswith(sentence), done.stderr
    assert "--workers" in script(tmp_path, start, "--help").stdout
    assert script(tmp_path, start, "--version").stdout.startswith("rgunicorn (version ")


def test_check_config_loads_the_application(tmp_path):
    done = script(tmp_path, COMMAND + "\n    Server().run()", "--check-config")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_as_a_function_and_as_a_class(program):
    running = program("from rgunicorn.app.wsgiapp import run\nrun()", "apps.hello:app", "-b", "127.0.0.1:0")
    assert running.get("/").body == b"Hello, world!\n"
    built = program("""
    from rgunicorn.app.wsgiapp import WSGIApplication

    class Server(WSGIApplication):
        def __init__(self, app_uri, options=None):
            self.options = options or {}
            self.app_uri = app_uri
            super().__init__()

        def load_config(self):
            for name, value in self.options.items():
                self.cfg.set(name, value)

    Server("apps.hello:app", {"bind": "127.0.0.1:0", "workers": 2}).run()
    """)
    assert built.get("/").body == b"Hello, world!\n"
    plain = program("from rgunicorn.app.wsgiapp import WSGIApplication\nWSGIApplication('%(prog)s [APP]').run()",
                    "-b", "127.0.0.1:0", "apps.hello:app")
    assert plain.get("/").body == b"Hello, world!\n"


def test_the_module_wsgiapp_is_a_command(server):
    running = server("apps.hello:app", leading=[sys.executable, "-m", "rgunicorn.app.wsgiapp"])
    assert running.get("/").status == 200


def test_the_arbiter_runs_an_application_object(program):
    running = program(RECIPE + """
    from rgunicorn.arbiter import Arbiter
    Arbiter(StandaloneApplication(handler_app, {"bind": "127.0.0.1:0"})).run()
    """)
    assert running.get("/").body == b"Works fine"


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_the_name_of_the_server_can_be_changed(server, preload):
    source = """
        import rgunicorn
        rgunicorn.SERVER = %r
        rgunicorn.SERVER_SOFTWARE = "something"

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [environ["SERVER_SOFTWARE"].encode()]
    """
    hidden = server(source % "undisclosed", *preload)
    response = hidden.get("/")
    assert (response.header("server"), response.body) == ("undisclosed", b"something")
    assert hidden.request("BREW").header("server") == "undisclosed"
    with hidden.connect() as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.read_response().header("server") == "undisclosed"
    assert server(source % "", *preload).get("/").header("server") is None


def test_a_name_of_the_server_that_cannot_be_sent(server):
    running = server("""
        import rgunicorn
        rgunicorn.SERVER = "a\\r\\nb"

        def app(environ, start_response):
            pass
    """, wait=False)
    running.expect_errors()
    assert running.wait_exit() == 3
    assert 'rgunicorn.SERVER: "a\\r\\nb" cannot be sent as a header field' in running.log()


# --- the modules


def test_every_setting_takes_the_value_that_it_has():
    from rgunicorn.config import KNOWN_SETTINGS, Config, make_settings

    settings = make_settings()
    assert {"bind", "workers", "post_fork", "certfile", "raw_env", "statsd_host"} <= set(settings)
    assert len(KNOWN_SETTINGS) >= 120
    cfg = Config()
    for name, setting in settings.items():
        cfg.set(name, setting.get())
        assert getattr(cfg, name) == getattr(Config(), name), name
    assert cfg._given() == {name: setting.get() for name, setting in settings.items()}


def test_settings_describe_themselves():
    from rgunicorn.config import Config, make_settings

    workers = make_settings()["workers"]
    assert workers.cli == ["-w", "--workers"] and workers.default == 1 and workers.action == "store"
    assert workers.meta == "N" and workers.desc and workers.section and workers.short
    assert make_settings()["preload_app"].action == "store_true"
    assert make_settings(ignore=["workers"]).get("workers") is None
    parser = Config(prog="x").parser()
    opts = parser.parse_args(["-w", "3", "--preload", "-b", ":1", "-b", ":2", "a:b"])
    assert (opts.workers, opts.preload_app, opts.bind, opts.args) == ("3", True, [":1", ":2"], ["a:b"])
    assert "--workers" in parser.format_help()


def test_config_as_an_object():
    from rgunicorn.config import Config

    cfg = Config()
    cfg.set("bind", "[::1]:80")
    cfg.set("workers", "3")
    cfg.set("raw_env", ["A=1=2"])
    assert cfg.bind == ["[::1]:80"] and cfg.address == [("::1", 80)]
    assert cfg.workers == cfg.settings["workers"].get() == 3
    assert cfg.env == {"A": "1=2"} and not cfg.is_ssl and cfg.proc_name == "rgunicorn"
    assert (cfg.uid, cfg.gid) == (os.geteuid(), os.getegid())
    cfg.set("user", "root")
    assert cfg.uid == 0
    with pytest.raises(AttributeError, match="No configuration setting for: worker"):
        cfg.set("worker", 3)
    with pytest.raises(AttributeError, match="set"):
        cfg.workers = 4
    with pytest.raises(AttributeError):
        cfg.nothing
    assert "workers" in str(cfg)


def test_a_setting_of_ones_own():
    done = subprocess.run([sys.executable, "-c", """if 1:
        from rgunicorn import config

        class Colour(config.Setting):
            name = "colour"
            default = "blue"
            validator = config.validate_string

        cfg = config.Config()
        print(cfg.colour)
        cfg.set("colour", " red ")
        print(cfg.colour, cfg._given())
        cfg.set("colour", 3)
        """], capture_output=True, text=True, timeout=60)
    assert done.stdout == "blue\nred {}\n"
    assert "3 is not a text" in done.stderr


def test_rules_for_settings_of_ones_own():
    from rgunicorn import config

    assert config.validate_bool(" True ") is True and config.validate_bool(None) is None
    assert config.validate_pos_int("0x10") == 16
    assert config.validate_list_string("a") == ["a"] and config.validate_list_string(["a ", "b"]) == ["a", "b"]
    assert config.validate_dict({1: 2}) == {1: 2}
    assert config.validate_callable(-1)("json.dumps") is json.dumps
    for rule, wrong in [(config.validate_bool, 3), (config.validate_pos_int, -1), (config.validate_string, 3),
                        (config.validate_dict, []), (config.validate_callable(2), len)]:
        with pytest.raises((TypeError, ValueError)):
            rule(wrong)


def test_util():
    from rgunicorn import util
    from rgunicorn.errors import AppImportError
    from rgunicorn.workers.gthread import ThreadWorker

    assert util.parse_address("unix:/tmp/s") == "/tmp/s"
    assert util.parse_address("localhost") == ("localhost", 8000)
    assert util.parse_address("localhost", 80) == ("localhost", 80)
    assert util.parse_address("localhost:81", 80) == ("localhost", 81)
    assert util.parse_address("[::1]", "82") == ("::1", 82)
    assert util.parse_address("fd://3") == 3
    assert util.http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    assert util.to_bytestring("é") == "é".encode() and util.bytes_to_str(b"\xe9") == "é"
    assert util.unquote_to_wsgi_str("a%20%C3%A9") == "a Ã©"
    assert util.split_request_uri("//a/b?c").path == "//a/b"
    assert util.is_ipv6("::1") and not util.is_ipv6("127.0.0.1")
    assert util.import_app("json:dumps") is json.dumps
    with pytest.raises(AppImportError, match="'nothing' in 'json'"):
        util.import_app("json:nothing")
    with pytest.raises(ImportError):
        util.import_app("no_such_module_here")
    assert util.load_class("gthread") is util.load_class("egg:gunicorn#gthread") is ThreadWorker
    assert util.load_class("json.JSONDecoder") is json.JSONDecoder
    assert util.is_hoppish("Connection ") and not util.is_hoppish("Accept")
    assert util.get_arity(lambda a, b: None) == 2


def test_getcwd_is_the_name_that_the_shell_has(tmp_path):
    (tmp_path / "release").mkdir()
    link = tmp_path / "current"
    link.symlink_to("release")
    code = "from rgunicorn import util; print(util.getcwd())"
    for shown, expected in [(link, link), (tmp_path, link.resolve())]:
        done = subprocess.run([sys.executable, "-c", code], cwd=link, env={**os.environ, "PWD": str(shown)},
                              capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)


def test_names_to_import():
    import rgunicorn
    import rgunicorn.http.errors as errors
    from rgunicorn.arbiter import Arbiter
    from rgunicorn.hooks import Worker
    from rgunicorn.workers.base import Worker as Base
    from rgunicorn.workers.sync import SyncWorker

    assert Base is Worker and issubclass(SyncWorker, Worker)
    assert (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR) == (3, 4)
    assert issubclass(errors.InvalidRequestLine, errors.ParseException) and issubclass(errors.NoMoreData, OSError)
    assert rgunicorn.version_info == tuple(map(int, rgunicorn.__version__.split(".")))
