"""Ends its process as its path says. Each answer is the request's query up to a `&`, and names its process.

`inside-NAME` tells that the request with the query NAME has begun; `go` or `go-NAME` ends its waiting. `ran` has a line for
each call of the application.
"""
import ctypes
import mmap
import os
import platform
import signal
import sys
import tempfile
import threading
import time

MACHINE_CODE = {
    "ill": b"\x0f\x0b",  # ud2
    "fpe": b"\x31\xc9\xb8\x01\x00\x00\x00\x99\xf7\xf9\xc3",  # 1 / 0
    "overflow": b"\xe8\xfb\xff\xff\xff",  # a function that calls itself
}


def execute(name):
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(MACHINE_CODE[name])
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(None)(address)()


def segv():
    ctypes.string_at(0)


def native(name, number):
    if platform.machine() == "x86_64":
        execute(name)
    signal.raise_signal(number)


def bus():
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        page[0]


def recurse(*_):
    return recurse_from_c() + 1


recurse_from_c = ctypes.CFUNCTYPE(ctypes.c_int)(recurse)


def overflow():
    if platform.machine() == "x86_64":
        execute("overflow")
    sys.setrecursionlimit(10 ** 9)
    recurse()


def fork_and_crash():
    """The child's end is none of the server's business."""
    pid = os.fork()
    if not pid:
        segv()
    return "child left with %d" % -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_and_return():
    return "child" if not os.fork() else "parent"


def fork_in_c():
    return "parent" if ctypes.CDLL(None).fork() else "child"


def crash_elsewhere(way=segv):
    """In a thread of the application's own, beside the request's."""
    thread = threading.Thread(target=way)
    thread.start()
    thread.join()


def crash_helper():
    """In a thread of the server's own, which runs no Python."""
    for task in os.listdir("/proc/self/task"):
        with open("/proc/self/task/%s/comm" % task) as f:
            if f.read() == "helper\n":
                ctypes.CDLL(None).tgkill(os.getpid(), int(task), signal.SIGSEGV)
    while True:
        time.sleep(1)


def fatal_error():
    ctypes.pythonapi.Py_FatalError.argtypes = [ctypes.c_char_p]
    ctypes.pythonapi.Py_FatalError(b"a check has failed")


def alarm():
    signal.alarm(1)
    while True:
        pass


WAYS = {
    "nothing": lambda: None, "raise-error": lambda: 1 / 0,
    "fatal": fatal_error, "c-exit": lambda: ctypes.CDLL(None).exit(9),
    "alarm": alarm,
    "cpu": lambda: os.kill(os.getpid(), signal.SIGXCPU),
    "segv": segv, "abort": os.abort, "bus": bus, "overflow": overflow,
    "fpe": lambda: native("fpe", signal.SIGFPE), "ill": lambda: native("ill", signal.SIGILL),
    "raise": lambda: signal.raise_signal(signal.SIGSEGV),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "_exit": lambda: os._exit(7), "_exit0": lambda: os._exit(0), "exit": lambda: sys.exit(7),
    "elsewhere": crash_elsewhere, "helper": crash_helper, "overflow-elsewhere": lambda: crash_elsewhere(overflow),
    "fork-and-crash": fork_and_crash, "fork-and-return": fork_and_return, "fork-in-c": fork_in_c,
}


def shout():
    """To standard error, until it takes no more."""
    os.set_blocking(2, False)
    try:
        while os.write(2, b"x" * 1024):
            pass
    except BlockingIOError:
        os.set_blocking(2, True)


def say(name, text):
    with open(name + ".new", "w") as f:
        f.write(text)
    os.rename(name + ".new", name)


def enter(name):
    book = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(book, name.encode() + b"\n")
    os.close(book)
    say("inside-" + name, str(os.getpid()))


def wait_for_go(name):
    deadline = time.monotonic() + 60
    while not (os.path.exists("go") or os.path.exists("go-" + name)):
        if time.monotonic() > deadline:
            raise RuntimeError("nobody said go to " + name)
        time.sleep(0.005)


def application(environ, start_response):
    path, name = environ["PATH_INFO"][1:], environ["QUERY_STRING"].partition("&")[0]
    enter(name)
    text = name
    first, _, rest = path.partition("/")
    if first in LATE:
        return LATE[first](environ, WAYS[rest], name, start_response)
    if first == "stream":
        return stream(rest, name, start_response)
    if first == "stream-fork":
        return stream_from_both(start_response)
    if first == "wait":
        wait_for_go(name)
        path = rest
    if first == "shout":
        shout()
        path = rest
    if first == "read":
        text = str(len(environ["wsgi.input"].read(1)))
        path = rest
    if path:
        text = WAYS[path]() or text
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    return [text.encode()]


# The application crashes after `start_response`, which sends nothing yet.

def named(name, *fields):
    return [("Content-Type", "text/plain"), ("Content-Length", str(len(name))), *fields]


def started(environ, way, name, start_response):
    start_response("200 OK", named(name))
    way()


def generated(environ, way, name, start_response):
    start_response("200 OK", named(name))
    way()
    yield name.encode()


class ClosedBadly(list):
    def close(self):
        self.way()


def closed(environ, way, name, start_response):
    """The response has left."""
    start_response("200 OK", named(name))
    body = ClosedBadly([name.encode()])
    body.way = way
    return body


def written(environ, way, name, start_response):
    start_response("200 OK", named(name + "more"))(name.encode())
    way()


def sent_by_the_kernel(environ, way, name, start_response):
    """The application has returned, and the response goes on."""
    file = tempfile.TemporaryFile()
    file.truncate(1 << 28)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(1 << 28))])
    return environ["wsgi.file_wrapper"](file)


# All of the response has left as far as the server is concerned, and the application goes on: `inside-NAME-ending`.

LONG = 8000


class EndsSlowly:
    def close(self):
        say("inside-%s-ending" % self.name, str(os.getpid()))
        wait_for_go(self.name + "-ending")


class Blocks(EndsSlowly, list):
    pass


class Stream(EndsSlowly):
    """Nobody knows that a block is the last."""

    def __init__(self, text):
        self.text = text

    def __iter__(self):
        yield self.text[:1]
        yield self.text[1:]


class File(EndsSlowly):
    def __init__(self, size, text=b""):
        self.file = tempfile.TemporaryFile()
        self.file.write(text)
        self.file.truncate(size)
        self.file.seek(0)

    def __getattr__(self, name):
        return getattr(self.file, name)


def ending(environ, way, name, start_response):
    form = environ["QUERY_STRING"].partition("&")[2]
    text = name.encode() * LONG
    size = 1 << 28 if form == "huge" else len(text)
    fields = [] if form == "stream" else [("Content-Length", str(size))]
    write = start_response("200 OK", [("Content-Type", "text/plain"), *fields])
    body = {"write": Blocks, "blocks": lambda: Blocks([text[:1], text[1:]]), "stream": lambda: Stream(text),
            "file": lambda: File(size, text), "huge": lambda: File(size)}[form]()
    body.name = name
    if form == "write":
        write(text)
        body.close()
        return []
    return environ["wsgi.file_wrapper"](body) if isinstance(body, File) else body


LATE = {"started": started, "generated": generated, "closed": closed, "written": written, "sent": sent_by_the_kernel,
        "ending": ending}


def stream_from_both(start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    yield fork_and_return().encode()


def stream(path, name, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    yield b"begun"
    wait_for_go(name)
    WAYS[path]()
    yield b"ended"
