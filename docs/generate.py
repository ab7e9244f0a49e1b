"""Writes the list of settings into settings.md, from the table in the package that is installed. `make docs` runs it."""
import pathlib
import sys

from rgunicorn import _core

PAGE = pathlib.Path(__file__).with_name("settings.md")
MARK = "<!-- From here on, written by `make docs` from the table in src/config/table. -->\n"


def entry(row):
    """One setting."""
    sources = ["`%s`" % flag for flag in row["flags"]]
    if row["env"]:
        sources.append("`%s` in the environment" % row["env"])
    where = ", ".join(sources) or "configuration file only"
    default = "`%s`" % row["default"] if row["default"] else "none"
    reload = "a reload takes it over" if row["reloadable"] else "needs a restart"
    text = row["help"] if not row["ignored"] else "%s Why: %s." % (row["help"], row["ignored"])
    facts = "Allowed: %s. Default: %s; %s." % (row["allowed"], default, reload)
    return "**`%s`** · %s<br>\n%s<br>\n%s\n" % (row["name"], where, text.replace("*", "\\*"), facts)


def settings():
    """The generated part of the page."""
    sections = {}
    for row in _core.settings():
        sections.setdefault(row["section"], []).append(entry(row))
    parts = ["## All settings\n"]
    for section, entries in sections.items():
        parts += ["### %s\n" % section] + entries
    return MARK + "\n" + "\n".join(parts)


def page(text):
    """The page, with the generated part as it should be."""
    written, _, _ = text.partition(MARK)
    return written.rstrip("\n") + "\n\n" + settings()


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(before), encoding="utf-8")
    print("%s is %s" % (PAGE, "as it was" if page(before) == before else "written"), file=sys.stderr)
