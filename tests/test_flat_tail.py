"""One slow request delays no other while any worker, or any thread, is free: connections move, and are never closed.

Nothing here depends on time: a slow request ends when the test says so.
"""
import json
import os
from signal import SIGTERM, SIGUSR1

import pytest

import wire
from crowd import Crowd, begin, make_gate, open_gate, pid_of, wait_inside, wait_ready
from harness import alive, descriptors, wait_until

APP = "apps.tail"
KEEP = ("--keep-alive", "60")
ROUNDS = 5


def end(running, path):
    open_gate(running) if path == "/hold" else running.touch("go")


@pytest.fixture(params=["/wait", "/hold"], ids=["asleep", "in-c"])
def slow(request):
    """Blocked in Python, or in C with the interpreter locked."""
    return request.param


def two_workers(server, *options, **settings):
    running = server(APP, "-w", "2", *KEEP, *options, **settings)
    make_gate(running)
    wait_ready(running, 2)
    return running


# --- two workers, one thread each ---

def test_every_connection_is_served_by_the_other_worker(server, slow):
    running = two_workers(server)
    with Crowd(running, 16).spread(2) as crowd, running.connect() as victim:
        stuck = begin(running, victim, slow, "slow")
        for _ in range(ROUNDS):
            assert stuck not in set(map(pid_of, crowd.ask()))
        assert not victim.readable()
        end(running, slow)
        answer = victim.read_response()
        assert (answer.text, pid_of(answer)) == ("slow", stuck)
        assert victim.exchange().status == 200
        crowd.ask()


def test_one_slow_request_after_the_other(server, slow):
    """Each time another worker may be the one that is stuck."""
    running = two_workers(server)
    with Crowd(running, 12).spread(2) as crowd:
        for number in range(6):
            victim = crowd.connections.pop(0)
            stuck = begin(running, victim, slow, "slow%d" % number)
            assert stuck not in set(map(pid_of, crowd.ask()))
            open_gate(running) if slow == "/hold" else running.touch("go-slow%d" % number)
            assert victim.read_response().text == "slow%d" % number
            crowd.connections.append(victim)
        crowd.ask()


@pytest.mark.parametrize("cut", [1, 20, 60, 2500])
def test_the_beginning_of_a_head_travels_along(server, cut):
    query = "-".join(map(str, range(700)))
    request = wire.request_bytes("GET", "/?" + query)
    running = two_workers(server)
    with Crowd(running, 16).spread(2) as crowd, crowd.halved() as begun, running.connect() as victim:
        for connection in begun.connections:
            connection.send(request[:cut])
        crowd.ask()
        stuck = begin(running, victim, "/wait", "slow")
        crowd.ask()
        for connection in begun.connections:
            connection.send(request[cut:])
        for connection in begun.connections:
            answer = connection.read_response()
            assert answer.text == query and pid_of(answer) != stuck
        begun.ask()
        running.touch("go")
        assert victim.read_response().text == "slow"


def test_the_beginning_of_a_pipelined_head_travels_along(server):
    running = two_workers(server)
    with Crowd(running, 8).spread(2) as begun, running.connect() as victim:
        second = wire.request_bytes("GET", "/?second")
        for connection in begun.connections:
            connection.send(wire.request_bytes("GET", "/?first") + second[:30])
        assert {connection.read_response().text for connection in begun.connections} == {"first"}
        stuck = begin(running, victim, "/wait", "slow")
        for connection in begun.connections:
            connection.send(second[30:])
        for connection in begun.connections:
            answer = connection.read_response()
            assert answer.text == "second" and pid_of(answer) != stuck
        running.touch("go")
        assert victim.read_response().text == "slow"


def test_what_was_sent_behind_a_slow_request_waits_for_it(server):
    """Its answer may not overtake the slow one."""
    running = two_workers(server)
    with Crowd(running, 4).spread(2) as crowd, running.connect() as victim:
        victim.send(b"".join(wire.request_bytes("GET", "/%s?%s" % target) for target in
                             [("wait", "one"), ("", "two"), ("wait", "three"), ("", "four")]))
        stuck = wait_inside(running, "one")
        assert stuck not in set(map(pid_of, crowd.ask()))
        assert not victim.readable()
        running.touch("go")
        assert [victim.read_response().text for _ in range(4)] == ["one", "two", "three", "four"]


