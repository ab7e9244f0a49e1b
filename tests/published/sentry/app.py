from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware


def application(environ, start_response):
    if environ["PATH_INFO"] == "/fails":
        raise RuntimeError("on purpose")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]


app = SentryWsgiMiddleware(application)
