"""`rgunicorn reload --wait`: whatever is wrong with a new release, the old one serves on at full capacity, and the exit code
and the reason say so. Under load throughout, of which no request may fail."""
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM

import pytest

import control
import harness
import wire
from harness import Threads, alive, wait_until
from users import nobody

N = 2
APP = """
    import os, time
    VERSION = %r

    def meet(name):
        # Until the other half of the pair is here too, which takes two workers.
        mine, other = name, name[:-1] + {"a": "b", "b": "a"}[name[-1]]
        open(os.path.join(MEETINGS, mine), "w").close()
        until = time.monotonic() + 15
        while not os.path.exists(os.path.join(MEETINGS, other)):
            if time.monotonic() > until:
                return b"alone"
            time.sleep(0.002)
        return b"met"

    MEETINGS = os.environ.get("MEETINGS")

    def app(environ, start_response):
        body = environ["wsgi.input"].read() + VERSION.encode()
        if environ["PATH_INFO"] == "/meet":
            body = meet(environ["QUERY_STRING"])
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
        self.running, self.over, self.failure = running, False, None
        # Of all answers, and of the requests that were sent since `settle`.
        self.versions, self.since = set(), set()

    def settle(self):
        self.since = set()

    def run(self):
        connection = wire.Connection(self.running.address)
        number = 0
        try:
            while not self.over:
                number += 1
                body = b"%d-" % number
                since = self.since
                answer = connection.exchange("POST", "/", (), body)
                version = answer.body[len(body):].decode()
                assert answer.status == 200 and answer.body.startswith(body) and not answer.closing, answer
                self.versions.add(version)
                since.add(version)
        except (AssertionError, OSError) as failure:
            self.failure = repr(failure)
        finally:
            connection.close()


class Pairs(Load):
    """Pairs of requests that have to be with the application at the same time: with one thread a worker, there are two
    workers that serve, at every moment."""

    def run(self):
        pair = {half: wire.Connection(self.running.address) for half in "ab"}
        number = 0
        try:
            while not self.over:
                number += 1
                for half, connection in pair.items():
                    connection.send_request("GET", "/meet?%d%s" % (number, half))
                answers = [connection.read_response() for connection in pair.values()]
                assert [answer.text for answer in answers] == ["met", "met"], answers
        except (AssertionError, OSError) as failure:
            self.failure = repr(failure)
        finally:
            for connection in pair.values():
                connection.close()


class Sampler(threading.Thread):
    """Asks the arbiter all the time how many workers serve."""

    def __init__(self, running):
        super().__init__()
        self.running, self.over, self.samples, self.failure = running, False, [], None

    def run(self):
        try:
            with contextlib.closing(control.connect(self.running.path("control"))) as operator:
                while not self.over:
                    operator.sendall(control.frame({"id": 1, "command": "show workers"}))
                    workers = control.read_answer(operator)["data"]["workers"]
                    self.samples.append(sum(worker["state"] in ("ready", "retiring") for worker in workers))
        except (AssertionError, OSError, TypeError) as failure:
            self.failure = repr(failure)


class Released:
    """A server with a release that works, under load."""

    def __init__(self, server, *options, **settings):
        settings.setdefault("config", "workers = %d\nkeepalive = 60\n" % N)
        self.meetings = tempfile.mkdtemp(prefix="meetings-")
        settings["env"] = {"MEETINGS": self.meetings, **settings.get("env", {})}
        sampled = settings.pop("sampled", False)
        self.running = server(source("one"), "--pid", "pid", "--control-socket", "control", *options, **settings)
        self.old = self.ready(N)
        self.clients = [Load(self.running) for _ in range(3)]
        # Not in every test, as it keeps the arbiter from ever sleeping.
        self.sampler = Sampler(self.running) if sampled else None
        self.watchers = [self.sampler] if sampled else []
        if "--threads" not in options:
            self.watchers.append(Pairs(self.running))
        for watcher in self.watchers:
            watcher.start()
        for client in self.clients:
            client.start()

    def ready(self, count):
        def ready():
            said = {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", self.running.log())}
            now = self.running.workers()
            return now if len(now) == count and said >= set(now) else None
        return wait_until(ready, 20, self.running.log)

    def check_settled(self, *versions):
        """Every client has met these versions at the most, and now meets the last only."""
        for client in self.clients:
            client.settle()
        wait_until(lambda: all(client.since or client.failure for client in self.clients), 20)
        assert {version for client in self.clients for version in client.since} == {versions[-1]}
        assert all({versions[0], versions[-1]} <= client.versions <= set(versions) for client in self.clients)

    def reload(self, *options, **settings):
        return harness.run("reload", *(options or ("--wait",)), self.running.path("pid"), **settings)

    def end(self):
        ended = self.clients + self.watchers
        self.clients, self.watchers = [], []
        for client in ended:
            client.over = True
        for client in ended:
            client.join(30)
        shutil.rmtree(self.meetings, ignore_errors=True)
        assert [client.failure for client in ended] == [None] * len(ended)
        self.check_capacity()

    def stop_clients(self):
        """Before the server is to end."""
        self.end()
        self.check_capacity = lambda: None

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
        if self.sampler:
            assert len(self.sampler.samples) > 20 and min(self.sampler.samples) >= N, self.running.log()


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
# What the way of loading makes no difference to.
MORE_RELEASES = {
    "truncated": ({"app.py": source("two")[:-30]}, r"exited with code 3: SyntaxError"),
    "not callable": ({"app.py": "app = 'app'\n"}, r"exited with code 4: Application object must be callable"),
    "sys.exit at import": ({"app.py": "import sys\nsys.exit('no database')\n"}, r"exited with code 3: SystemExit: no database"),
}
CONFIGURATIONS = {
    "raises": ("raise RuntimeError('on purpose')\n", r"RuntimeError: on purpose"),
    "syntax": ("workers =\n", r"SyntaxError"),
    "value": ("workers = 'many'\n", r"workers.*'many'"),
    "missing": (None, r"gunicorn\.conf\.py"),
    "no folder": ("chdir = '/nowhere'\n", r"/nowhere"),
    "address": ("bind = ['127.0.0.1:0', 'unix:/nowhere/app.sock']\n", r"bind unix:/nowhere/app\.sock: No such file or directory"),
}
FORMS = {"plain": (), "preload": ("--preload",), "threads": ("--threads", "2")}


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
    one.check_settled("one", "three")


@pytest.mark.parametrize("release, options", [
    pytest.param(name, options, id="%s-%s" % (name, form)) for form, options in FORMS.items() for name in RELEASES
] + [pytest.param(name, (), id=name) for name in MORE_RELEASES])
def test_a_release_that_does_not_boot(released, release, options):
    files, reason = {**RELEASES, **MORE_RELEASES}[release]
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
    one = released(*threads, sampled=True)
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


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_releases_that_work(released, options):
    one = released(*options, sampled=True)
    for version in ("two", "three", "four"):
        write(one.running, {"app.py": source(version)})
        done = one.reload()
        assert done.returncode == 0, (done.stderr, one.running.log())
        assert one.running.get().text == version
    one.check_settled("one", "two", "three", "four")


@pytest.mark.parametrize("started", ["in it", "chdir", "relative chdir"])
def test_a_link_that_leads_to_the_new_release(server, tmp_path, started):
    """`current -> releases/2`: whether the server was started in it or goes there, a reload follows it; the old release may be
    gone by then, and one that is half there takes nothing over."""
    current, releases = tmp_path / "current", tmp_path / "releases"

    def release(number, text):
        (releases / number).mkdir(parents=True)
        (releases / number / "app.py").write_text(text)

    def switch(number):
        (tmp_path / "next").symlink_to("releases/" + number)
        os.replace(str(tmp_path / "next"), str(current))

    release("1", source("one"))
    switch("1")
    settings = {"in it": dict(cwd=str(current), env={"PWD": str(current)}),
                "chdir": {},
                "relative chdir": dict(cwd=str(tmp_path), env={"PWD": str(tmp_path)})}[started]
    options = {"in it": [], "chdir": ["--chdir", current], "relative chdir": ["--chdir", "current"]}[started]
    running = server("app:app", "--pid", tmp_path / "pid", "-w", "2", *options, **settings)
    running.expect_errors(*ALLOWED, r"No module named")
    # Until then it imports what the link leads to.
    running.wait_log("Worker ready", count=2)
    assert running.get().text == "one"
    reload = lambda: harness.run("reload", "--wait", tmp_path / "pid")
    release("2", "from shop.models import app\n")
    switch("2")
    failed = reload()
    assert failed.returncode == 1 and "No module named 'shop'" in failed.stderr
    assert running.get().text == "one"
    release("3", source("three"))
    switch("3")
    shutil.rmtree(str(releases / "1"))
    done = reload()
    assert done.returncode == 0, (done.stderr, running.log())
    assert running.get().text == "three"
    # A worker that is replaced is of the new release too.
    old = running.workers()
    os.kill(old[0], SIGKILL)
    wait_until(lambda: len(running.workers()) == 2 and running.workers() != old)
    assert {running.get().text for _ in range(20)} == {"three"}


def test_failed_reloads_do_not_hold_up_what_serves(released):
    """The pauses between forks that do not work are the new release's own."""
    one = released()
    one.running.expect_errors(*ALLOWED)
    write(one.running, RELEASES["segfault at import"][0])
    for _ in range(8):
        assert one.reload().returncode == 1
    write(one.running, {"app.py": source("one")})
    [pid] = one.running.workers()[:1]
    since = len(one.running.log())
    os.kill(pid, SIGTERM)
    wait_until(lambda: re.search(r"Worker ready", one.running.log()[since:]), 8, one.running.log)
    one.check_capacity = lambda: None


