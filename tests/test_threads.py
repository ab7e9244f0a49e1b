"""--threads: so many applications at once in one worker, over one loop; and workers beside each other."""
import json

import pytest

import wire
from harness import wait_until

BARRIER = """
    import os, threading
    barriers = {}
    lock = threading.Lock()

    def app(environ, start_response):
        name, count = environ["PATH_INFO"], int(environ["QUERY_STRING"] or 1)
        with lock:
            barrier = barriers.setdefault(name, threading.Barrier(count))
        try:
            barrier.wait(15)
            answer = b"together"
        except threading.BrokenBarrierError:
            answer = b"alone"
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Thread", threading.current_thread().name),
                                  ("X-Ident", str(threading.get_ident()))])
        return [answer]
"""


def together(running, count, name, target="/%s?%d"):
    connections = [running.connect() for _ in range(count)]
    for connection in connections:
        connection.send_request("GET", target % (name, count))
    answers = [connection.read_response() for connection in connections]
    for connection in connections:
        connection.close()
    return answers


@pytest.mark.parametrize("count", [2, 4, 16])
def test_requests_are_inside_at_once(server, count):
    running = server(BARRIER, "--threads", str(count))
    for n in range(3):
        answers = together(running, count, "round%d" % n)
        assert {a.body for a in answers} == {b"together"}
        assert len({a.header("x-ident") for a in answers}) == count


def test_no_more_than_threads(server):
    """The third of three waits until one of two threads is free."""
    running = server("""
        import os, threading, time
        inside, lock, most = 0, threading.Lock(), 0

        def app(environ, start_response):
            global inside, most
            with lock:
                inside += 1
                most = max(most, inside)
                open("inside%d" % inside, "w").close()
            deadline = time.monotonic() + 20
            while not os.path.exists("go") and time.monotonic() < deadline:
                time.sleep(0.005)
            with lock:
                inside -= 1
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % most]
    """, "--threads", "2")
    connections = [running.connect() for _ in range(5)]
    for connection in connections:
        connection.send_request()
    wait_until(lambda: running.exists("inside2"))
    assert not any(connection.readable(0.1) for connection in connections)
    running.touch("go")
    assert {connection.read_response().text for connection in connections} == {"2"}
    for connection in connections:
        connection.close()


def test_keep_alive_connections_overlap(server):
    running = server(BARRIER, "--threads", "3", "--keep-alive", "30")
    connections = [running.connect() for _ in range(3)]
    for n in range(20):
        for connection in connections:
            connection.send_request("GET", "/keep%d?3" % n)
        assert {connection.read_response().body for connection in connections} == {b"together"}
    for connection in connections:
        connection.close()


def test_more_connections_than_threads(server):
    """Connections at rest take no thread."""
    running = server("apps.hello", "--threads", "2", "--keep-alive", "60")
    resting = []
    for _ in range(50):
        connection = running.connect()
        assert connection.exchange().status == 200
        resting.append(connection)
    for connection in resting:
        assert connection.exchange().status == 200
        connection.close()


def test_one_connection_is_one_after_the_other(server):
    """Pipelined requests are answered in order, so also executed one by one, however many threads are free."""
    running = server("""
        import threading, time
        inside = 0
        lock = threading.Lock()

        def app(environ, start_response):
            global inside
            with lock:
                inside += 1
                seen = inside
            time.sleep(0.005)
            with lock:
                inside -= 1
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [("%s %d" % (environ["PATH_INFO"], seen)).encode()]
    """, "--threads", "4")
    with running.connect() as connection:
        connection.send(b"".join(wire.request_bytes("GET", "/%d" % n) for n in range(30)))
        for n in range(30):
            assert connection.read_response().text == "/%d 1" % n


def test_without_threads_one_at_a_time(server):
    running = server("""
        import threading
        threads = set()

        def app(environ, start_response):
            threads.add(threading.get_ident())
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d %s" % (len(threads), threading.current_thread().name.encode())]
    """)
    answers = {running.get("/").text for _ in range(20)}
    assert answers == {"1 MainThread"}


def test_streams_beside_each_other(server):
    """Two generators, each waiting for the other's client: neither owns the loop."""
    running = server("""
        import os, time

        def app(environ, start_response):
            me, other = environ["PATH_INFO"][1:], environ["QUERY_STRING"]
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"begun"
            open(me, "w").close()
            deadline = time.monotonic() + 20
            while not os.path.exists(other) and time.monotonic() < deadline:
                time.sleep(0.005)
            yield b"met" if os.path.exists(other) else b"missed"
    """, "--threads", "2")
    with running.connect() as one, running.connect() as two:
        one.send_request("GET", "/a?b")
        two.send_request("GET", "/b?a")
        assert one.read_response().body == two.read_response().body == b"begunmet"


