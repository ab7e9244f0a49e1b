"""PasteDeploy: a server that an ini file describes, `use = egg:rgunicorn#main` (`pserve file.ini`)."""

from __future__ import annotations

import configparser
import os
from typing import Any, Callable, Dict, NoReturn, Optional, Tuple

from rgunicorn.app.wsgiapp import WSGIApplication

__all__ = ["has_logging_config", "serve"]

#: Where a config file is looked for when none is named.
USUAL_FILE = "gunicorn.conf.py"


def has_logging_config(config_file: str) -> bool:
    """Whether the file describes loggers too."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([config_file])
    return parser.has_section("loggers")


def _settings(conf: Dict[str, Any]) -> Tuple[Optional[str], Dict[str, Any]]:
    """The config file that a section names, and its settings: `host` and `port` are `bind`."""
    config = conf.pop("config", None)
    host, port = conf.pop("host", ""), conf.pop("port", "")
    if host and port:
        conf["bind"] = "%s:%s" % (host, port)
    elif host:
        conf["bind"] = [address.strip() for address in host.split(",")]
    return config, {name.lower(): value for name, value in conf.items() if value is not None}


def serve(app: Callable[..., Any], global_conf: Dict[str, str], **local_conf: Any) -> NoReturn:
    """`use = egg:rgunicorn#main` in a [server:...] section, as `pserve` calls it."""
    file = global_conf["__file__"]
    config, settings = _settings(local_conf)

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
