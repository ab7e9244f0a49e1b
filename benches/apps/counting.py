"""Hello world beside a thread that counts from the import on: how fast it counts is how much the server lets it run.

BENCH_COUNT names a folder. A process counts in a file there with its process id for a name, 8 octets in the machine's order.
"""

import mmap
import os
import threading
from pathlib import Path

from hello import application  # noqa: F401


def count():
    path = Path(os.environ["BENCH_COUNT"]) / str(os.getpid())
    path.write_bytes(bytes(8))
    with open(path, "r+b") as file:
        number = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    while True:
        number[0] += 1


threading.Thread(target=count, daemon=True).start()
