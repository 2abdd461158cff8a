"""Knows what happened, when, to what and by whom; never secrets, prompts or how a change is made.

Events form one hash chain per tenant, and one for the platform: each carries the hash of the one before, so that an
edit, a gap or a reorder shows (`audit.services.verify`). Triggers refuse every UPDATE, DELETE and TRUNCATE.
"""

import hashlib
import json
from typing import Self
from uuid import UUID

import pgtrigger
from django.db import models

PLATFORM_CHAIN = UUID(int=0)


class Action(models.TextChoices):
    TENANT_CREATED = "tenant:created"
    TENANT_CHANGED = "tenant:changed"
    MEMBER_ADDED = "tenant:member:added"
    KEY_ISSUED = "key:issued"
    KEY_ROTATED = "key:rotated"
    KEY_REVOKED = "key:revoked"
    BASE_MODEL_REGISTERED = "base-model:registered"
    ADAPTER_CREATED = "adapter:created"
    ADAPTER_DELETED = "adapter:deleted"
    VERSION_UPLOADED = "adapter:version:uploaded"
    VERSION_VALIDATING = "adapter:version:validating"
    VERSION_READY = "adapter:version:ready"
    VERSION_REJECTED = "adapter:version:rejected"
    VERSION_ARCHIVED = "adapter:version:archived"
    UPLOAD_CREATED = "upload:created"
    UPLOAD_COMPLETED = "upload:completed"
    UPLOAD_CANCELLED = "upload:cancelled"
    UPLOAD_EXPIRED = "upload:expired"
    FILE_DROPPED = "upload:file:dropped"
    SIGNING_KEY_ADDED = "signing-key:added"
    SIGNING_KEY_REVOKED = "signing-key:revoked"
    ALIAS_CREATED = "adapter:alias:created"
    ALIAS_MOVED = "adapter:alias:moved"
    ALIAS_DELETED = "adapter:alias:deleted"
    EVALUATION_SET_CREATED = "evaluation-set:created"
    EVALUATION_SET_DELETED = "evaluation-set:deleted"
    EVALUATION_REQUESTED = "evaluation:requested"
    EVALUATION_CANCELLED = "evaluation:cancelled"
    EVALUATION_SUCCEEDED = "evaluation:succeeded"
    EVALUATION_FAILED = "evaluation:failed"
    WEBHOOK_CREATED = "webhook:created"
    WEBHOOK_CHANGED = "webhook:changed"
    WEBHOOK_ROTATED = "webhook:rotated"
    WEBHOOK_DELETED = "webhook:deleted"
    USER_CREATED = "user:created"
    USER_CHANGED = "user:changed"
    USER_PASSWORD_CHANGED = "user:password:changed"  # noqa: S105  # an action, not a password


def actions() -> list[tuple[str, str]]:
    """The choices as a callable, so that a new action needs no migration."""
    return [(action.value, action.value) for action in Action]


class Chain(models.Model):
    """The head of one chain. Whoever appends holds this row's lock, so a chain never forks."""

    id = models.UUIDField(primary_key=True, editable=False)
    length = models.BigIntegerField(default=0)
    head = models.CharField(max_length=64, default="", blank=True)

    def __str__(self) -> str:
        return "platform" if self.id == PLATFORM_CHAIN else str(self.id)


class EventQuerySet(models.QuerySet["Event"]):
    def for_tenant(self, tenant: models.Model | None) -> Self:
        """The tenant's events; with None, the platform's own."""
        return self.filter(tenant=tenant)


class Event(models.Model):
    chain = models.ForeignKey(Chain, on_delete=models.PROTECT, related_name="events", editable=False)
    tenant = models.ForeignKey("tenants.Tenant", null=True, blank=True, on_delete=models.PROTECT, related_name="events")
    number = models.BigIntegerField(help_text="Position in the chain, from 1, without gaps.")
    action = models.CharField(max_length=64, choices=actions)
    actor_kind = models.CharField(max_length=16)
    actor_id = models.CharField(max_length=64)
    address = models.CharField(max_length=64, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    target = models.CharField(max_length=255)
    data = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField()
    previous = models.CharField(max_length=64, blank=True, help_text="Hash of the event before.")
    hash = models.CharField(max_length=64)

    objects = EventQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["chain", "number"], name="audit_one_event_per_number")]
        indexes = [models.Index(fields=["tenant", "-id"], name="audit_newest_of_tenant")]
        triggers = [
            pgtrigger.Protect(name="append_only", operation=pgtrigger.Update | pgtrigger.Delete),
            pgtrigger.Trigger(
                name="no_truncate",
                level=pgtrigger.Statement,
                when=pgtrigger.Before,
                operation=pgtrigger.Truncate,
                func="RAISE EXCEPTION 'audit events are append-only';",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"

    def canonical(self) -> bytes:
        """What the hash covers: every column but the hash and the row's id, as JSON with sorted keys."""
        return json.dumps(
            {
                "chain": str(self.chain_id),
                "tenant": str(self.tenant_id) if self.tenant_id else None,
                "number": self.number,
                "action": self.action,
                "actor": [self.actor_kind, self.actor_id, self.address, self.request_id],
                "target": self.target,
                "data": self.data,
                "at": int(self.created_at.timestamp() * 1_000_000),
                "previous": self.previous,
            },
            sort_keys=True,
            separators=(",", ":"),
        ).encode()

    def compute_hash(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()
