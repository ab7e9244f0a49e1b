"""`warm_up`: requests that the server makes of a new application before anybody else's."""
import ast
import os
import re
import signal
import socket

import pytest

import harness
from harness import wait_until

APP = """
    import os

    class Body(list):
        def __iter__(self):
            note("iterated")
            return super().__iter__()

        def close(self):
            note("closed")

    def note(text):
        with open("notes", "a") as f:
            f.write("%d %s\\n" % (os.getpid(), text))

    def app(environ, start_response):
        text = {key: value for key, value in environ.items() if isinstance(value, (str, bool))}
        note("asked " + repr(text))
        if os.path.exists("raise"):
            raise RuntimeError("on purpose")
        start_response(environ["QUERY_STRING"].replace("+", " ") or "200 OK", [])(b"written")
        return Body([environ["wsgi.input"].read(), b"body"])
"""
FORMS = pytest.mark.parametrize("options", [(), ("--preload",), ("--threads", "2")], ids=["plain", "preload", "threads"])


def notes(running):
    """[(pid, text)]"""
    return [(int(pid), text) for pid, text in (line.split(" ", 1) for line in running.read("notes").splitlines())]


def asked(running):
    """The environs of the application's requests, in their order."""
    return [ast.literal_eval(text[len("asked "):]) for _, text in notes(running) if text.startswith("asked ")]


def said(running):
    return [text for _, _, text in running.lines() if "arm-up request" in text]


@FORMS
def test_each_request_is_whole_and_before_any_other(server, options):
    running = server(APP, "--warm-up", "/a%20b?200+Fine", "--warm-up", "https://shop.example/", "--access-logfile", "access.log", *options)
    running.wait_log(r"Worker ready")
    assert [text.split()[0] for _, text in notes(running)] == ["asked", "iterated", "closed"] * 2
    assert [re.sub(r"\d+ ms", "N ms", text) for text in said(running)] == [
        "Warm-up request GET /a%20b?200+Fine: 200 after N ms", "Warm-up request GET https://shop.example/: 200 after N ms"]
    order = [text for _, _, text in running.lines() if re.match("Warm-up|Worker ready", text)]
    assert [text[:7] for text in order] == ["Warm-up", "Warm-up", "Worker "]
    assert running.read("access.log") == ""


def test_it_has_the_environ_of_a_request_that_comes_from_outside(server):
    running = server(APP, "--warm-up", "http://127.0.0.1/a%20b?200+Fine", "-w", "1", env={"SCRIPT_NAME": "/a"})
    running.get("/a%20b?200+Fine", (("Host", "127.0.0.1"), ("User-Agent", "outside")))
    ours, theirs = asked(running)
    assert ours.pop("rgunicorn.warm_up") is True
    for environ in (ours, theirs):
        for key in ("REMOTE_PORT", "HTTP_USER_AGENT", "HTTP_CONNECTION"):
            environ.pop(key, None)
    assert ours == theirs
    assert ours["PATH_INFO"] == " b" and ours["SCRIPT_NAME"] == "/a" and ours["RAW_URI"] == "/a%20b?200+Fine"


def test_a_url_says_host_and_scheme(server):
    running = server(APP, config="warm_up = ['https://shop.example:8443/x', '/y']\n")
    running.wait_log(r"Worker ready")
    first, second = asked(running)
    assert (first["wsgi.url_scheme"], first["HTTP_HOST"], first["PATH_INFO"]) == ("https", "shop.example:8443", "/x")
    assert (second["wsgi.url_scheme"], second["HTTP_HOST"], second["PATH_INFO"]) == ("http", "localhost", "/y")


def test_on_a_unix_socket(server, tmp_path):
    running = server(APP, "--warm-up", "https://shop.example/x", bind="unix:%s" % (tmp_path / "s"))
    running.wait_log(r"Worker ready")
    (environ,) = asked(running)
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"], environ["REMOTE_ADDR"]) == ("shop.example", "443", "")


