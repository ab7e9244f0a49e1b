"""`rgunicorn reload --wait`: whatever is wrong with a new release, the old one serves on at full capacity, and the exit code
and the reason say so. Under load throughout, of which no request may fail."""
import os
import re
import signal
import socket
import subprocess
import threading
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

import pytest

import harness
import wire
from harness import Threads, alive, wait_until

N = 2
APP = """
    import os, time
    VERSION = %r

    def app(environ, start_response):
        body = environ["wsgi.input"].read() + VERSION.encode()
        start_response("200 OK", [("Content-Length", str(len(body))), ("X-Pid", str(os.getpid()))])
        return [body]
"""
HANG = "import os, time\nwhile os.path.exists('hang'):\n    time.sleep(0.01)\n"
ALLOWED = (r"Reload failed", r"Exception in worker process", r"Worker \(pid:\d+\)", r"Mold \(pid:\d+\)", r"\[ERROR\] (Failed|App|No module)",
           r"has no attribute|Failed to find", r"[Cc]rash|SIGSEGV")


def source(version):
    return harness.textwrap.dedent(APP % version)


class Load(threading.Thread):
    """A client that never pauses: every request has its answer, of one version or the other."""

    def __init__(self, running):
        super().__init__()
        self.running, self.over, self.versions, self.failure = running, False, [], None

    def run(self):
        connection = wire.Connection(self.running.address)
        number = 0
        try:
            while not self.over:
                number += 1
                body = b"%d-" % number
                answer = connection.exchange("POST", "/", (), body)
                version = answer.body[len(body):].decode()
                assert answer.status == 200 and answer.body.startswith(body) and not answer.closing, answer
                if version not in self.versions[-1:]:
                    self.versions.append(version)
        except (AssertionError, OSError) as failure:
            self.failure = repr(failure)
        finally:
            connection.close()


