"""Read by `gunicorn` and by `rgunicorn` alike, from the folder the server is started in."""

import os

bind = "127.0.0.1:8000"
wsgi_app = "mysite.wsgi:application"

workers = int(os.environ.get("WEB_CONCURRENCY", 4))
worker_connections = 1000
backlog = 2048

timeout = 30
graceful_timeout = 30
keepalive = 75

max_requests = 10000
max_requests_jitter = 1000

accesslog = "-"
errorlog = "-"
loglevel = "info"
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(M)sms'
