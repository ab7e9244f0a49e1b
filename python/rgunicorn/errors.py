"""What keeps a server from starting."""

from rgunicorn._core import AppImportError, ConfigError

__all__ = ["AppImportError", "ConfigError", "HaltServer"]


class HaltServer(BaseException):
    """In gunicorn it ends the arbiter's loop; here nothing raises it."""

    def __init__(self, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason, exit_status)
        self.reason = reason
        self.exit_status = exit_status
