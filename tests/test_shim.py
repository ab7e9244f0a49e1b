"""The distribution rgunicorn-gunicorn: a command and a package by gunicorn's name, for tools that start or import it.

RGUNICORN_MLFLOW=1 installs such a tool, MLflow, which takes minutes and a gigabyte, and serves it.
"""

import os
import signal
import subprocess
import sys
import sysconfig

import pytest

import harness
from harness import ROOT, clean_environment

SHIM = os.path.join(ROOT, "shim")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
                    "--wheel-dir", folder, SHIM], check=True)
    (found,) = folder.iterdir()
    return found


def environment_with(folder, *wheels):
    """A virtual environment with these wheels, that imports from the one of the tests as well."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps",
                    *wheels], check=True)
    site = folder / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"
    # After the wheels' own files, by its name.
    (site / "zz_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, site


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    return environment_with(tmp_path_factory.mktemp("environment") / "venv", wheel)


@pytest.fixture(scope="module")
def python(environment):
    return environment[0]


def output(python, code, **options):
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_has_no_file_of_gunicorns(wheel):
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert "rgunicorn_gunicorn.pth" in names
    assert not [name for name in names if name.startswith("gunicorn")]
    assert any(name.endswith("LICENSE") for name in names)


def test_the_command(server, python):
    running = server("apps.hello:app", "-w", "2", leading=[str(python.parent / "gunicorn")])
    assert running.get("/").body == b"Hello, world!\n"
    running.wait_workers(2)
    assert running.stop(signal.SIGTERM) == 0
    version = subprocess.run([python.parent / "gunicorn", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("gunicorn (version 27.0.1), as rgunicorn (version ")


@pytest.mark.parametrize("module", ["gunicorn", "gunicorn.app.wsgiapp"])
def test_the_package_as_a_command(server, python, module):
    running = server("apps.hello:app", leading=[str(python), "-m", module])
    assert running.get("/").status == 200


def test_a_configuration_file_that_imports_gunicorn(server, python):
    running = server("apps.hello:app", leading=[str(python.parent / "gunicorn")], config="""
        import gunicorn
        from gunicorn.workers.gthread import ThreadWorker
        from gunicorn import util

        gunicorn.SERVER = "undisclosed"
        worker_class = ThreadWorker
        threads = 2
        assert util.to_bytestring("x") == b"x"
    """)
    response = running.get("/")
    assert (response.status, response.header("server")) == (200, "undisclosed")


def test_modules_are_the_same_objects(python):
    names = ["app", "app.base", "app.wsgiapp", "config", "util", "errors", "arbiter", "workers", "workers.base",
             "workers.sync", "workers.gthread", "http", "http.errors"]
    code = """if 1:
        import importlib, sys
        for name in %r:
            one, other = (importlib.import_module(package + "." + name) for package in ("gunicorn", "rgunicorn"))
            assert one is other, name
            assert one.__name__ == one.__spec__.name == "rgunicorn." + name, one.__spec__
            importlib.reload(one)
        import gunicorn
        assert gunicorn.version_info >= (20, 1), gunicorn.version_info
        assert gunicorn.SERVER == "rgunicorn"
        try:
            import gunicorn.nothing
        except ModuleNotFoundError as error:
            print(error.name)
    """ % names
    assert output(python, code) == "gunicorn.nothing"


def test_nothing_is_imported_at_the_start_of_an_interpreter(python):
    assert output(python, "import sys; print([name for name in sys.modules if 'gunicorn' in name])") == "[]"


def test_a_folder_of_that_name_is_no_gunicorn(python, tmp_path):
    (tmp_path / "gunicorn").mkdir()
    (tmp_path / "gunicorn" / "conf.py").write_text("")
    assert output(python, "import gunicorn; print(gunicorn.__version__)", cwd=tmp_path) == "27.0.1"


@pytest.fixture(scope="module")
def beside(tmp_path_factory, wheel):
    """The shim where there is a gunicorn already."""
    python, site = environment_with(tmp_path_factory.mktemp("beside") / "venv", wheel)
    (site / "gunicorn").mkdir()
    (site / "gunicorn" / "__init__.py").write_text("__version__ = 'the real one'\n")
    return python, site


def test_a_real_gunicorn_is_not_shadowed(beside):
    python, site = beside
    assert output(python, "import gunicorn; print(gunicorn.__version__)") == "the real one"
    done = subprocess.run([python.parent / "gunicorn", "apps.hello:app"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert str(site / "gunicorn" / "__init__.py") in done.stderr and "pip uninstall" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_real_gunicorn_that_is_found_later_is_not_shadowed_either(python, tmp_path):
    """Of the system, for a virtual environment that sees the system's packages."""
    (tmp_path / "gunicorn").mkdir()
    (tmp_path / "gunicorn" / "__init__.py").write_text("")
    code = "import sys; sys.path.append(%r); import gunicorn" % str(tmp_path)
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ImportError: rgunicorn-gunicorn does not take the place of the gunicorn that is installed" in done.stderr


