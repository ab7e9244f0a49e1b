"""The smallest application: rgunicorn hello:application -w 4"""


def application(environ, start_response):
    body = b"Hello, world!\n"
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]
