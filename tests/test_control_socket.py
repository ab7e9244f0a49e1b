"""The control socket and rgunicornc: each command on a running server, who may give one, and that nobody who talks to it can
disturb supervision."""
import contextlib
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys

import pytest

import harness
from control import connect, frame, read_answer
from harness import alive, descriptors, wait_until
from users import IMPORTS, commons, nobody  # noqa: F401

APP = """
    import os, time

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/wait":
            open("waiting", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.02)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
"""
MOST_OCTETS = 64 * 1024


def ours():
    if os.path.basename(harness.command()[0]) != "rgunicorn":
        pytest.skip("rgunicorn's own")


def ask(running, command, args=(), path="control"):
    """The answer's data; an error answer is given back as its text."""
    with contextlib.closing(connect(running.path(path))) as client:
        client.sendall(frame({"id": "mine", "command": command, "args": list(args)}))
        answer = read_answer(client)
    assert answer["id"] == "mine"
    assert set(answer) == {"id", "status", "data" if answer["status"] == "ok" else "error"}
    return answer["data"] if answer["status"] == "ok" else answer["error"]


def workers(running):
    return ask(running, "show workers")["workers"]


def wait_ready(running, count):
    """The workers, once so many are ready and there are no others."""
    def ready():
        found = workers(running)
        return len(found) == count and all(worker["state"] == "ready" for worker in found) and found
    return wait_until(ready, 30, lambda: "%d ready workers: %s" % (count, workers(running)))


