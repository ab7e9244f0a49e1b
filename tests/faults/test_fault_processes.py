"""Faults of processes: killed, stopped, crashed, out of memory, out of control. Each under traffic, each with a ledger.

The numbers are the rows of docs/faults.md.
"""
import os
import re
import socket
import textwrap
import time
from datetime import datetime
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTIN

import pytest

import harness
import wire
from faulty import (CLOSED, DEATH, FAULTY, alive, compare, compare_all, lost_in, mold_of, served_on_another, start, traffic,
                    wait_ready, wait_replaced, wait_until, worker_of)
from groups import control_group


def ends(running, level):
    """The workers that came to such an end, by the log."""
    said = (re.match(r"Worker \(pid:(\d+)\) was killed", text) for _, found, text in running.lines() if found == level)
    return [int(match.group(1)) for match in said if match]


def pauses(running):
    """The whole seconds from each death to the next worker, by the log."""
    found, died = [], None
    for at, text in re.findall(r"^\[(\S+ \S+) .*\] (Worker \(pid:\d+\) was killed|Booting worker)", running.log(), re.M):
        now = datetime.strptime(at, "%Y-%m-%d %H:%M:%S")
        if died and text == "Booting worker":
            found.append((now - died).seconds)
        died = None if text == "Booting worker" else now
    return found


KINDS = pytest.mark.parametrize("kind", [[], ["--threads", "2"], ["--preload"]], ids=["workers", "threads", "preload"])


@KINDS
def test_row_1_a_killed_worker_loses_only_what_it_was_running(server, kind):
    running = start(server, "-w", "3", *kind)
    running.expect_errors(*DEATH)
    killed = set()
    with traffic(running) as clients:
        for turn in range(4):
            clients.wait_answers(40)
            victim = running.workers()[0]
            with running.connect() as connection:
                connection.send_request("GET", "/wait?bystander%d" % turn)
                bystander = worker_of(running, "bystander%d" % turn)
                victim = next(pid for pid in running.workers() if pid != bystander)
                killed.add(victim)
                os.kill(victim, SIGKILL)
                wait_replaced(running, victim, 3)
                # What another one had begun it ends, and its connection stays.
                running.touch("go")
                assert connection.read_response().status == 200
                assert connection.exchange("GET", "/?stays%d" % turn).status == 200
            os.remove(running.path("go"))
        clients.wait_answers(100)
    threads = 2 if "--threads" in kind else 1
    assert all(count <= threads for count in lost_in(running, clients, killed).values())
    assert killed == set(ends(running, "ERROR"))
    # At once; the first deaths of young workers, by whatever, make the next wait for a second at the most.
    assert len(pauses(running)) == 4 and max(pauses(running)) < 4


def test_row_2_a_crash_in_a_request_is_answered(server):
    running = start(server, "-w", "2")
    running.expect_errors(*DEATH)
    killed = set()
    # What the worker had read in part is told to come again.
    with traffic(running, refusals=(503,)) as clients:
        for number in range(3):
            clients.wait_answers(40)
            with running.connect() as connection:
                response = connection.exchange("GET", "/segv?crash%d" % number)
                assert response.status == 500 and response.closing
                connection.expect_eof()
            victim = worker_of(running, "crash%d" % number)
            check_crash_log(running, victim, "/segv?crash%d" % number)
            killed.add(victim)
            wait_ready(running, 2)
    compare(running, clients, killed)
    # Others are told to come again, or go on.
    assert CLOSED not in clients.told().values()


def test_row_2_a_crash_in_a_response_is_no_end_of_it(server):
    running = start(server, "-w", "2")
    running.expect_errors(*DEATH)
    with traffic(running, refusals=(503,)) as clients, running.connect() as connection:
        connection.send_request("GET", "/segv-late?late")
        wait_until(lambda: running.exists("inside-late"))
        clients.wait_answers(40)
        running.touch("go")
        with pytest.raises(wire.ProtocolError, match="the stream ended inside"):
            connection.read_response()
        victim = worker_of(running, "late")
        check_crash_log(running, victim, "/segv-late?late")
        wait_ready(running, 2)
    compare(running, clients, {victim})
    assert CLOSED not in clients.told().values()


