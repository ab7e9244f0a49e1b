"""The least that must work everywhere: on each Python and in the stand-alone binary. Needs nothing but pytest."""
import json
import signal

import wire
from harness import memory_of, run


def test_version():
    done = run("--version")
    assert done.returncode == 0
    assert "gunicorn" in done.stdout


def test_serves_and_stops(server):
    running = server("apps.hello:validated", "-w", "2")
    for _ in range(10):
        response = running.get("/")
        assert (response.status, response.body) == (200, b"Hello, world!\n")
    assert len(running.wait_workers(2)) == 2
    assert running.stop(signal.SIGTERM) == 0
    assert not running.processes()


def test_keep_alive_get_head_post(server):
    running = server("apps.echo:validated", "--keep-alive", "20")
    with running.connect() as connection:
        seen = json.loads(connection.exchange("GET", "/a%20b?q=1").text)
        assert seen["environ"]["PATH_INFO"] == "/a b"
        assert seen["environ"]["QUERY_STRING"] == "q=1"
        assert seen["body"] == ""
        head = connection.exchange("HEAD", "/")
        assert head.status == 200 and head.body == b""
        seen = json.loads(connection.exchange("POST", "/", body=b"x" * 100000).text)
        assert seen["length"] == 100000
        body = wire.chunked(b"hello ", b"world")
        seen = json.loads(connection.exchange("POST", "/", [("Transfer-Encoding", "chunked")], body).text)
        assert seen["body"] == "hello world"
        assert connection.exchange("GET", "/").status == 200


def test_streams_in_chunks(server):
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return (b"%d," % n for n in range(1000))
    """)
    with running.connect() as connection:
        response = connection.exchange()
        assert response.framing == "chunked"
        assert response.body == b"".join(b"%d," % n for n in range(1000))
        assert connection.exchange("HEAD").body == b""
        assert connection.exchange(version="HTTP/1.0").body == response.body
        connection.expect_eof()


def test_threads(server):
    running = server("""
        import threading
        barrier = threading.Barrier(3)

        def app(environ, start_response):
            barrier.wait(20)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"all in"]
    """, "--threads", "3")
    connections = [running.connect() for _ in range(3)]
    for connection in connections:
        connection.send_request()
    for connection in connections:
        assert connection.read_response().body == b"all in"
        connection.close()


def test_application_error_and_bad_request(server):
    running = server("""
        def app(environ, start_response):
            raise ValueError("on purpose")
    """)
    running.expect_errors(r"Error handling request", r"on purpose")
    assert running.get("/").status == 500
    assert "on purpose" in running.log()
    with running.connect() as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.read_response().status == 400
        connection.expect_eof()
    assert running.get("/").status == 500


def test_names_that_clients_invent_leave_nothing(server):
    """Some Pythons keep every string that was ever interned: what a client names must not be."""
    running = server("apps.hello")
    worker = running.wait_workers(1)[0]

    def crowd(first, count):
        with running.connect() as connection:
            for n in range(first, first + count):
                fields = [("X-%d-%d-%s" % (n, m, "n" * 4000), "v") for m in range(10)]
                assert connection.exchange("GET", "/", fields).status == 200
    crowd(0, 50)
    before = memory_of(worker)
    crowd(50, 200)
    grown = memory_of(worker) - before
    assert grown < 2048, "%d kB more after names of 8000 kB" % grown


def test_a_missing_module_is_exit_code_3():
    done = run("-b", "127.0.0.1:0", "no_such_module_here")
    assert done.returncode == 3
    assert "no_such_module_here" in done.stderr
