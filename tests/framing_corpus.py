"""Requests whose end two servers could see in different places: a table of heads and bodies, and seeded mutations of it."""
import random

HOST = b"Host: test\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"


def message(start=b"POST /first HTTP/1.1", fields=b"", body=b"", host=HOST):
    return start + b"\r\n" + host + fields + b"\r\n" + body


def cases():
    """Name and octets of each."""
    for group in (start_lines, fields, lengths, codings, both, chunks, line_ends, versions, connections):
        for name, data in group():
            yield "%s: %s" % (group.__name__, name), data


START_LINES = (
    b"GET /a HTTP/1.1", b"GET  /a HTTP/1.1", b"GET /a  HTTP/1.1", b"GET\t/a HTTP/1.1", b" GET /a HTTP/1.1", b"GET /a HTTP/1.1 ",
    b"GET /a\tHTTP/1.1", b"GET /a", b"GET /a b HTTP/1.1", b"get /a HTTP/1.1", b"G /a HTTP/1.1", b"GET a HTTP/1.1",
    b"GET http://test/a HTTP/1.1", b"GET http://other/a HTTP/1.1", b"GET HTTP://test/a HTTP/1.1", b"GET http://u@test/a HTTP/1.1",
    b"GET //test/a HTTP/1.1", b"GET /a?b HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET /a%00 HTTP/1.1", b"GET /%2e%2e/a HTTP/1.1",
    b"GET /../a HTTP/1.1", b"GET /a%zz HTTP/1.1", b"GET /a\x00 HTTP/1.1", b"GET /\xe9 HTTP/1.1", b"GET /a\x7f HTTP/1.1",
    b"GET /a\x0bb HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET * HTTP/1.1", b"PURGE /a HTTP/1.1", b"M-SEARCH /a HTTP/1.1",
    b"PRI * HTTP/2.0", b"GET /a\\b HTTP/1.1", b"GET /a\"b HTTP/1.1", b"GET /a<b> HTTP/1.1", b"GET /a|b HTTP/1.1",
    b"\r\nGET /a HTTP/1.1", b"\r\n\r\nGET /a HTTP/1.1", b"\nGET /a HTTP/1.1", b"GET /" + b"a" * 3000 + b" HTTP/1.1",
    b"GET /a HTTP/1.1\r\nGET /b HTTP/1.1",
    b"GET /a\r\n", b"GET", b"GET ", b"", b"\x00GET /a HTTP/1.1", b"\xef\xbb\xbfGET /a HTTP/1.1", b"\x16\x03\x01\x02\x00",
    b"CONNECT test:80 HTTP/1.1", b"CONNECT /a HTTP/1.1", b"CONNECT test HTTP/1.1", b"TRACE /a HTTP/1.1", b"OPTIONS /a HTTP/1.1",
    b"GET test:80 HTTP/1.1", b"GET //a HTTP/1.1", b"GET /a//b HTTP/1.1", b"GET /a/./b HTTP/1.1", b"GET /a%2Fb HTTP/1.1", b"GET /a%0d%0ab HTTP/1.1",
    b"GET /a%20HTTP/1.1%0d%0aX:%20b HTTP/1.1", b"GET http://test HTTP/1.1", b"GET http://test?b HTTP/1.1", b"GET http://test:80/a HTTP/1.1",
    b"GET http://[::1]/a HTTP/1.1", b"GET http:/a HTTP/1.1", b"GET http://te st/a HTTP/1.1", b"GET ftp://test/a HTTP/1.1", b"GET https://test/a HTTP/1.1",
    b"GET http://test#b HTTP/1.1", b"GET http://test@other/a HTTP/1.1", b"GET http://test/a?http://other/ HTTP/1.1", b"GET ?a HTTP/1.1",
    b"GET /a?b?c HTTP/1.1", b"GET /a;b=c HTTP/1.1", b"GET /a' HTTP/1.1", b"GET /a{b} HTTP/1.1", b"GET /a^b HTTP/1.1", b"GET /a` HTTP/1.1",
    b"POST /a HTTP/1.1\rX: a", b"POST /a\x0bHTTP/1.1", b"POST /a\x0cHTTP/1.1", b"POST /a\xa0HTTP/1.1", b"PO\x00ST /a HTTP/1.1", b"P@ST /a HTTP/1.1",
    b"PRI * HTTP/2.0\r\n\r\nSM",
)


def start_lines():
    for line in START_LINES:
        yield repr(line[:60]), message(line)


