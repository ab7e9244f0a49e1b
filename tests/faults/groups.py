"""Control groups of the tests' own, in either version of cgroups: with little memory, with few processes."""
import os
import uuid
from contextlib import contextmanager, suppress
from signal import SIGKILL

import pytest

import harness
from harness import wait_until

ROOT = "/sys/fs/cgroup"


def place(controller):
    """(folder, version) of the hierarchy that has the controller; nothing where there is none."""
    if os.path.isdir(os.path.join(ROOT, controller)):
        return os.path.join(ROOT, controller), 1
    if controller in harness.read_text(os.path.join(ROOT, "cgroup.subtree_control")).split():
        return ROOT, 2
    return None, None


class Group:
    def __init__(self, path, version):
        self.path, self.version = path, version

    def set(self, name, value):
        with open(os.path.join(self.path, name), "w") as limit:
            limit.write(str(value))

    def count(self, name, field):
        """A number of a file that has one in each line."""
        lines = (line.split() for line in harness.read_text(os.path.join(self.path, name)).splitlines())
        return next((int(number) for key, number in lines if key == field), 0)

    def limit_memory(self, octets):
        """Of the server; AddressSanitizer wants its own on top."""
        octets += (1 << 30) * harness.SANITIZED
        self.set("memory.limit_in_bytes" if self.version == 1 else "memory.max", octets)
        if self.version == 2:
            self.set("memory.swap.max", 0)

    def limit_processes(self, count):
        self.set("pids.max", count)

    def pids(self):
        return [int(pid) for pid in harness.read_text(os.path.join(self.path, "cgroup.procs")).split()]

    def enter(self):
        """What stands in front of a command that is to be in it."""
        return ["sh", "-c", 'echo $$ > %s/cgroup.procs && exec "$@"' % self.path, "sh"]

    def memory_kills(self):
        """How many processes the kernel has killed for want of memory."""
        return self.count("memory.oom_control" if self.version == 1 else "memory.events", "oom_kill")


class Container(Group):
    """A control group that ends as a whole when its memory does. Version 1 has no memory.oom.group, but leaves it to others
    what is to be done: here, what the kernel does in version 2. The biggest process is killed first, then the others."""

    def end_with_memory(self):
        if self.version == 1:
            self.set("memory.oom_control", 1)
        else:
            self.set("memory.oom.group", 1)

    def wait_end(self):
        """The processes that it had."""
        if self.version == 2:
            before = self.pids()
            wait_until(lambda: self.count("memory.events", "oom_group_kill"), 60)
        else:
            wait_until(lambda: self.count("memory.oom_control", "under_oom"), 60)
            before = self.pids()
            self.kill_all(sorted(before, key=lambda pid: -harness.status_field(pid, "VmRSS")))
        wait_until(lambda: not self.pids(), 20)
        return before

    def kill_all(self, pids):
        while pids:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)
            pids = [pid for pid in self.pids() if pid not in pids and harness.alive(pid)]


@contextmanager
def control_group(controller, kind=Group):
    """One of this test's; its processes have left it in the end."""
    folder, version = place(controller)
    if not folder:
        pytest.skip("there are no control groups for %s here" % controller)
    path = os.path.join(folder, "rgunicorn-test-" + uuid.uuid4().hex)
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip("no control group for %s can be made here: %s" % (controller, error))
    group = kind(path, version)
    yield group
    wait_until(lambda: not group.pids(), 20)
    os.rmdir(path)
