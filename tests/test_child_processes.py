"""An application that makes processes, in a worker that has more threads than the application knows of."""
import pytest

from crowd import Crowd

APP = """
    import multiprocessing, os, subprocess, sys, time

    def answer(queue):
        queue.put("from the child")

    def fork():
        pid = os.fork()
        if not pid:
            os._exit(7)
        return "left with %d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def leave():
        pid = os.fork()
        if not pid:
            sys.exit(7)
        return "left with %d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def process():
        fork = multiprocessing.get_context("fork")
        queue = fork.Queue()
        child = fork.Process(target=answer, args=(queue,))
        child.start()
        text = queue.get(timeout=20)
        child.join(20)
        return "%s, %d" % (text, child.exitcode)

    def run():
        return subprocess.run([sys.executable, "-c", "print('ran')"], capture_output=True, text=True).stdout.strip()

    def daemon():
        pid = os.fork()
        if not pid:
            while not os.path.exists("go"):
                time.sleep(0.01)
            os._exit(0)
        return "running"

    def app(environ, start_response):
        name = environ["PATH_INFO"][1:]
        text = globals()[name]() if name else environ["QUERY_STRING"]
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [text.encode()]
"""


SETS = pytest.mark.parametrize("options", [("-w", "2"), ("--threads", "2")], ids=["workers", "threads"])


@SETS
def test_an_application_may_make_processes(server, options):
    """Also one that outlives its request and has copies of all descriptors."""
    running = server(APP, "--keep-alive", "60", *options)
    workers = running.wait_workers(2 if options[0] == "-w" else 1)
    with Crowd(running, 12) as crowd:
        crowd.ask()
        for name, text in [("fork", "left with 7"), ("process", "from the child, 0"), ("run", "ran"),
                           ("daemon", "running")]:
            for connection in crowd.connections[:3]:
                assert connection.exchange("GET", "/" + name).text == text
            for _ in range(3):
                crowd.ask()
        assert running.workers() == workers
        with running.connect() as closing:
            assert closing.exchange("GET", "/?last", [("Connection", "close")]).text == "last"
            closing.expect_eof()
        running.touch("go")


@SETS
def test_a_child_that_leaves_by_an_exception_is_no_worker(server, options):
    """It ends with the code that it gave, answers nobody and takes no connection."""
    running = server(APP, "--keep-alive", "60", *options)
    running.wait_workers(2 if options[0] == "-w" else 1)
    with Crowd(running, 12) as crowd:
        crowd.ask()
        processes = sorted(running.processes())
        for connection in crowd.connections[:3]:
            assert connection.exchange("GET", "/leave").text == "left with 7"
        for _ in range(3):
            crowd.ask()
        assert sorted(running.processes()) == processes
