"""The socket that `environ["gunicorn.socket"]` becomes when an application speaks on its connection itself."""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Tuple


class Connection(socket.socket):
    """A connection of which the server has read some bytes already: they come first."""

    _unread = b""

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        return self._first(bufsize, flags) or super().recv(bufsize, flags)

    def recvfrom(self, bufsize: int, flags: int = 0) -> Tuple[bytes, Any]:
        first = self._first(bufsize, flags)
        return (first, None) if first else super().recvfrom(bufsize, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return self._first_into(buffer, nbytes, flags) or super().recv_into(buffer, nbytes, flags)

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Tuple[int, Any]:
        first = self._first_into(buffer, nbytes, flags)
        return (first, None) if first else super().recvfrom_into(buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0) -> Any:
        first = self._first(bufsize, flags)
        return (first, [], 0, None) if first else super().recvmsg(bufsize, ancbufsize, flags)

    def _first(self, bufsize: int, flags: int) -> bytes:
        if not self._unread:
            return b""
        first = self._unread[: max(bufsize, 0)]
        if not flags & socket.MSG_PEEK:
            self._unread = self._unread[len(first) :]
        return first

    def _first_into(self, buffer: Any, nbytes: int, flags: int) -> int:
        if not self._unread:
            return 0
        with memoryview(buffer) as view, view.cast("B") as octets:
            first = self._first(min(nbytes or len(octets), len(octets)), flags)
            octets[: len(first)] = first
        return len(first)


def taken_over(number: int, unread: bytes) -> Connection:
    """Owns the descriptor."""
    made = Connection(fileno=number)
    made._unread = unread
    return made


def ask(number: int, name: str, arguments: Tuple[Any, ...]) -> Any:
    """Owns the descriptor."""
    with socket.socket(fileno=number) as asked:
        return getattr(asked, name)(*arguments)