class Released:
    """A server with a release that works, under load."""

    def __init__(self, server, *options, **settings):
        settings.setdefault("config", "workers = %d\nkeepalive = 60\n" % N)
        self.running = server(source("one"), "--pid", "pid", *options, **settings)
        self.old = self.ready(N)
        self.clients = [Load(self.running) for _ in range(3)]
        for client in self.clients:
            client.start()

    def ready(self, count):
        def ready():
            said = {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", self.running.log())}
            now = self.running.workers()
            return now if len(now) == count and said >= set(now) else None
        return wait_until(ready, 20, self.running.log)

    def reload(self, *options, **settings):
        return harness.run("reload", *(options or ("--wait",)), self.running.path("pid"), **settings)

    def end(self):
        for client in self.clients:
            client.over = True
        for client in self.clients:
            client.join(30)
        assert [client.failure for client in self.clients] == [None] * len(self.clients)
        self.check_capacity()

    def check_capacity(self):
        """By the log, from the first moment on: so many workers are ready that have not been told to go."""
        serving, new, least = set(), set(), None
        for _, _, text in self.running.lines():
            ready = re.match(r"Worker ready \(pid: (\d+)\)", text)
            died = re.match(r"Worker \(pid:(\d+)\)", text)
            if ready:
                new.add(int(ready.group(1)))
            elif text.startswith(("Reload complete", "Reload failed")):
                # The others are told to go now.
                serving, new = (new, set()) if text.startswith("Reload complete") else (serving, set())
            elif died:
                serving.discard(int(died.group(1)))
                new.discard(int(died.group(1)))
            if least is None and len(new) == N:
                serving, new, least = new, set(), N
            if least is not None:
                least = min(least, len(serving))
        assert least == N, self.running.log()


@pytest.fixture
def released(server):
    made = []

    def start(*options, **settings):
        made.append(Released(server, *options, **settings))
        return made[-1]
    yield start
    for one in made:
        one.end()


def write(running, files):
    for name, text in files.items():
        if text is None:
            os.unlink(running.path(name))
        else:
            os.makedirs(os.path.dirname(running.path(name)), exist_ok=True)
            running.write(name, text)


RELEASES = {
    "import error": ({"app.py": "import no_such_module\n"}, r"exited with code 3: ModuleNotFoundError: No module named 'no_such_module'"),
    "syntax error": ({"app.py": "def app(:\n"}, r"exited with code 3: SyntaxError"),
    "no application": ({"app.py": "nothing = 1\n"}, r"exited with code 4: Failed to find attribute 'app'"),
    "half copied": ({"app.py": "from shop.models import app\n", "shop/__init__.py": ""},
                    r"exited with code 3: ModuleNotFoundError: No module named 'shop.models'"),
    "hang at import": ({"app.py": HANG + source("two"), "hang": ""}, r"0 of 2 new worker\(s\) ready within 1 s \(--boot-timeout\)"),
    "segfault at import": ({"app.py": "import faulthandler\nfaulthandler._sigsegv()\n"}, r"was killed by SIGSEGV"),
    "exit at import": ({"app.py": "import os\nos._exit(7)\n"}, r"exited with code 7"),
    "exit 0 at import": ({"app.py": "import os\nos._exit(0)\n"}, r"exited with code 0"),
}
CONFIGURATIONS = {
    "raises": ("raise RuntimeError('on purpose')\n", r"RuntimeError: on purpose"),
    "syntax": ("workers =\n", r"SyntaxError"),
    "value": ("workers = 'many'\n", r"workers.*'many'"),
    "missing": (None, r"gunicorn\.conf\.py"),
    "no folder": ("chdir = '/nowhere'\n", r"/nowhere"),
    "address": ("bind = ['127.0.0.1:0', 'unix:/nowhere/app.sock']\n", r"bind unix:/nowhere/app\.sock: No such file or directory"),
}
FORMS = pytest.mark.parametrize("options", [(), ("--preload",), ("--threads", "2")], ids=["plain", "preload", "threads"])


def check_failed(one, done, reason):
    assert done.returncode == 1, (done.stderr, one.running.log())
    assert "Reload failed, the old workers serve on: 2 of 2 worker(s) ready" in done.stderr
    assert re.search(reason, done.stderr), done.stderr
    assert one.running.workers() and set(one.old) <= set(one.running.workers())


def check_repaired(one):
    """The next release, which works, is taken over."""
    write(one.running, {"app.py": source("three")})
    done = one.reload()
    assert done.returncode == 0, (done.stderr, one.running.log())
    assert done.stdout == "Reload complete: 2 of 2 worker(s) ready\n"
    assert not set(one.ready(N)) & set(one.old)
    wait_until(lambda: all(client.versions[-1] == "three" for client in one.clients), 20)
    assert all(client.versions == ["one", "three"] for client in one.clients)


@FORMS
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_that_does_not_boot(released, release, options):
    files, reason = RELEASES[release]
    one = released("--boot-timeout", "1" if "hang" in release else "60", *options)
    one.running.expect_errors(*ALLOWED)
    write(one.running, files)
    check_failed(one, one.reload(), reason)
    check_repaired(one)


@pytest.mark.parametrize("threads", [(), ("--threads", "2")], ids=["plain", "threads"])
@pytest.mark.parametrize("death, reason", [
    ("os._exit(9)", r"a new worker exited with code 9"),
    ("os.kill(os.getpid(), 9)", r"a new worker was killed by SIGKILL"),
])
def test_a_release_that_boots_and_dies_at_once(released, threads, death, reason):
    """By a thread that it starts; its workers were ready. No request dies with them: they are not given any at first."""
    one = released(*threads)
    one.running.expect_errors(*ALLOWED)
    timer = "import threading\nthreading.Timer(0.05, lambda: %s).start()\n" % death
    write(one.running, {"app.py": source("two") + timer})
    check_failed(one, one.reload(), reason)
    check_repaired(one)


def test_a_release_that_dies_of_its_first_request(released):
    """Whoever has sent it has no answer, and the old workers serve on."""
    one = released()
    one.running.expect_errors()
    one.end()
    one.clients = []
    broken = source("two").replace("body = environ", "os._exit(9)\n    body = environ")
    write(one.running, {"app.py": broken})

    def ask(_, over):
        while not over.is_set():
            try:
                with one.running.connect() as connection:
                    connection.exchange()
            except (AssertionError, OSError):
                pass
    with Threads(4, ask):
        done = one.reload()
    check_failed(one, done, r"a new worker exited with code 9")
    assert one.running.get().text == "one"


@pytest.mark.parametrize("broken", CONFIGURATIONS)
def test_a_configuration_that_cannot_be_used(released, broken):
    text, reason = CONFIGURATIONS[broken]
    one = released(bind=None, config="workers = 2\nkeepalive = 60\nbind = '127.0.0.1:0'\n")
    one.running.expect_errors(*ALLOWED)
    kept = one.running.read("gunicorn.conf.py")
    write(one.running, {"gunicorn.conf.py": text})
    check_failed(one, one.reload(), reason)
    write(one.running, {"gunicorn.conf.py": kept})
    check_repaired(one)


@FORMS
def test_releases_that_work(released, options):
    one = released(*options)
    for version in ("two", "three", "four"):
        write(one.running, {"app.py": source(version)})
        done = one.reload()
        assert done.returncode == 0, (done.stderr, one.running.log())
        assert one.running.get().text == version
    wait_until(lambda: all(client.versions == ["one", "two", "three", "four"] for client in one.clients), 20)


# --- the channel ---

def test_an_asker_hears_of_no_reload_but_its_own(released):
    """Several at once: whoever asks has its release running when it is told so."""
    one = released()
    failures = []

    def deploy(number):
        write(one.running, {"stamp-%d" % number: ""})
        done = one.reload()
        if done.returncode or not re.search(r"\b%d\b" % number, one.running.get().text):
            failures.append((number, done.returncode, done.stderr, one.running.get().text))
    stamps = "VERSION = 'one ' + ' '.join(n[6:] for n in sorted(os.listdir('.')) if n.startswith('stamp-'))\n"
    write(one.running, {"app.py": source("one") + stamps})
    deployments = [threading.Thread(target=deploy, args=(number,)) for number in range(4)]
    for deployment in deployments:
        deployment.start()
    for deployment in deployments:
        deployment.join(60)
    assert not failures, (failures, one.running.log())


def wait_taken_over(one):
    """The log says so before the old workers are told to accept nothing more."""
    one.running.wait_log("Reload complete")
    wait_until(lambda: one.running.get().text == "two", 20, one.running.log)


def test_without_waiting(released):
    one = released()
    write(one.running, {"app.py": source("two")})
    done = harness.run("reload", one.running.path("pid"))
    assert (done.returncode, done.stdout) == (0, "Reload requested (pid: %d)\n" % one.running.pid)
    wait_taken_over(one)


def test_the_time_is_over(released):
    one = released()
    write(one.running, {"app.py": HANG + source("two"), "hang": ""})
    done = one.reload("--wait", "--timeout", "0.3")
    assert done.returncode == 4 and "has not ended within 0.3 s" in done.stderr
    assert one.running.get().text == "one"
    os.unlink(one.running.path("hang"))
    wait_taken_over(one)


def test_a_server_that_stops_meanwhile(server):
    one = Released(server)
    for client in one.clients:
        client.over = True
        client.join(30)
    write(one.running, {"app.py": HANG + source("two"), "hang": ""})
    waiting = subprocess.Popen(harness.command() + ["reload", "--wait", one.running.path("pid")],
                               env=harness.clean_environment(), stderr=subprocess.PIPE)
    one.running.wait_log("Hang up: Master")
    assert one.running.stop() == 0
    assert b"ended before the reload" in waiting.communicate(timeout=20)[1]
    assert waiting.returncode == 3
    assert not one.running.exists("pid.reload")


def test_a_waiting_command_can_be_interrupted(released):
    one = released()
    write(one.running, {"app.py": HANG + source("two"), "hang": ""})
    waiting = subprocess.Popen(harness.command() + ["reload", "--wait", one.running.path("pid")],
                               env=harness.clean_environment(), stderr=subprocess.PIPE)
    one.running.wait_log("Hang up: Master")
    waiting.send_signal(SIGINT)
    assert b"interrupted" in waiting.communicate(timeout=20)[1]
    assert waiting.returncode == 130
    os.unlink(one.running.path("hang"))
    one.running.wait_log("Reload complete")


@pytest.mark.parametrize("wait", [("--wait",), ()], ids=["wait", "tell"])
def test_there_is_no_server(server, tmp_path, wait):
    missing = harness.run("reload", *wait, tmp_path / "pid")
    assert missing.returncode == 3 and "No such file" in missing.stderr
    # Somebody lives, but is no server.
    (tmp_path / "pid").write_text("%d\n" % os.getpid())
    stale = harness.run("reload", *wait, tmp_path / "pid")
    assert stale.returncode == 3 and "is not that of a running server" in stale.stderr
    os.symlink(str(tmp_path / "pid"), str(tmp_path / "link"))
    link = harness.run("reload", *wait, tmp_path / "link")
    assert link.returncode == 3


def test_a_channel_of_somebody_else_is_not_believed(released):
    one = released()
    path = one.running.path("pid.reload")
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        here = os.open(str(one.running.directory), os.O_PATH)
        other.bind("/proc/self/fd/%d/pid.reload" % here)
        os.close(here)
        other.listen(1)
        done = one.reload()
    assert done.returncode == 3 and "is that of process %d" % os.getpid() in done.stderr
    os.unlink(path)
    gone = one.reload()
    assert gone.returncode == 3 and "cannot ask" in gone.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_only_its_user_may_ask(released, tmp_path):
    one = released()
    channel = os.stat(one.running.path("pid.reload"))
    assert channel.st_mode & 0o777 == 0o600
    script = "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\n" \
             "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n" \
             "try:\n    s.connect('pid.reload')\nexcept PermissionError:\n    sys.exit(7)\n"
    for folder in (one.running.directory, *one.running.directory.parents):
        if str(folder).startswith("/tmp/"):
            os.chmod(str(folder), 0o755)
    assert subprocess.call([harness.sys.executable, "-S", "-c", script], cwd=str(one.running.directory)) == 7


def test_an_application_may_be_called_reload(server, tmp_path):
    directory = tmp_path / "named"
    directory.mkdir()
    (directory / "reload.py").write_text(source("one").replace("app(", "application("))
    running = server("reload", directory=directory)
    assert running.argv[1] != "reload" or running.get().text == "one"
    done = subprocess.Popen(harness.command() + ["reload", "-b", "127.0.0.1:0"], cwd=str(directory),
                            env=harness.clean_environment(), stderr=subprocess.PIPE)
    try:
        for line in done.stderr:
            if b"Worker ready" in line:
                break
    finally:
        done.terminate()
        done.communicate(timeout=20)
    assert done.returncode == 0


def test_usage():
    done = harness.run("reload", "--wait")
    assert done.returncode == 2 and "PIDFILE" in done.stderr
    done = harness.run("reload", "--wait", "--help")
    assert done.returncode == 0 and "Exit codes" in done.stdout


def test_after_an_upgrade_the_new_server_is_asked(released):
    one = released()
    one.running.signal(signal.SIGUSR2)
    new = int(one.running.wait_log(r"The new server is ready \(pid: (\d+)\)").group(1))
    write(one.running, {"app.py": source("two")})
    second = harness.run("reload", "--wait", one.running.path("pid.2"))
    assert second.returncode == 0, second.stderr
    one.running.signal(SIGTERM)
    assert one.running.wait_exit() == 0
    one.running.wait_log("Master has been promoted")
    wait_until(lambda: one.running.read("pid") == "%d\n" % new)
    write(one.running, {"app.py": source("three")})
    done = one.reload()
    assert done.returncode == 0, done.stderr
    assert one.running.get().text == "three"
    for client in one.clients:
        client.over = True
        client.join(30)
        assert client.failure is None
    one.clients, one.check_capacity = [], lambda: None
    os.kill(new, SIGTERM)
    wait_until(lambda: not alive(new))
    assert not one.running.exists("pid") and not one.running.exists("pid.reload")


def test_hup_is_verified_in_the_same_way(released):
    one = released()
    one.running.expect_errors(*ALLOWED)
    write(one.running, {"app.py": "import no_such_module\n"})
    one.running.signal(SIGHUP)
    one.running.wait_log(r"Reload failed, the old workers serve on: a new worker exited with code 3: ModuleNotFoundError")
    assert set(one.old) <= set(one.running.workers())


def test_a_server_that_was_killed_leaves_no_obstacle(server):
    one = Released(server)
    for client in one.clients:
        client.over = True
        client.join(30)
    os.kill(one.running.pid, SIGKILL)
    one.running.process.wait(20)
    assert one.running.exists("pid.reload")
    wait_until(lambda: not any(map(alive, one.old)), 20)
    assert one.reload().returncode == 3
    again = server(source("one"), "--pid", one.running.path("pid"))
    again.wait_workers(1)
    assert one.reload().returncode == 0


def test_what_an_application_says_is_one_line_at_the_terminal(server):
    """Its last words are shown to whoever has asked for the reload: as text, whatever they are."""
    running = server(source("one"), "--pid", "pid")
    running.expect_errors()
    running.wait_log("Worker ready")
    running.write("app.py", "raise ValueError('on purpose \\x1b[2J\\x9b2J\\nDone')\n")
    done = harness.run("reload", "--wait", running.path("pid"))
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "on purpose" in said and not re.search("\x1b|\x9b|^Done", said, re.M), repr(said)
    assert running.get("/").text == "one"
