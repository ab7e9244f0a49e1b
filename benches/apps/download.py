"""A file through wsgi.file_wrapper, or block by block where the server has none. BENCH_FILE names the file."""

import os

PATH = os.environ["BENCH_FILE"]
SIZE = os.path.getsize(PATH)
BLOCK = 65536


def application(environ, start_response):
    headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(SIZE))]
    start_response("200 OK", headers)
    file = open(PATH, "rb")
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper(file, BLOCK) if wrapper else blocks(file)


def blocks(file):
    with file:
        while block := file.read(BLOCK):
            yield block
