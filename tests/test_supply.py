"""What we are built from, and where memory safety rests on us: the scripts of .ci/ and the page that one of them makes."""
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(name):
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / ".ci" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def test_the_list_of_unsafe_code_is_what_the_source_has():
    done = subprocess.run([sys.executable, str(ROOT / ".ci" / "unsafe"), "--check"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.parametrize("source, found", [
    ("fn a() {\n    // SAFETY: it is.\n    unsafe { b() }\n}\n", [("a", "block", "it is.")]),
    ("fn a() {\n    // SAFETY: it\n    // is.\n    let x = unsafe { b() };\n}\n", [("a", "block", "it is.")]),
    ("fn a() {\n    unsafe { b() }\n}\n", [("a", "block", None)]),
    ("// SAFETY: no.\nunsafe impl Send for X {}\n", [("the file", "impl Send for X", "no.")]),
    ("#![deny(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe {\";\n", []),
    ("fn a() {}\n#[cfg(test)]\nmod tests { fn b() { unsafe { c() } } }\n", []),
])
def test_uses_of_unsafe_are_found(tmp_path, source, found):
    path = tmp_path / "x.rs"
    path.write_text(source)
    assert list(script("unsafe").uses(path)) == found


@pytest.mark.parametrize("licence, permitted", [
    ("MIT", True),
    ("MIT OR Apache-2.0", True),
    ("MIT/Apache-2.0", True),
    ("GPL-3.0", False),
    ("GPL-3.0 OR MIT", True),
    ("(MIT OR Apache-2.0) AND Unicode-3.0", True),
    ("MIT AND GPL-3.0", False),
    ("(MIT OR Apache-2.0) AND GPL-3.0", False),
    (None, False),
])
def test_licences(licence, permitted):
    assert script("dependencies").permitted(licence, {"MIT", "Apache-2.0", "Unicode-3.0"}) is permitted


@pytest.mark.parametrize("change, words", [
    (lambda text: text.replace("registry+https://github.com/rust-lang/crates.io-index", "git+https://example.org/x", 1), "from git"),
    (lambda text: "".join(line for line in text.splitlines(True) if "checksum" not in line), "checksum None"),
])
def test_a_lock_file_that_names_another_source_or_no_checksum(tmp_path, change, words):
    dependencies = script("dependencies")
    (tmp_path / "Cargo.lock").write_text(change((ROOT / "Cargo.lock").read_text()))
    found = list(dependencies.unlocked(dependencies.locked(tmp_path / "Cargo.toml")))
    assert found and words in found[0]
    assert not list(dependencies.unlocked(dependencies.locked(ROOT / "Cargo.toml")))


@pytest.mark.parametrize("module, refused", [(b"..RGUNICORN_DEFECTS..", True), (b"....", False), (None, True)])
def test_a_wheel_that_can_be_made_to_panic_is_not_released(tmp_path, module, refused):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("rgunicorn/__init__.py", "")
        if module is not None:
            wheel.writestr("rgunicorn/_core.so", module)
    assert bool(script("released").complaint(tmp_path / "x.whl")) is refused


def test_the_mark_of_such_a_wheel_is_the_variable_that_the_source_reads():
    assert script("released").MARK.decode() in (ROOT / "src" / "defect.rs").read_text()


@pytest.fixture
def project(tmp_path):
    """A project with our dependencies, whose files a test may change."""
    for name in ("src", "build.rs", "benches", "tests", "python"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("Cargo.toml", "Cargo.lock", "deny.toml", ".ci/dependencies", "fuzz/Cargo.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def bad_licence(project):
    change(project / "deny.toml", '    "MIT",\n', "")


def two_of_a_kind(project):
    change(project / "deny.toml", '    "shlex",', "    ")


def no_checksum(project):
    lines = (project / "Cargo.lock").read_text().splitlines(True)
    first = next(n for n, line in enumerate(lines) if line.startswith("checksum"))
    (project / "Cargo.lock").write_text("".join(lines[:first] + lines[first + 1:]))


def no_checksum_of_a_tool(project):
    change(project / "fuzz" / "Cargo.lock", "checksum = ", "check = ")


def other_source(project):
    change(project / "Cargo.lock", "registry+https://github.com/rust-lang/crates.io-index", "registry+https://example.org/index")


def crate_of_a_folder(project):
    (project / "own" / "src").mkdir(parents=True)
    (project / "own" / "src" / "lib.rs").write_text("")
    (project / "own" / "Cargo.toml").write_text('[package]\nname = "own"\nversion = "1.0.0"\nedition = "2021"\n')
    change(project / "Cargo.toml", "[dependencies]\n", "[dependencies]\nown = { path = \"own\" }\n")
    change(project / "Cargo.lock", 'name = "rgunicorn"\n', 'name = "own"\nversion = "1.0.0"\n\n[[package]]\nname = "rgunicorn"\n')
    lock = (project / "Cargo.lock").read_text()
    start = lock.index('name = "rgunicorn"')
    at = lock.index("dependencies = [\n", start) + len("dependencies = [\n")
    names = sorted(re.findall(r'^ "([^"]+)",$', lock[at:lock.index("]", at)], re.M) + ["own"])
    end = lock.index("]", at)
    (project / "Cargo.lock").write_text(lock[:at] + "".join(' "%s",\n' % name for name in names) + lock[end:])


@pytest.mark.parametrize("spoil, words", [
    (None, ""), (bad_licence, "its licence is MIT"), (two_of_a_kind, "shlex: "), (no_checksum, "checksum None|--locked failed"),
    (no_checksum_of_a_tool, "fuzz/Cargo.toml: .* checksum None"), (other_source, "example.org|--locked failed"),
    (crate_of_a_folder, "own: from .*, not from crates.io"),
], ids=lambda value: getattr(value, "__name__", None))
def test_what_the_check_of_the_crates_refuses(project, spoil, words):
    """As CI runs it; without the network, as cargo has the crates that it has built."""
    if spoil:
        spoil(project)
    # The compiler does not live with AddressSanitizer (`make asan`).
    environment = dict(os.environ, CARGO_NET_OFFLINE="true", LD_PRELOAD="")
    done = subprocess.run([sys.executable, str(project / ".ci" / "dependencies"), "Cargo.toml"], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=environment)
    said = done.stdout.decode()
    assert done.returncode == (1 if spoil else 0), said
    assert re.search(words, said), said


LOCKS = sorted((ROOT / ".ci" / "packages").glob("*.txt"))


def locked_packages(path):
    """(requirement, [checksum]) of each."""
    entries = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)).splitlines()
    return [(entry.split(" --hash")[0], re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry)) for entry in entries]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_python_package_has_a_version_and_checksums(path):
    packages = locked_packages(path)
    # What the tests compare with is one server and what it needs, the others are dozens.
    assert len(packages) > (0 if path.name == "peers.txt" else 5)
    for requirement, checksums in packages:
        assert re.match(r"[a-z0-9-]+==[\w.]+( ; .+)?$", requirement.strip()) and checksums, requirement


def test_what_the_project_wants_is_locked():
    """A package that is added to pyproject.toml, or to the example, and not to .ci/packages (make packages)."""
    requirements = pytest.importorskip("packaging.requirements")
    tomllib = pytest.importorskip("tomllib")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    example = (ROOT / "examples" / "django" / "requirements.txt").read_text().split()
    lists = {name: groups[name] for name in ("build", "site", "peers")}
    lists["test"] = groups["build"] + groups["test"] + example
    for name, wanted in lists.items():
        versions = {}
        for requirement, _ in locked_packages(ROOT / ".ci" / "packages" / (name + ".txt")):
            found = requirements.Requirement(requirement)
            if not found.marker or found.marker.evaluate():
                versions[found.name] = str(found.specifier)[2:]
        for text in wanted:
            found = requirements.Requirement(text)
            version = versions.get(re.sub(r"[-_.]+", "-", found.name).lower())
            assert version and found.specifier.contains(version), "%s is not in .ci/packages/%s.txt: make packages" % (text, name)


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="asks cargo for the crates, which `make check` does too")
def test_the_crates():
    assert subprocess.run([sys.executable, str(ROOT / ".ci" / "dependencies")]).returncode == 0
