"""One measurement: start a server, check it, warm it up, load it, read what it cost, stop it."""

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass

import nginx
import syscalls
from load import bulk, wait_until_right, wrk
from peers import HOST, PEERS, Start
from server import Failure, Server, busy_seconds, cpu_between
from workloads import LOG

WARM_UP_SECONDS = 1
LOG_SECONDS = 3
UPLOAD_CHECK = b"12345"


@dataclass
class Sample:
    """Times in µs per request, `pss` in bytes, `foreign` the share of the machine that others used meanwhile."""

    cpu: float = 0.0
    user: float = 0.0
    system: float = 0.0
    rps: float = 0.0
    p50: int = 0
    p99: int = 0
    p999: int = 0
    errors: int = 0
    foreign: float = 0.0
    pss: int = 0
    requests: int = 0


def measure(env, workload, row, seconds):
    if row == "alone":
        return measure_alone(env, workload, seconds)
    with ExitStack() as stack:
        return measure_server(env, workload, row, seconds, stack)


def count_syscalls(env, workload, row, seconds):
    """{system call: how many a request}"""
    with ExitStack() as stack:
        server, _, port = started(env, workload, row, stack)
        apply_load(env, workload, port, WARM_UP_SECONDS, None)
        return syscalls.counted(env, server, lambda: apply_load(env, workload, port, seconds, None))


def measure_server(env, workload, row, seconds, stack):
    server, front, port = started(env, workload, row, stack)
    _, client_cpus = split_cpus(workload)
    warm = apply_load(env, workload, port, WARM_UP_SECONDS, client_cpus)
    sample = sample_of(server, front, lambda: apply_load(env, workload, port, seconds, client_cpus))
    if row.endswith(LOG):
        check_log(env.scratch / "access.log", warm.requests + sample.requests)
    return sample


def started(env, workload, row, stack):
    """(the server, Nginx in front of it, the port to ask), checked."""
    name = row[: -len(LOG)] if row.endswith(LOG) else row
    start = ask_for(env, workload, logged=row.endswith(LOG))
    server_cpus, _ = split_cpus(workload)
    command = PEERS[name].command(env, start)
    log = env.scratch / f"{row}.log"
    server = stack.enter_context(Server(command, workload.folder, log, workload.environ, server_cpus))
    port, front = start.port, None
    if workload.front:
        port = free_port()
        front = stack.enter_context(nginx.start(env.scratch, port, start, native=name == "uwsgi-native"))
    kept = check(server, workload, port)
    if PEERS[name].keeps and not kept and not workload.close and workload.kind in ("wrk", "pss"):
        raise Failure("the connection was not kept")
    return server, front, port


def ask_for(env, workload, logged):
    unix = env.scratch / "app.sock" if workload.front == "unix" else None
    if unix and unix.exists():
        unix.unlink()
    access_log = env.scratch / "access.log" if logged else None
    if access_log and access_log.exists():
        access_log.unlink()
    port = 0 if unix else free_port()
    return Start(
        workload.app,
        port,
        unix,
        workload.workers,
        access_log,
        workload.close,
        keepalive=75 if workload.upstream_kept else None,
        upstream_kept=workload.upstream_kept,
    )


def check(server, workload, port):
    body = UPLOAD_CHECK if workload.kind == "put" else None
    return wait_until_right(server, port, workload.path, workload.right, body, workload.close)


def check_log(path, requests):
    """A line for every request; a server that writes them in batches gets a moment for the last one."""
    deadline = time.monotonic() + LOG_SECONDS
    while (lines := path.read_bytes().count(b"\n")) < requests:
        if time.monotonic() > deadline:
            raise Failure(f"{lines} lines in the access log for {requests} requests")
        time.sleep(0.1)


def apply_load(env, workload, port, seconds, cpus):
    if workload.kind in ("get", "put"):
        return bulk(env, port, workload.path, seconds, workload.count, workload.kind, workload.size, cpus)
    url = f"http://{HOST}:{port}{workload.path}"
    return wrk(url, seconds, workload.connections, workload.close, cpus)


def sample_of(server, front, load):
    """What the server spent while `load` ran, which returns what it got."""
    busy, began, before = busy_seconds(), time.monotonic(), server.cpu()
    front_before = front.cpu() if front else {}
    done = load()
    total, user, system = cpu_between(before, server.cpu())
    front_cpu = cpu_between(front_before, front.cpu())[0] if front else 0.0
    elapsed = time.monotonic() - began
    foreign = busy_seconds() - busy - total - front_cpu - done.client_cpu
    scale = 1e6 / done.requests
    return Sample(
        cpu=total * scale,
        user=user * scale,
        system=system * scale,
        rps=done.requests / done.seconds,
        p50=done.p50,
        p99=done.p99,
        p999=done.p999,
        errors=done.errors,
        foreign=max(0.0, foreign / (elapsed * os.cpu_count())),
        pss=server.pss(),
        requests=done.requests,
    )


def measure_alone(env, workload, seconds):
    """The application called without a server: what no server can go below."""
    script = os.path.join(os.path.dirname(__file__), "alone.py")
    command = [env.python, script, workload.app, workload.path, str(seconds)]
    cpus, _ = split_cpus(workload)
    done = subprocess.run(
        command,
        cwd=workload.folder,
        env=dict(os.environ, **workload.environ),
        text=True,
        capture_output=True,
        timeout=seconds + 60,
        preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise Failure(f"alone: {done.stderr.strip()[-200:]}")
    values = json.loads(lines[-1][len("RESULT ") :])
    scale = 1e6 / values["requests"]
    return Sample(
        cpu=values["cpu"] * scale,
        user=values["user"] * scale,
        system=values["system"] * scale,
        rps=values["requests"] * 1e6 / values["duration_us"],
        p50=values["p50"],
        p99=values["p99"],
        p999=values["p999"],
    )


def split_cpus(workload):
    """One worker: the server (with all its threads) on one core and the client on the others, so that each server has
    exactly one core. More workers, or Nginx in front: the scheduler decides."""
    return (None, None) if workload.workers > 1 or workload.front else apart()


def apart():
    """(the server's, the client's), or no division on a machine with one core."""
    cpus = sorted(os.sched_getaffinity(0))
    return ({cpus[0]}, set(cpus[1:])) if len(cpus) > 1 else (None, None)


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
