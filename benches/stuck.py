"""A slow request that is in the application of a chosen worker, and how many connections that worker holds."""

import http.client
import os
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from load import READY_SECONDS
from peers import HOST
from server import Failure

TRIES, ATTEMPTS = 8, 5


class SlowRequest(threading.Thread):
    """Its application is tail.py, which writes the worker's process id to the file `mark`."""

    def __init__(self, connection, mark, seconds):
        super().__init__(daemon=True)
        self.connection, self.mark, self.seconds, self.status = connection, mark, seconds, "no answer"

    def reach(self):
        """Starts it; the process id of the worker that has it."""
        self.mark.unlink(missing_ok=True)
        self.start()
        deadline = time.monotonic() + READY_SECONDS
        while not self.mark.exists():
            if time.monotonic() > deadline or not self.is_alive():
                raise Failure(f"the slow request did not reach the application: {self.status}")
            time.sleep(0.005)
        return int(self.mark.read_text())

    def run(self):
        try:
            self.connection.request("GET", f"/slow?ms={self.seconds * 1000:.0f}&mark=1")
            self.status = self.connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            self.status = repr(error)

    def finish(self):
        self.join(self.seconds + READY_SECONDS)
        if self.status != 200:
            raise Failure(f"the slow request: {self.status}")


@contextmanager
def connection_to_fullest(site):
    """A connection at the worker that holds the most; any one, where no worker holds connections."""
    held = {pid: connections_of(pid, site.port) for pid in site.server.pids()}
    fullest = max(held, key=held.get) if any(held.values()) else None
    connection = connection_to(fullest, site.port)
    try:
        yield connection
    finally:
        connection.close()


def connection_to(pid, port):
    """One that this process has answered on; the last one tried, when it is None or answers on none of them."""
    for _ in range(ATTEMPTS):
        tried = [http.client.HTTPConnection(HOST, port, timeout=60) for _ in range(TRIES)]
        answered = pids(tried)
        chosen = tried.pop(answered.index(pid) if pid in answered else -1)
        for other in tried:
            other.close()
        if pid is None or pid in answered:
            return chosen
    return chosen


def pids(connections):
    """Of which worker each is; asked all at once, so that no worker gets them all."""
    for connection in connections:
        connection.request("GET", "/pid")
    return [int(connection.getresponse().read()) for connection in connections]


def connections_of(pid, port):
    """How many established connections to that port a process holds."""
    inodes = {fields[9] for fields in established(port)}
    return sum(target.startswith("socket:[") and target[len("socket:[") : -1] in inodes for target in descriptors(pid))


def descriptors(pid):
    """What each refers to, as far as it is still there."""
    targets = []
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                targets.append(os.readlink(descriptor))
    return targets


def established(port):
    """The fields of /proc/net/tcp of the server's ends."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [fields for fields in lines if fields[1].endswith(f":{port:04X}") and fields[3] == "01"]
