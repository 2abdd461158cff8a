"""Knows where a tenant wants to be told of events, and what became of each telling; never what the events mean.

    pending ──> delivered
       └──────> failed        every attempt was used up, or its endpoint was switched off

An endpoint's secret is not stored: it is derived from `salt` and the platform's pepper (`webhooks.signing`).
"""

import re
import secrets
import uuid
from collections.abc import Sequence
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone

from audit.redaction import SecretCharField
from tenants.models import Tenant

FAMILIES = ("version", "alias", "evaluation", "rollout", "merge", "budget", "webhook")
EVENT = re.compile(rf"({'|'.join(FAMILIES)})\.[a-z]+(_[a-z]+)*")
SUBSCRIPTION = re.compile(rf"\*|({'|'.join(FAMILIES)})\.(\*|[a-z]+(_[a-z]+)*)")


def new_salt() -> str:
    return secrets.token_hex(32)


class EndpointQuerySet(models.QuerySet["Endpoint"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant, deleted_at=None)


class Endpoint(models.Model):
    """A URL of a tenant's that is told of the events it subscribes to.

    A deleted one stays until `delivery.forget_deliveries` sweeps it: were it deleted at once, under the audit chain's
    lock, that could deadlock with an event that is being handed to it.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="webhooks")
    url = models.CharField(max_length=2000)
    events = ArrayField(
        models.CharField(max_length=64), help_text="Names (rollout.paused), families (rollout.*), or *, which is all."
    )
    active = models.BooleanField(default=True)
    salt = SecretCharField(max_length=64, default=new_salt, editable=False)
    former_salt = SecretCharField(max_length=64, blank=True, editable=False)
    former_until = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = EndpointQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "url"], condition=models.Q(deleted_at=None), name="webhook_once_per_tenant"
            )
        ]

    def __str__(self) -> str:
        return f"webhook:{self.id}"

    def wants(self, event: str) -> bool:
        family = event.partition(".")[0]
        return bool({"*", f"{family}.*", event} & set(self.events))

    @property
    def live_salts(self) -> Sequence[str]:
        """What to sign with: the newest first, and the one before it while its grace lasts."""
        former = self.former_until is not None and self.former_until > timezone.now()
        return [self.salt, self.former_salt] if former else [self.salt]


class State(models.TextChoices):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def due(self) -> Self:
        return self.filter(state=State.PENDING, next_at__lte=timezone.now())


class Delivery(models.Model):
    """One event on its way to one endpoint, and the log of its attempts.

    `next_at` is when it may be tried next; whoever tries moves it on first, so that two workers never try at once.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="webhook_deliveries")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=64)
    data = models.JSONField(default=dict, encoder=DjangoJSONEncoder)
    state = models.CharField(max_length=16, choices=State, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=timezone.now)
    log = models.JSONField(default=list, blank=True, help_text="Per attempt: at, status, error, milliseconds.")
    created_at = models.DateTimeField(default=timezone.now)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "deliveries"
        indexes = [
            models.Index(fields=["endpoint", "-created_at", "-id"], name="webhook_newest_of_endpoint"),
            models.Index(fields=["next_at"], condition=models.Q(state="pending"), name="webhook_due"),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.endpoint_id}"

    @property
    def message_id(self) -> str:
        """The same at every attempt, so that a receiver can drop what it has already seen."""
        return f"msg_{self.id.hex}"
