"""Starts the peers that have no command line of their own, or none for the options a fair run needs.

python serve.py bjoern|fastpysgi|freastal MODULE:CALLABLE PORT|SOCKET [PROCESSES]
"""

import importlib
import os
import signal
import socket
import sys


def load(name):
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module), attribute)


def serve_bjoern(app, port, shared):
    import bjoern

    # bjoern has no option for it, but an accepted socket inherits it from the listener.
    listener = bjoern.listen(app, "127.0.0.1", port, reuse_port=shared)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bjoern.run()


def serve_bjoern_on_unix(app, path, count):
    """A unix socket cannot be bound twice: all processes share the one that the first has bound."""
    import bjoern

    bjoern.listen(app, "unix:" + path)
    os.chmod(path, 0o666)
    in_processes(bjoern.run, count)


def serve_fastpysgi(app, port, shared):
    import fastpysgi

    fastpysgi.server.tcp_nodelay = 1
    fastpysgi.server.max_content_length = 1 << 30
    fastpysgi.run(app, "127.0.0.1", port)


def serve_freastal(app, port, shared):
    import freastal

    freastal.serve(app, "127.0.0.1", port)


def in_processes(serve, count):
    """Neither server has a main process: this one starts as many as are wanted, each with a socket of its own on the port,
    and ends them when it is told to end."""
    ends, children = {signal.SIGTERM, signal.SIGINT}, []
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    for _ in range(count):
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
            return serve()
        children.append(child)
    signal.sigwait(ends)
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)


def main(kind, name, port, processes="1"):
    if not port.isdigit():
        return serve_bjoern_on_unix(load(name), port, int(processes))
    serve = {"bjoern": serve_bjoern, "fastpysgi": serve_fastpysgi, "freastal": serve_freastal}[kind]
    if processes == "1":
        return serve(load(name), int(port), False)
    in_processes(lambda: serve(load(name), int(port), True), int(processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
