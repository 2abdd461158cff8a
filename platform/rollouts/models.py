"""Knows rollouts, their steps, what was observed of either arm, and what each look at it found; never a prompt.

    draft ─> validating ─> preloading ─> (shadowing) ─> progressing ⇄ paused ─> promoting ─> succeeded
                 └─────────────┴──────────────┴──────────────┴──────────┴───────────┴──> rolling_back ─> rolled_back

The data plane reads one row, the rollout's: `weight` of 10,000 units of its traffic go to the canary, `copies` of
10,000 are copied to it. Rolling back writes that row and no other.
"""

import secrets
import uuid
from datetime import datetime
from typing import Self

import pgtrigger
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from evaluations.models import EvaluationSet
from registry.models import STABLE, Adapter, Version, valid_name
from tenants.models import Tenant

WHOLE = 10_000  # a weight that is all the traffic


class State(models.TextChoices):
    DRAFT = "draft"
    VALIDATING = "validating"
    PRELOADING = "preloading"
    SHADOWING = "shadowing"
    PROGRESSING = "progressing"
    PAUSED = "paused"
    PROMOTING = "promoting"
    SUCCEEDED = "succeeded"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


ROUTED = (State.SHADOWING, State.PROGRESSING, State.PAUSED, State.PROMOTING)
FORWARD = (State.VALIDATING, State.PRELOADING, *ROUTED)  # under way, and not yet on the way back
ACTIVE = (*FORWARD, State.ROLLING_BACK)
OVER = (State.SUCCEEDED, State.ROLLED_BACK)
ARROWS = [
    (State.DRAFT, State.VALIDATING),
    (State.DRAFT, State.ROLLED_BACK),
    (State.VALIDATING, State.PRELOADING),
    (State.PRELOADING, State.SHADOWING),
    (State.PRELOADING, State.PROGRESSING),
    (State.SHADOWING, State.PROGRESSING),
    (State.SHADOWING, State.PAUSED),
    (State.SHADOWING, State.PROMOTING),
    (State.PROGRESSING, State.PAUSED),
    (State.PROGRESSING, State.PROMOTING),
    (State.PAUSED, State.SHADOWING),
    (State.PAUSED, State.PROGRESSING),
    (State.PAUSED, State.PROMOTING),
    (State.PROMOTING, State.SUCCEEDED),
    *((state, State.ROLLING_BACK) for state in FORWARD),
    (State.ROLLING_BACK, State.ROLLED_BACK),
]


class Unit(models.TextChoices):
    """Whom an assignment sticks to. AUTO: the user where the request names one, else the conversation, else the key."""

    AUTO = "auto"
    USER = "user"
    CONVERSATION = "conversation"
    KEY = "key"


class OnNew(models.TextChoices):
    """What becomes of this rollout when another is asked for on its alias."""

    REFUSE = "refuse"
    RESTART = "restart"


class Pause(models.TextChoices):
    NONE = ""
    PERSON = "person"
    GATE = "gate"
    INCONCLUSIVE = "inconclusive"


class Cause(models.TextChoices):
    """Why a rollout was rolled back."""

    NONE = ""
    PERSON = "person"
    VERDICT = "verdict"
    TRIPWIRE = "tripwire"
    EVALUATION = "evaluation"
    UNEVALUATED = "unevaluated"  # there will be no score
    PRELOAD = "preload"  # the engine can't load the canary
    ENGINE = "engine"  # it never said whether it can
    ALIAS = "alias"  # it was moved by somebody else, or is gone
    VERSION = "version"  # the canary is no longer ready
    SUPERSEDED = "superseded"


# A version that was rolled back so may simply be retried.
NOT_ITS_FAULT = (Cause.ALIAS, Cause.SUPERSEDED, Cause.UNEVALUATED, Cause.ENGINE, Cause.NONE)


def new_salt() -> str:
    return secrets.token_hex(16)


