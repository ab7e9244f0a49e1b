"""The access log in gunicorn's format with its atoms, the error log in gunicorn's line format; neither can be forged."""
import base64
import os
import re
import time
from datetime import datetime, timedelta, timezone

import pytest

import wire
from harness import LOG_LINE, wait_until

APP = """
    import time

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/raise":
            raise ValueError("on purpose")
        if path == "/slow":
            time.sleep(0.25)
        headers = [("Content-Type", "text/plain"), ("X-Answer", "yes"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        environ["mine"] = "from the application"
        if path == "/none":
            start_response("204 No Content", headers[1:])
            return []
        if path == "/file":
            start_response("200 OK", headers)
            return environ["wsgi.file_wrapper"](open("file", "rb"))
        if path == "/generator":
            start_response("200 OK", headers)
            return (b"x" * 100 for _ in range(10))
        start_response(environ.get("HTTP_X_STATUS", "200 OK"), headers)
        return [b"hello"]
"""


@pytest.fixture
def logged(server):
    """`logged(format)` → (server, function that stops it and gives the lines of the access log)."""
    def start(template=None, app=APP, **settings):
        options = ["--access-logfile", "access.log"]
        if template is not None:
            options += ["--access-logformat", template]
        running = server(app, *options, **settings)
        running.write("file", "z" * 12345)

        def lines():
            assert running.stop() == 0
            # Bytes as they are: universal newlines would hide a forged line end.
            with open(running.path("access.log"), "rb") as f:
                return f.read().decode("latin-1").split("\n")[:-1]
        return running, lines
    return start


def one(logged, template, target="/", headers=(), method="GET", body=None, **settings):
    running, lines = logged(template, **settings)
    running.expect_errors(r"Error handling request", r"on purpose")
    running.request(method, target, headers, body)
    found = lines()
    assert len(found) == 1, found
    return found[0]


def test_default_format(logged):
    line = one(logged, None, "/path?query", [("Referer", "http://ref/"), ("User-Agent", "agent/1.0 (x)")])
    assert re.fullmatch(r'127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] '
                        r'"GET /path\?query HTTP/1\.1" 200 5 "http://ref/" "agent/1\.0 \(x\)"', line), line


def test_default_format_without_headers(logged):
    assert one(logged, None).endswith('"GET / HTTP/1.1" 200 5 "-" "-"')


@pytest.mark.parametrize("template, target, headers, wanted", [
    ("%(h)s", "/", [], "127.0.0.1"),
    ("%(h)s", "/", [("X-Forwarded-For", "192.0.2.1")], "127.0.0.1"),
    ("%(l)s", "/", [], "-"),
    ("%(u)s", "/", [], "-"),
    ("%(u)s", "/", [("Authorization", "Basic YnJ1Y2U6c2VjcmV0")], "bruce"),
    ("%(u)s", "/", [("Authorization", "Basic YnJ1Y2U6c2U6Y3JldA==")], "bruce"),
    ("%(u)s", "/", [("Authorization", "Bearer YnJ1Y2U6c2VjcmV0")], "-"),
    ("%(u)s", "/", [("Authorization", "Basic !!!")], "-"),
    ("%(r)s", "/a%20b?c=%22", [], "GET /a%20b?c=%22 HTTP/1.1"),
    ("%(m)s %(U)s %(q)s %(H)s", "/a%20b/c?x=1&y=%20", [], "GET /a b/c x=1&y=%20 HTTP/1.1"),
    ("%(U)s|%(q)s|", "/plain", [], "/plain||"),
    ("%(s)s", "/", [("X-Status", "404 Not Found")], "404"),
    ("%(s)s", "/raise", [], "500"),
    ("%(b)s %(B)s", "/", [], "5 5"),
    ("%(b)s %(B)s", "/generator", [], "1000 1000"),
    ("%(b)s %(B)s", "/file", [], "12345 12345"),
    ("%(B)s", "/none", [], "0"),
    ("%(f)s|%(a)s", "/", [], "-|-"),
    ("%(f)s|%(a)s", "/", [("Referer", "r"), ("User-Agent", "a b")], "r|a b"),
    ("%({host}i)s|%({X-Sent}i)s|%({x-sent}i)s|%({missing}i)s", "/", [("X-Sent", "v")], "test|v|v|-"),
    ("%({X-Answer}o)s|%({x-answer}o)s|%({missing}o)s", "/", [], "yes|yes|-"),
    ("%({wsgi.url_scheme}e)s|%({RAW_URI}e)s|%({raw_uri}e)s|%({missing}e)s", "/x?y", [], "http|/x?y|/x?y|-"),
    ("%({server_protocol}e)s %({REQUEST_METHOD}e)s", "/", [], "HTTP/1.1 GET"),
    ("100%% of %(m)s", "/", [], "100% of GET"),
    ("", "/", [], ""),
    ("no atoms", "/", [], "no atoms"),
])
def test_atoms(logged, template, target, headers, wanted):
    assert one(logged, template, target, headers) == wanted


