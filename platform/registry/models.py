"""Knows base models, adapters, their versions and the aliases that name them; nothing of files, queues or requests.

A version's identity below the registry is its digest. Triggers hold what the services promise: states move along the
arrows below, and once a version has left validation its content never changes. What versions hold is counted per tenant
(`Reference`), so that the last to let go of a digest empties the store of it.

    uploaded ──> validating ──> ready ──> archived ──> deleted
        └────────────┴────────> rejected ──────────────────┘

A deleted version keeps its row, so that its number is not given again and histories go on naming it.
"""

import uuid
from datetime import timedelta
from typing import Self

import pgtrigger
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from registry import intake
from tenants.models import Tenant

NAME = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z"
DIGEST = r"^sha256:[0-9a-f]{64}\Z"
VERSION_LIKE = r"^v[0-9]+\Z"
STABLE = "stable"
ANNOUNCED = timedelta(hours=1)  # longer than any worker takes to store a version

valid_name = RegexValidator(NAME, "Lower-case letters, digits and inner dots, hyphens, underscores; 63 at most.")
not_a_version = RegexValidator(VERSION_LIKE, "An alias can't look like a version.", inverse_match=True)


class BaseModel(models.Model):
    """A frozen model that an engine holds. The default one is what the engine serves now."""

    name = models.CharField(max_length=255, unique=True)
    source = models.CharField(max_length=1024, help_text="A folder or a hub id.")
    spec = models.JSONField(help_text="Shapes that an adapter must fit (adapters.base.BaseSpec).")
    is_default = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["is_default"], condition=Q(is_default=True), name="one_default_base_model")
        ]

    def __str__(self) -> str:
        return self.name