def test_workers_that_reach_max_requests_while_they_prove_themselves(server):
    """They serve still, and have proved more than the others."""
    running = server(source("one"), "--pid", "pid", "-w", "2", "--max-requests", "3", "--keep-alive", "60")
    running.wait_log("Worker ready", count=2)
    clients = [Load(running) for _ in range(3)]
    for client in clients:
        client.start()
    write(running, {"app.py": source("two")})
    done = harness.run("reload", "--wait", "--timeout", "20", running.path("pid"))
    for client in clients:
        client.over = True
        client.join(30)
    assert done.returncode == 0, (done.stderr, running.log())
    assert running.get().text == "two" and [client.failure for client in clients] == [None] * 3


# --- what comes while a reload is under way ---

class UnderWay:
    """A reload that waits for `go_on`, asked for by a command that waits for it."""

    def __init__(self, released):
        self.one = released()
        self.running = self.one.running
        self.running.expect_errors(*ALLOWED)
        write(self.running, {"app.py": HANG + source("two"), "hang": ""})
        self.command = ask_for(self.running)
        self.running.wait_log("Booting worker", count=4)

    def go_on(self):
        os.unlink(self.running.path("hang"))

    def ended(self, code):
        out, err = self.command.communicate(timeout=30)
        assert self.command.returncode == code, (out, err, self.running.log())
        return out.decode() + err.decode()