def test_a_half_read_body_stays_where_it_is(server):
    running = two_workers(server)
    with Crowd(running, 16).spread(2) as crowd, crowd.halved() as posting:
        for connection in posting.connections:
            connection.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf ")
        crowd.ask()
        victim = crowd.connections.pop()
        stuck = begin(running, victim, "/wait", "slow")
        for connection in posting.connections:
            connection.send(b"whole")
        crowd.ask()
        early = [connection for connection in posting.connections if connection.readable()]
        late = [connection for connection in posting.connections if connection not in early]
        by = [pid_of(connection.read_response()) for connection in early]
        assert stuck not in by
        running.touch("go")
        assert victim.read_response().text == "slow"
        answers = [connection.read_response() for connection in late]
        assert {answer.text for answer in answers} == {"half whole"}
        assert stuck in map(pid_of, answers)
        posting.ask()


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:%s/socket"], ids=["tcp", "unix"])
def test_new_connections_are_served_by_the_other_worker(server, tmp_path, bind, slow):
    running = two_workers(server, bind=bind.replace("%s", str(tmp_path)))
    with running.connect() as victim:
        stuck = begin(running, victim, slow, "slow")
        for _ in range(3):
            with Crowd(running, 30) as crowd:
                assert stuck not in set(map(pid_of, crowd.ask()))
        assert not victim.readable()
        end(running, slow)
        assert pid_of(victim.read_response()) == stuck


def test_more_than_one_look_can_move(server):
    """So many connections become ready at once that the mailbox does not hold them all."""
    running = two_workers(server)
    with Crowd(running, 400).spread(2) as crowd, running.connect() as victim:
        stuck = begin(running, victim, "/wait", "slow")
        for _ in range(2):
            assert stuck not in set(map(pid_of, crowd.ask()))
        running.touch("go")
        assert victim.read_response().text == "slow"


def test_moves_leave_nothing_behind(server):
    """No descriptor stays with the worker that gave a connection away."""
    running = two_workers(server)
    with running.connect() as settled:
        settled.exchange()
        before = {pid: len(descriptors(pid)) for pid in running.workers()}
        with Crowd(running, 16).spread(2) as crowd:
            for number in range(10):
                victim = crowd.connections.pop(0)
                begin(running, victim, "/wait", str(number))
                crowd.ask()
                running.touch("go-%d" % number)
                victim.read_response()
                crowd.connections.append(victim)
        # The one that is left may be at either.
        wait_until(lambda: sum(len(descriptors(pid)) for pid in before) == sum(before.values()), 20,
                   lambda: "%s: %s" % (before, {pid: descriptors(pid) for pid in before}))


# --- what the application is told of a connection that has moved ---

