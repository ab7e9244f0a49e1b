"""The same bytes to this server, to real Nginx, HAProxy and Apache in front of it, to h11 and to other servers' parsers: whoever
accepts them must see the same requests in them.

A difference in which request a body ends, how many there are, or for whom and for what they are, is how one client's request
becomes part of another's, or gets another's answer. To refuse is always safe. What we accept and another reads otherwise fails
here, unless `EXPLAINED` says why it is harmless.

A client that has sent its octets says that no more will come, so that nobody waits for them.
"""
import errno
import json
import os
import re
import selectors
import socket

import h11
import pytest

import framing_corpus
import fronts as others
import nginx
import other_parsers
import wire

# Behind every case: whoever has found the end of it sees this as a request of its own, and closes.
MARKER = b"GET /marker HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

# A pattern of case names, and why the difference is harmless.
EXPLAINED = {}

APP = """
    import json

    def app(environ, start_response):
        body = environ["wsgi.input"].read()
        seen = [environ["REQUEST_METHOD"], environ["RAW_URI"], environ.get("HTTP_HOST", ""), body.decode("latin-1")]
        answer = json.dumps(seen).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]
"""


def request(method, target, host, body):
    """One request, in the form in which those of different servers are the same: the target without the scheme and the authority
    that a proxy takes off, a host in small letters without its port."""
    target = re.sub(r"\A\w[\w+.-]*://[^/?]*", "", target)
    if target[:1] in ("", "?"):
        target = "/" + target
    return [method, target, re.sub(r":\d*\Z", "", host.lower()), body]


MARK = request("GET", "/marker", "test", "")


class Reading:
    """What a server makes of some octets: the requests, and how it ends: `over`, `refused`, or `waiting` for more."""

    def __init__(self):
        self.requests = []
        self.end = "waiting"

    def __repr__(self):
        return "%s %s" % (self.requests, self.end)

    def has_ended(self):
        """Nothing that followed was or will be a request: it has refused, or has ended the connection of its own accord."""
        return self.end == "refused" or self.end == "over" and self.requests[-1] != MARK


def contradiction(ours, other):
    """Why the two could not stand behind one another, if they could not."""
    for n, (mine, theirs) in enumerate(zip(ours.requests, other.requests)):
        if mine != theirs:
            return "request %d differs" % n
    if len(ours.requests) > len(other.requests) and not other.has_ended():
        return "we see more requests"
    if len(ours.requests) < len(other.requests) and not ours.has_ended():
        return "we see fewer requests"
    return None


# --- readers ---

