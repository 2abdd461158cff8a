"""Django's `migrate`, which then brings the web role and the policies to what the models say (`tenants.policies`)."""

from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import DatabaseError

from tenants import policies

HINT = "Have a superuser run CREATE ROLE {role} NOLOGIN; GRANT {role} TO CURRENT_USER, or set LORAYARD_WEB_ROLE=none."


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        super().handle(*args, **options)
        role = settings.LORAYARD.web_role
        if role == "none" or options.get("plan") or options.get("check_unapplied"):
            return
        try:
            policies.install(role)
        except (DatabaseError, policies.RoleUnsafe) as error:
            reason = " ".join(str(error).split())
            raise CommandError(f"LORAYARD_WEB_ROLE: {reason} {HINT.format(role=role)}") from error
