"""manage.py create_key acme --name ci --scope inference --scope adapters:write"""

from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apikeys.models import CONFINABLE, Scope
from apikeys.services import issue
from audit.services import SYSTEM
from tenants.errors import PlatformError
from tenants.models import Tenant


class Command(BaseCommand):
    help = "Issue a key and print it, this once. Without a tenant: an operator's."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", nargs="?", help="slug; left out, the key is an operator's")
        parser.add_argument("--name", default="command line")
        parser.add_argument(
            "--scope", action="append", choices=Scope.values, help="repeatable; default: all that it can hold"
        )
        parser.add_argument("--adapter", action="append", default=[], help="repeatable; default: all of the tenant's")
        parser.add_argument("--days", type=float, help="days until it expires; default: never")

    def handle(self, *args: Any, tenant: str | None, name: str, **options: Any) -> None:
        scopes = options["scope"] or _default_scopes(tenant, options["adapter"])
        days = options["days"]
        try:
            _, plaintext = issue(
                Tenant.objects.get(slug=tenant) if tenant else None,
                name=name,
                scopes=scopes,
                adapters=options["adapter"],
                expires_at=timezone.now() + timedelta(days=days) if days is not None else None,
                actor=SYSTEM,
            )
        except Tenant.DoesNotExist as error:
            raise CommandError(f"There is no tenant {tenant!r}.") from error
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        except PlatformError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(plaintext)


def _default_scopes(tenant: str | None, adapters: list[str]) -> list[str]:
    """All that such a key can hold."""
    scopes = [scope for scope in Scope if not adapters or scope in CONFINABLE]
    return [scope.value for scope in scopes if (scope == Scope.PLATFORM) == (tenant is None)]
