"""Knows evaluation sets, their items, and what each version made of them; nothing of HTTP, engines or statistics.

A set never changes. An evaluation is one model's way through one set, and moves along these arrows:

    queued ──> running ──> succeeded
      │          ├───────> failed
      └──────────┴───────> cancelled

While it runs, one worker holds its lease; what a worker finds out is written only under the row's lock and its lease.
"""

import uuid
from typing import Self

import pgtrigger
from django.db import models
from django.db.models import Q

from apikeys.models import ApiKey
from evaluations.intervals import Score
from registry.models import NAME, BaseModel, Version, valid_name
from tenants.models import Tenant


class Scorer(models.TextChoices):
    EXACT = "exact"
    CONTAINS = "contains"
    REGEX = "regex"
    JSON_SCHEMA = "json-schema"
    LOG_LIKELIHOOD = "log-likelihood"


class Measure(models.TextChoices):
    """What a set's score is: the share of answers that pass, or the mean log-probability of a token of the answers."""

    ACCURACY = "accuracy"
    LOG_LIKELIHOOD = "log-likelihood"


class EvaluationSetQuerySet(models.QuerySet["EvaluationSet"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class EvaluationSet(models.Model):
    """Prompts and what to expect, as uploaded. All its items have one measure, so that it has one score."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="evaluation_sets")
    name = models.CharField(max_length=63, validators=[valid_name])
    digest = models.CharField(max_length=71, help_text="sha256:… over the canonical lines.")
    measure = models.CharField(max_length=16, choices=Measure)
    count = models.PositiveIntegerField(help_text="Items.")
    size = models.PositiveIntegerField(help_text="Bytes as uploaded.")
    uploader = models.CharField(max_length=96)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = EvaluationSetQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name"], name="evaluation_set_name_once_per_tenant"),
            models.CheckConstraint(condition=Q(name__regex=NAME), name="evaluation_set_name_is_plain"),
        ]
        triggers = [pgtrigger.Protect(name="immutable", operation=pgtrigger.Update)]

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


class Item(models.Model):
    """One line of a set."""

    set = models.ForeignKey(EvaluationSet, on_delete=models.CASCADE, related_name="items")
    number = models.PositiveIntegerField(help_text="The line, from 1.")
    messages = models.JSONField()
    scorer = models.CharField(max_length=16, choices=Scorer)
    expected = models.JSONField(help_text="A text; for json-schema the schema.")
    max_tokens = models.PositiveIntegerField()

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["set", "number"], name="evaluation_item_once_per_line")]
        triggers = [pgtrigger.Protect(name="immutable", operation=pgtrigger.Update)]

    def __str__(self) -> str:
        return f"{self.set} line {self.number}"


class State(models.TextChoices):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ARROWS = [
    (State.QUEUED, State.RUNNING),
    (State.QUEUED, State.CANCELLED),
    (State.RUNNING, State.SUCCEEDED),
    (State.RUNNING, State.FAILED),
    (State.RUNNING, State.CANCELLED),
]
PENDING = (State.QUEUED, State.RUNNING)
SETTLED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class EvaluationQuerySet(models.QuerySet["Evaluation"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)

    def pending(self) -> Self:
        return self.filter(state__in=PENDING)

    def newest(self) -> Self:
        """Of each set and model the last one that succeeded."""
        each = ("set_id", "base_model_id", "version_id")
        return self.filter(state=State.SUCCEEDED).order_by(*each, "-finished_at").distinct(*each)


class Evaluation(models.Model):
    """A set's way through one version, or through the base model where `version` is null."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="evaluations")
    set = models.ForeignKey(EvaluationSet, on_delete=models.CASCADE, related_name="evaluations")
    base_model = models.ForeignKey(BaseModel, on_delete=models.PROTECT, related_name="evaluations")
    version = models.ForeignKey(Version, null=True, blank=True, on_delete=models.CASCADE, related_name="evaluations")
    model = models.CharField(max_length=512, help_text="What is called: a pinned name, whatever an alias does since.")
    state = models.CharField(max_length=16, choices=State, default=State.QUEUED)
    done = models.PositiveIntegerField(default=0, help_text="Items with a result.")
    attempts = models.PositiveSmallIntegerField(default=0, help_text="How often it was taken up with nothing new done.")
    worker = models.UUIDField(null=True, blank=True, editable=False, help_text="Who holds the lease.")
    leased_until = models.DateTimeField(null=True, blank=True, editable=False)
    key = models.ForeignKey(ApiKey, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False)
    error = models.CharField(max_length=500, blank=True, help_text="Why it failed.")
    mean = models.FloatField(null=True, blank=True)
    low = models.FloatField(null=True, blank=True)
    high = models.FloatField(null=True, blank=True)
    creator = models.CharField(max_length=96)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["set", "base_model", "version"],
                condition=Q(state__in=PENDING),
                nulls_distinct=False,
                name="evaluation_once_at_a_time",
            ),
            models.CheckConstraint(
                condition=Q(state=State.SUCCEEDED, mean__isnull=False, low__isnull=False, high__isnull=False)
                | ~Q(state=State.SUCCEEDED) & Q(mean=None, low=None, high=None),
                name="evaluation_has_a_score_when_it_succeeded",
            ),
        ]
        indexes = [
            models.Index(fields=["version", "set", "-finished_at"], name="evaluation_newest"),
            models.Index(fields=["leased_until"], condition=Q(state__in=PENDING), name="evaluation_pending"),
        ]
        triggers = [
            pgtrigger.FSM(name="states", field="state", transitions=[(a.value, b.value) for a, b in ARROWS]),
            pgtrigger.ReadOnly(
                name="identity", fields=["id", "tenant", "set", "base_model", "version", "model", "creator"]
            ),
            pgtrigger.Protect(
                name="settled_score",
                operation=pgtrigger.Update,
                condition=pgtrigger.Q(old__state__in=[state.value for state in SETTLED])
                & (
                    pgtrigger.Q(old__mean__df=pgtrigger.F("new__mean"))
                    | pgtrigger.Q(old__low__df=pgtrigger.F("new__low"))
                    | pgtrigger.Q(old__high__df=pgtrigger.F("new__high"))
                    | pgtrigger.Q(old__done__df=pgtrigger.F("new__done"))
                ),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model} on {self.set}"

    @property
    def score(self) -> Score | None:
        if self.mean is None or self.low is None or self.high is None:
            return None
        return Score(self.mean, self.low, self.high, self.done)


class ResultQuerySet(models.QuerySet["Result"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(evaluation__tenant=tenant)


class Result(models.Model):
    """What a model said to one item, and what that is worth: 1 or 0, or the mean log-probability of a token."""

    evaluation = models.ForeignKey(Evaluation, on_delete=models.CASCADE, related_name="results")
    item = models.ForeignKey(Item, on_delete=models.CASCADE, related_name="results")
    value = models.FloatField()
    answer = models.TextField(blank=True, help_text="Empty for log-likelihood, where nothing is generated.")
    tokens = models.PositiveIntegerField(default=0)
    note = models.CharField(max_length=200, blank=True, help_text="Why it did not pass, where that is not plain.")

    objects = ResultQuerySet.as_manager()

    class Meta:
        ordering = ["item__number"]
        constraints = [models.UniqueConstraint(fields=["evaluation", "item"], name="evaluation_result_once_per_item")]

    def __str__(self) -> str:
        return f"{self.evaluation} line {self.item.number}: {self.value}"
