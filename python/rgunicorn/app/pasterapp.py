"""PasteDeploy: a server that an ini file describes, `use = egg:rgunicorn#main` (`pserve file.ini`)."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, NoReturn, Optional

from rgunicorn import _paste
from rgunicorn._paste import has_logging_config
from rgunicorn.app.wsgiapp import WSGIApplication
from rgunicorn.errors import AppImportError

__all__ = ["get_wsgi_app", "has_logging_config", "serve"]

#: Where a config file is looked for when none is named.
USUAL_FILE = "gunicorn.conf.py"


def get_wsgi_app(
    config_uri: str, name: Optional[str] = None, defaults: Optional[Dict[str, str]] = None
) -> Callable[..., Any]:
    """The application that FILE or FILE#NAME describes.

    AppImportError: the file describes none by that name, or PasteDeploy is not installed.
    """
    file, _, section = config_uri.partition("#")
    try:
        return _paste.get_wsgi_app(os.path.abspath(file), name or section or None, defaults or {})
    except _paste.PasteError as error:
        raise AppImportError("--paste: '%s' %s" % (config_uri, error)) from error


def serve(app: Callable[..., Any], global_conf: Dict[str, str], **local_conf: Any) -> NoReturn:
    """`use = egg:rgunicorn#main` in a [server:...] section, as `pserve` calls it."""
    file = global_conf["__file__"]
    config, settings = _paste.settings_of(local_conf)

    class PasterServerApplication(WSGIApplication):
        """The section's settings, over those of the config file; no command line, which is pserve's."""

        def load_config(self) -> None:
            self.cfg.set("default_proc_name", file)
            if has_logging_config(file):
                self.cfg.set("logconfig", file)
            if config or os.path.exists(USUAL_FILE):
                self.load_config_from_file(config or USUAL_FILE)
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self) -> Callable[..., Any]:
            return app

    PasterServerApplication().run()
