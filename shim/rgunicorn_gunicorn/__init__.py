"""The command `gunicorn`, and where the package `gunicorn` is. Neither takes the place of a gunicorn that is installed."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from typing import NoReturn, Optional

#: The gunicorn whose behaviour is followed; tools that import it ask for its version.
GUNICORN_VERSION = "27.0.1"

#: The folder that holds the package `gunicorn`: last in sys.path, so that any other one is found before.
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "path")


def real_gunicorn() -> Optional[str]:
    """Where a gunicorn is that is not this one, if there is one to import."""
    ours = os.path.realpath(FOLDER)
    elsewhere = [folder for folder in sys.path if os.path.realpath(folder or os.curdir) != ours]
    spec = PathFinder.find_spec("gunicorn", elsewhere)
    # A folder without an __init__.py is somebody's data.
    return spec.origin if spec else None


def refusal(place: str) -> str:
    return (
        "rgunicorn-gunicorn does not take the place of the gunicorn that is installed (%s). To have rgunicorn by its name: "
        "pip uninstall gunicorn, then pip install --force-reinstall --no-deps rgunicorn-gunicorn. To have gunicorn back: "
        "pip uninstall rgunicorn-gunicorn, then pip install --force-reinstall --no-deps gunicorn" % place
    )


def run() -> NoReturn:
    """The command `gunicorn`."""
    place = real_gunicorn()
    if place:
        sys.exit("gunicorn: " + refusal(place))
    if FOLDER not in sys.path:
        # Installed where .pth files are not read, by `pip install --target` for one.
        sys.path.append(FOLDER)
    from rgunicorn._core import main

    if sys.argv[1:] in (["-v"], ["--version"]):
        # For those who take it apart.
        print("gunicorn (version %s)" % GUNICORN_VERSION, end=", as ", flush=True)
    sys.exit(main(["gunicorn", *sys.argv[1:]]))
