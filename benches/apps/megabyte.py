"""1 MB of bytes in a list."""

BODY = b"x" * 1_000_000


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", "1000000")])
    return [BODY]
