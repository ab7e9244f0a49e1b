"""What is ready in a worker has its turn in the order in which it became ready, however many there are, and however much
one client asks for at once. Times only tell what is slow; what is compared is the order in which the application was called.
"""
import contextlib
import os
import resource
import threading
import time
from signal import SIGHUP

import pytest

import wire
from crowd import wait_ready
from harness import wait_until

APP = "apps.turns"
KEEP = ("--keep-alive", "60")
# Of a client that sends all of them before it reads one.
MANY = 2400
# Requests of one client that may come before another's that is ready: its share of a turn, twice.
SHARE = 20


def place(answer):
    assert answer.status == 200, answer
    return int(answer.header("x-place"))


def get(target):
    return wire.request_bytes("GET", target)


def hold(running, connection):
    """A request that keeps the thread until `go`."""
    connection.send(get("/hold"))
    wait_until(lambda: running.exists("held"), 20, running.log)


class Flood:
    """Sends requests in one piece; their answers are read beside the test."""

    def __init__(self, connection, targets):
        self.targets, self.answers = targets, []
        connection.send(b"".join(map(get, targets)))
        self.reader = threading.Thread(target=self.read, args=(connection,))
        self.reader.start()

    def read(self, connection):
        for _ in self.targets:
            self.answers.append(connection.read_response())

    def places(self):
        """All are answered, in their order, each once."""
        self.reader.join(60)
        assert [answer.text for answer in self.answers] == [target.partition("?")[2] for target in self.targets]
        places = [place(answer) for answer in self.answers]
        assert places == sorted(set(places))
        return places


def places_before(other, places):
    return sum(mine < other for mine in places)


def test_pipelined_requests_let_others_pass(server):
    running = server(APP, "-w", "1", *KEEP)
    with running.connect() as greedy, running.connect() as kept, running.connect() as held:
        kept.exchange("GET", "/")
        hold(running, held)
        flood = Flood(greedy, ["/?%d" % n for n in range(MANY)])
        kept.send(get("/?other"))
        with running.connect() as fresh:
            fresh.send(get("/?other"))
            running.touch("go")
            others = [place(connection.read_response()) for connection in (kept, fresh)]
        place(held.read_response())
        places = flood.places()
    assert all(places_before(other, places) <= SHARE for other in others), others


def test_pipelined_requests_let_others_pass_beside_a_thread_that_is_busy(server):
    running = server(APP, "-w", "1", "--threads", "2", *KEEP)
    with running.connect() as greedy, running.connect() as kept, running.connect() as held:
        hold(running, held)
        flood = Flood(greedy, ["/slow?0.01&%d" % n for n in range(100)])
        wait_until(lambda: flood.answers, 20, running.log)
        seen = place(flood.answers[-1])
        other = place(kept.exchange("GET", "/"))
        running.touch("go")
        place(held.read_response())
        assert places_before(other, flood.places()) < 100, seen


def test_slow_pipelined_requests_let_others_pass_after_each(server):
    running = server(APP, "-w", "1", *KEEP)
    with running.connect() as greedy, running.connect() as kept, running.connect() as held:
        kept.exchange("GET", "/")
        hold(running, held)
        flood = Flood(greedy, ["/slow?0.02"] * 20)
        kept.send(get("/?other"))
        running.touch("go")
        other = place(kept.read_response())
        place(held.read_response())
        assert places_before(other, flood.places()) <= 2


def test_two_floods_take_turns(server):
    running = server(APP, "-w", "1", *KEEP)
    with running.connect() as one, running.connect() as two, running.connect() as held:
        hold(running, held)
        floods = [Flood(connection, ["/?%d" % n for n in range(400)]) for connection in (one, two)]
        running.touch("go")
        places = [flood.places() for flood in floods]
        place(held.read_response())
    # The longest run of one while the other still had something.
    order = sorted((place, which) for which, each in enumerate(places) for place in each)
    end = min(each[-1] for each in places)
    longest = run = 0
    for (_, before), (at, which) in zip(order, order[1:]):
        run = run + 1 if which == before and at < end else 0
        longest = max(longest, run)
    assert longest <= 10 * SHARE


def test_a_reload_in_the_middle_of_a_flood_runs_each_once(server):
    running = server(APP, "-w", "2", *KEEP)
    wait_ready(running, 2)
    with running.connect() as greedy:
        targets = ["/slow?0.001"] * 300
        flood = Flood(greedy, targets)
        wait_until(lambda: flood.answers)
        running.signal(SIGHUP)
        flood.reader.join(60)
        assert [answer.status for answer in flood.answers] == [200] * len(targets)


