"""A worker that does nothing but wake the arbiter: the arbiter names it, and has time for everything else."""
import os
import time
from signal import SIGHUP, SIGKILL

import pytest

import harness
from harness import wait_until

APP = """
    import os, struct, threading

    def flood():
        names = ["/proc/self/fd/" + name for name in os.listdir("/proc/self/fd")]
        wakers = [int(os.path.basename(name)) for name in names if os.path.islink(name) and os.readlink(name) == "anon_inode:[eventfd]"]
        while True:
            for waker in wakers:
                try:
                    os.write(waker, struct.pack("=Q", 1))
                except BlockingIOError:
                    pass

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/flood":
            threading.Thread(target=flood, daemon=True).start()
        start_response("200 OK", [("X-Pid", str(os.getpid()))])
        return [b"served"]
"""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_a_worker_that_wakes_the_arbiter_without_an_end(server, options):
    running = server(APP, "-w", "2", *options)
    running.expect_errors(r"was sent SIGKILL|was killed by SIGKILL", r"wakes the arbiter without an end")
    running.wait_log("Worker ready", count=2)
    workers = running.wait_workers(2)
    restless = int(running.get("/flood").header("X-Pid"))
    running.wait_log(r"Worker \(pid:%d\) wakes the arbiter without an end" % restless)
    # It would burn a processor.
    ticks, since = harness.cpu_ticks(running.pid), time.monotonic()
    wait_until(lambda: time.monotonic() > since + 3)
    share = (harness.cpu_ticks(running.pid) - ticks) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - since)
    assert share < 0.5
    [other] = [pid for pid in workers if pid != restless]
    os.kill(other, SIGKILL)
    running.wait_log("Worker ready", count=3)
    assert len([line for line in running.lines("WARNING") if "without an end" in line[2]]) == 1
    os.kill(running.pid, SIGHUP)
    running.wait_log("Reload complete")
    assert running.stop() == 0


def test_each_worker_has_one_eventfd_of_the_arbiters(server):
    """None of those of its siblings: what wakes by them would be said to be another one."""
    running = server(APP, "-w", "3")
    running.wait_log("Worker ready", count=3)
    counts = {harness.descriptors(pid).count("anon_inode:[eventfd]") for pid in running.wait_workers(3)}
    assert len(counts) == 1
    assert not any("pidfd" in name for pid in running.workers() for name in harness.descriptors(pid))
