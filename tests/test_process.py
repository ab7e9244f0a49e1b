"""The process among others: as whom it runs, what it is called, its sockets, its pid file."""
import grp
import json
import os
import pwd
import re
import socket
import stat
import sys
from signal import SIGHUP, SIGUSR1

import pytest

import harness
import wire
from harness import run, wait_until
from users import IMPORTS, commons, nobody  # noqa: F401

HELLO = "apps.hello"

# --- user and group ---

WHO = """
    import json, os

    def attempt(change):
        try:
            change(0)
        except OSError:
            return False
        return True

    AT_IMPORT = [os.getresuid(), os.getresgid(), os.getgroups()]

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({
            "import": AT_IMPORT, "pid": os.getpid(), "home": os.environ.get("HOME"),
            "regained": [f.__name__ for f in (os.setuid, os.seteuid, os.setgid, os.setegid) if attempt(f)],
        }).encode()]
"""


def started_by(user):
    """The command line of a server that `user` starts."""
    return [sys.executable, "-c", "import os, sys, rgunicorn._core, rgunicorn.hooks\n" + IMPORTS +
            "os.setgroups([])\nos.setgid(%d)\nos.setuid(%d)\n" % (user.pw_gid, user.pw_uid) +
            "sys.exit(rgunicorn._core.main(['rgunicorn'] + sys.argv[1:]))"]


def ids(pid):
    """(Uid, Gid, Groups) of a process as the kernel shows them."""
    with open("/proc/%d/status" % pid) as f:
        text = f.read()
    return tuple([int(n) for n in re.search(r"^%s:(.*)$" % name, text, re.M).group(1).split()]
                 for name in ("Uid", "Gid", "Groups"))


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_workers_run_as_the_user(server, commons, preload):
    user = nobody()
    running = server(WHO, "-u", "nobody", "-w", "2", *preload, directory=commons, config=IMPORTS)
    said = json.loads(running.get("/").text)
    uid, gid = user.pw_uid, user.pw_gid
    assert said["import"] == [[uid] * 3, [gid] * 3, []]
    assert said["regained"] == []
    assert said["home"] == os.environ.get("HOME")
    for pid in running.wait_workers(2):
        assert ids(pid) == ([uid] * 4, [gid] * 4, [])
    assert ids(running.pid)[0] == [0] * 4
    running.signal(SIGHUP)
    running.wait_log("Reload complete")
    assert json.loads(running.get("/").text)["import"][0] == [uid] * 3
    assert running.stop() == 0


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_hooks_before_and_after_the_change(server, commons, preload):
    user = nobody()
    config = IMPORTS + "".join(
        "def %s: sys.stderr.write('%s as %%d\\n' %% os.geteuid())\n" % (hook, hook.split("(")[0])
        for hook in ("pre_fork(server, worker)", "post_fork(server, worker)", "post_worker_init(worker)"))
    running = server(WHO, "-u", "nobody", *preload, directory=commons, config=config)
    assert json.loads(running.get("/").text)["import"][0] == [user.pw_uid] * 3
    said = dict(re.findall(r"^(p\w+) as (\d+)$", running.log(), re.M))
    # A mold has given up root before it forks.
    forked = user.pw_uid if preload else 0
    assert said == {"pre_fork": "0", "post_fork": str(forked), "post_worker_init": str(user.pw_uid)}


@pytest.mark.parametrize("user, group, uid, gid", [
    ("65534", "12345", 65534, 12345),
    ("4000000", None, 4000000, 0),
    (None, "12345", 0, 12345),
])
def test_numbers(server, commons, user, group, uid, gid):
    nobody()
    options = (["-u", user] if user else []) + (["-g", group] if group else [])
    running = server(WHO, *options, directory=commons, config=IMPORTS)
    assert json.loads(running.get("/").text)["import"] == [[uid] * 3, [gid] * 3, []]


def test_user_and_group_in_the_config_file(server, commons):
    user = nobody()
    running = server(WHO, config=IMPORTS + "user = %d\ngroup = 'daemon'\n" % user.pw_uid, directory=commons)
    said = json.loads(running.get("/").text)["import"]
    assert said == [[user.pw_uid] * 3, [grp.getgrnam("daemon").gr_gid] * 3, []]