def test_pypiserver_runs_on_it(server, python, tmp_path):
    """A released tool that imports gunicorn and runs a server with it."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "something-1.0.tar.gz").write_bytes(b"x" * 100)
    command = [str(python), "-m", "pypiserver", "run", "--server", "gunicorn", "-i", "127.0.0.1", "-p", "0", str(packages)]
    running = server(None, leading=command, bind=None)
    assert "something" in running.get("/simple/").text
    assert running.get("/packages/something-1.0.tar.gz").body == b"x" * 100
    assert "rgunicorn" in running.log()
    running.wait_workers(1)


def test_honcho_starts_gunicorn_from_a_procfile(server, python, tmp_path):
    """A released tool that starts the command from a Procfile."""
    (tmp_path / "Procfile").write_text("web: gunicorn apps.hello:app --bind 127.0.0.1:0 --error-logfile %s\n" % (tmp_path / "log"))
    path = "%s:%s" % (python.parent, os.environ["PATH"])
    command = [str(python), "-m", "honcho", "-d", str(tmp_path), "start"]
    running = server(None, "--no-colour", leading=command, bind=None, env={"PATH": path}, wait=False)
    running.error_logfile = str(tmp_path / "log")
    running.wait_listening()
    assert running.get("/").body == b"Hello, world!\n"
    assert running.stop(signal.SIGTERM) in (0, 143)


# --- MLflow ---

@pytest.fixture(scope="module")
def mlflow(tmp_path_factory, wheel):
    """The command of a release whose `mlflow server` starts `python -m gunicorn`."""
    python, site = environment_with(tmp_path_factory.mktemp("mlflow") / "venv", wheel)
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "mlflow==2.22.0"], check=True)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "gunicorn"], check=True)
    return python.parent / "mlflow"


def serve_mlflow(server, mlflow, *options):
    running = server(None, leading=[str(mlflow), "server", "--host", "127.0.0.1", "--port", "0", *options], bind=None)
    # MLflow is a gigabyte of packages to import.
    running.wait_log("Worker ready", timeout=120, count=2)
    (arbiter,) = harness.children(running.pid)
    return running, arbiter


@pytest.mark.skipif(os.environ.get("RGUNICORN_MLFLOW") != "1", reason="RGUNICORN_MLFLOW=1 installs MLflow")
@pytest.mark.timeout(1800)
def test_mlflow_server(server, mlflow):
    running, arbiter = serve_mlflow(server, mlflow, "-w", "2", "--gunicorn-opts", "--threads 3 --access-logfile -")
    response = running.get("/health", timeout=60)
    assert (response.status, response.text, response.header("server")) == (200, "OK", "rgunicorn")
    assert running.get("/version", timeout=60).text == "2.22.0"
    assert "threads in each: 3" in running.log() and "GET /version" in running.stdout()
    body = b'{"name": "first"}'
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    assert running.request("POST", "/api/2.0/mlflow/experiments/create", headers, body, timeout=60).status == 200
    os.kill(arbiter, signal.SIGHUP)
    running.wait_log("Reload complete: 2 new worker", timeout=120)
    assert running.get("/health", timeout=60).status == 200
    # Control-C in a terminal goes to both; MLflow waits for its server.
    os.killpg(running.pid, signal.SIGINT)
    running.wait_exit()
    assert not harness.alive(arbiter) and "Shutting down: Master" in running.log()


@pytest.mark.skipif(os.environ.get("RGUNICORN_MLFLOW") != "1", reason="RGUNICORN_MLFLOW=1 installs MLflow")
@pytest.mark.timeout(1800)
def test_mlflow_is_told_how_its_server_ended(server, mlflow):
    running, arbiter = serve_mlflow(server, mlflow, "-w", "2")
    os.kill(arbiter, signal.SIGTERM)
    assert running.wait_exit() == 0
    wrong = subprocess.run([mlflow, "server", "--port", "0", "--gunicorn-opts", "--wrokers 2"], capture_output=True, text=True,
                           timeout=300, env=clean_environment(), cwd=running.cwd)
    assert wrong.returncode == 1
    assert "rgunicorn: unknown option --wrokers (did you mean --workers?)" in wrong.stderr
