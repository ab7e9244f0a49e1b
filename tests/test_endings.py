"""Every ending is noticed: each signal and exit codes, of a worker, one that boots, a mold, the new server of an upgrade, and a
child of a hook. Each is told in the log by its name, and what has ended is made anew.
"""
import os
import re
import signal
import subprocess
import sys
from signal import SIGABRT, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGUSR2

import pytest

import harness
from harness import alive, wait_until

EVERY = range(1, 65)
HALTS = {SIGSTOP, SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
# What ends nobody who has not said so (signal(7)), and what Python ignores.
HARMLESS = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}
# What has a meaning for the server's processes.
HEARD = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, signal.SIGUSR1, SIGUSR2}
# For the stacks of all threads; and what the C library has a handler for once there are threads (nptl(7)).
STACKS, SETXID = signal.SIGRTMIN + 7, 33
# What this process was started to ignore, the server's processes ignore as well (execve(2)).
IGNORED = {n for n in EVERY if harness.signals_ignored() >> (n - 1) & 1} - PYTHON_IGNORES
DEADLY = [n for n in EVERY if n not in HALTS | HARMLESS | IGNORED]
CODES = [0, 1, 2, 3, 4, 5, 42, 126, 127, 128, 129, 137, 255]

APP = """
    import os, threading, time

    open("loading-%d" % os.getpid(), "w").close()
    while os.path.exists("hold"):
        time.sleep(0.02)

    def leave():
        while not os.path.exists("exit-%d" % os.getpid()):
            time.sleep(0.02)
        os._exit(int(open("exit-%d" % os.getpid()).read()))

    threading.Thread(target=leave, daemon=True).start()

    def app(environ, start_response):
        start_response("200 OK", [("X-Pid", str(os.getpid()))])
        return [b"served"]
"""


def name(number):
    """As the log has it."""
    if number > signal.SIGRTMIN:
        return "SIGRTMIN+%d" % (number - signal.SIGRTMIN)
    if number == signal.SIGRTMIN:
        return "SIGRTMIN"
    if number in (32, 33):
        return "signal %d" % number
    return {16: "SIGSTKFLT", 29: "SIGIO"}.get(number) or signal.Signals(number).name


def killed_by(number):
    return r"was killed by %s(?: \(core dumped\))?\b" % re.escape(name(number))


def batches(numbers, size):
    numbers = list(numbers)
    return [numbers[at:at + size] for at in range(0, len(numbers), size)]