def test_initgroups(server, commons):
    nobody()
    entry = next((u for u in pwd.getpwall() if u.pw_uid and len(os.getgrouplist(u.pw_name, u.pw_gid)) > 1), None)
    name, gid = (entry.pw_name, entry.pw_gid) if entry else ("nobody", 65534)
    running = server(WHO, "-u", name, "--initgroups", directory=commons, config=IMPORTS)
    said = json.loads(running.get("/").text)["import"]
    assert said[1] == [gid] * 3
    assert sorted(said[2]) == sorted(os.getgrouplist(name, gid))


def test_the_unix_socket_is_the_users(server, commons):
    user = nobody()
    path = os.path.join(commons, "app.sock")
    running = server(WHO, "-b", "unix:" + path, "-u", "nobody", "-g", "daemon", "-m", "0117", directory=commons, config=IMPORTS)
    found = os.stat(path)
    assert (found.st_uid, found.st_gid) == (user.pw_uid, grp.getgrnam("daemon").gr_gid)
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert running.get("/").status == 200
    assert running.stop() == 0
    assert not os.path.exists(path)


def test_logs_are_the_users_and_can_be_reopened(server, commons):
    user = nobody()
    running = server(WHO, "-u", "nobody", "--access-logfile", "access.log", "--error-logfile", "error.log",
                     directory=commons, config=IMPORTS)
    names = ("access.log", "error.log")

    def owners():
        return [os.stat(running.path(name)).st_uid if running.exists(name) else None for name in names]
    assert owners() == [user.pw_uid] * 2
    running.get("/one")
    wait_until(lambda: "/one" in running.read("access.log"))
    for name in names:
        os.rename(running.path(name), running.path(name + ".1"))
    running.signal(SIGUSR1)
    wait_until(lambda: owners() == [user.pw_uid] * 2)

    def moved():
        running.get("/two")
        return "/two" in running.read("access.log")
    wait_until(moved)


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_logs_in_a_folder_that_the_user_cannot_enter(server, commons, tmp_path, preload):
    nobody()
    tmp_path.chmod(0o700)
    running = server(WHO, "-u", "nobody", *preload, "--access-logfile", tmp_path / "access.log",
                     "--error-logfile", tmp_path / "error.log", directory=commons, config=IMPORTS)
    running.get("/one")
    wait_until(lambda: "/one" in (tmp_path / "access.log").read_text())


def test_a_log_that_is_a_link_changes_no_owner(server, commons):
    nobody()
    target = os.path.join(commons, "precious")
    with open(target, "w"):
        pass
    os.symlink(target, os.path.join(commons, "access.log"))
    running = server(WHO, "-u", "nobody", "--access-logfile", "access.log", directory=commons, config=IMPORTS)
    assert running.get("/").status == 200
    assert os.stat(target).st_uid == 0


@pytest.mark.parametrize("options, words", [
    (["-u", "no-such-user"], "--user: there is no user 'no-such-user'"),
    (["-g", "no-such-group"], "--group: there is no group 'no-such-group'"),
])
@pytest.mark.parametrize("check", [[], ["--check-config"]])
def test_unknown_names(options, words, check):
    done = run("-b", "127.0.0.1:0", *options, *check, HELLO)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "rgunicorn: " + words


def test_only_root_may_become_somebody_else(server, commons):
    running = server(WHO, "-u", "root", directory=commons, leading=started_by(nobody()), wait=False)
    assert running.wait_exit() == 1
    assert len(running.log().splitlines()) == 1 and "only root" in running.log() and "--user" in running.log()


def test_everybody_may_remain_themselves(server, commons):
    user = nobody()
    running = server(WHO, "-u", "nobody", directory=commons, leading=started_by(user))
    assert json.loads(running.get("/").text)["import"][0] == [user.pw_uid] * 3


# --- names ---

# In place of the package, which may not be installed.
TITLES = """
    import os

    def setproctitle(title):
        with open("titles", "a") as f:
            f.write("%d %s\\n" % (os.getpid(), title))
"""


def titled(server, folder, *options, **settings):
    (folder / "setproctitle.py").write_text(harness.textwrap.dedent(TITLES))
    return server(settings.pop("app", HELLO), *options, directory=folder, **settings)


def titles(running):
    return dict(line.split(" ", 1) for line in running.read("titles").splitlines())


