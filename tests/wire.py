"""An HTTP/1.1 client on a bare socket: sends exactly the bytes given, reads exactly one response, and checks its framing.

It is stricter than a client has to be: what it refuses (two Content-Length lines, a bare LF, bytes after the end) is
what a proxy may understand differently.
"""
import re
import select
import socket
import ssl
import struct

TIMEOUT = 20
STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9] [\t -~\x80-\xff]*\Z")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\Z")
ONCE = (b"content-length", b"transfer-encoding", b"date", b"server", b"connection")


def strict(context):
    """A context of TLS for which an end without TLS's own word for it (close_notify) is an error; some Pythons take either."""
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


class ProtocolError(AssertionError):
    """The server broke the protocol."""


class Response:
    def __init__(self, status_line, fields):
        self.version, status, self.reason = status_line.decode("latin-1").split(" ", 2)
        self.status = int(status)
        self.fields = fields
        self.body = b""
        self.trailers = []
        self.framing = None
        self.chunks = []
        self.interim = []

    def all(self, name):
        return [v.decode("latin-1") for n, v in self.fields if n.lower() == name.lower().encode()]

    def header(self, name, default=None):
        values = self.all(name)
        return values[0] if values else default

    @property
    def text(self):
        return self.body.decode("utf-8")

    @property
    def closing(self):
        """Whether the server says that the connection ends here."""
        tokens = [t.strip().lower() for v in self.all("connection") for t in v.split(",")]
        return "close" in tokens or self.framing == "close" or (self.version == "HTTP/1.0" and "keep-alive" not in tokens)

    def __repr__(self):
        return "<Response %s %s %r %r>" % (self.status, self.reason, self.fields, self.body[:200])


