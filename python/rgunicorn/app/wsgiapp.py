"""The command as a class, to build on, and as a function."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, NoReturn, Optional

from rgunicorn import _core, util
from rgunicorn.app.base import Application
from rgunicorn.errors import ConfigError

__all__ = ["WSGIApplication", "run"]


class WSGIApplication(Application):
    """Serves `app_uri`: MODULE:NAME, which the command line or `wsgi_app` names, or the ini file of `--paste`."""

    app_uri: Optional[str] = None
    _is_paste = False

    def init(self, parser: Any, opts: Any, args: Any) -> None:
        if opts.paste:
            self._serve_file(opts.paste)
            self.cfg.set("default_proc_name", os.path.abspath(opts.paste.partition("#")[0]))
        elif args:
            self.app_uri = args[0]
            self.cfg.set("default_proc_name", self.app_uri)

    def load_config(self) -> None:
        super().load_config()
        if self.app_uri is None and self.cfg.paste:
            self._serve_file(self.cfg.paste)
        if self.app_uri is None:
            self.app_uri = self.cfg.wsgi_app
        if self.app_uri is None:
            raise ConfigError("No application module specified (MODULE:APP, wsgi_app or --paste)")

    def _serve_file(self, location: str) -> None:
        self.app_uri = os.path.abspath(location)
        self._is_paste = True

    def load_wsgiapp(self) -> Callable[..., Any]:
        return util.import_app(str(self.app_uri))

    def load_pasteapp(self) -> Callable[..., Any]:
        from rgunicorn.app.pasterapp import get_wsgi_app

        return get_wsgi_app(str(self.app_uri), defaults=self.cfg.paste_global_conf)

    def load(self) -> Callable[..., Any]:
        return self.load_pasteapp() if self._is_paste else self.load_wsgiapp()


def run(prog: Optional[str] = None) -> NoReturn:
    """The command `rgunicorn`, with the words in `sys.argv`."""
    sys.exit(_core.main([prog or "rgunicorn", *sys.argv[1:]]))


if __name__ == "__main__":
    run()