def test_head_has_no_body_bytes(logged):
    assert one(logged, "%(m)s %(s)s %(B)s", method="HEAD") == "HEAD 200 0"


def test_environ_that_the_application_added(logged):
    assert one(logged, "%({mine}e)s") == "from the application"


def test_an_unknown_atom_is_a_dash(logged):
    assert one(logged, "%(m)s %(nosuch)s") == "GET -"


def test_time_atom(logged):
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    line = one(logged, "%(t)s")
    when = datetime.strptime(line, "[%d/%b/%Y:%H:%M:%S %z]")
    assert before <= when <= datetime.now(timezone.utc) + timedelta(seconds=1)


def test_time_atom_is_local_time(logged):
    line = one(logged, "%(t)s", env={"TZ": "Etc/GMT-5"})
    assert line.endswith(" +0500]"), line
    when = datetime.strptime(line, "[%d/%b/%Y:%H:%M:%S %z]")
    assert abs(when.timestamp() - time.time()) < 60


def test_duration_atoms(logged):
    """The same time in four units: a request that slept 250 ms."""
    seconds, millis, micros, decimal = one(logged, "%(T)s %(M)s %(D)s %(L)s", "/slow").split()
    assert 250000 <= int(micros) < 20000000
    assert int(millis) == int(micros) // 1000
    assert int(seconds) == int(micros) // 1000000
    assert re.fullmatch(r"\d+\.\d{6}", decimal) and abs(float(decimal) * 1000000 - int(micros)) < 2


def test_process_atom(logged):
    running, lines = logged("%(p)s")
    running.get("/")
    worker = running.wait_workers(1)[0]
    assert lines() == ["<%d>" % worker]


def test_repeated_response_header(logged):
    assert one(logged, "%({set-cookie}o)s") in ("b=2", "a=1, b=2")


def test_unix_peer(logged, tmp_path):
    assert one(logged, "%(h)s|%(m)s", bind="unix:%s/s" % tmp_path) in ("|GET", "-|GET")


def test_each_request_is_a_line_in_order(logged):
    running, lines = logged("%(m)s %(r)s")
    with running.connect() as connection:
        connection.send(b"".join(wire.request_bytes("GET", "/%d" % n) for n in range(100)))
        for _ in range(100):
            connection.read_response()
    assert lines() == ["GET GET /%d HTTP/1.1" % n for n in range(100)]


def test_lines_of_several_workers_do_not_mix(logged):
    running, lines = logged("begin %(q)s end", config="workers = 3\n")
    long = "x" * 3000
    for n in range(60):
        running.get("/?%d%s" % (n, long))
    assert sorted(lines()) == sorted("begin %d%s end" % (n, long) for n in range(60))


def test_a_line_is_written_soon(logged):
    """Buffered per batch, perhaps; but not until something else happens."""
    running, _ = logged("%(U)s")
    with running.connect() as connection:
        connection.exchange("GET", "/soon")
        wait_until(lambda: running.read("access.log") == "/soon\n")
        connection.exchange("GET", "/again")
        wait_until(lambda: running.read("access.log") == "/soon\n/again\n")


