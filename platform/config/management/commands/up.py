"""`manage.py up`: set up and start everything on this machine."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from config import up


class Command(BaseCommand):
    help = "Sets up and starts everything on this machine, and keeps it running until Ctrl-C."

    requires_system_checks = []  # they import every URL's view, and with them all that the web process needs

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            up.run(settings.LORAYARD)
        except up.StartFailed as error:
            raise CommandError(str(error)) from None
