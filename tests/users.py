"""Servers that run workers as somebody else; for tests that root runs."""
import os
import pwd
import shutil
import tempfile

import pytest

# For an interpreter in a folder that only root can enter: what a worker imports later is there before the change.
IMPORTS = "import ast, atexit, faulthandler, gc, importlib, io, json, os, signal, sys, tempfile, threading, traceback\n"


def nobody():
    """The entry of a user that can do nothing."""
    if os.geteuid():
        pytest.skip("only root may become somebody else")
    return pwd.getpwnam("nobody")


@pytest.fixture
def commons():
    """A folder that everybody can read; pytest's own are root's."""
    folder = tempfile.mkdtemp(prefix="rgunicorn-")
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)
