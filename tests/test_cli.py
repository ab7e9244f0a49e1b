"""The command line: APP, addresses, every option's effect, the sources of settings in order, errors and exit codes."""
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys

import pytest

import harness
import wire
from harness import run, wait_until

HELLO = "apps.hello"
ECHO = "apps.echo"

# Says how it was configured, as far as an application can see it.
MIRROR = """
    import json, os, sys

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({
            "cwd": os.getcwd(), "pid": os.getpid(), "path": sys.path,
            "multithread": environ["wsgi.multithread"], "multiprocess": environ["wsgi.multiprocess"],
            "port": environ["SERVER_PORT"], "scheme": environ["wsgi.url_scheme"],
        }).encode()]
"""


def asked(running, target="/"):
    return json.loads(running.get(target).text)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_on_free_port(server, app, *options, **settings):
    """For the forms that need a port number: another process may take it in between, so try again."""
    template = [str(o) for o in options]
    for _ in range(5):
        port = str(free_port())
        env = {k: v.replace("PORT_HERE", port) for k, v in settings.pop("env", {}).items()}
        running = server(app, *[o.replace("PORT_HERE", port) for o in template], wait=False, env=env, **settings)
        wait_until(lambda: not running.running() or harness.LISTENING.search(running.log()), 30)
        if running.running():
            return running, int(port)
        running.expect_errors(r"[Aa]ddress already in use|[Cc]onnection in use|Can't connect|Retrying")
    raise AssertionError("no free port")


# --- APP ---

APPS = """
    def application(environ, start_response):
        return answer(start_response, "application")

    def other(environ, start_response):
        return answer(start_response, "other")

    def answer(start_response, text):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]

    def factory(name="default", *rest, **more):
        text = repr((name, rest, sorted(more.items())))
        return lambda environ, start_response: answer(start_response, text)

    def raising():
        raise ValueError("factory on purpose")

    def nothing():
        return None

    class Thing:
        attribute = staticmethod(application)
        make = staticmethod(factory)

    none = None
    number = 42
"""


@pytest.mark.parametrize("spec, body", [
    ("forms", "application"),
    ("forms:application", "application"),
    ("forms:other", "other"),
    ("forms:factory()", "('default', (), [])"),
    ("forms:factory('a b')", "('a b', (), [])"),
    ("forms:factory('arg', kw=1)", "('arg', (), [('kw', 1)])"),
    ("forms:factory(name='x', flag=True, nothing=None)", "('x', (), [('flag', True), ('nothing', None)])"),
    ("forms:factory(-1, [1, 'two'], k={'a': (1.5, b'x')})", "(-1, ([1, 'two'],), [('k', {'a': (1.5, b'x')})])"),
    ("forms:Thing.attribute", "application"),
    ("forms:Thing.make('a')", "('a', (), [])"),
    ("package.forms:other", "other"),
])
def test_app_forms(server, tmp_path, spec, body):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    for path in (tmp_path / "forms.py", tmp_path / "package" / "forms.py"):
        path.write_text(harness.textwrap.dedent(APPS))
    assert server(spec, cwd=tmp_path).get("/").text == body