def rgunicornc(*arguments, **settings):
    client = os.path.join(os.path.dirname(harness.command()[0]), "rgunicornc")
    if settings.get("cwd"):
        settings["cwd"] = str(settings["cwd"])
    return subprocess.run([client] + [str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=60, **settings)


@pytest.fixture
def controlled(server):
    """`controlled(options…)`: a server with the control socket `control` in its folder."""
    ours()

    def start(*options, **settings):
        running = server(settings.pop("app", APP), "--control-socket", "control", *options, **settings)
        running.wait_log("Control socket listening at ")
        return running
    return start


# --- the commands ---


def test_show_workers(controlled):
    running = controlled("-w", "2", "--threads", "2")
    first, second = wait_ready(running, 2)
    assert {first["pid"], second["pid"]} == set(running.workers())
    assert (first["age"], second["age"]) == (1, 2)
    assert first["booted"] is True and first["last_heartbeat"] is None and first["generation"] == 1
    assert first["busy_threads"] == 0 and first["running"] == []
    with running.connect() as connection:
        connection.send_request("GET", "/wait?id=5")
        wait_until(lambda: running.exists("waiting"))
        busy = [worker for worker in workers(running) if worker["busy_threads"]]
        assert len(busy) == 1 and busy[0]["busy_threads"] == 1 and busy[0]["requests"] == 1
        request, = busy[0]["running"]
        assert (request["method"], request["path"]) == ("GET", "/wait?id=5") and request["seconds"] >= 0
        assert ask(running, "show stats")["busy_threads"] == 1
        running.touch("go")
        assert connection.read_response().status == 200
    wait_until(lambda: not any(worker["busy_threads"] for worker in workers(running)))


def test_a_worker_that_boots_or_drains_is_shown_as_such(controlled):
    running = controlled(app="""
        import os, time

        while not os.path.exists("boot"):
            time.sleep(0.02)

        def app(environ, start_response):
            open("waiting", "w").close()
            while not os.path.exists("go"):
                time.sleep(0.02)
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]
    """)
    worker = wait_until(lambda: workers(running))[0]
    assert worker["state"] == "booting" and worker["booted"] is False
    running.touch("boot")
    pid = wait_ready(running, 1)[0]["pid"]
    with running.connect() as connection:
        connection.send_request("GET", "/")
        wait_until(lambda: running.exists("waiting"))
        assert ask(running, "worker kill %d" % pid) == {"success": True, "killed": pid}
        states = {worker["pid"]: worker["state"] for worker in workers(running)}
        assert states[pid] == "draining"
        assert ask(running, "worker kill %d" % pid) == "worker %d is leaving already" % pid
        running.touch("go")
        assert connection.read_response().status == 200
    wait_until(lambda: not alive(pid))
    assert wait_ready(running, 1)[0]["pid"] != pid


def test_show_all_and_listeners(controlled):
    running = controlled()
    wait_ready(running, 1)
    shown = ask(running, "show all")
    assert shown["arbiter"]["pid"] == running.pid
    assert shown["web_worker_count"] == 1 and shown["web_workers"][0]["pid"] in running.workers()
    assert shown["dirty_arbiter"] is None and shown["dirty_workers"] == []
    listeners = ask(running, "show listeners")
    assert listeners["count"] == 1
    assert listeners["listeners"][0]["address"] == running.listening[0] and listeners["listeners"][0]["type"] == "tcp"
    target = os.readlink("/proc/%d/fd/%d" % (running.pid, listeners["listeners"][0]["fd"]))
    assert target.startswith("socket:")


def test_show_config_keeps_secrets(controlled):
    running = controlled("-w", "2", "--timeout", "7", "-e", "PASSWORD=hunter2")
    shown = ask(running, "show config")
    assert shown["workers"] == 2 and shown["timeout"] == 7 and shown["bind"] == ["127.0.0.1:0"]
    assert shown["control_socket"] == "control" and shown["control_socket_disable"] is False
    assert shown["keyfile"] is None and shown["raw_env"] == ["PASSWORD=***"]
    assert "hunter2" not in json.dumps(shown)


def test_show_stats(controlled):
    running = controlled()
    pid = wait_ready(running, 1)[0]["pid"]
    for _ in range(3):
        assert running.get("/").status == 200
    before = ask(running, "show stats")
    assert before["pid"] == running.pid and before["requests"] == 3 and before["workers_spawned"] == 1
    assert before["workers_current"] == before["workers_ready"] == before["workers_target"] == 1
    assert (before["reloads"], before["workers_killed"]) == (0, 0) and before["uptime"] > 0
    ask(running, "reload")
    running.wait_log("Reload complete")
    wait_until(lambda: not alive(pid))
    wait_ready(running, 1)
    after = ask(running, "show stats")
    # Requests of the worker that has gone are counted too.
    assert after["requests"] == 3 and after["reloads"] == 1 and after["workers_spawned"] == 2
    assert after["uptime"] > before["uptime"]


def test_workers_are_added_and_removed(controlled):
    running = controlled()
    oldest = wait_ready(running, 1)[0]["pid"]
    assert ask(running, "worker add 2") == {"added": 2, "previous": 1, "total": 3}
    wait_ready(running, 3)
    assert ask(running, "worker", ["remove"]) == {"removed": 1, "previous": 3, "total": 2}
    assert oldest not in [worker["pid"] for worker in wait_ready(running, 2)]
    assert ask(running, "worker remove 7") == {"removed": 1, "previous": 2, "total": 1}
    wait_ready(running, 1)
    assert ask(running, "worker remove") == {"removed": 0, "previous": 1, "total": 1}
    running.wait_log(r"Control socket: worker add 2 \(user %d\)" % os.geteuid())
    assert re.match(r"\d+ workers are the most", ask(running, "worker add 100000"))
    assert len(wait_ready(running, 1)) == 1


def test_a_worker_is_killed(controlled):
    running = controlled("-w", "2")
    pid = wait_ready(running, 2)[0]["pid"]
    assert ask(running, "worker", ["kill", pid]) == {"success": True, "killed": pid}
    wait_until(lambda: not alive(pid))
    wait_ready(running, 2)
    # Its own pid, and that of anybody else.
    for other in (running.pid, os.getpid(), 1):
        assert ask(running, "worker kill %d" % other) == "%d is not a worker of this server" % other
    assert running.running()


def test_reload_and_reopen(controlled):
    running = controlled("--error-logfile", "log")
    pid = wait_ready(running, 1)[0]["pid"]
    assert ask(running, "reload") == {"status": "reloading"}
    running.wait_log("Reload complete")
    wait_until(lambda: not alive(pid))
    assert wait_ready(running, 1)[0]["generation"] == 2
    os.rename(running.path("log"), running.path("log.1"))
    assert ask(running, "reopen") == {"status": "reopening"}
    wait_until(lambda: running.exists("log"))


@pytest.mark.parametrize("command, answer", [
    ("shutdown", "graceful"), ("shutdown graceful", "graceful"), ("shutdown quick", "quick"),
])
def test_shutdown_answers_and_leaves_no_file(controlled, command, answer):
    running = controlled()
    wait_ready(running, 1)
    assert ask(running, command) == {"status": "shutting_down", "mode": answer}
    assert running.wait_exit() == 0
    assert not running.exists("control")


def test_a_graceful_shutdown_finishes_requests(controlled):
    running = controlled()
    wait_ready(running, 1)
    with running.connect() as connection:
        connection.send_request("GET", "/wait")
        wait_until(lambda: running.exists("waiting"))
        ask(running, "shutdown")
        wait_until(lambda: not running.exists("control"))
        running.touch("go")
        assert connection.read_response().status == 200
    assert running.wait_exit() == 0


def test_help_lists_what_there_is(controlled):
    running = controlled()
    commands = ask(running, "help")["commands"]
    assert {"show workers", "worker add [N]", "shutdown [graceful|quick]"} <= set(commands)


@pytest.mark.parametrize("command, says", [
    ("", "there is no command"), ("stop", "'stop' is no command"), ("show", "'show' is no command"),
    ("show wrokers", "'wrokers' is not one of: all, workers"), ("worker add 0", "'0' is not a whole number"),
    ("worker add two", "'two' is not a whole number"), ("worker kill", "'worker kill' is no command"),
    ("dirty add 1", "there are no dirty workers"), ("show dirty", "there are no dirty workers"),
    ("shutdown now", "'shutdown now' is no command"), ("\x1b[2J", r"'\u{1b}[2J' is no command"),
])
def test_wrong_commands(module_server, command, says):
    running = shared(module_server)
    assert ask(running, command).startswith(says)


SHARED = {}


def shared(module_server):
    """One server for rows that change nothing."""
    ours()
    if module_server not in SHARED:
        SHARED[module_server] = module_server(APP, "--control-socket", "control")
        SHARED[module_server].wait_log("Control socket listening at ")
    return SHARED[module_server]


# --- clients that do not behave ---


def test_requests_in_pieces_and_several_at_once(module_server):
    running = shared(module_server)
    with contextlib.closing(connect(running.path("control"))) as client:
        text = b"".join(frame({"id": number, "command": "help"}) for number in range(100))
        for at in range(0, len(text), 37):
            client.sendall(text[at:at + 37])
        assert [read_answer(client)["id"] for _ in range(100)] == list(range(100))
        # One that sends no more is answered all the same.
        client.sendall(frame({"id": "last", "command": "show stats"}))
        client.shutdown(socket.SHUT_WR)
        assert read_answer(client)["id"] == "last" and read_answer(client) is None


@pytest.mark.parametrize("octets", [
    b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", struct.pack(">I", MOST_OCTETS - 3), frame(b""), frame(b"\xff\xfe"),
    frame(b"[]"), frame(b"{}"), frame({"command": 7}), frame({"command": "help", "args": {}}), frame(b"[" * 60000),
], ids=repr)
def test_garbage_ends_the_conversation_only(module_server, octets):
    running = shared(module_server)
    with contextlib.closing(connect(running.path("control"))) as client:
        client.sendall(octets)
        answer = read_answer(client)
        assert answer["status"] == "error" and answer["id"] is None
        assert read_answer(client) is None
    assert ask(running, "show stats")["pid"] == running.pid


def test_a_client_that_reads_nothing_is_asked_nothing_and_delays_nobody(controlled):
    """Supervision goes on: a worker that dies is replaced, and others are answered."""
    running = controlled("-w", "2")
    first = wait_ready(running, 2)[0]["pid"]
    with contextlib.closing(connect(running.path("control"))) as slow, contextlib.closing(connect(running.path("control"))) as half:
        half.sendall(frame({"command": "help"})[:-1])
        slow.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += slow.send(frame({"command": "show config"}) * 50)
        rss = harness.memory_of(running.pid)
        running.expect_errors(r"Worker \(pid:%d\)" % first)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: first not in [worker["pid"] for worker in workers(running)])
        wait_ready(running, 2)
        assert running.get("/").status == 200
        assert harness.memory_of(running.pid) - rss < 4096
        # It sleeps in spite of them.
        ticks = harness.cpu_ticks(running.pid)
        ask(running, "help")
        wait_until(lambda: harness.stat(running.pid)[0] == "S")
        assert harness.cpu_ticks(running.pid) - ticks < 50
        # What it has sent is answered when it begins to read.
        slow.setblocking(True)
        slow.settimeout(20)
        assert read_answer(slow)["status"] == "ok"


