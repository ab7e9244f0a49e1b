"""Finds the line of a configuration file that a wrong setting is in. Read only when there is one."""

from __future__ import annotations

import ast
from typing import Iterator, Optional


def line_of(source: bytes, name: str) -> Optional[int]:
    """The line, from 1, in which a module's code last gives `name` a value; None where nothing in it does by name.

    Raises SyntaxError when the source is not Python.
    """
    lines = [line for bound, line in _bindings(ast.parse(source)) if bound == name]
    return max(lines) if lines else None


def _bindings(node: ast.AST) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name, child.lineno
            continue
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id, child.lineno
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for alias in child.names:
                yield (alias.asname or alias.name).partition(".")[0], child.lineno
        yield from _bindings(child)
