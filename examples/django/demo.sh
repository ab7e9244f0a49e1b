#!/usr/bin/env bash
# Serves the guestbook with 4 workers on 127.0.0.1:8000, and with Nginx in front on 127.0.0.1:8080
# where `nginx` is installed, until Ctrl-C or SIGTERM; then stops both and leaves nothing running.
# A second Ctrl-C does not wait for the requests that are being answered.
#
# From the environment: RGUNICORN, the server's command (rgunicorn); PORT (8000); NGINX_PORT (8080);
# NGINX, its command, empty for none; PYTHON (python).
set -euo pipefail
cd "$(dirname "$0")"
export PATH="$PATH:/usr/sbin:/sbin"

server_command=${RGUNICORN:-rgunicorn}
python=${PYTHON:-python}
port=${PORT:-8000}
nginx_port=${NGINX_PORT:-8080}
nginx_command=${NGINX-$(command -v nginx || true)}
static_root=${STATIC_ROOT:-$PWD/staticfiles}
unset PORT # gunicorn and rgunicorn read it too
export CSRF_TRUSTED_ORIGINS="http://127.0.0.1:$nginx_port,http://localhost:$nginx_port"

for wanted in "$port" ${nginx_command:+"$nginx_port"}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$wanted") 2>/dev/null; then
        echo "demo: port $wanted is in use by another program; choose with PORT and NGINX_PORT" >&2
        exit 1
    fi
done

scratch=$(mktemp -d "${TMPDIR:-/tmp}/guestbook.XXXXXX")
server=
nginx=
stopping=

# Nginx first, so that nothing is sent to a server that is already gone. Each gets the signal by
# which it ends what it is doing and then exits.
stop() {
    stopping=yes
    if [ -n "$nginx" ]; then kill -QUIT "$nginx" 2>/dev/null || true; wait_for "$nginx"; nginx=; fi
    if [ -n "$server" ]; then kill -TERM "$server" 2>/dev/null || true; wait_for "$server"; server=; fi
    rm -rf "$scratch"
}

# `wait` returns early when a signal comes in between; a second Ctrl-C must not cut the stop short.
wait_for() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" 2>/dev/null || true; done
}

stopped_by() {
    if [ -n "$stopping" ]; then
        [ -z "$nginx" ] || kill -TERM "$nginx" 2>/dev/null || true
        [ -z "$server" ] || kill -INT "$server" 2>/dev/null || true
    else
        set +e # the terminal may be gone, and a failing echo must not cut the stop short
        echo "demo: stopping" >&2
        stop
        exit "$1"
    fi
}

trap 'stopped_by 0' INT
trap 'stopped_by 0' TERM
trap 'stopped_by 129' HUP
trap '[ -n "$stopping" ] || stop' EXIT

"$python" manage.py migrate --verbosity 0
"$python" manage.py collectstatic --noinput --verbosity 0
"$python" manage.py demo_admin

# Job control gives each a process group of its own: Ctrl-C then reaches only this script.
set -m
$server_command -w 4 -b "127.0.0.1:$port" mysite.wsgi:application </dev/null &
server=$!
if [ -n "$nginx_command" ]; then
    nginx/render nginx/tcp.conf "127.0.0.1:$nginx_port" "127.0.0.1:$port" "$static_root" >"$scratch/nginx.conf"
    "$nginx_command" -p "$scratch" -c nginx.conf </dev/null 2>"$scratch/stderr" &
    nginx=$!
fi
set +m

answers() {
    "$python" - "$1" <<'CHECK' 2>/dev/null
import sys, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=5).read()
CHECK
}

# Prints the address once it answers; gives up when the process that serves it has ended.
announce() {
    local pid=$1 url=$2 words=$3
    until answers "${url}health/"; do
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.2
    done
    echo "demo: $url $words"
}

# Ends the demo with the status of a process that should not have ended by itself.
ended() {
    local status=0
    wait "$2" || status=$?
    echo "demo: $1 has ended with status $status" >&2
    stop
    exit "$((status ? status : 1))"
}

announce "$server" "http://127.0.0.1:$port/" "(the server itself)" || ended "the server" "$server"
if [ -n "$nginx" ]; then
    announce "$nginx" "http://127.0.0.1:$nginx_port/" "(behind Nginx)" || {
        cat "$scratch/stderr" >&2
        ended Nginx "$nginx"
    }
else
    echo "demo: Nginx is not installed, so nothing listens on port $nginx_port"
fi
echo "demo: the admin's login is admin/admin; Ctrl-C stops the demo"

while kill -0 "$server" 2>/dev/null && { [ -z "$nginx" ] || kill -0 "$nginx" 2>/dev/null; }; do
    wait -n 2>/dev/null || true
done
if kill -0 "$server" 2>/dev/null; then
    ended Nginx "$nginx"
else
    ended "the server" "$server"
fi
