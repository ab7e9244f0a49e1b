"""Real applications as people run them: the example Django project directly and behind Nginx, Flask, and the command lines
and the gunicorn.conf.py that they have for gunicorn."""
import hashlib
import html
import http.cookiejar
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest

import harness
import nginx
import wire
from harness import ROOT, Threads, wait_until

PROJECT = os.path.join(ROOT, "examples", "django")
DJANGO = "mysite.wsgi:application"


def require_packages(*names):
    for name in names:
        if os.environ.get("CI") == "true":
            __import__(name)
        else:
            pytest.importorskip(name)


class Browser:
    """Keeps cookies, sends Origin with a form, follows redirects only when told; over TCP."""

    def __init__(self, address):
        self.base = "http://%s:%d" % address
        self.jar = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(self.jar), NoRedirect())

    def open(self, path, data=None, **headers):
        """(status, headers, body) of one request."""
        request = urllib.request.Request(urllib.parse.urljoin(self.base, path), data)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with self.opener.open(request, timeout=30) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def page(self, path):
        status, _, body = self.open(path)
        assert status == 200, (path, status, body[:500])
        return body.decode()

    def token(self, path):
        return re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.page(path)).group(1)

    def submit(self, path, fields, files=()):
        """Fills in the form of a page and sends it as a browser would."""
        fields = dict(fields, csrfmiddlewaretoken=self.token(path))
        if files:
            boundary = "----boundary%016x" % random.getrandbits(64)
            data, kind = multipart(fields, files, boundary), "multipart/form-data; boundary=" + boundary
        else:
            data, kind = urllib.parse.urlencode(fields).encode(), "application/x-www-form-urlencoded"
        return self.open(path, data, Content_Type=kind, Origin=self.base, Referer=self.base + path)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def multipart(fields, files, boundary):
    pieces = []
    for name, value in fields.items():
        pieces.append(b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (
            boundary.encode(), name.encode(), value.encode()))
    for name, filename, data in files:
        pieces.append(b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n'
                      b"Content-Type: application/octet-stream\r\n\r\n" % (boundary.encode(), name.encode(), filename.encode()))
        pieces += [data, b"\r\n"]
    return b"".join(pieces) + b"--%s--\r\n" % boundary.encode()


# --- the Django example ---