class Connection:
    """One connection; `address` is (host, port) or the path of a unix socket, `source` the host it comes from."""

    def __init__(self, address, timeout=None, receive_buffer=None, source=None):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout or TIMEOUT)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source and family != socket.AF_UNIX:
            self.sock.bind((source, 0))
        self.sock.connect(address)
        if family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.eof = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def local_port(self):
        return self.sock.getsockname()[1]

    def close(self):
        self.sock.close()

    def reset(self):
        """Ends the connection with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    # Sending.

    def send(self, *segments):
        for segment in segments:
            self.sock.sendall(segment)

    def send_request(self, method="GET", target="/", headers=(), body=None, version="HTTP/1.1"):
        self.send(request_bytes(method, target, headers, body, version))

    # Receiving.

    def readable(self, seconds=0):
        """Whether bytes or the end have come within `seconds`."""
        return bool(self.buffer) or bool(select.select([self.sock], [], [], seconds)[0])

    def _fill(self):
        """One more read; False at the end of the stream."""
        if self.eof:
            return False
        try:
            data = self.sock.recv(65536)
        except socket.timeout:
            raise ProtocolError("nothing came within %s s; before it: %r" % (self.sock.gettimeout(), self.buffer[:500])) from None
        except ConnectionResetError:
            raise ProtocolError("connection reset; before it: %r" % self.buffer[:500]) from None
        self.eof = not data
        self.buffer += data
        return bool(data)

    def read_exactly(self, count):
        pieces = [self.buffer]
        have = len(self.buffer)
        self.buffer = b""
        while have < count:
            if not self._fill():
                raise ProtocolError("the stream ended %d bytes before the end of the body" % (count - have))
            pieces.append(self.buffer)
            have += len(self.buffer)
            self.buffer = b""
        data = b"".join(pieces)
        self.buffer = data[count:]
        return data[:count]

    def read_some(self):
        """Whatever has come, at least one byte; b"" at the end."""
        if not self.buffer:
            self._fill()
        data, self.buffer = self.buffer, b""
        return data

    def read_line(self):
        while b"\n" not in self.buffer:
            if not self._fill():
                raise ProtocolError("the stream ended inside a line: %r" % self.buffer[:500])
        line, _, self.buffer = self.buffer.partition(b"\n")
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            raise ProtocolError("line without CRLF: %r" % line)
        return line[:-1]

    def read_fields(self):
        fields = []
        while True:
            line = self.read_line()
            if not line:
                return fields
            match = FIELD.match(line)
            if not match:
                raise ProtocolError("not a header field: %r" % line)
            fields.append(match.groups())

    def read_head(self, method="GET"):
        """The head of the next response, 100s included; `framing` says how its body ends."""
        status_line = self.read_line()
        if not STATUS_LINE.match(status_line):
            raise ProtocolError("not a status line: %r" % status_line)
        response = Response(status_line, self.read_fields())
        for name in ONCE:
            if len(response.all(name.decode())) > 1:
                raise ProtocolError("%s twice: %r" % (name, response))
        response.framing = self._framing(response, method)
        return response

    @staticmethod
    def _framing(response, method):
        length, coding = response.header("content-length"), response.header("transfer-encoding")
        if length is not None and coding is not None:
            raise ProtocolError("Content-Length and Transfer-Encoding: %r" % response)
        if length is not None and not re.match(r"[0-9]+\Z", length):
            raise ProtocolError("Content-Length %r" % length)
        if (response.status < 200 or response.status == 204) and (length or coding):
            raise ProtocolError("framing fields in %r" % response)
        if response.status < 200 or response.status in (204, 304) or method == "HEAD":
            return "none"
        if coding is not None:
            if coding.lower() != "chunked" or response.version == "HTTP/1.0":
                raise ProtocolError("Transfer-Encoding %r in %r" % (coding, response))
            return "chunked"
        return "close" if length is None else "length"

    def read_chunk(self):
        """The data of the next chunk; b"" for the last one, before the trailers."""
        line = self.read_line()
        if not re.match(rb"[0-9A-Fa-f]+\Z", line):
            raise ProtocolError("not a chunk size: %r" % line)
        size = int(line, 16)
        if not size:
            return b""
        data = self.read_exactly(size)
        if self.read_exactly(2) != b"\r\n":
            raise ProtocolError("no CRLF after a chunk")
        return data

    def body_pieces(self, response):
        """The body piece by piece as it comes; for bodies too large to hold."""
        if response.framing == "length":
            left = int(response.header("content-length"))
            while left:
                if not self.buffer and not self._fill():
                    raise ProtocolError("the stream ended %d bytes before the end of the body" % left)
                piece, self.buffer = self.buffer[:left], self.buffer[left:]
                left -= len(piece)
                yield piece
        elif response.framing == "chunked":
            while True:
                piece = self.read_chunk()
                if not piece:
                    break
                response.chunks.append(len(piece))
                yield piece
            response.trailers = self.read_fields()
        elif response.framing == "close":
            while self.buffer or self._fill():
                yield self.read_some()

    def read_body(self, response):
        response.body = b"".join(self.body_pieces(response))
        return response

    def read_response(self, method="GET"):
        """One whole response, the interim ones before it collected in `.interim`."""
        interim = []
        response = self.read_head(method)
        while response.status < 200:
            interim.append(response)
            response = self.read_head(method)
        response.interim = interim
        return self.read_body(response)

    def exchange(self, method="GET", target="/", headers=(), body=None, version="HTTP/1.1"):
        self.send_request(method, target, headers, body, version)
        return self.read_response(method)

    def expect_eof(self):
        """The server ends the stream in order, with nothing more in it."""
        while self._fill():
            pass
        if self.buffer:
            raise ProtocolError("extra bytes: %r" % self.buffer[:500])

    def expect_closed(self):
        """The server ends the stream, in order or not; gives what came before."""
        try:
            while self._fill():
                pass
        except ProtocolError as error:
            if "reset" not in str(error):
                raise
        data, self.buffer = self.buffer, b""
        return data


def request_bytes(method="GET", target="/", headers=(), body=None, version="HTTP/1.1"):
    headers = list(headers.items() if hasattr(headers, "items") else headers)
    names = [n.lower() for n, _ in headers]
    if version == "HTTP/1.1" and "host" not in names:
        headers.insert(0, ("Host", "test"))
    if body is not None and "content-length" not in names and "transfer-encoding" not in names:
        headers.append(("Content-Length", str(len(body))))
    lines = ["%s %s %s" % (method, target, version)] + ["%s: %s" % field for field in headers]
    return "\r\n".join(lines + ["", ""]).encode("latin-1") + (body or b"")


def chunked(*pieces, trailers=b""):
    """A body in chunks, the last chunk included."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n" + trailers + b"\r\n"
