"""Nginx in front of a server, configured as gunicorn's deployment page does it."""

import os
import shutil

import server
from peers import HOST

CONFIGURATION = """\
daemon off;
worker_processes auto;
pid {home}/nginx.pid;
error_log {home}/nginx.error.log warn;
{user}
events {{ worker_connections 1024; accept_mutex off; }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    keepalive_requests 1000000;
    client_body_temp_path {home}/nginx.body;
    proxy_temp_path {home}/nginx.proxy;
    fastcgi_temp_path {home}/nginx.fastcgi;
    uwsgi_temp_path {home}/nginx.uwsgi;
    scgi_temp_path {home}/nginx.scgi;
    upstream app {{ server {address} fail_timeout=0; {keepalive}}}
    server {{
        listen {host}:{port};
        location / {{
{location}
        }}
    }}
}}
"""

PROXY = """\
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Host $http_host;
            proxy_redirect off;
            proxy_pass http://app;"""

# Connections to the server that stay open (nginx.org, "Module ngx_http_upstream_module", keepalive).
KEPT = """\
            proxy_http_version 1.1;
            proxy_set_header Connection "";
"""

UWSGI_PARAMS = """\
QUERY_STRING $query_string;REQUEST_METHOD $request_method;CONTENT_TYPE $content_type;CONTENT_LENGTH $content_length;\
REQUEST_URI $request_uri;PATH_INFO $document_uri;DOCUMENT_ROOT $document_root;SERVER_PROTOCOL $server_protocol;\
REQUEST_SCHEME $scheme;HTTPS $https if_not_empty;REMOTE_ADDR $remote_addr;REMOTE_PORT $remote_port;\
SERVER_PORT $server_port;SERVER_NAME $server_name"""


def available():
    return shutil.which("nginx") is not None


def start(home, port, asked, native):
    """In front of a server that was asked for `asked`. `native`: the uwsgi protocol instead of HTTP."""
    user = "user root;" if os.geteuid() == 0 else ""
    path = home / "nginx.conf"
    location = uwsgi_location() if native else (KEPT if asked.upstream_kept else "") + PROXY
    keepalive = "keepalive 64; " if asked.upstream_kept else ""
    text = CONFIGURATION.format(
        home=home, user=user, host=HOST, port=port, address=asked.address, keepalive=keepalive, location=location
    )
    path.write_text(text)
    command = [shutil.which("nginx"), "-p", str(home), "-e", str(home / "nginx.error.log"), "-c", str(path)]
    return server.Server(command, home, home / "nginx.log")


def uwsgi_location():
    """What Debian's uwsgi_params file says, and the pass."""
    lines = [f"            uwsgi_param {pair};" for pair in UWSGI_PARAMS.split(";")]
    return "\n".join([*lines, "            uwsgi_pass app;"])
