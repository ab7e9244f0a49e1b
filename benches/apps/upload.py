"""Reads the whole request body in blocks of 64 KiB, as Django reads an upload, and answers its length."""

BLOCK = 65536


def application(environ, start_response):
    left = int(environ.get("CONTENT_LENGTH") or 0)
    body, total = environ["wsgi.input"], 0
    while left > 0 and (block := body.read(min(BLOCK, left))):
        left -= len(block)
        total += len(block)
    answer = str(total).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
