"""Faults of want: no descriptors are left, in every worker or in one of them. Under traffic, with a ledger.

The number is the row of docs/faults.md.
"""
import glob
import itertools
import os
import time
from collections import Counter

import pytest

import harness
import wire
from faulty import ANSWERED, FAULTY, compare, compare_all, start, traffic, wait_until, worker_of

# Takes every descriptor that the process may have: in a request, or beside them when it is told to.
HOARDING = FAULTY.replace("def app(", "def faulty(") + """
    import resource

    HOARD = []

    def hoard():
        most = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            while True:
                HOARD.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass

    def hoard_when_told():
        while not os.path.exists("now"):
            time.sleep(0.005)
        hoard()
        # What takes no descriptor.
        os.mkdir("hoarded")

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path not in ("/hoard", "/hoard-late", "/release"):
            return faulty(environ, start_response)
        if path == "/release":
            while HOARD:
                os.close(HOARD.pop())
        else:
            inside(environ)
            if path == "/hoard":
                threading.Thread(target=hoard_when_told, daemon=True).start()
            else:
                leave(environ)
                hoard()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]
"""


SERIALS = itertools.count()


def asked(connection):
    """By whom it is served."""
    response = connection.exchange("GET", "/?asked-%d" % next(SERIALS))
    assert response.status == 200 and not response.closing, response
    return int(response.header("x-pid"))


def tell(connection, path):
    assert connection.exchange("GET", path).body == b"done"


class Starved:
    """A server of which one worker has no descriptor left and does not know it, another is busy, and many connections are
    spread over them."""

    def __init__(self, server, workers, path):
        self.running = running = start(server, "-w", str(workers), app=HOARDING)
        running.expect_errors(r"(?i)too many open files")
        self.connections = [wire.Connection(running.address) for _ in range(12 * workers)]
        # An uneven spread is made even.
        wait_until(lambda: sum(count >= 6 for count in Counter(map(asked, self.connections)).values()) == workers)
        tell(self.connections[0], "/hoard?full")
        self.full = worker_of(running, "full")
        owners = [(connection, asked(connection)) for connection in self.connections]
        elsewhere = [connection for connection, pid in owners if pid != self.full]
        running.touch("now")
        wait_until(lambda: running.exists("hoarded"))
        # From now on it can take none; some may have come to it until then.
        self.held, *self.others = [connection for connection in elsewhere if asked(connection) != self.full]
        self.held.send_request("GET", path + "?held")
        self.busy = worker_of(running, "held")
        assert self.busy != self.full

    def ask_others(self):
        for connection in self.others:
            connection.send_request("GET", "/?asked-%d" % next(SERIALS))

    def wait_cannot(self):
        """The one has been given a connection of the other."""
        self.running.wait_log(r"\[%d\] \[ERROR\] Cannot accept on the mailbox: Too many open files" % self.full)

    def let_go(self):
        self.running.touch("go")
        assert self.held.read_response().status == 200

    def close(self):
        for connection in self.connections:
            connection.close()


def test_row_9_no_descriptors_left(server):
    """Those beyond the limit are told so or wait; the others are served."""
    running = start(server, "-w", "2", prefix=["prlimit", "--nofile=48:48"])
    running.expect_errors(r"(?i)too many open files|descriptor|on the mailbox")
    idle = []
    with traffic(running, 4, refusals=(503,)) as clients:
        # Each worker has its ledger open.
        wait_until(lambda: len(glob.glob(running.path("ledger-*"))) == 2)
        for _ in range(150):
            connection = wire.Connection(running.address)
            idle.append(connection)
        clients.wait_answers(40)
        # The kernel queues what nobody has looked at yet.
        turned_away = wait_until(lambda: sum(is_refused(connection) for connection in idle))
        for connection in idle:
            connection.close()
        clients.wait_answers(40)
    assert 0 < turned_away < 150
    told = compare(running, clients, set())
    assert ANSWERED in told.values()
    # And with room again everybody is served.
    assert running.get("/?after").status == 200


def is_refused(connection):
    """Answered 503 before it asked, or closed."""
    if not connection.readable(0):
        return False
    try:
        data = connection.sock.recv(4096)
    except ConnectionResetError:
        return True
    assert not data or data.startswith(b"HTTP/1.1 503 "), data
    return True


def by(answers):
    """By whom they were answered, all of them 200."""
    assert {answer.status for answer in answers} <= {200}
    return {int(answer.header("x-pid")) for answer in answers}


