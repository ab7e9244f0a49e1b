"""That an error of memory would be seen when the other tests run by `make asan`."""
import glob
import os

import pytest

import harness

pytestmark = pytest.mark.skipif(not harness.SANITIZED, reason="`make asan` runs all tests with AddressSanitizer")

APP = """
    import ctypes, os, sys
    libc, python = ctypes.CDLL(None), ctypes.pythonapi
    libc.malloc.restype = python.PyObject_Malloc.restype = ctypes.c_void_p
    libc.free.argtypes = python.PyObject_Free.argtypes = [ctypes.c_void_p]

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/freed":
            memory = libc.malloc(1000)
            libc.free(memory)
            ctypes.string_at(memory, 10)
        elif path == "/twice":
            memory = python.PyObject_Malloc(1000)
            python.PyObject_Free(memory)
            libc.free(memory - 16)
        elif path == "/beyond":
            memory = python.PyObject_Malloc(1000)
            ctypes.memset(memory, 0, 1001)
            python.PyObject_Free(memory)
        start_response("200 OK", [("X-Dev", str(sys.flags.dev_mode))])
        return [b"alive"]
"""


@pytest.fixture
def broken(tmp_path):
    """A server whose reports are not those of the suite, and of which nothing is expected in the end."""
    options = os.environ["ASAN_OPTIONS"] + ":log_path=%s/report" % tmp_path
    running = harness.Server(tmp_path, APP, env={"ASAN_OPTIONS": options})
    running.wait_listening()
    yield running
    running.kill()


def reports(folder):
    return [harness.read_text(path) for path in glob.glob("%s/report.*" % folder)]


def break_by(running, path):
    with running.connect() as connection:
        connection.send_request("GET", path)
        connection.expect_closed()


@pytest.mark.parametrize("path, kind", [("/freed", "heap-use-after-free"), ("/twice", "double-free")])
def test_a_report_is_written(broken, tmp_path, path, kind):
    break_by(broken, path)
    broken.wait_log(r"Worker \(pid:\d+\) exited")
    [report] = reports(tmp_path)
    assert "ERROR: AddressSanitizer" in report and kind in report
    assert broken.get("/").text == "alive"


def test_pythons_own_checks_are_on(broken, tmp_path):
    assert broken.get("/").header("x-dev") == "True"
    break_by(broken, "/beyond")
    broken.wait_log(r"Worker \(pid:\d+\) was killed by SIGABRT")
    # What they say is trouble, whatever a test expects.
    broken.expect_errors()
    assert any("Debug memory block at" in line for line in broken.trouble())
    assert reports(tmp_path) == []


def test_the_module_is_instrumented():
    from rgunicorn import _core
    with open(_core.__file__, "rb") as module:
        assert b"__asan_report_load8" in module.read()


SLOT = """Fatal Python error: _Py_CheckSlotResult: Slot * of type int succeeded with an exception set
Python runtime state: initialized
%s

Current thread 0x00007fda3e734780 (most recent call first):
  File "%s", line 147 in function
  File "/tests/apps/doom.py", line 6 in <module>
[2026-01-02 03:04:05 +0000] [1] [ERROR] Worker (pid:7) was killed by SIGABRT. It was aborted: by Python's own checks. It lived.
"""


@pytest.mark.parametrize("error, file, forgiven", [
    ("rgunicorn.Interrupted: 0", "<frozen importlib._bootstrap_external>", True),
    ("rgunicorn.Interrupted: 0", "/venv/lib/python3.11/site-packages/rgunicorn/__main__.py", False),
    ("ValueError: 0", "<frozen importlib._bootstrap_external>", False),
])
def test_of_assertions_only_that_of_a_stat_that_is_interrupted_is_forgiven(error, file, forgiven):
    text = SLOT % (error, file)
    left = harness.without_interrupted_stat(text)
    assert (harness.BROKEN.search(left) is None) == ("ERROR" not in left) == forgiven
    # What else ends beside it is not.
    assert harness.BROKEN.search(harness.without_interrupted_stat(text + SLOT % ("", file)))
    assert "(pid:8)" in harness.without_interrupted_stat(text + text.splitlines()[-1].replace("pid:7", "pid:8"))
