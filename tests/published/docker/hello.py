import os

print("imported")


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%s %d" % (os.environ["PYTHONUNBUFFERED"].encode(), environ["wsgi.multithread"])]
