"""New Relic's agent as released: the line of docs/deployment.md by which it traces a plain WSGI application."""
import os
import shutil
import sys

import pytest

pytest.importorskip("newrelic")

APP = """
    import newrelic.agent

    def application(environ, start_response):
        transaction = newrelic.agent.current_transaction()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"traced" if transaction else b"not traced"]

    application = newrelic.agent.WSGIApplicationWrapper(application)
"""


@pytest.mark.parametrize("options", [(), ("--preload",), ("--threads", "2")], ids=["plain", "preload", "threads"])
def test_a_plain_application_is_traced(server, options):
    admin = shutil.which("newrelic-admin", path=os.path.dirname(sys.executable))
    # In this mode it sends nothing.
    env = {"NEW_RELIC_DEVELOPER_MODE": "true", "NEW_RELIC_LICENSE_KEY": "0" * 40, "NEW_RELIC_APP_NAME": "test",
           "NEW_RELIC_STARTUP_TIMEOUT": "10.0"}
    rgunicorn = os.path.join(os.path.dirname(sys.executable), "rgunicorn")
    running = server(APP, *options, env=env, leading=[admin, "run-program", rgunicorn])
    running.wait_workers(1)
    running.get("/")
    assert running.get("/").text == "traced"
    assert running.stop() == 0
