"""What is left of root's rights, and what somebody else can make of the files that root opens.

The attacker is the workers' user, who owns the folders for logs, pid file and socket and may put anything there.
"""
import os
import re
import shutil
import stat
import sys
import time
from signal import SIGHUP, SIGINT, SIGTTIN, SIGUSR1

import pytest

import harness
from harness import wait_until
from users import IMPORTS, commons, nobody  # noqa: F401

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")

HELLO = """
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "6")])
        return [b"served"]
"""
SECRET = "root's own\n"
CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, NET_BIND, SYS_PTRACE, SYS_ADMIN = 0, 1, 5, 6, 7, 10, 19, 21


def capabilities(pid):
    with open("/proc/%d/status" % pid) as f:
        text = f.read()
    return {name: int(re.search(r"^Cap%s:\s*(\w+)" % name, text, re.M).group(1), 16)
            for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}


def as_nobody(action, *arguments):
    """Does it as the attacker would; for what root must not own."""
    user = nobody()
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        return action(*arguments)
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def lair(commons):
    """A folder of the attacker's, beside a file of root's."""
    folder = os.path.join(commons, "lair")
    os.mkdir(folder)
    os.chown(folder, nobody().pw_uid, nobody().pw_gid)
    with open(os.path.join(commons, "precious"), "w") as f:
        f.write(SECRET)
    os.chmod(os.path.join(commons, "precious"), 0o600)
    return folder


def precious(lair):
    return os.path.join(os.path.dirname(lair), "precious")


def assert_untouched(lair):
    found = os.stat(precious(lair))
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600)
    assert harness.read_text(precious(lair)) == SECRET


def plant_link(lair, path):
    as_nobody(os.symlink, precious(lair), path)


def plant_hard_link(lair, path):
    """As where fs.protected_hardlinks is off."""
    os.link(precious(lair), path)


def plant_moved(lair, path):
    """A file of root's that was in the attacker's folder."""
    with open(path, "w") as f:
        f.write(SECRET)
    os.chmod(path, 0o600)


def plant_fifo(lair, path):
    as_nobody(os.mkfifo, path)


def plant_folder(lair, path):
    as_nobody(os.mkdir, path)


PLANTS = [plant_link, plant_hard_link, plant_moved, plant_fifo, plant_folder]


def give_way(path):
    """The attacker moves away what is there."""
    if os.path.lexists(path):
        as_nobody(os.rename, path, path + ".old")


# --- rights ---

@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_workers_have_no_capability_and_the_arbiter_few(server, commons, preload):
    nobody()
    running = server(HELLO, "-u", "nobody", "-w", "2", *preload, directory=commons, config=IMPORTS)
    for pid in running.wait_workers(2):
        found = capabilities(pid)
        assert (found["Prm"], found["Eff"], found["Inh"], found["Amb"]) == (0, 0, 0, 0)
    before, now = capabilities(os.getpid())["Prm"], capabilities(running.pid)["Prm"]
    for needed in (CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, NET_BIND):
        assert now >> needed & 1 == before >> needed & 1
    assert not now >> SYS_ADMIN & 1 and not now >> SYS_PTRACE & 1
    # It can still do its work: other workers, a reload, a new address.
    running.signal(SIGTTIN)
    running.wait_workers(3)
    running.signal(SIGHUP)
    running.wait_log("Reload complete")
    assert running.get("/").text == "served" and running.stop() == 0


def test_a_server_without_a_user_keeps_what_it_has(server):
    running = server(HELLO)
    mine = capabilities(os.getpid())["Prm"]
    assert capabilities(running.pid)["Prm"] == mine
    assert capabilities(running.wait_workers(1)[0])["Prm"] == mine


def test_programs_of_hooks_are_roots(server, commons):
    """Only the arbiter itself is limited: a hook may run what only root can."""
    nobody()
    config = IMPORTS + ("import subprocess\n"
                        "def when_ready(server):\n"
                        "    out = subprocess.check_output(['grep', 'CapEff', '/proc/self/status'])\n"
                        "    open('hook', 'wb').write(out)\n")
    running = server(HELLO, "-u", "nobody", directory=commons, config=config)
    wait_until(lambda: running.read("hook"))
    assert int(running.read("hook").split()[1], 16) == capabilities(os.getpid())["Eff"]


