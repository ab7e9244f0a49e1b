"""Starts the installed command as a user would, and watches it from outside: its processes in /proc, its log, its sockets.

Nothing here knows how the server works inside, so the same suite runs against gunicorn:
`RGUNICORN=/path/to/gunicorn RGUNICORN_ARGS="-k gthread" pytest tests`.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from signal import SIGKILL, SIGQUIT, SIGTERM

import pytest

import wire

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)

# What the server reads from the environment: a test says which of these it wants.
SERVER_VARIABLES = (
    "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "SCRIPT_NAME", "SENDFILE",
    "LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "GUNICORN_PID", "GUNICORN_FD", "RGUNICORN_KIN", "RUST_LOG", "DJANGO_SETTINGS_MODULE",
)
LOG_LINE = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[(\d+)\] \[([A-Z]+)\] (.*)$", re.M)
LISTENING = re.compile(r"Listening at: (.+?) \((\d+)\)\s*$", re.M)
# What is said by checks of memory that fail: AddressSanitizer, CPython's debug allocator, its assertions. No test expects it.
BROKEN = re.compile(r"AddressSanitizer|Debug memory block at|\bAssertion [\"`]|Fatal Python error: \w+: ")
# A worker that is told to stop while it imports, by a debug build of CPython: os.stat calculates on with the exception set until
# it notices it, and an assertion ends the process. Elsewhere the exception arrives. Not below our own frame: there it is our call.
INTERRUPTED_STAT = re.compile(
    r"^Fatal Python error: _Py_CheckSlotResult: Slot \S of type int succeeded with an exception set\n"
    r"(?:(?!Fatal |Current thread ).*\n){0,60}?rgunicorn\.Interrupted: 0\n(?:(?!Fatal |Current thread ).*\n){0,10}?"
    r"Current thread .*\n  File (?!.*\brgunicorn/).*$", re.M)
DEATH_IN_STAT = re.compile(r"^.*\[ERROR\] Worker \(pid:\d+\) was killed by SIGABRT\. It was aborted: by Python's own checks.*$", re.M)
# Whether `make asan` runs the tests.
SANITIZED = "RGUNICORN_REPORTS" in os.environ
TROUBLE = re.compile(r"\[ERROR\]|\[CRITICAL\]|panicked|Iterator garbage collected|ResourceWarning|DeprecationWarning")


def wait_until(predicate, timeout=20, what=""):
    """The first true value of `predicate`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            detail = what() if callable(what) else what
            raise AssertionError("not within %s s: %s" % (timeout, detail or predicate))
        time.sleep(0.02)


class Threads:
    """Threads beside a test, from the beginning of a `with` block to its end, which `over` tells them. What one of them raises
    ends it, and is one of the `faults`.
    """

    def __init__(self, count, work):
        """Each runs `work(number, over)`."""
        self.over = threading.Event()
        self.faults = []
        self.threads = [threading.Thread(target=self._run, args=(work, number), daemon=True) for number in range(count)]

    def _run(self, work, number):
        try:
            work(number, self.over)
        except Exception as error:
            self.faults.append("%d: %r" % (number, error))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(40)
        # Whatever has ended the block says more.
        assert kind or not self.faults, self.faults


def command():
    """The argv that starts the server under test."""
    name = os.environ.get("RGUNICORN", "rgunicorn")
    beside = os.path.join(os.path.dirname(sys.executable), name)
    if os.sep not in name and os.access(beside, os.X_OK):
        return [beside]
    found = shutil.which(name)
    if not found:
        raise RuntimeError("%s is neither beside %s nor on PATH" % (name, sys.executable))
    return [os.path.abspath(found)]


