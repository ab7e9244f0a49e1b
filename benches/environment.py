"""What a run stands on: system tools, the venv with the peers, the compiled floor and client, the facts of the machine."""

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

BENCHES = Path(__file__).resolve().parent
PROJECT = BENCHES.parent
PACKAGES = ["gunicorn", "bjoern", "fastpysgi", "freastal", "peregrine-server", "granian", "uwsgi", "django", "whitenoise"]
DEBIAN = {"wrk": "wrk", "nginx": "nginx", "cc": "gcc", "strace": "strace"}
EV_HEADERS = [Path("/usr/include/ev.h"), Path("/usr/local/include/ev.h")]
FILE_SIZE = 100_000_000


@dataclass
class Environment:
    home: Path
    rgunicorn: list = field(default_factory=list)
    versions: dict = field(default_factory=dict)
    built: set = field(default_factory=set)

    @property
    def python(self):
        return self.bin("python")

    @property
    def scratch(self):
        return self.home / "run"

    @property
    def openloop(self):
        return str(self.home / "cargo" / "release" / "openloop")

    @property
    def download(self):
        return self.home / "100MB"

    def bin(self, name):
        return str(self.venv / "bin" / name)

    @property
    def venv(self):
        return Path(os.environ.get("BENCH_VENV") or self.home / "venv")

    def program(self, name):
        return str(self.home / name)


def prepare(wheel=None, rgunicorn=None, install=True):
    env = Environment(home=PROJECT / ".bench")
    env.scratch.mkdir(parents=True, exist_ok=True)
    if install:
        install_tools()
        make_venv(env)
        install_peers(env)
    if wheel:
        run([env.python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", str(wheel)])
    env.versions = installed(env)
    env.rgunicorn = rgunicorn or ([env.bin("rgunicorn")] if "rgunicorn" in env.versions else [])
    env.built = {name for name in ("floor", "bulk") if compile_c(env, name)}
    env.built |= {"openloop"} if build_openloop(env) else set()
    make_download(env)
    return env


def note(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **options):
    return subprocess.run(command, check=True, text=True, capture_output=True, **options).stdout


# -- tools and peers ----------------------------------------------------------------------------------------------------


def install_tools():
    """By apt where possible; what stays missing takes only the workloads that need it away."""
    missing = [package for tool, package in DEBIAN.items() if not shutil.which(tool)]
    if not any(header.exists() for header in EV_HEADERS):
        missing.append("libev-dev")
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        note(f"bench: not installed, and only root can: {' '.join(missing)}")
        return
    note(f"bench: apt-get install {' '.join(missing)}")
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(["apt-get", "update", "-qq"], env=quiet, stdout=subprocess.DEVNULL)
    for package in missing:
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        if subprocess.run(command, env=quiet, stdout=subprocess.DEVNULL).returncode:
            note(f"bench: apt-get could not install {package}")


def make_venv(env):
    if not Path(env.python).exists():
        run([sys.executable, "-m", "venv", str(env.venv)])


def install_peers(env):
    """One by one: a peer that does not build here is reported as not installed and costs nobody else."""
    have = installed(env)
    for package in PACKAGES:
        if package in have:
            continue
        note(f"bench: pip install {package}")
        command = [env.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", package]
        result = subprocess.run(command, text=True, capture_output=True)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            note(f"bench: {package} is not installed: {lines[-1]}")


def installed(env):
    """Distribution name → version, in the venv."""
    code = (
        "import json; from importlib.metadata import distributions as d;"
        "print(json.dumps({x.metadata['Name'].lower(): x.version for x in d() if x.metadata['Name']}))"
    )
    return json.loads(run([env.python, "-c", code]))


def compile_c(env, name):
    source, target = BENCHES / f"{name}.c", env.home / name
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return True
    if not shutil.which("cc"):
        return False
    run(["cc", "-O2", "-o", str(target), str(source)])
    return True


def build_openloop(env):
    """The compiler is the one that has built the server."""
    if not shutil.which("cargo"):
        return False
    manifest = ["--manifest-path", str(BENCHES / "openloop" / "Cargo.toml")]
    environ = dict(os.environ, CARGO_TARGET_DIR=str(env.home / "cargo"))
    result = subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--locked", *manifest], env=environ, text=True, capture_output=True
    )
    if result.returncode:
        note(f"bench: openloop is not built: {result.stderr.strip()[-300:]}")
    return result.returncode == 0


def make_download(env):
    if env.download.exists() and env.download.stat().st_size == FILE_SIZE:
        return
    with open(env.download, "wb") as file:
        for _ in range(FILE_SIZE // 1_000_000):
            file.write(os.urandom(1_000_000))


# -- facts --------------------------------------------------------------------------------------------------------------


def facts(env, command):
    """What a reader needs to judge the figures, as (name, value) pairs."""
    peers = [f"{name} {env.versions[name]}" for name in PACKAGES if name in env.versions]
    return [
        ("date", datetime.date.today().isoformat()),
        ("command", command),
        ("CPU", f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"),
        ("system", f"{distribution()}, Linux {platform.release()}"),
        ("Python", first_line([env.python, "-V"])),
        ("rgunicorn", first_line(env.rgunicorn + ["--version"]) if env.rgunicorn else "not installed"),
        ("peers", ", ".join(peers)),
        ("nginx", first_line(["nginx", "-v"])),
        ("wrk", first_line(["wrk", "--version"])),
    ]


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def distribution():
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return "unknown system"


def first_line(command):
    try:
        result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    lines = result.stdout.strip().splitlines()
    return lines[0].strip() if lines else "unknown"