def descriptors(pid):
    """{number: (what it is, flags)} of a process."""
    found = {}
    for name in os.listdir("/proc/%d/fd" % pid):
        with open("/proc/%d/fdinfo/%s" % (pid, name)) as f:
            flags = int(re.search(r"^flags:\s*(\d+)", f.read(), re.M).group(1), 8)
        found[int(name)] = os.readlink("/proc/%d/fd/%s" % (pid, name)), flags
    return found


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_what_a_worker_has_of_the_arbiters_descriptors(server, commons, preload):
    """The list of SECURITY.md, by counting; nothing of operators, of other workers' molds or of the pid file."""
    nobody()
    running = server(HELLO, "-u", "nobody", "-w", "2", "--pid", "server.pid", "--control-socket", os.path.join(commons, "c.sock"),
                     "--access-logfile", "access.log", "--error-logfile", "error.log", *preload, directory=commons, config=IMPORTS)
    for pid in running.wait_workers(2):
        ours, theirs = descriptors(running.pid), descriptors(pid)
        sockets = {what for what, _ in ours.values() if what.startswith("socket:")}
        # The listener, both ends of the mailbox, and where a worker says why it could not load the application.
        assert len({what for what, _ in theirs.values()} & sockets) == 4 < len(sockets)
        pipes = {what for what, flags in ours.values() if what.startswith("pipe:") and flags & os.O_ACCMODE == os.O_WRONLY}
        lifelines = [flags for number, (what, flags) in theirs.items() if what in pipes and number > 2 and flags & os.O_CLOEXEC]
        assert lifelines and all(flags & os.O_ACCMODE == os.O_RDONLY for flags in lifelines)
        assert not any("server.pid" in what for what, _ in theirs.values())
        # Programs that the application executes get none of them.
        assert all(flags & os.O_CLOEXEC for number, (_, flags) in theirs.items() if number > 2)


def test_what_the_user_runs_cannot_look_into_a_worker(server, commons):
    """Another process of the same user: the kernel lets it neither trace a worker nor read its memory."""
    nobody()
    running = server(HELLO, "-u", "nobody", directory=commons, config=IMPORTS)
    worker = running.wait_workers(1)[0]
    for name in ("mem", "maps", "environ"):
        def look():
            with open("/proc/%d/%s" % (worker, name), "rb") as f:
                f.read(1)
        with pytest.raises(PermissionError):
            as_nobody(look)
        if name != "mem":
            look()


