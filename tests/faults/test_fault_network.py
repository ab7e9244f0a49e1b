"""Faults of the network and its clients: slow, rude, gone, or too many. Others are served meanwhile, and the ledger balances.

The numbers are the rows of docs/faults.md.
"""
import os
import select
import socket

import pytest

import harness
import wire
from faulty import compare_all, ledger, start, traffic, wait_ready, wait_until, worker_of

HEAD = wire.request_bytes("GET", "/?never")


SLOW = {
    "silent": lambda connection, turn: None,
    "head": lambda connection, turn: connection.send(HEAD[turn % 20:turn % 20 + 1]),
    "line": lambda connection, turn: connection.send(b"GET /?never" if turn == 0 else b"x"),
    "fields": lambda connection, turn: connection.send(b"GET /?never HTTP/1.1\r\nHost: x\r\n" if turn == 0 else b"X: y\r\n"),
    "body": lambda connection, turn: connection.send(
        b"POST /?never HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" if turn == 0 else b"b"),
    "chunks": lambda connection, turn: connection.send(
        b"POST /?never HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" if turn == 0 else b"1\r\nx\r\n"),
}


@pytest.mark.parametrize("form", SLOW)
def test_row_17_slow_clients_hold_nobody(server, form):
    running = start(server, "-w", "2", "--header-timeout", "1", "--timeout", "30")
    slow = [wire.Connection(running.address) for _ in range(100)]
    ended = set()
    with traffic(running, 4) as clients:
        for turn in range(20):
            for number, connection in enumerate(slow):
                try:
                    if number not in ended:
                        SLOW[form](connection, turn)
                except (BrokenPipeError, ConnectionResetError):
                    ended.add(number)
            clients.wait_answers(10)
    compare_all(running, clients)
    # An endless head has an end.
    if form in ("head", "line", "fields"):
        for connection in slow:
            wait_until(lambda: connection.readable(0.1), 20)
    for connection in slow:
        connection.close()


def test_row_17_a_client_that_reads_slowly_holds_no_thread(server):
    """The application is done with a finished response that nobody takes: the one thread serves others."""
    running = start(server, "-w", "1", app="""
        import os
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "application/octet-stream"), ("X-Pid", str(os.getpid()))])
            return [b"x" * (8 << 20)] if environ["PATH_INFO"] == "/big" else [b"small"]
    """)
    readers = [wire.Connection(running.address, receive_buffer=4096) for _ in range(20)]
    for reader in readers:
        reader.send_request("GET", "/big")
    for reader in readers:
        assert reader.readable(20)
    for _ in range(50):
        assert running.get("/").body == b"small"
    for reader in readers:
        reader.reset()


REFUSED = [
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(200)) + b"\r\n", 431),
    (b"POST /?never HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"POST /?never HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    (b"GET / HTTP/9.1\r\n\r\n", 505),
]