@pytest.mark.parametrize("options, config, name", [
    ([], None, HELLO),
    (["-n", "shop"], None, "shop"),
    (["--name", "shop"], "proc_name = 'file'\n", "shop"),
    ([], "proc_name = 'file'\n", "file"),
    ([], "default_proc_name = 'default'\n", "default"),
    (["--preload", "-n", "shop"], None, "shop"),
])
def test_titles(server, tmp_path, options, config, name):
    running = titled(server, tmp_path, "-w", "2", *options, config=config)
    workers = running.wait_workers(2)
    wait_until(lambda: all(str(pid) in titles(running) for pid in workers))
    found = titles(running)
    assert found[str(running.pid)] == "rgunicorn: master [%s]" % name
    assert {found[str(pid)] for pid in workers} == {"rgunicorn: worker [%s]" % name}
    assert ("rgunicorn: mold [%s]" % name in found.values()) == ("--preload" in options)


def test_a_reload_takes_a_new_name_over(server, tmp_path):
    running = titled(server, tmp_path, config="proc_name = 'one'\n")
    running.write("gunicorn.conf.py", "proc_name = 'two'\n")
    running.signal(SIGHUP)
    wait_until(lambda: titles(running)[str(running.pid)] == "rgunicorn: master [two]", 20, running.log)


def test_titles_of_the_real_package(server):
    pytest.importorskip("setproctitle")
    running = server(HELLO, "-n", "shop")
    assert "rgunicorn: master [shop]" in harness.describe(running.pid)
    pid = running.wait_workers(1)[0]
    wait_until(lambda: "rgunicorn: worker [shop]" in harness.describe(pid))


def test_a_title_that_cannot_be_set_is_no_reason_to_stop(server, tmp_path):
    (tmp_path / "setproctitle.py").write_text("raise RuntimeError('on purpose')\n")
    running = server(HELLO, directory=tmp_path)
    assert running.get("/").status == 200
    running.wait_log("WARNING.*on purpose")


# --- sockets ---

@pytest.mark.parametrize("form", ["unix:@%s", "unix:\\0%s"])
def test_an_abstract_socket(server, form):
    name = "rgunicorn-test-%d" % os.getpid()
    running = server(HELLO, "-b", form % name)
    assert running.listening == ["unix:@" + name]
    with wire.Connection("\0" + name) as connection:
        assert connection.exchange("GET", "/").status == 200


def test_an_abstract_socket_as_gunicorns_files_spell_it(server):
    name = "rgunicorn-test-%d" % os.getpid()
    running = server(HELLO, bind=None, config="bind = 'unix:\\0%s'\n" % name)
    assert running.listening == ["unix:@" + name]
    assert running.stop() == 0


def on_free_port(server, *options):
    """A server on a port that was free a moment ago."""
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        running = server(HELLO, *[o % port if "%" in o else o for o in options], wait=False)
        wait_until(lambda: not running.running() or harness.LISTENING.search(running.log()), 30)
        if running.running():
            return running, port
        running.expect_errors(r"[Cc]onnection in use")
    raise AssertionError("no free port")


@pytest.mark.parametrize("options", [["0.0.0.0:%d", "[::]:%d"], ["[::]:%d", "0.0.0.0:%d"]])
def test_both_families_on_one_port(server, options):
    running, port = on_free_port(server, "-b", options[0], "-b", options[1])
    for host in ("127.0.0.1", "::1"):
        with wire.Connection((host, port)) as connection:
            assert connection.exchange("GET", "/").status == 200
    running.signal(SIGHUP)
    running.wait_log("Reload complete")


def test_ipv6_alone_serves_ipv4_too(server):
    running = server(HELLO, "-b", "[::]:0")
    with wire.Connection(("127.0.0.1", running.port)) as connection:
        assert connection.exchange("GET", "/").status == 200


def test_reuse_port(server):
    first, port = on_free_port(server, "--reuse-port", "-b", "127.0.0.1:%d")
    second = server(HELLO, "--reuse-port", "-b", "127.0.0.1:%d" % port)
    assert first.listening == second.listening == ["http://127.0.0.1:%d" % port]
    assert first.stop() == 0
    assert second.get("/").status == 200


