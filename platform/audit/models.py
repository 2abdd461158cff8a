"""Knows what happened, when, to what and by whom; never secrets, prompts or how a change is made.

Events form one hash chain per tenant, and one for the platform: each carries the hash of the one before, so that an
edit, a gap or a reorder shows (`audit.verification`). Checkpoints sign the chains' heads, so that a chain whose hashes
were made anew shows too. Old events may be moved into sealed segments in the artifact store (`audit.retention`).

Triggers hold it for every role (migrations 0003, 0005): events are only appended, to the head of their chain, which
moves with them and in no other way; checkpoints and segments never change. One way out is left to the tables' owner:
to delete events that a segment holds.
"""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from django.db import models

from audit import proof

PLATFORM_CHAIN = UUID(int=0)


class Action(models.TextChoices):
    TENANT_CREATED = "tenant:created"
    TENANT_CHANGED = "tenant:changed"
    MEMBER_ADDED = "tenant:member:added"
    MEMBER_REMOVED = "tenant:member:removed"
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
    VERSION_DELETED = "adapter:version:deleted"
    VERSION_FORGOTTEN = "adapter:version:forgotten"
    VERSION_ANNOTATED = "adapter:version:annotated"
    VERSION_PRELOADED = "adapter:version:preloaded"
    VERSION_PINNED = "adapter:version:pinned"
    VERSION_UNPINNED = "adapter:version:unpinned"
    VERSION_EVICTED = "adapter:version:evicted"
    UPLOAD_CREATED = "upload:created"
    UPLOAD_COMPLETED = "upload:completed"
    UPLOAD_CANCELLED = "upload:cancelled"
    UPLOAD_EXPIRED = "upload:expired"
    FILE_DROPPED = "upload:file:dropped"
    SIGNING_KEY_ADDED = "signing-key:added"
    SIGNING_KEY_REVOKED = "signing-key:revoked"
    ALIAS_CREATED = "adapter:alias:created"
    ALIAS_MOVED = "adapter:alias:moved"
    ALIAS_ROLLED_BACK = "adapter:alias:rolled-back"
    ALIAS_DELETED = "adapter:alias:deleted"
    EVALUATION_SET_CREATED = "evaluation-set:created"
    EVALUATION_SET_DELETED = "evaluation-set:deleted"
    EVALUATION_REQUESTED = "evaluation:requested"
    EVALUATION_CANCELLED = "evaluation:cancelled"
    EVALUATION_SUCCEEDED = "evaluation:succeeded"
    EVALUATION_FAILED = "evaluation:failed"
    MERGE_REQUESTED = "merge:requested"
    MERGE_READY = "merge:ready"
    MERGE_FAILED = "merge:failed"
    MERGE_CANCELLED = "merge:cancelled"
    MERGE_EXPIRED = "merge:expired"
    MERGE_DOWNLOADED = "merge:downloaded"
    WEBHOOK_CREATED = "webhook:created"
    WEBHOOK_CHANGED = "webhook:changed"
    WEBHOOK_ROTATED = "webhook:rotated"
    WEBHOOK_DELETED = "webhook:deleted"
    BUDGET_CREATED = "budget:created"
    BUDGET_CHANGED = "budget:changed"
    BUDGET_DELETED = "budget:deleted"
    AUDIT_SEALED = "audit:sealed"
    ROLLOUT_CREATED = "rollout:created"
    ROLLOUT_STARTED = "rollout:started"
    ROLLOUT_STEPPED = "rollout:stepped"
    ROLLOUT_PAUSED = "rollout:paused"
    ROLLOUT_RESUMED = "rollout:resumed"
    ROLLOUT_APPROVED = "rollout:approved"
    ROLLOUT_PROMOTING = "rollout:promoting"
    ROLLOUT_SUCCEEDED = "rollout:succeeded"
    ROLLOUT_ROLLING_BACK = "rollout:rolling-back"
    ROLLOUT_ROLLED_BACK = "rollout:rolled-back"
    USER_CREATED = "user:created"
    USER_CHANGED = "user:changed"
    USER_SIGNED_IN = "user:signed-in"
    USER_SIGN_IN_FAILED = "user:sign-in:failed"
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
    user_agent = models.CharField(max_length=255, blank=True, default="")
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

    def __str__(self) -> str:
        return f"{self.action} {self.target}"

    @property
    def actor(self) -> str:
        """The actor as rows elsewhere write it."""
        return f"{self.actor_kind}:{self.actor_id}"

    def content(self) -> dict[str, Any]:
        """What the hash covers: every column but the hash and the row's id."""
        actor = [self.actor_kind, self.actor_id, self.address, self.request_id]
        return {
            "chain": str(self.chain_id),
            "tenant": str(self.tenant_id) if self.tenant_id else None,
            "number": self.number,
            "action": self.action,
            "actor": [*actor, self.user_agent] if self.user_agent else actor,  # events from before it was kept verify
            "target": self.target,
            "data": self.data,
            "at": _microseconds(self.created_at),
            "previous": self.previous,
        }

    def compute_hash(self) -> str:
        return proof.digest(self.content())


