"""Many keep-alive connections to one server running `apps.tail`. None of them ever reconnects: that each is answered says
that none was closed.
"""
import os
import re
from collections import Counter
from itertools import count

import wire
from harness import wait_until

NUMBERS = count()


def wait_ready(running, workers):
    """The pids of so many workers, once the server counts on them."""
    def ready():
        assert running.running(), running.log()
        said = {int(pid) for pid in re.findall(r"Worker ready \(pid: (\d+)\)", running.log())}
        now = running.workers()
        return now if len(now) == workers and said >= set(now) else None
    return wait_until(ready, 20, lambda: "%d workers ready:\n%s" % (workers, running.log()))


def pid_of(response):
    return int(response.header("x-pid"))


class Crowd:
    def __init__(self, running, size, sources=(None,)):
        addresses = running.addresses
        self.connections = [wire.Connection(addresses[n % len(addresses)], source=sources[n % len(sources)])
                            for n in range(size)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for connection in self.connections:
            connection.close()

    def __len__(self):
        return len(self.connections)

    def ask(self, target="/", headers=()):
        """One request on each, all at once; the answers. Of a target without a query each is asked for its own."""
        queries = ["q%d" % next(NUMBERS) for _ in self.connections]
        for connection, query in zip(self.connections, queries):
            connection.send_request("GET", "%s?%s" % (target, query), headers)
        answers = [connection.read_response() for connection in self.connections]
        for answer, query in zip(answers, queries):
            assert answer.status == 200 and not answer.closing, answer
            assert target != "/" or answer.text == query, (answer, query)
        return answers

    def pids(self):
        """By whom each is served, one after the other."""
        found = []
        for connection in self.connections:
            answer = connection.exchange()
            assert answer.status == 200 and not answer.closing, answer
            found.append(pid_of(answer))
        return found

    def served_by(self, pid):
        """A connection that this worker has, if there is one."""
        return next((connection for connection, by in zip(self.connections, self.pids()) if by == pid), None)

    def counts(self):
        return Counter(self.pids())

    def halved(self):
        """Gives up every other connection of each worker; these, as a crowd of their own."""
        ranks = sorted(range(len(self)), key=self.pids().__getitem__)
        both = [[self.connections[n] for n in ranks[start::2]] for start in (0, 1)]
        other = object.__new__(Crowd)
        self.connections, other.connections = both
        return other

    def spread(self, workers):
        """Uses them until so many workers have some."""
        wait_until(lambda: len(self.counts()) >= workers, 20)
        return self


def begin(running, connection, path, name):
    """Sends a slow request; the worker that is inside it."""
    connection.send_request("GET", "%s?%s" % (path, name))
    return wait_inside(running, name)


def wait_inside(running, name):
    wait_until(lambda: running.exists("inside-" + name), 20, lambda: "a beginning of %s\n%s" % (name, running.log()))
    return int(running.read("inside-" + name))


def make_gate(running):
    os.mkfifo(running.path("gate"))


def open_gate(running):
    """Ends `/hold`. A fifo opened for both ends waits for nobody."""
    os.close(os.open(running.path("gate"), os.O_RDWR))