def test_who_is_silent_gives_way(controlled):
    """Forgotten sessions lock nobody out."""
    running = controlled()
    wait_ready(running, 1)
    silent = [connect(running.path("control")) for _ in range(60)]
    try:
        assert ask(running, "show stats")["pid"] == running.pid
        # Those that came last are there still.
        silent[-1].sendall(frame({"command": "help"}))
        assert read_answer(silent[-1])["status"] == "ok"
        assert silent[0].recv(1) == b""
        assert len(os.listdir("/proc/%d/fd" % running.pid)) < 60
    finally:
        for client in silent:
            client.close()


def test_workers_do_not_have_it(controlled):
    running = controlled("-w", "2")
    with contextlib.closing(connect(running.path("control"))) as client:
        client.sendall(frame({"command": "worker add"}))
        assert read_answer(client)["status"] == "ok"
        pids = [worker["pid"] for worker in wait_ready(running, 3)]
        theirs = {name for pid in pids for name in descriptors(pid)}
        mine = set(descriptors(running.pid))
        held = {"socket:[%s]" % inode for inode in socket_inodes("/control")}
        assert held and held & mine and not held & theirs


def socket_inodes(suffix):
    """Of unix sockets that are bound to such a name; accepted ones have their listener's."""
    with open("/proc/net/unix") as f:
        rows = [line.split() for line in f]
    return [row[6] for row in rows if len(row) > 7 and row[7].endswith(suffix)]