def check_crash_log(running, pid, target):
    """It has the stacks, the reason, and what was running."""
    running.wait_log(r"Fatal error: SIGSEGV in worker \(pid:%d\).*Stacks of all threads:\n(?:.*\n)*?  File \".*app\.py\"" % pid)
    running.wait_log(r"\[ERROR\] Worker \(pid:%d\) was killed by SIGSEGV.*\n.*\[ERROR\] It was running GET %s for \d+ s$"
                     % (pid, re.escape(target)))


@KINDS
def test_row_3_workers_outlive_the_arbiter_by_what_they_have_begun(server, kind):
    running = start(server, "-w", "2", "--graceful-timeout", "20", *kind)
    port = running.port
    workers = running.workers()
    with running.connect() as connection:
        connection.send_request("GET", "/wait?held")
        worker_of(running, "held")
        with traffic(running) as clients:
            clients.wait_answers(40)
            os.kill(running.pid, SIGKILL)
            running.wait_exit()
            # The idle one goes at once; the other when it is done.
            wait_until(lambda: sum(map(alive, workers)) == 1, 20, running.log)
            # Nobody waits at a listener that nobody looks at.
            with pytest.raises(ConnectionRefusedError):
                wire.Connection(running.address)
            running.touch("go")
            assert connection.read_response().status == 200
            wait_until(lambda: not any(map(alive, workers)), 20, running.log)
    compare(running, clients, set())
    bind(port)


def bind(port):
    """As another server would."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


@pytest.mark.parametrize("threads", ["1", "3"])
def test_row_3_workers_whose_interpreter_is_stuck_end_too(server, threads):
    """Within graceful_timeout: nobody is left to kill them."""
    running = start(server, "-w", "2", "--threads", threads, "--graceful-timeout", "1", "--timeout", "600")
    running.expect_errors(r"interpreter", r"has been running", r"WORKER TIMEOUT", r"Stacks", *DEATH)
    workers = running.workers()
    with traffic(running, refusals=(503, 504)) as clients, running.connect() as connection:
        clients.wait_answers(40)
        connection.send_request("GET", "/grab?stuck")
        stuck = worker_of(running, "stuck")
        os.kill(running.pid, SIGKILL)
        running.wait_exit()
        wait_until(lambda: not any(map(alive, workers)), 20, running.log)
        assert connection.read_response().status == 504
    compare(running, clients, {stuck})


HOOK = """
    import os, subprocess
    def when_ready(server):
        program = subprocess.Popen(["sleep", "600"], close_fds=False)
        with open("program.new", "w") as f:
            f.write(str(program.pid))
        os.rename("program.new", "program")
"""


def test_row_3_a_program_that_a_hook_has_started_is_not_the_arbiter(server):
    """It outlives the arbiter, and has nothing by which workers could take it for that, nor the port."""
    running = start(server, "-w", "2", config=HOOK)
    wait_until(lambda: running.exists("program"))
    program, workers = int(running.read("program")), running.workers()
    os.kill(running.pid, SIGKILL)
    running.wait_exit()
    wait_until(lambda: not any(map(alive, workers)), 20, running.log)
    assert alive(program)
    bind(running.port)
    os.kill(program, SIGKILL)


def test_row_4_nobody_notices_a_dead_mold(server):
    running = start(server, "-w", "2", "--preload")
    running.expect_errors(*DEATH, r"[Mm]old")
    with traffic(running) as clients:
        for _ in range(3):
            clients.wait_answers(40)
            os.kill(mold_of(running), SIGKILL)
            clients.wait_answers(40)
    compare_all(running, clients)
    # And the next worker is forked from another.
    victim = running.workers()[0]
    os.kill(victim, SIGKILL)
    wait_replaced(running, victim, 2)


def test_row_5_a_stopped_worker_is_replaced(server):
    running = start(server, "-w", "2", "--timeout", "1")
    running.expect_errors(*DEATH, r"WORKER TIMEOUT", r"Killing")
    with traffic(running) as clients:
        clients.wait_answers(40)
        victim = running.workers()[0]
        os.kill(victim, SIGSTOP)
        wait_replaced(running, victim, 2)
        clients.wait_answers(40)
    assert sum(lost_in(running, clients, {victim}).values()) <= 1


def test_row_5_a_stopped_worker_without_a_request_is_replaced(server):
    """Its idle connections are nobody's until then."""
    running = start(server, "-w", "2", "--timeout", "1")
    running.expect_errors(*DEATH, r"Killing")
    for victim in running.workers():
        os.kill(victim, SIGSTOP)
        wait_replaced(running, victim, 2)
        running.wait_log(r"Killing worker \(pid:%d\), which has been stopped for too long \(--timeout\)" % victim)
    with traffic(running) as clients:
        clients.wait_answers(40)
    compare_all(running, clients)


