"""The same octets to this server, to real Nginx and to h11: whoever accepts them must see the same requests in them.

A difference in which request a body ends, or how many there are, is how one client's request becomes part of another's.
To refuse is always safe. What we accept and another reads otherwise fails here, unless `EXPLAINED` says why it is harmless.
"""
import concurrent.futures
import json
import re

import h11
import pytest

import framing_corpus
import nginx
import wire

# Behind every case: whoever has found the end of it sees this as a request of its own, and closes.
MARKER = b"GET /marker HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

# A pattern of case names, and why the difference is harmless.
EXPLAINED = {}

APP = """
    import json

    def app(environ, start_response):
        body = environ["wsgi.input"].read()
        answer = json.dumps([environ["REQUEST_METHOD"], body.decode("latin-1"), environ["PATH_INFO"] == "/marker"]).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]
"""


class Reading:
    """What a server makes of some octets: the requests (method, body, whether it is the marker), and how it ends: `over`,
    `refused`, or `waiting` for more."""

    def __init__(self):
        self.requests = []
        self.end = "waiting"

    def __repr__(self):
        return "%s %s" % (self.requests, self.end)


    def has_ended(self):
        """Nothing that followed was or will be a request: it has refused, or has ended the connection of its own accord."""
        return self.end == "refused" or self.end == "over" and not self.requests[-1][2]


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

def over_a_socket(address, data, parse=json.loads):
    """By its answers. A server that waits for more gives up at its time-out."""
    reading = Reading()
    with wire.Connection(address, 60) as connection:
        try:
            connection.send(data)
        except OSError:
            pass  # It has refused before everything was sent; what it said can still be read.
        try:
            while connection.readable(60) and (connection.buffer or connection._fill()):
                if not b"HTTP/1.".startswith(connection.buffer[:7]):
                    # Nginx still speaks HTTP/0.9: a body, and the end of the connection.
                    said = connection.expect_closed()
                    reading.requests += [] if said.startswith(b"<") else [parse(said.decode("latin-1"))]
                    reading.end = "refused" if said.startswith(b"<") else "over"
                    break
                response = connection.read_response()
                if response.status == 200:
                    reading.requests.append(parse(response.body.decode("latin-1")))
                    reading.end = "waiting"
                    if response.closing:
                        reading.end = "over"
                        break
                else:
                    reading.end = "waiting" if response.status == 408 else "refused"
                    break
        except (wire.ProtocolError, OSError) as error:
            # A reset may swallow the rest; a misframed answer is no excuse.
            if "reset" not in str(error).lower():
                raise
            reading.end = "refused"
    return reading


def by_h11(data):
    reading = Reading()
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    method, body, marker = None, b"", False
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return reading
            if isinstance(event, h11.Request):
                method, body, marker = event.method.decode("latin-1"), b"", event.target == b"/marker"
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                reading.requests.append([method, body.decode("latin-1"), marker])
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    reading.end = "over"
                    return reading
                connection.start_next_cycle()
    except h11.RemoteProtocolError:
        reading.end = "refused"
        return reading


# --- the servers ---

LENIENT = ["--permit-obsolete-folding", "--strip-header-spaces", "--permit-unconventional-http-method",
           "--permit-unconventional-http-version"]


@pytest.fixture(scope="module", params=[[], LENIENT], ids=["strict", "lenient"])
def ours(module_server, request):
    """What an operator may permit must be as safe."""
    running = module_server(APP, *request.param, "--threads", "8", "--header-timeout", "6", "--body-timeout", "6", "--keep-alive", "6",
                            "--limit-request-line", "8190")
    running.expect_errors(r"Error handling request")
    return running


