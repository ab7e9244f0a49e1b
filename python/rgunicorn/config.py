"""The settings as objects. Which there are and what they take is decided by the server's own table of options."""

from __future__ import annotations

import argparse
import inspect
from typing import Any, Callable, Dict, List, Optional, Sequence, Type

from rgunicorn import _core, hooks

__all__ = ["Config", "KNOWN_SETTINGS", "Setting", "make_settings"]

#: The class of every setting, in the order of the help.
KNOWN_SETTINGS: List[Type[Setting]] = []


class Setting:
    """One setting with its value. A subclass with a name that the server does not know is a setting of one's own."""

    name: str = ""
    section: str = ""
    #: Its flags, `-w` and `--workers`; empty: it has none.
    cli: Sequence[str] = ()
    meta: Optional[str] = None
    #: argparse's: "store", "append", "store_true" or "store_false".
    action: str = "store"
    default: Any = None
    desc: str = ""
    short: str = ""
    order: int = 0
    #: Of a setting of one's own: gives the value to keep, or raises.
    validator: Optional[Callable[[Any], Any]] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.order = len(KNOWN_SETTINGS)
        cls.short = cls.short or cls.desc.partition(".")[0]
        rule = vars(cls).get("validator")
        if inspect.isfunction(rule):
            # Not a method: it is called with the value alone.
            cls.validator = staticmethod(rule)
        KNOWN_SETTINGS.append(cls)

    def __init__(self) -> None:
        self.value = self.default

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        """ValueError: the setting does not take this value."""
        if self.name in _KNOWN:
            self.value = _core.check_setting(self.name, value)
        else:
            self.value = self.validator(value) if self.validator else value

    def copy(self) -> Setting:
        other = type(self)()
        other.value = self.value
        return other

    def add_option(self, parser: argparse.ArgumentParser) -> None:
        if not self.cli:
            return
        options: Dict[str, Any] = {"dest": self.name, "action": self.action, "default": None}
        options["help"] = self.desc.replace("%", "%%")
        if self.action in ("store", "append"):
            options["metavar"] = self.meta
        parser.add_argument(*self.cli, **options)

    def __lt__(self, other: Setting) -> bool:
        return (self.section, self.order) < (other.section, other.order)

    def __repr__(self) -> str:
        return "<%s.%s %s = %r>" % (type(self).__module__, type(self).__name__, self.name, self.value)


def _make_classes() -> frozenset[str]:
    rows = _core.settings()
    for row in rows:
        facts = {name: row[name] for name in ("name", "section", "meta", "action")}
        facts.update(cli=row["flags"], default=row["value"], desc=row["help"])
        name = "".join(part.capitalize() for part in row["name"].split("_"))
        type(name, (Setting,), {**facts, "__module__": __name__, "__doc__": row["help"]})
    return frozenset(row["name"] for row in rows)


_KNOWN = _make_classes()


def make_settings(ignore: Optional[Sequence[str]] = None) -> Dict[str, Setting]:
    """Every setting by its name, at its default."""
    return {cls.name: cls() for cls in KNOWN_SETTINGS if cls.name not in (ignore or ())}


class Config(hooks.Config):
    """What a custom application's `load_config()` fills by `set(name, value)`."""

    def __init__(self, usage: Optional[str] = None, prog: Optional[str] = None) -> None:
        super().__init__({"settings": make_settings(), "usage": usage, "prog": prog, "env_orig": {}})
        self._set: Dict[str, None] = {}
        self._warnings: List[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("settings", {}):
            raise AttributeError("No configuration setting for: %s" % name)
        return self.settings[name].get()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("settings", {}):
            raise AttributeError("Settings are changed by set(%r, value)" % name)
        super().__setattr__(name, value)

    def set(self, name: str, value: Any) -> None:
        """AttributeError: there is no such setting. ValueError: it does not take this value."""
        if name not in self.settings:
            # It knows what may have been meant.
            _core.check_setting(name, value)
        self.settings[name].set(value)
        self._set[name] = None

    def _given(self) -> Dict[str, Any]:
        """What has been set of the server's settings; it asks for this when it starts."""
        return {name: self.settings[name].get() for name in self._set if name in _KNOWN}

    def _adopt(self, values: Dict[str, Any], warnings: List[str]) -> None:
        for name, value in values.items():
            self.settings[name].value = value
            self._set[name] = None
        self._warnings += warnings

    def parser(self) -> argparse.ArgumentParser:
        """The command line in argparse's terms. The server itself reads it by its own."""
        parser = argparse.ArgumentParser(prog=self.prog, usage=self.usage)
        parser.add_argument("-v", "--version", action="version", version="%(prog)s (version " + _core.__version__ + ")")
        parser.add_argument("args", nargs="*", help=argparse.SUPPRESS)
        for setting in sorted(self.settings.values()):
            setting.add_option(parser)
        return parser

    @property
    def address(self) -> List[Any]:
        return [_core.parse_address(text) for text in self.settings["bind"].get()]

    @property
    def proc_name(self) -> str:
        return self.settings["proc_name"].get() or self.settings["default_proc_name"].get() or "rgunicorn"

    @property
    def worker_class(self) -> Type[Any]:
        from rgunicorn import util

        return util.load_class(self.settings["worker_class"].get())

    @property
    def worker_class_str(self) -> str:
        named = self.settings["worker_class"].get()
        return named if isinstance(named, str) else "%s.%s" % (named.__module__, named.__qualname__)

    def __str__(self) -> str:
        width = max(map(len, self.settings))
        return "\n".join("%-*s = %s" % (width, name, self.settings[name].value) for name in sorted(self.settings))


# Rules for settings of one's own; those of the server have theirs in its table.


def validate_bool(value: Any) -> Optional[bool]:
    if value is None or isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else ""
    if text not in ("true", "false"):
        raise ValueError("%r is neither true nor false" % (value,))
    return text == "true"


def validate_pos_int(value: Any) -> int:
    number = int(value, 0) if isinstance(value, str) else int(value)
    if number < 0:
        raise ValueError("%r is not a whole number of 0 or more" % (value,))
    return number


def validate_string(value: Any) -> Optional[str]:
    if value is not None and not isinstance(value, str):
        raise TypeError("%r is not a text" % (value,))
    return None if value is None else value.strip()


def validate_list_string(value: Any) -> List[str]:
    items = [value] if isinstance(value, str) else value or []
    return [str(validate_string(item)) for item in items]


def validate_dict(value: Any) -> Dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError("%r is not a dictionary" % (value,))
    return value


def validate_callable(arity: int) -> Callable[[Any], Callable[..., Any]]:
    """The rule for a function of that many arguments, or where it is: `module.name`. Any number of them by -1."""

    def validate(value: Any) -> Callable[..., Any]:
        from rgunicorn import util

        function = util.load_class(value) if isinstance(value, str) else value
        if not callable(function):
            raise TypeError("%r is not a function" % (value,))
        if arity not in (-1, hooks.arity(function)):
            raise TypeError("%r has to take %d arguments" % (value, arity))
        return function

    return validate
