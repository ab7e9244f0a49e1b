from typing import Any, Callable, Optional

from rgunicorn.app.base import BaseApplication

__version__: str

class ConfigError(Exception):
    """The configuration cannot be used. `exit_code` is what the command ends with, where the server itself raised it."""

    exit_code: int

class AppImportError(Exception):
    """The application is not where it was said to be."""


def main(argv: list[str]) -> int:
    """Runs the command line, `argv[0]` being the program's name, and gives its exit code."""

def serve(app: BaseApplication) -> int:
    """Runs the server of an application object and gives its exit code; in the processes that it forks it does not return."""

def settings() -> list[dict[str, Any]]:
    """The table of options in the order of `--help`: for each its name, flags, env, kind, allowed, bounds, default (as it is
    written), value (that, or what the environment says), reloadable, section, help, meta and action (for argparse) and, where
    it is accepted without effect, why (ignored)."""

def check_setting(name: str, value: Any) -> Any:
    """The value as the setting takes it.

    AttributeError: there is no such setting. ValueError: it does not take this.
    """

def parse_command_line(words: list[str]) -> Optional[tuple[dict[str, Any], list[str]]]:
    """The options given by name, and the other words; None where they ask for help or for the version.

    ConfigError: the words cannot be understood.
    """

def read_command_line(words: list[str], base: dict[str, Any]) -> tuple[dict[str, Any], Optional[str], list[str]]:
    """What all sources say of every setting, the application they name, and warnings; `base` goes before the config file.

    ConfigError: one of them cannot be used.
    """

def run_config_file(location: str) -> dict[str, Any]:
    """Runs a Python config file, or imports `python:MODULE`, and gives the names in it.

    ConfigError: it cannot be read, or it raised.
    """

def parse_address(text: str) -> Any:
    """An address of `bind`: (host, port), a path, or the number of a descriptor. ValueError: it is none."""

def import_app(spec: str) -> Callable[..., Any]:
    """The application that MODULE:NAME names. AppImportError: there is none."""
