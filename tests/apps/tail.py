"""Does what its path says until a file says that it is enough. Each answer is the request's query, and names its process.

`inside-NAME` tells that the request with the query NAME has begun, and in which process; `go` or `go-NAME` ends its
waiting, in C the fifo `gate`.
"""
import ctypes
import json
import os
import threading
import time

# Called without giving the interpreter up.
LIBC = ctypes.PyDLL(None)
FOR_EVER = 600


def told(name):
    return os.path.exists("go") or os.path.exists("go-" + name)


def say(name, text):
    with open(name + ".new", "w") as f:
        f.write(text)
    os.rename(name + ".new", name)


def wait_for_go(name):
    deadline = time.monotonic() + 60
    while not told(name):
        if time.monotonic() > deadline:
            raise RuntimeError("nobody said go to " + name)
        time.sleep(0.005)


def wait_in_c(_):
    """Until somebody opens the other end, with the interpreter."""
    LIBC.open(b"gate", os.O_RDONLY)


def stuck_asleep(name):
    try:
        time.sleep(FOR_EVER)
    finally:
        say("finally-" + name, threading.current_thread().name)


def stuck_in_python(name):
    try:
        while True:
            pass
    finally:
        say("finally-" + name, threading.current_thread().name)


def stuck_in_libc(_):
    # Every signal ends it.
    while True:
        LIBC.usleep(FOR_EVER * 1000000)


def stuck_in_arithmetic(_):
    sum(range(10 ** 12))


def stuck_and_stubborn(_):
    while True:
        try:
            time.sleep(FOR_EVER)
        except BaseException:
            pass


def take_a_nap(seconds):
    time.sleep(float(seconds))


def climb(height):
    return height and 1 + climb(height - 1)


def work_for(seconds):
    """Python code whose stack never stays as it is."""
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        for height in range(0, 500, 25):
            climb(height)


SLOW = {
    "/wait": wait_for_go, "/hold": wait_in_c, "/asleep": stuck_asleep, "/python": stuck_in_python,
    "/libc": stuck_in_libc, "/arithmetic": stuck_in_arithmetic, "/stubborn": stuck_and_stubborn,
}


def facts(environ):
    """What the environ says of the connection."""
    names = ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme")
    return {name: environ.get(name) for name in names}


def application(environ, start_response):
    path, name = environ["PATH_INFO"], environ["QUERY_STRING"]
    body = name.encode()
    if path in SLOW:
        say("inside-" + name, str(os.getpid()))
        SLOW[path](name)
    elif path == "/nap":
        take_a_nap(name)
    elif path == "/work":
        work_for(name)
    elif path == "/facts":
        body = json.dumps(facts(environ)).encode()
    elif path == "/echo":
        body = environ["wsgi.input"].read()
    elif path.startswith("/stream/"):
        return stream(path[len("/stream"):], name, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    return [body]


def stream(path, name, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    yield b"begun"
    say("inside-" + name, str(os.getpid()))
    SLOW[path](name)
    yield b"ended"