@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A migrated database with an administrator, and the collected static files; copied for each test."""
    require_packages("django", "whitenoise")
    directory = tmp_path_factory.mktemp("django")
    env = harness.clean_environment(site_variables(directory))
    for arguments in (["migrate", "--verbosity", "0"], ["collectstatic", "--noinput", "--verbosity", "0"], ["demo_admin"]):
        subprocess.run([sys.executable, "manage.py"] + arguments, cwd=PROJECT, env=env, check=True, stdout=subprocess.DEVNULL)
    return directory


def site_variables(directory):
    return {"GUESTBOOK_DB": str(directory / "db.sqlite3"), "STATIC_ROOT": str(directory / "static"),
            "MEDIA_ROOT": str(directory / "media")}


@pytest.fixture
def django(server, prepared, tmp_path):
    """`django(*options)` starts the example project on a copy of the database."""
    def start(*options, **settings):
        shutil.copytree(str(prepared), str(tmp_path / "site"))
        env = dict(site_variables(tmp_path / "site"), **settings.pop("env", {}))
        app = settings.pop("app", DJANGO)
        return server(app, *options, cwd=PROJECT, env=env, **settings)
    return start


class Site:
    """The example as a browser reaches it."""

    def __init__(self, running, address, directory, front=None):
        self.server, self.address, self.directory, self.front = running, address, directory, front

    def browser(self):
        return Browser(self.address)


@pytest.fixture(params=["direct", "nginx-tcp", "nginx-unix"])
def site(request, django, in_front, tmp_path):
    options = ["-w", "2"]
    if request.param == "direct":
        running = django(*options)
        return Site(running, running.address, tmp_path / "site")
    if request.param == "nginx-tcp":
        running = django("--keep-alive", "10", *options)
        config = nginx.example("tcp.conf", "127.0.0.1:%d" % running.port, tmp_path / "site" / "static")
    else:
        running = django(*options, bind="unix:%s/s" % tmp_path)
        config = nginx.example("unix.conf", "%s/s" % tmp_path, tmp_path / "site" / "static")
    front = in_front(config)
    return Site(running, front.address, tmp_path / "site", front)


def test_django_pages_and_database(site):
    browser = site.browser()
    assert "Nobody has signed yet" in browser.page("/")
    status, headers, _ = browser.submit("/", {"name": "Ada", "message": "first & <b>caf\u00e9</b> \u20ac"})
    assert status == 302 and urllib.parse.urlparse(headers["Location"]).path == "/"
    page = browser.page("/")
    assert "first &amp; &lt;b&gt;caf\u00e9&lt;/b&gt; \u20ac" in page and "Thank you for signing" in page
    other = site.browser().page("/")
    assert "Ada" in other and "Thank you" not in other


def test_django_refuses_a_form_without_token(site):
    browser = site.browser()
    browser.page("/")
    status, _, _ = browser.open("/", b"name=Eve&message=evil")
    assert status == 403
    status, _, _ = browser.open("/", b"name=Eve&message=evil&csrfmiddlewaretoken=x", Origin="http://evil.example")
    assert status == 403
    assert "evil" not in browser.page("/")


def test_django_form_errors(site):
    status, _, body = site.browser().submit("/", {"name": "x" * 200, "message": ""})
    assert status == 200 and b"errorlist" in body


def test_django_admin(site):
    browser = site.browser()
    status, headers, _ = browser.open("/admin/")
    assert status == 302 and "/admin/login/" in headers["Location"]
    status, _, body = browser.submit("/admin/login/?next=/admin/", {"username": "admin", "password": "wrong"})
    assert status == 200 and b"errornote" in body
    status, headers, _ = browser.submit("/admin/login/?next=/admin/", {"username": "admin", "password": "admin", "next": "/admin/"})
    assert status == 302 and headers["Location"].endswith("/admin/")
    assert "Entries" in browser.page("/admin/")
    status, _, _ = browser.submit("/admin/guestbook/entry/add/", {"name": "by admin", "message": "made in the admin"})
    assert status == 302
    assert "made in the admin" in browser.page("/admin/guestbook/entry/")
    assert "made in the admin" in browser.page("/")
    css = re.search(r'href="(/static/admin/[^"]+\.css)"', browser.page("/admin/")).group(1)
    assert len(browser.page(css)) > 1000


@pytest.mark.parametrize("size", [0, 1, 100000, 30000000])
def test_django_upload_and_download(site, size):
    data = random.Random(size).getrandbits(8 * 4096).to_bytes(4096, "big") * (size // 4096 + 1)
    data = data[:size]
    browser = site.browser()
    status, headers, body = browser.submit("/files/", {}, [("file", "my file \u00e9.bin", data)])
    if size == 0:
        assert status == 200 and b"empty" in body  # Django refuses it, politely
        return
    assert status == 302
    page = html.unescape(browser.page("/files/"))
    assert str(size) in page and hashlib.sha256(data).hexdigest() in page and "my file \u00e9.bin" in page
    link = re.search(r'href="(/files/\d+/)"', page).group(1)
    status, headers, body = browser.open(link)
    assert status == 200 and headers["Content-Length"] == str(size) and "attachment" in headers["Content-Disposition"]
    assert body == data
    status, headers, body = browser.open("/files/9999/")
    assert status == 404


def test_django_static(site):
    browser = site.browser()
    with open(os.path.join(PROJECT, "guestbook", "static", "guestbook", "style.css"), "rb") as f:
        wanted = f.read()
    status, headers, body = browser.open("/static/guestbook/style.css")
    assert (status, body) == (200, wanted) and headers["Content-Type"].startswith("text/css")
    status, headers, body = browser.open("/static/guestbook/style.css", If_Modified_Since=headers["Last-Modified"])
    assert (status, body) == (304, b"")
    if site.front:
        site.front.allowed.append(r"nothing\.css")
    status, _, _ = browser.open("/static/nothing.css")
    assert status == 404
    status, _, body = browser.open("/static/guestbook/style.css", Range="bytes=0-9")
    assert body == wanted[:10] if status == 206 else body == wanted


def test_django_streaming(site):
    status, headers, body = site.browser().open("/stream/?lines=50000")
    assert status == 200
    assert body == b"".join(b"line %d\n" % n for n in range(1, 50001))


def test_django_streams_line_by_line(site):
    """The first line is there long before the last one is made."""
    with wire.Connection(site.address) as connection:
        connection.send_request("GET", "/stream/?lines=4&delay=0.7", [("Host", "127.0.0.1")])
        response = connection.read_head()
        pieces = connection.body_pieces(response)
        first = next(pieces)
        assert b"line 1\n" in first and b"line 4" not in first
        assert b"".join([first] + list(pieces)) == b"line 1\nline 2\nline 3\nline 4\n"


def test_django_head_and_conditional_get(site):
    with wire.Connection(site.address) as connection:
        for path in ("/", "/files/", "/stream/?lines=10", "/health/"):
            assert connection.exchange("HEAD", path, [("Host", "127.0.0.1")]).body == b""
            response = connection.exchange("GET", path, [("Host", "127.0.0.1")])
            assert response.status == 200 and response.body
        assert connection.exchange("POST", "/health/", [("Host", "127.0.0.1")], b"x").status in (403, 405)


def test_django_knows_who_asks_and_how(site):
    """The footer tells the scheme and the client: through Nginx from its headers."""
    page = site.browser().page("/")
    footer = re.search(r"<footer>(.*?)</footer>", page).group(1)
    assert "gunicorn/" in footer and " http " in footer and "asked by 127.0.0.1" in footer


def test_django_behind_tls_at_the_proxy(django, in_front, tmp_path):
    """Nginx says https: so is the page, and a form from there is accepted."""
    running = django("-w", "1", bind="unix:%s/s" % tmp_path)
    front = in_front(nginx.own("unix:%s/s" % tmp_path, """
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-Proto https;
    """))
    browser = Browser(front.address)
    assert " https " in re.search(r"<footer>(.*?)</footer>", browser.page("/")).group(1)
    https = browser.base.replace("http:", "https:")
    fields = urllib.parse.urlencode({"csrfmiddlewaretoken": browser.token("/"), "name": "n", "message": "over https"}).encode()
    status, _, _ = browser.open("/", fields, Origin=https, Referer=https + "/")
    assert status == 302
    assert running.running() and "over https" in browser.page("/")


def test_django_many_at_once(site):
    """Eight browsers read and write; every answer is right."""
    failures = []

    def work(number):
        try:
            browser = site.browser()
            for n in range(8):
                text = "message %d of %d" % (n, number)
                assert browser.submit("/", {"name": "b%d" % number, "message": text})[0] == 302
                assert text in browser.page("/")
                assert browser.page("/health/").startswith("ok")
        except Exception as error:
            failures.append("%d: %r" % (number, error))
    threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not failures


@pytest.mark.parametrize("how", ["reload", "max-requests"])
@pytest.mark.parametrize("upstream", ["tcp", "unix"])
def test_nginx_notices_no_change_of_workers(django, in_front, tmp_path, upstream, how):
    """Nginx keeps connections and reuses them: none of its requests fails while the workers change."""
    options = ["-w", "2", "--keep-alive", "10"] + (["--max-requests", "25"] if how == "max-requests" else [])
    if upstream == "tcp":
        running = django(*options)
        config = nginx.example("tcp.conf", "127.0.0.1:%d" % running.port, tmp_path / "site" / "static")
    else:
        running = django(*options, bind="unix:%s/s" % tmp_path)
        config = nginx.example("unix.conf", "%s/s" % tmp_path, tmp_path / "site" / "static")
    running.expect_errors(r"(?i)reload")  # one that the next overtook
    front = in_front(config)
    pids = set()

    def work(_, over):
        browser = Browser(front.address)
        while not over.is_set():
            status, _, body = browser.open("/health/")
            assert status == 200, (status, body)
            pids.add(body.split()[1])
    with Threads(4, work) as visitors:
        for _ in range(3):
            seen = len(pids)
            if how == "reload":
                running.signal(signal.SIGHUP)
            wait_until(lambda: len(pids) >= seen + 2 or visitors.faults, 60, running.log)


def test_nginx_passes_uploads_through_unbuffered(server, in_front):
    """Chunked from the client to the application, as it comes."""
    running = server("apps.echo", "--keep-alive", "10")
    front = in_front(nginx.own("127.0.0.1:%d" % running.port, """
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_request_buffering off;
    """, "keepalive 8;"))
    body = bytes(range(256)) * 20000
    with wire.Connection(front.address) as connection:
        for _ in range(3):
            chunks = wire.chunked(*(body[n:n + 50000] for n in range(0, len(body), 50000)))
            seen = json.loads(connection.exchange("POST", "/", [("Transfer-Encoding", "chunked")], chunks).text)
            assert seen["sha256"] == hashlib.sha256(body).hexdigest()
            seen = json.loads(connection.exchange("POST", "/", body=body).text)
            assert seen["length"] == len(body)


def test_nginx_streams_through(server, in_front):
    """Chunk by chunk through Nginx: each is shown to be there before the next is made."""
    running = server("apps.flasksite:app", "-w", "1")
    front = in_front(nginx.own("127.0.0.1:%d" % running.port, "proxy_http_version 1.1; proxy_buffering off;"))
    with wire.Connection(front.address) as connection:
        connection.send_request("GET", "/stream?lines=4&gate=seen")
        response = connection.read_head()
        pieces = connection.body_pieces(response)
        for n in range(4):
            assert next(pieces) == b"line %d\n" % n
            running.touch("seen%d" % n)
        assert list(pieces) == []


def test_nginx_client_that_vanishes(server, in_front):
    """Nginx closes its connection to the server when the browser goes; the server goes on."""
    running = server("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            if environ["PATH_INFO"] == "/endless":
                return iter(lambda: b"x" * 10000, None)
            return [b"hello"]
    """)
    front = in_front(nginx.own("127.0.0.1:%d" % running.port, "proxy_http_version 1.1; proxy_buffering off;"))
    for _ in range(3):
        with wire.Connection(front.address) as connection:
            connection.send_request("GET", "/endless")
            connection.read_head()
            connection.reset()
        with wire.Connection(front.address) as connection:
            assert connection.exchange().body == b"hello"


