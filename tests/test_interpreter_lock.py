"""Other threads of the application have their share of the interpreter, and leave the requests theirs."""
import struct

import pytest

from harness import Threads, wait_until

# The count is where the test sees it without asking; counting itself never gives the interpreter up.
APP = """
    import mmap, os, struct, threading

    def work():
        memory = mmap.mmap(os.open("count", os.O_RDWR), 8)
        count = 0
        while True:
            count += 1
            struct.pack_into("q", memory, 0, count)

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/start":
            threading.Thread(target=work, daemon=True).start()
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [environ["QUERY_STRING"].encode()]
"""

SETS = pytest.mark.parametrize("threads", [1, 4], ids=["plain", "threads"])


def start(server, threads):
    """The server with its counting thread, which was started after all that the server had to do."""
    running = server(APP, "--threads", threads, "--keep-alive", "60")
    with open(running.path("count"), "wb") as f:
        f.write(bytes(8))
    assert running.get("/start").status == 200
    return running


def count(running):
    with open(running.path("count"), "rb") as f:
        return struct.unpack("q", f.read(8))[0]


def wait_progress(running):
    before = count(running)
    wait_until(lambda: count(running) > before + 1000, 20, lambda: "progress beyond %d" % before)


class Load(Threads):
    """Clients that never pause."""

    def __init__(self, running, clients):
        super().__init__(clients, self.work)
        self.running = running
        self.answers = [0] * clients

    def work(self, number, over):
        with self.running.connect() as connection:
            while not over.is_set():
                query = "%d-%d" % (number, self.answers[number])
                assert connection.exchange("GET", "/?" + query).text == query
                self.answers[number] += 1

    def wait_answers(self, each):
        goals = [answers + each for answers in self.answers]
        wait_until(lambda: self.faults or all(a >= g for a, g in zip(self.answers, goals)), 30,
                   lambda: "%d more answers for each client: %s" % (each, self.answers))


@SETS
def test_a_thread_goes_on_while_the_worker_is_idle(server, threads):
    running = start(server, threads)
    for _ in range(5):
        wait_progress(running)


@SETS
@pytest.mark.parametrize("clients", [1, 8])
def test_a_thread_and_requests_go_on_beside_each_other(server, threads, clients):
    running = start(server, threads)
    with Load(running, clients) as load:
        for _ in range(5):
            wait_progress(running)
            load.wait_answers(5)
