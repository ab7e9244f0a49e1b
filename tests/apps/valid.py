"""Every way to give a body, each inside wsgiref's validator; PATH_INFO chooses. What the validator objects to raises."""
import os
from wsgiref.validate import validator

FILE = __file__


def listed(environ, start_response):
    start_response("200 OK", headers())
    return [b"hello ", b"world"]


def single(environ, start_response):
    start_response("200 OK", headers(("Content-Length", "11")))
    return [b"hello world"]


def generated(environ, start_response):
    start_response("200 OK", headers())
    for piece in (b"hello", b" ", b"world"):
        yield piece


def written(environ, start_response):
    write = start_response("200 OK", headers())
    write(b"hello ")
    write(b"world")
    return []


def written_and_listed(environ, start_response):
    write = start_response("200 OK", headers())
    write(b"hello")
    return [b" ", b"world"]


def wrapped(environ, start_response):
    start_response("200 OK", headers())
    return environ["wsgi.file_wrapper"](open(os.path.join(os.path.dirname(FILE), "hello.txt"), "rb"), 4)


def posted(environ, start_response):
    lines = []
    for line in environ["wsgi.input"]:
        lines.append(line)
    start_response("200 OK", headers())
    return [b"".join(lines)]


def failed(environ, start_response):
    import sys
    start_response("200 OK", headers())
    try:
        raise ValueError
    except ValueError:
        start_response("503 Sorry", headers(), sys.exc_info())
    return [b"hello world"]


def empty(environ, start_response):
    start_response("204 No Content", [("X-Empty", "1")])
    return []


def errors(environ, start_response):
    environ["wsgi.errors"].write("one line for the log\n")
    environ["wsgi.errors"].writelines(["two ", "pieces\n"])
    environ["wsgi.errors"].flush()
    start_response("200 OK", headers())
    return [b"hello world"]


def headers(*more):
    return [("Content-Type", "text/plain")] + list(more)


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/")](environ, start_response)


app = validator(application)
