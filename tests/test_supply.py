"""What we are built from, and where memory safety rests on us: the scripts of .ci/ and the page that one of them makes."""
import importlib.machinery
import importlib.util
import os
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


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="asks cargo for the crates, which `make check` does too")
def test_the_crates():
    assert subprocess.run([sys.executable, str(ROOT / ".ci" / "dependencies")]).returncode == 0
