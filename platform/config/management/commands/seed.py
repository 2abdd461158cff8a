"""`manage.py seed`: what a fresh platform starts with. `up` runs it; it may be repeated."""

import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from adapters.errors import AdapterError
from config import seed
from tenants.errors import PlatformError


class Command(BaseCommand):
    help = "Makes the operator's account, the demo tenants, their keys and adapters where they are missing."

    requires_system_checks = []  # they import every URL's view, and with them all that the web process needs

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            seed.run(settings.LORAYARD, self.stdout.write)
        except (seed.SeedFailed, AdapterError, PlatformError) as error:
            sys.exit(str(error))  # `up` passes the line on
