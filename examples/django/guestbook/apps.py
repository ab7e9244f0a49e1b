from django.apps import AppConfig
from django.db.backends.signals import connection_created


def use_write_ahead_log(connection, **kwargs):
    """Readers and the one writer of a SQLite file do not block each other in WAL mode."""
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = NORMAL")


class GuestbookConfig(AppConfig):
    name = "guestbook"

    def ready(self):
        connection_created.connect(use_write_ahead_log)
