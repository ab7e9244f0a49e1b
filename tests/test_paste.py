"""PasteDeploy: an ini file that describes application and server, under `pserve`."""

import os
import signal
import subprocess
import sys

import pytest

from harness import clean_environment

# The form that Pyramid's cookiecutter writes, with this server in it.
INI = """
[app:main]
use = call:site_of_paste:main
pyramid.reload_templates = false
greeting = Hello from %(here)s

[server:main]
use = egg:rgunicorn#main
"""

SITE = """
from pyramid.config import Configurator
from pyramid.response import Response


def main(global_config, **settings):
    def hello(request):
        return Response(settings["greeting"], content_type="text/plain")

    with Configurator(settings=settings) as config:
        config.add_route("hello", "/")
        config.add_view(hello, route_name="hello")
        return config.make_wsgi_app()
"""


def pserve(*words):
    return [os.path.join(os.path.dirname(sys.executable), "pserve"), *words]


@pytest.fixture
def site(tmp_path):
    """Writes the ini file with these lines in its server section, and gives its path."""
    (tmp_path / "site_of_paste.py").write_text(SITE)

    def write(*lines):
        path = tmp_path / "production.ini"
        path.write_text(INI + "\n".join(lines) + "\n")
        return path

    return write


def start(server, path, **settings):
    environment = {"PYTHONPATH": str(path.parent), **settings.pop("env", {})}
    return server(None, leading=pserve(str(path)), bind=None, env=environment, **settings)


def test_pserve_serves_a_pyramid_site(server, site):
    path = site("host = 127.0.0.1", "port = 0", "workers = 2", "threads = 3")
    running = start(server, path)
    response = running.get("/")
    assert (response.status, response.text) == (200, "Hello from %s" % path.parent)
    assert running.get("/nothing").status == 404
    assert len(running.wait_workers(2)) == 2
    assert "threads in each: 3" in running.log()
    assert running.stop(signal.SIGTERM) == 0


def test_a_reload_keeps_the_section(server, site):
    running = start(server, site("bind = 127.0.0.1:0", "workers = 2"))
    running.wait_workers(2)
    running.signal(signal.SIGHUP)
    running.wait_log("Reload complete: 2 new worker")
    assert running.get("/").status == 200


def test_the_section_wins_over_the_config_file(server, site):
    path = site("host = 127.0.0.1", "port = 0", "workers = 2", "config = %s/settings.py" % site().parent)
    (path.parent / "settings.py").write_text(
        "workers = 1\nkeepalive = 7\ndef when_ready(server):\n    print(server.cfg.workers, server.cfg.keepalive, flush=True)\n")
    running = start(server, path)
    running.wait_workers(2)
    assert running.stdout().splitlines()[-1] == "2 7"


def test_several_hosts(server, site, tmp_path):
    running = start(server, site("host = 127.0.0.1:0, unix:%s/s" % tmp_path))
    assert len(running.addresses) == 2


@pytest.mark.parametrize(["line", "sentence"], [
    ("workers = many", "rgunicorn: workers: 'many' is not a whole number ≥ 1"),
    ("wrokers = 2", "rgunicorn: No configuration setting for: wrokers (did you mean 'workers'?)"),
    ("config = missing.py", "missing.py"),
])
def test_sections_that_are_wrong(site, line, sentence):
    path = site(line)
    done = subprocess.run(pserve(str(path)), env=clean_environment({"PYTHONPATH": str(path.parent)}), cwd=path.parent,
                          capture_output=True, text=True, timeout=60)
    # The exit code is pserve's: it takes every SystemExit for an orderly end.
    assert sentence in done.stderr + done.stdout and "Traceback" not in done.stderr, done.stderr
