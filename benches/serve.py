"""Starts the peers that have no command line of their own, or none for the options a fair run needs.

python serve.py bjoern|fastpysgi MODULE:CALLABLE PORT
"""

import importlib
import os
import socket
import sys


def load(name):
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), attribute)


def serve_bjoern(app, port):
    import bjoern

    # bjoern has no option for it, but an accepted socket inherits it from the listener.
    listener = bjoern.listen(app, "127.0.0.1", port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bjoern.run()


def serve_fastpysgi(app, port):
    import fastpysgi

    fastpysgi.server.tcp_nodelay = 1
    fastpysgi.server.max_content_length = 1 << 30
    fastpysgi.run(app, "127.0.0.1", port)


if __name__ == "__main__":
    kind, name, port = sys.argv[1:]
    {"bjoern": serve_bjoern, "fastpysgi": serve_fastpysgi}[kind](load(name), int(port))