def compile_library(path, text):
    """The path of a library to preload, made from C."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler")
    source = path.with_suffix(".c")
    source.write_text(text)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"], check=True)
    return str(path)


class Done:
    """How a run ended: exit code and what it wrote."""

    def __init__(self, returncode, stdout, stderr):
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


def run(*arguments, **settings):
    """Runs the command to its end; for the ways of starting that do not serve. None of its processes may outlive it."""
    environment = clean_environment(settings.pop("env", None))
    timeout = settings.pop("timeout", 40)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command() + [str(a) for a in arguments], env=environment, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=err, start_new_session=True, **settings)
        try:
            process.wait(timeout)
            wait_until(lambda: not session(process.pid), 10, lambda: "the end of %s" % session(process.pid))
        except subprocess.TimeoutExpired:
            raise AssertionError("still running after %s s: %s\n%s" % (timeout, arguments, contents(err))) from None
        finally:
            for pid in session(process.pid):
                os.kill(pid, SIGKILL)
            process.wait()
        assert not BROKEN.search(without_interrupted_stat(contents(err))), contents(err)
        return Done(process.returncode, contents(out), contents(err))


def without_interrupted_stat(log):
    """The log without that, and without the deaths that come of it."""
    rest, times = INTERRUPTED_STAT.subn("", log)
    return DEATH_IN_STAT.sub("", rest, count=times) if times else log


def contents(file):
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def clean_environment(extra=None):
    environment = {k: v for k, v in os.environ.items() if k not in SERVER_VARIABLES}
    # A reload may come within the second in which the old source was compiled.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    # setproctitle would overwrite the environment, by which the processes of a server are found.
    environment["SPT_NOENV"] = "1"
    path = [TESTS] + [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    # What `make memcheck` wants of the interpreter.
    environment.update(pair.split("=", 1) for pair in shlex.split(os.environ.get("RGUNICORN_ENV", "")))
    environment.update(extra or {})
    return environment


def preload(library):
    """The value of LD_PRELOAD that has this library behind what is there, as the sanitizer's has to be the first."""
    return ":".join(filter(None, [os.environ.get("LD_PRELOAD"), library]))


# --- /proc ---