@pytest.mark.parametrize("octets, status", REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_row_18_what_is_refused_is_told_so_whatever_else_was_sent(server, octets, status):
    """The answer comes through although the client goes on sending: no RST overtakes it."""
    running = start(server, "-w", "1")
    with traffic(running, 2) as clients, running.connect() as connection:
        clients.wait_answers(10)
        connection.send(octets)
        try:
            connection.send(b"x" * 32768)
        except (BrokenPipeError, ConnectionResetError):
            pytest.fail("the connection was ended before the answer was read")
        response = connection.read_response()
        assert response.status == status and response.closing
        clients.wait_answers(10)
    compare_all(running, clients)


def sockets_of(running):
    """How many each of the workers has open."""
    return {pid: harness.sockets(pid) for pid in running.workers()}


def test_row_19_clients_that_connect_and_vanish(server):
    running = start(server, "-w", "2")
    before = sockets_of(running)
    with traffic(running) as clients:
        for number in range(300):
            connection = wire.Connection(running.address)
            if number % 3 == 1:
                connection.send(HEAD[:-5])
            if number % 3 == 2:
                connection.send(wire.request_bytes("GET", "/?vanished-%d" % number))
            connection.reset()
        clients.wait_answers(40)
    compare_all(running, clients)
    # Nothing is left of them.
    wait_until(lambda: sockets_of(running) == before, 20, lambda: (before, sockets_of(running)))


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_row_19_the_requests_of_clients_that_have_gone_are_not_run(server, known):
    """The one worker comes to them when nobody waits for the answer any more."""
    running = start(server, "-w", "1")
    before = sockets_of(running)
    connections = [wire.Connection(running.address) for _ in range(20)] if known else []
    for number, connection in enumerate(connections):
        assert connection.exchange("GET", "/?known-%d" % number).status == 200
    with running.connect() as busy:
        busy.send_request("GET", "/wait?held")
        worker_of(running, "held")
        for number in range(20):
            connection = connections[number] if known else wire.Connection(running.address)
            connection.send_request("GET", "/?vanished-%d" % number)
            connection.reset()
        running.touch("go")
        assert busy.read_response().status == 200
    with traffic(running) as clients:
        clients.wait_answers(40)
    compare_all(running, clients)
    assert not [name for name, _ in ledger(running) if name.startswith("vanished")]
    wait_until(lambda: sockets_of(running) == before, 20, lambda: (before, sockets_of(running)))


@pytest.mark.parametrize("stage", ["head", "body", "request", "response", "idle"])
@pytest.mark.parametrize("manner", ["reset", "half_close", "close"])
def test_row_20_the_client_ends_at_each_stage(server, stage, manner):
    """A half-closed client still gets its answer; whoever has gone harms nobody."""
    running = start(server, "-w", "2")
    with traffic(running, 4) as clients:
        clients.wait_answers(10)
        with running.connect() as connection:
            if stage == "head":
                connection.send(HEAD[:-5])
            elif stage == "body":
                connection.send(wire.request_bytes("POST", "/?never", body=b"body")[:-2])
            elif stage == "request":
                # It leaves with the end that is sent next.
                connection.sock.sendall(wire.request_bytes("GET", "/?at-once"), socket.MSG_MORE)
            elif stage == "response":
                connection.send_request("GET", "/wait?held")
                worker_of(running, "held")
            else:
                assert connection.exchange("GET", "/?idle").status == 200
            getattr(connection, manner)()
            running.touch("go")
            if manner == "half_close" and stage in ("request", "response"):
                assert connection.read_response().status == 200
            if manner == "half_close":
                connection.expect_closed()
        clients.wait_answers(20)
    compare_all(running, clients)


def test_row_21_a_full_backlog_delays_and_loses_nothing(server):
    """The one worker is busy, so the kernel keeps what comes; what does not fit is tried again by the client's kernel."""
    running = start(server, "-w", "1", "--backlog", "4")
    with running.connect() as busy:
        busy.send_request("GET", "/wait?held")
        worker_of(running, "held")
        waiting = []
        for number in range(24):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(running.address)
            waiting.append(sock)
        running.touch("go")
        assert busy.read_response().status == 200
        for number, sock in enumerate(waiting):
            sock.setblocking(True)
            sock.settimeout(30)
            wait_connected(sock)
            sock.sendall(wire.request_bytes("GET", "/?late-%d" % number, [("Connection", "close")]))
        for sock in waiting:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
            sock.close()


def wait_connected(sock):
    assert select.select([], [sock], [], 30)[1]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_row_21_a_full_backlog_of_a_unix_socket_says_so_at_once(server, tmp_path):
    """Nginx answers 502 then; there is no queue to wait in. Once there is room, the next one is served."""
    path = str(tmp_path / "socket")
    running = server("apps.tail", "-w", "1", "--backlog", "2", bind="unix:" + path)
    wait_ready(running, 1)
    os.mkfifo(running.path("gate"))
    with running.connect() as busy:
        busy.send_request("GET", "/hold?q")
        wait_until(lambda: running.exists("inside-q"))
        held = []
        with pytest.raises(BlockingIOError):
            for _ in range(64):
                sock = socket.socket(socket.AF_UNIX)
                sock.setblocking(False)
                held.append(sock)
                sock.connect(path)
        os.close(os.open(running.path("gate"), os.O_RDWR))
        assert busy.read_response().status == 200
        for sock in held:
            sock.close()
    wait_until(lambda: has_room(running))
    assert running.get("/?again").status == 200


def has_room(running):
    """Those that have gone are in the queue until they are looked at."""
    try:
        running.connect().close()
        return True
    except BlockingIOError:
        return False