@pytest.fixture(scope="module")
def fronts(ours, tmp_path_factory):
    """Nginx in front of us, which shows what it has understood by what it passes on; and Nginx by itself."""
    nginx.require()
    directory = tmp_path_factory.mktemp("nginx")

    def config(port):
        text = nginx.own("127.0.0.1:%d" % ours.port, "proxy_http_version 1.1;")(port)
        text = text.replace("events {", "events { multi_accept off;")
        alone = "server { listen unix:%s/alone; location / { return 200 '$request_method $uri'; } }" % directory
        times = "client_header_timeout 6s; client_body_timeout 6s; keepalive_timeout 6s; lingering_timeout 1s;"
        return text.replace("upstream app", "%s %s upstream app" % (times, alone))
    front = nginx.Nginx(directory, config)
    front.allowed.append(r"upstream (prematurely closed|sent)|client (closed|sent)|sendfile|\[error\].*(invalid|too)")
    yield {"proxy": front.address, "alone": "%s/alone" % directory}
    front.finish()


def by_nginx_alone(address, data):
    """It answers before it has read a body: of a request that it still waits for, nothing is known."""
    reading = over_a_socket(address, data, parse=lambda text: [text.split()[0], "", text.endswith(" /marker")])
    if reading.end == "waiting":
        reading.requests = reading.requests[:-1]
    return reading


def apart(mine, alone):
    """As `contradiction`, with a server of which only the requests are known, not their bodies."""
    for n, (request, theirs) in enumerate(zip(mine.requests, alone.requests)):
        if (request[0], request[2]) != (theirs[0], theirs[2]):
            return "request %d differs" % n
    if len(alone.requests) > len(mine.requests) and not mine.has_ended():
        return "we see fewer requests"
    return None


def differences(ours, fronts, cases):
    """(name, what, readings) of each case that two of them could read differently."""
    # Most threads wait for a server that waits for more.
    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        def ask(read, address):
            return [pool.submit(read, address, data + MARKER) for _, data in cases]
        asked = zip(ask(over_a_socket, ours.address), ask(over_a_socket, fronts["proxy"]), ask(by_nginx_alone, fronts["alone"]))
        readings = [[one.result() for one in three] for three in asked]
    found = []
    for (name, data), (mine, behind, alone) in zip(cases, readings):
        parser = by_h11(data + MARKER)
        for who, other, what in (("h11", parser, contradiction(mine, parser)), ("Nginx alone", alone, apart(mine, alone)),
                                 ("Nginx in front of us", behind, contradiction(mine, behind))):
            if what:
                found.append((name, "%s, %s" % (who, what), data, mine, other))
    return found, sum(bool(mine.requests) for mine, _, _ in readings)


def unexplained(found):
    left = [one for one in found if not any(re.search(pattern, one[0]) for pattern in EXPLAINED)]
    return "\n".join("%s: %s\n  %r\n  ours: %s\n  other: %s" % one for one in left)


@pytest.mark.timeout(300)
def test_the_corpus_is_read_alike(ours, fronts):
    cases = list(framing_corpus.cases())
    assert len(cases) >= 300 and len({name for name, _ in cases}) == len(cases)
    found, accepted = differences(ours, fronts, cases)
    assert not unexplained(found), unexplained(found)
    # The check would be empty if nothing were accepted.
    assert accepted > 60
    stale = [pattern for pattern in EXPLAINED if not any(re.search(pattern, one[0]) for one in found)]
    assert not stale, "explained, but no difference any more: %s" % stale


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
def test_mutations_are_read_alike(ours, fronts, seed):
    found, _ = differences(ours, fronts, list(framing_corpus.mutations(seed, 150)))
    assert not unexplained(found), unexplained(found)


def test_a_contradiction_is_seen():
    """The judge itself: what it must not let pass."""
    def reading(end, *requests):
        made = Reading()
        made.requests, made.end = list(requests), end
        return made
    one, two, last = ["POST", "hello", False], ["GET", "", False], ["GET", "", True]
    whole = reading("over", one, last)
    for harmless in (whole, reading("refused"), reading("refused", one), reading("over", one)):
        assert contradiction(whole, harmless) is None and contradiction(harmless, whole) is None
    for other in (reading("over", ["POST", "", False], last), reading("over", one, two, last), reading("waiting", one),
                  reading("waiting"), reading("over", last)):
        assert contradiction(whole, other) and contradiction(other, whole)
    assert by_h11(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi" + MARKER).requests == [["POST", "hi", False], ["GET", "", True]]
    assert by_h11(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\nhi" + MARKER).end == "refused"