def ask_all(address, messages, piece=None, at_once=64, ended=True):
    """What is answered to each, on a connection of its own, up to its end; sent in pieces of so many octets. Unless `ended`, a
    client does not say that no more will come, which some proxies take for its departure."""
    answers, waiting = [b""] * len(messages), list(enumerate(messages))[::-1]
    with selectors.DefaultSelector() as selector:
        while waiting or selector.get_map():
            while waiting and len(selector.get_map()) < at_once:
                number, message = waiting.pop()
                selector.register(asking(address, message, piece or len(message), ended), selectors.EVENT_READ, number)
            ready = selector.select(60)
            assert ready, "no answer within a minute to %r" % [messages[key.data] for key in selector.get_map().values()][:3]
            for key, _ in ready:
                try:
                    data = key.fileobj.recv(65536)
                except ConnectionResetError:
                    data = b""
                answers[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    return answers


def asking(address, message, piece, ended):
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(60)
    sock.connect(address)
    try:
        for start in range(0, len(message), piece):
            sock.sendall(message[start:start + piece])
        if ended:
            sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        # It has refused before everything was sent; what it said can still be read.
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise
    return sock


def reading(said, parse):
    """Of what a server has said to its end; `parse` makes a request of a body."""
    made = Reading()
    connection = object.__new__(wire.Connection)
    connection.buffer, connection.eof = said, True
    while connection.buffer:
        if not connection.buffer.startswith(b"HTTP/1."):
            # Nginx still speaks HTTP/0.9: a body, and the end of the connection.
            page = connection.buffer.startswith(b"<")
            made.requests += [] if page else [parse(connection.buffer.decode("latin-1"))]
            made.end = "refused" if page else "over"
            break
        response = connection.read_response()
        if response.status != 200:
            made.end = "refused"
            break
        made.requests.append(parse(response.body.decode("latin-1")))
        if response.closing:
            made.end = "over"
            break
    return made


def of_application(text):
    method, target, host, body = json.loads(text)
    return request(method, target, host, body)


def of_nginx(text):
    return request(*text.split("\n"), body="")


def by_h11(data):
    made = Reading()
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    head, body = None, b""
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return made
            if isinstance(event, h11.Request):
                # RFC 9112, 3.2.2: in front of a path it takes the place of Host; h11 leaves that to its user.
                absolute = re.match(rb"\w[\w+.-]*://([^/?]*)", event.target)
                hosts = [absolute[1]] if absolute else [value for name, value in event.headers if name == b"host"]
                head, body = [event.method, event.target, b"".join(hosts)], b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                made.requests.append(request(*(part.decode("latin-1") for part in head + [body])))
                # After a 200 to CONNECT there would be no requests any more.
                status = 405 if head[0] == b"CONNECT" else 200
                connection.send(h11.Response(status_code=status, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    made.end = "over"
                    return made
                connection.start_next_cycle()
    except h11.RemoteProtocolError:
        made.end = "refused"
        return made


def by_parser(parse, data):
    """Of another server's parser, on a connection that ends behind the bytes."""
    made = Reading()
    requests, made.end = parse(data)
    for method, target, hosts, body in requests:
        # As `by_h11` does: what takes the place of Host is not the parser's to say.
        absolute = re.match(r"\w[\w+.-]*://([^/?]*)", target)
        host = absolute[1] if absolute else "".join(hosts)
        made.requests.append(request(method, target, host, body.decode("latin-1")))
    return made


# --- the servers ---

LENIENT = ["--permit-obsolete-folding", "--strip-header-spaces", "--permit-unconventional-http-method",
           "--permit-unconventional-http-version"]


@pytest.fixture(scope="module", params=[[], LENIENT], ids=["strict", "lenient"])
def ours(module_server, request, tmp_path_factory):
    """What an operator may permit must be as safe. A unix socket, as there are not so many ports."""
    path = os.path.join(str(tmp_path_factory.mktemp("ours")), "socket")
    running = module_server(APP, *request.param, "--bind", "unix:" + path)
    running.expect_errors(r"Error handling request")
    return running


@pytest.fixture(scope="module")
def fronts(ours, tmp_path_factory):
    """Nginx in front of us, which shows what it has understood by what it passes on; and Nginx by itself."""
    nginx.require()
    directory = str(tmp_path_factory.mktemp("nginx"))

    def config(port):
        passed = "proxy_http_version 1.1; proxy_set_header Host $host; proxy_ignore_client_abort on;"
        text = nginx.own("unix:" + ours.address, passed)(port)
        text = text.replace("server { listen", "server { listen unix:%s/front; listen" % directory)
        alone = "server { listen unix:%s/alone; location / { return 200 '$request_method\n$request_uri\n$host'; } }" % directory
        return text.replace("upstream app", "%s upstream app" % alone)
    front = nginx.Nginx(directory, config)
    front.allowed.append(r"upstream (prematurely closed|sent)|client (closed|sent|prematurely)|sendfile|\[error\].*(invalid|too)")
    yield {"proxy": directory + "/front", "alone": directory + "/alone"}
    front.finish()


def known_of_nginx(alone):
    """It answers before it has read a body: of a request that it still waits for, nothing is known."""
    if alone.end == "waiting":
        alone.requests = alone.requests[:-1]
    return alone


def apart(mine, alone):
    """As `contradiction`, with a server of which only the requests are known, not their bodies."""
    for n, (ours, theirs) in enumerate(zip(mine.requests, alone.requests)):
        if ours[:-1] != theirs[:-1]:
            return "request %d differs" % n
    if len(alone.requests) > len(mine.requests) and not mine.has_ended():
        return "we see fewer requests"
    return None


def differences(ours, fronts, cases):
    """(name, what, octets, readings) of each case that two of them could read differently, and how many were accepted."""
    messages = [data + MARKER for _, data in cases]
    mine = [reading(said, of_application) for said in ask_all(ours.address, messages)]
    behind = [reading(said, of_application) for said in ask_all(fronts["proxy"], messages)]
    alone = [known_of_nginx(reading(said, of_nginx)) for said in ask_all(fronts["alone"], messages)]
    found = []
    for (name, data), message, us, proxied, front in zip(cases, messages, mine, behind, alone):
        parser = by_h11(message)
        for who, other, what in (("h11", parser, contradiction(us, parser)), ("Nginx alone", front, apart(us, front)),
                                 ("Nginx in front of us", proxied, contradiction(us, proxied))):
            if what:
                found.append((name, "%s, %s" % (who, what), data, us, other))
    return found, sum(bool(us.requests) for us in mine)


def unexplained(found):
    left = [one for one in found if not any(re.search(pattern, one[0]) for pattern in EXPLAINED)]
    return "\n".join("%s: %s\n  %r\n  ours: %s\n  other: %s" % one for one in left)


def test_the_corpus_is_read_alike(ours, fronts):
    cases = list(framing_corpus.cases())
    assert len(cases) >= 700 and len({name for name, _ in cases}) == len(cases)
    found, accepted = differences(ours, fronts, cases)
    assert not unexplained(found), unexplained(found)
    # The check would be empty if nothing were accepted.
    assert accepted > 150
    stale = [pattern for pattern in EXPLAINED if not any(re.search(pattern, one[0]) for one in found)]
    assert not stale, "explained, but no difference any more: %s" % stale


def test_the_corpus_is_read_alike_an_octet_at_a_time(ours):
    messages = [data + MARKER for _, data in framing_corpus.cases() if len(data) < 600]
    whole = [reading(said, of_application) for said in ask_all(ours.address, messages)]
    dripped = [reading(said, of_application) for said in ask_all(ours.address, messages, piece=1)]
    different = [(message, one, other) for message, one, other in zip(messages, whole, dripped) if repr(one) != repr(other)]
    assert not different, "\n".join("%r\n  whole: %s\n  dripped: %s" % one for one in different)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make, least", [(framing_corpus.mutations, 0.05), (framing_corpus.compositions, 0.25)],
                         ids=["mutations", "compositions"])
def test_what_comes_of_the_corpus_is_read_alike(ours, fronts, make, least):
    """Thousands, the same every time; ten times as many where RGUNICORN_BIG is 1."""
    count = 2500 if LENIENT[0] in ours.argv else 10000
    count *= 10 if os.environ.get("RGUNICORN_BIG") == "1" else 1
    found, accepted = differences(ours, fronts, list(make(1, count)))
    assert not unexplained(found), unexplained(found)
    assert accepted > count * least


# Where another server's parser differs from ours, by the parser and a pattern of the case's name, and why ours stands.
OTHERS = {
    ("gunicorn", r"^connections: expect b''"):
        "RFC 9110, 10.1.1: Expect is a list, and an empty one has no member that could not be met; the body is the same",
    ("waitress", r"^chunks: \d+ b'5( ;a|; a = b)"):
        "RFC 9112, 7.1.1: white space around the semicolon of a chunk extension is to be parsed (BWS); the size is the same",
    ("cheroot", r"^start_lines: b'GET (\w+:)?//"):
        "RFC 9112, 3.2.2: a server MUST accept the absolute-form, and 3.2.1 lets the first segment of a path be empty",
    ("cheroot", r"^chunks: .*\\r\\n0(;a=b)?\\r\\n(X|X_Y|Connection|Expect): "):
        "RFC 9112, 7.1.2: trailer fields end the chunked body; its parser leaves them to the application, in front of the next request",
    ("cheroot", r"^chunks: .*\\r\\n0\\r\\n\\r\\n\\r\\n'$"):
        "RFC 9112, 2.2: an empty line may come first; its parser has left one of the body's own there",
}


def other_than(ours, other):
    """What the difference is, a refusal of what we accept among them."""
    if other.end == "refused" and len(ours.requests) > len(other.requests):
        return "we accept, it refuses"
    return contradiction(ours, other)


@pytest.mark.parametrize("ours", [[]], ids=["strict"], indirect=True)
@pytest.mark.parametrize("parser", other_parsers.PARSERS)
def test_the_parsers_of_other_servers_read_the_corpus_alike(ours, parser):
    pytest.importorskip(parser)
    cases = list(framing_corpus.cases())
    messages = [data + MARKER for _, data in cases]
    mine = [reading(said, of_application) for said in ask_all(ours.address, messages)]
    theirs = [by_parser(other_parsers.PARSERS[parser], message) for message in messages]
    assert sum(bool(one.requests) for one in theirs) > 100
    known = [pattern for who, pattern in OTHERS if who == parser]
    new, met = [], set()
    for (name, data), us, other in zip(cases, mine, theirs):
        what = other_than(us, other)
        matching = [pattern for pattern in known if re.search(pattern, name)]
        if what and not matching:
            new.append("%s: %s\n  %r\n  ours: %s\n  %s: %s" % (name, what, data, us, parser, other))
        met.update(matching if what else [])
    assert not new, "%d differences:\n%s" % (len(new), "\n".join(new))
    assert met == set(known), "explained, but no difference any more: %s" % (set(known) - met)


# Where a front passes on other requests than we see without it, by the front and a pattern of the case's name, and why that is harmless.
THROUGH = {
    ("apache2", r"^start_lines: b'GET //"):
        "it merges slashes (MergeSlashes); the request is one, and so is its end",
    ("apache2", r"^start_lines: b'OPTIONS \* "):
        "it answers OPTIONS * itself: the request is about the server",
}


def passed_on(text):
    """Of the application, or of the front itself, which answers OPTIONS * and the like without asking."""
    return of_application(text) if text.startswith("[") else ["answered by the front"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", others.FRONTS)
def test_the_corpus_is_read_alike_through_other_fronts(server, name, tmp_path):
    ours = server(APP)
    ours.expect_errors(r"Error handling request")
    (tmp_path / "front").mkdir()
    front = others.FRONTS[name](str(tmp_path / "front"), "%s:%d" % ours.address)
    try:
        cases = list(framing_corpus.cases())
        messages = [data + MARKER for _, data in cases]
        mine = [reading(said, of_application) for said in ask_all(ours.address, messages)]
        behind = [reading(said, passed_on) for said in ask_all(front.address, messages, ended=False)]
    finally:
        front.finish()
    assert sum(bool(one.requests) for one in behind) > 100
    known = [pattern for who, pattern in THROUGH if who == name]
    new, met = [], set()
    for (case, data), us, other in zip(cases, mine, behind):
        what = contradiction(us, other)
        matching = [pattern for pattern in known if re.search(pattern, case)]
        if what and not matching:
            new.append("%s: %s\n  %r\n  ours: %s\n  %s: %s" % (case, what, data, us, name, other))
        met.update(matching if what else [])
    assert not new, "%d differences:\n%s" % (len(new), "\n".join(new))
    assert met == set(known), "explained, but no difference any more: %s" % (set(known) - met)


def test_a_contradiction_is_seen():
    """The judge itself: what it must not let pass."""
    def made(end, *requests):
        found = Reading()
        found.requests, found.end = list(requests), end
        return found
    one, two, last = request("POST", "/", "a", "hello"), request("GET", "/b", "a", ""), MARK
    whole = made("over", one, last)
    for harmless in (whole, made("refused"), made("refused", one), made("over", one)):
        assert contradiction(whole, harmless) is None and contradiction(harmless, whole) is None
    elsewhere, for_another = request("POST", "/c", "a", "hello"), request("POST", "/", "b", "hello")
    for other in (made("over", request("POST", "/", "a", ""), last), made("over", one, two, last), made("waiting", one),
                  made("waiting"), made("over", last), made("over", elsewhere, last), made("over", for_another, last)):
        assert contradiction(whole, other) and contradiction(other, whole)
    assert request("GET", "HTTP://A:80/b?c", "A:80", "") == request("GET", "/b?c", "a", "")
    assert by_h11(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" + MARKER).requests == [request("POST", "/", "a", "hi"), MARK]
    assert by_h11(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\nhi" + MARKER).end == "refused"
    cut = reading(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\nb\n", of_nginx)
    assert (cut.requests, cut.end) == ([["a", "b", "", ""]], "waiting")
