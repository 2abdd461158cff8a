"""Knows merges: of what, how, how far they are and what came out; nothing of tensors, files' content or workers.

queued <──> running ──> ready ──> expired
   └───────────┴──────> failed, cancelled
"""

import uuid
from datetime import timedelta
from typing import Self

import pgtrigger
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from registry.models import Adapter, BaseModel, Version
from tenants.models import Tenant

MOST_PENDING = 4  # merges that a tenant may have under way
MOST_BYTES = 256 << 30  # of merged models that a tenant may keep
KEPT = timedelta(days=7)  # a merged model, to be downloaded


class Kind(models.TextChoices):
    CHECKPOINT = "checkpoint"  # one version into its base model, as files to download
    VERSION = "version"  # several versions into a new one


class Method(models.TextChoices):
    LINEAR = "linear"
    CAT = "cat"
    SVD = "svd"
    TIES = "ties"
    DARE_LINEAR = "dare_linear"
    DARE_TIES = "dare_ties"


class State(models.TextChoices):
    QUEUED = "queued"
    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ARROWS = [
    (State.QUEUED, State.RUNNING),
    (State.QUEUED, State.FAILED),
    (State.QUEUED, State.CANCELLED),
    (State.RUNNING, State.QUEUED),
    (State.RUNNING, State.READY),
    (State.RUNNING, State.FAILED),
    (State.RUNNING, State.CANCELLED),
    (State.READY, State.EXPIRED),
]
PENDING = (State.QUEUED, State.RUNNING)


class MergeQuerySet(models.QuerySet["Merge"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def pending(self) -> Self:
        return self.filter(state__in=PENDING)

    def kept(self) -> Self:
        """Those whose files are there, or are being made."""
        return self.filter(Q(state__in=PENDING) | Q(state=State.READY, kind=Kind.CHECKPOINT))


class Merge(models.Model):
    """`sources`: [{"version": id, "name", "digest", "weight"}]. `adapters`: every adapter's name that it is about.

    `worker` and `leased_until`: who works on it, and until when nobody else may; queued, when to ask again for one.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="merges")
    kind = models.CharField(max_length=16, choices=Kind)
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="merges")
    adapter = models.ForeignKey(
        Adapter,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="merges",
        help_text="Of the new version.",
    )
    version = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.SET_NULL, related_name="merges", help_text="The new version."
    )
    method = models.CharField(max_length=16, choices=Method, blank=True)
    options = models.JSONField(default=dict, blank=True)
    sources = models.JSONField()
    adapters = ArrayField(models.CharField(max_length=63))
    state = models.CharField(max_length=16, choices=State, default=State.QUEUED)
    stage = models.CharField(max_length=16, blank=True)
    done = models.PositiveBigIntegerField(default=0, help_text="Bytes read or written, of `total`.")
    total = models.PositiveBigIntegerField(default=0)
    size = models.PositiveBigIntegerField(default=0, help_text="Bytes of the merged model.")
    files = models.JSONField(default=list, blank=True, help_text="Name, size and sha256 of each.")
    agreement = models.JSONField(default=dict, blank=True, help_text="What comparing its answers gave.")
    finding = models.JSONField(default=dict, blank=True, help_text="Why it failed.")
    attempts = models.PositiveSmallIntegerField(default=0)
    worker = models.UUIDField(null=True, blank=True, editable=False)
    leased_until = models.DateTimeField(default=timezone.now, editable=False)
    requester = models.CharField(max_length=96)
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = MergeQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [models.Index(fields=["tenant", "-created_at"], name="merge_newest_of_tenant")]
        constraints = [
            models.CheckConstraint(
                condition=Q(kind=Kind.CHECKPOINT, method="", adapter=None, version=None)
                | Q(kind=Kind.VERSION) & ~Q(method=""),
                name="merge_of_versions_has_a_method",
            ),
        ]
        triggers = [
            pgtrigger.FSM(name="states", field="state", transitions=[(a.value, b.value) for a, b in ARROWS]),
            pgtrigger.ReadOnly(
                name="identity",
                fields=["id", "tenant", "kind", "base_model", "method", "options", "sources", "adapters", "requester"],
            ),
        ]

    def __str__(self) -> str:
        return f"merge {self.pk}"

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        if self.state in (State.READY, State.EXPIRED):
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def downloadable(self) -> bool:
        in_time = self.expires_at is not None and self.expires_at > timezone.now()
        return self.kind == Kind.CHECKPOINT and self.state == State.READY and in_time
