"""Every setting with values that it cannot have, from every source: one sentence that names the setting, the source and what
is allowed, and the right exit code. A setting of a kind without such values here fails."""
import json
import re
import subprocess
import sys

import pytest

import harness

pytest.importorskip("rgunicorn", reason="the table is in the package")
from rgunicorn import _core  # noqa: E402

SETTINGS = {row["name"]: row for row in _core.settings()}

# For each kind: texts that are wrong on a command line or in a variable; Python expressions and TOML values that are wrong
# in a file; what the sentence says of either.
NOT_TEXT = ["5", "[]", "True"]
WRONG = {
    "flag": ([], ["'maybe'", "7", "[]"], r"neither true nor false"),
    "mode": (["rwx", "-1", "77777"], ["'rwx'", "-1", "[]"], r"a file mode like 0022"),
    "seconds": (["soon", "-1", "30s"], ["'soon'", "-1", "[]"], r"a number of seconds ≥ 0"),
    "text": ([], NOT_TEXT, r"is not a text"),
    "path": ([], NOT_TEXT, r"is not a text"),
    "folder": ([], NOT_TEXT, r"is not a text"),
    "file": ([], NOT_TEXT, r"is not a text"),
    "new_file": ([], NOT_TEXT, r"is not a text"),
    "log": ([], NOT_TEXT, r"is not a text"),
    "account": ([], ["-1", "[]", "2.5"], r"neither a name nor a number ≥ 0|is not a text"),
    "choice": (["no-such-word"], ["'no-such-word'", "5", "[]"], r"is not one of: \w"),
    "switch": (["no-such-word"], ["'no-such-word'", "5", "[]"], r"is not one of: \w"),
    "worker": (["gevent", "mine.Worker"], ["'gevent'", "5", "[]"], r"gthread"),
    "warm_ups": (["health", "/a b", "ftp://host/"], ["'health'", "5", "[5]"], r"is neither a path like|is not a text"),
    "texts": ([], ["5", "[5]"], r"is not a text"),
    "comma_list": ([], ["5", "[5]"], r"is not a text"),
    "allow_list": (["10.1.2.3/8", "localhost"], ["'localhost'", "5", "[5]"], r"network|is not a text"),
    "env": (["NO_VALUE"], ["'NO_VALUE'", "5", "['NO_VALUE']"], r"is not NAME=value|is not a text"),
    "variables": (["NO_VALUE", "=value", r"A\=b"], ["'NO_VALUE'", "5", "['=value']"], r"is not NAME=value|is not a text"),
    "addresses": (["127.0.0.1:x", "8000"], ["'127.0.0.1:x'", "8000", "[8000]"], r"is not a port|a port without|is not a text"),
    "map": (None, ["'x'", "5", "{'A' = 5}"], r"is not NAME=value|is not a map of texts|is not a text"),
    "hook": (None, ["'name'", "5", "[]"], r"MODULE\.NAME"),
    "class": ([], ["5", "[]"], r"neither a class nor MODULE\.NAME"),
    "tree": (None, ["'x'", "5"], r"is not a dictionary"),
}
# Values with a rule of their own.
CHECKED = {
    "protocol": (["ftp", "uwsgi"], ["'ftp'", "7"], r"is not one of: http, uwsgi$|is not available yet, use http |is not a text$"),
    "syslog_addr": (["localhost:514", "udp://localhost:x", "unix://"], ["'localhost:514'", "'tcp://h:0'", "7"],
                    r"is not udp://HOST:PORT, tcp://HOST:PORT or unix://PATH$|is not a port \(1 to 65535\)$|the path of the socket "
                    r"is missing: unix:///dev/log$|is not a text$"),
    "statsd_host": (["localhost", "localhost:x"], ["'localhost'", "'localhost:70000'", "7"],
                    r"is not HOST:PORT or unix://PATH$|is not a port \(1 to 65535\)$|is not a text$"),
    "root_path": (["shop", "/a b"], ["'shop'", "7"], r"is not a path like /shop, of plain letters$|is not a text$"),
}
# Nothing is wrong with these, which is why they are named here.
ANYTHING_GOES = {"ssl_version"}

# Paths that are fine as texts: a value, and what is said of it.
NOT_THERE = {
    "folder": [("/no/such/folder", r"is not a folder that exists: No such file"), ("/dev/null", r"is not a folder")],
    "file": [("/no/such/file", r"is not a file that can be read: No such file"), ("/dev", r"is a folder, not a file")],
    "new_file": [("/no/such/x", r"is not in a folder that exists: No such file"), ("/dev/null/x", r"is not in a folder"),
                 ("/dev", r"is a folder, not a file")],
    "log": [("/no/such/x", r"is not in a folder that exists: No such file"), ("/dev", r"is a folder, not a file")],
    "account": [("no-such-account", r"there is no (user|group) 'no-such-account'")],
}
# A key alone would be refused for want of a certificate.
WITH = {"keyfile": "certfile", "ca_certs": "certfile"}