def test_once_for_all_workers_of_a_mold(server):
    """The workers have what it left in memory."""
    running = server("""
        import os
        BY = []

        def app(environ, start_response):
            BY.append(os.getpid())
            start_response("200 OK", [])
            return [repr(BY).encode()]
    """, "--preload", "-w", "2", "--warm-up", "/")
    running.wait_log(r"Worker ready", count=2)
    workers = running.workers()
    seen = {tuple(ast.literal_eval(running.get().text)[:1]) for _ in range(20)}
    ((by,),) = seen
    assert by not in workers and len(said(running)) == 1


@FORMS
@pytest.mark.parametrize("what", ["raises", "is answered 503"])
def test_one_that_fails_is_a_warning_at_the_start_and_fails_a_reload(server, options, what):
    query = "200+OK" if what == "raises" else "503+Unavailable"
    running = server(APP, "--pid", "pid", "--warm-up", "/?" + query, "--warm-up", "/other", *options, config="")
    running.expect_errors(r"Error handling warm-up request GET /\S+ \(--warm-up\)", r"Reload failed", r"Worker \(pid", r"Mold \(pid")
    running.wait_log(r"Worker ready")
    if what == "raises":
        assert "failed" not in running.log()
        running.touch("raise")
        reason = "warm-up request GET /?200+OK: RuntimeError: on purpose (--warm-up)"
    else:
        assert said(running)[0].endswith(" ms (--warm-up)") and said(running)[0].startswith("Warm-up request GET /?503+Unavailable: 503 after")
        assert said(running)[1].startswith("Warm-up request GET /other: 200 after")
        reason = "warm-up request GET /?503+Unavailable: 503 (--warm-up)"
    old = running.workers()
    done = harness.run("reload", "--wait", running.path("pid"))
    assert done.returncode == 1 and "the old workers serve on" in done.stderr and reason in done.stderr
    assert set(old) <= set(running.workers())
    if what == "raises":
        assert 'raise RuntimeError("on purpose")' in running.log()
        os.unlink(running.path("raise"))
        assert harness.run("reload", "--wait", running.path("pid")).returncode == 0
        # They accept nothing more, and end when what they have begun is done.
        harness.wait_until(lambda: not set(old) & set(running.workers()), 20, running.log)


def test_one_that_fails_does_not_keep_a_worker_from_being_replaced(server):
    running = server(APP, "--warm-up", "/", "-w", "1")
    running.wait_log(r"Worker ready")
    running.touch("raise")
    running.expect_errors(r"Error handling warm-up request", r"was killed by SIGKILL")
    os.kill(running.workers()[0], signal.SIGKILL)
    running.wait_log(r"Worker ready", count=2)
    os.unlink(running.path("raise"))
    assert running.get().status == 200


@pytest.mark.parametrize("answer", ["return 5", "return []", "start_response('soon', []); return []", "start_response('200 OK', []); return 5"])
def test_no_response_is_a_failure(server, answer):
    running = server("def app(environ, start_response):\n    %s\n" % answer, "--warm-up", "/")
    running.expect_errors(r"Error handling warm-up request GET / \(--warm-up\)")
    running.wait_log(r"Worker ready")
    assert re.search(r"^(TypeError|AssertionError|ValueError): ", running.log(), re.M)


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_a_stop_breaks_it_off(server, options):
    running = server("""
        import time

        def app(environ, start_response):
            open("inside", "w").close()
            time.sleep(600)
    """, "--warm-up", "/", "--graceful-timeout", "60", *options, wait=False)
    wait_until(lambda: running.exists("inside"), 20, running.log)
    running.signal(signal.SIGTERM)
    assert running.wait_exit(20) == 0


def test_the_fork_doctor_sees_what_it_left_open(server):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        running = server("""
            import socket
            OPEN = []

            def app(environ, start_response):
                OPEN.append(socket.create_connection(("127.0.0.1", %d)))
                start_response("200 OK", [])
                return []
        """ % listening.getsockname()[1], "--preload", "--warm-up", "/")
        running.wait_log(r"The application connected to 127\.0\.0\.1:%d \(TCP" % listening.getsockname()[1])


def test_a_check_of_the_configuration_makes_none(tmp_path):
    tmp_path.joinpath("checked.py").write_text("def app(environ, start_response):\n    open('asked', 'w')\n")
    done = harness.run("--check-config", "--warm-up", "/", "--chdir", tmp_path, "checked:app")
    assert done.returncode == 0 and not tmp_path.joinpath("asked").exists()