# --- Flask ---

@pytest.fixture(scope="module", params=[(), ("--threads", "4")], ids=["plain", "threads"])
def flask(request, module_server):
    require_packages("flask")
    running = module_server("apps.flasksite:create_app('tests')", "-w", "2", "--keep-alive", "20", *request.param)
    running.expect_errors(r"on purpose", r"Exception on /raise", r"\[ERROR\] in app")
    with open(running.path("file.bin"), "wb") as f:
        f.write(bytes(range(256)) * 10000)
    return running


def test_flask_pages(flask):
    with flask.connect() as connection:
        assert connection.exchange().text == "hello from tests"
        response = connection.exchange("GET", "/where/a%2Fb%20c/%C3%A9?x=1&y=%20", [("Host", "example.com:8080")])
        seen = json.loads(response.text)
        assert (seen["rest"], seen["args"]) == ("a/b c/\u00e9", {"x": "1", "y": " "})
        assert (seen["external"], seen["peer"], seen["script"]) == ("http://example.com:8080/", "127.0.0.1", "")
        assert response.header("x-after") == "yes"
        assert connection.exchange("GET", "/missing").status == 404
        assert connection.exchange("GET", "/nowhere").status == 404
        assert connection.exchange("POST", "/").status == 405
        assert connection.exchange("OPTIONS", "/json").header("allow")
        assert connection.exchange("GET", "/empty").status == 204
        assert connection.exchange("HEAD", "/").body == b""


