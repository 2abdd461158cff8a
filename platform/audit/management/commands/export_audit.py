"""manage.py export_audit: one chain as JSON Lines with its proof, on standard output."""

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import exports, signing
from audit.models import PLATFORM_CHAIN, Chain


class Command(BaseCommand):
    help = "Export an audit chain. Verify it with: python platform/audit/proof.py --key <public key> <file>"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant", help="slug; without it, the platform's own chain")
        parser.add_argument("--public-key", action="store_true", help="print the public key instead")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["public_key"]:
            self.stdout.write(signing.public_key())
            return
        for line in exports.everything(self._chain(options["tenant"])):
            self.stdout.write(line, ending="")

    def _chain(self, slug: str | None) -> Chain:
        tenants: Any = apps.get_model("tenants", "Tenant")  # by name: this app stands below that one
        tenant = tenants.objects.filter(slug=slug).first() if slug else None
        chain = Chain.objects.filter(pk=tenant.pk if tenant else PLATFORM_CHAIN).first()
        if (slug and tenant is None) or chain is None:
            raise CommandError(f"There is no chain of {slug or 'the platform'}.")
        return chain