def ask_for(running, *options):
    return subprocess.Popen(harness.command() + ["reload", "--wait", *options, running.path("pid")],
                            env=harness.clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number, workers", [(signal.SIGTTIN, 3), (signal.SIGTTOU, 1)], ids=["ttin", "ttou"])
def test_more_workers_and_fewer_are_wanted_of_the_new_release_too(released, number, workers):
    reload = UnderWay(released)
    # The capacity is what the operator wants.
    reload.one.stop_clients()
    reload.running.signal(number)
    reload.running.wait_log("Handling signal: tto?[iu]")
    reload.go_on()
    assert reload.ended(0) == "Reload complete: %d of %d worker(s) ready\n" % (workers, workers)
    assert len(reload.one.ready(workers)) == workers
    assert reload.running.get().text == "two"


def test_another_hup_starts_it_over(released):
    """And the asker of the first has the answer of the second."""
    reload = UnderWay(released)
    write(reload.running, {"app.py": source("three")})
    reload.running.signal(SIGHUP)
    assert reload.ended(0) == "Reload complete: 2 of 2 worker(s) ready\n"
    assert reload.running.get().text == "three"
    assert "is overtaken by another one" in reload.running.log()
    reload.go_on()


def test_an_upgrade_meanwhile(released):
    """The new server has the new release, and so have the old one's workers, whichever goes."""
    reload = UnderWay(released)
    reload.one.check_capacity = lambda: None
    reload.running.signal(signal.SIGUSR2)
    new = int(reload.running.wait_log(r"Started a new server beside this one \(pid: (\d+)\)").group(1))
    reload.go_on()
    assert reload.ended(0) == "Reload complete: 2 of 2 worker(s) ready\n"
    reload.running.wait_log("The new server is ready")
    reload.running.signal(SIGTERM)
    assert reload.running.wait_exit() == 0
    assert reload.running.get().text == "two"
    reload.one.end()
    os.kill(new, SIGTERM)
    wait_until(lambda: not alive(new), 20, reload.running.log)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT, signal.SIGQUIT, SIGKILL])