def test_row_5_a_worker_that_goes_on_in_time_loses_nothing(server):
    running = start(server, "-w", "2", "--timeout", "30")
    with traffic(running) as clients:
        clients.wait_answers(40)
        victim = running.workers()[0]
        os.kill(victim, SIGSTOP)
        wait_until(lambda: harness.stat(victim)[0] == "T")
        clients.wait_answers(40)
        os.kill(victim, SIGCONT)
        clients.wait_answers(40)
    compare_all(running, clients)
    assert victim in running.workers()


def test_row_6_an_arbiter_that_was_stopped_kills_nobody(server):
    """Longer than the time a request may take and the patience beyond it."""
    running = start(server, "-w", "2", "--timeout", "1")
    workers = running.workers()
    with traffic(running) as clients:
        clients.wait_answers(40)
        os.kill(running.pid, SIGSTOP)
        until = time.monotonic() + 4
        wait_until(lambda: time.monotonic() > until)
        clients.wait_answers(40)
        os.kill(running.pid, SIGCONT)
        clients.wait_answers(100)
    compare_all(running, clients)
    assert running.workers() == workers


def test_row_6_a_server_that_was_frozen_whole_kills_nobody(server):
    """A suspended container: to the monotonic clock the pause is time like any other."""
    running = start(server, "-w", "2", "--timeout", "1")
    workers = running.workers()
    with running.connect() as connection:
        connection.send_request("GET", "/wait?held")
        worker_of(running, "held")
        for pid in [running.pid] + workers:
            os.kill(pid, SIGSTOP)
        until = time.monotonic() + 4
        wait_until(lambda: time.monotonic() > until)
        running.touch("go")
        for pid in [running.pid] + workers:
            os.kill(pid, SIGCONT)
        assert connection.read_response().status == 200
    with traffic(running) as clients:
        clients.wait_answers(40)
    compare_all(running, clients)
    assert running.workers() == workers


@pytest.fixture
def small_memory():
    with control_group("memory") as group:
        group.limit_memory(192 << 20)
        yield group


@pytest.fixture
def few_processes():
    with control_group("pids") as group:
        yield group


def test_row_7_the_end_of_memory_ends_one_worker_and_is_named(small_memory, server):
    running = start(server, "-w", "2", prefix=small_memory.enter())
    running.expect_errors(*DEATH, r"memory")
    with traffic(running, 4) as clients:
        clients.wait_answers(20)
        with running.connect() as connection:
            connection.send_request("GET", "/eat?hungry")
            victim = worker_of(running, "hungry")
            connection.expect_closed()
        running.wait_log(r"(?i)\(pid:%d\).*memory" % victim)
        wait_replaced(running, victim, 2)
        clients.wait_answers(20)
    compare(running, clients, {victim})


def test_row_14_workers_that_crash_at_once_leave_the_others_alone(server):
    running = start(server, "-w", "3")
    running.expect_errors(*DEATH)
    before, killed = set(running.workers()), set()
    with traffic(running, 4) as clients:
        for number in range(12):
            with running.connect() as connection:
                connection.send_request("GET", "/exit?exit%d" % number)
                killed.add(worker_of(running, "exit%d" % number))
                connection.expect_closed()
            clients.wait_answers(5)
    compare(running, clients, killed)
    # Its pause is the application's own fault; the server is as it was in the end, and nobody was told to go.
    assert set(wait_ready(running, 3)) >= before - killed
    assert "Worker exiting" not in running.log()


