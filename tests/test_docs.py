"""The documentation says what is so."""
import importlib.util
import os
import re

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
