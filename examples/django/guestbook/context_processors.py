import os


def server(request):
    """What the footer tells about the process that made the page."""
    return {
        "server": {
            "software": request.META.get("SERVER_SOFTWARE", "?"),
            "pid": os.getpid(),
            "scheme": request.scheme,
            "client": request.META.get("HTTP_X_FORWARDED_FOR")
            or request.META.get("REMOTE_ADDR")
            or "a local socket",
        }
    }
