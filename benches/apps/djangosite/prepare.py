"""Makes the database named by BENCH_DB: the table and 100 rows. Run once before the servers start."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()

from django.core.management import call_command  # noqa: E402
from entries.models import Entry  # noqa: E402

call_command("migrate", run_syncdb=True, verbosity=0)
if not Entry.objects.exists():
    Entry.objects.bulk_create(Entry(name=f"name {n}", text=f"text of entry {n}") for n in range(100))
