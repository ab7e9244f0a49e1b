"""The documentation says what is so."""
import importlib.util
import json
import os
import re
import shlex
import shutil

import pytest

import harness

DOCS = os.path.join(harness.ROOT, "docs")


def test_the_list_of_settings_is_current():
    pytest.importorskip("rgunicorn", reason="the table is in the package")
    spec = importlib.util.spec_from_file_location("generate", os.path.join(DOCS, "generate.py"))
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    text = harness.read_text(os.path.join(DOCS, "settings.md"))
    assert generate.page(text) == text, "run `make docs`"


def pages():
    return sorted(name for name in os.listdir(DOCS) if name.endswith(".md"))


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", pages() + ["../README.md"])
def test_links_lead_somewhere(name):
    text = harness.read_text(os.path.join(DOCS, name))
    folder = os.path.dirname(os.path.join(DOCS, name))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = os.path.normpath(os.path.join(folder, path)) if path else os.path.join(DOCS, name)
        assert os.path.exists(file), "%s links to %s" % (name, target)
        if fragment:
            headings = re.findall(r"^#+ (.*)$", harness.read_text(file), re.M)
            assert fragment in [anchor(heading) for heading in headings], "%s links to %s" % (name, target)


@pytest.mark.parametrize("name", [name for name in pages() if name != "index.md"])
def test_every_page_is_in_the_index(name):
    assert "(%s)" % name in harness.read_text(os.path.join(DOCS, "index.md"))


# --- the commands of docs/deployment.md ---

def commands(page):
    """The words after `rgunicorn` of each command: lines of code, ExecStart, Procfile, and lists in brackets."""
    text = harness.read_text(os.path.join(DOCS, page))
    for line in re.findall(r"^    (.*)$", text, re.M):
        listed = re.search(r'(\["rgunicorn".*\])', line)
        written = re.search(r"^(?:[\w/=:]*[=:] ?)?[\w/]*\brgunicorn (?!serve)(.*)$", line)
        if listed:
            yield json.loads(listed.group(1))[1:]
        elif written:
            yield shlex.split(written.group(1))


DEPLOYMENT = list(commands("deployment.md"))


def test_the_commands_are_found():
    assert len(DEPLOYMENT) >= 7, DEPLOYMENT


@pytest.mark.parametrize("words", DEPLOYMENT, ids=" ".join)
def test_commands_serve(server, tmp_path, words):
    """As they are but for where they listen."""
    (tmp_path / "site" / "shop").mkdir(parents=True)
    (tmp_path / "site" / "shop" / "__init__.py").touch()
    shutil.copy(os.path.join(harness.TESTS, "apps", "hello.py"), str(tmp_path / "site" / "shop" / "wsgi.py"))
    done = harness.run("--check-config", *words, cwd=str(tmp_path / "site"))
    assert (done.returncode, done.stderr) == (0, "")
    free = {"127.0.0.1:8000": "127.0.0.1:0", "0.0.0.0:8000": "0.0.0.0:0", "unix:/run/shop/shop.sock": "unix:%s" % (tmp_path / "s")}
    words = [free.get(word, word) for word in words]
    running = server(None, *words, bind=None, env={"PORT": "0"}, directory=tmp_path / "site")
    assert running.get("/").status == 200
    assert running.lines("WARNING") == []