@pytest.mark.parametrize("spec, code, words", [
    ("no_such_module_x", 3, ["no_such_module_x"]),
    ("no_such_module_x:application", 3, ["no_such_module_x"]),
    ("forms.missing:app", 3, ["forms"]),
    ("forms:missing", 4, ["missing", "forms"]),
    ("forms:missing()", 4, ["missing", "forms"]),
    ("forms:none", 4, ["none"]),
    ("forms:number", 4, ["callable"]),
    ("forms:nothing()", 4, ["nothing"]),
    ("forms:Thing.missing", 4, ["Thing.missing"]),
    ("forms:missing.attribute", 4, ["missing.attribute"]),
    ("forms:Thing().attribute", 4, ["Thing().attribute"]),
    ("forms:factory(number)", 4, ["number"]),
    ("forms:factory(other())", 4, ["other"]),
    ("forms:factory('a'", 4, ["factory"]),
    ("forms:raising('unwanted')", 4, ["raising"]),
])
def test_app_refused(tmp_path, spec, code, words):
    (tmp_path / "forms.py").write_text(harness.textwrap.dedent(APPS))
    done = run("-b", "127.0.0.1:0", spec, cwd=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "panicked" not in done.stderr


@pytest.mark.parametrize("spec", ["no_such_module_x", "forms:missing", "forms:number", "forms:Thing.missing"])
def test_app_refused_in_a_sentence(tmp_path, spec):
    """No traceback: the mistake is in the command, not in the application."""
    (tmp_path / "forms.py").write_text(harness.textwrap.dedent(APPS))
    done = run("-b", "127.0.0.1:0", spec, cwd=str(tmp_path))
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("source, words", [
    ("def application(:\n", ["SyntaxError", "broken.py"]),
    ("import no_such_dependency\n", ["no_such_dependency", "broken.py"]),
    ("raise RuntimeError('import on purpose')\n", ["RuntimeError", "import on purpose", "broken.py"]),
    ("import sys\nsys.exit(7)\n", []),
])
def test_app_that_cannot_be_imported_shows_where(tmp_path, source, words):
    (tmp_path / "broken.py").write_text(source)
    done = run("-b", "127.0.0.1:0", "broken", cwd=str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_file_name_in_place_of_a_module_gets_a_hint(tmp_path):
    (tmp_path / "forms.py").write_text(harness.textwrap.dedent(APPS))
    done = run("-b", "127.0.0.1:0", "forms.py", cwd=str(tmp_path))
    assert done.returncode in (3, 4)
    assert "forms:application" in done.stderr


# --- addresses ---

def test_bind_port_zero_is_announced(server):
    running = server(HELLO, "-b", "127.0.0.1:0")
    assert running.port > 0
    assert running.get("/").status == 200
    assert "(%d)" % running.pid in re.search(r"Listening at.*", running.log()).group()


@pytest.mark.parametrize("bind", ["localhost:0", ":0", "0.0.0.0:0", "tcp://127.0.0.1:0"])
def test_bind_forms(server, bind):
    assert server(HELLO, bind=bind).get("/").status == 200


def test_bind_several(server):
    running = server(HELLO, "-b", "127.0.0.1:0", "--bind", "127.0.0.1:0", "--bind=unix:three.sock")
    assert len(running.listening) == 3
    assert running.addresses[0] != running.addresses[1]
    for address in running.addresses[:2] + [running.path("three.sock")]:
        with wire.Connection(address) as connection:
            assert connection.exchange().status == 200


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_bind_ipv6(server):
    running = server(ECHO, bind="[::1]:0")
    assert running.address[0] == "::1"
    environ = asked(running)["environ"]
    assert environ["REMOTE_ADDR"] == "::1"
    assert environ["SERVER_PORT"] == str(running.port)


def test_bind_a_given_port(server):
    running, port = start_on_free_port(server, HELLO, "-b", "127.0.0.1:PORT_HERE")
    assert running.port == port
    assert running.get("/").status == 200


def test_bind_unix_socket(server, tmp_path):
    running = server(HELLO, bind="unix:%s/web.sock" % tmp_path)
    assert running.listening == ["unix:%s/web.sock" % tmp_path]
    assert running.get("/").status == 200
    mode = os.stat(str(tmp_path / "web.sock")).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o777
    assert running.stop() == 0
    assert not (tmp_path / "web.sock").exists()


def test_bind_replaces_a_stale_unix_socket(server, tmp_path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "web.sock"))
    assert server(HELLO, bind="unix:%s/web.sock" % tmp_path).get("/").status == 200


def test_bind_does_not_replace_a_file(tmp_path):
    (tmp_path / "precious").write_text("data")
    done = run("-b", "unix:%s/precious" % tmp_path, HELLO)
    assert done.returncode == 1
    assert "precious" in done.stderr
    assert (tmp_path / "precious").read_text() == "data"


@pytest.mark.parametrize("listening", [True, False])
def test_bind_inherited_descriptor(server, listening):
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        if listening:
            ours.listen(16)
        running = server(HELLO, bind="fd://%d" % ours.fileno(), pass_fds=[ours.fileno()])
        assert running.address == ours.getsockname()
    assert running.get("/").status == 200


def test_bind_inherited_unix_descriptor(server, tmp_path):
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(tmp_path / "ours.sock"))
        ours.listen(16)
        running = server(HELLO, bind="fd://%d" % ours.fileno(), pass_fds=[ours.fileno()])
        with wire.Connection(str(tmp_path / "ours.sock")) as connection:
            assert connection.exchange().status == 200
    assert running.running()