def test_flask_session(flask):
    browser = Browser(flask.address)
    assert [browser.page("/count") for _ in range(5)] == ["1", "2", "3", "4", "5"]
    assert Browser(flask.address).page("/count") == "1"


def test_flask_bodies(flask):
    data = os.urandom(700000)
    boundary = "xyz"
    body = multipart({"text": "caf\u00e9"}, [("file", "a.bin", data)], boundary)
    with flask.connect() as connection:
        response = connection.exchange("POST", "/form", [("Content-Type", "multipart/form-data; boundary=" + boundary)], body)
        assert json.loads(response.text) == {"text": "caf\u00e9", "name": "a.bin", "size": len(data),
                                             "sha256": hashlib.sha256(data).hexdigest()}
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            sent = json.dumps({"n": [1, 2, None]}).encode()
            response = connection.exchange(method, "/json", [("Content-Type", "application/json")], sent)
            assert json.loads(response.text) == [{"n": [1, 2, None]}, method]
        chunks = wire.chunked(*[data[n:n + 9999] for n in range(0, len(data), 9999)])
        assert connection.exchange("POST", "/raw", [("Transfer-Encoding", "chunked")], chunks).text == str(len(data))


def test_flask_streams(flask):
    assert flask.get("/stream?lines=5000").body == b"".join(b"line %d\n" % n for n in range(5000))


def test_flask_files(flask):
    wanted = bytes(range(256)) * 10000
    with flask.connect() as connection:
        response = connection.exchange("GET", "/file")
        assert response.body == wanted and response.framing == "length"
        part = connection.exchange("GET", "/file", [("Range", "bytes=1000-1999")])
        assert (part.status, part.body) == (206, wanted[1000:2000])
        tail = connection.exchange("GET", "/file", [("Range", "bytes=-5")])
        assert (tail.status, tail.body) == (206, wanted[-5:])
        assert connection.exchange("GET", "/file", [("If-None-Match", response.header("etag"))]).status == 304
        assert connection.exchange("HEAD", "/file").header("content-length") == str(len(wanted))