FIELD_LINES = (
    b"X: a", b"X:a", b"X:\ta\t", b"X : a", b"X\t: a", b" X: a", b"X", b"X:", b": a", b"X: a\r\n b", b"X: a\r\n\tb", b"X Y: a",
    b"X(: a", b"X\x00: a", b"X: \x00", b"X: a\x01b", b"X: a\x0bb", b"X: a\x7fb", b"X: a\rb", b"X: a\nY: b", b"\xdf: a",
    b"X: \xff", b"X_Y: a", b"X: " + b"a" * 4000, b"Content_Length: 5", b"Transfer_Encoding: chunked", b"Content-Length\x00: 5",
    b"Content-Length\xa0: 5", b"Content-Length : 5", b"Transfer-Encoding : chunked", b"\x0bTransfer-Encoding: chunked",
    b"X: a\r\nContent-Length: 5", b"X: a\rContent-Length: 5", b"X: a\nContent-Length: 5", b"X: a\r\n Content-Length: 5",
    b"X: a\r\r\nContent-Length: 5", b"Host: test", b"Host: other", b"Content-Type: a\r\nContent-Type: b", b"Content-Length:\r\n 5",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chun\r\n ked", b"Content-Length: 5\r\n 6",
    b"Content-Length:5", b"Content-Length: 5:6", b"Content-Length", b"Content-Length=5", b"Content-Length;: 5", b"\x00Content-Length: 5",
    b"Content-Length: 5\r\nContent_Length: 6", b"X: a\r\n\tContent-Length: 5", b"X: a\x00\r\nContent-Length: 5", b"Content-Length: \r\n5",
    b"Transfer-Encoding:chunked", b"Transfer-Encoding\x00: chunked", b"Transfer-Encoding: chunked\r\nTransfer_Encoding: identity",
    b"X: \"a\r\nContent-Length: 5\r\nY: b\"", b"Host: test, other", b"Host : other", b"Host_: other", b"Host: test\r\n other",
    b"X-Forwarded-Host: other", b"X_Forwarded_For: 1.2.3.4", b"Proxy: http://other", b"X-HTTP-Method-Override: DELETE", b"Expect: 100-continue",
    b"TE: chunked", b"Trailer: Content-Length", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13", b"Connection: close, Content-Length", b"Connection: keep-alive",
    b"Keep-Alive: timeout=1", b"Range: bytes=0-0", b"Cookie: a=b\r\nCookie: c=d", b"X: " + b"a, " * 700, b"\r\n".join([b"X: a"] * 90),
    b"\r\n".join([b"X: a"] * 120), b"X:" + b" " * 500 + b"a", b"a" * 300 + b": b",
)


def fields():
    for line in FIELD_LINES:
        yield "%r of %d" % (line[:60], len(line)), message(fields=line + b"\r\n", body=b"hello")
    for host in (b"", b"Host:\r\n", b"Host: a b\r\n", b"Host: a/b\r\n", b"Host: a:b\r\n", b"Host: [::1]:80\r\n", b"Host: u@test\r\n",
                 b"Host: test\r\nHost: other\r\n", b"Host: test\x00\r\n", b"Host : test\r\n", b"host: test\r\n"):
        yield "host %r" % host, message(b"GET /a HTTP/1.1", host=host)


LENGTHS = (
    b"5", b"05", b"0000000000000000000000005", b"5 ", b" 5", b"\t5\t", b"+5", b"-5", b"0x5", b"5.0", b"5e0", b"5_0", b"5 5",
    b"5,5", b"5, 5", b"5,6", b"5;", b'"5"', b"'5'", b"", b" ", b"5\x0b", b"5\x0c", b"\x0b5", b"\xa05", b"5\xa0", b"\xb25",
    b"\xd9\xa1", b"five", b"5a", b"a5", b"5\x00", b"9223372036854775807", b"9223372036854775808", b"18446744073709551621",
    b"4294967301", b"0", b"00", b"1", b"4", b"6", b"44", b"0\x00", b"5\r",
    b"5\r\n", b"\x005", b"5\t", b"5#", b"5/5", b"5*1", b"(5)", b"0b101", b"0o5", b"00x5", b"--5", b"5-", b"5+", b"5 \x0b", b"99999999999999999999999999999",
    b"-1", b"-0", b"+0", b"1e1", b"5L", b"5\x85", b"\xe2\x80\x8b5", b"\xef\xbc\x95", b"5,", b",5", b", 5", b"5\r\n, 5",
)


