"""One started server: its processes, their CPU time and memory, and its end.

A server gets a session of its own; its processes are those of that session and their descendants, and only they are signalled.
"""

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

STOP_SECONDS = 10
# What would change how a gunicorn-like server is configured behind the harness's back.
HIDDEN = ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "DJANGO_SETTINGS_MODULE")


class Failure(Exception):
    """A server that did not start, answered wrongly or died: reported in the table, the run goes on."""


class Server:
    """`cpus`: the only ones its processes may use; `files`: whether they may open as many as the system allows."""

    def __init__(self, command, cwd, log, extra_env=None, cpus=None, files=False):
        environ = {k: v for k, v in os.environ.items() if k not in HIDDEN}
        environ.update(extra_env or {})
        self.log = Path(log)
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=(lambda: allow(cpus, files)) if cpus or files else None,
            )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def alive(self):
        return self.process.poll() is None

    def last_words(self):
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) or "it printed nothing"

    def pids(self):
        return family(self.pid)

    def cpu(self):
        """What the CPU clock of each process shows now; see `cpu_between`."""
        return {pid: clock for pid in self.pids() for clock in [cpu_clock(pid)] if clock}

    def pss(self):
        """Proportional set size of all processes, in bytes."""
        return sum(pss_bytes(pid) for pid in self.pids())

    def stop(self):
        """TERM to the main process, as an operator would; whatever is left after STOP_SECONDS is killed."""
        pids = self.pids()
        if self.alive():
            self.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        while any(member(pid, self.pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in pids:
            if member(pid, self.pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def allow(cpus, files):
    if cpus:
        os.sched_setaffinity(0, cpus)
    if files:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def stat_fields(pid):
    """/proc/PID/stat from the state on (field 3 has index 0), or None."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def member(pid, session):
    fields = stat_fields(pid)
    return bool(fields) and int(fields[3]) == session and fields[0] not in "ZX"


def family(root):
    """The live processes of the session `root` leads, and all descendants of them."""
    parents, found = {}, set()
    for entry in os.listdir("/proc"):
        fields = stat_fields(entry) if entry.isdigit() else None
        if fields and fields[0] not in "ZX":
            parents[int(entry)] = int(fields[1])
            if int(fields[3]) == root or int(entry) == root:
                found.add(int(entry))
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found)
        found |= more


def cpu_clock(pid):
    """(seconds, user ticks, system ticks), or None. The seconds come from the process's CPU clock, which counts nanoseconds
    of all its threads, also finished ones; /proc's ticks only divide them into user and system."""
    fields = stat_fields(pid)
    try:
        return fields and (time.clock_gettime((~pid << 3) | 2), int(fields[11]), int(fields[12]))
    except OSError:
        return None


def cpu_between(before, after):
    """(total, user, system) seconds between two answers of Server.cpu()."""
    if set(before) - set(after):
        raise Failure("a process of the server ended during the measurement")
    zero = (0.0, 0, 0)
    deltas = [[a - b for a, b in zip(now, before.get(pid, zero))] for pid, now in after.items()]
    total, user, system = (sum(column) for column in zip(*deltas))
    share = user / (user + system) if user + system else 0.0
    return total, total * share, total * (1 - share)


def pss_bytes(pid):
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def busy_seconds():
    """CPU time that the whole machine has spent on anything, and that was stolen from it."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
