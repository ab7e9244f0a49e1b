"""Starts a real HAProxy or Apache in front of a server, for tests that send bytes through it."""
import glob
import os
import shutil
import subprocess
from signal import SIGKILL, SIGTERM

import pytest

from harness import read_text, wait_until
from nginx import free_port

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"

HAPROXY = """
global
    maxconn 512
defaults
    mode http
    retries 0
    timeout connect 20s
    timeout client 20s
    timeout http-request 20s
    timeout server 60s
frontend front
    bind unix@%(directory)s/socket
    default_backend back
backend back
    server app %(upstream)s
"""

APACHE = """
ServerName test
ServerRoot %(directory)s
PidFile pid
Listen 127.0.0.1:%(port)d
%(user)s
%(modules)s
ErrorLog error.log
Timeout 20
KeepAlive On
KeepAliveTimeout 20
MaxKeepAliveRequests 0
HttpProtocolOptions Strict
AllowEncodedSlashes NoDecode
ProxyPreserveHost On
ProxyPass / http://%(upstream)s/ nocanon
"""
APACHE_MODULES = ["mpm_event", "authz_core", "unixd", "proxy", "proxy_http"]


def require(program):
    """Where it is; skips where it cannot be had. The project's own machines must have it."""
    found = shutil.which(program, path=PATH)
    if not found:
        message = "%s is not installed" % program
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


class Front:
    """A proxy that was started; `address` is where it listens: a path, or a host and a port."""

    def __init__(self, command, directory, address):
        self.directory, self.address = directory, address
        with open(os.path.join(directory, "output"), "wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)

    def words(self):
        return read_text(os.path.join(self.directory, "output")) + read_text(os.path.join(self.directory, "error.log"))

    def finish(self):
        self.process.send_signal(SIGTERM)
        try:
            self.process.wait(20)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, SIGKILL)


def haproxy(directory, upstream):
    """`upstream` is a host and a port, as Apache reaches no socket in a folder of root's."""
    command = require("haproxy")
    config, address = os.path.join(directory, "haproxy.cfg"), os.path.join(directory, "socket")
    with open(config, "w") as f:
        f.write(HAPROXY % {"directory": directory, "upstream": upstream})
    front = Front([command, "-db", "-f", config], directory, address)
    wait_until(lambda: os.path.exists(address) or front.process.poll() is not None, 20, front.words)
    assert front.process.poll() is None, front.words()
    return front


def apache(directory, upstream):
    command = require("apache2")
    folders = glob.glob("/usr/lib/apache2/modules") + glob.glob("/usr/lib64/httpd/modules")
    # Some are built in.
    files = [(name, "%s/mod_%s.so" % (folder, name)) for folder in folders for name in APACHE_MODULES]
    modules = ["LoadModule %s_module %s" % (name, file) for name, file in files if os.path.exists(file)]
    for _ in range(10):
        port, config = free_port(), os.path.join(directory, "apache.conf")
        user = "User nobody\nGroup #65534" if os.getuid() == 0 else ""
        with open(config, "w") as f:
            f.write(APACHE % {"directory": directory, "upstream": upstream, "port": port, "modules": "\n".join(modules), "user": user})
        front = Front([command, "-f", config, "-D", "FOREGROUND"], directory, ("127.0.0.1", port))
        # It writes the file when it has bound the port.
        wait_until(lambda: os.path.exists(os.path.join(directory, "pid")) or front.process.poll() is not None, 20, front.words)
        if front.process.poll() is None:
            return front
        assert "Address already in use" in front.words(), front.words()
    raise AssertionError("no free port")


FRONTS = {"haproxy": haproxy, "apache2": apache}