@pytest.mark.parametrize("broken", ["import os; os._exit(9)", "import nowhere_to_be_found"], ids=["vanish", "missing"])
def test_row_14_a_worker_that_cannot_boot_any_more_comes_later_and_later(server, broken):
    """A release that was copied in halves, say; who has the old one serves, and the new one is tried until it can."""
    running = start(server, "-w", "3")
    running.expect_errors(*DEATH, r"Worker failed to boot", r"Exception in worker process", r"No module named")
    victim, *healthy = running.workers()
    with traffic(running, 4) as clients:
        clients.wait_answers(20)
        running.write("app.py", broken + "\n")
        os.kill(victim, SIGKILL)
        tries = len(re.findall(r"Booting worker", running.log()))
        running.wait_log(r"Booting worker", count=tries + 2)
        until = time.monotonic() + 3
        wait_until(lambda: time.monotonic() > until)
        # At once, after 0.2, 0.5, 1 and 2 seconds, more or less.
        assert len(re.findall(r"Booting worker", running.log())) <= tries + 6
        assert running.workers() and set(healthy) <= set(running.workers())
        running.write("app.py", textwrap.dedent(FAULTY))
        wait_ready(running, 3)
        clients.wait_answers(20)
    compare(running, clients, {victim})


def test_row_15_a_fork_that_fails_is_tried_again(few_processes, server):
    running = start(server, "-w", "2", prefix=few_processes.enter())
    running.expect_errors(*DEATH, r"Cannot fork")
    with traffic(running) as clients:
        clients.wait_answers(40)
        few_processes.limit_processes(1)
        running.signal(SIGTTIN)
        running.wait_log(r"Cannot fork: .*Resource temporarily unavailable")
        clients.wait_answers(40)
        few_processes.limit_processes("max")
        wait_ready(running, 3)
        clients.wait_answers(40)
    compare_all(running, clients)


@pytest.mark.parametrize("path", ["/daemon", "/deaf", "/close", "/elsewhere"])
def test_row_23_what_an_application_does_to_its_process_stays_there(server, path):
    running = start(server, "-w", "2", "--graceful-timeout", "2")
    running.expect_errors(r".")
    with traffic(running, 4) as clients:
        clients.wait_answers(20)
        with running.connect() as connection:
            connection.send_request("GET", path + "?odd")
            victim = worker_of(running, "odd")
            # Without its descriptors it cannot answer.
            if path == "/close":
                connection.expect_closed()
        clients.wait_answers(40)
        served_on_another(running, victim)
        running.signal(SIGHUP)
        wait_until(lambda: not alive(victim), 30, running.log)
        wait_ready(running, 2)
    compare(running, clients, {victim})
    assert running.stop() == 0
    running.kill()


def test_row_25_signals_that_the_parent_blocked_or_ignored(server):
    ignoring = ["env", "--ignore-signal=CHLD,HUP,TERM,INT,QUIT,USR1", "--block-signal=CHLD,HUP,TERM,TTIN,USR1"]
    running = start(server, "-w", "2", prefix=ignoring)
    running.expect_errors(*DEATH)
    with traffic(running) as clients:
        clients.wait_answers(20)
        running.signal(SIGTTIN)
        wait_ready(running, 3)
        running.signal(SIGHUP)
        running.wait_log(r"Reload complete")
        victim = wait_ready(running, 2)[0]
        os.kill(victim, SIGKILL)
        wait_replaced(running, victim, 2)
    compare(running, clients, {victim})
    assert running.stop(SIGTERM) == 0


def test_row_26_a_number_that_somebody_else_has_by_now_is_not_signalled(server, tmp_path):
    """A worker's number is free for others only after the arbiter has reaped it, and from then on it is forgotten."""
    running = start(server, "-w", "2")
    running.expect_errors(*DEATH)
    os.kill(running.pid, SIGSTOP)
    victim = running.workers()[0]
    os.kill(victim, SIGKILL)
    wait_until(lambda: harness.stat(victim)[0] == "Z")
    # Still a zombie, so nobody can have the number while the arbiter acts on it.
    os.kill(running.pid, SIGHUP)
    os.kill(running.pid, SIGCONT)
    running.wait_log(r"Reload complete")
    wait_until(lambda: harness.stat(victim) is None)
    with traffic(running) as clients:
        clients.wait_answers(40)
    compare_all(running, clients)
