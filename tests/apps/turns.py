"""Each answer names its place in the order in which the application was called. `held` is told when a request is inside
that waits for the file `go`."""
import os
import time
from itertools import count

CALLS = count(1)


def application(environ, start_response):
    path, number = environ["PATH_INFO"], next(CALLS)
    if path == "/hold":
        open("held", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.005)
    elif path == "/slow":
        time.sleep(float(environ["QUERY_STRING"].partition("&")[0]))
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Place", str(number))])
    return [environ["QUERY_STRING"].encode()]