# Runs a program with a terminal of its own, as from a shell.
AT_A_TERMINAL = """
import os, pty, sys
master, slave = pty.openpty()
os.set_inheritable(master, True)
os.close(os.open(os.ttyname(slave), os.O_RDWR))
os.dup2(slave, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
TYPIST = """
    import fcntl, os, termios

    def app(environ, start_response):
        done = []
        try:
            fcntl.ioctl(0, termios.TIOCSTI, b"x")
            done.append("typed")
        except OSError:
            pass
        try:
            os.close(os.open("/dev/tty", os.O_RDWR))
            done.append("has a terminal")
        except OSError:
            pass
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [", ".join(done).encode()]
"""


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_an_application_cannot_type_at_roots_terminal(server, commons, preload):
    """ioctl(TIOCSTI): what it puts into the terminal would be a command of the shell that has started the server."""
    nobody()
    imports = IMPORTS + "import fcntl, termios\n"
    running = server(TYPIST, "-u", "nobody", *preload, directory=commons, config=imports,
                     prefix=[sys.executable, "-c", AT_A_TERMINAL])
    assert running.get("/").text == ""
    assert running.stop(SIGINT) == 0


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_where_no_new_privileges_are_to_be_had(server, commons):
    """As under a service manager with NoNewPrivileges=yes: what executes sudo gains nothing, and the server needs nothing."""
    nobody()
    running = server(HELLO, "-u", "nobody", directory=commons, config=IMPORTS, prefix=["setpriv", "--no-new-privs"])
    worker = running.wait_workers(1)[0]
    assert harness.status_field(worker, "NoNewPrivs") == 1
    running.signal(SIGHUP)
    running.wait_log("Reload complete")
    assert running.get("/").text == "served" and running.stop() == 0


# --- logs ---

@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_error_log_keeps_it_from_starting(server, commons, lair, plant):
    path = os.path.join(lair, "error.log")
    plant(lair, path)
    running = server(HELLO, "-u", "nobody", "--error-logfile", path, directory=commons, config=IMPORTS, wait=False)
    assert running.wait_exit() == 1
    assert "rgunicorn: " in harness.read_text(running.stderr_path)
    assert "error-logfile" in harness.read_text(running.stderr_path)
    assert_untouched(lair)


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
def test_a_planted_access_log_keeps_it_from_starting(server, commons, lair, plant, preload):
    path = os.path.join(lair, "access.log")
    plant(lair, path)
    running = server(HELLO, "-u", "nobody", "--access-logfile", path, *preload, directory=commons, config=IMPORTS,
                     wait=False)
    running.expect_errors()
    assert running.wait_exit() in (1, 3)
    assert "access-logfile" in running.log()
    assert_untouched(lair)


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("number", [SIGUSR1, SIGHUP], ids=["USR1", "HUP"])
def test_logs_that_are_replaced_while_it_runs(server, commons, lair, plant, number):
    logs = [os.path.join(lair, name) for name in ("access.log", "error.log")]
    running = server(HELLO, "-u", "nobody", "--access-logfile", logs[0], "--error-logfile", logs[1], directory=commons,
                     config=IMPORTS)
    running.expect_errors()
    assert running.get("/one").text == "served"
    wait_until(lambda: "/one" in harness.read_text(logs[0]))
    assert [os.stat(path).st_uid for path in logs] == [nobody().pw_uid] * 2
    for path in logs:
        give_way(path)
        plant(lair, path)
    old = running.error_logfile = logs[1] + ".old"
    before = len(harness.read_text(old))
    running.signal(number)
    wait_until(lambda: re.search(r"Cannot reopen|cannot be written", harness.read_text(old)[before:]), 20,
               lambda: harness.read_text(old))
    # It was not kept waiting, and goes on in the logs that it has.
    running.signal(SIGTTIN)
    wait_until(lambda: "Handling signal: ttin" in harness.read_text(old), 20, lambda: harness.read_text(old))
    assert running.get("/two").text == "served"
    wait_until(lambda: "/two" in harness.read_text(logs[0] + ".old"))
    assert_untouched(lair)
    for path in logs:
        if plant is plant_moved:
            assert os.stat(path).st_uid == 0 and harness.read_text(path) == SECRET


def test_a_folder_that_becomes_a_link(server, commons, lair):
    """The attacker owns the folder above the log's, and leads it to one of root's."""
    inner, theirs = os.path.join(lair, "logs"), os.path.join(commons, "roots")
    as_nobody(os.mkdir, inner)
    os.mkdir(theirs)
    path = os.path.join(inner, "access.log")
    running = server(HELLO, "-u", "nobody", "--access-logfile", path, directory=commons, config=IMPORTS)
    running.expect_errors()
    assert running.get("/").text == "served"
    as_nobody(os.rename, inner, inner + ".old")
    as_nobody(os.symlink, theirs, inner)
    running.signal(SIGUSR1)
    running.wait_log("Cannot reopen the access log")
    assert os.listdir(theirs) == []


def test_logs_in_the_users_own_folder_are_rotated(server, commons, lair):
    logs = [os.path.join(lair, name) for name in ("access.log", "error.log")]
    running = server(HELLO, "-u", "nobody", "--access-logfile", logs[0], "--error-logfile", logs[1], directory=commons,
                     config=IMPORTS)
    running.get("/one")
    for path in logs:
        give_way(path)
    running.signal(SIGUSR1)
    wait_until(lambda: all(os.path.exists(path) for path in logs))
    assert [os.stat(path).st_uid for path in logs] == [nobody().pw_uid] * 2

    def moved():
        running.get("/two")
        return "/two" in harness.read_text(logs[0])
    wait_until(moved)


def test_a_link_that_root_made_is_followed(server, commons, lair):
    """As in images that lead a log to /dev/stdout."""
    target, path = os.path.join(commons, "target"), os.path.join(commons, "access.log")
    os.symlink(target, path)
    running = server(HELLO, "-u", "nobody", "--access-logfile", path, directory=commons, config=IMPORTS)
    running.get("/one")
    wait_until(lambda: "/one" in harness.read_text(target))


def test_standard_output_by_its_name(server, commons):
    nobody()
    running = server(HELLO, "-u", "nobody", "--access-logfile", "/dev/stdout", directory=commons, config=IMPORTS)
    running.get("/one")
    wait_until(lambda: "/one" in running.stdout())


@pytest.mark.parametrize("plant", [plant_link, plant_hard_link, plant_fifo])
def test_a_server_of_roots_own_is_not_led_astray_either(server, commons, lair, plant):
    path = os.path.join(lair, "access.log")
    plant(lair, path)
    running = server(HELLO, "--access-logfile", path, directory=commons, wait=False)
    running.expect_errors()
    assert running.wait_exit() == 3
    assert_untouched(lair)


# --- socket and pid file ---

@pytest.mark.parametrize("plant", PLANTS)
def test_a_socket_is_not_made_through_what_is_there(server, commons, lair, plant):
    path = os.path.join(lair, "app.sock")
    plant(lair, path)
    running = server(HELLO, "-u", "nobody", "-b", "unix:" + path, directory=commons, config=IMPORTS, wait=False)
    assert running.wait_exit() == 1
    assert "is not a socket" in running.log()
    assert os.path.lexists(path)
    assert_untouched(lair)


def test_what_has_taken_the_place_of_the_socket_is_not_removed(server, commons, lair):
    path = os.path.join(lair, "app.sock")
    running = server(HELLO, "-u", "nobody", "-b", "unix:" + path, directory=commons, config=IMPORTS)
    assert os.stat(path).st_uid == nobody().pw_uid
    give_way(path)
    plant_link(lair, path)
    assert running.stop() == 0
    assert os.path.islink(path)
    assert_untouched(lair)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_pid_file_is_not_written_through_what_is_there(server, commons, lair, plant):
    path = os.path.join(lair, "server.pid")
    plant(lair, path)
    running = server(HELLO, "-u", "nobody", "--pid", path, directory=commons, config=IMPORTS, wait=plant is not plant_folder)
    if plant is plant_folder:
        assert running.wait_exit() == 1 and "--pid" in running.log()
    else:
        assert harness.read_text(path) == "%d\n" % running.pid and not os.path.islink(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
        assert running.stop() == 0
    assert_untouched(lair)


def test_in_a_folder_for_everybody_a_strangers_pid_file_blocks_nobody(server, commons):
    """The stranger locks it and names a process that lives, as a server of ours does."""
    os.chmod(commons, 0o1777)
    path = os.path.join(commons, "server.pid")

    def plant():
        with open(path, "w") as f:
            f.write("1\n")
    as_nobody(plant)
    import fcntl
    with open(path) as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        running = server(HELLO, "--pid", path, directory=commons)
    assert harness.read_text(path) == "%d\n" % running.pid
    assert running.stop() == 0


# --- an application that turns on the server ---

HOSTILE = """
    import fcntl, os, select, time

    def app(environ, start_response):
        spoil()
        start_response("200 OK", [("Content-Length", "6")])
        return [b"served"]

    def spoil():
        for name in os.listdir("/proc/self/fd"):
            try:
                link = os.readlink("/proc/self/fd/" + name)
            except OSError:
                continue
            if link == "anon_inode:[eventfd]":
                # The flags belong to all who have it: whoever reads it when it is empty, or fills it, now waits.
                fcntl.fcntl(int(name), fcntl.F_SETFL, 0)
                os.set_blocking(int(name), True)
