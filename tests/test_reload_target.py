"""`rgunicorn reload PIDFILE`, as root runs it for a file that others may have written: nobody is signalled but the server that has
locked the file. Whoever else is named goes on, and the command says why in one sentence.
"""
import fcntl
import os
import pwd
import subprocess
import sys
from signal import SIGKILL, SIGTERM

import pytest

import harness
from harness import wait_until
from users import IMPORTS, commons  # noqa: F401

HELLO = """
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"hello"]
"""
# Writes a line to standard output for each HUP, and locks the file that it is told to.
VICTIM = """
import fcntl, signal, sys, time
signal.signal(signal.SIGHUP, lambda *_: print("HUP", flush=True))
file = open(sys.argv[1], "a") if sys.argv[1:] else None
if file:
    fcntl.flock(file, fcntl.LOCK_EX)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


class Victim:
    """A process that is no server."""

    def __init__(self, *arguments, **settings):
        self.process = subprocess.Popen([sys.executable, "-c", VICTIM, *map(str, arguments)], stdout=subprocess.PIPE, **settings)
        self.pid = self.process.pid
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(SIGTERM)
        self.said = self.process.stdout.read()
        self.process.stdout.close()
        self.process.wait()
        assert self.said == b"", "it was signalled"


def refused(path, words, *options):
    done = harness.run("reload", *options, path)
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("options", [(), ("--wait",)])
def test_a_process_that_somebody_has_written_into_the_file(tmp_path, options):
    path = tmp_path / "pid"
    with Victim() as victim:
        path.write_text("%d\n" % victim.pid)
        refused(path, "process %d has not locked it" % victim.pid, *options)
        # Somebody holds the lock, as a hostile owner of the file would.
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            refused(path, "process %d has not locked it" % victim.pid, *options)
    path.write_text("1\n")
    refused(path, "process 1", *options)


def test_a_process_that_has_locked_a_file_of_somebody_else(tmp_path):
    """Root's process: the file's owner cannot have it signalled by root."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "pid"
    path.touch()
    with Victim(path) as victim:
        path.write_text("%d\n" % victim.pid)
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        refused(path, "acts as another one")


def test_a_process_that_is_younger_than_the_file(tmp_path):
    """It has the number of a server that is gone."""
    path = tmp_path / "pid"
    path.touch()
    with Victim(path) as victim:
        path.write_text("%d\n" % victim.pid)
        os.utime(path, (1, 1))
        refused(path, "is not a server that has written it")


def test_a_program_that_is_no_python(tmp_path):
    path = tmp_path / "pid"
    program = ["flock", "--no-fork", str(path), "sleep", "600"]
    victim = subprocess.Popen(program)
    try:
        wait_until(lambda: b"sleep" in open("/proc/%d/cmdline" % victim.pid, "rb").read().split(b"\0")[0])
        path.write_text("%d\n" % victim.pid)
        refused(path, "is not a server that has written it")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.parametrize("text", ["", "\n", "x\n", "-1\n", "0\n", "1 2\n", "9" * 12, "9" * 4000, " " * 40 + "%d", "1\0"])
def test_a_file_without_a_number(server, tmp_path, text):
    path = tmp_path / "pid"
    path.write_text(text % os.getpid() if "%" in text else text)
    refused(path, "there is no process number in it")


def test_what_is_no_file(server, tmp_path):
    running = server(HELLO, "--pid", "server.pid")
    running.wait_log("Worker ready")
    link, fifo, folder = tmp_path / "link", tmp_path / "fifo", tmp_path / "folder"
    link.symlink_to(running.path("server.pid"))
    os.mkfifo(fifo)
    folder.mkdir()
    refused(link, "it is a link, which is not followed")
    refused(fifo, "it is not a regular file")
    refused(folder, "it is not a regular file")
    refused("/dev/zero", "it is not a regular file")
    refused(tmp_path / "nothing", "No such file")
    assert "Handling signal: hup" not in running.log()


def test_a_file_of_a_server_that_is_gone(server):
    running = server(HELLO, "--pid", "server.pid")
    running.wait_log("Worker ready")
    running.killed = True
    os.kill(running.pid, SIGKILL)
    running.process.wait(10)
    refused(running.path("server.pid"), "there is no process %d" % running.pid)
    wait_until(lambda: not running.processes(), 30)


@pytest.mark.parametrize("options", [(), ("-u", "nobody"), ("--preload",)])
def test_the_server_itself_is_signalled(server, commons, options):
    running = server(HELLO, "--pid", "server.pid", *options, directory=commons, config=IMPORTS)
    running.wait_log("Worker ready")
    done = harness.run("reload", running.path("server.pid"))
    assert (done.returncode, done.stdout) == (0, "Reload requested (pid: %d)\n" % running.pid), done.stderr
    running.wait_log("Reload complete")
