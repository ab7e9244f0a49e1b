"""The page of rules names what there is; and the bounds that no single request shows."""
import os
import re
import resource
import socket
import threading

import pytest

import wire
from harness import ROOT, memory_of, read_text, wait_until

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


def is_there(test):
    """Whether there is such a test; `file: name`."""
    path, name = test.split(": ")
    if path.endswith(".rs"):
        return re.search(r"#\[test\]\s+fn %s\(" % name, source(path))
    return re.search(r"^def %s\(" % name, read_text(os.path.join(ROOT, "tests", path)), re.M)


def test_every_rule_has_a_function_and_a_test():
    missing = []
    for section, number, rule, function, tests in rules():
        path, name = function.split(": ")
        code = source(path).split("#[cfg(test)]")[0]
        if not re.search(r"\bfn %s\b" % name, code):
            missing.append("%d.%d %s: no function %s" % (section, number, rule, function))
        missing += ["%d.%d %s: no test %s" % (section, number, rule, test) for test in tests if not is_there(test)]
        if not tests:
            missing.append("%d.%d %s: no test" % (section, number, rule))
    assert not missing, "\n".join(missing)


def test_every_bound_has_a_test():
    page = read_text(os.path.join(ROOT, "docs", "http.md")).split("## Bounds")[1]
    rows = [row.strip("|").split(" | ") for row in re.findall(r"^\|.*\|$", page, re.M)[2:]]
    assert len(rows) >= 17 and all(len(row) == 4 for row in rows)
    missing = [(what, test) for what, _, _, tests in rows for test in re.findall(r"`([^`]+)`", tests) or [""]
               if not test or not is_there(test)]
    assert not missing


def test_the_rules_are_numbered_without_a_gap():
    numbers = {}
    for section, number, *_ in rules():
        numbers.setdefault(section, []).append(number)
    assert sorted(numbers) == list(range(3, 14))
    for section, found in numbers.items():
        assert found == list(range(1, len(found) + 1)), section
    # A row that the pattern does not know would be checked by nobody.
    page = read_text(os.path.join(ROOT, "docs", "http.md"))
    assert len(re.findall(r"^\| \d+\.\d+ \|", page, re.M)) == len(rules()) >= 85


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
    return sum(memory_of(pid) for pid in running.workers())


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


def test_idle_connections_keep_little_of_what_they_have_sent(server):
    """Heads of nearly the largest size: what the next request could repeat is kept of small ones only."""
    running = server("apps.hello", "--keep-alive", "100")
    assert running.get().status == 200
    fields = [("X-%d" % n, "v" * 1000) for n in range(60)]
    connections = []
    try:
        before = memory(running)
        for _ in range(300):
            connections.append(running.connect())
            assert connections[-1].exchange("GET", "/", fields).status == 200
        grown = memory(running) - before
        assert grown < 300 * 12, "%d kB for 300 connections that have sent 60 kB each" % grown
    finally:
        for connection in connections:
            connection.close()


BUSY = """
    import os, time

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/hold":
            open("inside", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.005)
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % len(body)]
"""
HEAD = b"POST / HTTP/1.1\r\nHost: test\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 1000) for n in range(60))


@pytest.mark.parametrize("framing, body", [
    (b"Content-Length: 20000000\r\n\r\n", b"x" * 20000000), (b"Transfer-Encoding: chunked\r\n\r\n", b"2710\r\n" + b"x" * 10000 + b"\r\n"),
    (b"", b""),
], ids=["length", "chunked", "half a head"])
def test_what_waits_for_the_application_is_kept_by_the_kernel(server, framing, body):
    """A large head, and of the body no more than a read: the rest stays where it is until somebody wants it."""
    running = server(BUSY, "--threads", "2", "--header-timeout", "100", "--body-timeout", "100", "--timeout", "100")
    running.expect_errors(r"Error handling request")
    holders = [running.connect() for _ in range(2)]
    connections = []
    try:
        for holder in holders:
            holder.send_request("GET", "/hold")
        wait_until(lambda: running.exists("inside"))
        before = memory(running)
        for _ in range(50):
            connections.append(running.connect())
            connections[-1].send(HEAD + framing)
            connections[-1].sock.setblocking(False)
        data = memoryview(body * (1 if len(body) > 100000 else 300))
        for _ in range(20):
            for connection in connections:
                try:
                    while data and connection.sock.send(data[:200000]):
                        pass
                except BlockingIOError:
                    pass
        grown = memory(running) - before
        # Head and body; and what the allocator needs to hold them.
        assert grown < 50 * 200, "%d kB for 50 connections" % grown
    finally:
        running.touch("go")
        for holder in holders:
            assert holder.read_response().status == 200
        for connection in connections + holders:
            connection.close()
    assert running.get("/").text == "0"


def test_what_follows_a_refusal_is_read_up_to_a_bound(server):
    """The client is to have its answer; but who sends on and on is not listened to for ever."""
    running = server("apps.hello")
    with running.connect() as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.read_response().status == 400
        with pytest.raises(OSError):
            connection.send(b"x" * 100000000)


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