def stat(pid):
    """(state, parent, group, session) of a process, or None when it is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3])


def alive(pid):
    found = stat(pid)
    return bool(found) and found[0] not in "ZX"


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def session(leader):
    """The living processes of a session."""
    return [p for p in all_pids() if (stat(p) or "ZZZZ")[3] == leader and alive(p)]


def children(pid):
    return [p for p in all_pids() if (stat(p) or (0, 0))[1] == pid]


def descendants(pid):
    found = []
    for child in children(pid):
        found += [child] + descendants(child)
    return found


def signals_ignored():
    """The mask of the signals that this process ignores: bit N - 1 is signal N (proc(5), SigIgn)."""
    with open("/proc/self/status") as f:
        return int(re.search(r"^SigIgn:\s*(\w+)", f.read(), re.M).group(1), 16)


def status_field(pid, field):
    """A number from /proc/PID/status, for example VmHWM in kB."""
    with open("/proc/%d/status" % pid) as f:
        return int(re.search(r"^%s:\s*(\d+)" % field, f.read(), re.M).group(1))


def descriptors(pid):
    """What a process has open."""
    folder, found = "/proc/%d/fd" % pid, []
    for number in os.listdir(folder):
        try:
            found.append(os.readlink(os.path.join(folder, number)))
        except FileNotFoundError:
            pass  # Closed just now.
    return found


def sockets(pid):
    """How many sockets a process has open."""
    return sum(name.startswith("socket:") for name in descriptors(pid))


def memory_of(pid, field="VmRSS"):
    """Resident memory in kB. 0 under AddressSanitizer, which keeps what was freed: no bound would say anything."""
    return 0 if SANITIZED else status_field(pid, field)


def thread_switches(pid):
    """Voluntary context switches of each thread of a process: how often it woke up."""
    found = {}
    try:
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/status" % (pid, task)) as f:
                found[pid, task] = int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", f.read(), re.M).group(1))
    except OSError:
        pass  # It ends just now.
    return found


def cpu_ticks(pid):
    with open("/proc/%d/stat" % pid, "rb") as f:
        fields = f.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def read_text(path):
    try:
        with open(str(path), encoding="utf-8", errors="replace") as f:
            return f.read()
    except FileNotFoundError:
        return ""


# --- the server ---

class Server:
    """One running server. `app` is Python source (several lines), an APP argument, or None for no APP argument.

    Its working directory is its own; `tests/` is on PYTHONPATH, so `apps.hello:app` works as APP.
    """

    def __init__(self, directory, app, *options, **settings):
        self.directory = directory
        self.allowed = []
        self.killed = False
        self.announced = []
        self.booted = set()
        self.mark = uuid.uuid4().hex
        self.cwd = str(settings.pop("cwd", directory))
        bind = settings.pop("bind", "127.0.0.1:0")
        config = settings.pop("config", None)
        environment = clean_environment(settings.pop("env", None))
        environment["RGUNICORN_TEST"] = self.mark
        prefix = list(settings.pop("prefix", ()))
        pass_fds = settings.pop("pass_fds", ())
        leading = settings.pop("leading", None)
        assert not settings, settings

        arguments = shlex.split(os.environ.get("RGUNICORN_ARGS", ""))
        if bind is not None and not any(str(o) in ("-b", "--bind") for o in options):
            arguments += ["-b", bind]
        if config is not None:
            self.write("gunicorn.conf.py", config)
            arguments += ["-c", "gunicorn.conf.py"]
        arguments += [str(o) for o in options]
        if app is not None:
            arguments.append(self.spec(app))
        self.error_logfile = self.named_log(arguments)
        self.stdout_path = os.path.join(str(directory), "stdout-" + self.mark)
        self.stderr_path = os.path.join(str(directory), "stderr-" + self.mark)
        self.argv = prefix + (leading or command()) + arguments
        with open(self.stdout_path, "wb") as out, open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen(self.argv, cwd=self.cwd, env=environment, stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=err, start_new_session=True, pass_fds=pass_fds)
        self.pid = self.process.pid

    def spec(self, app):
        if "\n" not in app:
            return app
        source = textwrap.dedent(app)
        self.write("app.py", source)
        return "app:app" if re.search(r"^(def app\b|app\b *=)", source, re.M) else "app"

    def named_log(self, arguments):
        for option, value in zip(arguments, arguments[1:]):
            if option in ("--error-logfile", "--log-file") and value != "-":
                return os.path.join(self.cwd, value)
        return None

    def write(self, name, text):
        path = os.path.join(str(self.directory), name)
        with open(path + ".new", "w") as f:
            f.write(textwrap.dedent(text))
        os.replace(path + ".new", path)
        return path

    def path(self, name):
        return os.path.join(str(self.directory), name)

    def exists(self, name):
        return os.path.exists(self.path(name))

    def read(self, name):
        return read_text(self.path(name))

    def touch(self, name):
        self.write(name, "")

    # Its words.

    def log(self):
        text = read_text(self.stderr_path)
        return text + read_text(self.error_logfile) if self.error_logfile else text

    def stdout(self):
        return read_text(self.stdout_path)

    def lines(self, level=None):
        """(pid, level, message) of each line of the log that starts an entry."""
        found = [(int(p), l, m) for p, l, m in LOG_LINE.findall(self.log())]
        return [line for line in found if level is None or line[1] == level]

    def wait_log(self, pattern, timeout=20, count=1):
        """Waits until the log matches `pattern` at least `count` times; gives the last match."""
        def matched():
            found = list(re.finditer(pattern, self.log(), re.M))
            return found[-1] if len(found) >= count else None
        return wait_until(matched, timeout, lambda: "%r in the log:\n%s" % (pattern, self.log()))

    def expect_errors(self, *patterns):
        """Lines of the log that match one of these are not trouble."""
        self.allowed += patterns or [r"."]

    # Its addresses.

    def wait_listening(self):
        def listening():
            if self.process.poll() is not None:
                raise AssertionError("%s ended with %s:\n%s" % (self.argv, self.process.returncode, self.log()))
            return LISTENING.search(self.log())
        wait_until(listening, 30, lambda: "listening; the log:\n" + self.log())
        assert self.listening

    @property
    def listening(self):
        """The addresses as the log gives them, newest announcement; remembered, for a test may move the log away."""
        found = LISTENING.findall(self.log())
        if found:
            self.announced = found[-1][0].split(",")
        assert self.announced, "no `Listening at` in the log:\n" + self.log()
        return self.announced

    @property
    def addresses(self):
        return [connectable(a) for a in self.listening]

    @property
    def address(self):
        return self.addresses[0]

    @property
    def port(self):
        return self.address[1]

    # Talking to it.

    def connect(self, timeout=None):
        return wire.Connection(self.address, timeout)

    def request(self, method="GET", target="/", headers=(), body=None, timeout=None):
        """One request on a connection of its own."""
        with self.connect(timeout) as connection:
            headers = list(headers) + [("Connection", "close")]
            response = connection.exchange(method, target, headers, body)
            connection.expect_eof()
            return response

    def get(self, target="/", headers=(), timeout=None):
        return self.request("GET", target, headers, None, timeout)

    # Its processes.

    def workers(self):
        """Pids of the living workers: the descendants that announced themselves as such."""
        self.booted |= {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.log())}
        return sorted(p for p in descendants(self.pid) if p in self.booted and alive(p))

    def wait_workers(self, count, timeout=20):
        return wait_until(lambda: len(self.workers()) == count and self.workers(), timeout,
                          lambda: "%d workers, there are %s; the log:\n%s" % (count, self.workers(), self.log()))

    def processes(self):
        """Every living process of this server, also those that left its session."""
        mark = ("RGUNICORN_TEST=" + self.mark).encode()
        found = []
        for pid in all_pids():
            facts = stat(pid)
            if not facts or facts[0] in "ZX" or pid == os.getpid():
                continue
            if facts[3] == self.pid or mark in environ_bytes(pid):
                found.append(pid)
        return found

    def running(self):
        return self.process.poll() is None

    def signal(self, number):
        os.kill(self.pid, number)

    def wait_exit(self, timeout=30):
        """The exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError("still running after %s s; the log:\n%s" % (timeout, self.log())) from None

    def stop(self, number=SIGTERM, timeout=30):
        self.signal(number)
        return self.wait_exit(timeout)

    def kill(self):
        """Ends all of it at once; for a test that leaves it in a state from which it cannot stop quickly."""
        self.killed = True
        for pid in self.processes():
            try:
                os.kill(pid, SIGKILL)
            except ProcessLookupError:
                pass
        if self.process.poll() is None:
            self.process.wait(10)

    def trouble(self):
        """Lines of the log that nobody announced."""
        return [line for line in without_interrupted_stat(self.log()).splitlines() if BROKEN.search(line)
                or TROUBLE.search(line) and not any(re.search(p, line) for p in self.allowed)]

    def finish(self):
        """Teardown: it stops when told, leaves no process, and complained about nothing unexpected."""
        complaints = []
        if self.running() and not self.killed:
            self.signal(SIGQUIT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                complaints.append("it did not stop within 20 s of SIGQUIT")
        try:
            if not complaints:
                wait_until(lambda: not self.processes(), 10)
        except AssertionError:
            complaints.append("processes are left: %s" % [describe(p) for p in self.processes()])
        self.kill()
        complaints += self.trouble()
        if complaints:
            raise AssertionError("\n".join(complaints) + "\nthe log:\n" + self.log())


def connectable(listening):
    """`http://0.0.0.0:8000` or `unix:/x` from the log, as something to connect to."""
    if listening.startswith("unix:"):
        return listening[len("unix:"):]
    host, _, port = listening.split("://", 1)[1].rpartition(":")
    host = host.strip("[]")
    return ({"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host), int(port))


def environ_bytes(pid):
    try:
        with open("/proc/%d/environ" % pid, "rb") as f:
            return f.read()
    except OSError:
        return b""


def describe(pid):
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as f:
            return "%d %s" % (pid, f.read().replace(b"\0", b" ").decode("utf-8", "replace"))
    except OSError:
        return str(pid)