"""


def test_an_application_that_changes_what_it_shares_does_not_stop_supervision(server):
    running = server(HOSTILE, "-w", "1")
    assert running.get("/").text == "served"
    running.signal(SIGTTIN)
    running.wait_workers(2)
    running.signal(SIGHUP)
    running.wait_log("Reload complete")
    assert running.stop() == 0


SCRIBBLER = """
    import ctypes, os, re

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/scribble":
            scribble()
            os._exit(9)
        start_response("200 OK", [("Content-Length", "6")])
        return [b"served"]

    def scribble():
        words = b"\\n[2026-01-01 00:00:00 +0000] [1] [CRITICAL] forged\\n"
        with open("/proc/self/maps") as f:
            shared = [line.split() for line in f if " rw-s " in line and "/dev/zero" in line]
        assert shared
        for line in shared:
            start, end = (int(number, 16) for number in line[0].split("-"))
            size = end - start
            pattern = (words * (size // len(words) + 1))[:size] if int(environ_pattern()) else b"\\xff" * size
            ctypes.memmove(start, pattern, size)

    def environ_pattern():
        return open("pattern").read()
"""


@pytest.mark.parametrize("pattern", ["0", "1"], ids=["ones", "text"])
def test_an_application_that_scribbles_over_the_shared_memory(server, tmp_path, pattern):
    """Its own server may suffer from it; the arbiter goes on, signals nobody else and writes no line of the application's."""
    victim = harness.subprocess.Popen(["sleep", "600"])
    try:
        (tmp_path / "pattern").write_text(pattern)
        running = server(SCRIBBLER, "-w", "2", directory=tmp_path)
        running.expect_errors()
        running.wait_workers(2)
        with running.connect() as connection:
            connection.send_request("GET", "/scribble")
            connection.expect_closed()
        wait_until(lambda: re.search(r"exited with code 9|code 9", running.log()), 20, running.log)

        def served():
            try:
                return running.get("/", timeout=5).text == "served"
            except (OSError, harness.wire.ProtocolError):
                time.sleep(0.05)
        wait_until(served, 60, running.log)
        assert running.running() and victim.poll() is None
        assert not re.search(r"^\[2026-01-01 00:00:00", running.log(), re.M)
        running.stop()
    finally:
        victim.kill()
        victim.wait()
