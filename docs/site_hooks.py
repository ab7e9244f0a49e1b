"""What MkDocs needs beside docs/: the pages and examples that stand elsewhere in the tree, and links to them."""
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")
EXAMPLES = ("*.py", "*.toml", "*.service", "django/nginx/*.conf")
# Places of the tree that the site does not show: their links become plain code.
UNSHOWN = re.compile(r"\[`?([^]`]*)`?\]\((?:\.\./)*(?:src|tests|benches|python|fuzz|examples/django)/?[^)#]*\)")


def on_files(files, config):
    """Adds the pages of the root, and the examples that the docs link to."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for pattern in EXAMPLES:
        for path in sorted((ROOT / "examples").glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns links between files of the tree into links between pages of the site."""
    inside = page.file.src_uri.count("/")
    root = "../" * inside
    if page.file.src_uri in PAGES:
        markdown = markdown.replace("](docs/", "](")
    markdown = re.sub(r"\]\((?:\.\./)+(%s|examples/[\w./-]+\.\w+)" % "|".join(map(re.escape, PAGES)),
                      lambda found: "](" + root + found.group(1), markdown)
    return UNSHOWN.sub(lambda found: found.group(0) if is_shown(found.group(0)) else "`%s`" % found.group(1), markdown)


def is_shown(link):
    """Whether the link leads to a file that `on_files` has added."""
    return re.search(r"examples/[\w./-]+\.(py|toml|service|conf)\)", link) is not None
