"""The command `rgunicornc`: shows and steers a running server over its control socket (docs/control.md).

The protocol is gunicorn's: a length of four octets, big-endian, then JSON; `{"id", "command", "args"}` is answered by
`{"id", "status": "ok", "data"}` or `{"id", "status": "error", "error"}`.
"""

import argparse
import json
import os
import socket
import struct
import sys
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence

PROMPT = "rgunicorn> "
HISTORY = "~/.rgunicornc_history"
# Seconds; the arbiter answers at once unless it runs a hook.
PATIENCE = 30.0
# Octets of an answer, as in gunicorn.
MOST_OCTETS = 16 * 1024 * 1024


class Refused(Exception):
    """The server has answered that it will not do it."""


class Unreachable(Exception):
    """There is no server to talk to, or it talks of something else."""


class Client:
    """A connection to the control socket at `path`; `Unreachable` is raised where there is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.requests = 0
        self.socket: Optional[socket.socket] = None

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def ask(self, command: str) -> Any:
        """What the server answers.

        Raises `Refused`, or `Unreachable` after which the next question is asked on a new connection.
        """
        try:
            answer = self.exchange(command)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise Unreachable("%s: %s" % (self.path, getattr(error, "strerror", None) or error)) from error
        except BaseException:
            # An answer that is still under way is not that to the next question.
            self.close()
            raise
        if not isinstance(answer, dict) or answer.get("status") != "ok":
            error = answer.get("error") if isinstance(answer, dict) else None
            raise Refused(error or "the server does not say why")
        return answer.get("data")

    def connect(self) -> socket.socket:
        if self.socket is None:
            self.socket = socket.socket(socket.AF_UNIX)
            connect(self.socket, self.path)
            # Not before: it would not wait for a place in the queue.
            self.socket.settimeout(PATIENCE)
        return self.socket

    def exchange(self, command: str) -> Any:
        connection = self.connect()
        self.requests += 1
        request = json.dumps({"id": self.requests, "command": command, "args": []}).encode()
        try:
            connection.sendall(struct.pack(">I", len(request)) + request)
        except BrokenPipeError:
            # Whoever is turned away may be told why.
            pass
        (length,) = struct.unpack(">I", self.read(4))
        if length > MOST_OCTETS:
            raise ValueError("an answer of %d octets" % length)
        return json.loads(self.read(length).decode())

    def read(self, length: int) -> bytes:
        parts: List[bytes] = []
        while length > 0:
            part = self.connect().recv(min(length, 65536))
            if not part:
                raise EOFError("the server has closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def connect(client: socket.socket, path: str) -> None:
    """Connects by the name in the folder: a path of any length will do, where sun_path (unix(7)) has 108 octets."""
    folder, name = os.path.split(path)
    opened = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect("/proc/self/fd/%d/%s" % (opened, name))
    finally:
        os.close(opened)


# --- for people ---


def printable(value: object) -> str:
    """A request's target is a client's text: it must not speak to the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [list(heads)] + [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def duration(seconds: float) -> str:
    if seconds < 60:
        return "%.1fs" % seconds
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join("%d%s" % part for part in parts)


def running(worker: Dict[str, Any]) -> str:
    """The oldest request of a worker, and how many more there are."""
    requests = worker.get("running") or []
    if not requests:
        return "-"
    oldest, more = requests[0], worker.get("busy_threads", 1) - 1
    text = "%s %s %s" % (oldest["method"], oldest["path"], duration(oldest["seconds"]))
    return text + (", and %d more" % more if more > 0 else "")


def workers_table(workers: List[Dict[str, Any]]) -> str:
    heads = ("PID", "AGE", "GENERATION", "STATE", "UPTIME", "REQUESTS", "BUSY", "RUNNING")
    names = ("pid", "age", "generation", "state")
    rows = [
        [worker.get(name, "?") for name in names]
        + [duration(worker.get("uptime", 0)), worker.get("requests", "?"), worker.get("busy_threads", "?"), running(worker)]
        for worker in workers
    ]
    return table(heads, rows)


def show_workers(data: Dict[str, Any]) -> str:
    return "%s\n\n%d worker(s)" % (workers_table(data["workers"]), data["count"])


def show_all(data: Dict[str, Any]) -> str:
    workers = workers_table(data["web_workers"])
    return "arbiter  %s\n\n%s\n\n%d worker(s)" % (data["arbiter"]["pid"], workers, data["web_worker_count"])


def show_listeners(data: Dict[str, Any]) -> str:
    return table(("ADDRESS", "TYPE", "FD"), [(one["address"], one["type"], one["fd"]) for one in data["listeners"]])


def pairs(data: Dict[str, Any]) -> str:
    """A line for each, names first."""
    width = max(map(len, data), default=0)

    def text(name: str, value: object) -> str:
        if name == "uptime" and isinstance(value, (int, float)):
            return duration(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return "\n".join("%s  %s" % (name.ljust(width), printable(text(name, value))) for name, value in sorted(data.items()))


def show_help(data: Dict[str, Any]) -> str:
    return table(("COMMAND", ""), sorted(data["commands"].items()))


FORMATS: Dict[str, Callable[[Dict[str, Any]], str]] = {
    "show all": show_all,
    "show workers": show_workers,
    "show config": pairs,
    "show stats": pairs,
    "show listeners": show_listeners,
    "help": show_help,
}


def rendered(command: str, data: Any, as_json: bool) -> str:
    if as_json:
        return json.dumps(data, indent=2)
    known = FORMATS.get(" ".join(command.split()))
    if known is not None:
        return known(data)
    return pairs(data) if isinstance(data, dict) and data else "ok"


# --- the command ---


def say_error(error: object) -> None:
    print("rgunicornc: %s" % printable(error), file=sys.stderr)


def run_one(client: Client, command: str, as_json: bool) -> int:
    try:
        print(rendered(command, client.ask(command), as_json), flush=True)
    except (Refused, Unreachable) as error:
        say_error(error)
        return 1
    return 0


def converse(client: Client, as_json: bool) -> int:
    """Commands line by line until the input ends or says so; 1 when the server cannot be reached."""
    try:
        client.ask("help")
    except (Refused, Unreachable) as error:
        say_error(error)
        return 1
    if sys.stdin.isatty():
        print("Connected to %s; help lists the commands, quit ends." % client.path)
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return 0
        if line in ("quit", "exit", "q"):
            return 0
        if line:
            run_one(client, line, as_json)


def with_history(talk: Callable[[], int]) -> int:
    if not sys.stdin.isatty():
        return talk()
    try:
        import readline
    except ImportError:
        return talk()
    path = os.path.expanduser(HISTORY)
    try:
        readline.read_history_file(path)
    except OSError:
        pass  # There is none yet.
    try:
        return talk()
    finally:
        try:
            readline.write_history_file(path)
        except OSError as error:
            say_error("%s: %s" % (path, error))


def parser() -> argparse.ArgumentParser:
    from rgunicorn import __version__

    made = argparse.ArgumentParser(prog="rgunicornc", description="Shows and steers a running rgunicorn.")
    made.add_argument("-s", "--socket", required=True, metavar="PATH", help="the server's --control-socket")
    made.add_argument("-c", "--command", help="run this command and end; without it, commands are read line by line")
    made.add_argument("-j", "--json", action="store_true", help="print answers as JSON")
    made.add_argument("-v", "--version", action="version", version="rgunicornc (rgunicorn %s)" % __version__)
    return made


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The exit code: 0, 1 when a command failed or nobody answers, 130 when interrupted."""
    options = parser().parse_args(arguments)
    client = Client(options.socket)
    try:
        if options.command is not None:
            return run_one(client, options.command, options.json)
        return with_history(lambda: converse(client, options.json))
    except KeyboardInterrupt:
        print()
        return 130
    finally:
        client.close()


def run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    run()
