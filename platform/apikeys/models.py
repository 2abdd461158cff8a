"""Knows keys by prefix and MAC; never the secret itself, which exists only in the answer to whoever made the key."""

import uuid
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone

from audit.redaction import SecretCharField
from tenants.models import Tenant


class Scope(models.TextChoices):
    INFERENCE = "inference"
    BACKGROUND = "inference:background"  # inference that waits behind the tenant's other requests
    ADAPTERS_READ = "adapters:read"
    ADAPTERS_WRITE = "adapters:write"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    EVALUATIONS_READ = "evaluations:read"
    EVALUATIONS_WRITE = "evaluations:write"
    ROLLOUTS_READ = "rollouts:read"
    ROLLOUTS_WRITE = "rollouts:write"
    ROLLOUTS_TEST = "rollouts:test"  # choose the arm of a request by header
    AUDIT_READ = "audit:read"
    BUDGETS_READ = "budgets:read"
    BUDGETS_WRITE = "budgets:write"
    USAGE_READ = "usage:read"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    PLATFORM = "platform"  # an operator's: tenants, and everything of every tenant but inference


# What is about adapters and their use, and can so be confined to some of them. All else is about the whole tenant.
CONFINABLE = frozenset(
    {
        *(Scope.INFERENCE, Scope.BACKGROUND, Scope.ADAPTERS_READ, Scope.ADAPTERS_WRITE),
        *(Scope.EVALUATIONS_READ, Scope.EVALUATIONS_WRITE),
        *(Scope.ROLLOUTS_READ, Scope.ROLLOUTS_WRITE, Scope.ROLLOUTS_TEST, Scope.USAGE_READ),
    }
)


def known_scopes() -> list[tuple[str, str]]:
    """The choices as a callable, so that a new scope needs no migration."""
    return list(Scope.choices)


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def for_tenant(self, tenant: Tenant | None) -> Self:
        """The tenant's keys; with None, the operators'."""
        return self.filter(tenant=tenant)

    def live(self) -> Self:
        """Neither revoked nor expired."""
        return self.filter(models.Q(expires_at=None) | models.Q(expires_at__gt=timezone.now()), revoked_at=None)


class ApiKey(models.Model):
    """Belongs to one tenant, or, with the scope `platform` and no other, to the operators."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, null=True, blank=True, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=200)
    prefix = models.CharField(max_length=16, unique=True, editable=False)
    mac = SecretCharField(max_length=64, editable=False)
    scopes = ArrayField(models.CharField(max_length=32, choices=known_scopes))
    adapters = ArrayField(
        models.CharField(max_length=63), default=list, blank=True, help_text="Names of the allowed adapters; none: all."
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(tenant__isnull=True, scopes=[Scope.PLATFORM.value])
                | models.Q(tenant__isnull=False) & ~models.Q(scopes__contains=[Scope.PLATFORM.value]),
                name="key_platform_has_no_tenant",
            ),
            models.CheckConstraint(condition=models.Q(scopes__len__gt=0), name="key_has_a_scope"),
        ]

    def __str__(self) -> str:
        return f"{self.name} (ly_{self.prefix}_…)"

    @property
    def is_live(self) -> bool:
        """Neither revoked, expired nor of an inactive tenant."""
        expired = self.expires_at is not None and self.expires_at <= timezone.now()
        return self.revoked_at is None and not expired and (self.tenant is None or self.tenant.active)

    def may(self, scope: str) -> bool:
        """An operator's key may do all that is managed, but never speaks to a model.

        A key that is confined to some adapters may do nothing about the whole tenant, whatever an earlier release
        has let it hold.
        """
        if self.adapters and scope not in CONFINABLE:
            return False
        return scope in self.scopes or (
            Scope.PLATFORM in self.scopes and scope not in (Scope.INFERENCE, Scope.BACKGROUND)
        )
