"""The language of the control socket."""
import json
import os
import socket
import struct


def connect(path):
    """The folder is opened first: pytest's paths are too long for sun_path."""
    folder, name = os.path.split(str(path))
    opened = os.open(folder, os.O_PATH)
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect("/proc/self/fd/%d/%s" % (opened, name))
        # Not before: it would not wait for a place in the queue.
        client.settimeout(20)
    except OSError:
        client.close()
        raise
    finally:
        os.close(opened)
    return client


def frame(request):
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    return struct.pack(">I", len(text)) + text


def read_answer(client):
    """The next answer; None at the end of the connection."""
    def read(length):
        data = b""
        while len(data) < length:
            part = client.recv(length - len(data))
            if not part:
                assert not data
                return None
            data += part
        return data
    length = read(4)
    return None if length is None else json.loads(read(struct.unpack(">I", length)[0]))