def test_flask_errors(flask):
    assert flask.get("/raise").status == 500
    flask.wait_log(r"ValueError: on purpose")


# --- what people have for gunicorn ---

@pytest.mark.parametrize("options, app", [
    ([], "mysite.wsgi"),
    (["--env", "DJANGO_SETTINGS_MODULE=mysite.settings"], "mysite.wsgi"),
    (["-w", "3"], "mysite.wsgi:application"),
    (["--workers=3"], "mysite.wsgi:application"),
    (["--workers", "2", "--threads", "4"], "mysite.wsgi:application"),
    (["-k", "sync", "-w", "2"], "mysite.wsgi"),
    (["-w", "2", "-k", "gthread", "--threads", "2"], "mysite.wsgi"),
    (["-w", "2", "--timeout", "120", "--graceful-timeout", "20", "--log-level=info", "--access-logfile=-",
      "--error-logfile=-"], "mysite.wsgi:application"),
    (["-w", "2", "--max-requests", "1000", "--max-requests-jitter", "50", "--preload"], "mysite.wsgi:application"),
    (["-w", "2", "--log-file", "-", "--log-level", "debug", "--worker-connections", "1000", "--backlog", "2048"], "mysite.wsgi"),
])
def test_gunicorns_command_lines_for_django(django, options, app):
    running = django(*options, app=app)
    assert "Sign the guestbook" in Browser(running.address).page("/")
    assert Browser(running.address).submit("/", {"name": "n", "message": "m"})[0] == 302


def test_an_app_first_and_options_later(django):
    running = django(app=None, *[DJANGO, "-w", "2", "--access-logfile", "-"])
    assert Browser(running.address).page("/health/").startswith("ok")
    running.wait_workers(2)


def test_a_factory_on_the_command_line(server):
    require_packages("flask")
    assert server("apps.flasksite:create_app('from the shell')", "-w", "2").get("/").text == "hello from from the shell"
    assert server("apps.flasksite:create_app(name='by keyword')").get("/").text == "hello from by keyword"


def test_an_unchanged_gunicorn_conf_py(django):
    """The example's own file, with only the address given on the command line."""
    running = django("-c", "gunicorn.conf.py", "-b", "127.0.0.1:0", app=None, env={"WEB_CONCURRENCY": "2"})
    running.wait_workers(2)
    assert Browser(running.address).page("/health/").startswith("ok")
    assert running.stop() == 0
    assert re.search(r'"GET /health/ HTTP/1\.1" 200 \d+ "-" "[^"]+" \d+ms$', running.stdout(), re.M), running.stdout()


def test_gunicorn_conf_py_is_found_beside_manage_py(django):
    running = django("-b", "127.0.0.1:0", app=None, env={"WEB_CONCURRENCY": "1"})
    assert Browser(running.address).page("/health/").startswith("ok")
    running.wait_workers(1)


# --- the demo ---

@pytest.mark.timeout(180)
def test_the_demo_starts_and_stops(prepared, tmp_path):
    """What `make demo` runs: it prints the address, serves, and Ctrl-C ends all of it."""
    site = tmp_path / "site"
    shutil.copytree(str(prepared), str(site))
    for _ in range(3):
        ports = {"PORT": str(nginx.free_port()), "NGINX_PORT": str(nginx.free_port())}
        env = harness.clean_environment(dict(site_variables(site), RGUNICORN=harness.command()[0], PYTHON=sys.executable, **ports))
        output = tmp_path / "output"
        with open(str(output), "wb") as out:
            demo = subprocess.Popen([os.path.join(PROJECT, "demo.sh")], env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                    start_new_session=True)
        try:
            wait_until(lambda: "Ctrl-C" in harness.read_text(output) or demo.poll() is not None, 90,
                       lambda: harness.read_text(output))
            if demo.poll() is not None and "in use" in harness.read_text(output):
                continue
            addresses = re.findall(r"http://127\.0\.0\.1:(\d+)/", harness.read_text(output))
            assert addresses[0] == ports["PORT"], harness.read_text(output)
            assert len(set(addresses)) == (2 if nginx.COMMAND else 1)
            for port in addresses:
                assert "Sign the guestbook" in Browser(("127.0.0.1", int(port))).page("/")
            os.kill(demo.pid, signal.SIGINT)
            assert demo.wait(60) in (0, 130)
            wait_until(lambda: not harness.session(demo.pid), 10)
            return
        finally:
            for pid in harness.session(demo.pid):
                os.kill(pid, signal.SIGKILL)
            demo.wait()
    raise AssertionError("no free port")