@pytest.mark.parametrize("options", [("-w", "1"), ("-w", "1", "--threads", "2")], ids=["thread", "threads"])
def test_nobody_starves_though_a_turn_lasts_longer_than_a_keep_alive(server, options):
    """Twenty clients that ask again at once, whose turn is 1.6 s."""
    running = server(APP, *options, "--keep-alive", "1")
    clients, rounds = 20, 3
    answers, lock = [], threading.Lock()
    start = threading.Barrier(clients)

    def client(number):
        with running.connect() as connection:
            start.wait(20)
            for _ in range(rounds):
                answer = connection.exchange("GET", "/slow?0.08")
                with lock:
                    answers.append((place(answer), number))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == clients * rounds
    order = [number for _, number in sorted(answers)]
    first = {number: order.index(number) for number in range(clients)}
    # Nobody has its second while another waits for its first; some connect a little later.
    assert max(first.values()) < 2 * clients, first


def test_a_request_that_meets_the_end_of_an_idle_connection_is_answered_or_was_never_sent(server, tmp_path):
    """Over a unix socket, as Nginx sends it: at the moment in which the keep-alive ends, many times."""
    running = server(APP, "-w", "1", "--keep-alive", "1", bind="unix:%s" % (tmp_path / "s"))
    tries, outcomes = 120, []

    def client(number):
        with running.connect() as connection:
            place(connection.exchange("GET", "/"))
            time.sleep(1 + (number % 24 - 12) / 4000)
            try:
                connection.send(get("/?%d" % number))
            except (BrokenPipeError, ConnectionResetError):
                return outcomes.append("too late")
            answer = connection.read_response()
            assert answer.text == str(number)
            outcomes.append("closing" if answer.closing else "kept")

    for _ in range(3):
        threads = [threading.Thread(target=client, args=(number,)) for number in range(tries // 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(outcomes) == tries, outcomes


# --- idle connections and new ones ---

def ask_all(connections):
    for connection in connections:
        place(connection.exchange("GET", "/"))


def test_the_longest_idle_makes_room_for_a_new_one(server):
    running = server(APP, "-w", "1", "--worker-connections", "4", *KEEP)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(running.connect()) for _ in range(4)]
        ask_all(idle)
        # The order in which they were used last counts, not that in which they came.
        ask_all(idle[:1])
        for expected in idle[1:] + idle[:1]:
            place(stack.enter_context(running.connect()).exchange("GET", "/"))
            expected.expect_eof()
        assert not running.lines("ERROR")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_crowd_of_idle_connections_keeps_nobody_out(server, threads):
    running = server(APP, "-w", "1", "--worker-connections", "50", "--threads", threads, *KEEP)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(running.connect()) for _ in range(50)]
        ask_all(crowd)
        for _ in range(200):
            with running.connect() as fresh:
                place(fresh.exchange("GET", "/", (("Connection", "close"),)))
        # The first took a place, which was free again for each that followed, unless one was there before it was gone.
        assert sum(connection.readable() for connection in crowd) <= 10


def test_where_all_are_busy_a_new_one_waits_and_none_is_closed(server):
    running = server(APP, "-w", "1", "--worker-connections", "2", "--threads", "2", *KEEP)
    with running.connect() as held, running.connect() as begun, running.connect() as fresh:
        hold(running, held)
        begun.send(b"GET / HTTP/1.1\r\n")
        fresh.send(get("/?fresh"))
        assert not fresh.readable(0.5)
        begun.send(b"Host: x\r\n\r\n")
        place(begun.read_response())
        # It is idle now, and the new one has its place.
        place(fresh.read_response())
        begun.expect_eof()
        running.touch("go")
        place(held.read_response())


def test_without_a_free_descriptor_the_longest_idle_makes_room(server):
    running = server(APP, "-w", "1", *KEEP)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(running.connect()) for _ in range(30)]
        ask_all(crowd)
        worker, = running.workers()
        most = max(map(int, os.listdir("/proc/%d/fd" % worker))) + 1
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, most))
        fresh = [stack.enter_context(running.connect()) for _ in range(20)]
        ask_all(fresh)
        for connection in crowd[:10]:
            connection.expect_eof()
        ask_all(fresh)
    assert not running.lines("WARNING")
