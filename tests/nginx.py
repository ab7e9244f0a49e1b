"""Starts a real Nginx in front of a server, with one of the example's configurations or with a test's own."""
import os
import re
import shutil
import socket
import subprocess
from signal import SIGKILL, SIGQUIT

import pytest

from harness import ROOT, read_text, session, wait_until

COMMAND = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
FOLDER = os.path.join(ROOT, "examples", "django", "nginx")
TROUBLE = re.compile(r"\[(error|crit|alert|emerg)\]|upstream prematurely closed")


def require():
    """Skips where Nginx cannot be had; the project's own machines must have it."""
    if not COMMAND:
        message = "nginx is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


class Nginx:
    """`config(port)` gives the text of nginx.conf; paths in it are relative to `directory`."""

    def __init__(self, directory, config):
        self.directory = str(directory)
        self.allowed = []
        self.process = None
        for _ in range(10):
            self.port = free_port()
            with open(os.path.join(self.directory, "nginx.conf"), "w") as f:
                f.write(config(self.port))
            with open(os.path.join(self.directory, "stderr"), "wb") as err:
                self.process = subprocess.Popen([COMMAND, "-p", self.directory, "-c", "nginx.conf"], stdin=subprocess.DEVNULL,
                                                stdout=err, stderr=err, start_new_session=True)
            wait_until(lambda: self.process.poll() is not None or self.answers(), 20, self.words)
            if self.process.poll() is None:
                return
            assert "Address already in use" in self.words(), self.words()
        raise AssertionError("no free port")

    @property
    def address(self):
        return ("127.0.0.1", self.port)

    def answers(self):
        # Another process could listen there: it is ours only when the pid file, written after bind(2), is there.
        if not read_text(os.path.join(self.directory, "nginx.pid")).strip():
            return False
        try:
            with socket.create_connection(self.address, timeout=5):
                return True
        except OSError:
            return False

    def words(self):
        return read_text(os.path.join(self.directory, "stderr")) + read_text(os.path.join(self.directory, "error.log"))

    def finish(self):
        """Ends it, and fails when it had anything to complain about the server behind it."""
        self.process.send_signal(SIGQUIT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        for pid in session(self.process.pid):
            os.kill(pid, SIGKILL)
        self.process.wait()
        trouble = [line for line in self.words().splitlines()
                   if TROUBLE.search(line) and not any(re.search(p, line) for p in self.allowed)]
        assert not trouble, "\n".join(trouble)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def example(name, upstream, static):
    """The example's own template, filled in by the example's own script."""
    def config(port):
        arguments = [os.path.join(FOLDER, "render"), os.path.join(FOLDER, name), "127.0.0.1:%d" % port, upstream, str(static)]
        return subprocess.run(arguments, stdout=subprocess.PIPE, check=True, universal_newlines=True).stdout
    return config


def own(upstream, location, more=""):
    """A small configuration of a test's own."""
    def config(port):
        return """
            %s
            worker_processes 1;
            daemon off;
            pid nginx.pid;
            error_log error.log info;
            events { worker_connections 512; }
            http {
                access_log off;
                client_max_body_size 0;
                client_body_temp_path body;
                proxy_temp_path proxy;
                fastcgi_temp_path fastcgi;
                uwsgi_temp_path uwsgi;
                scgi_temp_path scgi;
                upstream app { server %s fail_timeout=0; %s }
                server { listen 127.0.0.1:%d; location / { proxy_pass http://app; %s } }
            }
        """ % ("user root;" if os.getuid() == 0 else "", upstream, more, port, location)
    return config
