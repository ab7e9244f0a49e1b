"""The page of rules names what there is; and the bounds that no single request shows."""
import os
import re
import resource
import socket
import threading

import pytest

import wire
from harness import ROOT, read_text, status_field

ROW = re.compile(r"^\| (\d+)\.(\d+) \| ([^|]+) \| ([^|]*) \| `([^`|]+)` \| ([^|]+) \|$", re.M)


def rules():
    """(section, number, rule, function, [test]) of each row of the page."""
    found = ROW.findall(read_text(os.path.join(ROOT, "docs", "http.md")))
    return [(int(section), int(number), rule, function, re.findall(r"`([^`]+)`", tests))
            for section, number, rule, _, function, tests in found]


def source(path):
    text = read_text(os.path.join(ROOT, "src", path))
    assert text, "src/%s is missing" % path
    return text


def test_every_rule_has_a_function_and_a_test():
    missing = []
    for section, number, rule, function, tests in rules():
        path, name = function.split(": ")
        code = source(path).split("#[cfg(test)]")[0]
        if not re.search(r"\bfn %s\b" % name, code):
            missing.append("%d.%d %s: no function %s" % (section, number, rule, function))
        for test in tests:
            path, name = test.split(": ")
            if path.endswith(".rs"):
                there = re.search(r"#\[test\]\s+fn %s\(" % name, source(path))
            else:
                there = re.search(r"^def %s\(" % name, read_text(os.path.join(ROOT, "tests", path)), re.M)
            if not there:
                missing.append("%d.%d %s: no test %s" % (section, number, rule, test))
        if not tests:
            missing.append("%d.%d %s: no test" % (section, number, rule))
    assert not missing, "\n".join(missing)


def test_the_rules_are_numbered_without_a_gap():
    numbers = {}
    for section, number, *_ in rules():
        numbers.setdefault(section, []).append(number)
    assert sorted(numbers) == list(range(3, 13))
    for section, found in numbers.items():
        assert found == list(range(1, len(found) + 1)), section
    # A row that the pattern does not know would be checked by nobody.
    page = read_text(os.path.join(ROOT, "docs", "http.md"))
    assert len(re.findall(r"^\| \d+\.\d+ \|", page, re.M)) == len(rules()) >= 70


# --- bounds ---

@pytest.fixture
def descriptors():
    """Room for some thousands of them, in this process and in those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip("only %d descriptors are allowed" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(running):
    return sum(status_field(pid, "VmRSS") for pid in running.workers())


SLOW = [b"", b"G", b"GET / HTTP/1.1\r\nHost: test\r\nX: ", b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n1;x"]


def test_two_thousand_slow_clients(server, descriptors):
    """One worker, one thread. They drip an octet at a time; everybody else is served, and what they cost is bounded."""
    running = server("apps.echo", "--worker-connections", "4000", "--header-timeout", "100", "--body-timeout", "100",
                     "--keep-alive", "100")
    assert running.get().status == 200
    running.wait_workers(1)
    before = memory(running)
    slow = []
    try:
        for n in range(2000):
            connection = socket.create_connection(running.address, 20)
            connection.sendall(SLOW[n % len(SLOW)])
            slow.append(connection)
        for turn in range(3):
            for n, connection in enumerate(slow):
                if n % len(SLOW):
                    connection.sendall(b"x" if n % len(SLOW) > 1 or turn else b"E")
                if n % 50 == 0:
                    assert running.get("/turn").status == 200
        with running.connect() as connection:
            for _ in range(50):
                assert connection.exchange("POST", "/", (), b"hello").status == 200
        # In kB: a connection that waits has its own few octets and no buffer of the usual size.
        assert memory(running) - before < 2000 * 8, "%d kB for 2000 connections" % (memory(running) - before)
    finally:
        for connection in slow:
            connection.close()


def test_many_heads_and_names_leave_nothing(server):
    """Each connection with a field name of its own, of full length, and gone again: the memory is that of the first."""
    running = server("apps.hello")
    running.wait_workers(1)

    def crowd(first, count):
        for n in range(first, first + count):
            fields = [("X-%d-%d" % (n, m), "v" * 50) for m in range(60)]
            assert running.get("/", fields).status == 200
    crowd(0, 150)
    before = memory(running)
    crowd(150, 600)
    assert memory(running) - before < 2048, "%d kB more" % (memory(running) - before)


def test_pipelining_keeps_nobody_waiting(server):
    """One thread; a client whose requests never end has its turn like everybody else."""
    running = server("apps.hello", "--keep-alive", "30")
    ended = threading.Event()
    greedy = running.connect()
    greedy.sock.settimeout(0.2)
    drunk = []

    def pour():
        requests, at = wire.request_bytes() * 200, 0
        while not ended.is_set():
            try:
                at = (at + greedy.sock.send(requests[at:])) % len(requests)
            except socket.timeout:
                pass  # Its answers are in the way; they are being read.

    def drink():
        while not ended.is_set():
            try:
                drunk.append(len(greedy.sock.recv(1 << 16)))
            except socket.timeout:
                pass
    threads = [threading.Thread(target=work, daemon=True) for work in (pour, drink)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            assert running.get("/").status == 200
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        greedy.close()
    # It was served all the time, and never told to go.
    assert sum(drunk) > 100000 and 0 not in drunk
