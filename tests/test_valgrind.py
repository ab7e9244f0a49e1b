"""A few requests of each kind under valgrind: no process of the server reads or writes what it should not.

Slow, and so only with `RGUNICORN_VALGRIND=1`, as `make memcheck` sets it.
"""
import glob
import os
import re
import shutil
import sys

import pytest

import harness
from test_leaks import APP, FAILING, KINDS, fail

pytestmark = [
    pytest.mark.skipif(os.environ.get("RGUNICORN_VALGRIND") != "1", reason="slow: RGUNICORN_VALGRIND=1"),
    pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed"),
    pytest.mark.timeout(900),
]

PATIENCE = 300
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) errors")


def valgrind(folder):
    """Every process of the server reports to a file of its own. The interpreter takes memory by malloc, where it is seen.

    Values that were never written are not looked for: the interpreter's own table of small numbers is indexed by one, as it
    is compiled, and from there it is everywhere.
    """
    checks = ["--log-file=%s/valgrind.%%p" % folder, "--num-callers=40", "--leak-check=no", "--undef-value-errors=no"]
    return ["valgrind", *checks, sys.executable, "-m", "rgunicorn"]


@pytest.mark.parametrize("options", [(), ("--preload", "--threads", "2")], ids=["plain", "preload"])
def test_no_error_is_seen(server, tmp_path, options):
    running = server(APP, *options, "--timeout", "0", "--graceful-timeout", "120", leading=valgrind(tmp_path),
                     env={"PYTHONMALLOC": "malloc"}, wait=False)
    running.expect_errors()
    running.wait_log(r"Worker ready", PATIENCE)
    for _ in range(3):
        with running.connect(PATIENCE) as connection:
            for target, method, fields, body, status in KINDS:
                assert connection.exchange(method, target, fields, body).status == status
        for kind in FAILING:
            fail(running, *kind)
    assert running.stop(timeout=PATIENCE) == 0
    assert errors(tmp_path) == []


def errors(folder):
    """The reports of the processes in which something was seen."""
    reports = [harness.read_text(path) for path in glob.glob(os.path.join(str(folder), "valgrind.*"))]
    ended = [report for report in reports if SUMMARY.search(report)]
    assert len(ended) >= 2, "the arbiter and a worker: %s" % reports
    return [report[:8000] for report in reports if re.search(r"ERROR SUMMARY: [1-9]|Invalid (read|write|free)", report)]


def test_an_error_would_be_seen(server, tmp_path):
    running = server("""
        import ctypes
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

        def app(environ, start_response):
            memory = libc.malloc(1000)
            libc.free(memory)
            ctypes.string_at(memory, 10)
            start_response("200 OK", [("Content-Length", "0")])
            return []
    """, "--timeout", "0", leading=valgrind(tmp_path), env={"PYTHONMALLOC": "malloc"}, wait=False)
    running.wait_log(r"Worker ready", PATIENCE)
    assert running.get("/", timeout=PATIENCE).status == 200
    assert running.stop(timeout=PATIENCE) == 0
    assert len(errors(tmp_path)) == 1
