"""A ledger of requests: the application enters each into it before it answers, and the clients note what they were told.

Afterwards both are compared: run at most once, answered exactly once, and lost only where the test says it may be.
"""
import itertools
import os
import random
import threading
import time
from collections import Counter

import wire
from harness import wait_until

APP = """
    import os, time

    HERE = os.getcwd()

    # Open from the first request on: there may be no descriptor to be had later.
    BOOKS = {}

    def enter(name):
        pid = os.getpid()
        if pid not in BOOKS:
            BOOKS[pid] = os.open(os.path.join(HERE, "ledger-%d" % pid), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(BOOKS[pid], name.encode() + b"\\n")

    def app(environ, start_response):
        name, _, seconds = environ["QUERY_STRING"].partition("&")
        enter(name)
        if seconds:
            time.sleep(float(seconds))
        body = name.encode() + environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [body]
"""

# Another one takes another course.
SEED = int(os.environ.get("CHAOS_SEED", "1"))
ANSWERED, CLOSED, LEFT, REFUSED = "answered", "closed without an octet", "left by the client", "answered by the server itself"
CUT, ABSENT = "cut before its end", "nobody was there to ask"


class Client:
    """Asks on one connection, and takes a new one when that is closed."""

    def __init__(self, running, number, seed, refusals, slow, outlasts):
        self.refusals, self.slow, self.outlasts = refusals, slow, outlasts
        self.address = running.address
        self.number = number
        self.random = random.Random(seed * 1000 + number)
        self.told = {}
        self.faults = []
        self.connection = None
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.stop = threading.Event()

    def work(self):
        try:
            for serial in itertools.count():
                if self.stop.is_set():
                    break
                name = "%d-%d" % (self.number, serial)
                self.told[name] = self.ask(name)
        except Exception as error:
            self.faults.append("client %d: %r" % (self.number, error))
        finally:
            if self.connection:
                self.connection.close()

    def ask(self, name):
        """One request: often quick, now and then slow, sometimes sent in pieces or with a body."""
        if self.connection is None:
            try:
                self.connection = wire.Connection(self.address)
            except (ConnectionRefusedError, ConnectionResetError):
                if self.outlasts:
                    # Another server will come.
                    time.sleep(0.01)
                    return ABSENT
                # The server has come to its end.
                self.stop.set()
                return CLOSED
        slow = "&%.3f" % self.random.uniform(0.05, 0.3) if self.random.random() < self.slow else ""
        body = b"+body" if self.random.random() < 0.2 else None
        request = wire.request_bytes("POST" if body else "GET", "/?" + name + slow, body=body)
        cut = self.random.randrange(len(request)) if self.random.random() < 0.3 else len(request)
        try:
            self.connection.send(request[:cut])
            if cut < len(request):
                time.sleep(self.random.uniform(0, 0.01))
                self.connection.send(request[cut:])
            if self.random.random() < 0.03:
                self.connection.reset()
                self.connection = None
                return LEFT
            if not self.first_octet():
                return self.lost()
        except (ConnectionResetError, BrokenPipeError):
            return self.lost()
        try:
            response = self.connection.read_response()
        except wire.ProtocolError:
            if not self.outlasts:
                raise
            self.lost()
            return CUT
        refused = response.status in self.refusals
        assert refused or response.status == 200 and response.body == name.encode() + (body or b""), (name, response)
        if response.closing:
            self.connection.expect_eof()
            self.connection.close()
            self.connection = None
        return REFUSED if refused else ANSWERED

    def first_octet(self):
        """Waits for it; false when the connection has ended instead."""
        return bool(self.connection.buffer or self.connection.sock.recv(1, wire.socket.MSG_PEEK))

    def lost(self):
        self.connection.close()
        self.connection = None
        return CLOSED


class Clients:
    """`refusals` are the statuses that the server itself may answer, `slow` is the share of requests that take long. Clients
    that outlast the server may see a response cut, and wait for another server by the same address."""

    def __init__(self, running, count, seed, refusals=(), slow=0.1, outlasts=False):
        self.all = [Client(running, number, seed, refusals, slow, outlasts) for number in range(count)]

    def __enter__(self):
        for client in self.all:
            client.thread.start()
        return self

    def __exit__(self, *_):
        for client in self.all:
            client.stop.set()
        for client in self.all:
            client.thread.join(40)

    def told(self):
        assert not [fault for client in self.all for fault in client.faults]
        return {name: what for client in self.all for name, what in client.told.items()}

    def answers(self):
        return sum(len(client.told) for client in self.all)

    def wait_answers(self, count):
        """So many more requests have come to an end."""
        goal = self.answers() + count
        wait_until(lambda: self.answers() >= goal or any(client.faults for client in self.all), 30)


def ledger(running):
    """(request, pid) for each time that a request was run."""
    found = []
    for name in os.listdir(running.path("")):
        if name.startswith("ledger-"):
            found += [(line, int(name[len("ledger-"):])) for line in running.read(name).splitlines()]
    return found


def compare(running, clients, killed):
    told = clients.told()
    entries = ledger(running)
    runs = Counter(name for name, _ in entries)
    by = dict(entries)
    assert not {name: count for name, count in runs.items() if count > 1}, "run more than once"
    assert not {name for name, what in told.items() if what == ANSWERED and name not in by}, "answered, never run"
    closed = {name for name, what in told.items() if what in (CLOSED, CUT)}
    assert not {(name, by[name]) for name in closed if name in by and by[name] not in killed}, "run, never answered"
    assert not {name for name, what in told.items() if what == ABSENT and name in by}, "run, never asked for"
    return told


def compare_all(running, clients):
    """And none is lost."""
    told = compare(running, clients, ())
    assert CLOSED not in told.values(), Counter(told.values())