def test_an_upload_does_not_hold_a_thread_before_it_is_there(server):
    """Small bodies on their way: the application is called when they are complete."""
    running = server("apps.echo", "--threads", "2")
    slow = []
    for _ in range(6):
        connection = running.connect()
        connection.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf ")
        slow.append(connection)
    assert running.get("/", timeout=10).status == 200
    for connection in slow:
        connection.send(b"whole")
        assert json.loads(connection.read_response().text)["body"] == "half whole"
        connection.close()


def test_a_request_waits_for_no_busy_worker(server):
    """Flat: while one worker is inside a request, new connections go to the other."""
    running = server("""
        import os, time

        def app(environ, start_response):
            if environ["PATH_INFO"] == "/slow":
                open("inside", "w").close()
                deadline = time.monotonic() + 30
                while not os.path.exists("go") and time.monotonic() < deadline:
                    time.sleep(0.005)
            start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
            return [b"done"]
    """, "-w", "2")
    running.wait_workers(2)
    with running.connect() as slow:
        slow.send_request("GET", "/slow")
        wait_until(lambda: running.exists("inside"))
        others = {running.get("/", timeout=10).header("x-pid") for _ in range(30)}
        running.touch("go")
        assert others == set(map(str, running.workers())) - {slow.read_response().header("x-pid")}


def test_all_workers_serve(server):
    """A busy worker takes no connection: the next request is inside another one."""
    running = server("""
        import os, time

        def app(environ, start_response):
            open("inside-%d" % os.getpid(), "w").close()
            deadline = time.monotonic() + 20
            while len([f for f in os.listdir(".") if f.startswith("inside-")]) < 4 and time.monotonic() < deadline:
                time.sleep(0.005)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]

        open("loaded-%d" % os.getpid(), "w").close()
    """, "-w", "4")
    pids = running.wait_workers(4)
    wait_until(lambda: all(running.exists("loaded-%d" % pid) for pid in pids))
    connections = []
    for busy in range(1, 5):
        connection = running.connect()
        connection.send_request()
        connections.append(connection)
        wait_until(lambda: sum(running.exists("inside-%d" % pid) for pid in pids) == busy)
    assert sorted(int(connection.read_response().text) for connection in connections) == pids
    for connection in connections:
        connection.close()


def test_an_error_in_one_thread_is_its_own(server):
    running = server("""
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/bad":
                raise ValueError("on purpose")
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"good"]
    """, "--threads", "4")
    running.expect_errors(r"Error handling request", r"on purpose")
    connections = [running.connect() for _ in range(20)]
    for n, connection in enumerate(connections):
        connection.send_request("GET", "/bad" if n % 2 else "/good")
    for n, connection in enumerate(connections):
        assert connection.read_response().status == (500 if n % 2 else 200)
        connection.close()
    assert running.log().count("Error handling request") == 10


def test_environ_is_the_threads_own(server):
    running = server(BARRIER.replace('return [answer]', 'return [answer, environ["HTTP_X_WHO"].encode()]'), "--threads", "4")
    connections = [running.connect() for _ in range(4)]
    for n, connection in enumerate(connections):
        connection.send_request("GET", "/who?4", [("X-Who", "client%d" % n)])
    for n, connection in enumerate(connections):
        assert connection.read_response().text == "togetherclient%d" % n
        connection.close()


@pytest.mark.parametrize("options", [[], ["--threads", "2"]], ids=["plain", "threads"])
def test_threads_of_the_application_go_on(server, options):
    """A background thread runs while the worker waits for requests and while it has nothing but requests."""
    running = server("""
        import threading

        count = 0

        def work():
            global count
            while True:
                count += 1

        threading.Thread(target=work, daemon=True).start()

        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % count]
    """, *options)
    with running.connect() as connection:
        before = int(connection.exchange().text)
        wait_until(lambda: int(connection.exchange().text) > before + 100000)
        before = int(connection.exchange().text)
        requests = 0
        while int(connection.exchange().text) <= before:
            requests += 1
            assert requests < 10000


def test_an_access_log_line_is_written_at_once(server):
    """Also when the thread that waits for the next request is another one, and nothing else happens."""
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "--threads", "2", "--access-logfile", "access.log")
    for number in range(5):
        with running.connect() as connection:
            connection.send(b"GET /%d HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n" % number)
            connection.expect_closed()
        wait_until(lambda: "GET /%d " % number in running.read("access.log"), 10)