# --- the file ---


@pytest.mark.parametrize("options, mode", [([], 0o600), (["--control-socket-mode", "0660"], 0o660), (["--control-socket-mode=432"], 0o660)])
def test_control_socket_mode(controlled, options, mode):
    running = controlled(*options)
    found = os.lstat(running.path("control"))
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and found.st_uid == os.geteuid()


def test_no_control_socket(server):
    """None by default, and none where it is switched off."""
    ours()
    running = server(APP)
    assert running.get("/").status == 200 and "Control socket" not in running.log()
    running = server(APP, "--control-socket", "control", "--no-control-socket")
    assert running.get("/").status == 200 and not running.exists("control")


def test_control_socket_disable_in_a_file(server):
    ours()
    running = server(APP, config="control_socket = 'control'\ncontrol_socket_disable = True\n")
    assert running.get("/").status == 200 and not running.exists("control")


def test_it_is_relative_to_the_working_folder(server, tmp_path):
    ours()
    (tmp_path / "there").mkdir()
    running = server(APP, "--control-socket", "sub/ctl", "--chdir", tmp_path / "there", "--pythonpath", tmp_path / "server")
    # The folder is missing, which is no reason not to serve.
    running.wait_log(r"\[WARNING\] There is no control socket: .*/there/sub/ctl: No such file or directory \(--control-socket\)")
    assert running.get("/").status == 200
    (tmp_path / "there" / "sub").mkdir()
    running.signal(signal.SIGHUP)
    running.wait_log("Control socket listening at .*/there/sub/ctl")
    assert running.stop() == 0
    assert os.listdir(str(tmp_path / "there" / "sub")) == []


@pytest.mark.parametrize("what", ["file", "link", "folder"])
def test_something_else_is_left_alone(server, tmp_path, what):
    ours()
    path, target = tmp_path / "c", tmp_path / "target"
    target.write_text("precious")
    if what == "file":
        path.write_text("precious")
    elif what == "link":
        path.symlink_to(target)
    else:
        path.mkdir()
    running = server(APP, "--control-socket", path)
    running.wait_log(r"\[WARNING\] There is no control socket: .*something else than a socket is there")
    assert running.get("/").status == 200
    assert running.stop() == 0
    assert target.read_text() == "precious"
    assert path.is_dir() if what == "folder" else path.read_text() == "precious"


