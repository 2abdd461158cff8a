"""manage.py register_base_model <folder or hub id>: make it the one that adapters are validated against."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapters.errors import BaseModelError
from registry.services import register_base_model
from tenants.errors import PlatformError


class Command(BaseCommand):
    help = "Register the base model that the engine serves."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", help="folder or hub id")
        parser.add_argument("--name", help="default: the hub id, or the folder's name")

    def handle(self, *args: Any, source: str, name: str | None, **options: Any) -> None:
        try:
            base = register_base_model(source, name)
        except (BaseModelError, PlatformError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(base.name)