def lengths():
    for value in LENGTHS:
        yield repr(value), message(fields=b"Content-Length: " + value + b"\r\n", body=b"hello")
    for two in ((b"5", b"5"), (b"5", b"6"), (b"0", b"5"), (b"5", b"0"), (b"5", b""), (b"", b"5"), (b"5", b"+5")):
        lines = b"".join(b"Content-Length: " + value + b"\r\n" for value in two)
        yield "two %r" % (two,), message(fields=lines, body=b"hello")
        yield "two apart %r" % (two,), message(fields=lines.replace(b"\r\n", b"\r\nX: a\r\n", 1), body=b"hello")
    for name in (b"content-length", b"CONTENT-LENGTH", b"Content-length", b"Content-Length ", b"Content_Length", b"Content-Lengths", b"XContent-Length"):
        yield "name %r" % name, message(fields=name + b": 5\r\n", body=b"hello")
    for start in (b"GET /a HTTP/1.1", b"DELETE /a HTTP/1.1", b"OPTIONS /a HTTP/1.1", b"PUT /a HTTP/1.1"):
        yield repr(start), message(start, b"Content-Length: 5\r\n", b"hello")
    yield "smuggled in a body", message(fields=b"Content-Length: %d\r\n" % len(SMUGGLED), body=SMUGGLED)
    yield "smuggled behind a body", message(fields=b"Content-Length: 0\r\n", body=SMUGGLED)
    yield "smuggled without a length", message(body=SMUGGLED)


CODINGS = (b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked\t", b"chunked,", b",chunked", b", chunked", b"chunked, chunked",
           b"chunked,chunked", b"identity", b"identity, chunked", b"chunked, identity", b"gzip", b"gzip, chunked", b"chunked, gzip", b"deflate",
           b"x", b"xchunked", b"chunkedx", b"chunk", b"chunked;q=1", b"chunked; q=1", b'"chunked"', b"'chunked'", b"chunked x", b"x chunked",
           b"chunked\x0b", b"\x0bchunked", b"\x0cchunked", b"chunked\x00", b"chunked\xa0", b"\xa0chunked", b"\x85chunked", b"chunked\r",
           b"chun ked", b"", b" ", b",", b"trailers", b"chunked, trailers", b"compress, chunked", b"chunked\x7f", b"\xffchunked")


def codings():
    for value in CODINGS:
        for body in ((b"chunks", HELLO), (b"plain", b"hello")):
            yield "%r %s" % (value, body[0].decode()), message(fields=b"Transfer-Encoding: " + value + b"\r\n", body=body[1])
    for two in ((b"chunked", b"chunked"), (b"gzip", b"chunked"), (b"chunked", b"gzip"), (b"identity", b"chunked"), (b"chunked", b"identity"),
                (b"chunked", b""), (b"", b"chunked"), (b"x", b"chunked")):
        yield "two %r" % (two,), message(fields=b"".join(b"Transfer-Encoding: " + v + b"\r\n" for v in two), body=HELLO)
    for name in (b"transfer-encoding", b"TRANSFER-ENCODING", b"Transfer-Encoding ", b"Transfer_Encoding", b"Transfer-Encodin", b"XTransfer-Encoding"):
        yield "name %r" % name, message(fields=name + b": chunked\r\n", body=HELLO)


def both():
    for length in (b"5", b"0", b"15", b"6", b"x"):
        for coding in (b"chunked", b"identity", b"", b"xchunked", b"chunked, chunked", b"\x0bchunked", b"Chunked"):
            one, two = b"Content-Length: " + length + b"\r\n", b"Transfer-Encoding: " + coding + b"\r\n"
            yield "%r %r" % (length, coding), message(fields=one + two, body=HELLO)
            yield "%r %r turned" % (length, coding), message(fields=two + one, body=HELLO)