def test_the_log_is_appended_to(server, tmp_path):
    (tmp_path / "access.log").write_text("from yesterday\n")
    running = server(APP, "--access-logfile", tmp_path / "access.log", "--access-logformat", "%(U)s")
    running.get("/today")
    assert running.stop() == 0
    assert (tmp_path / "access.log").read_text() == "from yesterday\n/today\n"


# --- no forged lines ---

def test_quotes_are_escaped(logged):
    line = one(logged, '"%(a)s" "%(f)s" "%({x-sent}i)s"', "/", [("User-Agent", 'a" 200 "b'), ("Referer", '"'), ("X-Sent", 'q"q')])
    assert line == r'"a\" 200 \"b" "\"" "q\"q"'


def test_a_decoded_path_makes_no_line(logged):
    """%0a in the target is a line end in PATH_INFO, and must not be one in the log."""
    line = one(logged, "%(m)s %(U)s %(s)s", "/x%0aGET%20/forged%20200%0d%0aforged%00%1b%7f")
    assert line.startswith("GET /x") and line.endswith(" 200")
    assert not re.search(r"[\x00-\x1f\x7f]", line), repr(line)


def test_a_user_name_makes_no_line(logged):
    user = base64.b64encode(b"bruce\nforged\r\x1b[2J:secret").decode()
    line = one(logged, "%(u)s|%(s)s", "/", [("Authorization", "Basic " + user)])
    assert line.endswith("|200") and not re.search(r"[\x00-\x1f\x7f]", line), repr(line)


def test_values_of_the_application_make_no_line(logged):
    line = one(logged, "%({mine}e)s|%(s)s", app="""
        def app(environ, start_response):
            environ["mine"] = "a\\nforged\\r\\n"
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """)
    assert line.endswith("|200")


def test_eight_bit_values(logged):
    """Latin-1 or UTF-8 in the file, escaped or not: one line, and what is plain in it is readable."""
    line = one(logged, "%(U)s|%(a)s|end", "/caf%C3%A9", [("User-Agent", "caf\u00e9")])
    assert line.startswith("/caf") and line.endswith("|end") and "|caf" in line


def test_formats_in_values_are_values(logged):
    assert one(logged, "%(a)s %(q)s", "/?%25(m)s", [("User-Agent", "%(m)s %s {0}")]) == "%(m)s %s {0} %25(m)s"