def test_several_addresses_of_all_kinds(server, tmp_path):
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        running = server(HELLO, "-b", "127.0.0.1:0", "-b", "unix:%s" % (tmp_path / "s"), "-m", "0077",
                         "-b", "fd://%d" % opened.fileno(), pass_fds=[opened.fileno()])
        assert len(running.addresses) == 3
        for address in running.addresses:
            with wire.Connection(address) as connection:
                assert connection.exchange("GET", "/").status == 200
        assert stat.S_IMODE(os.stat(str(tmp_path / "s")).st_mode) == 0o700


# --- files and folders ---

def test_a_foreign_process_in_the_pid_file_does_not_block(server, tmp_path):
    """After a reboot the number in a file that was left may be anybody's."""
    (tmp_path / "server.pid").write_text("%d\n" % os.getppid())
    running = server(HELLO, "--pid", tmp_path / "server.pid")
    assert (tmp_path / "server.pid").read_text() == "%d\n" % running.pid
    assert running.stop() == 0
    assert not (tmp_path / "server.pid").exists()


def test_a_pid_file_that_is_a_link_is_replaced(server, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "server.pid").symlink_to(tmp_path / "precious")
    running = server(HELLO, "--pid", tmp_path / "server.pid")
    assert not (tmp_path / "server.pid").is_symlink()
    assert running.stop() == 0
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_lock_outlives_workers(server):
    running = server(HELLO, "--pid", "server.pid", "-w", "2")
    first = running.wait_workers(2)[0]
    running.expect_errors()
    os.kill(first, 9)
    wait_until(lambda: first not in running.workers() and len(running.workers()) == 2)
    done = run("-b", "127.0.0.1:0", "--pid", running.path("server.pid"), HELLO)
    assert done.returncode == 1 and "Already running on PID %d" % running.pid in done.stderr


@pytest.mark.parametrize("option", ["--worker-tmp-dir", "tmp_upload_dir"])
def test_folders_without_a_use(server, tmp_path, option):
    def options(folder):
        if option.startswith("-"):
            return [option, str(folder)]
        (tmp_path / "conf.py").write_text("%s = %r\n" % (option, str(folder)))
        return ["-c", str(tmp_path / "conf.py")]
    assert server(HELLO, *options(tmp_path)).get("/").status == 200
    done = run("-b", "127.0.0.1:0", *options(tmp_path / "missing"), HELLO)
    assert done.returncode == 1
    source = option if option.startswith("-") else "%s:1: %s" % (tmp_path / "conf.py", option)
    missing = "'%s' is not a folder that exists: No such file or directory" % (tmp_path / "missing")
    assert done.stderr == "rgunicorn: %s: %s\n" % (source, missing)


# --- what is configured ---

def test_print_config():
    done = run("--print-config", "-w", "3", "-b", "127.0.0.1:0", HELLO)
    assert done.returncode == 0, done.stderr
    settings = dict(re.split(r" += ", line, maxsplit=1) for line in done.stdout.splitlines())
    assert list(settings) == sorted(settings)
    assert settings["workers"] == "3" and settings["bind"] == "['127.0.0.1:0']"
    assert settings["pidfile"] == "None" and settings["preload_app"] == "False"
    assert "Listening" not in done.stderr


def test_print_config_shows_functions_as_gunicorn_does(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("def post_fork(server, worker): pass\n")
    done = run("--print-config", "-c", str(tmp_path / "gunicorn.conf.py"), HELLO)
    settings = dict(re.split(r" += ", line, maxsplit=1) for line in done.stdout.splitlines())
    assert settings["post_fork"] == "<post_fork()>" and settings["when_ready"] == "None", done.stderr


@pytest.mark.parametrize("options, code", [
    (["apps.hello:missing"], 1),
    (["no_such_module_x"], 1),
    (["--timeout", "soon", HELLO], 2),
])
def test_print_config_loads_the_application(options, code):
    assert run("--print-config", *options).returncode == code


def test_pyproject(server, tmp_path):
    (tmp_path / "pyproject.toml").write_text("workers = 3\n[tool.rgunicorn]\nworkers = 2\n")
    server(HELLO, cwd=tmp_path).wait_workers(2)


def test_pyproject_is_not_read_beside_a_file_of_ours(server, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.rgunicorn]\nworkers = 'wrong'\n")
    (tmp_path / "gunicorn.conf.py").write_text("workers = 2\n")
    server(HELLO, cwd=tmp_path).wait_workers(2)
