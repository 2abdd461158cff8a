"""Knows organisations and who belongs to them; nothing of keys, adapters or requests."""

import uuid

from django.conf import settings
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models

SLUG = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"


class Tenant(models.Model):
    """An organisation that shares the platform with others and must never see or slow them."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.CharField(
        max_length=63,
        unique=True,
        validators=[RegexValidator(SLUG, "Lower-case letters, digits and inner hyphens only, 63 characters at most.")],
    )
    name = models.CharField(max_length=200)
    weight = models.FloatField(
        default=1.0, validators=[MinValueValidator(0.01)], help_text="Share of the engine relative to other tenants."
    )
    quota_bytes = models.PositiveBigIntegerField(default=50 * 2**30, help_text="Of adapters stored and coming in.")
    quota_versions = models.PositiveIntegerField(default=1000, help_text="Versions waiting, ready or archived.")
    quota_uploads = models.PositiveIntegerField(default=100, help_text="Uploads that are open or wait for their use.")
    quota_adapters = models.PositiveIntegerField(default=1000, help_text="Adapters, with versions or without.")
    quota_keys = models.PositiveIntegerField(default=200, help_text="API keys that work.")
    quota_evaluation_bytes = models.PositiveBigIntegerField(default=64 * 2**20, help_text="Of evaluation sets.")
    quota_pins = models.PositiveSmallIntegerField(default=2, help_text="Versions kept on the engine's device.")
    requires_signature = models.BooleanField(default=False, help_text="Only signed versions become ready.")
    active = models.BooleanField(default=True, help_text="An inactive tenant's keys are refused.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(condition=models.Q(slug__regex=SLUG), name="tenant_slug_is_plain"),
            models.CheckConstraint(condition=models.Q(weight__gt=0), name="tenant_weight_is_positive"),
        ]

    def __str__(self) -> str:
        return self.slug


class Role(models.TextChoices):
    OWNER = "owner"
    EDITOR = "editor"
    VIEWER = "viewer"


class Member(models.Model):
    """A person of a tenant."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="members")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role, default=Role.VIEWER)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["tenant", "user"], name="member_once_per_tenant")]

    def __str__(self) -> str:
        return f"{self.user} of {self.tenant}"
