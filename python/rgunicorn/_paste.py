"""What the server asks of PasteDeploy: the settings in an ini file, and the application that it describes."""

from __future__ import annotations

import configparser
import os
from typing import Any, Callable, Dict, Optional, Tuple

#: The section that has settings for the server, and what it says if it is meant for this one.
SECTION = "server:main"
OURS = ("egg:rgunicorn", "egg:rgunicorn#main", "egg:gunicorn", "egg:gunicorn#main")


class PasteError(Exception):
    """The file does not lead to an application; the text is the end of a sentence."""


def has_logging_config(config_file: str) -> bool:
    """Whether the file describes loggers too."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read([config_file])
    return parser.has_section("loggers")


def settings_of(conf: Dict[str, Any]) -> Tuple[Optional[str], Dict[str, Any]]:
    """The config file that a section names, and its settings: `host` and `port` are `bind`."""
    config = conf.pop("config", None)
    host, port = conf.pop("host", ""), conf.pop("port", "")
    if host and port:
        conf["bind"] = "%s:%s" % (host, port)
    elif host:
        conf["bind"] = [address.strip() for address in host.split(",")]
    return config, {name.lower(): value for name, value in conf.items() if value is not None}


def server_settings(path: str, variables: Dict[str, str]) -> Dict[str, Any]:
    """What the file says of the server: its section, if that is meant for this server, and its loggers.

    PasteError: the file cannot be read.
    """
    parser = _parse(path, variables)
    settings: Dict[str, Any] = {}
    try:
        if parser.has_section(SECTION) and parser.get(SECTION, "use", fallback="").strip() in OURS:
            config, settings = settings_of(_section(parser))
            # Settled by the command line before this file is read.
            settings.update({"config": config} if config else {})
    except configparser.Error as error:
        raise PasteError("has a [%s] that cannot be read: %s" % (SECTION, _one_line(error))) from error
    if parser.has_section("loggers"):
        settings.setdefault("logconfig", path)
    return settings


def _parse(path: str, variables: Dict[str, str]) -> configparser.ConfigParser:
    """As PasteDeploy parses: names keep their case, later values win, and values are inserted into others."""
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise PasteError("is not a file that can be read: %s" % error.strerror) from error
    except (configparser.Error, UnicodeDecodeError) as error:
        raise PasteError("is not an ini file: %s" % _one_line(error)) from error
    given = {**variables, "here": os.path.dirname(path), "__file__": path}
    defaults = parser[parser.default_section]
    for name, value in given.items():
        if name not in defaults:
            # A bare `%` would be taken for the beginning of a name.
            defaults[name] = value.replace("%", "%%")
    return parser


def _section(parser: configparser.ConfigParser) -> Dict[str, Any]:
    """Its own entries: those of [DEFAULT] are the application's, unless `get NAME = DEFAULT_NAME` asks for one."""
    defaults = parser.defaults()
    settings: Dict[str, Any] = {}
    for name in parser.options(SECTION):
        if name in defaults or name == "use" or name.startswith("set "):
            continue
        value = parser.get(SECTION, name)
        if name.startswith("get "):
            name, value = name[4:].strip(), parser.get(parser.default_section, value.strip())
        settings[name] = value
    return settings


def get_wsgi_app(path: str, name: Optional[str], variables: Dict[str, str]) -> Callable[..., Any]:
    """Makes the application: of the section `name`, else of the one that the file calls its main one.

    PasteError: PasteDeploy is not installed, or the file has no such section. What the application raises is raised.
    """
    try:
        from paste.deploy import loadwsgi
    except ModuleNotFoundError as error:
        if error.name not in ("paste", "paste.deploy"):
            raise
        raise PasteError("cannot be served: PasteDeploy is not installed (pip install PasteDeploy)") from error
    try:
        app: Callable[..., Any] = loadwsgi.loadapp("config:" + path, name=name, global_conf=dict(variables))
    except LookupError as error:
        if not _raised_in(error, loadwsgi.__name__):
            raise
        raise PasteError("does not describe the application: %s" % _one_line(error)) from error
    return app


def _raised_in(error: BaseException, module: str) -> bool:
    """Whether it is this module's own, and not the application's."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == module


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())
