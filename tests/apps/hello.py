"""Says hello, and in a header which process said it."""
import os
from wsgiref.validate import validator


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    return [b"Hello, world!\n"]


app = application
validated = validator(application)
