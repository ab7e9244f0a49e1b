"""Servers of one's own making: a class says what is set and what is served, `run()` serves it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import Any, Callable, Dict, List, NoReturn, Optional

from rgunicorn import _core, config
from rgunicorn.config import Config
from rgunicorn.errors import ConfigError

__all__ = ["Application", "BaseApplication"]


class BaseApplication:
    """Reads no command line and no file: what is set is what `load_config()` sets, over the environment's defaults."""

    def __init__(self, usage: Optional[str] = None, prog: Optional[str] = None) -> None:
        self.usage = usage
        self.prog = prog
        self.cfg: Any = None
        self.callable: Optional[Callable[..., Any]] = None
        self.logger: Any = None
        self.do_load_config()

    def do_load_config(self) -> None:
        """SystemExit: the configuration cannot be used. The one before then stays."""
        before = self.cfg
        try:
            self.load_default_config()
            self.load_config()
        except Exception as error:
            self.cfg = before
            _refuse(error)

    def load_default_config(self) -> None:
        self.cfg = Config(self.usage, prog=self.prog)

    def init(self, parser: argparse.ArgumentParser, opts: argparse.Namespace, args: List[str]) -> Optional[Dict[str, Any]]:
        raise NotImplementedError

    def load_config(self) -> None:
        """Called at the start and on every reload: fills `self.cfg`."""
        raise NotImplementedError

    def load(self) -> Callable[..., Any]:
        """Called in each worker, or once in the mold with `preload_app`: gives the WSGI application."""
        raise NotImplementedError

    def reload(self) -> None:
        """Called on HUP, in the arbiter."""
        self.do_load_config()

    def wsgi(self) -> Callable[..., Any]:
        if self.callable is None:
            self.callable = self.load()
        return self.callable

    def run(self) -> NoReturn:
        """Serves until it is told to stop.

        SystemExit: it has stopped, or could not start; with the exit code. Only the process that called this comes back.
        """
        sys.exit(_core.serve(self))


class Application(BaseApplication):
    """Reads the command line, GUNICORN_CMD_ARGS and the config file too; they win over what `init()` gives."""

    def load_config(self) -> None:
        words = sys.argv[1:]
        parsed = _core.parse_command_line(words)
        if parsed is None:
            sys.exit(_core.main([self.prog or "rgunicorn", *words]))
        given, args = parsed
        opts = argparse.Namespace(**{**dict.fromkeys(self.cfg.settings), **given, "args": args})
        base = self.init(self.cfg.parser(), opts, args) or {}
        base = {name.lower(): value for name, value in base.items()}
        for name, value in base.items():
            self.cfg.set(name, value)
        values, _, warnings = _core.read_command_line(words, self.cfg._given())
        self.cfg._adopt(values, warnings)

    def chdir(self) -> None:
        """Goes to the folder of the settings, and imports from there first."""
        if self.cfg.chdir:
            os.chdir(self.cfg.chdir)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())

    def get_config_from_filename(self, filename: str) -> Dict[str, Any]:
        """The names in a Python file."""
        return _core.run_config_file(filename)

    def get_config_from_module_name(self, module_name: str) -> Dict[str, Any]:
        return _core.run_config_file("python:" + module_name)

    def load_config_from_module_name_or_filename(self, location: str) -> Dict[str, Any]:
        """Takes over the settings in `PATH`, `file:PATH` or `python:MODULE`; gives all names in it."""
        names = _core.run_config_file(location[len("file:") :] if location.startswith("file:") else location)
        for name, value in names.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)
        return names

    def load_config_from_file(self, filename: str) -> Dict[str, Any]:
        return self.load_config_from_module_name_or_filename(filename)


def _refuse(error: Exception) -> NoReturn:
    """One sentence for a setting that is wrong, the traceback for whatever else it is."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_a_setting = bool(frames) and frames[-1].f_code.co_filename == config.__file__
    if isinstance(error, ConfigError) or of_a_setting:
        text = "rgunicorn: %s" % error
    else:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
        text += "\nrgunicorn: the configuration could not be loaded: %s: %s" % (type(error).__name__, error)
    code = getattr(error, "exit_code", 1)
    if code == 1:
        sys.exit(text)
    print(text, file=sys.stderr)
    sys.exit(code)
