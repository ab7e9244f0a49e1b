"""gunicorn's names, which are rgunicorn's: `gunicorn.X` is the module `rgunicorn.X`, the same object."""

import importlib
import importlib.machinery
import sys
import types

import rgunicorn
from rgunicorn_gunicorn import GUNICORN_VERSION, real_gunicorn, refusal

__version__ = GUNICORN_VERSION
version_info = tuple(int(part) for part in __version__.split("."))

if real_gunicorn():
    raise ImportError(refusal(real_gunicorn()), name=__name__)


class _Package(types.ModuleType):
    """What is set on it is set on rgunicorn: that is where SERVER is looked for."""

    def __getattr__(self, name):
        return getattr(rgunicorn, name)

    def __setattr__(self, name, value):
        if name in ("SERVER", "SERVER_SOFTWARE"):
            setattr(rgunicorn, name, value)
        else:
            super().__setattr__(name, value)


class _Alias:
    """Finds and loads `gunicorn.X` as `rgunicorn.X`."""

    def find_spec(self, name, path=None, target=None):
        package, _, rest = name.partition(".")
        if package != __name__ or not rest or rest == "__main__":
            return None
        try:
            ours = importlib.import_module("rgunicorn." + rest)
        except ModuleNotFoundError as missing:
            if missing.name != "rgunicorn." + rest:
                raise
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=hasattr(ours, "__path__"))

    def create_module(self, spec):
        ours = importlib.import_module("rgunicorn" + spec.name[len(__name__) :])
        spec.loader_state = ours.__spec__
        return ours

    def exec_module(self, module):
        # It has been executed; only its spec has been taken for ours.
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name):
        """For `python -m gunicorn.app.wsgiapp`."""
        ours = "rgunicorn" + name[len(__name__) :]
        return importlib.import_module(ours).__spec__.loader.get_code(ours)


sys.meta_path.insert(0, _Alias())
sys.modules[__name__].__class__ = _Package