CHUNK_BODIES = (
    HELLO, b"05\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n00\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n",
    b"5\t\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5h\r\nhello\r\n0\r\n\r\n",
    b"5_\r\nhello\r\n0\r\n\r\n", b"\r\nhello\r\n0\r\n\r\n", b";a\r\nhello\r\n0\r\n\r\n", b"5;a\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n", b'5;a="b"\r\nhello\r\n0\r\n\r\n', b'5;a="b\r\nhello\r\n0\r\n\r\n', b"5;\r\nhello\r\n0\r\n\r\n",
    b"5 ;a\r\nhello\r\n0\r\n\r\n", b"5; a = b\r\nhello\r\n0\r\n\r\n", b"5;a\nb\r\nhello\r\n0\r\n\r\n", b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5;a\x00\r\nhello\r\n0\r\n\r\n", b"5;;\r\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"5\r\nhello\r\n\r\n0\r\n\r\n",
    b"4\r\nhello\r\n0\r\n\r\n", b"6\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\n\r\n", b"5\r\nhello\r\n0\r\n\n", b"5\r\nhello\r\n0\n\n",
    b"5\r\nhello\r\n0\r\n\r", b"5\r\nhello\r\n0\r\nX: a\r\n\r\n", b"5\r\nhello\r\n0\r\nX : a\r\n\r\n", b"5\r\nhello\r\n0\r\nX\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: a\n\r\n", b"5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n", b"5\r\nhello\r\n0\r\nContent-Length: 9\r\n\r\n",
    b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\nHost: x\r\n\r\n", b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n",
    b"FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", b"10000000000000005\r\nhello\r\n0\r\n\r\n", b"100000005\r\nhello\r\n0\r\n\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n", b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"5.0\r\nhello\r\n0\r\n\r\n", b"5,\r\nhello\r\n0\r\n\r\n",
    b"A\r\n0123456789\r\n0\r\n\r\n", b"a\r\n0123456789\r\n0\r\n\r\n", b"0\r\n\r\n", b"0;a\r\n\r\n", b"0\r\n\r\n" + SMUGGLED,
    b"0\r\n" + SMUGGLED, b"5\r\nhello\r\n0" + SMUGGLED, b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n\r\n",
    b"1\r\na\r\n" * 30 + b"0\r\n\r\n", b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n", b"5\x0b\r\nhello\r\n0\r\n\r\n", b"5\x00\r\nhello\r\n0\r\n\r\n",
    b"5\xa0\r\nhello\r\n0\r\n\r\n", b"\xef\xbb\xbf5\r\nhello\r\n0\r\n\r\n", b"\xb25\r\nhello\r\n0\r\n\r\n", b"0 5\r\nhello\r\n0\r\n\r\n",
    b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', b'5;a="0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"\r\nhello\r\n0\r\n\r\n', b"5;a=b;c=d;e\r\nhello\r\n0\r\n\r\n",
    b"5;\ra\r\nhello\r\n0\r\n\r\n", b"5;\r\r\nhello\r\n0\r\n\r\n", b"5;a\\\r\nhello\r\n0\r\n\r\n", b"5;a=\xe9\r\nhello\r\n0\r\n\r\n", b"5;\x7f\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0;a=b\r\nX: a\r\n\r\n", b"5\r\nhello\r\n0\r\nX_Y: a\r\nCookie: b\r\n\r\n", b"5\r\nhello\r\n0\r\n: a\r\n\r\n",
    b"5\r\nhello\r\n0\r\n X: a\r\n\r\n", b"5\r\nhello\r\n0\r\nX: a\r\r\n\r\n", b"5\r\nhello\r\n0\r\nX: a\r\n\n", b"5\r\nhello\r\n0\r\nConnection: close\r\n\r\n",
    b"5\r\nhello\r\n0\r\nExpect: 100-continue\r\n\r\n", b"5\r\nhello\r\n0\r\n" + b"X: a\r\n" * 150 + b"\r\n", b"5\r\nhello\r\n0\r\n\r\n0\r\n\r\n",
    b"7FFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", b"8000000000000000\r\nhello\r\n0\r\n\r\n", b"-1\r\nhello\r\n0\r\n\r\n", b"0-5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n-0\r\n\r\n", b"5\r\nhello\r\n+0\r\n\r\n", b"5\r\nhello\r\n0x0\r\n\r\n", b"5\r\nhello\r\n\x000\r\n\r\n", b"5\r\nhello\r\n", b"5\r\nhel",
    b"#5\r\nhello\r\n0\r\n\r\n", b"\n5\r\nhello\r\n0\r\n\r\n", b"\r\n5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n 0\r\n\r\n", b"5\r\nhello\r\n0 \r\n\r\n",
)


def chunks():
    for n, body in enumerate(CHUNK_BODIES):
        yield "%d %r" % (n, body[:40]), message(fields=b"Transfer-Encoding: chunked\r\n", body=body)


