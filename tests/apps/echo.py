"""Answers with what it was given: the environ, the body and what reading the body raised, as JSON.

`?read=no` leaves the body unread.
"""
import hashlib
import json
import os
from wsgiref.validate import validator


def application(environ, start_response):
    seen = {"environ": {k: v for k, v in environ.items() if isinstance(v, (str, bool, int, tuple))},
            "types": {k: type(v).__name__ for k, v in environ.items()},
            "os": {k: v for k, v in os.environ.items() if k.startswith("HTTP_")},
            "pid": os.getpid()}
    if "read=no" not in environ.get("QUERY_STRING", ""):
        pieces = []
        while True:
            piece = environ["wsgi.input"].read(65536)
            if not piece:
                break
            pieces.append(piece)
        body = b"".join(pieces)
        seen.update(length=len(body), sha256=hashlib.sha256(body).hexdigest(), body=body[:10000].decode("latin-1"))
    answer = json.dumps(seen).encode("ascii")
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


app = application
validated = validator(application)
