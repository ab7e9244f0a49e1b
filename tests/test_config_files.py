"""What published configuration files rely on: how they are named and run, and what they find around them."""
import py_compile

import pytest

from harness import run

HELLO = "apps.hello"
SELF = "import os, sys\nassert __name__ == '__config__' and sys.modules['__config__'].__file__ == __file__\n" \
       "assert os.path.isabs(__file__) and sys._getframe().f_code.co_filename == __file__\nworkers = len('abc')\n"


def printed(*arguments, **settings):
    """The settings that --print-config shows, with what is said beside it."""
    done = run("--print-config", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" = ", 1) for line in done.stdout.splitlines()), done.stderr


def value(settings, name):
    return {key.strip(): text for key, text in settings.items()}[name]


@pytest.mark.parametrize("name, form", [("conf.py", "conf.py"), ("conf.py", "file:conf.py"), ("conf.py", "python:conf")])
def test_forms_of_the_name(tmp_path, name, form):
    (tmp_path / name).write_text("workers = 3\n")
    settings, said = printed("-c", form, HELLO, cwd=str(tmp_path))
    assert (value(settings, "workers"), said) == ("3", "")


def test_a_file_knows_itself(tmp_path):
    """Also when the server goes to another folder afterwards."""
    (tmp_path / "conf.py").write_text(SELF)
    settings, _ = printed("-c", "conf.py", "--chdir", "/", HELLO, cwd=str(tmp_path))
    assert value(settings, "workers") == "3"


def test_a_compiled_file(tmp_path):
    (tmp_path / "conf.py").write_text("workers = 3\n")
    py_compile.compile(str(tmp_path / "conf.py"), str(tmp_path / "other.pyc"), doraise=True)
    settings, said = printed("-c", "other.pyc", HELLO, cwd=str(tmp_path))
    assert (value(settings, "workers"), said) == ("3", "")


def test_a_name_that_does_not_end_in_py(tmp_path):
    (tmp_path / "settings.conf").write_text("workers = 3\n")
    done = run("--check-config", "-c", "settings.conf", HELLO, cwd=str(tmp_path))
    assert done.returncode == 0
    assert "settings.conf: read as Python, though its name does not end in .py" in done.stderr


def test_an_empty_name_is_no_name(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("workers = 3\n")
    assert value(printed("-c", "", HELLO, cwd=str(tmp_path))[0], "workers") == "3"


def test_an_exception_is_shown(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("import os\n\nraise LookupError('on purpose')\n")
    done = run("--check-config", HELLO, cwd=str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "LookupError: on purpose" in done.stderr
    assert '%s", line 3' % (tmp_path / "gunicorn.conf.py") in done.stderr


def test_words_in_the_variable_are_no_application(tmp_path):
    done = run("--check-config", env={"GUNICORN_CMD_ARGS": "apps.hello"}, cwd=str(tmp_path))
    assert done.returncode == 1 and "application" in done.stderr.lower(), done.stderr


@pytest.mark.parametrize("option", ["--print-config", "--check-config"])
def test_an_application_is_wanted_all_the_same(tmp_path, option):
    assert run(option, cwd=str(tmp_path)).returncode == 1
    assert run(option, "no_such_module_x", cwd=str(tmp_path)).returncode == 1


@pytest.mark.parametrize("flag, shown", [("0022", "18"), ("0o22", "18"), ("0x12", "18"), ("18", "18")])
def test_forms_of_a_mode(tmp_path, flag, shown):
    assert value(printed("--umask", flag, HELLO, cwd=str(tmp_path))[0], "umask") == shown


def test_lists_replace_lists(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("raw_env = ['A=1']\nbind = ['127.0.0.1:1']\n")
    settings, _ = printed("-e", "B=2", HELLO, env={"GUNICORN_CMD_ARGS": "-b 127.0.0.1:2 -b 127.0.0.1:3"}, cwd=str(tmp_path))
    assert "'B'" in value(settings, "raw_env") and "'A'" not in value(settings, "raw_env")
    assert value(settings, "bind") == "['127.0.0.1:2', '127.0.0.1:3']"


def test_variables_of_platforms(tmp_path):
    env = {"PORT": "5000", "WEB_CONCURRENCY": "", "FORWARDED_ALLOW_IPS": "*", "SENDFILE": "no"}
    settings, _ = printed(HELLO, env=env, cwd=str(tmp_path))
    found = [value(settings, name) for name in ("bind", "workers", "forwarded_allow_ips", "sendfile")]
    assert found == ["['0.0.0.0:5000']", "1", "['*']", "False"]
