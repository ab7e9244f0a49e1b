"""The command `rgunicorn`, and `python -m rgunicorn`."""

import sys

from rgunicorn._core import main


def run() -> None:
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
