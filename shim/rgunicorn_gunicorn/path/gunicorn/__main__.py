"""`python -m gunicorn`."""

from rgunicorn_gunicorn import run

run()