def test_busy_port(server):
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen(1)
        port = ours.getsockname()[1]
        done = run("-b", "127.0.0.1:%d" % port, HELLO)
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "in use" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_port_that_becomes_free_is_taken(server):
    """A restart must not lose against the last moments of its predecessor."""
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen(1)
        port = ours.getsockname()[1]
        running = server(HELLO, bind="127.0.0.1:%d" % port, wait=False)
        running.expect_errors(r"[Ii]n use|Retrying|Can't connect")
        running.wait_log(r"[Ii]n use")
    running.wait_listening()
    assert running.get("/").status == 200


@pytest.mark.parametrize("bind", ["127.0.0.1:notaport", "127.0.0.1:70000", "fd://999", "unix:/no/such/directory/x.sock"])
def test_bind_that_cannot_be(bind):
    done = run("-b", bind, HELLO)
    assert done.returncode in (1, 2)
    assert bind.split(":")[-1].strip("/") in done.stderr
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr


# --- options, one by one ---

@pytest.mark.parametrize("options", [["-w", "3"], ["--workers", "3"], ["--workers=3"], ["-w3"]])
def test_workers(server, options):
    running = server(MIRROR, *options)
    running.wait_workers(3)
    assert asked(running)["multiprocess"] is True


def test_one_worker_by_default(server):
    running = server(MIRROR)
    assert asked(running)["multiprocess"] is False
    assert running.wait_workers(1) == [asked(running)["pid"]]


@pytest.mark.parametrize("options, multithread", [([], False), (["--threads", "1"], False), (["--threads", "4"], True)])
def test_threads(server, options, multithread):
    assert asked(server(MIRROR, *options))["multithread"] is multithread


def test_long_options_may_be_shortened(server):
    """As argparse allows it, where only one option begins so."""
    assert asked(server(MIRROR, "--thread", "2"))["multithread"] is True
    done = run("--max", "2", HELLO)
    assert done.returncode == 2 and "--max" in done.stderr


def test_keep_alive_time(server):
    """A connection at rest ends in silence after its time."""
    with server(HELLO, "--keep-alive", "1").connect() as connection:
        assert not connection.exchange().closing
        connection.expect_eof()


def test_keep_alive_off(server):
    with server(HELLO, "--keep-alive", "0").connect() as connection:
        assert connection.exchange().closing
        connection.expect_eof()


def test_max_requests(server):
    running = server(HELLO, "--max-requests", "3")
    pids = []

    def four_workers():
        pids.append(running.get("/").header("x-pid"))
        return len(set(pids)) == 4
    wait_until(four_workers, 60)
    assert pids[0] == pids[1] == pids[2]


def test_max_requests_jitter(server):
    """Thresholds differ, and none is below --max-requests."""
    running = server(HELLO, "--max-requests", "4", "--max-requests-jitter", "6")
    counts, last = {}, None

    def enough():
        nonlocal last
        last = running.get("/").header("x-pid")
        counts[last] = counts.get(last, 0) + 1
        return len(counts) > 10
    wait_until(enough, 60)
    del counts[last]
    assert min(counts.values()) >= 4
    assert len(set(counts.values())) > 1


