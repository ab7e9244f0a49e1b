"""An application whose requests take as long as their path says.

/fast sleeps 1 ms, /slow?ms=N sleeps and /spin?ms=N computes that long; /echo answers the length of the body; /hello answers at
once; /pid names the process. /slow?ms=N&mark=1 writes its process id to the file BENCH_MARK as soon as it is in here.
"""

import os
import time
from urllib.parse import parse_qs

BLOCK = 65536


def fast(environ):
    time.sleep(0.001)
    return b"fast"


def slow(environ):
    if "mark" in query(environ):
        mark(os.environ["BENCH_MARK"])
    time.sleep(seconds(environ))
    return b"slow"


def spin(environ):
    end = time.perf_counter() + seconds(environ)
    while time.perf_counter() < end:
        pass
    return b"spin"


def hello(environ):
    return b"Hello, world!"


def echo(environ):
    left = int(environ.get("CONTENT_LENGTH") or 0)
    body, total = environ["wsgi.input"], 0
    while left > 0 and (block := body.read(min(BLOCK, left))):
        left -= len(block)
        total += len(block)
    return str(total).encode()


def pid(environ):
    """Long enough for a second process to be asked meanwhile."""
    time.sleep(0.005)
    return str(os.getpid()).encode()


def query(environ):
    return parse_qs(environ.get("QUERY_STRING", ""))


def seconds(environ):
    return int(query(environ)["ms"][0]) / 1000


def mark(path):
    """Appears with its content."""
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)


ROUTES = {"/fast": fast, "/slow": slow, "/spin": spin, "/hello": hello, "/echo": echo, "/pid": pid}


def application(environ, start_response):
    body = ROUTES[environ["PATH_INFO"]](environ)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
