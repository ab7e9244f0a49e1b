"""statsd and DogStatsD: gunicorn's names, formats and moments."""
import re
import socket
import textwrap
from signal import SIGHUP, SIGTTIN

import pytest

from collector import Collector
from harness import wait_until

APP = """
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/raise":
            raise ValueError("on purpose")
        if environ["PATH_INFO"] == "/missing":
            start_response("404 Not Found", [])
            return []
        start_response("200 OK", [])
        return [b"hello"]
"""


@pytest.fixture(params=["udp", "unix"])
def statsd(request, tmp_path):
    if request.param == "udp":
        one = Collector("udp")
        one.host = "127.0.0.1:%d" % one.port
    else:
        one = Collector("unix-dgram", str(tmp_path / "statsd"))
        one.host = "unix://" + one.path
    yield one
    one.close()


@pytest.fixture
def udp():
    one = Collector("udp")
    one.host = "127.0.0.1:%d" % one.port
    yield one
    one.close()


@pytest.mark.parametrize("options", [[], ["--threads", "3", "--preload"]], ids=["plain", "preload-threads"])
def test_requests_are_counted(server, statsd, options):
    running = server(APP, "--statsd-host", statsd.host, *options)
    assert running.get().status == 200
    statsd.wait(lambda m: m == "gunicorn.requests:1|c|@1.0")
    statsd.wait(lambda m: m == "gunicorn.request.status.200:1|c|@1.0")
    statsd.wait(lambda m: re.match(r"gunicorn\.request\.duration:\d+\.\d+\|ms$", m))
    assert running.get("/missing").status == 404
    statsd.wait(lambda m: m == "gunicorn.request.status.404:1|c|@1.0")
    wait_until(lambda: statsd.messages.count("gunicorn.requests:1|c|@1.0") == 2)
    # No access log was asked for.
    assert "GET /" not in running.stdout() + running.log()


def test_workers_are_a_gauge_that_tells_of_changes(server, udp):
    running = server(APP, "--statsd-host", udp.host, "-w", "2")
    udp.wait(lambda m: m == "gunicorn.workers:2|g")
    running.signal(SIGTTIN)
    udp.wait(lambda m: m == "gunicorn.workers:3|g")
    gauges = [m for m in udp.messages if m.startswith("gunicorn.workers:")]
    assert all(a != b for a, b in zip(gauges, gauges[1:])), gauges


def test_lines_of_the_log_are_counted_by_level(server, udp):
    hooks = """
        def when_ready(server):
            server.log.warning("careful")
            server.log.error("wrong")
            server.log.critical("very wrong")
            try:
                1 / 0
            except ZeroDivisionError:
                server.log.exception("oh")
    """
    running = server(APP, "--statsd-host", udp.host, config=textwrap.dedent(hooks))
    running.expect_errors(r"wrong|oh|on purpose|Error handling")
    for level in ["warning", "error", "critical", "exception"]:
        udp.wait(lambda m: m == "gunicorn.log.%s:1|c|@1.0" % level)
    assert running.get("/raise").status == 500
    wait_until(lambda: udp.messages.count("gunicorn.log.exception:1|c|@1.0") == 2)
    # An exception is no error beside.
    assert udp.messages.count("gunicorn.log.error:1|c|@1.0") == 1


@pytest.mark.parametrize("prefix", ["shop", "shop.", "shop.."])
def test_prefix_and_tags(server, udp, prefix):
    running = server(APP, "--statsd-host", udp.host, "--statsd-prefix", prefix, "--dogstatsd-tags", "env:prod,site:a")
    running.get()
    udp.wait(lambda m: m == "shop.gunicorn.requests:1|c|@1.0|#env:prod,site:a")
    assert all(m.startswith("shop.gunicorn.") and m.endswith("|#env:prod,site:a") for m in udp.messages)


def test_metrics_of_the_operator(server, udp):
    hooks = """
        def post_worker_init(worker):
            worker.log.info("", extra={"metric": "mine.gauge", "value": 7, "mtype": "gauge"})
            worker.log.info("", extra={"metric": "mine.counter", "value": 2, "mtype": "counter"})
            worker.log.debug("", extra={"metric": "mine.histogram", "value": 3, "mtype": "histogram"})
            worker.log.info("said too", extra={"metric": "mine.timer", "value": 4.5, "mtype": "timer"})
    """
    running = server(APP, "--statsd-host", udp.host, config=textwrap.dedent(hooks))
    for metric in ["mine.gauge:7|g", "mine.counter:2|c|@1.0", "mine.histogram:3|h", "mine.timer:4.5|ms"]:
        udp.wait(lambda m: m == metric)
    running.wait_log(r"said too")
    assert not re.search(r"\[INFO\] *$", running.log(), re.M)