def test_worker_connections(server):
    """One more than allowed waits for a place, and gets it."""
    running = server(HELLO, "-w", "1", "--worker-connections", "2", "--threads", "2", "--keep-alive", "60")
    busy = [running.connect() for _ in range(2)]
    for connection in busy:
        connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
    with running.connect() as third:
        third.send_request()
        assert not third.readable(0.5)
        for connection in busy:
            connection.send(b"cde")
            connection.read_response()
            connection.close()
        assert third.read_response().status == 200


def listen_backlog(port):
    """What the kernel keeps as the backlog of the socket that listens on this port (sock_diag(7))."""
    request = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, 1 << 10) + b"\0" * 48
    header = struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
        netlink.settimeout(5)
        netlink.send(header + request)
        while True:
            data = netlink.recv(65536)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == 3:
                    return None
                if kind == 2:
                    pytest.skip("no sock_diag here")
                if struct.unpack_from("!H", data, 16 + 4)[0] == port:
                    return struct.unpack_from("=I", data, 16 + 4 + 48 + 8)[0]
                data = data[(length + 3) & ~3:]


@pytest.mark.parametrize("options, backlog", [(["--backlog", "37"], 37), ([], 2048)])
def test_backlog(server, options, backlog):
    running = server(HELLO, *options)
    with open("/proc/sys/net/core/somaxconn") as f:
        assert listen_backlog(running.port) == min(backlog, int(f.read()))


def test_limit_request_line(server):
    running = server(ECHO, "--limit-request-line", "100")
    fits = "/" + "a" * (100 - len("GET / HTTP/1.1"))
    assert running.get(fits).status == 200
    with running.connect() as connection:
        connection.send_request("GET", fits + "a")
        assert connection.read_response().status == 414
        connection.expect_eof()


def test_limit_request_fields(server):
    running = server(ECHO, "--limit-request-fields", "5")
    five = [("H%d" % n, "v") for n in range(3)]
    assert running.get("/", five).status == 200
    assert running.get("/", five + [("One-More", "v")]).status == 431


def test_limit_request_field_size(server):
    running = server(ECHO, "--limit-request-field_size", "100")
    fits = "v" * (100 - len("Name: \r\n"))
    assert running.get("/", [("Name", fits)]).status == 200
    assert running.get("/", [("Name", fits + "vvv")]).status == 431


def test_limits_of_zero_are_those_of_the_head(server):
    """gunicorn's documentation has 0 for no limit; a token of an identity provider is longer than 8190 bytes at times."""
    running = server(ECHO, "--limit-request-line", "0", "--limit-request-field_size", "0")
    assert running.get("/", [("Token", "v" * 60000)]).status == 200
    assert running.get("/" + "a" * 60000).status == 200
    assert running.get("/", [("Token", "v" * 66000)]).status == 431
    assert running.get("/" + "a" * 66000).status in (414, 431)


def test_limit_request_head(server):
    running = server(ECHO, "--limit-request-head", "200000", "--limit-request-field_size", "0", "--limit-request-line", "0")
    assert running.get("/", [("Token", "v" * 199000)]).status == 200
    assert running.get("/", [("Token", "v" * 200000)]).status == 431
    small = server(ECHO, "--limit-request-head", "300")
    assert small.get("/").status == 200
    assert small.get("/", [("Token-%d" % n, "v" * 50) for n in range(5)]).status == 431


def test_a_request_line_of_eight_thousand_bytes_is_served(server):
    """RFC 9112, 3: "RECOMMENDED that all HTTP senders and recipients support, at a minimum, request-line lengths of 8000"."""
    assert server(ECHO).get("/" + "a" * 7985).status == 200


