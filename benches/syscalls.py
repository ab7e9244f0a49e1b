"""System calls per request, counted by strace in a run of its own: it slows the server down, so no time is taken from it."""

import re
import shutil
import signal
import subprocess
import time

from server import Failure

ATTACH_SECONDS = 5
LINE = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$")
# Fewer of a call than one in fifty requests says nothing about the path of a request.
LEAST = 0.02


def available():
    return shutil.which("strace") is not None


def counted(env, server, load):
    """{name: calls per request} of all processes of the server while `load` runs."""
    output = env.scratch / "strace.txt"
    output.unlink(missing_ok=True)
    targets = [option for pid in server.pids() for option in ("-p", str(pid))]
    command = ["strace", "-f", "-c", "-U", "time-percent,total-time,avg-time,calls,errors,name", "-o", str(output), *targets]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_attached(tracer, server)
        requests = load().requests
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=30)
    calls = {name: int(count) for count, name in parsed(output.read_text())}
    return {name: count / requests for name, count in calls.items() if count / requests >= LEAST}


def parsed(text):
    found = (LINE.match(line) for line in text.splitlines())
    return [match.groups() for match in found if match and match.group(2) != "total"]


def wait_until_attached(tracer, server):
    """The kernel names the tracer of each process (proc(5), TracerPid)."""
    deadline = time.monotonic() + ATTACH_SECONDS
    while not all(is_traced(pid) for pid in server.pids()):
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"strace cannot attach: {tracer.stderr.readline().strip()}")
        time.sleep(0.02)


def is_traced(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
    except OSError:
        return True


def table(rows, label):
    """Markdown: a row a server, the total first, then what it is made of."""
    lines = ["| server | system calls a request | of which |", "| --- | ---: | --- |"]
    for row, calls in rows.items():
        most = sorted(calls.items(), key=lambda item: -item[1])
        lines.append(f"| {label(row)} | {sum(calls.values()):.1f} | {', '.join(f'{name} {count:.2f}' for name, count in most)} |")
    return "\n".join(lines) + "\n"
