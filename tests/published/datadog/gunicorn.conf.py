def post_fork(server, worker):
    from ddtrace.profiling import Profiler

    worker.profiler = Profiler(env="prod", service="shop", version="1")
    worker.profiler.start()


def worker_exit(server, worker):
    worker.profiler.stop(flush=True)
