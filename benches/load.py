"""Clients: wrk for many small requests, bulk (bulk.c) for large bodies, and one careful client that checks the answers."""

import http.client
import json
import resource
import socket
import subprocess
import time
from dataclasses import dataclass

from environment import BENCHES
from peers import HOST
from server import Failure

READY_SECONDS = 15


@dataclass(frozen=True)
class Traffic:
    requests: int
    seconds: float
    errors: int
    p50: int
    p99: int
    p999: int
    client_cpu: float


def wrk(url, seconds, connections, close=False, cpus=None):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(BENCHES / "wrk.lua")]
    command += ["-H", "Connection: close"] if close else []
    return traffic([*command, url], seconds + 30, cpus)


def bulk(env, port, path, seconds, count, kind, size, cpus=None):
    command = [env.program("bulk"), str(port), path, str(count), str(seconds), kind, str(size)]
    return traffic(command, seconds + 60, cpus)


def traffic(command, limit, cpus=None):
    """Runs a client to its end and reads its RESULT line."""
    if cpus:
        command = ["taskset", "-c", ",".join(map(str, sorted(cpus))), *command]
    before = children_cpu()
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failure(f"the client did not finish in {limit} s")
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        raise Failure(f"client: {' '.join((done.stderr or done.stdout).split())[-200:]}")
    values = json.loads(result[-1][len("RESULT ") :])
    if not values["requests"]:
        raise Failure("no request was answered")
    return Traffic(
        values["requests"],
        values["duration_us"] / 1e6,
        values["errors"],
        values["p50"],
        values["p99"],
        values["p999"],
        children_cpu() - before,
    )


def children_cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# -- checks -------------------------------------------------------------------------------------------------------------


class WrongAnswer(http.client.HTTPException):
    """Not what the workload expects; while a server starts that may change."""


def wait_until_right(server, port, path, right, body=None, close=False):
    """Asks until the server answers and `right(body)` holds. True: the connection was kept for a second request."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            return ask_twice(port, path, right, body, close)
        except (OSError, http.client.HTTPException) as error:
            if not server.alive():
                raise Failure(f"did not start: {server.last_words()}")
            if time.monotonic() > deadline:
                raise Failure(f"no right answer in {READY_SECONDS} s: {error!r}; {server.last_words()}")
            time.sleep(0.05)


def ask_twice(port, path, right, body, close):
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    try:
        connection.connect()
        connection.auto_open = 0
        ask(connection, path, right, body, close)
        if close:
            return not closed_by_server(connection)
        try:
            ask(connection, path, right, body, close)
        except WrongAnswer:
            raise
        except (OSError, http.client.HTTPException):
            return False
        return True
    finally:
        connection.close()


def ask(connection, path, right, body, close):
    headers = {"Connection": "close"} if close else {}
    connection.request("POST" if body else "GET", path, body=body, headers=headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200 or not right(answer):
        raise WrongAnswer(f"{response.status} {answer[:80]!r}")


def closed_by_server(connection):
    """http.client has let go of the socket when the answer announced the close; else the close must be there to see."""
    if connection.sock is None:
        return True
    connection.sock.settimeout(5)
    try:
        return connection.sock.recv(1) == b""
    except socket.timeout:
        raise Failure("the connection stays open against `Connection: close`")
