import time


def wait_for_the_database():
    time.sleep(0.3)


def app(environ, start_response):
    wait_for_the_database()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
