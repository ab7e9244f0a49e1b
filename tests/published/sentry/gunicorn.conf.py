import os


def post_fork(server, worker):
    import sentry_sdk

    sentry_sdk.init(dsn=os.environ["SENTRY_DSN"], release="shop@1", traces_sample_rate=1.0)
    sentry_sdk.set_tag("worker", worker.pid)
    server.log.info("sentry starts in worker %s", worker.pid)
