"""A collector of lines or metrics on a real socket, which remembers what it was sent."""
import os
import socket
import threading

from harness import wait_until


class Collector:
    """`kind` is udp, tcp, unix-dgram or unix-stream; `path` where the last two listen, `port` where a lost one comes back."""

    def __init__(self, kind, path=None, port=0):
        self.kind, self.path = kind, path
        self.stream = kind in ("tcp", "unix-stream")
        family = socket.AF_UNIX if path else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM if self.stream else socket.SOCK_DGRAM)
        if path:
            if os.path.exists(path):
                os.unlink(path)
            self.socket.bind(path)
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(("127.0.0.1", port))
            self.port = self.socket.getsockname()[1]
        self.messages = []
        self.connections = []
        if self.stream:
            self.socket.listen(16)
        self.start(self.accept if self.stream else self.receive)

    def start(self, target, *arguments):
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.socket.accept()[0]
            except OSError:
                return
            self.connections.append(connection)
            self.start(self.read, connection)

    def read(self, connection):
        rest = b""
        while True:
            try:
                octets = connection.recv(65536)
            except OSError:
                return
            if not octets:
                return
            *lines, rest = (rest + octets).split(b"\n")
            self.messages += [line.decode() for line in lines]

    def receive(self):
        while True:
            try:
                octets = self.socket.recv(65536)
            except OSError:
                return
            if not octets:
                return
            self.messages.append(octets.decode())

    @property
    def url(self):
        return {
            "udp": lambda: "udp://127.0.0.1:%d" % self.port,
            "tcp": lambda: "tcp://127.0.0.1:%d" % self.port,
            "unix-dgram": lambda: "unix://%s#dgram" % self.path,
            "unix-stream": lambda: "unix://%s#stream" % self.path,
        }[self.kind]()

    def wait(self, predicate, timeout=20):
        """The first message for which `predicate` is true."""
        def found():
            return next((message for message in list(self.messages) if predicate(message)), None)
        return wait_until(found, timeout, lambda: "a message among %r" % self.messages)

    def close(self):
        for one in [self.socket] + self.connections:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