@pytest.mark.parametrize("binds", [1, 2])
def test_the_environ_is_the_same_after_a_move(server, binds):
    options = ["--forwarded-allow-ips", "127.0.0.1"]
    for _ in range(binds):
        options += ["--bind", "127.0.0.1:0"]
    running = two_workers(server, *options)
    forwarded = [("X-Forwarded-Proto", "https"), ("Host", "example.org")]
    with Crowd(running, 24, ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2")).spread(2) as crowd:
        before = crowd.ask("/facts", forwarded)
        with running.connect() as victim:
            stuck = begin(running, victim, "/wait", "slow")
            after = crowd.ask("/facts", forwarded)
            running.touch("go")
            victim.read_response()
    assert stuck in map(pid_of, before) and stuck not in map(pid_of, after)
    for connection, old, new in zip(crowd.connections, before, after):
        assert json.loads(old.text) == json.loads(new.text)
    told = [json.loads(answer.text) for answer in after]
    assert {(facts["REMOTE_ADDR"], facts["wsgi.url_scheme"]) for facts in told} == {
        ("127.0.0.1", "https"), ("127.0.0.2", "http")}
    assert len({facts["REMOTE_PORT"] for facts in told}) == 24
    assert {int(facts["SERVER_PORT"]) for facts in told} == {port for _, port in running.addresses}
    assert len(running.addresses) == binds


# --- threads ---

@pytest.mark.parametrize("threads", [2, 4])
def test_a_blocked_thread_delays_no_other(server, threads):
    running = server(APP, "--threads", threads, *KEEP)
    with Crowd(running, 16) as crowd, Crowd(running, threads - 1) as blocked:
        crowd.ask()
        for number, connection in enumerate(blocked.connections):
            begin(running, connection, "/wait", str(number))
            for _ in range(ROUNDS):
                crowd.ask()
        with Crowd(running, 16) as fresh:
            fresh.ask()
        running.touch("go")
        assert [c.read_response().text for c in blocked.connections] == list(map(str, range(threads - 1)))


@pytest.mark.parametrize("threads", [2, 4])
def test_connections_wait_while_all_threads_are_blocked(server, threads):
    running = server(APP, "--threads", threads, *KEEP)
    with Crowd(running, 16) as crowd, Crowd(running, threads) as blocked:
        crowd.ask()
        for number, connection in enumerate(blocked.connections):
            begin(running, connection, "/wait", str(number))
        for connection in crowd.connections:
            connection.send_request("GET", "/?waited")
        assert not any(connection.readable(0.02) for connection in crowd.connections)
        running.touch("go-1")
        assert blocked.connections[1].read_response().text == "1"
        assert {connection.read_response().text for connection in crowd.connections} == {"waited"}
        for _ in range(ROUNDS):
            crowd.ask()
        running.touch("go")
        for number in set(range(threads)) - {1}:
            assert blocked.connections[number].read_response().text == str(number)


def block_a_worker(running, crowd, threads):
    """All threads of one worker are inside a request; that worker and those connections."""
    taken = []
    stuck = None
    for number in range(100):
        if len(taken) == threads:
            return stuck, taken
        # It may have but this one now, and is given others.
        connection = wait_until(lambda: crowd.served_by(stuck) if stuck else crowd.connections[0])
        crowd.connections.remove(connection)
        pid = begin(running, connection, "/wait", str(number))
        stuck = stuck or pid
        if pid == stuck:
            taken.append(connection)
        else:
            running.touch("go-%d" % number)
            connection.read_response()
            crowd.connections.append(connection)
    raise AssertionError("could not block %d threads of one worker" % threads)


def test_with_all_threads_of_a_worker_blocked_its_connections_move(server):
    running = two_workers(server, "--threads", "2")
    with Crowd(running, 16).spread(2) as crowd:
        stuck, taken = block_a_worker(running, crowd, 2)
        for _ in range(ROUNDS):
            assert stuck not in set(map(pid_of, crowd.ask()))
        with Crowd(running, 16) as fresh:
            assert stuck not in set(map(pid_of, fresh.ask()))
        running.touch("go")
        assert {pid_of(connection.read_response()) for connection in taken} == {stuck}
        crowd.connections += taken
        crowd.ask()


def test_with_the_interpreter_locked_the_connections_of_all_threads_move(server):
    """However many threads there are, none of them can serve."""
    running = two_workers(server, "--threads", "3")
    with Crowd(running, 16).spread(2) as crowd, running.connect() as victim:
        stuck = begin(running, victim, "/hold", "slow")
        try:
            for _ in range(ROUNDS):
                assert stuck not in set(map(pid_of, crowd.ask()))
        finally:
            open_gate(running)
        assert victim.read_response().text == "slow"


@pytest.mark.parametrize("options", [("--threads", "4"), ("-w", "2", "--threads", "3")], ids=["threads", "both"])
def test_each_answer_belongs_to_its_request(server, options):
    """Fast ones from many connections, now and then a slower one between them."""
    running = server(APP, *options, *KEEP)
    with Crowd(running, 24) as crowd:
        for number in range(40):
            naps = crowd.connections[:number % 4]
            crowd.connections = crowd.connections[number % 4:]
            for connection in naps:
                connection.send_request("GET", "/nap?0.00%d" % number)
            crowd.ask()
            assert all(connection.read_response().text == "0.00%d" % number for connection in naps)
            crowd.connections += naps


# --- signals to a worker whose only thread is stuck ---

@pytest.mark.parametrize("used", [True, False], ids=["used", "resting"])
def test_term_to_a_stuck_worker_closes_none_of_its_connections(server, used, slow):
    running = two_workers(server)
    with Crowd(running, 16).spread(2) as crowd, running.connect() as victim:
        stuck = begin(running, victim, slow, "slow")
        os.kill(stuck, SIGTERM)
        wait_until(lambda: len(running.workers()) == 3, 20, running.log)
        if used:
            assert stuck not in set(map(pid_of, crowd.ask()))
        assert not victim.readable()
        end(running, slow)
        answer = victim.read_response()
        assert (answer.text, pid_of(answer)) == ("slow", stuck)
        wait_until(lambda: not alive(stuck), 20, running.log)
        crowd.ask()
        if not answer.closing:
            assert pid_of(victim.exchange()) != stuck
    assert "Killing" not in running.log()


def test_usr1_reaches_a_stuck_worker(server, slow):
    running = two_workers(server, "--access-logfile", "access.log")
    with Crowd(running, 8).spread(2) as crowd, running.connect() as victim:
        stuck = begin(running, victim, slow, "slow")
        os.rename(running.path("access.log"), running.path("access.old"))
        running.signal(SIGUSR1)
        for pid in running.workers():
            wait_until(lambda: running.path("access.log") in descriptors(pid), 20, running.log)
            assert running.path("access.old") not in descriptors(pid)
        crowd.ask()
        wait_until(lambda: "GET /?q" in running.read("access.log"), 20)
        end(running, slow)
        victim.read_response()
        wait_until(lambda: "GET %s?slow" % slow in running.read("access.log"), 20)
        assert stuck in running.workers()
