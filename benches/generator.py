"""The open-loop generator (openloop/) as a child process, and what it reports."""

import json
import select
import subprocess
from dataclasses import dataclass

from load import children_cpu
from server import Failure

# Beyond the load itself: warm-up, and the answers that are still out.
LIMIT_SECONDS = 120


@dataclass(frozen=True)
class Class:
    """A kind of request and its share of all."""

    name: str
    weight: float
    path: str

    def option(self):
        return f"--class={self.name}={self.weight}:{self.path}"


class Generator:
    """`options` as `openloop --help` has them: pin=True is --pin, rate=200 is --rate=200, None and False are left out."""

    def __init__(self, env, port, classes, cpus=None, **options):
        command = ["taskset", "-c", ",".join(map(str, sorted(cpus)))] if cpus else []
        command += [env.openloop, f"--port={port}", *[kind.option() for kind in classes]]
        command += [option(name, value) for name, value in options.items() if value not in (None, False)]
        self.limit = options.get("seconds", 0) + LIMIT_SECONDS
        self.words = env.scratch / "openloop.log"
        self.before = children_cpu()
        with open(self.words, "wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait_for(self, word):
        line = self.line(self.limit)
        if line != word:
            raise self.failure(f"{line or 'nothing'} instead of {word}")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def line(self, seconds):
        """The next line, empty at the end, or None when there was none in that time."""
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        return self.process.stdout.readline().rstrip("\n")

    def result(self):
        """To its end; figures of `openloop`, with the CPU seconds it took as `cpu`."""
        line = self.line(self.limit)
        if not line:
            raise self.failure("no result" if line == "" else f"no result in {self.limit:.0f} s")
        self.process.wait(LIMIT_SECONDS)
        return dict(json.loads(line), cpu=children_cpu() - self.before)

    def failure(self, what):
        return Failure(f"the client: {what}; {self.words.read_text().strip()}")


def option(name, value):
    name = name.replace("_", "-")
    return f"--{name}" if value is True else f"--{name}={value}"


def errors(result):
    """Requests that were not answered as they should be."""
    return sum(result[kind] for kind in ("failed", "reset", "cut", "refused", "unanswered"))
