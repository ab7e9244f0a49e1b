"""The environ beside gunicorn's own: the same requests to both, and every key, type and value compared.

What differs has its row in `DIFFERENT`, and its name in the table of docs/coming-from-gunicorn.md.
"""
import json
import os
import re
import sys

import pytest

import harness
import wire

# Not among the packages of the tests: tools look whether a gunicorn can be imported.
PEERS = os.path.join(sys.prefix, "peers")
if not os.path.isdir(os.path.join(PEERS, "gunicorn")):
    pytest.skip("gunicorn is not installed beside (make pytest does that)", allow_module_level=True)

GUNICORN = [sys.executable, "-c", "import sys; sys.path.insert(0, %r); from gunicorn.app.wsgiapp import run; run()" % PEERS]

APP = r"""
    import json

    def app(environ, start_response):
        seen = {key: [type(value).__name__, value if isinstance(value, (str, bool, int, tuple)) else None]
                for key, value in environ.items()}
        seen["body"] = ["bytes", environ["wsgi.input"].read().decode("latin-1")]
        answer = json.dumps(seen).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]
"""

GET = b"GET / HTTP/1.1\r\nHost: shop.example\r\n"

REQUESTS = {
    "GET": GET + b"User-Agent: x\r\nAccept: */*\r\n\r\n",
    "another method": GET.replace(b"GET", b"PROPFIND") + b"\r\n",
    "no Host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "Host with a port": b"GET / HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n",
    "POST": b"POST /form HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b",
    "an empty POST": b"POST /form HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "chunked": b"POST /form HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
    "Expect": b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\na=b",
    "repeated fields": GET + b"X-A: 1\r\nX-B: x\r\nX-A: 2\r\nAccept: a\r\nAccept: b\r\nx-a: 3\r\n\r\n",
    "cookies": GET + b"Cookie: a=1\r\nCookie: b=2\r\n\r\n",
    "query": GET.replace(b"/ ", b"/a?b=c&d=%20e?f ") + b"\r\n",
    "empty query": GET.replace(b"/ ", b"/a? ") + b"\r\n",
    "percent": GET.replace(b"/ ", b"/a%20b%2Fc%e2%82%ac%zz%/%41 ") + b"\r\n",
    "slashes": GET.replace(b"/ ", b"//a///b/../c/./ ") + b"\r\n",
    "absolute form": b"GET http://other.example:81/a/b?c HTTP/1.1\r\nHost: shop.example\r\n\r\n",
    "absolute form, equal": b"GET http://shop.example/a HTTP/1.1\r\nHost: shop.example\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.0": b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "8-bit": GET + b"X-Latin: caf\xe9 \xff\r\n\r\n",
    "blanks": GET + b"X-A:   a  b \t \r\nX-B:\r\nX-C:\tc\r\n\r\n",
    "underscores": GET + b"X_A: 1\r\nREMOTE_USER: me\r\nPATH_INFO: /p\r\n\r\n",
    "digits and marks": GET + b"X-1.2~3: v\r\n\r\n",
    "proxy": GET + b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: front\r\nForwarded: for=1\r\n\r\n",
    "proxy says http": GET + b"X-Forwarded-Proto: http\r\n\r\n",
    "script name": GET.replace(b"/ ", b"/mount/x ") + b"SCRIPT_NAME: /mount\r\n\r\n",
    "other fields": GET + b"Proxy: x\r\nDate: now\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nTE: trailers\r\n"
                    b"Authorization: Basic YTpi\r\nIf-None-Match: \"x\"\r\n\r\n",
}