def line_ends():
    """Each line end of a message in turn becomes another."""
    for base in (message(fields=b"Content-Length: 5\r\nX: a\r\n", body=b"hello"), message(fields=b"Transfer-Encoding: chunked\r\n", body=HELLO)):
        places = [n for n in range(len(base)) if base.startswith(b"\r\n", n)]
        for place in places:
            for end in (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\n", b"\x0b\r\n", b"\x00\r\n", b""):
                yield "%d %r of %r" % (place, end, base[-12:]), base[:place] + end + base[place + 2:]


def versions():
    for version in (b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/0.9", b"HTTP/2.0", b"http/1.1", b"HTTP/1.10", b"HTTP/01.1", b"HTTP/1", b"HTTP/1.x",
                    b"XHTTP/1.1", b"HTTP /1.1"):
        start = b"POST /first " + version
        yield "%r length" % version, message(start, b"Content-Length: 5\r\n", b"hello")
        yield "%r chunked" % version, message(start, b"Transfer-Encoding: chunked\r\n", HELLO)
        yield "%r kept" % version, message(start, b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n", HELLO)


def connections():
    for value in (b"close", b"keep-alive", b"Close", b"close, x", b"x, close", b"x\r\nConnection: close", b"Content-Length", b"Transfer-Encoding",
                  b"upgrade\r\nUpgrade: h2c", b"upgrade\r\nUpgrade: websocket", b"", b"TE\r\nTE: trailers"):
        yield repr(value), message(fields=b"Connection: " + value + b"\r\nContent-Length: 5\r\n", body=b"hello")
    for value in (b"100-continue", b"100-Continue", b"the-moon", b"", b"100-continue, x"):
        yield "expect %r" % value, message(fields=b"Expect: " + value + b"\r\nContent-Length: 5\r\n", body=b"hello")
        yield "expect %r chunked" % value, message(fields=b"Expect: " + value + b"\r\nTransfer-Encoding: chunked\r\n", body=HELLO)
    yield "three in a row", message(fields=b"Content-Length: 5\r\n", body=b"hello") * 3
    yield "chunked in a row", message(fields=b"Transfer-Encoding: chunked\r\n", body=HELLO) * 3
    yield "an empty line between", message(fields=b"Content-Length: 5\r\n", body=b"hello\r\n")
    yield "two empty lines between", message(fields=b"Content-Length: 5\r\n", body=b"hello\r\n\r\n")


SPLICES = (b"\r", b"\n", b"\r\n", b"\r\n ", b" ", b"\t", b":", b"\0", b"\x0b", b"\xa0", b",", b";", b"0", b"5", b"chunked", b"Content-Length: 5\r\n",
           b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding:", b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"HTTP/1.0", b"x", b"")


BODIES = (b"", b"hello", b"hello\r\n", b"h", SMUGGLED, HELLO + SMUGGLED, b"0\r\n\r\n") + CHUNK_BODIES
LINE_ENDS = (b"\r\n",) * 100 + (b"\n", b"\r", b"\r\r\n", b"\n\r")


def mutations(seed, count):
    """So many cases, each changed in one to three places; the same for the same seed."""
    source = random.Random(seed)
    seeds = [(name, data) for name, data in cases() if len(data) < 600]
    for n in range(count):
        name, data = source.choice(seeds)
        yield "mutation %d.%d of %s" % (seed, n, name), changed(source, data, source.randrange(1, 4))


def changed(source, data, places):
    for _ in range(places):
        at = source.randrange(len(data) + 1)
        splice = source.choice(SPLICES) if source.randrange(4) else bytes([source.randrange(256)])
        data = data[:at] + splice + data[at + source.randrange(4):]
    return data


def compositions(seed, count):
    """So many requests, or two in a row, of parts of the table; one in four is changed in a place. The same for the same seed."""
    source = random.Random(seed)
    for n in range(count):
        data = b"".join(composed(source) for _ in range(source.choice((1, 1, 1, 2))))
        if source.randrange(4) == 0:
            data = changed(source, data, 1)
        yield "composition %d.%d" % (seed, n), data


def composed(source):
    """With one thing wrong more often than with two, which may hide each other."""
    start, lines = source.choice((b"POST /first HTTP/1.1", b"GET /first HTTP/1.1", b"PUT /first?a=b HTTP/1.1")), [b"Host: test"]
    length, coding = source.choice(((b"5", b""), (b"", b"chunked"), (b"", b"")))
    body = b"hello" if length else HELLO if coding else b""
    for _ in range(source.choice((0, 1, 1, 1, 2))):
        kind = source.randrange(6)
        if kind == 0:
            start = source.choice(START_LINES)
        elif kind == 1:
            lines.insert(source.randrange(len(lines) + 1), source.choice(FIELD_LINES))
        elif kind == 2:
            length = source.choice(LENGTHS)
        elif kind == 3:
            coding = source.choice(CODINGS)
        elif kind == 4:
            coding, body = b"chunked", source.choice(CHUNK_BODIES)
        else:
            body = source.choice(BODIES)
    framing = [(b"Content-Length: ", length), (b"Transfer-Encoding: ", coding)]
    for name, value in source.sample(framing, 2):
        if value:
            lines.append(source.choice((name, name.lower(), name.upper())) + value)
    head = b"".join(line + source.choice(LINE_ENDS) for line in lines)
    return start + b"\r\n" + head + b"\r\n" + body