class AdapterQuerySet(models.QuerySet["Adapter"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class Adapter(models.Model):
    """A tenant's named fine-tune of one base model; a name, no weights. Its row locks its versions and aliases."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="adapters")
    name = models.CharField(max_length=63, validators=[valid_name])
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="adapters")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = AdapterQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name"], name="adapter_name_once_per_tenant"),
            models.CheckConstraint(condition=Q(name__regex=NAME), name="adapter_name_is_plain"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


class State(models.TextChoices):
    UPLOADED = "uploaded"
    VALIDATING = "validating"
    READY = "ready"
    REJECTED = "rejected"
    ARCHIVED = "archived"
    DELETED = "deleted"


ARROWS = [
    (State.UPLOADED, State.VALIDATING),
    (State.UPLOADED, State.REJECTED),
    (State.VALIDATING, State.READY),
    (State.VALIDATING, State.REJECTED),
    (State.READY, State.ARCHIVED),
    (State.READY, State.DELETED),
    (State.ARCHIVED, State.DELETED),
    (State.REJECTED, State.DELETED),
]
PENDING = (State.UPLOADED, State.VALIDATING)
STORED = (State.READY, State.ARCHIVED)
SETTLED = (*STORED, State.REJECTED, State.DELETED)
RETIRED = (State.ARCHIVED, State.DELETED)


class VersionQuerySet(models.QuerySet["Version"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(adapter__tenant=tenant)

    def pending(self) -> Self:
        return self.filter(state__in=PENDING)

    def kept(self) -> Self:
        """All but the deleted ones."""
        return self.exclude(state=State.DELETED)

    def rejected(self) -> Self:
        """Those that never became ready, if somebody deleted them since too."""
        return self.filter(Q(state=State.REJECTED) | Q(state=State.DELETED, digest="", released_at__isnull=False))

    def unreleased(self) -> Self:
        """Retired versions that an engine or the store may still hold something of."""
        return self.filter(state__in=RETIRED, released_at=None)


class Version(models.Model):
    """One immutable upload of an adapter."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    adapter = models.ForeignKey(Adapter, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    digest = models.CharField(max_length=71, blank=True, db_index=True, help_text="sha256:…, once it is ready.")
    state = models.CharField(max_length=16, choices=State, default=State.UPLOADED)
    findings = models.JSONField(default=list, blank=True, help_text="Why it was rejected.")
    summary = models.JSONField(default=dict, blank=True, help_text="Rank, targets, tensors, bytes, dtype.")
    size = models.PositiveBigIntegerField(default=0, help_text="Bytes as uploaded; once ready, as stored.")
    attempts = models.PositiveSmallIntegerField(default=0, help_text="How often a worker has begun to validate it.")
    signature = models.CharField(max_length=88, blank=True, help_text="ed25519 over the digest, in base64.")
    signed_by = models.ForeignKey(
        intake.SigningKey, null=True, blank=True, on_delete=models.PROTECT, related_name="versions"
    )
    uploader = models.CharField(max_length=96)
    notes = models.TextField(blank=True, help_text="What its makers say of it.")
    metrics = models.JSONField(default=dict, blank=True, help_text="What its makers measured: an object of theirs.")
    pinned_at = models.DateTimeField(null=True, blank=True, help_text="Since when it is to stay on the device.")
    released_at = models.DateTimeField(
        null=True, blank=True, help_text="When, after it was archived or deleted, all that held its weights let go."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)

    objects = VersionQuerySet.as_manager()

    class Meta:
        ordering = ["-number"]
        constraints = [
            models.UniqueConstraint(fields=["adapter", "number"], name="version_number_once_per_adapter"),
            models.CheckConstraint(
                condition=Q(state__in=STORED, digest__regex=DIGEST)
                | ~Q(state__in=STORED) & Q(digest="")
                | Q(state=State.DELETED),
                name="version_has_a_digest_when_ready",
            ),
            models.CheckConstraint(
                condition=Q(pinned_at=None) | Q(state=State.READY), name="version_is_pinned_only_while_ready"
            ),
        ]
        triggers = [
            pgtrigger.FSM(name="states", field="state", transitions=[(a.value, b.value) for a, b in ARROWS]),
            pgtrigger.ReadOnly(
                name="identity", fields=["id", "adapter", "number", "uploader", "signature", "created_at"]
            ),
            pgtrigger.Protect(
                name="settled_content",
                operation=pgtrigger.Update,
                condition=pgtrigger.Q(old__state__in=[state.value for state in SETTLED])
                & (
                    pgtrigger.Q(old__digest__df=pgtrigger.F("new__digest"))
                    | pgtrigger.Q(old__findings__df=pgtrigger.F("new__findings"))
                    | pgtrigger.Q(old__summary__df=pgtrigger.F("new__summary"))
                    | pgtrigger.Q(old__size__df=pgtrigger.F("new__size"))
                    | pgtrigger.Q(old__signed_by__df=pgtrigger.F("new__signed_by"))
                ),
            ),
            pgtrigger.Protect(
                name="keep_served",
                operation=pgtrigger.Delete,
                condition=pgtrigger.Q(old__state__in=[state.value for state in STORED]),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.adapter}@v{self.number}"


class AliasQuerySet(models.QuerySet["Alias"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(adapter__tenant=tenant)


class Alias(models.Model):
    """A movable name for a version; `stable` is what a bare adapter name means. Its history is its AliasMoves."""

    adapter = models.ForeignKey(Adapter, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=63, validators=[valid_name, not_a_version])
    version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="aliases")
    moved_at = models.DateTimeField(auto_now=True)

    objects = AliasQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "aliases"
        constraints = [
            models.UniqueConstraint(fields=["adapter", "name"], name="alias_name_once_per_adapter"),
            models.CheckConstraint(
                condition=Q(name__regex=NAME) & ~Q(name__regex=VERSION_LIKE), name="alias_name_is_plain"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.adapter}@{self.name}"


class BlobQuerySet(models.QuerySet["Blob"]):
    def unheld(self) -> Self:
        """Those that nobody refers to, and that nobody is about to."""
        busy = Q(announced_at__gte=timezone.now() - ANNOUNCED)
        return self.filter(references=None).exclude(busy)


class Blob(models.Model):
    """A version's files in the store. The row is there before they are, so nothing lies in the store unknown."""

    digest = models.CharField(max_length=71, primary_key=True)
    size = models.PositiveBigIntegerField(help_text="Bytes.")
    announced_at = models.DateTimeField(null=True, blank=True, help_text="Set while the files are being stored.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = BlobQuerySet.as_manager()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(digest__regex=DIGEST), name="blob_has_a_digest")]

    def __str__(self) -> str:
        return self.digest


class ReferenceQuerySet(models.QuerySet["Reference"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class Reference(models.Model):
    """How many of a tenant's versions hold a blob; the row goes with the last one."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="references")
    blob = models.ForeignKey(Blob, on_delete=models.PROTECT, related_name="references")
    count = models.PositiveIntegerField(default=0)

    objects = ReferenceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tenant", "blob"], name="reference_once_per_tenant"),
            models.CheckConstraint(condition=Q(count__gt=0), name="reference_counts"),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}: {self.blob_id}"


class Turn(models.TextChoices):
    """What an alias' move was."""

    CREATED = "created"
    MOVED = "moved"
    ROLLED_BACK = "rolled_back"
    DELETED = "deleted"


class AliasMoveQuerySet(models.QuerySet["AliasMove"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(adapter__tenant=tenant)

    def arrivals(self) -> Self:
        """Moves that a rollback can undo."""
        return self.filter(kind=Turn.MOVED)


class AliasMove(models.Model):
    """One turn in an alias' history, which outlives the alias. Written beside the move; never changed."""

    adapter = models.ForeignKey(Adapter, on_delete=models.CASCADE, related_name="alias_moves")
    alias = models.CharField(max_length=63)
    kind = models.CharField(max_length=16, choices=Turn)
    from_version = models.ForeignKey(Version, null=True, on_delete=models.RESTRICT, related_name="+")
    to_version = models.ForeignKey(Version, null=True, on_delete=models.RESTRICT, related_name="+")
    actor = models.CharField(max_length=96)
    reason = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(auto_now_add=True)

    objects = AliasMoveQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["adapter", "alias", "-id"], name="alias_move_newest")]
        constraints = [
            models.CheckConstraint(
                condition=Q(from_version__isnull=False) | Q(to_version__isnull=False), name="alias_move_has_an_end"
            )
        ]
        triggers = [pgtrigger.Protect(name="append_only", operation=pgtrigger.Update)]

    def __str__(self) -> str:
        return f"{self.adapter}@{self.alias} {self.kind}"