def test_access_logfile(server):
    running = server(HELLO, "--access-logfile", "access.log")
    running.get("/path?q")
    wait_until(lambda: '"GET /path?q HTTP/1.1" 200' in running.read("access.log"))
    assert running.stdout() == ""


def test_access_logfile_dash_is_stdout(server):
    running = server(HELLO, "--access-logfile", "-")
    running.get("/path?q")
    wait_until(lambda: '"GET /path?q HTTP/1.1" 200' in running.stdout())
    assert "/path?q" not in running.log()


def test_no_access_log_by_default(server):
    running = server(HELLO)
    running.get("/path?q")
    assert running.stop() == 0
    assert "/path?q" not in running.log() + running.stdout()


def test_access_logformat(server):
    running = server(HELLO, "--access-logfile", "-", "--access-logformat", "<%(m)s|%(s)s>")
    running.get("/")
    assert running.stop() == 0
    assert running.stdout() == "<GET|200>\n"


@pytest.mark.parametrize("option", ["--error-logfile", "--log-file"])
def test_error_logfile(server, option):
    running = server(HELLO, option, "error.log")
    running.get("/")
    assert "Listening at" in running.read("error.log")
    assert harness.read_text(running.stderr_path) == ""


@pytest.mark.parametrize("level, seen", [
    ("debug", {"DEBUG", "INFO"}), ("info", {"INFO"}), ("warning", set()), ("error", set()), ("critical", set()),
])
def test_log_level(server, tmp_path, level, seen):
    running = server(HELLO, "--log-level", level, bind="unix:%s/s" % tmp_path, wait=False)
    wait_until(lambda: connects(str(tmp_path / "s")))
    with wire.Connection(str(tmp_path / "s")) as connection:
        connection.send(b"bad\r\n\r\n")
        assert connection.read_response().status == 400
    assert running.stop() == 0
    found = {found for _, found, _ in running.lines()}
    assert ("WARNING" in found) == (level in ("debug", "info", "warning")), running.log()
    assert found - {"WARNING"} == seen, running.log()


@pytest.mark.parametrize("level", ["error", "critical"])
def test_log_level_of_errors(server, tmp_path, level):
    running = server("""
        def app(environ, start_response):
            raise ValueError("on purpose")
    """, "--log-level", level, bind="unix:%s/s" % tmp_path, wait=False)
    running.expect_errors(r"Error handling request")
    wait_until(lambda: connects(str(tmp_path / "s")))
    with wire.Connection(str(tmp_path / "s")) as connection:
        assert connection.exchange("GET", "/").status == 500
    assert running.stop() == 0
    assert ("on purpose" in running.log()) == (level == "error")


def connects(path):
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)
        return True
    except OSError:
        return False