# (a request, a key: each a whole pattern; ours; gunicorn's; the words of the table). `ANY` is any value, `NONE` no key.
ANY, NONE = object(), object()
DIFFERENT = [
    (".*", "SERVER_SOFTWARE", ANY, ANY, "`SERVER_SOFTWARE`"),
    (".*", "wsgi.input", ["Input", None], ["Body", None], "`wsgi.input`"),
    (".*", "wsgi.errors", ["ErrorStream", None], ["WSGIErrorsWrapper", None], "`wsgi.errors`"),
    (".*", "wsgi.early_hints", ["EarlyHints", None], ["function", None], "`wsgi.early_hints`"),
    (".*", "gunicorn.socket", ["Socket", None], ["socket", None], "`gunicorn.socket`"),
    (".*: cookies", "HTTP_COOKIE", ["str", "a=1; b=2"], ["str", "a=1,b=2"], "`HTTP_COOKIE` of several fields"),
    (".*: absolute form", "HTTP_HOST", ["str", "other.example:81"], ["str", "shop.example"], "`HTTP_HOST` of an absolute URI"),
    ("unix: absolute form", "SERVER_(NAME|PORT)", ANY, ANY, "`HTTP_HOST` of an absolute URI"),
    (".*: chunked", "HTTP_TRANSFER_ENCODING", NONE, ["str", "chunked"], "`HTTP_TRANSFER_ENCODING`"),
    (".*: chunked", "CONTENT_LENGTH", ["str", "3"], NONE, "`CONTENT_LENGTH` of a chunked body"),
]


def seen(address, octets):
    with wire.Connection(address) as connection:
        connection.send(octets)
        response = connection.read_response()
        return json.loads(response.body) if response.status == 200 else {"status": ["int", response.status]}


@pytest.fixture(scope="module", params=["tcp", "unix"])
def pair(request, module_server, tmp_path_factory):
    """Addresses of this server and of gunicorn, both with threads, as the two spell that alike."""
    found = []
    for leading in (None, GUNICORN):
        bind = "127.0.0.1:0" if request.param == "tcp" else "unix:%s/s" % tmp_path_factory.mktemp("s")
        options = ["--threads", "2", "-k", "gthread", "--no-control-socket"] if leading else ["--threads", "2"]
        running = module_server(APP, *options, bind=bind, leading=leading)
        running.expect_errors()
        found.append(running.address)
    return request.param, found


def normal(pair_address, environ):
    """Without what is of this server or this connection, such as a port."""
    environ.pop("REMOTE_PORT", None) if environ.get("REMOTE_PORT", ["str", "0"])[1].isdigit() else None
    if not isinstance(pair_address, str) and environ.get("SERVER_PORT") == ["str", str(pair_address[1])]:
        environ["SERVER_PORT"] = ["str", "the port"]
    if environ.get("SERVER_NAME") == ["str", pair_address]:
        environ["SERVER_NAME"] = ["str", "the path"]
    return environ


def differences(pair, name):
    kind, addresses = pair
    ours, theirs = (normal(address, seen(address, REQUESTS[name])) for address in addresses)
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            yield "%s: %s" % (kind, name), key, ours.get(key), theirs.get(key)


def explained(name, key, ours, theirs):
    def fits(wanted, found):
        return wanted is ANY or (found is None if wanted is NONE else found == wanted)
    return [words for pattern, keys, mine, its, words in DIFFERENT
            if re.fullmatch(pattern, name) and re.fullmatch(keys, key) and fits(mine, ours) and fits(its, theirs)]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_environ_is_gunicorns(pair, name):
    unexplained = [found for found in differences(pair, name) if not explained(*found)]
    assert not unexplained, "\n".join("%s %s: ours %s, gunicorn's %s" % found for found in unexplained)


def test_every_difference_is_there(pair):
    """A row that explains nothing any more promises what is not so."""
    left = [row for row in DIFFERENT if row[0].startswith((".", pair[0]))]
    for name in REQUESTS:
        for found in differences(pair, name):
            left = [row for row in left if row[-1] not in explained(*found)]
    assert not left


def test_every_difference_is_in_the_docs():
    text = harness.read_text(os.path.join(harness.ROOT, "docs", "coming-from-gunicorn.md"))
    table = text.partition("## The environ")[2].partition("\n## ")[0]
    for words in {row[-1] for row in DIFFERENT}:
        assert "| %s |" % words in table, words