class Checkpoint(models.Model):
    """A signed statement of how long every chain that had grown was, and where it ended. These form a chain too."""

    number = models.BigIntegerField(primary_key=True)
    created_at = models.DateTimeField()
    size = models.IntegerField(help_text="How many chains it speaks of.")
    root = models.CharField(max_length=64, help_text="Of the Merkle tree over the chains' heads.")
    previous = models.CharField(max_length=64, blank=True, help_text="Hash of the checkpoint before.")
    hash = models.CharField(max_length=64)
    key = models.CharField(max_length=44)
    signature = models.CharField(max_length=88)

    class Meta:
        ordering = ["-number"]

    def __str__(self) -> str:
        return f"checkpoint {self.number}"

    def content(self) -> dict[str, Any]:
        """What is hashed and signed."""
        return {
            "number": self.number,
            "at": _microseconds(self.created_at),
            "size": self.size,
            "root": self.root,
            "previous": self.previous,
        }


class Leaf(models.Model):
    """One chain's length and head in one checkpoint. Leaves are ordered by their ids.

    `path` leads to the checkpoint's root, so that a tenant's proof needs nobody else's leaves.
    """

    checkpoint = models.ForeignKey(Checkpoint, on_delete=models.PROTECT, related_name="leaves")
    chain = models.ForeignKey(Chain, on_delete=models.PROTECT, related_name="leaves")
    length = models.BigIntegerField()
    head = models.CharField(max_length=64)
    path = models.JSONField(default=list, blank=True)

    class Meta:
        ordering = ["id"]
        verbose_name_plural = "leaves"
        constraints = [models.UniqueConstraint(fields=["chain", "checkpoint"], name="audit_one_leaf_per_chain")]
        indexes = [models.Index(fields=["chain", "-length"], name="audit_newest_leaf")]

    def __str__(self) -> str:
        return f"{self.chain_id} at {self.length}"

    def content(self) -> dict[str, Any]:
        return proof.leaf_of(str(self.chain_id), self.length, self.head)


class Segment(models.Model):
    """Events `first` to `last` of a chain, moved into a file of the artifact store whose hash is signed here."""

    chain = models.ForeignKey(Chain, on_delete=models.PROTECT, related_name="segments")
    first = models.BigIntegerField()
    last = models.BigIntegerField()
    head = models.CharField(max_length=64, help_text="Hash of its last event.")
    sha256 = models.CharField(max_length=64, help_text="Of the file.")
    size = models.BigIntegerField(help_text="Bytes of the file.")
    created_at = models.DateTimeField()
    key = models.CharField(max_length=44)
    signature = models.CharField(max_length=88)

    class Meta:
        ordering = ["chain", "first"]
        constraints = [
            models.UniqueConstraint(fields=["chain", "first"], name="audit_segments_do_not_overlap"),
            models.CheckConstraint(condition=models.Q(last__gte=models.F("first")), name="audit_segment_holds_events"),
        ]

    def __str__(self) -> str:
        return f"{self.chain_id} {self.first} to {self.last}"

    @property
    def path(self) -> str:
        return f"segments/{self.chain_id}/{self.first:012d}-{self.last:012d}.jsonl"

    def content(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "chain": str(self.chain_id),
            "first": self.first,
            "last": self.last,
            "head": self.head,
            "sha256": self.sha256,
            "size": self.size,
            "at": _microseconds(self.created_at),
        }


def _microseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000)
