"""Knows what each request used, each day's sums of it, and how much may be used; never prompts, answers or prices.

    open ──> finished
     ├─────> cancelled     the client left
     ├─────> failed        the engine's or the adapter's fault; `code` says which
     └─────> lost          nobody has noted it for `metering.ledger.LEASE`: its process died

A call names its key, adapter and base model by what they were: it outlives them.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, Self

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Prefetch, Q, Sum
from django.utils import timezone

from apikeys.models import ApiKey
from tenants.models import Tenant

MOST = 10**15  # tokens of a budget; percentages of more would not fit a bigint


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
    base = models.CharField(max_length=255)
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

    reserved = models.BigIntegerField(default=0, help_text="Tokens taken on each of its accounts while it is open.")
    accounts = ArrayField(models.BigIntegerField(), default=list, blank=True)

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


@dataclass(frozen=True, slots=True)
class Span:
    start: datetime
    end: datetime


class Period(models.TextChoices):
    DAY = "day"
    MONTH = "month"

    def span(self, now: datetime) -> Span:
        """The period that holds this moment, in UTC."""
        day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self is Period.DAY:
            return Span(day, day + timedelta(days=1))
        month = day.replace(day=1)
        return Span(month, (month + timedelta(days=31)).replace(day=1))


class BudgetQuerySet(models.QuerySet["Budget"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def with_accounts(self, now: datetime) -> Self:
        """And their accounts of the periods that hold this moment, in one query more."""
        starts = {period.span(now).start.date() for period in Period}
        return self.prefetch_related(Prefetch("accounts", Account.objects.filter(starts_on__in=starts)))


class Budget(models.Model):
    """Tokens that a tenant, or one key of it, may use in each day or month. `imposed`: operators' alone to change."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="budgets", db_index=False)
    key = models.ForeignKey(ApiKey, null=True, blank=True, on_delete=models.CASCADE, related_name="budgets")
    period = models.CharField(max_length=8, choices=Period)
    tokens = models.BigIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(MOST)], help_text="Of prompts and answers together."
    )
    imposed = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = BudgetQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "key", "period", "imposed"], nulls_distinct=False, name="budget_once_per_period"
            ),
            models.CheckConstraint(condition=Q(tokens__gte=1), name="budget_lets_something_through"),
        ]

    def __str__(self) -> str:
        return f"budget:{self.id}"

    def span(self, now: datetime) -> Span:
        return Period(self.period).span(now)

    def account_at(self, now: datetime) -> "Account":
        """Of the period that holds this moment; an empty one where nothing was used in it yet."""
        start = self.span(now).start.date()
        found = next((account for account in self.accounts.all() if account.starts_on == start), None)
        return found or Account(budget=self, starts_on=start, tokens=self.tokens)


class Account(models.Model):
    """A budget in one of its periods. `reserved` is taken by calls under way; used + reserved never passes `tokens`
    but by an operator's or the tenant's lowering it.
    """

    budget = models.ForeignKey(Budget, on_delete=models.CASCADE, related_name="accounts", db_index=False)
    starts_on = models.DateField()
    tokens = models.BigIntegerField(help_text="As the budget says, repeated here so that one row decides.")
    used = models.BigIntegerField(default=0)
    reserved = models.BigIntegerField(default=0)
    warned_at = models.DateTimeField(null=True, blank=True)
    exceeded_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-starts_on"]
        constraints = [
            models.UniqueConstraint(fields=["budget", "starts_on"], name="account_once_per_period"),
            models.CheckConstraint(condition=Q(used__gte=0, reserved__gte=0), name="account_is_not_negative"),
        ]

    def __str__(self) -> str:
        return f"{self.budget_id} from {self.starts_on}"

    @property
    def span(self) -> Span:
        return self.budget.span(datetime.combine(self.starts_on, time.min, UTC))