def test_the_socket_of_a_dead_server_is_replaced(server, controlled, tmp_path):
    path = tmp_path / "c"
    first = server(APP, "--control-socket", path)
    first.wait_log("Control socket listening")
    first.kill()
    assert path.exists()
    second = server(APP, "--control-socket", path)
    second.wait_log("Control socket listening")
    assert ask(second, "show stats", path=str(path))["pid"] == second.pid
    # A living one's is not, not even when that one stops later.
    third = server(APP, "--control-socket", path)
    third.wait_log("There is no control socket: .*another server listens there")
    assert third.stop() == 0
    assert ask(second, "show stats", path=str(path))["pid"] == second.pid
    assert second.stop() == 0 and not path.exists()


def test_a_file_that_is_another_servers_by_now_is_not_removed(controlled):
    running = controlled()
    os.unlink(running.path("control"))
    running.touch("control")
    assert running.stop() == 0 and running.exists("control")


def test_hup_takes_another_path_and_mode_over(server):
    ours()
    config = "control_socket = 'one'\n"
    running = server(APP, config=config)
    running.wait_log("Control socket listening at .*/one")
    with contextlib.closing(connect(running.path("one"))) as client:
        running.write("gunicorn.conf.py", "control_socket = 'two'\ncontrol_socket_mode = 0o640\n")
        client.sendall(frame({"command": "reload"}))
        assert read_answer(client)["status"] == "ok"
        running.wait_log("Control socket listening at .*/two")
        assert read_answer(client) is None
    assert not running.exists("one")
    assert stat.S_IMODE(os.stat(running.path("two")).st_mode) == 0o640
    assert ask(running, "show stats", path="two")["reloads"] == 1
    # One that was lost comes back, and one that is there keeps its connections.
    os.unlink(running.path("two"))
    running.signal(signal.SIGHUP)
    running.wait_log("Control socket listening at .*/two", count=2)
    with contextlib.closing(connect(running.path("two"))) as client:
        running.signal(signal.SIGHUP)
        running.wait_log("Reload complete", count=3)
        client.sendall(frame({"command": "show stats"}))
        assert read_answer(client)["data"]["reloads"] == 3
    running.write("gunicorn.conf.py", "\n")
    running.signal(signal.SIGHUP)
    wait_until(lambda: not running.exists("two"))


def test_an_upgrade_hands_it_over(controlled):
    """The old server has it until it ends; then the new one."""
    running = controlled("--pid", "pid")
    wait_ready(running, 1)
    running.signal(signal.SIGUSR2)
    new = int(running.wait_log(r"The new server is ready \(pid: (\d+)\)").group(1))
    assert ask(running, "show stats")["pid"] == running.pid
    assert ask(running, "shutdown") == {"status": "shutting_down", "mode": "graceful"}
    running.wait_log("Master has been promoted")
    running.wait_log("Control socket listening at ", count=2)
    assert ask(running, "show stats")["pid"] == new
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: not running.processes(), 30)
    assert not running.exists("control")


# --- who is obeyed ---

