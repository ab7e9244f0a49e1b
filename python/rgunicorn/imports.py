"""What a process imports, told to the server that watches it (`--reload`)."""

from __future__ import annotations

import os
import sys
import time
from importlib.machinery import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any, Callable, Iterable, Optional, Sequence, Set

_LIBRARY = os.path.dirname(os.__file__) + os.sep
_PACKAGES = ("site-packages", "dist-packages")
# Compiled code is known by the second in which its source was written. So long, it could be that of an older source.
_FRESH = 2.0


class FreshLoader(SourceFileLoader):
    """Compiles a source that has just been written, whatever is cached for it, and caches nothing."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class Observer:
    """The first on `sys.meta_path`: has the others find the modules, and tells where they are, or could have been."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._told: Set[str] = set()

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Any = None
    ) -> Optional[ModuleSpec]:
        finders = sys.meta_path
        behind = finders[finders.index(self) + 1 :] if self in finders else []
        for finder in behind:
            find = getattr(finder, "find_spec", None)
            if find is None:
                # One of the old kind, which only the import system itself knows how to ask.
                return None
            spec: Optional[ModuleSpec] = find(name, path, target)
            if spec is not None:
                self._found(spec)
                return spec
        self._missed(name, sys.path if path is None else path)
        return None

    def tell_of_all(self) -> None:
        """Tells of every module there is: some came earlier, or by a way of their own."""
        for name, module in list(sys.modules.items()):
            spec = getattr(module, "__spec__", None)
            origin = getattr(spec, "origin", None) if getattr(spec, "has_location", False) else None
            if origin is None and name != "__main__":
                origin = getattr(module, "__file__", None)
            if isinstance(origin, str):
                self._tell_of(origin)

    def _found(self, spec: ModuleSpec) -> None:
        if spec.has_location and isinstance(spec.origin, str):
            if type(spec.loader) is SourceFileLoader and _is_fresh(spec.origin):
                spec.loader = FreshLoader(spec.loader.name, spec.loader.path)
                _remove(spec.cached)
            self._tell_of(spec.origin)
        elif spec.origin is None:
            # A package without an __init__.py, which may get one.
            for folder in spec.submodule_search_locations or ():
                self._tell_of(os.path.join(folder, "__init__.py"))

    def _missed(self, name: str, folders: Iterable[str]) -> None:
        last = name.rpartition(".")[2]
        for folder in folders:
            if isinstance(folder, str) and os.path.isdir(folder or "."):
                self._tell_of(os.path.join(folder, last))
                self._tell_of(os.path.join(folder, last + ".py"))

    def _tell_of(self, path: str) -> None:
        if path in self._told:
            return
        self._told.add(path)
        if not is_of_python(path) and not path.startswith(_OWN):
            self._tell(os.fsencode(os.path.abspath(path)))


_OWN = os.path.dirname(__file__) + os.sep


def is_of_python(path: str) -> bool:
    """Whether a file belongs to Python itself, which nobody changes."""
    return path.startswith(_LIBRARY) and not path.startswith(_PACKAGES, len(_LIBRARY))


def _is_fresh(path: str) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime < _FRESH
    except OSError:
        return False


def _remove(path: Optional[str]) -> None:
    try:
        os.unlink(path or "")
    except OSError:
        pass  # There was none, or it is not ours.


def observe(tell: Callable[[bytes], None]) -> Observer:
    """From here on `tell` hears of each file that this process, or one that it forks, imports from."""
    observer = Observer(tell)
    # The one of the process that forked this one.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Observer)]
    sys.meta_path.insert(0, observer)  # type: ignore[arg-type]
    observer.tell_of_all()
    return observer


def forget() -> None:
    """Has the modules of the project imported anew by the next one who asks for them; installed ones stay."""
    if not any(isinstance(finder, Observer) for finder in sys.meta_path):
        # Nobody has to be told, but a source that has just been written is to be compiled.
        sys.meta_path.insert(0, Observer(lambda path: None))  # type: ignore[arg-type]
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(path, str) or path.startswith(_OWN):
            continue
        if not is_of_python(path) and not any(os.sep + part + os.sep in path for part in _PACKAGES):
            sys.modules.pop(name, None)
