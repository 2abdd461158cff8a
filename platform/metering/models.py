"""Knows what each request used, and each day's sums of it; never prompts, answers or prices.

    open ──> finished
     ├─────> cancelled     the client left
     ├─────> failed        the engine's or the adapter's fault; `code` says which
     └─────> lost          nobody has noted it for `metering.ledger.LEASE`: its process died

A call names its key, adapter and base model by what they were: it outlives them.
"""

import uuid
from typing import Any, Self

from django.db import models
from django.db.models import Q, Sum
from django.utils import timezone

from tenants.models import Tenant


class Purpose(models.TextChoices):
    """What a call was for. Only live ones count against budgets."""

    LIVE = "live"
    SHADOW = "shadow"  # a rollout's copy, whose answer nobody got
    EVALUATION = "evaluation"


class Outcome(models.TextChoices):
    OPEN = "open"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"


class CallQuerySet(models.QuerySet["Call"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class Call(models.Model):
    """One request's use of the engine. Its id is of our making; `request_id` is what the client knows it by.

    Tokens of a prompt count once, however many answers it has, and with those that were found in the prefix cache.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="calls", db_index=False)
    key = models.UUIDField()
    request_id = models.CharField(max_length=128)
    purpose = models.CharField(max_length=16, choices=Purpose, default=Purpose.LIVE)
    base = models.CharField(max_length=200)
    adapter = models.CharField(max_length=63, blank=True, help_text="Empty: the base model.")
    version = models.PositiveIntegerField(null=True, blank=True)
    digest = models.CharField(max_length=71, blank=True)
    prompt = models.PositiveBigIntegerField(default=0)
    cached = models.PositiveBigIntegerField(default=0, help_text="Of the prompt's.")
    completion = models.PositiveBigIntegerField(default=0)
    outcome = models.CharField(max_length=16, choices=Outcome, default=Outcome.OPEN)
    code = models.CharField(max_length=64, blank=True, help_text="Of an error.")
    started_at = models.DateTimeField(default=timezone.now)
    noted_at = models.DateTimeField(default=timezone.now, help_text="While it is open: when it was last heard of.")
    summed = models.BooleanField(default=False, help_text="It is in its day's sums.")

    objects = CallQuerySet.as_manager()

    class Meta:
        ordering = ["-started_at"]
        indexes = [
            models.Index(fields=["noted_at"], condition=Q(outcome="open"), name="call_open"),
            models.Index(fields=["noted_at"], condition=Q(summed=False), name="call_to_sum"),
            models.Index(fields=["started_at"], name="call_by_age"),
        ]

    def __str__(self) -> str:
        return self.request_id

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


class DailyUsageQuerySet(models.QuerySet["DailyUsage"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def summed_by(self, *groups: str) -> models.QuerySet["DailyUsage", dict[str, Any]]:
        """A row for each value of these fields, in their order, with the sums over all others."""
        sums = {"requests": Sum("requests"), "failed": Sum("failed"), "prompt_tokens": Sum("prompt")}
        sums |= {"cached_tokens": Sum("cached"), "completion_tokens": Sum("completion")}
        rows: models.QuerySet[DailyUsage, dict[str, Any]] = self.order_by(*groups).values(*groups).annotate(**sums)
        return rows


class DailyUsage(models.Model):
    """Sums over the calls that began on a day, in UTC."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="usage", db_index=False)
    day = models.DateField()
    key = models.UUIDField()
    adapter = models.CharField(max_length=63, blank=True)
    purpose = models.CharField(max_length=16, choices=Purpose)
    requests = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0, help_text="Requests that failed or were lost.")
    prompt = models.PositiveBigIntegerField(default=0)
    cached = models.PositiveBigIntegerField(default=0)
    completion = models.PositiveBigIntegerField(default=0)

    objects = DailyUsageQuerySet.as_manager()

    class Meta:
        ordering = ["-day"]
        verbose_name_plural = "daily usage"
        constraints = [
            models.UniqueConstraint(fields=["tenant", "day", "key", "adapter", "purpose"], name="usage_once_per_day")
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.adapter}"
