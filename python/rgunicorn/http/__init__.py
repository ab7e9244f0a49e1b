"""Names of gunicorn's HTTP package: see `errors`."""
