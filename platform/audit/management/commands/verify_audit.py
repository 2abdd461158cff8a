"""manage.py verify_audit: reads every audit chain; exit status 1 and one line per fault if any was tampered with."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from audit.models import Chain
from audit.verification import verify


class Command(BaseCommand):
    help = "Verify the audit chains of all tenants and of the platform."

    def handle(self, *args: Any, **options: Any) -> None:
        problems = verify()
        for problem in problems:
            self.stderr.write(str(problem))
        if problems:
            raise CommandError(f"{len(problems)} faults found.")
        lengths = list(Chain.objects.values_list("length", flat=True))
        self.stdout.write(f"{sum(lengths)} events in {len(lengths)} chains are as they were written.")
