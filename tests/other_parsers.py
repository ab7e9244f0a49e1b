"""What the parsers of other WSGI servers make of some bytes, without the servers around them.

Each function returns the requests, `(method, target, [host], body)`, and how it ends: `over`, `refused`, or `waiting` for more.
"""
import io
import types

from cheroot.server import HTTPRequest
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser

# As long as ours: the limits of the parsers differ, and are not what is compared.
LIMIT = 65536


def by_gunicorn(data):
    # There is none for the oldest Python.
    from gunicorn.config import Config
    from gunicorn.http import RequestParser
    from gunicorn.http.errors import NoMoreData, ParseException
    requests = []
    config = Config()
    config.set("limit_request_line", 8190)
    # A client, not a proxy.
    parser = RequestParser(config, iter([data]), ("192.0.2.1", 40000))
    try:
        for message in parser:
            body = message.body.read()
            fields = dict(message.headers)
            if len(body) < int(fields.get("CONTENT-LENGTH", 0)):
                return requests, "waiting"
            requests.append((message.method, message.uri, [v for k, v in message.headers if k == "HOST"], body))
            if message.should_close():
                return requests, "over"
    except (NoMoreData, StopIteration):
        return requests, "waiting"
    except ParseException:
        return requests, "refused"
    return requests, "waiting"


def by_waitress(data):
    requests = []
    adjustments = Adjustments(max_request_header_size=LIMIT)
    while data:
        parser = HTTPRequestParser(adjustments)
        while data and not parser.completed:
            data = data[parser.received(data):]
        if not parser.completed:
            return requests, "waiting"
        if parser.error:
            return requests, "refused"
        if parser.empty:
            continue
        host = [parser.headers["HOST"]] if "HOST" in parser.headers else []
        requests.append((parser.command, parser.request_uri, host, parser.get_body_stream().read()))
        if parser.connection_close:
            return requests, "over"
    return requests, "waiting"


class ReadFile(io.BufferedReader):
    """As cheroot's own reader of a socket."""

    def has_data(self):
        return bool(self.peek(1))


def by_cheroot(data):
    requests, incomplete = [], []

    class Gateway:
        def __init__(self, request):
            self.request = request

        def respond(self):
            request = self.request
            length = int(request.inheaders.get(b"Content-Length", 0))
            body = request.rfile.read() if request.chunked_read else request.rfile.read(min(length, LIMIT))
            if not request.chunked_read and len(body) < length:
                incomplete.append(True)
                return
            host = [request.inheaders[b"Host"].decode("latin-1")] if b"Host" in request.inheaders else []
            requests.append((request.method.decode("latin-1"), request.uri.decode("latin-1"), host, body))
            # What it would send is of no interest.
            request.sent_headers = True

    server = types.SimpleNamespace(
        ssl_adapter=None, max_request_header_size=LIMIT, max_request_body_size=0, protocol="HTTP/1.1", gateway=Gateway,
        server_name="test", stats={"Enabled": False}, timeout=10)
    connection = types.SimpleNamespace(rfile=ReadFile(io.BytesIO(data)), wfile=io.BytesIO())
    while connection.rfile.has_data():
        request = HTTPRequest(server, connection)
        try:
            request.parse_request()
            if request.ready:
                request.respond()
        except (ValueError, EOFError, OSError, OverflowError):
            return requests, "refused"
        if incomplete:
            return requests, "waiting"
        if not request.ready:
            return requests, "refused" if connection.wfile.getvalue() else "waiting"
        if request.close_connection:
            return requests, "over"
    return requests, "waiting"


PARSERS = {"gunicorn": by_gunicorn, "waitress": by_waitress, "cheroot": by_cheroot}
