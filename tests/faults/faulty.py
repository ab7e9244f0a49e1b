"""An application that misbehaves on request, under the traffic of clients whose every request is in the ledger."""
import itertools
from collections import Counter

from crowd import wait_ready
from harness import alive, children, wait_until
from ledger import ANSWERED, APP, CLOSED, REFUSED, SEED, Clients, compare, compare_all, ledger

__all__ = ["ANSWERED", "CLOSED", "Clients", "DEATH", "FAULTY", "REFUSED", "SEED", "compare", "compare_all", "ledger", "lost_in", "mold_of",
           "served_on_another", "start", "traffic", "wait_ready", "wait_replaced", "worker_of", "wait_until", "alive"]

# How the log may tell of a process that a test has ended.
DEATH = (r"SIG[A-Z]+", r"exited", r"was running", r"killed", r"Fatal Python error", r"^  File ", r"Stacks", r"ended")

FAULTY = APP.replace("def app(", "def orderly(") + """
    import ctypes, signal, subprocess, sys, threading

    def inside(environ):
        # Which process runs it, for the test to see; the name is the query.
        name = "inside-" + environ["QUERY_STRING"]
        with open(name + ".new", "w") as f:
            f.write(str(os.getpid()))
        os.rename(name + ".new", name)

    def leave(environ):
        while not os.path.exists("go"):
            time.sleep(0.005)

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/":
            return orderly(environ, start_response)
        inside(environ)
        if path == "/wait":
            leave(environ)
        elif path == "/segv":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        elif path == "/segv-late":
            start_response("200 OK", [("Content-Type", "text/plain")])
            def body():
                yield b"begun"
                leave(environ)
                os.kill(os.getpid(), signal.SIGSEGV)
                time.sleep(60)
            return body()
        elif path == "/exit":
            os._exit(7)
        elif path == "/grab":
            # Keeps the interpreter: a call through PyDLL does not release it, and no signal is to end it.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            ctypes.PyDLL(None).sleep(600)
        elif path == "/eat":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)))
        elif path == "/daemon":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        elif path == "/deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif path == "/close":
            os.closerange(3, 4096)
        elif path == "/elsewhere":
            os.mkdir("elsewhere-%d" % os.getpid())
            os.chdir("elsewhere-%d" % os.getpid())
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
        return [path.encode()]
"""


def start(server, *options, **settings):
    """A server whose workers are all ready."""
    running = server(settings.pop("app", FAULTY), "--keep-alive", "60", *options, **settings)
    words = [str(option) for option in options]
    wait_ready(running, int(words[words.index("-w") + 1]) if "-w" in words else 1)
    return running


def traffic(running, clients=8, refusals=(), outlasts=False):
    return Clients(running, clients, SEED, refusals, outlasts=outlasts)


def worker_of(running, name):
    """The process inside the request of that name."""
    wait_until(lambda: running.exists("inside-" + name), 20, lambda: "a beginning of %s\n%s" % (name, running.log()))
    return int(running.read("inside-" + name))


def wait_replaced(running, pid, count):
    """The pids of so many ready workers, this one gone."""
    wait_until(lambda: not alive(pid), 30, running.log)
    return wait_ready(running, count)


def mold_of(running):
    """The process that `--preload` forks workers from: the arbiter's child that is none."""
    def found():
        others = [pid for pid in children(running.pid) if alive(pid) and pid not in running.workers()]
        return others[0] if len(others) == 1 else None
    return wait_until(found, 20, running.log)


def lost_in(running, clients, killed):
    """How many requests each of the killed processes ran and did not answer; the rest of the ledger has to balance."""
    told = compare(running, clients, killed)
    closed = {name for name, what in told.items() if what == CLOSED}
    return Counter(pid for name, pid in ledger(running) if name in closed)


def served_on_another(running, pid):
    """Asks until a worker other than this one answers."""
    serials = itertools.count()

    def another():
        answer = running.get("/?other-%d-%d" % (pid, next(serials)))
        return answer.status == 200 and int(answer.header("x-pid")) != pid
    wait_until(another, 20, running.log)