def test_chdir(server, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mirror.py").write_text(harness.textwrap.dedent(MIRROR))
    running = server("mirror:app", "--chdir", tmp_path / "elsewhere")
    assert os.path.samefile(asked(running)["cwd"], str(tmp_path / "elsewhere"))


def test_relative_folders(server, tmp_path):
    """`chdir` is seen from where the server was started, `pythonpath` from `chdir`, whatever the application does to its folder."""
    (tmp_path / "elsewhere" / "library").mkdir(parents=True)
    (tmp_path / "elsewhere" / "mirror.py").write_text("import os\nos.chdir('/')\nimport library_of_ours\n" + harness.textwrap.dedent(MIRROR))
    (tmp_path / "elsewhere" / "library" / "library_of_ours.py").write_text("")
    running = server("mirror:app", "--chdir", "elsewhere", "--pythonpath", "library", cwd=str(tmp_path), env={"PWD": str(tmp_path)})
    path = asked(running)["path"]
    assert str(tmp_path / "elsewhere") in path and str(tmp_path / "elsewhere" / "library") in path


def test_chdir_to_nowhere():
    done = run("--chdir", "/no/such/directory", HELLO)
    assert done.returncode in (1, 2)
    assert "/no/such/directory" in done.stderr
    assert "panicked" not in done.stderr


def test_pythonpath(server, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "mirror.py").write_text(harness.textwrap.dedent(MIRROR))
    running = server("mirror:app", "--pythonpath", "%s,%s" % (tmp_path / "one", tmp_path / "two"))
    path = asked(running)["path"]
    assert str(tmp_path / "one") in path and str(tmp_path / "two") in path


def test_pid_file(server):
    running = server(HELLO, "--pid", "server.pid")
    assert running.read("server.pid") == "%d\n" % running.pid
    assert running.stop() == 0
    assert not running.exists("server.pid")


def test_pid_file_of_a_running_server(server):
    running = server(HELLO, "--pid", "server.pid")
    done = run("-b", "127.0.0.1:0", "--pid", running.path("server.pid"), HELLO)
    assert done.returncode == 1
    assert "server.pid" in done.stderr and str(running.pid) in done.stderr
    assert running.read("server.pid") == "%d\n" % running.pid
    assert running.get("/").status == 200


def test_pid_file_left_behind_is_replaced(server, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    (tmp_path / "server.pid").write_text("%d\n" % gone.pid)
    running = server(HELLO, "--pid", tmp_path / "server.pid")
    assert (tmp_path / "server.pid").read_text() == "%d\n" % running.pid


def test_preload(server):
    running = server("""
        import os
        imported_by = os.getpid()

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d %d" % (imported_by, os.getpid())]
    """, "--preload")
    imported_by, served_by = running.get("/").text.split()
    assert imported_by != served_by


def test_version():
    for flag in ("-v", "--version"):
        done = run(flag)
        assert done.returncode == 0
        assert re.search(r"gunicorn \(?(version )?\d+\.\d+", done.stdout), done.stdout
        assert done.stderr == ""


FLAGS = """-w --workers -b --bind --threads --timeout --graceful-timeout --keep-alive --max-requests --max-requests-jitter
--worker-connections --backlog --limit-request-line --limit-request-fields --limit-request-field_size --access-logfile
--access-logformat --error-logfile --log-level --chdir --pythonpath --preload --pid --check-config --version --help -c
--config""".split()


def test_help_names_every_option():
    done = run("--help")
    assert done.returncode == 0
    missing = [flag for flag in FLAGS if not re.search(r"(^|[\s,\[])%s\b" % re.escape(flag), done.stdout)]
    assert not missing
    assert run("-h").stdout == done.stdout


@pytest.mark.parametrize("options, code", [
    ([HELLO], 0),
    (["--preload", HELLO], 0),
    (["apps.hello:missing"], 1),
    (["no_such_module_x"], 1),
    (["--preload", "no_such_module_x"], 1),
    (["--timeout", "soon", HELLO], 2),
])
def test_check_config(options, code):
    done = run("--check-config", *options)
    assert done.returncode == code, done.stderr
    assert ("Listening" in done.stderr) is False
    if code:
        assert any(word in done.stderr for word in ("missing", "no_such_module_x", "soon"))


def test_check_config_reads_the_file(tmp_path):
    (tmp_path / "good.py").write_text("workers = 2\n")
    (tmp_path / "bad.py").write_text("workers = 'many'\n")
    assert run("--check-config", "-c", tmp_path / "good.py", HELLO).returncode == 0
    done = run("--check-config", "-c", tmp_path / "bad.py", HELLO)
    assert done.returncode == 1
    assert "workers" in done.stderr and "many" in done.stderr


# --- mistakes ---

@pytest.mark.parametrize("options, words", [
    (["--no-such-option", HELLO], ["--no-such-option"]),
    (["-Z", HELLO], ["-Z"]),
    (["--workers", "many", HELLO], ["many", "workers"]),
    (["--timeout", "1x", HELLO], ["1x", "timeout"]),
    (["--backlog", "", HELLO], ["backlog"]),
    ([HELLO, "--workers"], ["workers"]),
])
def test_usage_errors(options, words):
    done = run(*options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr


@pytest.mark.parametrize("options, words", [
    (["--workers=-1", HELLO], ["-1"]),
    (["--threads=-2", HELLO], ["-2"]),
    (["--limit-request-line=-5", HELLO], ["-5"]),
    (["--graceful-timeout=-5", HELLO], ["-5"]),
])
def test_values_out_of_range(options, words):
    done = run("-b", "127.0.0.1:0", *options)
    assert done.returncode in (1, 2), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "panicked" not in done.stderr


def test_no_app():
    done = run("-b", "127.0.0.1:0")
    assert done.returncode in (1, 2)
    assert "application" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_unwritable_log():
    done = run("-b", "127.0.0.1:0", "--error-logfile", "/no/such/directory/log", HELLO)
    assert done.returncode == 1
    assert "/no/such/directory/log" in done.stderr
    assert "panicked" not in done.stderr


def test_missing_config_file():
    done = run("-c", "/no/such/config.py", HELLO)
    assert done.returncode == 1
    assert "/no/such/config.py" in done.stderr
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr


# --- where settings come from ---

def test_web_concurrency(server):
    server(HELLO, env={"WEB_CONCURRENCY": "2"}).wait_workers(2)


def test_config_file_is_found_in_the_working_directory(server, tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("import os\nworkers = 1 + 1\nhelper = os\nNot_A_Setting = 3\n")
    server(HELLO, cwd=tmp_path).wait_workers(2)


def test_config_file_beats_web_concurrency(server):
    server(HELLO, config="workers = 2\n", env={"WEB_CONCURRENCY": "4"}).wait_workers(2)


def test_cmd_args_beat_the_config_file(server):
    server(HELLO, config="workers = 4\n", env={"GUNICORN_CMD_ARGS": "--workers 2"}).wait_workers(2)


def test_command_line_beats_cmd_args(server):
    server(HELLO, "-w", "2", env={"GUNICORN_CMD_ARGS": "-w 4 --threads 2", "WEB_CONCURRENCY": "3"}).wait_workers(2)


def test_cmd_args_are_split_like_a_shell(server):
    running = server(HELLO, "--access-logfile", "-",
                     env={"GUNICORN_CMD_ARGS": "--access-logformat '%(m)s \"and\" %(s)s'"})
    running.get("/")
    assert running.stop() == 0
    assert running.stdout() == 'GET "and" 200\n'


def test_cmd_args_may_name_the_config_file(server, tmp_path):
    (tmp_path / "here.py").write_text("workers = 2\n")
    server(HELLO, env={"GUNICORN_CMD_ARGS": "-c %s/here.py" % tmp_path}).wait_workers(2)


def test_bad_cmd_args():
    done = run("-b", "127.0.0.1:0", HELLO, env={"GUNICORN_CMD_ARGS": "--no-such-option"})
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_port_variable(server):
    running, port = start_on_free_port(server, HELLO, env={"PORT": "PORT_HERE"}, bind=None)
    assert running.listening == ["http://0.0.0.0:%d" % port]
    assert running.get("/").status == 200


def test_bind_beats_the_port_variable(server):
    running = server(HELLO, "-b", "127.0.0.1:0", env={"PORT": "1"})
    assert running.listening[0].startswith("http://127.0.0.1:")


def test_forwarded_allow_ips_variable(server):
    header = [("X-Forwarded-Proto", "https")]
    trusting = server(MIRROR, env={"FORWARDED_ALLOW_IPS": "127.0.0.0/8"})
    assert json.loads(trusting.get("/", header).text)["scheme"] == "https"
    doubting = server(MIRROR, env={"FORWARDED_ALLOW_IPS": "192.0.2.1"})
    assert json.loads(doubting.get("/", header).text)["scheme"] == "http"


def test_config_file_settings(server):
    running = server(None, bind=None, config="""
        wsgi_app = "apps.hello:application"
        bind = ["127.0.0.1:0", "127.0.0.1:0"]
        workers = 2
        threads = 2
        timeout = 20
        accesslog = "-"
        access_log_format = "%(m)s %(U)s"
        loglevel = "debug"
        proc_name = "mine"
    """)
    assert len(running.listening) == 2
    running.wait_workers(2)
    running.get("/from-file")
    assert running.stop() == 0
    assert running.stdout() == "GET /from-file\n"


def test_command_line_replaces_the_files_addresses(server):
    running = server(HELLO, "-b", "127.0.0.1:0", config="bind = ['127.0.0.1:1', '127.0.0.1:2']\n")
    assert len(running.listening) == 1
    assert running.get("/").status == 200


@pytest.mark.parametrize("text, words", [
    ("workers = -3\n", ["workers"]),
    ("workers = 'many'\n", ["workers", "many"]),
    ("timeout = None\n", ["timeout"]),
    ("bind = 5\n", ["bind"]),
    ("workers = \n", ["SyntaxError"]),
    ("import no_such_module_y\n", ["no_such_module_y"]),
    ("raise RuntimeError('config on purpose')\n", ["config on purpose"]),
])
def test_bad_config_file(tmp_path, text, words):
    (tmp_path / "bad.py").write_text(text)
    done = run("-b", "127.0.0.1:0", "-c", tmp_path / "bad.py", HELLO)
    assert done.returncode == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "panicked" not in done.stderr


TOML = """
wsgi_app = "apps.hello:application"
bind = ["127.0.0.1:0"]
workers = 2
accesslog = "-"
access_log_format = "%(m)s from toml"
"""


def test_toml_file(server, tmp_path):
    (tmp_path / "rgunicorn.toml").write_text(TOML)
    running = server(None, "-c", tmp_path / "rgunicorn.toml", bind=None)
    running.wait_workers(2)
    running.get("/")
    assert running.stop() == 0
    assert running.stdout() == "GET from toml\n"


def test_command_line_beats_toml(server, tmp_path):
    (tmp_path / "rgunicorn.toml").write_text(TOML)
    running = server(HELLO, "-c", tmp_path / "rgunicorn.toml", "-w", "1", env={"WEB_CONCURRENCY": "5"})
    assert running.get("/").status == 200
    running.wait_workers(1)


@pytest.mark.parametrize("text, words", [
    ("workers = 'many'\n", ["workers"]),
    ("workers = -3\n", ["workers"]),
    ("workers == 2\n", ["rgunicorn.toml"]),
])
def test_bad_toml_file(tmp_path, text, words):
    (tmp_path / "rgunicorn.toml").write_text(text)
    done = run("-b", "127.0.0.1:0", "-c", tmp_path / "rgunicorn.toml", HELLO)
    assert done.returncode == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr


def test_misspelt_toml_setting(tmp_path):
    """Refused or warned of, but not passed over."""
    (tmp_path / "rgunicorn.toml").write_text("wrokers = 2\n")
    done = run("--check-config", "-c", tmp_path / "rgunicorn.toml", HELLO)
    assert "wrokers" in done.stderr


# --- other ways in ---

def test_as_a_module(server):
    """`python -m rgunicorn` is the same command."""
    name = os.path.basename(harness.command()[0])
    python = os.path.join(os.path.dirname(harness.command()[0]), "python")
    if subprocess.run([python, "-c", "import " + name], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("the command under test is not a Python package")
    running = server(HELLO, leading=[python, "-m", name])
    assert running.get("/").status == 200
    assert running.stop() == 0


def test_the_command_can_be_interrupted_from_a_terminal(server):
    """Ctrl-C goes to the whole foreground group at once: arbiter and workers."""
    running = server(HELLO, "-w", "2")
    running.wait_workers(2)
    assert running.get("/").status == 200
    os.killpg(running.pid, 2)
    assert running.wait_exit() == 0
    assert "Traceback" not in running.log()