def test_the_error_log_cannot_be_forged(server):
    running = server(APP)
    with running.connect() as connection:
        connection.send(b"GET /\n[2020-01-01 00:00:00 +0000] [1] [CRITICAL] forged HTTP/1.1\r\n\r\n")
        assert connection.read_response().status == 400
    running.expect_errors(r"Error handling request", r"on purpose")
    with running.connect() as connection:
        connection.send(b"GET /raise?%0a[2020-01-01 HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.read_response()
    assert running.stop() == 0
    assert not running.lines("CRITICAL")
    assert not re.search(r"^\[2020", running.log(), re.M)


# --- the error log ---

def test_error_log_format(server):
    running = server(APP, "-w", "2", "--log-level", "debug")
    running.expect_errors(r"Error handling request", r"on purpose")
    workers = running.wait_workers(2)
    running.get("/raise")
    running.wait_log(r"on purpose")
    assert running.stop() == 0
    first = running.log().splitlines()[0]
    assert LOG_LINE.match(first), first
    when = datetime.strptime(first[1:26], "%Y-%m-%d %H:%M:%S %z")
    assert abs(when.timestamp() - time.time()) < 60
    levels = {level for _, level, _ in running.lines()}
    assert levels <= {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"} and {"INFO", "ERROR"} <= levels
    assert {pid for pid, _, _ in running.lines()} <= {running.pid} | set(workers) | set(running.booted)


def test_error_log_is_local_time(server):
    running = server(APP, env={"TZ": "Etc/GMT+7"})
    assert running.get("/").status == 200
    assert running.log().splitlines()[0][21:26] == "-0700"


def test_start_up_says_what_and_where(server):
    running = server(APP, "-w", "2")
    running.wait_workers(2)
    messages = [message for pid, _, message in running.lines("INFO") if pid == running.pid]
    assert re.match(r"Starting \w*gunicorn \d+\.\d+", messages[0])
    assert any(re.fullmatch(r"Listening at: http://127\.0\.0\.1:%d \(%d\)" % (running.port, running.pid), m) for m in messages)


def test_a_traceback_names_the_request(server):
    running = server(APP)
    running.expect_errors(r"Error handling request", r"on purpose")
    assert running.request("POST", "/raise?q=1", body=b"x").status == 500
    running.wait_log(r"ValueError: on purpose")
    entry = running.log()[running.log().index("Error handling request"):]
    assert re.match(r"Error handling request (POST )?/raise(\?q=1)?", entry), entry
    assert "Traceback (most recent call last):" in entry
    assert re.search(r'File ".*app\.py", line \d+, in app', entry)
    assert entry.count("ValueError: on purpose") == 1


def test_chained_exceptions_are_logged_whole(server):
    running = server("""
        def app(environ, start_response):
            try:
                {}["missing"]
            except KeyError as error:
                raise RuntimeError("second on purpose") from error
    """)
    running.expect_errors(r"Error handling request", r"on purpose")
    assert running.get("/").status == 500
    running.wait_log(r"second on purpose")
    assert "KeyError: 'missing'" in running.log() and "direct cause" in running.log()


def test_bad_requests_are_warnings_with_the_peer(server):
    running = server(APP)
    with running.connect() as connection:
        connection.send(b"nonsense\r\n\r\n")
        assert connection.read_response().status == 400
    running.wait_log(r"\[WARNING\].*Invalid request from ip=127\.0\.0\.1: .+")


def test_wsgi_errors_goes_to_the_error_log(server):
    running = server("""
        import sys

        def app(environ, start_response):
            environ["wsgi.errors"].write("written by the application\\n")
            print("printed by the application", file=environ["wsgi.errors"])
            environ["wsgi.errors"].writelines(["caf\\u00e9 \\u20ac\\n"])
            environ["wsgi.errors"].flush()
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "--error-logfile", "error.log")
    assert running.get("/").status == 200
    for words in ("written by the application", "printed by the application", "caf\u00e9 \u20ac"):
        wait_until(lambda: words in running.read("error.log"))


def test_output_of_the_application_is_its_own(server):
    """print() goes to the server's stdout and stderr, unchanged."""
    running = server("""
        import sys

        def app(environ, start_response):
            print("to stdout", flush=True)
            print("to stderr", file=sys.stderr, flush=True)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """)
    assert running.get("/").status == 200
    wait_until(lambda: "to stdout\n" in running.stdout())
    wait_until(lambda: "to stderr\n" in running.log())


def test_python_logging_of_the_application_works(server):
    """A handler on stderr, as most deployments have it."""
    running = server("""
        import logging
        logging.basicConfig(level=logging.INFO, format="app: %(message)s")

        def app(environ, start_response):
            logging.getLogger("mine").info("a message")
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
    """, "-w", "2")
    for _ in range(5):
        running.get("/")
    wait_until(lambda: running.log().count("app: a message\n") == 5)


def test_a_full_disk_does_not_stop_the_server(server):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    running = server(APP, "--access-logfile", "/dev/full")
    running.expect_errors()
    for _ in range(20):
        assert running.get("/").status == 200
    assert running.stop() == 0


def test_an_access_log_that_nobody_reads_any_more(server, tmp_path):
    """The reader of a pipe has gone: neither SIGPIPE nor the error ends the server."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    running = server(APP, "--access-logfile", fifo)
    running.expect_errors()
    assert running.get("/").status == 200
    os.close(reader)
    worker = running.wait_workers(1)
    for _ in range(10):
        assert running.get("/").status == 200
    assert running.workers() == worker