class RolloutQuerySet(models.QuerySet["Rollout"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(adapter__tenant=tenant)

    def active(self) -> Self:
        """Those that need their versions: the registry asks before it archives or deletes one."""
        return self.filter(state__in=ACTIVE)


class Rollout(models.Model):
    """A controlled move of an alias from its version, `stable`, to another, `canary`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    adapter = models.ForeignKey(Adapter, on_delete=models.CASCADE, related_name="rollouts")
    alias = models.CharField(max_length=63, default=STABLE, validators=[valid_name])
    stable = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="rollouts_from")
    canary = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="rollouts_to")
    state = models.CharField(max_length=16, choices=State, default=State.DRAFT)
    step = models.PositiveSmallIntegerField(default=0, help_text="Number of the step that it is at, from 0.")
    weight = models.PositiveSmallIntegerField(default=0, help_text="Of 10,000 units, those that the canary serves.")
    copies = models.PositiveSmallIntegerField(default=0, help_text="Of 10,000 units, those copied to the canary.")
    salt = models.CharField(max_length=32, default=new_salt, editable=False)
    unit = models.CharField(max_length=16, choices=Unit, default=Unit.AUTO)
    on_new = models.CharField(max_length=8, choices=OnNew, default=OnNew.REFUSE)
    guardrails = models.JSONField(default=list, blank=True)
    schema = models.JSONField(null=True, blank=True, help_text="JSON Schema that answers should fit.")
    evaluation = models.CharField(max_length=63, blank=True, help_text="Evaluation set that it must pass first.")
    evaluation_set = models.ForeignKey(
        EvaluationSet,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="rollouts",
        help_text="The set of that name, which can't be deleted while this is under way.",
    )
    override = models.BooleanField(default=False, help_text="Tried although the version was rolled back before.")
    pause = models.CharField(max_length=16, choices=Pause, default=Pause.NONE, blank=True)
    cause = models.CharField(max_length=16, choices=Cause, default=Cause.NONE, blank=True)
    reasons = models.JSONField(default=list, blank=True, help_text="Why it is where it is, in sentences.")
    looks = models.PositiveIntegerField(default=0, help_text="How often the arms were compared.")
    maker = models.CharField(max_length=96)
    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)
    started_at = models.DateTimeField(null=True, blank=True)
    entered_at = models.DateTimeField(null=True, blank=True, help_text="When it came to its state or step.")
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = RolloutQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["adapter", "alias"], condition=Q(state__in=ACTIVE), name="rollout_one_active_per_alias"
            ),
            models.CheckConstraint(
                condition=Q(weight=0, copies=0) | Q(state__in=ROUTED), name="rollout_takes_traffic_only_when_routed"
            ),
            models.CheckConstraint(condition=Q(weight__lte=WHOLE, copies__lte=WHOLE), name="rollout_weight_is_a_share"),
            models.CheckConstraint(condition=~Q(stable=models.F("canary")), name="rollout_goes_somewhere"),
            models.CheckConstraint(
                condition=Q(evaluation_set=None) | Q(state__in=ACTIVE), name="rollout_holds_a_set_while_active"
            ),
        ]
        indexes = [models.Index(fields=["state"], condition=Q(state__in=ACTIVE), name="rollout_active")]
        triggers = [
            pgtrigger.FSM(name="states", field="state", transitions=[(a.value, b.value) for a, b in ARROWS]),
            pgtrigger.ReadOnly(name="identity", fields=["id", "adapter", "alias", "stable", "canary", "salt"]),
        ]

    def __str__(self) -> str:
        return f"{self.adapter}@{self.alias}: v{self.stable.number} → v{self.canary.number}"

    @property
    def current(self) -> "Step":
        return self.steps.get(number=self.step)


class Step(models.Model):
    """Held for `min_seconds` and `min_samples` of the canary; not conclusive by `max_seconds`, the rollout pauses.

    A shadow step copies `weight` of the traffic and answers none. A gate is passed by a person, after the verdict.
    """

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="steps")
    number = models.PositiveSmallIntegerField()
    shadow = models.BooleanField(default=False)
    weight = models.PositiveSmallIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(WHOLE)], help_text="Of 10,000 units."
    )
    min_seconds = models.PositiveIntegerField(default=300)
    min_samples = models.PositiveIntegerField(default=100)
    max_seconds = models.PositiveIntegerField(null=True, blank=True)
    gate = models.BooleanField(default=False)
    entered_at = models.DateTimeField(null=True, blank=True)
    look = models.PositiveIntegerField(default=0, help_text="Of its last verdict (`rollouts.verdicts`).")
    counted_to = models.DateTimeField(null=True, blank=True, help_text="Samples kept by then are in the windows.")
    stable_window = models.JSONField(default=dict, blank=True)
    canary_window = models.JSONField(default=dict, blank=True)
    sums = models.JSONField(default=dict, blank=True, help_text="Of either arm's samples, for people.")

    class Meta:
        ordering = ["number"]
        constraints = [models.UniqueConstraint(fields=["rollout", "number"], name="step_number_once_per_rollout")]

    def __str__(self) -> str:
        return f"step {self.number} ({self.weight / 100:g} %{', shadow' if self.shadow else ''})"

    def seconds(self, now: datetime) -> float:
        """Since it was entered."""
        return (now - self.entered_at).total_seconds() if self.entered_at else 0.0


class Arm(models.TextChoices):
    STABLE = "stable"
    CANARY = "canary"


class Outcome(models.TextChoices):
    OK = "ok"
    ERROR = "error"  # the version's or the engine's fault
    ABANDONED = "abandoned"  # the client left


class Sample(models.Model):
    """What one request's answer looked like; nothing of what it said. None: not measured."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="samples")
    step = models.PositiveSmallIntegerField()
    arm = models.CharField(max_length=8, choices=Arm)
    shadow = models.BooleanField(default=False, help_text="An answer that nobody got.")
    at = models.DateTimeField()
    unit = models.BigIntegerField(help_text="Fingerprint of the unit, by the rollout's salt.")
    response = models.CharField(max_length=64, blank=True, help_text="Id of the answer, for feedback.")
    kept_at = models.DateTimeField(db_default=Now(), editable=False)
    outcome = models.CharField(max_length=16, choices=Outcome)
    code = models.CharField(max_length=64, blank=True, help_text="Of an error.")
    cold = models.BooleanField(default=False, help_text="It waited for the adapter to be loaded.")
    first_token = models.FloatField(null=True, blank=True, help_text="Seconds.")
    inter_token = models.FloatField(null=True, blank=True, help_text="Seconds, the mean.")
    tokens = models.PositiveIntegerField(default=0)
    finish = models.CharField(max_length=16, blank=True)
    empty = models.BooleanField(null=True)
    repetitive = models.BooleanField(null=True)
    refusal = models.BooleanField(null=True)
    valid = models.BooleanField(null=True, help_text="By the guardrail's JSON Schema.")

    class Meta:
        ordering = ["pk"]
        indexes = [
            models.Index(fields=["rollout", "step", "kept_at"], name="sample_newest"),
            models.Index(fields=["response"], condition=~Q(response=""), name="sample_of_response"),
        ]

    def __str__(self) -> str:
        return f"{self.arm} {self.outcome}"

    @property
    def unanswered(self) -> bool:
        """Whether its client left before the first token, having waited `first_token`, which then is a lower bound."""
        return self.outcome == Outcome.ABANDONED and not self.tokens


class Look(models.Model):
    """One comparison of the arms, and what came of it. Kept as long as the rollout."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="history")
    step = models.PositiveSmallIntegerField()
    number = models.PositiveIntegerField(help_text="Of the rollout's looks, from 1.")
    kind = models.CharField(max_length=16)
    reasons = models.JSONField(default=list, blank=True)
    figures = models.JSONField(default=dict, blank=True, help_text="Of either arm, as compared.")
    at = models.DateTimeField()

    class Meta:
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["rollout", "number"], name="look_number_once_per_rollout")]

    def __str__(self) -> str:
        return f"look {self.number}: {self.kind}"


class FeedbackQuerySet(models.QuerySet["Feedback"]):
    def for_tenant(self, tenant: Tenant) -> Self:
        return self.filter(tenant=tenant)


class Feedback(models.Model):
    """A user's thumb for an answer. Another tenant's word about it lands with that tenant, and meets no sample."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="feedback")
    response = models.CharField(max_length=64)
    up = models.BooleanField()
    at = models.DateTimeField()

    objects = FeedbackQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        verbose_name_plural = "feedback"
        constraints = [models.UniqueConstraint(fields=["tenant", "response"], name="feedback_once_per_response")]

    def __str__(self) -> str:
        return "up" if self.up else "down"
