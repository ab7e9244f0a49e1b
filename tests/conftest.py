"""Fixtures: a factory of servers, per test and per module, whose teardown checks what each server left behind."""
import glob
import importlib.util
import os

import pytest

# Before they are imported: their assertions say what they found, too.
pytest.register_assert_rewrite("crowd", "faulty", "groups", "ledger")

import harness  # noqa: E402
import nginx  # noqa: E402

# Where AddressSanitizer reports on what is started here, by `make asan`; each of the runners side by side has files of its own.
REPORTS = harness.SANITIZED and os.path.join(os.environ["RGUNICORN_REPORTS"], os.environ.get("PYTEST_XDIST_WORKER", "server"))


def pytest_addoption(parser):
    # The smoke test must run where pytest is alone; the project's settings give a time-out all the same.
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "the bound of one test, kept by pytest-timeout where installed")


def pytest_configure(config):
    if REPORTS:
        os.environ["ASAN_OPTIONS"] += ":log_path=" + REPORTS
    config.addinivalue_line("markers", "timeout(seconds): the bound of one test, kept by pytest-timeout where installed")


class Servers:
    """Starts servers, each in a directory of its own, and ends them in reverse."""

    def __init__(self, make_directory):
        self.make_directory = make_directory
        self.started = []

    def __call__(self, app, *options, **settings):
        directory = settings.pop("directory", None) or self.make_directory()
        wait = settings.pop("wait", True)
        server = harness.Server(directory, app, *options, **settings)
        self.started.append(server)
        if wait:
            server.wait_listening()
        return server

    def finish(self):
        failures = []
        for server in reversed(self.started):
            try:
                server.finish()
            except AssertionError as failure:
                failures.append(str(failure))
        assert not failures, "\n\n".join(failures)


@pytest.fixture
def server(tmp_path):
    """`server(app, *options, env=…, config=…)` → a running `harness.Server`, for one test."""
    directories = iter(range(1000))

    def make_directory():
        number = next(directories)
        directory = tmp_path / ("server%d" % number if number else "server")
        directory.mkdir()
        return directory

    servers = Servers(make_directory)
    yield servers
    servers.finish()


@pytest.fixture(scope="module")
def module_server(tmp_path_factory):
    """The same for a module: rows of a table share one server."""
    servers = Servers(lambda: tmp_path_factory.mktemp("server"))
    yield servers
    servers.finish()


@pytest.fixture(autouse=True)
def _no_report():
    """Whatever became of the process since, as another worker takes the place of one that ended so."""
    before = reports()
    yield
    assert {path: text for path, text in reports().items() if path not in before} == {}


def reports():
    return {path: harness.read_text(path)[:8000] for path in glob.glob(REPORTS + ".*")} if REPORTS else {}


@pytest.fixture(autouse=True)
def _no_stray_config(monkeypatch):
    for name in harness.SERVER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def in_front(tmp_path):
    """`in_front(config)` starts Nginx; ended before the server is, as an operator would."""
    started = []

    def start(config):
        nginx.require()
        directory = tmp_path / ("nginx%d" % len(started))
        directory.mkdir()
        started.append(nginx.Nginx(directory, config))
        return started[-1]
    yield start
    for running in started:
        running.finish()
