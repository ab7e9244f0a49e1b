"""Syslog: over UDP, TCP and unix sockets; from the arbiter and from workers; one that is away costs nobody anything."""
import re
from signal import SIGHUP, SIGUSR1

import pytest

from collector import Collector
from harness import wait_until

APP = """
    import os

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/raise":
            raise ValueError("on purpose")
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]
"""


@pytest.fixture
def collector(tmp_path):
    made = []

    def make(kind, name="log", port=0):
        made.append(Collector(kind, str(tmp_path / name) if kind.startswith("unix") else None, port))
        return made[-1]
    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("kind", ["udp", "tcp", "unix-dgram", "unix-stream"])
@pytest.mark.parametrize("options", [[], ["--preload", "--threads", "3"]], ids=["plain", "preload-threads"])
def test_both_logs_go_to_syslog(server, collector, kind, options):
    log = collector(kind)
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url, "-n", "shop", *options)
    assert running.get("/a?b").status == 200
    # user.info, user.info: 1 * 8 + 6.
    boot = log.wait(lambda m: "Listening at" in m)
    assert re.match(r"<14>gunicorn\.shop\.error: \[%d\] Listening at: http://" % running.pid, boot)
    worker = running.wait_workers(1)[0]
    log.wait(lambda m: m == "<14>gunicorn.shop.error: [%d] Booting worker with pid: %d" % (worker, worker))
    access = log.wait(lambda m: ".access:" in m)
    assert re.match(r'<14>gunicorn\.shop\.access: \[%d\] 127\.0\.0\.1 - - \[.*\] "GET /a\?b HTTP/1\.1" 200 5 "-" "-"$'
                    % worker, access), access
    # The error log is written as well.
    assert "Booting worker" in running.log()


def test_a_path_alone_is_whichever_socket_is_there(server, collector):
    log = collector("unix-stream")
    running = server(APP, "--log-syslog", "--log-syslog-to", "unix://" + log.path)
    log.wait(lambda m: "Booting worker" in m)
    assert running.get().status == 200


def test_prefix_facility_and_priorities(server, collector):
    log = collector("udp")
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url, "--log-syslog-prefix", "front",
                     "--log-syslog-facility", "local3", "--log-level", "debug")
    running.expect_errors(r"on purpose", r"Error handling")
    assert running.get("/raise").status == 500
    # local3 is 19; error 3, info 6.
    assert log.wait(lambda m: "Error handling request GET /raise" in m).startswith("<155>gunicorn.front.error: [")
    assert log.wait(lambda m: ".access:" in m).startswith("<158>gunicorn.front.access: [")


def test_a_traceback_is_one_line_of_a_stream(server, collector):
    log = collector("tcp")
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url)
    running.expect_errors(r"on purpose", r"Error handling")
    assert running.get("/raise").status == 500
    line = log.wait(lambda m: "Error handling request GET /raise" in m)
    assert "#012Traceback (most recent call last):#012" in line and line.endswith("ValueError: on purpose")


def test_access_log_stays_out_of_syslog(server, collector):
    log = collector("udp")
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url, "--disable-redirect-access-to-syslog",
                     "--access-logfile", "access.log")
    running.get("/quiet")
    wait_until(lambda: "/quiet" in running.read("access.log"))
    assert running.stop() == 0
    log.wait(lambda m: "Shutting down" in m)
    assert not [m for m in log.messages if ".access:" in m]


def test_file_and_syslog_both_get_the_access_log(server, collector):
    log = collector("udp")
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url, "--access-logfile", "access.log")
    running.get("/both")
    log.wait(lambda m: ".access:" in m and "/both" in m)
    wait_until(lambda: "/both" in running.read("access.log"))


@pytest.mark.parametrize("kind", ["udp", "tcp", "unix-dgram", "unix-stream"])
def test_a_syslog_that_is_away_fails_no_request_and_is_found_again(server, collector, kind):
    log = collector(kind)
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url)
    running.get("/before")
    log.wait(lambda m: "/before" in m)
    log.close()
    for _ in range(50):
        assert running.get("/meanwhile").status == 200
    again = collector(kind, port=getattr(log, "port", 0))

    def heard():
        assert running.get("/after").status == 200
        return [m for m in list(again.messages) if "/after" in m and ".access:" in m]
    wait_until(heard)
    # Reopening has nothing to reopen, and breaks nothing.
    running.signal(SIGUSR1)
    running.wait_log(r"Handling signal: usr1")
    assert running.get("/reopened").status == 200
    again.wait(lambda m: "/reopened" in m)


def test_a_syslog_that_was_never_there(server, collector):
    log = collector("tcp")
    log.close()
    running = server(APP, "--log-syslog", "--log-syslog-to", log.url)
    assert [running.get().status for _ in range(20)] == [200] * 20


def test_reload_takes_another_syslog_over(server, collector):
    first, second = collector("udp"), collector("unix-dgram")
    config = 'syslog = True\nsyslog_addr = %r\nsyslog_prefix = %r\n'
    running = server(APP, config=config % (first.url, "one"))
    running.get("/first")
    first.wait(lambda m: "gunicorn.one.access" in m and "/first" in m)
    running.write("gunicorn.conf.py", config % (second.url, "two"))
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete")
    wait_until(lambda: running.get("/second").status == 200
               and [m for m in list(second.messages) if "gunicorn.two.access" in m and "/second" in m])
    second.wait(lambda m: "gunicorn.two.error" in m and "Reload complete" in m)


@pytest.mark.parametrize("address, sentence", [
    ("ftp://x", "'ftp://x' is not udp://HOST:PORT, tcp://HOST:PORT or unix://PATH"),
    ("udp://h:none", "'none' is not a port (1 to 65535)"),
])
def test_a_wrong_address(address, sentence):
    import harness
    done = harness.run("--log-syslog-to", address, "app:app")
    assert done.returncode == 2
    assert done.stderr == "rgunicorn: --log-syslog-to: %s\n" % sentence
