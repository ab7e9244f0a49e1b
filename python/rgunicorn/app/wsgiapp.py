"""The command as a class, to build on, and as a function."""

from __future__ import annotations

import sys
from typing import Any, Callable, NoReturn, Optional

from rgunicorn import _core, util
from rgunicorn.app.base import Application
from rgunicorn.errors import ConfigError

__all__ = ["WSGIApplication", "run"]


class WSGIApplication(Application):
    """Serves MODULE:NAME, `app_uri`, which the command line or `wsgi_app` names."""

    app_uri: Optional[str] = None

    def init(self, parser: Any, opts: Any, args: Any) -> None:
        if args:
            self.app_uri = args[0]
            self.cfg.set("default_proc_name", self.app_uri)

    def load_config(self) -> None:
        super().load_config()
        if self.app_uri is None:
            self.app_uri = self.cfg.wsgi_app
        if self.app_uri is None:
            raise ConfigError("No application module specified (MODULE:APP, or wsgi_app)")

    def load_wsgiapp(self) -> Callable[..., Any]:
        return util.import_app(str(self.app_uri))

    def load(self) -> Callable[..., Any]:
        return self.load_wsgiapp()


def run(prog: Optional[str] = None) -> NoReturn:
    """The command `rgunicorn`, with the words in `sys.argv`."""
    sys.exit(_core.main([prog or "rgunicorn", *sys.argv[1:]]))


if __name__ == "__main__":
    run()