# Runs cases in one interpreter: they are refused before anything is forked, or found to be right by --check-config.
DRIVER = """
import json, os, sys
from rgunicorn import _core

folder, results = os.getcwd(), []
for case in json.load(sys.stdin):
    os.chdir(folder)
    for name in ("gunicorn.conf.py", "rgunicorn.toml", "pyproject.toml"):
        if os.path.exists(name):
            os.remove(name)
    for name, text in case["files"].items():
        with open(name, "w") as file:
            file.write(text)
    os.environ.update(case["env"])
    with open("stderr", "w+b") as file:
        os.dup2(file.fileno(), 2)
        code = _core.main(["rgunicorn", "--check-config"] + case["arguments"] + ["apps.hello"])
        sys.stderr.flush()
        file.seek(0)
        results.append([code, file.read().decode()])
    for name in case["env"]:
        del os.environ[name]
json.dump(results, sys.stdout)
"""


def wrong_values(row):
    """(texts, expressions, what is said of them) for a setting."""
    if row["kind"] == "int":
        low, high = row["bounds"]
        texts = ["x", str(low - 1), "2.5", ""]
        expressions = ["'x'", str(low - 1), "2.5", "[]"]
        if high < 2**63 - 1:
            texts.append(str(high + 1))
            expressions.append(str(high + 1))
        return texts, expressions, r"is not a whole number ≥ %d$|is more than %d$" % (low, high)
    if row["kind"] == "checked":
        return CHECKED[row["name"]]
    return WRONG[row["kind"]]


def shell_quoted(text):
    return "'%s'" % text


def case(arguments=(), env=None, files=None, code=1, begins="", says=""):
    return {"arguments": list(arguments), "env": env or {}, "files": files or {}, "code": code, "begins": begins, "says": says}


def by_words(row, text, says, code):
    """From the command line, GUNICORN_CMD_ARGS and the variable of its own, as far as it has them."""
    if row["flags"]:
        flag = next(flag for flag in row["flags"] if flag.startswith("--"))
        for spelling in row["flags"]:
            words = ["%s=%s" % (spelling, text)] if spelling.startswith("--") else [spelling, text]
            yield case(words, None, None, code, "%s: " % flag, says)
        args = "%s=%s" % (flag, shell_quoted(text))
        yield case([], {"GUNICORN_CMD_ARGS": args}, None, code, "GUNICORN_CMD_ARGS: %s: " % flag, says)
    if row["env"] and text:
        # A number alone is what PORT takes.
        if not (row["env"] == "PORT" and text.isdigit()):
            yield case([], {row["env"]: text}, None, 1, "%s: " % row["env"], says)


def on_and_off(row):
    for flag in row["flags"]:
        if flag.startswith("--"):
            begins = "%s takes no value" % next(flag for flag in row["flags"] if flag.startswith("--"))
            yield case([flag + "=maybe"], None, None, 2, begins)
            yield case([], {"GUNICORN_CMD_ARGS": flag + "=maybe"}, None, 2, "GUNICORN_CMD_ARGS: " + begins)
    if row["env"]:
        yield case([], {row["env"]: "maybe"}, None, 1, "%s: 'maybe' is neither true nor false" % row["env"])


def by_file(row, expression, says):
    name, more = row["name"], WITH.get(row["name"])
    extra = "%s = '/dev/null'\n" % more if more else ""
    python = expression.replace("' = ", "': ")
    source = "# Ours.\n%sdef helper(%s):\n    %s = 1\n\n%s = %s\n" % (extra, name, name, name, python)
    yield case([], None, {"gunicorn.conf.py": source}, 1, "gunicorn.conf.py:%d: %s: " % (line_of(source), name), says)
    if expression in ("None", "True"):
        expression = expression.lower()
    toml = "# Ours.\n%s%s = %s\n" % (extra, name, expression)
    yield case([], None, {"rgunicorn.toml": toml}, 1, "rgunicorn.toml:%d: %s: " % (line_of(toml), name), says)
    project = "[tool.other]\n%s = 1\n\n[tool.rgunicorn]\n%s%s = %s\n" % (name, extra, name, expression)
    yield case([], None, {"pyproject.toml": project}, 1, "pyproject.toml:%d: %s: " % (line_of(project), name), says)


