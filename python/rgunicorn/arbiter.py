"""The arbiter by gunicorn's name: what runs is the compiled one."""

from __future__ import annotations

import sys
from typing import NoReturn

from rgunicorn import _core
from rgunicorn.app.base import BaseApplication
from rgunicorn.hooks import Server

__all__ = ["Arbiter", "Server"]


class Arbiter:
    """Runs the server of an application object. The `server` that hooks are given is a `Server`."""

    #: Exit codes of a worker that failed to boot, and of one whose application was not found.
    WORKER_BOOT_ERROR = 3
    APP_LOAD_ERROR = 4

    def __init__(self, app: BaseApplication) -> None:
        self.app = app
        self.cfg = app.cfg

    def run(self) -> NoReturn:
        sys.exit(_core.serve(self.app))