def test_backlog(server, udp):
    app = """
        import threading
        stop = threading.Event()

        def app(environ, start_response):
            stop.wait(60)
            start_response("200 OK", [])
            return [b""]
    """
    running = server(app, "--statsd-host", udp.host, "--enable-backlog-metric", "--worker-connections", "1")
    udp.wait(lambda m: m == "gunicorn.backlog:0|h")
    # One is served, the others wait.
    waiting = [socket.create_connection(running.address) for _ in range(6)]
    try:
        for one in waiting:
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        udp.wait(lambda m: re.match(r"gunicorn\.backlog:[1-9]\d*\|h$", m))
    finally:
        for one in waiting:
            one.close()
        running.kill()


def test_without_the_setting_the_backlog_is_not_told(server, udp):
    running = server(APP, "--statsd-host", udp.host)
    running.get()
    udp.wait(lambda m: m == "gunicorn.requests:1|c|@1.0")
    assert running.stop() == 0
    assert not [m for m in udp.messages if "backlog" in m]


def test_an_agent_that_is_away_fails_no_request_and_is_found_again(server, tmp_path):
    agent = Collector("unix-dgram", str(tmp_path / "agent"))
    running = server(APP, "--statsd-host", "unix://" + agent.path)
    running.get()
    agent.wait(lambda m: m.startswith("gunicorn.requests"))
    agent.close()
    assert [running.get().status for _ in range(20)] == [200] * 20
    again = Collector("unix-dgram", agent.path)
    running.get()
    again.wait(lambda m: m.startswith("gunicorn.requests"))
    again.close()


def test_reload_turns_it_on_and_off(server, udp):
    running = server(APP, config="")
    running.get()
    running.write("gunicorn.conf.py", "statsd_host = %r" % udp.host)
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete")
    wait_until(lambda: running.get().status == 200 and "gunicorn.requests:1|c|@1.0" in udp.messages)
    running.write("gunicorn.conf.py", "")
    running.signal(SIGHUP)
    running.wait_log(r"Reload complete", count=2)
    assert running.get().status == 200


@pytest.mark.parametrize("options", [[], ["--threads", "3", "--preload"]], ids=["plain", "preload-threads"])
def test_a_class_derived_from_statsd(server, udp, options):
    config = """
        from rgunicorn.instrument.statsd import Statsd

        class Mine(Statsd):
            def access(self, resp, req, environ, request_time):
                super().access(resp, req, environ, request_time)
                self.increment("path.%s" % req.path.strip("/"), 1)

        logger_class = Mine
    """
    running = server(APP, "--statsd-host", udp.host, "--statsd-prefix", "s", *options, config=textwrap.dedent(config))
    assert running.get("/shelf").status == 200
    udp.wait(lambda m: m == "s.path.shelf:1|c|@1.0")
    udp.wait(lambda m: m == "s.gunicorn.requests:1|c|@1.0")
    udp.wait(lambda m: m == "s.gunicorn.request.status.200:1|c|@1.0")
    udp.wait(lambda m: re.match(r"s\.gunicorn\.request\.duration:[\d.]+\|ms$", m))
    udp.wait(lambda m: m == "s.gunicorn.workers:1|g")


def test_statsd_beside_logconfig(server, udp):
    config = """
        logconfig_dict = {"loggers": {"gunicorn.error": {"level": "WARNING", "handlers": ["error_console"]}}}
        def when_ready(server):
            server.log.warning("careful", extra={"metric": "mine", "value": 1, "mtype": "gauge"})
            server.log.info("", extra={"metric": "mine", "value": 2, "mtype": "gauge"})
    """
    running = server(APP, "--statsd-host", udp.host, config=textwrap.dedent(config), wait=False)
    running.wait_log("careful")
    udp.wait(lambda m: m == "gunicorn.log.warning:1|c|@1.0")
    # As in gunicorn, a warning's `extra` is not a metric.
    udp.wait(lambda m: m == "mine:2|g")


@pytest.mark.parametrize("host, sentence", [
    ("localhost", "'localhost' is not HOST:PORT or unix://PATH"),
    ("localhost:x", "'x' is not a port (1 to 65535)"),
])
def test_a_wrong_host(host, sentence):
    import harness
    done = harness.run("--statsd-host", host, "app:app")
    assert (done.returncode, done.stderr) == (2, "rgunicorn: --statsd-host: %s\n" % sentence)