def wait_ready(running, count):
    def ready():
        said = {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", running.log())}
        return sorted(said & set(running.workers()))
    return wait_until(lambda: len(ready()) == count and ready(), 40, running.log)


def leave(running, pid, code):
    running.write("exit-%d" % pid, str(code))


def test_a_worker(server):
    running = server(APP, "-w", "12", "--log-level", "debug")
    running.expect_errors()
    deadly = [n for n in DEADLY if n not in PYTHON_IGNORES | HEARD | {STACKS, SETXID}]
    ends = [(number, None, killed_by(number)) for number in deadly if number != SIGABRT]
    ends += [(number, None, r"exited with code 0\b") for number in (SIGTERM, SIGINT, SIGQUIT, SIGABRT)]
    ends += [(None, code, r"exited with code %d\b" % code) for code in CODES]
    for batch in batches(ends, 12):
        for pid, (number, code, words) in zip(wait_ready(running, 12), batch):
            leave(running, pid, code) if number is None else os.kill(pid, number)
            running.wait_log(r"Worker \(pid:%d\) %s" % (pid, words))
    workers = wait_ready(running, 12)
    for number in EVERY:
        if number not in deadly and number not in (SIGTERM, SIGINT, SIGQUIT, SIGUSR2):
            os.kill(workers[0], number)
            os.kill(workers[0], SIGCONT)
    assert {running.get("/").status for _ in range(24)} == {200}
    assert wait_ready(running, 12) == workers
    assert running.stop() == 0


def test_a_worker_that_boots(server):
    """All at once, as the pauses before the next ones grow."""
    deadly = [n for n in DEADLY if n not in PYTHON_IGNORES | HEARD | {SIGABRT, STACKS}]
    running = server(APP, "-w", str(len(deadly)))
    running.expect_errors()
    ready = wait_ready(running, len(deadly))
    running.touch("hold")
    for pid in ready:
        os.kill(pid, SIGTERM)
    booting = wait_until(lambda: loading(running, len(deadly)), 40, running.log)
    for pid, number in zip(booting, deadly):
        os.kill(pid, number)
    for pid, number in zip(booting, deadly):
        running.wait_log(r"Worker \(pid:%d\) %s.* It had not finished booting" % (pid, killed_by(number)))
    assert running.stop() == 0


def loading(running, count):
    """Those that are held while they import."""
    found = [pid for pid in running.workers() if running.exists("loading-%d" % pid)]
    return found if len(found) == count else None


def test_a_worker_that_boots_is_replaced(server):
    running = server(APP, "-w", "1")
    running.expect_errors()
    first = wait_ready(running, 1)[0]
    running.touch("hold")
    os.kill(first, SIGKILL)
    wait_until(lambda: not alive(first))
    booting = wait_until(lambda: loading(running, 1), 20, running.log)
    os.kill(booting[0], signal.SIGRTMIN + 3)
    running.wait_log(r"Worker \(pid:%d\) was killed by SIGRTMIN\+3\b.* It had not finished booting" % booting[0])
    os.remove(running.path("hold"))
    wait_ready(running, 1)


# --- the mold ---

def mold(running):
    """The pid of the mold that is ready, or None."""
    found = [pid for pid in harness.children(running.pid) if running.exists("loading-%d" % pid) and alive(pid)]
    return found[0] if len(found) == 1 else None


def mold_ends():
    deadly = [n for n in DEADLY if n not in PYTHON_IGNORES | HEARD | {STACKS, SETXID}]
    return [(number, None) for number in deadly] + [(None, code) for code in CODES]


@pytest.mark.parametrize("part", range(4))
def test_a_mold(server, part):
    running = server(APP, "-w", "1", "--preload")
    running.expect_errors()
    worker = wait_ready(running, 1)
    before = None
    for number, code in mold_ends()[part::4]:
        pid = wait_until(lambda: mold(running) not in (None, before) and mold(running), 30, running.log)
        leave(running, pid, code) if number is None else os.kill(pid, number)
        words = r"exited with code %d\b" % code if number is None else killed_by(number)
        running.wait_log(r"Mold \(pid:%d\) %s" % (pid, words))
        before = pid
    wait_until(lambda: mold(running) not in (None, before), 30, running.log)
    os.kill(worker[0], signal.SIGRTMAX)
    wait_until(lambda: running.workers() not in ([], worker), 30, running.log)
    assert running.get("/").text == "served"
    assert running.stop() == 0


# --- the new server of an upgrade ---

CONFIG = """
import os

if os.path.exists("exit"):
    os._exit(int(open("exit").read()))
"""


def successors(running):
    return [int(pid) for pid in re.findall(r"Started a new server beside this one \(pid: (\d+)\)", running.log())]


def upgrade(running):
    before = len(successors(running))
    os.kill(running.pid, SIGUSR2)
    return wait_until(lambda: len(successors(running)) > before and successors(running)[-1], 20, running.log)


@pytest.mark.parametrize("part", range(4))
def test_the_new_server_of_an_upgrade(server, part):
    running = server(APP, "-w", "1", config=CONFIG)
    running.expect_errors()
    worker = wait_ready(running, 1)
    deadly = [n for n in DEADLY if n not in PYTHON_IGNORES | HEARD | {STACKS}]
    for number in deadly[part::4]:
        new = upgrade(running)
        wait_until(lambda: harness.children(new), 20, running.log)
        os.kill(new, number)
        running.wait_log(r"Upgrade failed: the new server \(pid:%d\) %s" % (new, killed_by(number)))
    for code in CODES[part::4]:
        running.write("exit", str(code))
        words = r"has stopped" if code == 0 else r"exited with code %d\b" % code
        running.wait_log(r"[Tt]he new server \(pid:%d\) %s" % (upgrade(running), words))
    assert running.get("/").header("X-Pid") == str(worker[0])
    assert running.stop() == 0


# --- a child of a hook ---

HOOK = """
import subprocess

# What is not forgotten is not waited for by subprocess.
MADE = []

def when_ready(server):
    for code in CODES:
        MADE.append(subprocess.Popen(["sh", "-c", "exit %d" % code]))
    for number in DEADLY:
        MADE.append(subprocess.Popen(["sleep", "600"]))
    with open("made", "w") as f:
        f.write(" ".join(str(made.pid) for made in MADE[len(CODES):]))
"""


def test_a_child_of_a_hook(server):
    numbers = "CODES, DEADLY = %r, %r\n" % (CODES, [int(number) for number in DEADLY])
    running = server(APP, "-w", "1", "--log-level", "debug", config=numbers + HOOK)
    worker = wait_ready(running, 1)
    made = [int(pid) for pid in wait_until(lambda: running.read("made").split(), 20, running.log)]
    for pid, number in zip(made, DEADLY):
        os.kill(pid, number)
    for pid, number in zip(made, DEADLY):
        running.wait_log(r"Reaped process %d, which %s" % (pid, killed_by(number)))
    for code in CODES:
        running.wait_log(r"Reaped process \d+, which exited with code %d\b" % code)
    assert wait_ready(running, 1) == worker
    assert running.stop() == 0


# --- endings that the arbiter does not get ---

def test_a_hook_that_has_children_ignored(server):
    """SIGCHLD is ignored, and the kernel reaps: no signal says that a worker has ended, and no status how."""
    ignore = "import signal\ndef when_ready(server): signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    running = server(APP, "-w", "2", config=ignore)
    running.expect_errors(r"Worker \(pid:\d+\) ended, and it is not known how")
    first = wait_ready(running, 2)
    for pid in first:
        os.kill(pid, SIGKILL)
        running.wait_log(r"Worker \(pid:%d\) ended, and it is not known how" % pid)
    wait_ready(running, 2)
    assert running.get("/").text == "served"
    assert running.stop() == 0


def test_a_hook_that_reaps_workers(server):
    """One is noticed as ever, and a hook takes the status of the other."""
    running = server(APP, "-w", "2", config="import os\n"
                     "def child_exit(server, worker):\n"
                     "    while os.path.exists('steal'):\n"
                     "        if os.waitpid(-1, os.WNOHANG)[0]:\n"
                     "            os.remove('steal')\n")
    running.expect_errors(r"Worker \(pid:\d+\) (ended, and it is not known how|was killed by SIGRTMIN\b)")
    first = wait_ready(running, 2)
    running.touch("steal")
    for pid in first:
        os.kill(pid, signal.SIGRTMIN)
    running.wait_log(r"Worker \(pid:\d+\) was killed by SIGRTMIN\b")
    running.wait_log(r"Worker \(pid:\d+\) ended, and it is not known how")
    wait_ready(running, 2)
    assert running.stop() == 0


PTRACE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
# PTRACE_SEIZE
if libc.ptrace(0x4206, int(sys.argv[1]), None, None) != 0:
    sys.exit(ctypes.get_errno())
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_stop_waits_for_nobody_for_ever(server):
    """A debugger has a worker, which can be killed but not reaped until the debugger lets go of it."""
    running = server(APP, "-w", "2", "--graceful-timeout", "1")
    running.expect_errors()
    held = wait_ready(running, 2)[0]
    debugger = subprocess.Popen([sys.executable, "-c", PTRACE, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if debugger.stdout.readline() != b"has it\n":
            pytest.skip("processes cannot be traced here")
        assert running.stop() == 0
        running.wait_log(r"Worker \(pid:%d\) was killed 10 s ago and has not ended" % held)
    finally:
        debugger.kill()
        debugger.wait()


# --- a kernel without pidfds ---

WITHOUT_PIDFDS = """
import ctypes, os, struct, sys

def filters(*rows):
    return b"".join(struct.pack("=HBBI", *row) for row in rows)

# The number of the system call; pidfd_open gets ENOSYS, all others pass (seccomp(2)).
program = filters((0x20, 0, 0, 0), (0x15, 0, 1, 434), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7fff0000))
rows = ctypes.create_string_buffer(program, len(program))
which = struct.pack("@HP", len(program) // 8, ctypes.addressof(rows))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(which, len(which))) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_a_kernel_without_pidfds(server, options):
    running = server(APP, "-w", "2", *options, prefix=[sys.executable, "-c", WITHOUT_PIDFDS])
    running.expect_errors(r"was killed by", r"was sent SIGKILL")
    first = wait_ready(running, 2)
    os.kill(first[0], signal.SIGRTMAX)
    running.wait_log(r"Worker \(pid:%d\) was killed by SIGRTMIN\+30" % first[0])
    wait_ready(running, 2)
    os.kill(running.pid, SIGHUP)
    running.wait_log("Reload complete")
    assert running.stop() == 0
    assert len(re.findall("cannot be by pidfd", running.log())) == 1
