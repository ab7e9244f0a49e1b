"""The wheel as a user gets it: tagged for other machines, whole, and enough by itself where there is no Rust."""

import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WHEEL = os.environ.get("RGUNICORN_WHEEL")

pytestmark = pytest.mark.skipif(not WHEEL, reason="RGUNICORN_WHEEL does not name the wheel (`make test` sets it)")


@pytest.fixture(scope="module")
def wheel():
    path = Path(WHEEL).resolve()
    assert path.is_file(), f"RGUNICORN_WHEEL names no file: {path}"
    return path


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """A fresh virtual environment with the wheel and nothing else, and what runs a command in it."""
    venv = tmp_path_factory.mktemp("clean")
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", venv], check=True)
    # No cargo, no compiler's library path, no variable of this run.
    environment = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(venv), "LANG": "C.UTF-8"}

    def popen(*command, **options):
        return subprocess.Popen([str(c) for c in command], env=environment, text=True, **options)

    install = popen(venv / "bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    assert install.wait() == 0
    return popen


def output(popen, *command):
    process = popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def test_tag_is_of_this_python_and_manylinux(wheel):
    version = "cp%d%d" % sys.version_info[:2]
    name, _, python, abi, platforms = wheel.name[: -len(".whl")].split("-")
    assert (name, python, abi) == ("rgunicorn", version, version)
    assert all(re.fullmatch(r"manylinux_2_\d+_\w+|manylinux2014_\w+", p) for p in platforms.split(".")), platforms


def test_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    package = {n for n in names if not n.split("/")[0].endswith(".dist-info")}
    modules = {n for n in package if n.endswith(".so")}
    assert len(modules) == 1 and modules.pop().startswith("rgunicorn/_core.")
    assert {"rgunicorn/__init__.py", "rgunicorn/__main__.py", "rgunicorn/_core.pyi", "rgunicorn/py.typed"} <= package
    assert all(n.startswith("rgunicorn/") for n in package), package
    assert any(n.endswith("LICENSE") for n in names)


def test_requires_no_other_package(wheel):
    required = [line for line in metadata(wheel).splitlines() if line.startswith("Requires-Dist")]
    assert all(line.endswith("; extra == 'gunicorn'") for line in required), required
    assert "Requires-Python: >=3.9" in metadata(wheel)


def test_both_commands_run_without_rust(clean, wheel):
    version = wheel.name.split("-")[1]
    assert output(clean, "python", "-c", "import rgunicorn; print(rgunicorn.__version__)").strip() == version
    assert version in output(clean, "rgunicorn", "--version")
    assert output(clean, "python", "-m", "rgunicorn", "--version") == output(clean, "rgunicorn", "--version")


def test_answers_in_the_clean_environment(clean, tmp_path):
    address = tmp_path / "s"
    log = tmp_path / "log"
    with open(log, "w") as file:
        server = clean("rgunicorn", "hello:application", "-b", f"unix:{address}", cwd=ROOT / "examples", stderr=file)
    try:
        answer = get(address, server, log)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nHello, world!\n")
    finally:
        server.terminate()
        code = server.wait(30)
    assert code == 0, log.read_text()


def get(address, server, log):
    """The whole answer, as soon as the server takes the connection."""
    deadline = time.monotonic() + 30
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            try:
                client.connect(str(address))
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.02)
                continue
            client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: client.recv(65536), b""))
