# In the shape of the configuration in Heroku's "Getting started with Python": the platform's variables, threads, a preloaded
# application, the access log on the standard output. Bound by PORT, as everything there.
import os

worker_class = "gthread"
threads = 5
workers = int(os.environ.get("WEB_CONCURRENCY", 2))
preload_app = True
timeout = 20
graceful_timeout = 20
max_requests = 1000
max_requests_jitter = 50
worker_tmp_dir = "/dev/shm"
accesslog = "-"
access_log_format = '%(h)s "%(r)s" %(s)s %(b)s %(D)s "%({X-Request-Id}i)s"'
forwarded_allow_ips = "*"
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