def line_of(source):
    """The wrong value is in the last line."""
    return source.count("\n")


def cases(row):
    texts, expressions, says = wrong_values(row)
    assert expressions, "no wrong value is known for %s" % row["name"]
    assert (texts is None) <= (not row["flags"])
    for text in texts or []:
        yield from by_words(row, text, says, 2)
    if row["kind"] == "flag":
        yield from on_and_off(row)
    for expression in expressions:
        yield from by_file(row, expression, says)
    for path, says in NOT_THERE.get(row["kind"], []):
        for found in by_words(row, path, says, 1):
            more = WITH.get(row["name"])
            found["arguments"] += ["--%s=/dev/null" % more] if more else []
            yield found
        yield from by_file(row, "'%s'" % path, says)


def run_all(all_cases, tmp_path):
    done = subprocess.run([sys.executable, "-c", DRIVER], input=json.dumps(all_cases).encode(), cwd=str(tmp_path),
                          env=harness.clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
    assert done.returncode == 0, done.stderr.decode() + harness.read_text(tmp_path / "stderr")
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - ANYTHING_GOES - {"config"}))
def test_wrong_values(name, tmp_path):
    todo = list(cases(SETTINGS[name]))
    for tried, (code, said) in zip(todo, run_all(todo, tmp_path)):
        shown = "%s\n%s" % (json.dumps(tried, ensure_ascii=False), said)
        assert code == tried["code"], shown
        assert said.startswith("rgunicorn: " + tried["begins"]), shown
        assert said.count("\n") == 1 and said.endswith("\n"), shown
        assert re.search(tried["says"], said.strip()), shown


def test_nothing_is_wrong_with_what_takes_anything():
    assert ANYTHING_GOES == {name for name, row in SETTINGS.items() if row["kind"] == "anything"}


def test_the_file_itself(tmp_path):
    missing = [
        case(["-c", "missing.py"], begins="--config: the file 'missing.py' does not exist"),
        case(["-c", "file:missing.py"], begins="--config: the file 'missing.py' does not exist"),
        case([], {"GUNICORN_CMD_ARGS": "-c missing.py"}, begins="GUNICORN_CMD_ARGS: --config: the file 'missing.py' does not exist"),
        case(["-c", "."], begins="config file "),
    ]
    for tried, (code, said) in zip(missing, run_all(missing, tmp_path)):
        assert (code, said.count("\n")) == (1, 1), said
        assert said.startswith("rgunicorn: " + tried["begins"]), said


@pytest.mark.parametrize("source, line", [
    ("workers = 2\nfor workers in ['x']:\n    pass\n", 2),
    ("import os as workers\n", 1),
    ("if True:\n    workers = (\n        'x')\n", 2),
    ("(threads, workers) = 1, 'x'\n", 1),
    ("workers: int = 'x'\n", 1),
    ("def workers():\n    pass\n", 1),
    ("with open(__file__) as workers:\n    pass\n", 1),
    ("globals()['workers'] = 'x'\n", None),
])
def test_the_line_of_a_python_setting(tmp_path, source, line):
    where = "gunicorn.conf.py:%d" % line if line else "gunicorn.conf.py"
    tried = case([], None, {"gunicorn.conf.py": source})
    [(code, said)] = run_all([tried], tmp_path)
    assert code == 1 and said.startswith("rgunicorn: %s: workers: " % where), said


def test_the_line_in_an_imported_module(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "live.py").write_text("threads = 1\nworkers = 'x'\n")
    [(code, said)] = run_all([case(["-c", "python:conf.live"])], tmp_path)
    assert (code, said) == (1, "rgunicorn: python:conf.live:2: workers: 'x' is not a whole number ≥ 1\n")


def test_the_line_of_a_hook_with_other_arguments(tmp_path):
    source = "import os\n\ndef post_fork(worker):\n    pass\n"
    [(code, said)] = run_all([case([], None, {"gunicorn.conf.py": source})], tmp_path)
    assert code == 1 and said.startswith("rgunicorn: gunicorn.conf.py:3: post_fork: it has to take 2 arguments"), said


def test_a_wrong_value_is_named_as_a_process_ends(tmp_path):
    """The same, as somebody at a terminal sees it."""
    (tmp_path / "gunicorn.conf.py").write_text("import os\nworkers = os.sep\n")
    done = harness.run("-b", "127.0.0.1:0", "apps.hello", cwd=str(tmp_path))
    sentence = "rgunicorn: gunicorn.conf.py:2: workers: '/' is not a whole number ≥ 1\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)
