"""Calls a WSGI application without any server, to show how much of a request is the application itself.

python alone.py MODULE:CALLABLE PATH SECONDS
"""

import importlib
import io
import json
import os
import sys
import time

WARM_UP = 50


def environ(path):
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


def call(app, path):
    status = []
    result = app(environ(path), lambda line, headers, exc_info=None: status.append(line))
    try:
        b"".join(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    assert status[0].startswith("200"), status


def main(name, path, seconds):
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    app = getattr(importlib.import_module(module), attribute)
    for _ in range(WARM_UP):
        call(app, path)
    calls, took, start, before = 0, [], time.monotonic(), os.times()
    clock = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
    while time.monotonic() < start + seconds:
        began = time.monotonic()
        call(app, path)
        took.append(time.monotonic() - began)
        calls += 1
    cpu = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) - clock
    after = os.times()
    user, system = after.user - before.user, after.system - before.system
    share = user / (user + system) if user + system else 1.0
    took.sort()
    result = {"requests": calls, "duration_us": (time.monotonic() - start) * 1e6, "errors": 0}
    result.update(cpu=cpu, user=cpu * share, system=cpu * (1 - share))
    for key, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        result[key] = int(took[min(int(calls * part), calls - 1)] * 1e6)
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