ASK_AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.path.insert(0, {folder!r})
from ctl import Client, run_one
sys.exit(run_one(Client(sys.argv[1]), "shutdown quick", False))
"""


def test_other_users_are_not_obeyed(server, commons):  # noqa: F811
    """Whatever the mode of the file; the user of the workers neither."""
    user = nobody()
    path = os.path.join(commons, "c")
    running = server(APP, "-u", "nobody", "--control-socket", path, "--control-socket-mode", "0777", config=IMPORTS,
                     directory=commons_directory(commons))
    running.wait_log("Control socket listening")
    import rgunicorn.ctl
    with open(rgunicorn.ctl.__file__) as source, open(os.path.join(commons, "ctl.py"), "w") as copy:
        copy.write(source.read())
    python = ["/usr/bin/python3"] if os.path.exists("/usr/bin/python3") else [sys.executable]
    for count in (1, 2):
        done = subprocess.run(python + ["-c", ASK_AS_NOBODY.format(folder=commons), path], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=60)
        why = "only root and user 0 are obeyed, and this is user %d" % user.pw_uid
        assert (done.returncode, done.stderr) == (1, "rgunicornc: %s\n" % why), done
        # Said once.
        assert len(running.lines("WARNING")) == 1 and why in running.lines("WARNING")[0][2]
    assert ask(running, "show stats", path=path)["pid"] == running.pid


def commons_directory(commons):  # noqa: F811
    path = os.path.join(commons, "server")
    os.mkdir(path)
    os.chmod(path, 0o755)
    return path


# --- rgunicornc ---


def test_rgunicornc(controlled):
    running = controlled("-w", "2")
    wait_ready(running, 2)
    with running.connect() as connection:
        connection.send_request("GET", "/wait?x=1")
        wait_until(lambda: running.exists("waiting"))
        done = rgunicornc("-s", "control", "-c", "show workers", cwd=running.directory)
        running.touch("go")
        assert connection.read_response().status == 200
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["PID", "AGE", "GENERATION", "STATE", "UPTIME", "REQUESTS", "BUSY", "RUNNING"]
    assert {int(line.split()[0]) for line in lines[1:3]} == set(running.workers())
    assert re.search(r"^\d+ +\d +1 +ready .* 1 +1 +GET /wait\?x=1 \d+\.\ds$", done.stdout, re.M)
    done = rgunicornc("-s", running.path("control"), "-j", "-c", "show workers")
    assert done.returncode == 0 and json.loads(done.stdout)["count"] == 2
    for command, says in [("show all", "^arbiter  %d$" % running.pid), ("show stats", "^workers_target +2$"),
                          ("show config", "^workers +2$"), ("show listeners", "^http://127"), ("help", "^worker add"),
                          ("worker add", "^total +3$"), ("reopen", "^status +reopening$")]:
        done = rgunicornc("-s", running.path("control"), "-c", command)
        assert (done.returncode, done.stderr) == (0, "") and re.search(says, done.stdout, re.M), done
    done = rgunicornc("-s", running.path("control"), "-c", "worker kill 1")
    assert (done.returncode, done.stdout) == (1, "") and done.stderr == "rgunicornc: 1 is not a worker of this server\n"


def test_rgunicornc_without_a_server(tmp_path):
    ours()
    for more in (["-c", "help"], []):
        done = rgunicornc("-s", tmp_path / "c", *more, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "rgunicornc: %s/c: No such file or directory\n" % tmp_path
    done = rgunicornc("-c", "help")
    assert done.returncode == 2 and "-s/--socket" in done.stderr
    done = rgunicornc("-v")
    assert done.returncode == 0 and re.match(r"rgunicornc \(rgunicorn \d", done.stdout)


def test_rgunicornc_line_by_line(controlled):
    running = controlled()
    wait_ready(running, 1)
    done = rgunicornc("-s", running.path("control"), input="show listeners\n\nnonsense\nworker add\nquit\nreload\n")
    assert done.returncode == 0, done
    assert done.stdout.count("rgunicorn> ") == 5 and "http://127.0.0.1" in done.stdout and "total" in done.stdout
    assert done.stderr == "rgunicornc: 'nonsense' is no command (try: help)\n"
    # The input's end is an end, too.
    done = rgunicornc("-s", running.path("control"), input="show stats\n")
    assert done.returncode == 0 and "uptime" in done.stdout
    assert "Hang up" not in running.log()


def test_rgunicornc_is_interrupted(controlled):
    running = controlled()
    client = os.path.join(os.path.dirname(harness.command()[0]), "rgunicornc")
    # Whoever runs the tests in the background may have it ignored.
    with subprocess.Popen([client, "-s", running.path("control")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        assert process.stdout.read(11) == b"rgunicorn> "
        # In read(2), which a signal that comes before does not end.
        wait_until(lambda: harness.stat(process.pid)[0] == "S")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_a_target_cannot_speak_to_the_terminal():
    ours()
    from rgunicorn import ctl
    shown = ctl.workers_table([{"pid": 1, "busy_threads": 3, "running": [{"method": "GET", "path": "/\x1b[2J\u202e", "seconds": 90061}]}])
    assert shown.splitlines()[1].endswith("GET /\\x1b[2J\\u202e 1d 1h 1m 1s, and 2 more")
