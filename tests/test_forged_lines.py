"""Text of the application's in the error log: it stays readable and passes for no line of the server's."""
import re

import pytest

FORGED = "[2026-01-01 00:00:00 +0000] [1] [CRITICAL] forged"
APP = """
    import logging, sys
    FORGED = %r

    class Odd(Exception):
        def __str__(self):
            return "first\\n" + FORGED + "\\rsecond\\x1b[31m\\u2028" + FORGED

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        errors = environ["wsgi.errors"]
        if path == "/raise":
            raise Odd()
        if path == "/errors":
            errors.write(FORGED + "\\n")
            errors.write("plain\\n" + FORGED + "\\r\\n")
            errors.writelines([FORGED, "\\n", "half "])
            print(FORGED, file=errors)
        if path == "/log":
            logging.getLogger("gunicorn.error").error("said\\n%%s", FORGED)
        if path == "/close":
            return Closed([b"served"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served"]

    class Closed(list):
        def __iter__(self):
            raise Odd()
""" % FORGED

@pytest.mark.parametrize("config", ["", "from rgunicorn.glogging import Logger\nclass Own(Logger): pass\nlogger_class = Own\n"],
                         ids=["rust", "python"])
def test_no_text_of_the_application_looks_like_a_line_of_the_servers(server, config):
    running = server(APP, config=config)
    running.expect_errors()
    for path in ("/raise", "/errors", "/log", "/close"):
        running.get(path)
    running.wait_log("said")
    running.wait_log(r"half ")
    assert running.stop() == 0
    log = running.log()
    assert log.count("forged") >= 8, log
    assert not re.search(r"^\[2026-01-01", log, re.M), log
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", log)
    # Readable: the traceback is as Python writes it.
    assert re.search(r'^Traceback \(most recent call last\):\n  File ".*app.py", line \d+, in app$', log, re.M), log
    assert re.search(r"^app\.Odd: first$", log, re.M) and re.search(r"^plain$", log, re.M), log


def test_an_exception_of_the_import_and_of_a_hook(server):
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [])
            return []
    """, config="def post_request(worker, req): raise ValueError('x\\n%s')\n" % FORGED)
    running.expect_errors()
    running.get("/")
    running.wait_log("Exception in post_request hook")
    running.wait_log("forged")
    assert not re.search(r"^\[2026-01-01", running.log(), re.M)
