from typing import Any

__version__: str

def settings() -> list[dict[str, Any]]:
    """The table of options in the order of `--help`: for each its name, flags, env, kind, allowed, bounds, default, reloadable,
    section, help and, where it is accepted without effect, why (ignored)."""

def main(argv: list[str]) -> int:
    """Runs the command line, `argv[0]` being the program's name, and gives its exit code."""
