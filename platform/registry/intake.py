"""Knows what is on its way in: uploads, their parts, and the keys that tenants sign with; never what the files hold.

    pending ──> completed ──> used        a version took the file
        ├─> cancelled  └────> dropped     deleted, or nobody took it in time
        └─> expired

To OpenAI's clients `used` and `dropped` are `completed`.
"""

import uuid
from datetime import datetime, timedelta
from typing import Self

import pgtrigger
from django.db import models
from django.db.models import Q, Sum
from django.utils import timezone

from tenants.models import Tenant

OPEN_FOR = timedelta(days=1)
KEPT_FOR = timedelta(days=1)  # a completed file that no version took


class Purpose(models.TextChoices):
    """OpenAI's, as far as they mean something here, and our own."""

    ADAPTER = "adapter"
    EVALS = "evals"
    USER_DATA = "user_data"


class UploadState(models.TextChoices):
    PENDING = "pending"
    COMPLETED = "completed"
    USED = "used"
    DROPPED = "dropped"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN = (UploadState.PENDING, UploadState.COMPLETED)
ARROWS = [
    (UploadState.PENDING, UploadState.COMPLETED),
    (UploadState.PENDING, UploadState.CANCELLED),
    (UploadState.PENDING, UploadState.EXPIRED),
    (UploadState.COMPLETED, UploadState.USED),
    (UploadState.COMPLETED, UploadState.DROPPED),
]


class UploadQuerySet(models.QuerySet["Upload"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def open(self) -> Self:
        """Those that hold room on the disk."""
        return self.filter(state__in=OPEN)

    def overdue(self, now: datetime) -> Self:
        return self.filter(
            Q(state=UploadState.PENDING, expires_at__lte=now) | Q(state=UploadState.COMPLETED, file_expires_at__lte=now)
        )


class Upload(models.Model):
    """One file that comes in parts, and then waits for its use. Its row is the lock on what lies on the disk for it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="uploads")
    filename = models.CharField(max_length=255)
    purpose = models.CharField(max_length=16, choices=Purpose)
    mime_type = models.CharField(max_length=255, blank=True)
    bytes = models.PositiveBigIntegerField(help_text="As announced; the parts must add up to it.")
    state = models.CharField(max_length=16, choices=UploadState, default=UploadState.PENDING)
    sha256 = models.CharField(max_length=64, blank=True, help_text="Of the whole file, once it is complete.")
    part_ids = models.JSONField(default=list, blank=True, help_text="In the order that made the file.")
    version = models.ForeignKey(
        "registry.Version", null=True, blank=True, on_delete=models.SET_NULL, related_name="uploads"
    )
    uploader = models.CharField(max_length=96)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    file_expires_at = models.DateTimeField(null=True, blank=True)
    keep_seconds = models.PositiveIntegerField(default=int(KEPT_FOR.total_seconds()))

    objects = UploadQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "id"]
        indexes = [models.Index(fields=["state", "expires_at"], name="upload_by_state")]
        triggers = [
            pgtrigger.FSM(name="upload_states", field="state", transitions=[(a.value, b.value) for a, b in ARROWS]),
        ]

    def __str__(self) -> str:
        return f"{self.tenant}/{self.public_id}"

    @property
    def public_id(self) -> str:
        return f"upload_{self.id.hex}"

    @property
    def file_id(self) -> str:
        return f"file-{self.id.hex}"

    @property
    def received(self) -> int:
        """Bytes so far."""
        return self.parts.aggregate(sum=Sum("size"))["sum"] or 0

    @property
    def is_open(self) -> bool:
        return self.state == UploadState.PENDING and self.expires_at > timezone.now()


class Part(models.Model):
    """A piece of an upload. The same piece sent again is the same part, so that a lost answer costs nothing."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    upload = models.ForeignKey(Upload, on_delete=models.CASCADE, related_name="parts")
    size = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["created_at", "id"]
        constraints = [models.UniqueConstraint(fields=["upload", "sha256", "size"], name="part_once_per_upload")]

    def __str__(self) -> str:
        return self.public_id

    @property
    def public_id(self) -> str:
        return f"part_{self.id.hex}"


class SigningKeyQuerySet(models.QuerySet["SigningKey"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def live(self) -> Self:
        return self.filter(revoked_at=None)


class SigningKey(models.Model):
    """An ed25519 public key that a tenant signs versions with. A revoked one stays, and can't come back."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="signing_keys")
    name = models.CharField(max_length=200)
    public_key = models.CharField(max_length=44, help_text="32 bytes in base64.")
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = SigningKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "public_key"], name="signing_key_once_per_tenant"),
        ]
        triggers = [pgtrigger.ReadOnly(name="signing_key_is_fixed", fields=["id", "tenant", "public_key"])]

    def __str__(self) -> str:
        return f"signing-key:{self.pk}"