def test_row_9_one_worker_without_descriptors_leaves_connections_to_others(server):
    """New ones, and those that a busy worker gives up: as long as another one has room nobody is refused."""
    starved = Starved(server, 3, "/wait")
    running = starved.running
    with traffic(running, 4) as clients:
        clients.wait_answers(40)
        for _ in range(3):
            starved.ask_others()
            assert starved.busy not in by([connection.read_response() for connection in starved.others])
        answers = [running.get("/?new-%d" % next(SERIALS)) for _ in range(60)]
        assert starved.busy not in by(answers)
        starved.let_go()
        # What it has it serves, and with room again it is one of them.
        tell(next(connection for connection in starved.connections if asked(connection) == starved.full), "/release")
        wait_until(lambda: by([running.get("/?again-%d" % next(SERIALS))]) == {starved.full})
        clients.wait_answers(40)
    compare_all(running, clients)
    starved.close()


def test_row_9_a_connection_that_nobody_has_room_for_now_waits(server):
    starved = Starved(server, 2, "/wait")
    starved.ask_others()
    starved.wait_cannot()
    starved.let_go()
    assert by([connection.read_response() for connection in starved.others]) == {starved.busy}
    starved.close()


def test_row_9_a_connection_that_nobody_has_room_for_any_more_is_told(server):
    """It was the busy one's, which meanwhile has no descriptor left either."""
    starved = Starved(server, 2, "/hoard-late")
    starved.ask_others()
    starved.wait_cannot()
    starved.let_go()
    answers = [connection.read_response() for connection in starved.others]
    told = [answer for answer in answers if answer.status == 503]
    assert told and all(answer.closing for answer in told)
    assert by([answer for answer in answers if answer.status != 503]) <= {starved.busy}
    starved.close()


def test_row_9_no_processor_is_burnt_for_want_of_descriptors(server):
    """While a request waits in the mailbox for room."""
    starved = Starved(server, 2, "/wait")
    starved.ask_others()
    starved.wait_cannot()
    before = harness.cpu_ticks(starved.full)
    until = time.monotonic() + 2
    wait_until(lambda: time.monotonic() > until)
    # Of two hundred; a look takes less than one.
    assert harness.cpu_ticks(starved.full) - before <= 10
    starved.let_go()
    starved.close()


# The kernel has no room for watching one more of such.
REFUSED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int is(int fd, int option, int value) {
    int found = -1;
    socklen_t length = sizeof found;
    return !getsockopt(fd, SOL_SOCKET, option, &found, &length) && found == value;
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) {
    const char *told = is(fd, SO_ACCEPTCONN, 1) ? "no-listener" : is(fd, SO_TYPE, SOCK_SEQPACKET) ? "no-mailbox" : "nothing";
    if (operation == EPOLL_CTL_ADD && !access(told, F_OK)) {
        errno = ENOMEM;
        return -1;
    }
    return ((int (*)(int, int, int, struct epoll_event *))dlsym(RTLD_NEXT, "epoll_ctl"))(epoll, operation, fd, event);
}
"""


def watched(pid):
    """How much it has in its pollers."""
    return sum(harness.read_text(path).count("tfd:") for path in glob.glob("/proc/%d/fdinfo/*" % pid))


@pytest.mark.parametrize("refused", ["no-listener", "no-mailbox"])
def test_row_9_what_cannot_be_watched_now_is_watched_later(server, tmp_path, refused):
    """When the worker has taken a connection, and when it is back from a long request: meanwhile others take them."""
    library = harness.compile_library(tmp_path / "refused.so", REFUSED)
    running = start(server, "-w", "2", env={"LD_PRELOAD": harness.preload(library)})
    running.expect_errors(r"Cannot watch the listeners: Cannot allocate memory")
    before = {pid: watched(pid) for pid in running.workers()}
    with running.connect() as first:
        first.send_request("GET", "/wait?first")
        worker = worker_of(running, "first")
        # It stops listening with the next one that comes, which it cannot serve.
        wait_until(lambda: running.get("/?next").status == 200 and watched(worker) < before[worker])
        running.touch(refused)
        running.touch("go")
        assert first.read_response().status == 200
        if refused == "no-listener":
            assert running.get("/?again").status == 200
    running.wait_log(r"Cannot watch the listeners")
    os.remove(running.path("go"))
    os.remove(running.path(refused))
    # Each of the two is there for one.
    with running.connect() as one, running.connect() as other:
        for connection, name in ((one, "one"), (other, "other")):
            connection.send_request("GET", "/wait?" + name)
        assert {worker_of(running, name) for name in ("one", "other")} == set(running.workers())
        running.touch("go")
        assert one.read_response().status == other.read_response().status == 200
