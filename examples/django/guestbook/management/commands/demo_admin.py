from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Makes the superuser admin with the password admin. For the demo and the tests only."

    def handle(self, *args, **options):
        users = get_user_model().objects
        if users.filter(username="admin").exists():
            self.stdout.write("The user admin is there already.")
        else:
            users.create_superuser("admin", "admin@example.com", "admin")
            self.stdout.write("Made the user admin with the password admin.")