def test_the_end_of_the_server_meanwhile(released, number):
    reload = UnderWay(released)
    reload.one.stop_clients()
    reload.running.signal(number)
    assert reload.running.wait_exit() == (-SIGKILL if number == SIGKILL else 0)
    assert reload.ended(3) == "rgunicorn: the server has ended before the reload had\n"
    assert reload.running.exists("pid.reload") == (number == SIGKILL)
    reload.go_on()


def test_a_reload_that_is_complete_is_one_whatever_comes_then(released):
    """Until the old workers have heard of it the answer waits; a stop does not take it back."""
    one = released()
    one.stop_clients()
    os.kill(one.old[0], signal.SIGSTOP)
    command = ask_for(one.running)
    one.running.wait_log("Reload complete")
    one.running.signal(SIGTERM)
    one.running.wait_log("Handling signal: term")
    os.kill(one.old[0], signal.SIGCONT)
    assert command.communicate(timeout=20)[0] == b"Reload complete: 2 of 2 worker(s) ready\n"
    assert command.returncode == 0
    assert one.running.wait_exit() == 0


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


def test_a_waiting_command_can_be_interrupted(released):
    one = released()
    write(one.running, {"app.py": HANG + source("two"), "hang": ""})
    waiting = ask_for(one.running)
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


@pytest.mark.parametrize("wait, says", [(["--wait"], "cannot ask the server with pid %d at %s.reload: Permission denied"),
                                        ([], "cannot signal the server with pid %d: Operation not permitted")])
def test_only_its_user_may_ask(released, wait, says):
    user = nobody()
    one = released()
    assert os.stat(one.running.path("pid.reload")).st_mode & 0o777 == 0o600
    for folder in (one.running.directory, *one.running.directory.parents):
        if str(folder).startswith("/tmp/"):
            os.chmod(str(folder), 0o755)
    # In an interpreter that the other user could not start.
    script = "import os, sys\nfrom rgunicorn import _core\nos.setgroups([]); os.setgid(%d); os.setuid(%d)\n" \
             "sys.exit(_core.main(['rgunicorn', 'reload', *sys.argv[1:]]))\n" % (user.pw_gid, user.pw_uid)
    done = subprocess.run([sys.executable, "-c", script, *wait, one.running.path("pid")], capture_output=True, text=True,
                          env=harness.clean_environment(), timeout=40)
    pid, path = one.running.pid, one.running.path("pid")
    assert done.returncode == 3 and done.stderr.startswith("rgunicorn: " + says.replace("%d", str(pid)).replace("%s", path)), done
    assert "Hang up" not in one.running.log()


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
    one.check_capacity = lambda: None
    one.end()
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
    one.stop_clients()
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
