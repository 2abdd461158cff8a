"""manage.py create_tenant acme --name "Acme Inc." """

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.services import SYSTEM
from tenants.errors import PlatformError
from tenants.services import create_tenant


class Command(BaseCommand):
    help = "Create a tenant."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("--name", help="default: the slug")
        parser.add_argument("--weight", type=float, default=1.0, help="share of the engine (default: 1)")

    def handle(self, *args: Any, slug: str, name: str | None, weight: float, **options: Any) -> None:
        try:
            tenant = create_tenant(slug, name or slug, weight=weight, actor=SYSTEM)
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        except PlatformError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(tenant.slug)
